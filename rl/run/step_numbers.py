"""What the answered groups of a step show, as numbers by name: how good they are, and whether a reward is being gamed.

An answer that earns much for little shows here first: more vertices, outlines that cross themselves, areas far from the
true ones, answers cut short, a term that rises while the IoU does not.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from envs.example import Truth
from envs.polygons import AnswerStatus, flatten_rings
from rewards.kernels.overlap import self_crossings
from rewards.shaping import ShapedStep, Shaper, Terms, weighted_mean
from rl.run.steps import ScoredStep
from rollout.records import Group, Rollout

_CORRELATION_FLOOR = 1e-8
"""Least standard deviation of numbers whose correlation is taken."""


@dataclass(frozen=True)
class StepNumbers:
    """All that is logged of a step, but for seconds."""

    scalars: dict[str, float]
    histograms: dict[str, NDArray[np.float64]]


def step_numbers(
    scored: ScoredStep, shaper: Shaper, stats: Mapping[str, float], refills: int, thinks: bool = False
) -> StepNumbers:
    """Numbers and histograms of a step, by name.

    shaper: what has shaped its terms; stats: what the learner tells of it, logged as learner/NAME; refills: most rounds
    of them, 0 for a run without; thinks: whether reasoning may stand before the answers.
    """
    numbers = group_metrics(scored.groups, scored.signal) | staleness_metrics(scored.groups)
    numbers |= shaping_metrics(shaper, scored.step, scored.terms, scored.shaped)
    numbers |= refill_metrics(scored.chosen, scored.num_asked_again) if refills else {}
    numbers |= thinking_metrics(scored.groups) if thinks else {}
    numbers |= {f"learner/{name}": value for name, value in stats.items()}
    return StepNumbers(numbers, group_histograms(scored.groups))


def group_metrics(groups: Sequence[Group], signal: NDArray[np.bool_]) -> dict[str, float]:
    """Plain numbers by name; the B groups must have their totals, signal [B] says which of them teach something.

    reward/mean, reward/std (over all answers), reward/group_std (mean over groups: what the advantages are made of),
    sampled/giou, sampled/best_giou (of each group's best answer), group/without_signal (share of groups that
    teach nothing); those of `_term_metrics` and `_answer_metrics`, and answer/area_ratio (mean of drawn over true area
    where neither is nothing).
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    totals = np.concatenate([np.asarray(group.totals, np.float64) for group in groups])
    group_stds = np.array([np.std(group.totals) for group in groups])
    best = [max(_valid_iou(rollout) for rollout in group.rollouts) for group in groups]
    ratios = _area_ratios(groups)
    return (
        {
            "reward/mean": float(totals.mean()),
            "reward/std": float(totals.std()),
            "reward/group_std": float(group_stds.mean()),
        }
        | _term_metrics(rollouts)
        | {
            "sampled/giou": float(np.mean([_valid_iou(rollout) for rollout in rollouts])),
            "sampled/best_giou": float(np.mean(best)),
        }
        | _answer_metrics(rollouts)
        | ({"answer/area_ratio": float(np.mean(ratios))} if ratios else {})
        | {"group/without_signal": float(np.mean(~signal))}
    )


def staleness_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """rollout/staleness: steps from the weights that sampled to those that learn, mean over answers."""
    ages = [group.step - rollout.policy_version for group in groups for rollout in group.rollouts]
    return {"rollout/staleness": float(np.mean(ages))}


def refill_metrics(chosen: Sequence[int], asked: int) -> dict[str, float]:
    """refill/groups (that came into the batch), refill/asked (groups of all rounds): the rest was without signal too.

    chosen: places of the groups in the batch, as by `learned`; asked: groups that refills have asked.
    """
    return {"refill/groups": float(sum(k >= len(chosen) for k in chosen)), "refill/asked": float(asked)}


def thinking_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """answer/thinking (share with a well-formed block of reasoning), answer/thinking_words (mean over these, or 0)."""
    answers = [rollout.answer for group in groups for rollout in group.rollouts]
    words = [len(answer.thinking.split()) for answer in answers if answer.thinking is not None]
    return {
        "answer/thinking": len(words) / len(answers),
        "answer/thinking_words": float(np.mean(words)) if words else 0.0,
    }


def _term_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """term/NAME (mean where it applies), term_does_not_apply/NAME (share of answers), term_iou_correlation/NAME.

    The last is Pearson's, over the valid answers that the term applies to; left out where either does not differ.
    """
    valid = np.array([rollout.answer.status.valid for rollout in rollouts])
    iou = np.array([rollout.iou for rollout in rollouts])
    means, absent, correlations = {}, {}, {}
    for name, values in _terms(rollouts).items():
        applies = ~np.isnan(values)
        absent[f"term_does_not_apply/{name}"] = float(1 - applies.mean())
        if applies.any():
            means[f"term/{name}"] = float(values[applies].mean())
        pairs = np.stack([values, iou])[:, applies & valid]
        if pairs.size and pairs.std(axis=1).min() > _CORRELATION_FLOOR:
            correlations[f"term_iou_correlation/{name}"] = float(np.corrcoef(pairs)[0, 1])
    return means | absent | correlations


