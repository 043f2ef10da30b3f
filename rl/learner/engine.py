"""The DeepSpeed engine around a network, be it a policy or a refiner: how ranks find each other, an update of the
weights and of their running average, how a shard becomes whole, and what a checkpoint keeps of it.

Nothing here compiles. DeepSpeed builds its C++ ops when they are first asked for, which takes minutes, and waits
without a word for a lock that a killed build has left: so the op that gloo does not need is switched off, the
optimizer is torch's own AdamW, fused, also where its state is offloaded, and the folder of built ops is private. What
blocks nevertheless, in a collective of which one rank is missing, is told by a watchdog with the place where it waits.
"""

import functools
import math
import os
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TextIO, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rl.config.learner import ZERO, RankPlace, TrainingSettings
from rl.learner.files import AVERAGE, CPU_Accelerator, deepspeed, load_ranks, save_ranks
from rl.learner.muon import LR_SHARE
from rl.learner.rest import Rest


def join(place: RankPlace) -> None:
    """Join the process group of the ranks: nccl where they work on GPUs, else gloo.

    Raises ValueError where this process does not see the one GPU that was reserved for it.
    """
    work_on(place)
    os.environ |= {
        "RANK": str(place.rank),
        "LOCAL_RANK": "0",
        "WORLD_SIZE": str(place.world_size),
        "MASTER_ADDR": place.host,
        "MASTER_PORT": str(place.port),
    }
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(extensions_folder()))
    # Of DeepSpeed's own calls, once a step.
    warnings.filterwarnings("ignore", r"`?torch\.distributed\..* is deprecated", FutureWarning)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="nccl" if place.device == "cuda" else "gloo", verbose=False)


def work_on(place: RankPlace) -> None:
    """Have DeepSpeed work on the device of a place, whatever it found when it was loaded.

    Raises ValueError where that is a GPU and this process sees none, or several that it shares with other ranks.
    """
    if place.device == "cpu":
        # On a machine with GPUs it chose them; a rank that reserved none must leave them alone.
        if deepspeed.get_accelerator().device_name() != "cpu":
            deepspeed.accelerator.set_accelerator(CPU_Accelerator())
        return
    found, seen = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    if not found or (found > 1 and place.world_size > 1):
        raise ValueError(
            f"learner rank {place.rank} reserves a GPU (learner.gpus_per_rank), but its process sees {found} "
            f"(CUDA_VISIBLE_DEVICES is {seen!r}) where it needs exactly its own; install a torch that is built for "
            "this machine's GPUs, unset RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES, or set learner.gpus_per_rank to 0."
        )


def extensions_folder() -> Path:
    """Where this process would build C++ ops: its own folder, so that no lock of another process can be in it."""
    return Path(tempfile.gettempdir()) / f"polytrace-torch-extensions-{os.getuid()}-{os.getpid()}"


def engine_config(learner: TrainingSettings) -> dict[str, Any]:
    """What DeepSpeed reads: our own settings, and what `learner.deepspeed` adds to them."""
    zero: dict[str, Any] = {"stage": learner.zero_stage}
    if learner.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    return learner.deepspeed | {
        # The number of passes between two updates may change from step to step: `step` marks the last one itself.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": learner.grad_clip,
        ZERO: learner.deepspeed.get(ZERO, {}) | zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # CPUAdam would be compiled first
        "bf16": {"enabled": learner.dtype == "bfloat16"},
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }


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


