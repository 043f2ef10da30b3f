"""Starting Ray, or joining a cluster that runs."""

import logging

import ray


def start(address: str | None, num_cpus: int) -> None:
    """Join the cluster at `address`, or start Ray in this machine's own memory with `num_cpus` places for actors.

    Does nothing where Ray runs in this process already. The places are ours to count: they need not be the machine's
    cores.
    """
    if ray.is_initialized():
        return
    if address is not None:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
        return
    ray.init(
        num_cpus=num_cpus,
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,
        object_store_memory=512 * 2**20,
    )


def stop() -> None:
    """Shut down what `start` started."""
    ray.shutdown()
