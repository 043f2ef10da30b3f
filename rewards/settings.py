"""Settings of rewards: which, where they run, and how their terms are shaped; nothing here loads a kernel."""

from dataclasses import dataclass, field
from typing import Annotated, Any

from envs.plugin import Plugin
from envs.ranges import above, at_least, between, check_ranges, one_of

KINDS = ("raw", "threshold", "power", "rank", "quantile")


@dataclass
class TermShaping:
    """What becomes of one term before the weighted mean, or of the weighted mean."""

    kind: Annotated[str, one_of(*KINDS)] = "raw"
    """raw; threshold: 1 from `threshold` on, else 0; power: value ** `power`; rank: place within the group, 0 to 1;
    quantile: place among the last `history` values, the present ones included (after Dr. Seg, arXiv 2603.00152)."""
    threshold: Annotated[float, between(0, 1)] = 0.5
    """Value from which a term counts as 1."""
    power: Annotated[float, above(0)] = 2.0
    """Exponent of the kind power."""
    history: Annotated[int, at_least(1)] = 4096
    """Number of values, of the steps up to and with the present one, that a quantile is taken among."""
    weight_schedule: list[list[float]] = field(default_factory=list)
    """[[step, weight], ...], linear between these steps and constant outside; replaces the reward's weight."""
    threshold_schedule: list[list[float]] = field(default_factory=list)
    """Threshold by step, in the same form; replaces `threshold`."""


@dataclass(frozen=True)
class RewardRecipe:
    """A reward as a config asks for it; small and picklable, so that it travels to the workers."""

    plugin: Plugin
    """The class and its settings."""
    processes: Annotated[int, at_least(0, ", 0 for none.")] = 0
    """Processes of its own, of each worker, that score answers side by side; 0 scores them in the worker itself."""
    seconds: Annotated[float | None, above(0, ", or leave it out for no limit.")] = None
    """Time limit per answer, loading left out; None waits for ever. Only with `processes`, since nothing else can be
    stopped."""
    on_error: Annotated[str, one_of("stop", "skip")] = "stop"
    """stop: an answer that breaks the reward ends the run; skip: it is left out of this term, counted and reported."""

    only: Annotated[str | None, one_of("mask", "box", "point", None)] = None
    """The one form of answers that the reward is to apply to, where the env asks for several; None for all it can."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.seconds is not None and not self.processes:
            raise ValueError(
                f"seconds is {self.seconds:g}, but what runs in the worker's own process cannot be stopped; set "
                "processes to 1 or more, or remove seconds."
            )

    @property
    def needs_refined(self) -> bool:
        """Whether the reward says, by a class attribute `needs_refined`, that it is measured on the refined mask."""
        found: Any = self.plugin.load()
        return "needs_refined" in dir(found) and bool(found.needs_refined)

    @property
    def asks(self) -> tuple[str, ...]:
        """Forms of answers that the reward applies to: its class attribute `asks`, else masks alone; less by `only`."""
        found: Any = self.plugin.load()
        asks = tuple(found.asks) if "asks" in dir(found) else ("mask",)
        return tuple(form for form in asks if self.only in (None, form))

    @property
    def needs_thinking(self) -> bool:
        """Whether the reward says, by a class attribute `needs_thinking`, that it pays for reasoning before answers."""
        found: Any = self.plugin.load()
        return "needs_thinking" in dir(found) and bool(found.needs_thinking)