def _answer_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """answer/valid and answer/status_NAME (shares), answer/wrapped (share that only lenient reading takes),
    answer/tokens, answer/cut_short (share that met the length limit), answer/entropy (nats per token, estimated by
    what was sampled, at its temperature).

    Means over the answers that drew, 0 where none did: answer/vertices, answer/self_crossings.
    """
    statuses = Counter(rollout.answer.status for rollout in rollouts)
    drawn = [rollout.answer for rollout in rollouts if rollout.answer.status is AnswerStatus.OK]
    flat = flatten_rings([ring for answer in drawn for ring in answer.rings_px])
    answer_offsets = np.cumsum([0, *(len(answer.rings_px) for answer in drawn)], dtype=np.int64)
    logprobs = np.concatenate([rollout.response.logprobs for rollout in rollouts])
    share = 1 / len(rollouts)
    return (
        {"answer/valid": share * sum(rollout.answer.status.valid for rollout in rollouts)}
        | {f"answer/status_{status}": share * statuses[status] for status in AnswerStatus}
        | {
            "answer/vertices": float(np.mean([answer.num_vertices for answer in drawn])) if drawn else 0.0,
            "answer/self_crossings": float(np.mean(self_crossings(*flat, answer_offsets))) if drawn else 0.0,
            "answer/tokens": share * sum(len(rollout.response.tokens) for rollout in rollouts),
            "answer/entropy": -float(np.mean(logprobs)) if logprobs.size else 0.0,
            "answer/wrapped": share * sum(not rollout.answer.bare for rollout in rollouts),
            "answer/cut_short": share * sum(rollout.response.finish == "length" for rollout in rollouts),
        }
    )


def shaping_metrics(shaper: Shaper, step: int, terms: Terms, shaped: ShapedStep) -> dict[str, float]:
    """What shaping did to a step's terms [B, G]; nothing where the run shapes nothing.

    reward/unshaped_mean (mean total of the terms as measured, because the mean of ranks never rises), shaped/NAME (mean
    of a shaped term where it applies), schedule/weight_NAME and schedule/threshold_NAME (of what has a schedule).
    """
    if not shaper.shaping:
        return {}
    unshaped = np.nan_to_num(weighted_mean(terms, shaped.weights), nan=0.0)
    values = {name: shaped.terms[name] for name in shaped.terms if name in shaper.shaping}
    thresholds = shaper.thresholds_at(step)
    return (
        {"reward/unshaped_mean": float(unshaped.mean())}
        | {f"shaped/{name}": float(np.nanmean(term)) for name, term in values.items() if not np.isnan(term).all()}
        | {
            f"schedule/weight_{name}": shaped.weights[name]
            for name, setting in shaper.shaping.items()
            if setting.weight_schedule
        }
        | {
            f"schedule/threshold_{name}": thresholds[name]
            for name, setting in shaper.shaping.items()
            if setting.threshold_schedule
        }
    )


def group_histograms(groups: Sequence[Group]) -> dict[str, NDArray[np.float64]]:
    """The values behind `group_metrics`: each reward term where it applies, and totals, IoU and tokens of every answer.

    The names differ from those of the numbers, because TensorBoard shows only one kind of data per name.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    return {f"histogram/term_{name}": values[~np.isnan(values)] for name, values in _terms(rollouts).items()} | {
        "histogram/total": np.concatenate([np.asarray(group.totals, np.float64) for group in groups]),
        "histogram/iou": np.array([_valid_iou(rollout) for rollout in rollouts]),
        "histogram/tokens": np.array([len(rollout.response.tokens) for rollout in rollouts], np.float64),
    }


def _terms(rollouts: Sequence[Rollout]) -> dict[str, NDArray[np.float64]]:
    """[A] values of each reward term by name; NaN where it does not apply."""
    names = rollouts[0].terms
    return {name: np.array([rollout.terms[name] for rollout in rollouts], np.float64) for name in names}


def _valid_iou(rollout: Rollout) -> float:
    # An unreadable answer on an empty truth overlaps it perfectly, and is worth nothing all the same.
    return rollout.iou if rollout.answer.status.valid else 0.0


def _area_ratios(groups: Sequence[Group]) -> list[float]:
    """Area over true area of each answer that drew something, where there is something to draw."""
    ratios = []
    for group in groups:
        if true_area_px := _true_area_px(group.example.truth):
            drawn = (rollout for rollout in group.rollouts if rollout.answer.status is AnswerStatus.OK)
            ratios += [rollout.answer_area_px / true_area_px for rollout in drawn]
    return ratios


def _true_area_px(truth: Truth) -> int:
    union = truth.union if truth.ignore is None else truth.union & ~truth.ignore
    return int(np.count_nonzero(union))
