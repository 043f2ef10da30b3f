"""Phases that really block."""

import io
import re
import subprocess
import sys
import threading
import time

from rl.learner.engine import Watchdog, watched

JOIN = """
import torch.distributed, sys
from rl.learner.engine import Watchdog
with Watchdog("learner rank 0 of 2", seconds=float(sys.argv[1])).phase("joining the other ranks"):
    torch.distributed.init_process_group("gloo", "tcp://127.0.0.1:0", world_size=2, rank=0)
"""


def test_a_rank_that_waits_for_one_that_never_comes_says_so_again_and_again_and_lives_on() -> None:
    with subprocess.Popen([sys.executable, "-c", JOIN, "0.2"], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = ""
        while said.count("has been in") < 2:
            line = process.stderr.readline()
            assert line, said
            said += line
        assert process.poll() is None
        process.kill()
    assert re.search(
        r"polytrace: learner rank 0 of 2 has been in `joining the other ranks` for \d+ s, and stands at", said
    )
    assert "init_process_group" in said and 'File "<string>", line 5, in <module>' in said


class Slow:
    """Two phases, one inside the other."""

    def __init__(self, seconds: float) -> None:
        self.said = io.StringIO()
        self.watchdog = Watchdog("rank 3", seconds, self.said)
        self.go_on = threading.Event()

    @watched
    def step(self) -> str:
        with self.watchdog.phase("gathering"):
            assert self.go_on.wait(30)
        return "done"


def test_the_innermost_phase_is_named_and_can_be_asked_for_from_another_thread() -> None:
    slow, answers = Slow(1.0), []
    assert slow.watchdog.where() == "rank 3 is in no phase that is watched"
    thread = threading.Thread(target=lambda: answers.append(slow.step()))
    thread.start()
    deadline = time.monotonic() + 30
    while "gathering" not in slow.said.getvalue() and time.monotonic() < deadline:
        time.sleep(0.01)
    where = slow.watchdog.where()
    slow.go_on.set()
    thread.join()
    assert answers == ["done"]
    assert "rank 3 has been in `gathering` for" in where and "assert self.go_on.wait(30)" in where
    assert "`step`" not in slow.said.getvalue()
    assert slow.watchdog.where() == "rank 3 is in no phase that is watched"


def test_what_ends_in_time_says_nothing_and_leaves_no_thread() -> None:
    slow = Slow(30.0)
    slow.go_on.set()
    threads, began = threading.active_count(), time.monotonic()
    for _ in range(50):
        slow.step()
    assert slow.said.getvalue() == "" and threading.active_count() == threads
    assert time.monotonic() - began < 30
