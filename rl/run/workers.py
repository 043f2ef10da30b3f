"""Rollout workers that answer and learn nothing: started for a while, with the policy that a config names."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from rl.config.run import RunConfig, num_gpus
from rl.run.parts import RunParts, worker_settings
from rl.run.preflight import object_store_bytes, preflight
from rollout import cluster
from rollout.pool.pool import WorkerPool


@contextmanager
def answering(
    config: RunConfig, parts: RunParts, console: Console, told: str = "starting workers"
) -> Iterator[WorkerPool]:
    """Workers that hold the policy of a config, which are ended behind, and Ray with them; told: while they start.

    Raises ValueError or FileNotFoundError, before anything starts, for what does not fit together.
    """
    preflight(config, parts, learns=False)
    with console.status(told):
        cluster.start(config.ray.address, config.pool.workers, num_gpus(config), object_store_bytes(config, parts))
        pool = WorkerPool(config.pool, worker_settings(config, parts))
    pool.set_weights(pool.checkpoint_weights(Path(parts.policy.settings["checkpoint"])), version=0)
    yield pool
    pool.close()
    cluster.stop()
