"""The driver killed by SIGKILL between any two lines of the loop, then resumed: the run is the uninterrupted one.

A process is killed wherever the last line executed has changed the run's folder, which is all that a resumed run
sees; between such places every kill is the same kill.
"""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from in_process import apart, run_here

from rl import train
from rl.learner import dropped, rank
from rl.run import checkpoints, metrics, steps
from rollout.archive import archive, compact, shards, table

pytestmark = pytest.mark.long

LOOP = [  # shutil deletes checkpoints, file by file
    *(shutil.__file__, train.__file__, checkpoints.__file__, metrics.__file__, steps.__file__, dropped.__file__),
    *(rank.__file__, archive.__file__, shards.__file__, table.__file__, compact.__file__),
]
STEPS = ["steps=3"]
CLOCKED = "events.out.tfevents"
"""TensorBoard's files carry a clock and a process in their names."""
LANES = 2

Seen = tuple[tuple[str, int, int, int], ...]


def seen(folder: Path) -> Seen:
    """Name, size, inode and time of all that a resumed run could find."""
    files = sorted(path for path in folder.rglob("*") if CLOCKED not in path.name)
    stats = [(str(path), path.stat()) for path in files]
    return tuple((name, stat.st_size, stat.st_ino, stat.st_mtime_ns) for name, stat in stats)


def traced(at_line: Callable[[str], None], folder: Path, port: int) -> None:
    """The run, with `at_line` called before every line of the loop."""

    def enter(frame: FrameType, event: str, arg: Any) -> Any:
        return step if frame.f_code.co_filename in LOOP else None

    def step(frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line":
            at_line(f"{frame.f_code.co_filename}:{frame.f_lineno}")
        return step

    sys.settrace(enter)
    run_here(folder, port, STEPS)
    sys.settrace(None)


def record(folder: Path, port: int, out: Path) -> None:
    """Write down the places, by number and line, before which the folder changed; the first place is 0."""
    last, count, places = seen(folder), 0, [(0, "start")]

    def at_line(line: str) -> None:
        nonlocal last, count
        if (now := seen(folder)) != last:
            places.append((count, line))
        last, count = now, count + 1

    traced(at_line, folder, port)
    out.write_text(json.dumps({"places": places, "lines": count}))


def killed(folder: Path, port: int, place: int) -> None:
    """The run, killed before its line number `place`."""
    count = 0

    def at_line(line: str) -> None:
        nonlocal count
        if count == place:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1

    traced(at_line, folder, port)


@dataclass(frozen=True)
class Outcome:
    """What must be equal at the end."""

    archive: dict[str, bytes]
    metrics: list[dict[str, float]]
    checkpoints: list[str]
    best: bytes


def outcome(folder: Path) -> Outcome:
    assert not [path for path in folder.rglob("*") if "part" in path.suffix], "something half-written was left"
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob("archive/[er]*/*")}
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    names = sorted(str(path.relative_to(folder)) for path in (folder / "checkpoints").rglob("*"))
    (best,) = folder.glob("checkpoints/best-*/policy/model.safetensors")
    return Outcome(files, rows, names, best.read_bytes())


def walk(begun: Path, folder: Path, expected: Outcome) -> tuple[int, list[str]]:
    """Kill at every place of a run that finds `begun` in its folder; the number of places, and what went wrong."""
    shutil.copytree(begun, folder / "recorded/run")  # the archive holds the last part of a run's path
    assert apart(record, folder / "recorded/run", 29700, folder / "places.json") == 0
    recorded = json.loads((folder / "places.json").read_text())
    print(f"{recorded['lines']} lines, {len(recorded['places'])} places")
    assert outcome(folder / "recorded/run") == expected

    def wrong(numbered: tuple[int, tuple[int, str]]) -> str | None:
        k, (place, line) = numbered
        run, port = folder / f"{k:03d}" / "run", 29701 + k
        shutil.copytree(begun, run)
        if apart(killed, run, port, place) != -signal.SIGKILL:
            return f"{line}: not killed"
        if apart(run_here, run, port, STEPS) != 0:
            return f"{line}: did not go on"
        try:
            ended = outcome(run)
        except (AssertionError, ValueError) as error:
            return f"{line}: {error}"
        differing = [name for name in vars(expected) if vars(ended)[name] != vars(expected)[name]]
        return f"{line}: {differing}" if differing else None

    with ThreadPoolExecutor(LANES) as lanes:
        found = list(lanes.map(wrong, enumerate(recorded["places"])))
    return len(found), [text for text in found if text]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert apart(run_here, folder, 29699, STEPS) == 0
    return folder


def test_a_driver_killed_between_any_two_lines_goes_on_as_if_it_had_not_been(
    uninterrupted: Path, tmp_path: Path
) -> None:
    (tmp_path / "nothing").mkdir()
    num_places, wrong = walk(tmp_path / "nothing", tmp_path, outcome(uninterrupted))
    assert wrong == []
    assert num_places > 40
