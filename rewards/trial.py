"""Rewards put through the hostile suite: what each trick would earn next to an honest answer, and which is too much.

The rule. A total of several terms stands for the whole answer, so no trick may earn more than even a hasty honest
answer to the same scene. One term alone measures one side of an answer: there a trick may match a careful answer, but
never beat it. And a trick that fills the very pixels of the careful answer may earn as much as that one, not more.
Totals are weighted means of the terms as they are measured; shaping is left out.

Dimension letter: N tricks of the suite.
"""

from collections.abc import Mapping
from dataclasses import dataclass
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
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Verdict:
    """What a trick earns in total beside the honest answer that it is measured by."""

    trick: Trick
    total: float
    honest: float
    """Total of the honest answer."""
    honest_name: str
    """careful or hasty."""

    @property
    def passed(self) -> bool:
        """Whether the trick earns at most what the honest answer does."""
        return self.total <= self.honest + _ROUNDING

    @property
    def undecided(self) -> bool:
        """Whether a trick with other pixels earns just as much as the honest answer."""
        return self.passed and not self.trick.same_pixels and self.total >= self.honest - _ROUNDING


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
    """Rewards that paid the same honest answers differently when asked again."""

    def totals(self, weights: Mapping[str, float]) -> NDArray[np.float64]:
        """[N, 3] weighted means, 0 where no term applies. Raises ValueError for a weight that names no term."""
        return np.nan_to_num(weighted_mean(self.terms, weights), nan=0.0)

    def verdicts(self, weights: Mapping[str, float]) -> list[Verdict]:
        """One verdict a trick, in the order of the suite."""
        alone = sum(weight > 0 for weight in weights.values()) == 1
        found = []
        for trick, totals in zip(self.tricks, self.totals(weights).tolist(), strict=True):
            careful = alone or trick.same_pixels
            honest, name = (totals[CAREFUL], "careful") if careful else (totals[HASTY], "hasty")
            found.append(Verdict(trick, totals[TRICK], honest, name))
        return found

    def indifferent(self, weights: Mapping[str, float]) -> bool:
        """Whether a careful answer earns exactly what a hasty one does, in every scene: then nothing is learned."""
        totals = self.totals(weights)
        return bool((np.abs(totals[:, CAREFUL] - totals[:, HASTY]) <= _ROUNDING).all())

    def safe_weight(self, name: str) -> float:
        """The largest weight of term `name`, beside a mask IoU of weight 1, with which every trick still passes.

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


def try_tricks(scorer: Scorer) -> Trial:
    """Score the hostile suite. Raises ValueError, naming the reward and the trick, where a reward fails."""
    scenes = {trick.scene.name: trick.scene for trick in tricks()}
    groups = [
        *(_compared(scene, [scene.careful, scene.hasty], "honest answers") for scene in scenes.values()),
        *(_compared(trick.scene, [trick.answer], trick.name) for trick in tricks()),
    ]
    # All at once, so that a slow reward in processes of its own works on several.
    columns = scorer.columns_of(groups)
    again = scorer.columns_of(groups[: len(scenes)])
    unsteady = [
        name for name in columns[0] if any(one[name] != two[name] for one, two in zip(columns, again, strict=False))
    ]
    honest = dict(zip(scenes, range(len(scenes)), strict=True))
    rows = [(len(scenes) + k, honest[trick.scene.name]) for k, trick in enumerate(tricks())]
    iou = [[comparison.iou for row in pair for comparison in groups[row]] for pair in rows]
    terms = {
        name: [[nan if term is None else term for row in pair for term in columns[row][name]] for pair in rows]
        for name in columns[0]
    }
    return Trial(
        tricks(), {name: np.array(values, np.float64) for name, values in terms.items()}, np.array(iou), tuple(unsteady)
    )


def _compared(scene: Scene, answers: list[Answer], told: str) -> Comparisons:
    """Answers to a scene; the example's name, which errors tell, says what they are."""
    return compare(answers, scene.target, f"{told} (hostile suite)", scene.name)
