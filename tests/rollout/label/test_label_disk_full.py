"""Labelling on a full disk: one line says so, and with room again the labels are those of a whole job."""

import hashlib
from pathlib import Path

import pytest
from full_disk import fill, small_disk
from made_labels import QUIET, STAGES, config

from rl import label as verb
from rollout.label import writer as label_writer


def hashes(out: Path) -> dict[str, str]:
    """Content of all that the labels are."""
    files = [path for path in sorted(out.rglob("*")) if path.is_file() and not path.name.startswith("timings")]
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.slow
def test_wherever_the_disk_gets_full_one_line_says_so_and_labelling_goes_on_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_writer, "SHARD_IMAGES", 8)
    verb.label(config(tmp_path / "whole", stages=STAGES[:4]), QUIET)
    said = []
    with small_disk(tmp_path / "disk", 16) as disk:
        for room in (0, 4, 8, 24, 48, 64):  # KiB
            fill(disk, room * 1024)
            with pytest.raises(OSError) as told:
                verb.label(config(disk / "labels", stages=STAGES[:4]), QUIET)
            said.append(str(told.value))
            (disk / "ballast").unlink()
        verb.label(config(disk / "labels", stages=STAGES[:4]), QUIET)
        assert hashes(disk / "labels") == hashes(tmp_path / "whole")
    print(*said, sep="\n")
    assert all("was not written" in text and "\n" not in text for text in said)
