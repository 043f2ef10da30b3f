"""What a run needs of the machines that it runs on, reckoned before it starts: places, object store, disk."""

import shutil
from pathlib import Path

from rl.config import RunConfig, RunParts, num_gpus
from rollout.ray_settings import LEAST_OBJECT_STORE_GB

_VERSIONS_IN_FLIGHT = 3
"""Weights that are being delivered, those before them, which are let go of only then, and those of a step asked before.
"""
_BESIDE_WEIGHTS_BYTES = 256 * 2**20
"""Of the object store for answers and batches: a step of 512 groups of 16 answers with 400 tokens takes some 100 MB."""
_GIB = 2**30


def refuse_missing_gpus(config: RunConfig, found: int) -> None:
    """Raise ValueError with the arithmetic where a run on this machine asks for more than the `found` GPUs."""
    learner, pool = config.learner, config.pool
    if config.ray.address is None and num_gpus(config) > found:
        raise ValueError(
            f"learner.ranks {learner.ranks} x learner.gpus_per_rank {learner.gpus_per_rank:g} + pool.workers "
            f"{pool.workers} x pool.gpus_per_worker {pool.gpus_per_worker:g} = {num_gpus(config):g} GPUs, but this "
            f"machine has {found}; lower them, or give a cluster by ray.address."
        )


def weight_bytes(parts: RunParts) -> int:
    """Size of the policy's weights as its checkpoint holds them; raises OSError where its folder cannot be read."""
    folder = Path(parts.policy.settings["checkpoint"])
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def object_store_bytes(config: RunConfig, parts: RunParts) -> int:
    """Memory for Ray's object store: ray.object_store_gb, else what the weights need, with something for answers."""
    if config.ray.object_store_gb is not None:
        return int(config.ray.object_store_gb * _GIB)
    needed = _VERSIONS_IN_FLIGHT * weight_bytes(parts) + _BESIDE_WEIGHTS_BYTES
    return max(needed, int(LEAST_OBJECT_STORE_GB * _GIB))


def checkpoint_bytes(config: RunConfig, parts: RunParts) -> int:
    """Size of one checkpoint: weights, Adam's two moments in float32, and under bfloat16 the float32 weights too."""
    if config.learner.lora is not None:
        return weight_bytes(parts)  # optimizer states of adapters weigh next to nothing
    width = 2 if config.learner.dtype == "bfloat16" else 4
    beside = 8 if width == 4 else 12
    return weight_bytes(parts) * (width + beside) // width


def refuse_full_disk(config: RunConfig, parts: RunParts) -> None:
    """Raise OSError with the arithmetic where the run's checkpoints don't fit on its disk, one more being written."""
    folder = Path(config.run)
    kept = sum(1 for _ in folder.glob("checkpoints/step-??????"))
    more = max(1, config.keep_checkpoints + 1 - kept)
    needed = more * checkpoint_bytes(config, parts) + 2 * weight_bytes(parts)
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise OSError(
            f"{more} checkpoints of {checkpoint_bytes(config, parts) / _GIB:.3f} GiB (learner.dtype "
            f"{config.learner.dtype}) and 2 policies of {weight_bytes(parts) / _GIB:.3f} GiB need {needed / _GIB:.3f} "
            f"GiB, but on the disk of {folder} are {free / _GIB:.3f} GiB free; make room, lower keep_checkpoints, or "
            "give another folder by run=NAME."
        )