class TrainingEngine:
    """A network in DeepSpeed with its optimizer, the steps that it has seen, and the running average of its weights.

    Every rank holds one and calls the same methods in the same order, forward passes included.
    """

    def __init__(
        self,
        network: nn.Module,
        averaged: nn.Module,
        learner: TrainingSettings,
        place: RankPlace,
        watchdog: Watchdog,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        """network: trained where its parameters require a gradient; `join` comes first. averaged: the part of it whose
        parameters have a running average, under the names that they have there. optimizer: of all that is trained; None
        for AdamW.

        Raises ValueError where nothing is trained.
        """
        self._learner, self._place, self._averaged = learner, place, averaged
        # Its rate is that of each `update`.
        self._optimizer: Any = optimizer or adamw(trained_of(network), learner)
        own = self._optimizer
        self._shares = [group.get(LR_SHARE, 1.0) for group in own.param_groups]
        with watchdog.phase("deepspeed.initialize"):
            self._engine, self._optimizer, _, _ = deepspeed.initialize(
                model=network, optimizer=self._optimizer, config=engine_config(learner)
            )
        self.rest = Rest(self._engine, own, learner)
        """What is given back of the card between steps."""
        self.steps_done = 0
        """Steps that the weights have seen."""
        # Under ZeRO-3 a parameter is empty here; the settings refuse an average then. In float32, since the steps of a
        # slow average are too small for bfloat16.
        named = averaged.named_parameters() if learner.average else []
        self.average = {name: parameter.detach().to(torch.float32, copy=True) for name, parameter in named}
        """Running average of each parameter, float32; empty where the settings ask for none."""

    def __call__(self, *inputs: Any, **settings: Any) -> Any:
        """A forward pass of the network, which `backward` goes back through."""
        return self._engine(*inputs, **settings)

    @property
    def network(self) -> Any:
        """The network itself, for all but forward passes while it learns."""
        return self._engine.module

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self._engine.device

    def backward(self, loss: Tensor, last: bool = True) -> None:
        """Add the gradient of this rank's loss, a scalar; DeepSpeed takes the mean over ranks.

        last: whether `update` comes next.
        """
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss)

    def gradients(self, without: Sequence[Tensor] = ()) -> list[Tensor] | None:
        """The gradients so far, but for those of some parameters: of this rank, and after the last backward pass the
        mean over ranks. None where they are cut up (ZeRO) or DeepSpeed keeps them in another format."""
        if self._learner.zero_stage or self._learner.dtype != "float32":
            return None
        left_out = set(map(id, without))
        return [p.grad for p in self.network.parameters() if p.grad is not None and id(p) not in left_out] or None

    def update(self, lr: float) -> tuple[float, bool]:
        """Change the weights, after the last backward pass, on all ranks or, by a gradient that is not finite, on none;
        the gradient's norm, and whether it was done."""
        # Of the settings, since DeepSpeed's universal checkpoint gives all groups what the first one has.
        for group, share in zip(self._optimizer.param_groups, self._shares, strict=True):
            group["lr"], group[LR_SHARE] = lr * share, share
        # Stage 0 in fp32 keeps no norm of its own, but its gradients are whole until the update.
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients)) if gradients else 0.0
        learner = self._learner
        if learner.zero_stage == 0 and learner.dtype == "float32" and not math.isfinite(norm):
            self._engine.zero_grad()  # elsewhere DeepSpeed drops such an update by itself
            return norm, False
        self._engine.step()
        return float(self._engine.get_global_grad_norm() or norm), self._engine.was_step_applied()

    @torch.no_grad()
    def end_step(self) -> None:
        """Count a step, of one update or several, and move the average by it."""
        self.steps_done += 1
        # A short memory at first, so that the average leaves the starting point as fast as the weights do.
        decay = min(self._learner.average, self.steps_done / (self.steps_done + 10))
        parameters = dict(self._averaged.named_parameters())
        for name, average in self.average.items():
            average.lerp_(parameters[name].to(average.dtype), 1 - decay)

    def whole(self, parameters: Iterable[nn.Parameter]) -> AbstractContextManager[None]:
        """A context in which these parameters are whole on every rank; a collective under ZeRO-3, nothing elsewhere."""
        return deepspeed.zero.GatheredParameters(list(parameters), enabled=self._learner.zero_stage == 3)

    def save(self, folder: Path, tag: str) -> None:
        """Write what is needed to go on below folder/tag (rl/learner/files.py). All ranks call it."""
        save_ranks(self._engine, folder / tag, self._learner, self._place, self.steps_done)
        if self.average and self._place.rank == 0:
            save_file(self.average, folder / tag / AVERAGE)

    def load(self, folder: Path, tag: str) -> None:
        """Go on from `save`, by whatever number of ranks. All ranks call it.

        Reads DeepSpeed's own files: only from a run's own folder.
        """
        self.steps_done = load_ranks(self._engine, folder / tag, self._learner, self._place).steps_done
        if self.average:
            self.average = load_file(folder / tag / AVERAGE, device=str(self.device))


def adamw(trained: Iterable[nn.Parameter] | list[dict[str, Any]], learner: TrainingSettings) -> torch.optim.AdamW:
    """AdamW of parameters, or of groups of them; the rate is that of each update.

    Fused, since it works on tensors of GPUs and of the host alike, without a second copy of what it steps.
    """
    return torch.optim.AdamW(trained, betas=(0.9, 0.95), weight_decay=learner.weight_decay, fused=True)


def trained_of(network: nn.Module) -> list[nn.Parameter]:
    """The parameters of a network that learn. Raises ValueError where there are none."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if not trained:
        raise ValueError(
            "no parameter of the policy is trained: learner.freeze_vision keeps the vision tower, and learner.lora "
            "all but the adapters of its targets; let one of them name something else."
        )
    return trained
