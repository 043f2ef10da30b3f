"""Numbers of a run as it goes: TensorBoard events for people, metrics.jsonl beside them for the report and for tests.

metrics.jsonl holds no clock, so equal runs write equal files; seconds go to timings.jsonl. One line per call:
{"step": 3, "reward/mean": 0.41, ...}; several lines may share a step (a step and its evaluation).
"""

import json
import math
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter

from rollout import disk

FILE_NAME = "metrics.jsonl"
TIMINGS_FILE_NAME = "timings.jsonl"

Curve = tuple[list[int], list[float]]
"""Steps and the value at each, both of one length."""


class MetricsWriter:
    """Writes the numbers, histograms and pictures of a run into its folder, which is made where it is missing."""

    def __init__(self, folder: Path) -> None:
        """Open `folder` for appending."""
        self._path = folder / FILE_NAME
        folder.mkdir(parents=True, exist_ok=True)
        _rewrite(self._path, _whole_lines(self._path))  # a line torn by a kill would swallow the next one
        self._events = SummaryWriter(str(folder))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line of numbers by name; one that is not finite becomes null, as JSON has no word for it."""
        self._append(self._path, step, values)

    def timings(self, step: int, seconds: Mapping[str, float]) -> None:
        """Append one line of seconds by name to timings.jsonl, which a resumed run goes on with."""
        self._append(self._path.with_name(TIMINGS_FILE_NAME), step, seconds)

    def histograms(self, step: int, values: Mapping[str, NDArray[np.float64]]) -> None:
        """Write one histogram per name, of arrays of any shape; empty ones are left out."""
        with disk.writing(f"a histogram of step {step}", self._path):
            for name, array in values.items():
                if array.size:
                    self._events.add_histogram(name, array, step)

    def pictures(self, step: int, images: Mapping[str, NDArray[np.uint8]]) -> None:
        """Write uint8 RGB images [H, W, 3] by name."""
        with disk.writing(f"a picture of step {step}", self._path):
            for name, image in images.items():
                self._events.add_image(name, image, step, dataformats="HWC")

    def drop_after(self, step: int) -> None:
        """Forget everything written for steps after `step`, as a run does that resumes from that step's checkpoint."""
        lines = _whole_lines(self._path)
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        if len(kept) == len(lines):
            return  # a step's line goes before its events
        self._events.close()
        _rewrite(self._path, kept)
        self._events = SummaryWriter(str(self._path.parent), purge_step=step + 1)

    def _append(self, path: Path, step: int, values: Mapping[str, float]) -> None:
        row = {name: float(value) if math.isfinite(value) else None for name, value in values.items()}
        with disk.writing(f"the line of step {step}", path):
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step} | row) + "\n")
            for name, value in values.items():
                self._events.add_scalar(name, value, step)

    def flush(self) -> None:
        """Bring the TensorBoard events to disk; lines of metrics.jsonl are there already."""
        with disk.writing("TensorBoard's events", self._path):
            self._events.flush()

    def close(self) -> None:
        """Flush and close the event file."""
        self._events.close()


def _whole_lines(path: Path) -> list[str]:
    """Lines of `path` that end in a line feed; none where the file is missing."""
    if not path.exists():
        return []
    return [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]


def _rewrite(path: Path, lines: Sequence[str]) -> None:
    disk.replace_text(path, "".join(lines))


def read_curves(folder: Path) -> dict[str, Curve]:
    """Every number of the run in `folder` by name, in the order of writing; steps without a finite value are left out.

    Raises FileNotFoundError where the folder has no metrics.jsonl, ValueError naming a line that is not JSON.
    """
    path = folder / FILE_NAME
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; give the folder of a run that has made at least one step.")
    curves: dict[str, Curve] = {}
    for number, line in enumerate(_whole_lines(path), start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} line {number} is not JSON ({error}); delete that line and run again.") from error
        step = row.pop("step")
        for name, value in row.items():
            if value is not None:
                steps, values = curves.setdefault(name, ([], []))
                steps.append(step)
                values.append(value)
    return curves


class Timings:
    """Seconds of the step that is under way, and of all steps so far."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        """clock: seconds, from any beginning."""
        self._clock = clock
        self._begun = clock()
        self._step: defaultdict[str, float] = defaultdict(float)
        self._run: defaultdict[str, float] = defaultdict(float)

    def begin_step(self) -> None:
        """From now on the seconds are those of the next step."""
        self._step.clear()
        self._begun = self._clock()

    @contextmanager
    def waiting_for(self, what: str) -> Iterator[None]:
        """Count the time spent inside as waiting for `what`."""
        begun = self._clock()
        yield
        self._step[what] += self._clock() - begun

    def end_step(self) -> dict[str, float]:
        """The numbers of the step that has ended: seconds/step, and seconds/WHAT of each wait."""
        seconds = self._clock() - self._begun
        for what, waited in self._step.items():
            self._run[what] += waited
        self._run["step"] += seconds
        return {"seconds/step": seconds} | {f"seconds/{what}": waited for what, waited in self._step.items()}

    @property
    def shares(self) -> dict[str, float]:
        """Share of all steps' time that was spent waiting for each thing, 0..1; empty before the first step."""
        return {what: waited / self._run["step"] for what, waited in self._run.items() if what != "step"}


_INTERVAL_SECONDS = 1.0


class JobUsage:
    """A context that measures a job: its seconds, and the peak of its memory.

    Memory that processes share is counted once in each of them, so the figure is an upper bound.
    """

    def __init__(self) -> None:
        self.peak_gib = 0.0
        """Largest sum so far of the resident memory of this process and its descendants, GiB."""
        self._begun = time.monotonic()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "JobUsage":
        self._begun = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    @property
    def seconds(self) -> float:
        """Seconds since the context was entered."""
        return time.monotonic() - self._begun

    def _watch(self) -> None:
        while not self._done.wait(_INTERVAL_SECONDS):
            self.peak_gib = max(self.peak_gib, _resident_gib())


def _resident_gib() -> float:
    total = 0
    me = psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        try:
            total += process.memory_info().rss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # it ended while we looked
    return total / 2**30
