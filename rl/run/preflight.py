"""What must hold before a run starts: GPUs, memory and disk that it needs, a policy that its settings fit."""

import shutil
from inspect import signature
from pathlib import Path

from envs.datasets.base import Env
from policies.families.base import PolicyContract
from rl.config.run import RunConfig, most_answer_tokens, num_gpus
from rl.run.parts import RunParts
from rl.run.writable import refuse_unwritable_codec
from rollout.settings import LEAST_OBJECT_STORE_GB

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


_MEASURED = 16
"""Training examples whose prompts are measured; others may have longer ones."""


def refuse_unfit_policy(config: RunConfig, parts: RunParts) -> None:
    """Raise ValueError where the policy cannot be asked or cannot write the codec's answers, where learner.lora.targets
    name no layer, or a group can outgrow learner.token_budget.

    A policy that cannot be built without its weights is not looked at.
    """
    lora, budget = config.learner.lora, config.learner.token_budget
    if "weights" not in signature(parts.policy.load()).parameters:
        return
    recipe = parts.policy.with_settings(weights=False)
    policy: PolicyContract = (recipe if lora is None else recipe.with_settings(lora=lora)).build()
    refuse_unwritable_codec(policy, parts.policy, parts.codec)
    if budget is not None:
        _refuse_long_prompts(parts.env.build(split="train"), policy, budget, most_answer_tokens(config))


def _refuse_long_prompts(env: Env, policy: PolicyContract, budget: int, answers: int) -> None:
    for k in range(min(_MEASURED, len(env))):
        example = env[k]
        prompt = len(policy.prompt_tokens(env.image(example.image), example.prompt.text))
        if prompt + answers > budget:
            raise ValueError(
                f"the prompt of {example.id} has {prompt} tokens and its answers can have {answers}, together "
                f"{prompt + answers}, more than learner.token_budget {budget}, and a group is one row: set the budget "
                f"to {prompt + answers} or more, or lower group_size, sampling.max_tokens or the size of images."
            )
