"""The learner's ranks in real processes: one is killed, the run says so within seconds and goes on bit for bit."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from commands import SMALL, numbers, polytrace, shards, train

pytestmark = pytest.mark.long

RANKS = ["learner.ranks=2", "learner.micro_groups=1", "learner.zero_stage=1", "steps=4"]


def rank_processes(driver: int) -> list[int]:
    found = []
    for process in psutil.Process(driver).children(recursive=True):
        try:
            title = process.cmdline()
        except psutil.Error:
            continue
        if title and title[0].startswith("ray::LearnerActor"):
            found.append(process.pid)
    return found


def test_a_killed_rank_stops_the_run_within_seconds_and_it_resumes_with_nothing_lost_or_twice(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken" / "whole"
    train(whole, *RANKS)
    command = polytrace("train", "tiny", f"run={broken}", *SMALL, *RANKS[:-1], "steps=1000")
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not (broken / "archive/rollouts/step-00000003.parquet").exists():
        assert driver.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    first, second = rank_processes(driver.pid)
    os.kill(second, signal.SIGKILL)
    killed_at = time.monotonic()
    _, said = driver.communicate(timeout=120)
    assert time.monotonic() - killed_at < 30 and driver.returncode == 2 and "Traceback" not in said
    (line,) = [text for text in said.splitlines() if "polytrace:" in text]
    says = r"learner rank (\d) \(process (\d+) on [\d.]+, (\d\.\d\d) GiB .* died in `\w+`; .*--resume"
    found = re.search(says, line)
    assert found and int(found[2]) == second and float(found[3]) > 0.1
    assert not psutil.pid_exists(first), "the other rank was ended with it"

    train(broken, *RANKS, "--resume")
    assert shards(broken) == shards(whole)
    assert [row for row in numbers(broken) if row["step"] >= 2] == [row for row in numbers(whole) if row["step"] >= 2]
    assert len(numbers(broken)) == len(numbers(whole))
