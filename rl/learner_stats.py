"""What a learner rank logs of its passes, and what of it deserves a warning."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from rl.batch import Batch
from rl.policy_gradient import MAX_LOG_RATIO, LossTerms

WEIGHT_CAP = 2.0
"""Importance weights are truncated here, as is usual for answers of another engine (TIS): a few would else be all."""
_WEIGHT, _WEIGHT_SQUARE = "sampler_weight", "sampler_weight_square"


def loss_stats(terms: LossTerms, counts: Tensor) -> dict[str, float]:
    """ratio_mean, ratio_max and clip_fraction (share of ratios clipped) of the responses [B, G] that count.

    Of one ratio a response or one a token, as the algorithm has them.
    """
    counted = counts[..., None] & terms.present
    if not bool(counted.any()):
        return {"ratio_mean": 1.0, "ratio_max": 1.0, "clip_fraction": 0.0}
    ratio = terms.ratio.detach()[counted]
    return {
        "ratio_mean": float(ratio.mean()),
        "ratio_max": float(ratio.max()),
        "clip_fraction": float(terms.clipped[counted].float().mean()),
    }


def sampler_stats(part: Batch, scored_mask: Tensor, old_logprobs: Tensor) -> dict[str, float]:
    """How the learner's log-probabilities [B, G, T] of the sampled tokens differ from the sampler's own.

    sampler_logprob_difference and its _max: mean and largest absolute difference of a token; and of each response's
    importance weight w = min(p_learner / p_sampler, WEIGHT_CAP) the mean, and the mean of its square, for `step_stats`.
    """
    sampled = np.concatenate([tokens for row in part.sampler_logprobs for tokens in row])
    difference = old_logprobs[scored_mask].cpu().numpy() - sampled
    sizes = [len(tokens) for row in part.sampler_logprobs for tokens in row]
    log_weights = np.bincount(np.repeat(np.arange(len(sizes)), sizes), difference, minlength=len(sizes))
    weights = np.minimum(np.exp(np.clip(log_weights, -MAX_LOG_RATIO, MAX_LOG_RATIO)), WEIGHT_CAP)
    return {
        "sampler_logprob_difference": float(np.abs(difference).mean()),
        "sampler_logprob_difference_max": float(np.abs(difference).max()),
        _WEIGHT: float(weights.mean()),
        _WEIGHT_SQUARE: float((weights**2).mean()),
    }


def pass_mean(values: Tensor, counted: Tensor) -> float:
    """Mean of values where `counted`, a bool mask of their shape; 0 where nothing is."""
    return float(torch.where(counted, values.detach(), 0.0).sum() / counted.sum().clamp(min=1))


def step_stats(passes: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The numbers of a step from those of its passes, which have equally many responses.

    Means; of a _max the largest, of updates_dropped the sum.

    sampler_effective_sample_size: (sum w)^2 / (n sum w^2) over the n responses, 1 where all weigh the same and 1 / n
    where one weighs all: the share of them that still speaks for the learner's policy (Kong 1992).
    """
    values = {name: [one[name] for one in passes if name in one] for name in passes[-1]}
    stats = {name: float(max(v) if name.endswith("_max") else np.mean(v)) for name, v in values.items()}
    stats["updates_dropped"] = sum(values.get("updates_dropped", []), 0.0)
    mean, square = stats.pop(_WEIGHT), stats.pop(_WEIGHT_SQUARE)
    return stats | {"sampler_effective_sample_size": mean**2 / square}


def sampler_warning(numbers: Mapping[str, float], limit: float) -> str | None:
    """What to say where sampler and learner disagree by more than `limit` a token on average, or by NaN; else None.

    numbers: of a step, those of the learner below `learner/`.
    """
    difference = numbers["learner/sampler_logprob_difference"]
    if difference <= limit:
        return None
    return (
        f"learner and sampler differ by {difference:.3g} a token in log-probability (largest "
        f"{numbers['learner/sampler_logprob_difference_max']:.3g}, effective sample size "
        f"{numbers['learner/sampler_effective_sample_size']:.3g} of 1), above "
        f"learner.warn_sampler_difference {limit:g}: they do not compute the same policy. Compare "
        "their dtype, temperature and weights."
    )
