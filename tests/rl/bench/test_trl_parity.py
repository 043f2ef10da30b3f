"""TRL's own loss code on the same log-probabilities as oracle; needs the extra `bench`."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rl.algorithms import dr_grpo, grpo, gspo, gspo_token
from rl.algorithms.base import PolicyGradient, token_divergence

pytest.importorskip("trl", reason="TRL is not installed; it is part of the extra `bench`")

CLIPS = {"clip_low": 0.1, "clip_high": 0.2}
GROUPS, ANSWERS, TOKENS = 3, 4, 24
CASES: dict[str, tuple[PolicyGradient, str, str]] = {
    "gspo": (gspo.Algorithm(**CLIPS), "sequence", "grpo"),
    "gspo_token": (gspo_token.Algorithm(**CLIPS), "sequence", "grpo"),
    "grpo": (grpo.Algorithm(**CLIPS), "token", "grpo"),
    "dr_grpo": (dr_grpo.Algorithm(**CLIPS, length_divisor=TOKENS), "token", "dr_grpo"),
}
"""By name: the algorithm, and what TRL calls its importance_sampling_level and its loss_type."""


class _Accelerator:
    """One process: what is gathered or reduced is what is there."""

    num_processes = 1

    def gather(self, values: Tensor) -> Tensor:
        return values

    def reduce(self, values: Tensor, reduction: str) -> Tensor:
        return values


def trl_loss(level: str, loss_type: str, kl: float, tensors: dict[str, Tensor]) -> Tensor:
    """GRPOTrainer._compute_loss, told log-probabilities where it would ask a model for them."""
    from trl.trainer.grpo_trainer import GRPOTrainer

    class Told(GRPOTrainer):
        def __init__(self) -> None:
            self.importance_sampling_level, self.loss_type, self.beta = level, loss_type, kl
            self.epsilon_low, self.epsilon_high = CLIPS["clip_low"], CLIPS["clip_high"]
            self.max_completion_length = TOKENS
            self.args = SimpleNamespace(delta=None, use_bias_correction_kl=False)
            self.model = SimpleNamespace(training=True)
            self.accelerator = _Accelerator()
            self.current_gradient_accumulation_steps = 1
            self.top_entropy_quantile, self.off_policy_mask_threshold = 1.0, None
            self.aux_loss_enabled = self.use_vllm = self._entropy_bonus_enabled = False
            self._metrics = {"train": _Lists(), "eval": _Lists()}

        def _get_per_token_logps_and_entropies(self, *_: Any, **__: Any) -> tuple[Tensor, Tensor, None]:
            return tensors["new"], torch.zeros_like(tensors["new"]), None

    prompts = torch.zeros(len(tensors["new"]), 1, dtype=torch.int64)
    return Told()._compute_loss(
        Told().model,
        {
            "prompt_ids": prompts,
            "prompt_mask": prompts,
            "completion_ids": torch.zeros_like(tensors["new"], dtype=torch.int64),
            "completion_mask": tensors["mask"].to(tensors["new"].dtype),
            "advantages": tensors["advantages"],
            "old_per_token_logps": tensors["old"],
            "ref_per_token_logps": tensors["reference"],
        },
    )


class _Lists(dict[str, list[float]]):
    def __missing__(self, key: str) -> list[float]:
        return self.setdefault(key, [])


def tensors_of(seed: int, spread: float, dtype: torch.dtype) -> dict[str, Tensor]:
    """Log-probabilities and mask [B, G, T], and advantages [B, G], of answers of uneven length; padding is not 0."""
    generator = torch.Generator().manual_seed(seed)
    shape = (GROUPS, ANSWERS, TOKENS)
    old = -2 * torch.rand(shape, dtype=dtype, generator=generator)
    new, reference = (old + spread * torch.randn(shape, dtype=dtype, generator=generator) for _ in range(2))
    mask = torch.arange(TOKENS) < torch.randint(1, TOKENS + 1, (GROUPS, ANSWERS, 1), generator=generator)
    advantages = torch.randn(GROUPS, ANSWERS, dtype=dtype, generator=generator)
    return {"new": new, "old": old, "reference": reference, "mask": mask, "advantages": advantages}


def own_loss(algorithm: PolicyGradient, kl: float, tensors: dict[str, Tensor]) -> Tensor:
    new, mask, advantages = tensors["new"], tensors["mask"], tensors["advantages"]
    weights = torch.full_like(advantages, 1 / advantages.numel())
    loss = algorithm.loss(algorithm.terms(new, tensors["old"], mask, advantages), weights)
    divergence = algorithm.pool(token_divergence(new, tensors["reference"], mask), mask)
    return loss + kl * (divergence * weights).sum()


def loss_and_gradient(loss: Any, tensors: dict[str, Tensor]) -> tuple[float, np.ndarray]:
    leaf = tensors["new"].clone().requires_grad_()
    value = loss(tensors | {"new": leaf})
    return value.item(), torch.autograd.grad(value, leaf)[0].numpy()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kl", [0.0, 0.04])
@pytest.mark.parametrize("spread", [0.05, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loss_and_gradient_equal_trls_to_one_millionth(name: str, kl: float, spread: float, dtype: torch.dtype) -> None:
    algorithm, level, loss_type = CASES[name]
    for seed in range(5):
        tensors = tensors_of(seed, spread, dtype)
        flat = {key: value.flatten(0, 1) for key, value in tensors.items()}
        value, slope = loss_and_gradient(lambda given: own_loss(algorithm, kl, given), tensors)
        trls, trls_slope = loss_and_gradient(lambda given: trl_loss(level, loss_type, kl, given), flat)
        assert value == pytest.approx(trls, abs=1e-6)
        np.testing.assert_allclose(slope.reshape(trls_slope.shape), trls_slope, atol=1e-6)
        assert np.abs(trls_slope).max() > 1e-3
