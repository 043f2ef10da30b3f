"""Rewards put through the hostile suite: what each trick would earn next to honest answers, and what they are fit for.

The rule. No trick may earn more than even a hasty honest answer to the same scene, nor as much as the better of both
honest answers, unless that is nothing. A trick that fills the very pixels of the careful answer may earn as much as
that one, not more. Rewards under which all tricks keep to this can be trained on by themselves. A reward that measures
one side of an answer, as where its box is, seldom does: it may still be fit beside a mask IoU, up to some weight.
Totals are weighted means of the terms as they are measured; shaping is left out.

Dimension letter: N tricks of the suite.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from math import inf, nan

import numpy as np
from numpy.typing import NDArray

from envs.polygons import Answer
from rewards.hostile import Scene, Trick, tricks
from rewards.score import Comparisons, compare
from rewards.scorer import Scorer
from rewards.shaping import weighted_mean

TRICK, CAREFUL, HASTY = 0, 1, 2
"""Columns of the arrays of a Trial: the trick itself, and the two honest answers to its scene."""
LEAST_WEIGHT = 0.01
"""A weight below it, beside a mask IoU of weight 1, is none."""
_ROUNDING = 1e-9


class Fitness(StrEnum):
    """What rewards are fit for."""

    PASSES = "passes"
    """No trick pays: they can be trained on by themselves."""
    BESIDE_MASK_IOU = "beside_mask_iou"
    """Tricks pay under this one reward alone, but none does beside `mask_iou`, up to its safe weight."""
    FAILS = "fails"
    """Tricks pay, and under one reward alone do so beside `mask_iou` at any weight."""
    TEACHES_NOTHING = "teaches_nothing"
    """All answers to a scene that can be read earn the same: constant, zero, never applying, or the format alone."""
    UNSTEADY = "unsteady"
    """Verdict where answers were paid differently when asked again."""


@dataclass(frozen=True)
class Verdict:
    """What a trick earns in total beside the honest answers to its scene."""

    trick: Trick
    total: float
    careful: float
    """Total of the careful answer."""
    hasty: float
    """Total of the hasty one."""

    @property
    def honest(self) -> float:
        """The most that the trick may earn: what the hasty answer does; of the careful one's pixels, what that does."""
        return self.careful if self.trick.same_pixels else self.hasty

    @property
    def earns_more(self) -> bool:
        """Whether the trick earns more than it may."""
        return self.total > self.honest + _ROUNDING

    @property
    def earns_as_much(self) -> bool:
        """Whether a trick of other pixels earns, without earning more, what the better of the honest answers does."""
        matched = self.total >= max(self.careful, self.hasty) - _ROUNDING
        return matched and self.total > _ROUNDING and not self.trick.same_pixels and not self.earns_more

    @property
    def passed(self) -> bool:
        """Whether the trick does not pay."""
        return not self.earns_more and not self.earns_as_much


