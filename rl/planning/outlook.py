"""What a job takes: memory of rank, worker and host, and seconds of a step."""

from dataclasses import dataclass

from rl.planning.job import Job
from rl.planning.memory import host_memory, rank_memory, worker_memory
from rl.planning.part import Memory, Part
from rl.planning.seconds import handing_over_seconds, learning_seconds, sampling_seconds


@dataclass(frozen=True)
class Outlook:
    """Memory and time of one job, estimated."""

    rank: Memory
    """A learner rank at its fullest."""
    worker: Memory
    """A rollout worker at its fullest."""
    host: Memory
    """The host of rank 0."""
    learning: list[Part]
    """Seconds of the learner's part of a step."""
    sampling: list[Part]
    """Seconds of the workers' part of a step."""
    handing_over: list[Part]
    """Seconds in which neither works."""
    overlapped: bool = False
    """Whether workers sample the next step while the learner works (pool.staleness)."""

    @property
    def fits(self) -> bool:
        """Whether rank and worker fit on their cards."""
        return self.rank.fits and self.worker.fits

    @property
    def seconds(self) -> float:
        """Seconds of a step."""
        parts = total(self.learning), total(self.sampling)
        return total(self.handing_over) + (max(parts) if self.overlapped else sum(parts))

    @property
    def limit(self) -> str:
        """The part that takes most of a step, with its share of the seconds."""
        parts = [*self.learning, *self.sampling, *self.handing_over]
        if self.overlapped:
            longer = max(self.learning, self.sampling, key=total)
            parts = [*longer, *self.handing_over]
        most = max(parts, key=lambda part: part.amount)
        return f"{most.name}, {most.amount / self.seconds:.0%} of a step"


def total(parts: list[Part]) -> float:
    """Sum of all parts."""
    return sum(part.amount for part in parts)


def outlook(job: Job, store_bytes: float) -> Outlook:
    """Reckon a job; store_bytes: what it asks Ray's object store for."""
    return Outlook(
        rank=rank_memory(job),
        worker=worker_memory(job),
        host=host_memory(job, store_bytes),
        learning=learning_seconds(job),
        sampling=sampling_seconds(job),
        handing_over=handing_over_seconds(job),
        overlapped=job.config.pool.staleness > 0,
    )
