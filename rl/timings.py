"""Where the driver's time goes: waiting for answers, waiting for the learner, and the rest of a step.

Overlap pays where both waits are long: it hides the shorter one behind the longer. Long waits for answers want more
workers, long waits for the learner more ranks.
"""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Timings:
    """Seconds of the step that is under way, and of all steps so far."""

    def __init__(self) -> None:
        self._step: defaultdict[str, float] = defaultdict(float)
        self._run: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def waiting_for(self, what: str) -> Iterator[None]:
        """Count the time spent inside as waiting for `what`."""
        begun = time.perf_counter()
        yield
        self._step[what] += time.perf_counter() - begun

    def end_step(self, seconds: float) -> dict[str, float]:
        """The step took `seconds` in all: its numbers by name, seconds/step, and seconds/WHAT of each wait."""
        numbers = {"seconds/step": seconds} | {f"seconds/{what}": waited for what, waited in self._step.items()}
        for what, waited in self._step.items():
            self._run[what] += waited
        self._run["step"] += seconds
        self._step.clear()
        return numbers

    @property
    def shares(self) -> dict[str, float]:
        """Share of all steps' time that was spent waiting for each thing, 0..1; empty before the first step."""
        return {what: waited / self._run["step"] for what, waited in self._run.items() if what != "step"}
