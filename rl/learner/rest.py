"""What a rank gives back of its card while rollout workers have it, and takes again before it learns (pool.colocate).

Always gradients, and what torch keeps for later. Where asked, too, what only an update needs: the optimizer's state,
and the float32 copies that it steps of bfloat16 or sharded weights. The weights stay: workers are given them meanwhile.
"""

from typing import Any

import torch
from torch import Tensor

from rl.config.learner import TrainingSettings
from rl.learner.files import deepspeed


class Rest:
    """The rest of one rank's DeepSpeed engine; each call is a rank's own, none waits for another rank."""

    def __init__(self, engine: Any, optimizer: torch.optim.Optimizer, settings: TrainingSettings) -> None:
        """engine: DeepSpeed's. optimizer: torch's own, inside DeepSpeed's."""
        self._engine, self._optimizer, self._settings = engine, optimizer, settings
        self._on_card = engine.device.type == "cuda"
        self._buffers: list[Tensor] = []
        """Where sharded tensors lie on the host, kept since page-locked memory is slow to come by."""
        self._resting = False

    def begin(self) -> None:
        """Let go of the card; nothing where it rests already."""
        if self._resting:
            return
        self._resting = True
        for parameter in self._engine.module.parameters():
            parameter.grad = None
        if self._offloads:
            self._to_host()
        if self._on_card:
            torch.cuda.empty_cache()

    def end(self) -> None:
        """Be as before; nothing where it does not rest."""
        if self._resting and self._offloads:
            self._from_host()
        self._resting = False

    @property
    def optimizer_bytes(self) -> int:
        """Memory of the optimizer's state on the device that the rank works on."""
        return sum(tensor.nbytes for tensor in self._states() if tensor.device == self._engine.device)

    @property
    def _offloads(self) -> bool:
        # With offload_optimizer all of it lies on the host at any time.
        return self._settings.offload_at_rest and not self._settings.offload_optimizer

    def _to_host(self) -> None:
        states = deepspeed.runtime.zero.offload_config.OffloadStateTypeEnum
        beside = [states.lp_grads, states.contiguous_grad_buffer]
        if self._settings.zero_stage < 3:
            beside = [states.lp_grads, states.optim_states, states.hp_params]
        self._engine.offload_states(include=beside, pin_memory=self._on_card)
        if self._settings.zero_stage == 3:
            # DeepSpeed moves these for its own Adam alone.
            moved = self._sharded()
            # Before the first update the optimizer has no state yet; what is new comes last.
            self._buffers += [self._buffer(tensor) for tensor in moved[len(self._buffers) :]]
            for tensor, buffer in zip(moved, self._buffers, strict=True):
                tensor.data = buffer.copy_(tensor)

    def _from_host(self) -> None:
        self._engine.reload_states()
        if self._settings.zero_stage == 3:
            for tensor in self._sharded():
                tensor.data = tensor.to(self._engine.device, copy=True)

    def _buffer(self, tensor: Tensor) -> Tensor:
        return torch.empty_like(tensor, device="cpu", pin_memory=self._on_card)

    def _states(self) -> list[Tensor]:
        """Tensors of the optimizer's state, but for counts of steps."""
        states = self._optimizer.state.values()
        return [value for state in states for value in state.values() if torch.is_tensor(value) and value.dim()]

    def _sharded(self) -> list[Tensor]:
        """What ZeRO-3 keeps on a rank for updates: float32 copies of its shards, and the state of their optimizer."""
        return [*self._engine.optimizer.fp32_partitioned_groups_flat, *self._states()]
