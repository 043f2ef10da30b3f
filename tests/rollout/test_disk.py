"""Files of commands: refused before the work where they cannot be written, else there whole or not at all."""

import os
import subprocess
from pathlib import Path

import pytest

from rollout.disk import refuse_unwritable, replace_text, whole_file


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize(
    ("out", "says"),
    [
        ("folder", r"folder is a folder; give the name of a new file, or of one to replace\."),
        ("pipe", "pipe is no ordinary file; give"),
        ("file/x.svg", "x.svg cannot be written: .*/file is a file, and no folder; give"),
        ("file/deep/x.svg", "x.svg cannot be written: .*/file is a file, and no folder; give"),
        ("x" * 256, "cannot be written: File name too long; give"),
        ("x" * 250, "cannot be written: File name too long; give"),  # the name that it is written under is longer
        ("/proc/x.svg", "/proc/x.svg cannot be written: No such file or directory; give .* in a folder of yours"),
        ("/sys/kernel/x.svg", "/sys/kernel/x.svg cannot be written: "),
        ("", "is a folder; give"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_and_leaves_no_trace(tmp_path: Path, out: str, says: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("kept")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match=says):
        refuse_unwritable(tmp_path / out)
    assert names(tmp_path) == ["file", "folder", "pipe"] and (tmp_path / "file").read_text() == "kept"


def test_a_folder_that_is_not_ones_own_is_refused(tmp_path: Path) -> None:
    if os.getuid() == 0:
        made = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(tmp_path)], check=False)
        if made.returncode:
            pytest.skip("mounting is not permitted here, and root may write everywhere")
    else:
        tmp_path.chmod(0o500)
    try:
        with pytest.raises(ValueError, match=r"cannot be written: (Read-only file system|Permission denied); give"):
            refuse_unwritable(tmp_path / "new" / "x.svg")
    finally:
        if os.getuid() == 0:
            subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_a_file_that_can_be_written_is_not_refused_and_nothing_is_made(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "old").write_text("kept")
    (tmp_path / "gone").symlink_to("nowhere")
    monkeypatch.chdir(tmp_path)
    for out in ("old", "new", "deep/er/new", "gone", tmp_path / "new", "x" * 246):
        refuse_unwritable(Path(out))
    assert names(tmp_path) == ["gone", "old"] and Path("old").read_text() == "kept"


@pytest.mark.parametrize("failure", [OSError, KeyboardInterrupt])
def test_a_write_that_fails_leaves_what_was_there_and_no_part(tmp_path: Path, failure: type[BaseException]) -> None:
    out = tmp_path / "deep" / "x.txt"
    replace_text(out, "whole")
    with pytest.raises(failure), whole_file(out) as partial:
        partial.write_text("ha")
        raise failure
    assert names(tmp_path) == ["deep", "deep/x.txt"] and out.read_text() == "whole"
    with whole_file(out) as partial:
        partial.write_text("new")
        assert out.read_text() == "whole"
    assert names(tmp_path) == ["deep", "deep/x.txt"] and out.read_text() == "new"
