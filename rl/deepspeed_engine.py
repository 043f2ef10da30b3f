"""A policy in a DeepSpeed engine: how ranks find each other, which settings DeepSpeed gets, how a shard becomes whole.

Nothing here compiles. DeepSpeed builds its C++ ops when they are first asked for, which takes minutes, and waits
without a word for a lock that a killed build has left: so the op that gloo does not need is switched off, the
optimizer is torch's own AdamW also where its state is offloaded, and the folder of built ops is private.
"""

import os
import tempfile
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rl.rank_settings import LearnerSettings, RankPlace

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns, in every process, that it found no GPU
import deepspeed


def join(place: RankPlace) -> None:
    """Join the process group of the ranks: nccl where there are GPUs, else gloo."""
    os.environ |= {
        "RANK": str(place.rank),
        "LOCAL_RANK": "0",
        "WORLD_SIZE": str(place.world_size),
        "MASTER_ADDR": place.host,
        "MASTER_PORT": str(place.port),
    }
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(extensions_folder()))
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="nccl" if torch.cuda.is_available() else "gloo", verbose=False)


def extensions_folder() -> Path:
    """Where this process would build C++ ops: its own folder, so that no lock of another process can be in it."""
    return Path(tempfile.gettempdir()) / f"polytrace-torch-extensions-{os.getuid()}-{os.getpid()}"


def build_engine(policy: nn.Module, learner: LearnerSettings) -> tuple[Any, Any]:
    """(engine, optimizer) around the parameters of `policy` that require a gradient; `join` comes first.

    Raises ValueError where nothing is trained.
    """
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    if not trained:
        raise ValueError(
            "no parameter of the policy is trained: learner.freeze_vision keeps the vision tower, and learner.lora all "
            "but the adapters of its targets; let one of them name something else."
        )
    optimizer = torch.optim.AdamW(trained, lr=learner.lr, betas=(0.9, 0.95), weight_decay=learner.weight_decay)
    engine, wrapped, _, _ = deepspeed.initialize(model=policy, optimizer=optimizer, config=engine_config(learner))
    return engine, wrapped


def engine_config(learner: LearnerSettings) -> dict[str, Any]:
    """What DeepSpeed reads."""
    zero: dict[str, Any] = {"stage": learner.zero_stage}
    if learner.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    return {
        # The number of passes between two updates may change from step to step: `step` marks the last one itself.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": learner.grad_clip,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # CPUAdam would be compiled first
        "bf16": {"enabled": learner.dtype == "bfloat16"},
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }


def gathered(parameters: Iterable[nn.Parameter], learner: LearnerSettings) -> AbstractContextManager[None]:
    """A context in which these parameters are whole on every rank; a collective under ZeRO-3, nothing elsewhere."""
    return deepspeed.zero.GatheredParameters(list(parameters), enabled=learner.zero_stage == 3)
