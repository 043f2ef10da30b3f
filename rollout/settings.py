"""Settings of sampling, of Ray, and of the pool of rollout workers; nothing here loads what they set."""

from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from envs.ranges import above, at_least, check_ranges, one_of
from envs.schedule import check_schedule, scheduled


@dataclass
class Sampling:
    """How answers are drawn."""

    temperature: Annotated[float, at_least(0)] = 1.0
    """Divides the logits; 0 takes the likeliest token (and reports its log-probability at temperature 1)."""
    max_tokens: Annotated[int, at_least(1)] = 64
    """Longest answer, tokens; longer ones are cut and read as truncated."""
    grammar: bool = False
    """Whether only tokens are sampled that lead to a valid answer within max_tokens, by the codec's grammar.

    The learner takes its log-probabilities among the same tokens.
    """
    routing_replay: bool = True
    """Whether answers of a policy with experts tell which experts each token went to, and the learner sends it to the
    same ones (R3, arXiv 2510.11370). Nothing for a policy without experts."""
    temperature_schedule: list[list[float]] = field(default_factory=list)
    """[[step, temperature], ...] of a training run, linear between these steps and constant outside; where it is given,
    training samples by it in place of `temperature`."""

    def __post_init__(self) -> None:
        check_ranges(self, "sampling")
        check_schedule("sampling.temperature_schedule", self.temperature_schedule, above_zero=True)

    def at(self, step: int) -> "Sampling":
        """What a step of training samples with: this, at the temperature that the schedule has there."""
        if not self.temperature_schedule:
            return self
        now = scheduled(self.temperature_schedule, step, self.temperature)
        return replace(self, temperature=now, temperature_schedule=[])

    @property
    def temperatures(self) -> tuple[float, ...]:
        """The highest and lowest temperatures that are set, those of a schedule if there is one."""
        found = [point[1] for point in self.temperature_schedule] or [self.temperature]
        return tuple(sorted({min(found), max(found)}))

    @property
    def grammar_tokens(self) -> int | None:
        """The limit on tokens that masks depend on; None where the grammar is off."""
        return self.max_tokens if self.grammar else None


LEAST_OBJECT_STORE_GB = 0.08
"""Least memory that Ray takes for its object store, GiB; it refuses fewer than 75 MiB."""


@dataclass
class RaySettings:
    """Settings of rollout/cluster.py."""

    address: str | None = None
    """Address of a running Ray cluster; null starts Ray on this machine."""
    placement: Annotated[str, one_of("shared", "apart")] = "shared"
    """Where rollout workers lie: `shared`, wherever there is room; `apart`, on no node that has a learner rank."""
    object_store_gb: Annotated[
        float | None, at_least(LEAST_OBJECT_STORE_GB, ", the least that Ray takes, or to null for what the run needs.")
    ] = None
    """GiB of each node's memory for weights and answers on their way; null takes what the run needs.

    Of use only where Ray is started here: on a cluster, `ray start --object-store-memory` has the say.
    """

    def __post_init__(self) -> None:
        check_ranges(self, "ray")
        if self.placement == "apart" and self.address is None:
            raise ValueError(
                "ray.placement is 'apart', which needs two nodes or more, but without ray.address Ray runs on this "
                "machine alone; give the address of a cluster, or set ray.placement to shared."
            )


@dataclass
class PoolSettings:
    """Settings of a WorkerPool."""

    workers: Annotated[int, at_least(1)] = 2
    """Number of rollout workers."""
    threads: Annotated[int, at_least(1)] = 1
    """Torch threads of one worker."""
    gpus_per_worker: Annotated[float, at_least(0)] = 0.0
    """GPUs that one worker reserves; a part where several share one. 0: it works on the CPU, GPUs or not."""
    colocate: bool = False
    """Whether each worker shares its card with a learner rank, by turns: all cards learn, then all sample. Needs as
    many workers as ranks, and gpus_per_worker and learner.gpus_per_rank that add up to 1 at most, such as 0.5 each."""
    sleep_without_weights: bool = True
    """With colocate, whether workers give up their weights while the ranks learn; new ones come in each step anyway.
    false: our own engine keeps them on the card, vLLM in the host's memory."""
    transport: Annotated[str, one_of("object_store", "broadcast")] = "object_store"
    """How a step's weights reach the workers. object_store: through Ray's, in host memory. broadcast: from rank 0 in a
    process group with all workers (NCCL between GPUs, gloo on CPUs); a worker that missed it gets it from another."""
    sha256_every: Annotated[int, at_least(0)] = 100
    """In every so many steps the weights that arrive are proved by SHA-256, too; each time by a sum over all their
    words, which tells accidents as surely and costs a tenth. 0: never."""
    units_in_flight: Annotated[int, at_least(1)] = 3
    """Units that one worker has in hand on a GPU, and where a reward runs in processes: one is sampled while others are
    scored, or their images read."""
    staleness: Annotated[int, at_least(0)] = 0
    """Steps by which answers may be older than the weights that learn from them. 0: first sample, then learn. 1: the
    next step is sampled while the learner works. Part of the result, unlike the number of workers; set
    algorithm.importance_cap with it."""
    verify_every: Annotated[int, at_least(0)] = 1
    """In every so many steps workers prove after answering, too, that they hold the weights that were sent; 0: only on
    arrival. It costs one hash of the whole policy per worker and step."""
    engine: dict[str, Any] = field(default_factory=dict)
    """What samples: `name` shared (our own, the default) or vllm, and that engine's settings."""
    max_deaths: Annotated[int, at_least(0)] = 10
    """Deaths after which the pool gives up, counted from one `set_weights` to the next."""
    restart_seconds: Annotated[float, above(0, infinite=True)] = 300.0
    """How long a worker that died may take to come back."""
    unit_seconds: Annotated[float, above(0, infinite=True)] = 600.0
    """How long a worker may take to answer a unit, or to take the weights; then it is hung, and is killed."""

    @property
    def device(self) -> str:
        """What a worker samples on, in torch's words: cuda where it reserves a GPU, else cpu."""
        return "cuda" if self.gpus_per_worker else "cpu"

    def without_ranks(self) -> "PoolSettings":
        """The settings where there are no ranks to share cards with, as in an evaluation: a card to each worker."""
        if not self.colocate:
            return self
        return replace(self, colocate=False, gpus_per_worker=1.0 if self.gpus_per_worker else 0.0)

    def __post_init__(self) -> None:
        check_ranges(self, "pool")
        if self.colocate and self.staleness:
            raise ValueError(
                f"pool.staleness is {self.staleness} with pool.colocate, whose cards either learn or sample, so no "
                "step can be sampled ahead; set pool.staleness to 0, or pool.colocate to false."
            )


@dataclass
class RefinedSettings:
    """The refiner whose masks rewards are measured on. It does not learn meanwhile."""

    refiner: str
    """Folder of a refiner, trained over the vision tower that the run begins with; every worker's node must have it."""
    batch_size: Annotated[int, at_least(1)] = 64
    """Masks refined at once. Part of the result's identity to the last bit."""

    def __post_init__(self) -> None:
        check_ranges(self, "refined")
