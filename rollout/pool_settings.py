"""How many rollout workers, how far ahead they sample, and when one of them is given up.

Apart from the pool, so that a config is checked without loading Ray. What the settings mean in use: docs/workers.md.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class PoolSettings:
    """Settings of a WorkerPool."""

    workers: int = 2
    threads: int = 1
    """Torch threads of one worker."""
    gpus_per_worker: float = 0.0
    units_in_flight: int = 3
    """Units that one worker has in hand where a reward runs in processes: one is sampled while others are scored."""
    staleness: int = 0
    """Steps by which answers may be older than the weights that learn from them. 0: first sample, then learn. 1: the
    next step is sampled while the learner works. Part of the result, unlike the number of workers; set
    algorithm.importance_cap with it."""
    verify_every: int = 1
    """In every so many steps workers prove after answering, too, that they hold the weights that were sent; 0: only on
    arrival. It costs one hash of the whole policy a worker and step."""
    engine: dict[str, Any] = field(default_factory=dict)
    """What samples: `name` shared (our own, the default) or vllm, and that engine's settings."""
    max_deaths: int = 10
    """Deaths after which the pool gives up, counted from one `set_weights` to the next."""
    restart_seconds: float = 300.0
    """How long a worker that died may take to come back."""
    unit_seconds: float = 600.0
    """How long a worker may take to answer a unit, or to take the weights; then it is hung, and is killed."""

    def __post_init__(self) -> None:
        at_least = {"workers": 1, "threads": 1, "units_in_flight": 1}
        at_least |= dict.fromkeys(("gpus_per_worker", "staleness", "verify_every", "max_deaths"), 0)
        for name, least in at_least.items():
            if vars(self)[name] < least:
                raise ValueError(f"pool.{name} is {vars(self)[name]}; set it to {least} or more.")
        for name in ("restart_seconds", "unit_seconds"):
            if not vars(self)[name] > 0:
                raise ValueError(f"pool.{name} is {vars(self)[name]}; set it to more than 0.")
