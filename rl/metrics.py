"""Numbers of a run as it goes: TensorBoard events for people, metrics.jsonl beside them for the report and for tests.

metrics.jsonl holds no clock, so equal runs write equal files; seconds go to timings.jsonl. One line a call:
{"step": 3, "reward/mean": 0.41, ...}; several lines may share a step (a step and its evaluation).
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter

from rollout import disk

FILE_NAME = "metrics.jsonl"
TIMINGS_FILE_NAME = "timings.jsonl"
SIGNAL_FLOOR = 1e-8
"""A group whose totals have a standard deviation below this teaches nothing."""

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
        """Write one histogram a name, of arrays of any shape; empty ones are left out."""
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
