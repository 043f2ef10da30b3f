"""Starting Ray, or joining a cluster that runs."""

import logging
import os

import ray


def start(address: str | None, num_cpus: int, num_gpus: float = 0.0) -> None:
    """Join the cluster at `address`, or start Ray in this machine's own memory with `num_cpus` places for actors.

    Does nothing where Ray runs in this process already. The places are ours to count: they need not be the machine's
    cores. Raises ValueError where fewer GPUs are there than are asked for.
    """
    if not ray.is_initialized() and address is not None:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    elif not ray.is_initialized():
        # Ray would run them at niceness 15, last of all on a machine that anybody else works on.
        os.environ.setdefault("RAY_worker_niceness", "0")
        ray.init(
            num_cpus=num_cpus,
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=False,
            object_store_memory=512 * 2**20,
        )
    found = ray.cluster_resources().get("GPU", 0.0)
    if found < num_gpus:
        raise ValueError(
            f"learner.gpus_per_rank and pool.gpus_per_worker ask for {num_gpus:g} GPUs, and Ray found {found:g}; "
            "its actors would wait for ever. Lower them, or join a larger cluster by ray_address."
        )


def stop() -> None:
    """Shut down what `start` started."""
    ray.shutdown()
