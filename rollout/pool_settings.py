"""How many rollout workers, and how they are restarted.

Apart from the pool, so that a config is checked without loading Ray.
"""

from dataclasses import dataclass


@dataclass
class PoolSettings:
    """Settings of a WorkerPool."""

    workers: int = 2
    threads: int = 1
    """Torch threads of one worker."""
    gpus_per_worker: float = 0.0
    units_in_flight: int = 3
    """Units that one worker has in hand where a reward runs in processes: one is sampled while others are scored."""
    max_deaths: int = 10
    """Deaths in one call after which the pool gives up."""

    restart_seconds: float = 300.0
    """How long a worker that died may take to come back."""

    def __post_init__(self) -> None:
        if self.units_in_flight < 1:
            raise ValueError(f"pool.units_in_flight is {self.units_in_flight}; set it to 1 or more.")
        if self.workers < 1 or self.threads < 1 or self.max_deaths < 0 or self.gpus_per_worker < 0:
            raise ValueError(
                f"pool.workers is {self.workers}, pool.threads {self.threads}, pool.max_deaths {self.max_deaths}, "
                "pool.gpus_per_worker "
                f"{self.gpus_per_worker}; set workers and threads to 1 or more, the others to 0 or more."
            )
