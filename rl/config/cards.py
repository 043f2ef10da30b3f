"""Who works on which card: what learner ranks and rollout workers may ask for, judged before anything starts.

Ray gives out GPUs in parts, and fills one before it begins the next. So two ranks of half a GPU each would lie on one
card, where their collectives (NCCL) refuse to run. A part of a card is therefore a rank's only where its bundle with
one worker reserves all of it (pool.colocate, rollout/cluster.py).
"""

import math

from rl.config.learner import TrainingSettings
from rollout.settings import PoolSettings, RaySettings


def refuse_parts_of_cards(learner: TrainingSettings, instead: str = "") -> None:
    """Raise ValueError where ranks ask for a part of a GPU each, with what Ray would make of it.

    instead: what else could be set than whole GPUs.
    """
    part = learner.gpus_per_rank
    if part in (0, 1):
        return
    together = min(learner.ranks, math.floor(1 / part))
    would = f"Ray would put {together} ranks on one card, which NCCL refuses" if together > 1 else "a rank needs a card"
    raise ValueError(
        f"learner.gpus_per_rank is {part:g} with learner.ranks {learner.ranks}, {learner.ranks * part:g} GPUs in all: "
        f"{would}; set learner.gpus_per_rank to 1 (or to 0 for the CPU){instead}."
    )


def refuse_unfit_cards(learner: TrainingSettings, pool: PoolSettings, ray: RaySettings) -> None:
    """Raise ValueError where ranks and workers cannot share cards as asked, with the arithmetic."""
    if not pool.colocate:
        refuse_parts_of_cards(
            learner, ", or pool.colocate to true, where a rank and a worker share each card (0.5 and 0.5) by turns"
        )
        if learner.offload_at_rest:
            raise ValueError(
                "learner.offload_at_rest is true without pool.colocate, where ranks never rest; set it to false, "
                "or learner.offload_optimizer to true."
            )
        return
    if learner.ranks != pool.workers:
        raise ValueError(
            f"pool.colocate is true with learner.ranks {learner.ranks} and pool.workers {pool.workers}, but each card "
            "has one of each; set both to the number of cards."
        )
    parts = learner.gpus_per_rank, pool.gpus_per_worker
    if sum(parts) > 1 or (0 in parts and any(parts)):
        wrong = f"together {sum(parts):g}" if all(parts) else "only one of them on a card"
        raise ValueError(
            f"pool.colocate is true with learner.gpus_per_rank {parts[0]:g} and pool.gpus_per_worker {parts[1]:g}, "
            f"{wrong}, but a rank and a worker share one card; set both to 0.5 (or both to 0 for the CPU)."
        )
    if ray.placement == "apart":
        raise ValueError(
            "ray.placement is 'apart' with pool.colocate, which puts a worker beside each rank; set ray.placement to "
            "shared, or pool.colocate to false."
        )


def refuse_unfit_broadcast(learner: TrainingSettings, pool: PoolSettings) -> None:
    """Raise ValueError where no process group could hold rank 0 and all workers (pool.transport broadcast)."""
    if pool.transport != "broadcast":
        return
    on_cards = learner.gpus_per_rank > 0, pool.gpus_per_worker > 0
    if not any(on_cards):
        return
    wrong = None
    if not all(on_cards):
        wrong = "one side on GPUs and the other on CPUs"
    elif pool.colocate:
        wrong = "pool.colocate, so that rank 0 and a worker share one card, which NCCL refuses"
    elif pool.gpus_per_worker != 1:
        wrong = f"pool.gpus_per_worker {pool.gpus_per_worker:g}, so that workers share a card, which NCCL refuses"
    if wrong is not None:
        raise ValueError(
            f"pool.transport is broadcast with {wrong}; give every rank and worker a whole card, or set pool.transport "
            "to object_store."
        )


def num_cards(learner: TrainingSettings, pool: PoolSettings) -> float:
    """GPUs that all ranks and workers reserve together; a bundle of a rank and a worker reserves a whole one."""
    if pool.colocate:
        return float(pool.workers) if pool.gpus_per_worker else 0.0
    return learner.ranks * learner.gpus_per_rank + pool.workers * pool.gpus_per_worker
