"""A stated share of the pairs with the true mask, damaged, in place of the answer that a policy drew."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator

from envs.contours import rings_from_mask
from envs.damage import DAMAGES, damaged
from envs.polygons import flat_answers
from rewards.target import Target
from rl.pair_rule import PairRule
from rl.pairs import Choice, Pair

_OTHER_STRENGTHS = (0.9, 0.7, 0.5, 0.35, 0.25, 0.15, 0.1, 0.05)
"""Tried where the one that was drawn does too much, or on a small object nothing."""


@dataclass(frozen=True)
class DamageSettings:
    """Synthetic coarse masks."""

    share: float = 0.0
    """Of all pairs, 0..1: in so many the answer gives way to a damaged true mask of the same example."""
    kinds: tuple[str, ...] = DAMAGES
    """Of envs/damage.py, taken in turns."""

    def __post_init__(self) -> None:
        """Raises ValueError on a setting out of range."""
        if not 0 <= self.share <= 1:
            raise ValueError(f"damage.share is {self.share}; set it to 0..1, the share of pairs that are synthetic.")
        if unknown := sorted(set(self.kinds) - set(DAMAGES)):
            raise ValueError(f"damage.kinds has {unknown[0]!r}; choose of {', '.join(DAMAGES)}.")
        if self.share and not self.kinds:
            raise ValueError(f"damage.kinds is empty, but damage.share {self.share}; name one or more kinds.")


def with_damage(choice: Choice, settings: DamageSettings, rule: PairRule) -> Iterator[Pair]:
    """The pairs of a choice, a seeded share of them damaged.

    A pair whose truth no damage brings into the range of IoU of the rule, as of a single pixel, stays as it is.
    """
    num = round(settings.share * len(choice))
    shuffled = np.random.default_rng([rule.seed, len(choice)]).permutation(len(choice))[:num]
    turns = {int(k): turn for turn, k in enumerate(shuffled)}
    for k, pair in enumerate(choice.pairs()):
        if k not in turns:
            yield pair
            continue
        row, first = choice.outlines.rows[k], turns[k] % len(settings.kinds)
        rng = np.random.default_rng([rule.seed, int(row["order"])])
        kinds = settings.kinds[first:] + settings.kinds[:first]
        yield _damaged_pair(pair, choice.examples.truth(row["example"]).target, kinds, rule, rng)


def _damaged_pair(pair: Pair, target: Target, kinds: Sequence[str], rule: PairRule, rng: Generator) -> Pair:
    """The pair by the first kind, at a random strength, that the rule would keep; else by others."""
    for kind in kinds:
        for strength in (rng.uniform(0.2, 1), *_OTHER_STRENGTHS):
            mask = damaged(target.mask, kind, strength, rng)
            if not mask.any() or (mask == target.mask).all():
                continue
            rings = rings_from_mask(mask)
            iou = float(target.overlap([rings]).iou[0])
            if rule.min_iou <= iou <= rule.max_iou:
                boundary_iou = float(target.boundary_iou(flat_answers([rings]))[0])
                return replace(pair, coarse_rings=tuple(rings), iou=iou, boundary_iou=boundary_iou, damage=kind)
    return pair