@dataclass(frozen=True)
class Trial:
    """The terms of the whole suite under some rewards, to be totalled under any weights."""

    tricks: tuple[Trick, ...]
    """N, in the order of the suite."""
    terms: dict[str, NDArray[np.float64]]
    """[N, 3] by reward name: of the trick, the careful and the hasty answer; NaN where the term does not apply."""
    iou: NDArray[np.float64]
    """[N, 3] IoU of the same."""
    unsteady: tuple[str, ...] = ()
    """Rewards that paid the same answers differently when asked again."""

    def totals(self, weights: Mapping[str, float]) -> NDArray[np.float64]:
        """[N, 3] weighted means, 0 where no term applies. Raises ValueError for a weight that names no term."""
        return np.nan_to_num(weighted_mean(self.terms, weights), nan=0.0)

    def verdicts(self, weights: Mapping[str, float]) -> list[Verdict]:
        """One verdict a trick, in the order of the suite."""
        totals = self.totals(weights).tolist()
        return [Verdict(trick, *three) for trick, three in zip(self.tricks, totals, strict=True)]

    def fitness(self, weights: Mapping[str, float]) -> Fitness:
        """What the rewards, weighted like this, are fit for."""
        used = [name for name, weight in weights.items() if weight > 0]
        if set(used) & set(self.unsteady):
            return Fitness.UNSTEADY
        if self.all_alike(weights):
            return Fitness.TEACHES_NOTHING
        if all(verdict.passed for verdict in self.verdicts(weights)):
            return Fitness.PASSES
        beside = len(used) == 1 and self.safe_weight(used[0]) >= LEAST_WEIGHT
        return Fitness.BESIDE_MASK_IOU if beside else Fitness.FAILS

    def all_alike(self, weights: Mapping[str, float]) -> bool:
        """Whether, in every scene with an object, all answers that can be read earn the same."""
        totals = self.totals(weights)
        readable = np.array([trick.answer.status.valid for trick in self.tricks])
        for scene in {trick.scene.name for trick in self.tricks if trick.scene.target.area_px}:
            mine = np.array([trick.scene.name == scene for trick in self.tricks])
            earned = np.append(totals[mine][:, [CAREFUL, HASTY]], totals[mine & readable][:, TRICK])
            if np.ptp(earned) > _ROUNDING:
                return False
        return True

    def indifferent(self, weights: Mapping[str, float]) -> bool:
        """Whether a careful answer earns exactly what a hasty one does, in every scene: no care is learned."""
        totals = self.totals(weights)
        return bool((np.abs(totals[:, CAREFUL] - totals[:, HASTY]) <= _ROUNDING).all())

    def safe_weight(self, name: str) -> float:
        """The largest weight of term `name`, beside a mask IoU of weight 1, with which no trick earns more than it may.

        inf where any weight will do, 0 where none does. A term that does not apply leaves the IoU alone.
        """
        values = np.where(np.isnan(self.terms[name]), self.iou, self.terms[name])
        safe = inf
        for trick, iou, term in zip(self.tricks, self.iou.tolist(), values.tolist(), strict=True):
            honest = CAREFUL if trick.same_pixels else HASTY
            gain = term[TRICK] - term[honest]
            if gain > _ROUNDING:
                safe = min(safe, (iou[honest] - iou[TRICK]) / gain)
        return max(0.0, safe)


def try_tricks(scorer: Scorer, suite: tuple[Trick, ...] | None = None) -> Trial:
    """Score a hostile suite, that of outlines by default. Raises ValueError, naming the reward and the trick, where a
    reward fails."""
    suite = tricks() if suite is None else suite
    scenes = {trick.scene.name: trick.scene for trick in suite}
    groups = [
        *(_compared(scene, [scene.careful, scene.hasty], "honest answers") for scene in scenes.values()),
        *(_compared(trick.scene, [trick.answer], trick.name) for trick in suite),
    ]
    # All at once, so that a slow reward in processes of its own works on several.
    columns = scorer.columns_of(groups)
    again = scorer.columns_of(groups)
    unsteady = [
        name for name in columns[0] if any(one[name] != two[name] for one, two in zip(columns, again, strict=True))
    ]
    honest = dict(zip(scenes, range(len(scenes)), strict=True))
    rows = [(len(scenes) + k, honest[trick.scene.name]) for k, trick in enumerate(suite)]
    iou = [[comparison.iou for row in pair for comparison in groups[row]] for pair in rows]
    terms = {
        name: [[nan if term is None else term for row in pair for term in columns[row][name]] for pair in rows]
        for name in columns[0]
    }
    return Trial(
        suite, {name: np.array(values, np.float64) for name, values in terms.items()}, np.array(iou), tuple(unsteady)
    )


def _compared(scene: Scene, answers: list[Answer], told: str) -> Comparisons:
    """Answers to a scene; the example's name, which errors tell, says what they are."""
    return compare(answers, scene.target, f"{told} (hostile suite)", scene.name)
