"""What this machine must have for a run: shared memory for Ray's object store, and cards that hold what must lie there.

Numbers come in as arguments, so that every verdict can be had without the machine.
"""

import os
import shutil
import subprocess
from pathlib import Path

from rl.config.learner import LearnerSettings
from rl.config.run import RunConfig
from rl.planning.states import NUMBER_BYTES, rank_states

_GIB = 2**30
SHARED_MEMORY = Path("/dev/shm")
"""Where Ray puts its object store on Linux."""
_RAY_REFUSES_BYTES = 10**10
"""A larger store than this must fit into shared memory, or Ray does not start; a smaller one then lies on the disk."""


def refuse_small_shared_memory(config: RunConfig, needed: int) -> None:
    """Raise ValueError where Ray, started here, would refuse an object store of `needed` bytes."""
    free = _missing_shared_memory(config, needed)
    if free is not None and needed > _RAY_REFUSES_BYTES and "RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE" not in os.environ:
        raise ValueError(
            f"{_store(config, needed)}, but {SHARED_MEMORY} has {free / _GIB:.2f} GiB free; give it more (docker run "
            f"--shm-size={_with_room(needed)}g), delete what lies in it, or set ray.object_store_gb to "
            f"{_RAY_REFUSES_BYTES // _GIB} or less, which Ray then keeps on the disk: slower, with the same result."
        )


def shared_memory_note(config: RunConfig, needed: int) -> str | None:
    """What to say where Ray's object store of `needed` bytes will lie on the disk; None where it will not."""
    free = _missing_shared_memory(config, needed)
    if free is None:
        return None
    return (
        f"{_store(config, needed)}, but {SHARED_MEMORY} has {free / _GIB:.2f} GiB free, so Ray keeps it on the disk: "
        f"slower, with the same result; give it more (docker run --shm-size={_with_room(needed)}g)."
    )


def _missing_shared_memory(config: RunConfig, needed: int) -> int | None:
    """Free bytes of shared memory where they do not do for a store that is made here; else None."""
    if config.ray.address is not None or not SHARED_MEMORY.is_dir():
        return None
    free = shutil.disk_usage(SHARED_MEMORY).free
    return free if free < needed else None


def _store(config: RunConfig, needed: int) -> str:
    why = "what weights and answers on their way need" if config.ray.object_store_gb is None else "ray.object_store_gb"
    return f"Ray's object store takes {needed / _GIB:.2f} GiB ({why})"


def _with_room(needed: int) -> int:
    """GiB of shared memory to ask for, a tenth being for others."""
    return -(-needed * 11 // (10 * _GIB))


def rank_bytes(learner: LearnerSettings, weights: int) -> int:
    """The least that lies on the card of one rank between two passes: weights, gradients, state of the optimizer.

    weights: bytes of all of them. Where only some learn (adapters, a frozen tower) theirs alone are counted.
    """
    all_learn = learner.lora is None and not learner.freeze_vision
    number = NUMBER_BYTES[learner.dtype]
    held = weights // number
    return round(rank_states(held, held if all_learn else 0, number, learner).on_card)


def refuse_small_cards(config: RunConfig, weights: int, card: int, learns: bool = True) -> None:
    """Raise ValueError with the arithmetic where not even what always lies there fits on a card of `card` bytes.

    weights: bytes of the policy's. learns: whether there are ranks. Activations and caches come on top.
    """
    learner, pool = config.learner, config.pool
    needs = {}
    if learns and learner.gpus_per_rank:
        needs["a learner rank"] = rank_bytes(learner, weights)
    if pool.gpus_per_worker:
        needs["a rollout worker"] = weights
    for who, need in needs.items():
        if need > card:
            raise ValueError(
                f"{who} keeps {need / _GIB:.1f} GiB on its card (weights of {weights / _GIB:.1f} GiB; learner.dtype "
                f"{learner.dtype}, learner.zero_stage {learner.zero_stage} on {learner.ranks} ranks), before anything "
                f"is computed, and this machine's cards have {card / _GIB:.1f}; raise learner.zero_stage or "
                "learner.ranks, set learner.offload_optimizer or learner.lora, or take a smaller model."
            )


def largest_card_bytes() -> int | None:
    """Memory of this machine's largest card as nvidia-smi tells it; None where there is none, or nothing to ask.

    Torch would have to open the card for it, in a process that has no other use of one.
    """
    if shutil.which("nvidia-smi") is None:
        return None
    asked = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    sizes = [int(line) for line in done.stdout.splitlines() if line.strip().isdecimal()]
    return max(sizes) * 2**20 if sizes and not done.returncode else None


def idle_gpus_note(config: RunConfig, found: int) -> str | None:
    """What to say where a machine has `found` GPUs and the run uses none of them; None elsewhere."""
    if not found or config.learner.gpus_per_rank or config.pool.gpus_per_worker:
        return None
    return (
        f"this machine has {found} GPUs, and the run is on its CPUs, since learner.gpus_per_rank and "
        "pool.gpus_per_worker are 0; set both to 1, or on a single card both to 0.5 with pool.colocate=true."
    )
