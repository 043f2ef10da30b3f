"""GSPO-token (arXiv 2507.18071, section 4.3): GSPO's ratio, with an advantage for each token.

    s_it = sg[s_i] * p_new(y_it) / sg[p_new(y_it)]                      sg[x]: x, without its gradient
    loss = -mean_i mean_t min(s_it A_it, clip(s_it, 1 - clip_low, 1 + clip_high) A_it)

Where all tokens of a response have its advantage A, loss and gradient are GSPO's. With credit they have

    A_it = A_i + |A_i| (vertex_credit u_it + instance_credit v_it),    u, v in [-1, 1], of mean 0 over the response

so that what was good in a bad answer is blamed less, and what was bad in a good one praised less: sign and mean of the
answer's advantage stay (the form of ContourVLA's DECT-GRPO). u comes from what vertices and boxes contribute to the
score, v from what instances do (rewards/credit.py). An algorithm of your own on top of this one gives tokens others by
`token_advantages`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from envs.ranges import at_least
from rewards.credit import box_gains, instance_scores, vertex_gains
from rewards.target import Target
from rl.algorithms import gspo
from rl.algorithms.base import LossTerms, TokenAdvantages, per_token, sequence_token_log_ratio
from rollout.records import Group, Rollout


@dataclass(frozen=True)
class Algorithm(gspo.Algorithm):
    """Settings of GSPO-token: GSPO's, and how much single vertices and instances weigh."""

    vertex_credit: Annotated[float, at_least(0)] = 0.0
    """How far a token's advantage follows its vertex, by the IoU that is lost without it, or its box, by the IoU lost
    with the group's mean box; as a share of the answer's advantage."""
    instance_credit: Annotated[float, at_least(0)] = 0.0
    """How far a token's advantage follows its instance, by its softly matched IoU; as a share of the answer's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vertex_credit + self.instance_credit > 1:
            raise ValueError(
                f"algorithm.vertex_credit is {self.vertex_credit} and instance_credit {self.instance_credit}, together "
                "above 1: tokens of a good answer would be made rarer; set them so that they add up to 1 or less."
            )

    def token_advantages(self, groups: Sequence[Group], advantages: NDArray[np.float64]) -> TokenAdvantages | None:
        """Advantages of tokens by credit; None without any. Answers whose tokens are not located keep their own."""
        if not self.vertex_credit and not self.instance_credit:
            return None
        return tuple(
            tuple(
                (value * np.ones(len(credit)) + abs(value) * credit).astype(np.float32)
                for value, credit in zip(row, self._credits(group), strict=True)
            )
            for group, row in zip(groups, advantages, strict=True)
        )

    def _credits(self, group: Group) -> list[NDArray[np.float64]]:
        """[G][T] both kinds of credit of each token, weighed."""
        target = Target.from_truth(group.example.truth)
        credits = [np.zeros(len(rollout.response.tokens)) for rollout in group.rollouts]
        located = [k for k, rollout in enumerate(group.rollouts) if rollout.token_places is not None]
        if self.vertex_credit and located:
            answers = [group.rollouts[k].answer for k in located]
            gains = zip(vertex_gains(answers, target), box_gains(answers, target), strict=True)
            for k, (of_vertices, of_box) in zip(located, gains, strict=True):
                credits[k] += self.vertex_credit * _centred(_of_vertices(group.rollouts[k], of_vertices, of_box))
        if self.instance_credit:
            for k in located:
                credits[k] += self.instance_credit * _centred(_of_instances(group.rollouts[k], target))
        return credits

    def terms(self, new_logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, advantages: Tensor) -> LossTerms:
        """A ratio per token, K = T, of its response's value; advantages [B, G] or [B, G, T]."""
        log_ratio = sequence_token_log_ratio(new_logprobs, old_logprobs, mask)
        objective, ratio, clipped = self.clip(log_ratio, per_token(advantages))
        return LossTerms(self.pool(objective, mask), ratio, clipped, mask)


def _of_vertices(rollout: Rollout, gains: NDArray[np.float64], of_box: float | None) -> NDArray[np.float64]:
    """[T] gain of what each token says, NaN where it says nothing that has one."""
    assert rollout.token_places is not None
    instance, vertex = rollout.token_places.astype(np.int64).T
    found = np.full(len(vertex), np.nan)
    found[vertex >= 0] = gains[vertex[vertex >= 0]]
    found[(instance >= 0) & (vertex < 0)] = np.nan if of_box is None else of_box
    return found


def _of_instances(rollout: Rollout, target: Target) -> NDArray[np.float64]:
    """[T] score of the instance that each token belongs to, NaN where it belongs to none, or is one of one."""
    assert rollout.token_places is not None
    instance = rollout.token_places[:, 0].astype(np.int64)
    found = np.full(len(instance), np.nan)
    if len(rollout.answer.instances) > 1 and target.num_instances:
        drawn, _ = instance_scores(target.instance_iou_of(rollout.answer))
        found[instance >= 0] = drawn[instance[instance >= 0]]
    return found


def _centred(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """[T] values less their mean, scaled so that the largest is 1 in size; NaN becomes 0, and all do if alike."""
    known = np.isfinite(values)
    if not known.any():
        return np.zeros(len(values))
    deviation = np.where(known, values - values[known].mean(), 0.0)
    largest = np.abs(deviation).max()
    return deviation / largest if largest > 1e-9 else np.zeros(len(values))
