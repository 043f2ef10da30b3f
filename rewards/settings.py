"""From terms to totals, on the driver: what a step's answers measured becomes what the learner is told.

Measuring is a reward's part and is archived as it is; shaping is a setting, and can be tried on an archive.
Dimension letters: B groups of a step, G answers of a group. NaN is a term that does not apply; shaping leaves it NaN.
"""

from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from envs.plugin import Plugin, did_you_mean

KINDS = ("raw", "threshold", "power", "rank", "quantile")


@dataclass
class TermShaping:
    """What becomes of one term before the weighted mean, or of the weighted mean."""

    kind: str = "raw"
    """raw; threshold: 1 from `threshold` on, else 0; power: value ** `power`; rank: place within the group, 0 to 1;
    quantile: place among the last `history` values, the present ones included (after Dr. Seg, arXiv 2603.00152)."""
    threshold: float = 0.5
    power: float = 2.0
    history: int = 4096
    """Number of values, of the steps up to and with the present one, that a quantile is taken among."""
    weight_schedule: list[list[float]] = field(default_factory=list)
    """[[step, weight], ...], linear between these steps and constant outside; replaces the reward's weight."""
    threshold_schedule: list[list[float]] = field(default_factory=list)
    """The same for `threshold`."""


ON_ERROR = ("stop", "skip")


@dataclass(frozen=True)
class RewardRecipe:
    """A reward as a config asks for it; small and picklable, so that it travels to the workers."""

    plugin: Plugin
    """The class and its settings."""
    processes: int = 0
    """Processes of its own, of each worker, that score answers side by side; 0 scores them in the worker itself."""
    seconds: float | None = None
    """Time limit an answer, loading left out; None waits for ever. Only with processes: nothing else can be stopped."""
    on_error: str = "stop"
    """stop: an answer that breaks the reward ends the run; skip: it is left out of this term, counted and reported."""

    def __post_init__(self) -> None:
        if self.processes < 0:
            raise ValueError(f"processes is {self.processes}; set it to 1 or more, or to 0 for none.")
        if self.seconds is not None and not (isfinite(self.seconds) and self.seconds > 0):
            raise ValueError(f"seconds is {self.seconds}; set it to more than 0, or leave it out for no limit.")
        if self.seconds is not None and not self.processes:
            raise ValueError(
                f"seconds is {self.seconds:g}, but what runs in the worker's own process cannot be stopped; set "
                "processes to 1 or more, or remove seconds."
            )
        if self.on_error not in ON_ERROR:
            raise ValueError(
                f"on_error is {self.on_error!r}{did_you_mean(self.on_error, ON_ERROR)} "
                f"Set it to {' or '.join(ON_ERROR)}."
            )

    @property
    def needs_refined(self) -> bool:
        """Whether the reward says, by a class attribute `needs_refined`, that it is measured on the refined mask."""
        found: Any = self.plugin.load()
        return "needs_refined" in dir(found) and bool(found.needs_refined)
