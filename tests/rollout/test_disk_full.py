"""A disk that is really full: the run ends with one line, and goes on bit for bit once there is room."""

import json
import re
import subprocess
import time
from pathlib import Path

import pytest
from commands import SMALL, polytrace
from full_disk import fill, small_disk
from in_process import apart, run_here, settings
from test_driver_killed import outcome

from rl.run.parts import run_parts
from rl.run.preflight import checkpoint_bytes, refuse_full_disk, weight_bytes

STEPS = ["steps=3"]


def error_of(folder: Path, port: int, out: Path) -> None:
    """Run; write down the error that ends it, an empty text where there is none."""
    text = ""
    try:
        run_here(folder, port, STEPS)
    except OSError as error:
        text = str(error)
    out.write_text(json.dumps(text))


def ended(folder: Path, port: int, out: Path) -> str:
    assert apart(error_of, folder, port, out) == 0
    return json.loads(out.read_text())


@pytest.mark.long
def test_wherever_the_disk_gets_full_one_line_says_so_and_the_run_goes_on_when_there_is_room(tmp_path: Path) -> None:
    whole, said = tmp_path / "whole", []
    assert ended(whole, 29600, tmp_path / "said") == ""
    with small_disk(tmp_path / "disk", 128) as disk:
        folder = disk / "whole"
        for k, room in enumerate([0, 16, 60, 8_000, 16_000, 30_000]):  # KiB
            fill(disk, room * 1024)
            said.append(ended(folder, 29601 + k, tmp_path / "said"))
            (disk / "ballast").unlink()
        assert ended(folder, 29610, tmp_path / "said") == ""
        assert outcome(folder) == outcome(whole)
    print(*said, sep="\n")
    assert sum("was not written" in text and "--resume" in text for text in said) >= 4
    assert not any("\n" in text for text in said)


@pytest.mark.long
def test_a_rank_that_cannot_write_its_checkpoint_ends_the_command_with_one_line(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 80) as disk:
        command = polytrace("train", "tiny", f"run={disk / 'run'}", *SMALL, "steps=1000")
        driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 300
        while not (disk / "run/archive/rollouts/step-00000000.parquet").exists():
            assert driver.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        fill(disk, 2 * 2**20)
        _, said = driver.communicate(timeout=300)
        assert driver.returncode == 2 and "Traceback" not in said
        (line,) = [text for text in said.splitlines() if "polytrace:" in text]
        assert "was not written" in line and "GiB are free there" in line and re.search(r"step-00000\d", line)


def test_a_disk_too_small_for_the_runs_checkpoints_is_refused_with_the_arithmetic(tmp_path: Path) -> None:
    config = settings(tmp_path / "disk" / "run", "keep_checkpoints=4")
    parts = run_parts(config)
    size = weight_bytes(parts)
    assert checkpoint_bytes(config, parts) == 3 * size
    with small_disk(tmp_path / "disk", 17 * size // 2**20 + 1):
        refuse_full_disk(config, parts)
        fill(tmp_path / "disk", 16 * size)
        with pytest.raises(
            OSError, match=r"^5 checkpoints of 0.014 GiB .* need 0.077 GiB, .* are 0.073 GiB free; make"
        ):
            refuse_full_disk(config, parts)
