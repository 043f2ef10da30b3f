"""What the learner's ranks log of their micro-batches, and what of it deserves a warning.

They hold more or fewer answers, and those of several ranks make one step: each number knows what it is a mean over.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rl.algorithms.base import MAX_LOG_RATIO, LossTerms
from rl.learner.batches.batch import Batch

WEIGHT_CAP = 2.0
"""Importance weights are truncated here, as is usual for answers of another engine (TIS): a few would else be all."""
_WEIGHT, _WEIGHT_SQUARE = "sampler_weight", "sampler_weight_square"


class Mean(NamedTuple):
    """A number of one micro-batch."""

    value: float
    over: float
    """How many things it is the mean (or, of a _max, the largest) of: its weight beside others; 0: of none."""


MicroBatchStats = dict[str, Mean]


def loss_stats(terms: LossTerms, counts: Tensor) -> MicroBatchStats:
    """ratio_mean, ratio_max and clip_fraction (share of ratios clipped) of the responses [B, G] that count.

    Of one ratio per response or one a token, as the algorithm has them. ratio_change, the mean of |log ratio|, and
    changed_clip_fraction are of those that are not exactly 1 (before the first update of a step, all are), 0 of none.
    """
    counted = counts[..., None] & terms.present
    num = int(counted.sum())
    if not num:
        nothing = dict.fromkeys(("clip_fraction", "ratio_change", "changed_clip_fraction"), Mean(0.0, 0))
        return {"ratio_mean": Mean(1.0, 0), "ratio_max": Mean(1.0, 0), **nothing}
    ratio, clipped = terms.ratio.detach()[counted], terms.clipped[counted].float()
    changed = ratio != 1
    some = int(changed.sum())
    return {
        "ratio_mean": Mean(float(ratio.mean()), num),
        "ratio_max": Mean(float(ratio.max()), num),
        "clip_fraction": Mean(float(clipped.mean()), num),
        "ratio_change": Mean(float(ratio[changed].log().abs().mean()) if some else 0.0, some),
        "changed_clip_fraction": Mean(float(clipped[changed].mean()) if some else 0.0, some),
    }


def sampler_stats(part: Batch, scored_mask: Tensor, old_logprobs: Tensor) -> MicroBatchStats:
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
        "sampler_logprob_difference": Mean(float(np.abs(difference).mean()), len(difference)),
        "sampler_logprob_difference_max": Mean(float(np.abs(difference).max()), len(difference)),
        _WEIGHT: Mean(float(weights.mean()), len(sizes)),
        _WEIGHT_SQUARE: Mean(float((weights**2).mean()), len(sizes)),
    }


def importance_stats(importance: Tensor, cap: float, counted: Tensor) -> MicroBatchStats:
    """What the loss was weighed by: importance_mean and _max of min(cap, weight), importance_capped the share cut off.

    importance: weights [B, G, 1] of responses or [B, G, T] of tokens, before the cap; counted: bool, broadcast to it.
    """
    chosen = importance[counted.expand(importance.shape)]
    num = len(chosen)
    if not num:
        return {"importance_mean": Mean(1.0, 0), "importance_max": Mean(1.0, 0), "importance_capped": Mean(0.0, 0)}
    used = chosen.clamp(max=cap)
    return {
        "importance_mean": Mean(float(used.mean()), num),
        "importance_max": Mean(float(used.max()), num),
        "importance_capped": Mean(float((chosen > cap).float().mean()), num),
    }


def masked_mean(values: Tensor, counted: Tensor) -> Mean:
    """Mean of values where `counted`, a bool mask of their shape; 0 where nothing is."""
    num = int(counted.sum())
    return Mean(float(torch.where(counted, values.detach(), 0.0).sum()) / max(1, num), num)


def of_all_ranks(micro_batches: Sequence[MicroBatchStats], device: torch.device) -> list[MicroBatchStats]:
    """The numbers of all ranks' micro-batches, on every rank; of this one's where it is alone.

    All ranks call it, with equally many micro-batches of the same names.
    """
    if torch.distributed.get_world_size() == 1:
        return list(micro_batches)
    names = list(micro_batches[0])
    mine = torch.tensor([[one[name] for name in names] for one in micro_batches], dtype=torch.float64, device=device)
    gathered = [torch.empty_like(mine) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(gathered, mine)
    rows = torch.cat(gathered).tolist()
    return [{name: Mean(*pair) for name, pair in zip(names, row, strict=True)} for row in rows]


def step_stats(micro_batches: Sequence[Mapping[str, Mean]]) -> dict[str, float]:
    """The numbers of a step from those of its micro-batches on all ranks, each of which has the same names.

    Means over what the micro-batches' own are means over; of a _max the largest.

    sampler_effective_sample_size: (sum w)^2 / (n sum w^2) over the n responses, 1 where all weigh the same and 1 / n
    where one weighs all: the share of them that still speaks for the learner's policy (Kong 1992).
    """
    stats = {name: _joined(name, [one[name] for one in micro_batches]) for name in micro_batches[0]}
    mean, square = stats.pop(_WEIGHT), stats.pop(_WEIGHT_SQUARE)
    return stats | {"sampler_effective_sample_size": mean**2 / square}


def _joined(name: str, means: Sequence[Mean]) -> float:
    # Of nothing anywhere, all micro-batches say the same.
    something = [mean for mean in means if mean.over] or [Mean(means[0].value, 1)]
    values, over = np.array(something, np.float64).T
    return float(values.max() if name.endswith("_max") else values @ over / over.sum())


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


_SILENT_STEPS = 3
"""So many steps without any signal are no accident."""


def signal_warning(numbers: Mapping[str, float], silent_steps: int) -> str | None:
    """What to say where nothing is learned because the answers of no group differ in reward; else None.

    numbers: of a step; silent_steps: how many steps in a row, this one included, had no group that counts.
    """
    if silent_steps < _SILENT_STEPS:
        return None
    shares = {name.removeprefix("answer/status_"): share for name, share in numbers.items() if "answer/status_" in name}
    named = ", ".join(f"{share:.0%} {name}" for name, share in sorted(shares.items(), key=lambda x: -x[1]) if share)
    return (
        f"nothing was learned in {silent_steps} steps: the answers of no group differ in reward (mean "
        f"{numbers['reward/mean']:.3g}; answers: {named}). See what they say by `polytrace archive show RUN`; a policy "
        "that never draws, or a tokenizer that does not know the phrases' words, needs `polytrace sft` first."
    )
