"""The DeepSpeed engine around a network: how ranks find each other, which settings it gets, how a shard becomes whole.

Nothing here compiles. DeepSpeed builds its C++ ops when they are first asked for, which takes minutes, and waits
without a word for a lock that a killed build has left: so the op that gloo does not need is switched off, the
optimizer is torch's own AdamW also where its state is offloaded, and the folder of built ops is private. What blocks
nevertheless, in a collective of which one rank is missing, is told by a watchdog with the place where it waits.
"""

import functools
import os
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TextIO, TypeVar

import torch
from torch import nn

from rl.config.learner import LearnerSettings, RankPlace

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


BLOCKED_SECONDS = 60.0
P = ParamSpec("P")
R = TypeVar("R")


class Watchdog:
    """Watches the phases of one process, one of them at a time or one inside another."""

    def __init__(self, name: str, seconds: float = BLOCKED_SECONDS, out: TextIO | None = None) -> None:
        """name: whose phases these are, such as "rank 1 of 2". seconds: how long a phase may take before it is
        reported, and how long until it is reported again. out: where to; stderr by default."""
        self._name, self._seconds, self._out = name, seconds, out
        self._phases: list[tuple[str, float, int]] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Watch what happens inside."""
        ended = threading.Event()
        self._phases.append((name, time.monotonic(), threading.get_ident()))
        depth = len(self._phases)
        watcher = threading.Thread(target=self._watch, args=(depth, ended), daemon=True, name=f"watchdog of {name}")
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            self._phases.pop()
            watcher.join()

    def where(self) -> str:
        """What this process is doing now: the innermost phase, for how long, and the stack; may be asked from any
        thread."""
        phases = self._phases[-1:]
        if not phases:
            return f"{self._name} is in no phase that is watched"
        name, began, thread = phases[0]
        frame = sys._current_frames().get(thread)
        stack = "".join(traceback.format_stack(frame)) if frame is not None else "  (its thread has ended)\n"
        return f"{self._name} has been in `{name}` for {time.monotonic() - began:.0f} s, and stands at\n{stack}"

    def _watch(self, depth: int, ended: threading.Event) -> None:
        while not ended.wait(self._seconds):
            if len(self._phases) == depth:  # else the phase inside says more
                print(f"polytrace: {self.where()}", file=self._out or sys.stderr, flush=True)


class Watched(Protocol):
    """Something with a watchdog."""

    watchdog: Watchdog


W = TypeVar("W", bound=Watched)


def watched(method: Callable[Concatenate[W, P], R]) -> Callable[Concatenate[W, P], R]:
    """Watch a method as a phase of its own name."""
    name: Any = method.__name__

    @functools.wraps(method)
    def within(self: W, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with self.watchdog.phase(name):
            return method(self, *args, **kwargs)

    return within
