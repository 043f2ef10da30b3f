"""What a rollout worker asks of whatever samples for it, and how answers are drawn.

An engine is a file `engine_NAME.py` here with a class `Engine`: its settings, which travel. Opened, it is a sampler
that holds a model. A sampler is a plain object in the worker's process; nothing in it knows of Ray.
"""

import math
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Sampling:
    """How answers are drawn."""

    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest token (and reports its log-probability at temperature 1)."""
    max_tokens: int = 64
    """Longest answer, tokens; longer ones are cut and read as truncated."""
    grammar: bool = False
    """Whether only tokens are sampled that lead to a valid answer within max_tokens, by the codec's grammar.

    The learner takes its log-probabilities among the same tokens.
    """

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf or self.max_tokens < 1:
            raise ValueError(
                f"sampling.temperature is {self.temperature} and sampling.max_tokens {self.max_tokens}; they must be "
                "finite, 0 or more and 1 or more."
            )

    @property
    def grammar_tokens(self) -> int | None:
        """The limit on tokens that masks depend on; None where the grammar is off."""
        return self.max_tokens if self.grammar else None


PLACEMENTS = ("shared", "apart")


@dataclass
class RaySettings:
    """Settings of rollout/cluster.py."""

    address: str | None = None
    """Address of a running Ray cluster; null starts Ray on this machine."""
    placement: str = "shared"
    """Where rollout workers lie: `shared`, wherever there is room; `apart`, on no node that has a learner rank."""
    object_store_gb: float | None = None
    """GiB of each node's memory for weights and answers on their way; null takes what the run needs.

    Of use only where Ray is started here: on a cluster, `ray start --object-store-memory` has the say.
    """

    def __post_init__(self) -> None:
        if self.placement not in PLACEMENTS:
            raise ValueError(f"ray.placement is {self.placement!r}; set it to {' or '.join(PLACEMENTS)}.")
        if self.placement == "apart" and self.address is None:
            raise ValueError(
                "ray.placement is 'apart', which needs two nodes or more, but without ray.address Ray runs on this "
                "machine alone; give the address of a cluster, or set ray.placement to shared."
            )
        if self.object_store_gb is not None and self.object_store_gb < LEAST_OBJECT_STORE_GB:
            raise ValueError(
                f"ray.object_store_gb is {self.object_store_gb}; Ray takes no less than {LEAST_OBJECT_STORE_GB}, and "
                "null is what the run needs."
            )


LEAST_OBJECT_STORE_GB = 0.08
"""Ray refuses fewer than 75 MiB."""


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


@dataclass
class RefinedSettings:
    """The refiner whose masks rewards are measured on. It does not learn meanwhile."""

    refiner: str
    """Folder of a refiner, trained over the vision tower that the run begins with; every worker's node must have it."""
    batch_size: int = 64
    """Masks refined at once. Part of the result's identity to the last bit."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"refined.batch_size is {self.batch_size}; set it to 1 or more.")
