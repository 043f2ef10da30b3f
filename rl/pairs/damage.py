"""Pairs with the true mask, damaged, for a coarse one: in place of a share of the answers, or beside all of them."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.random import Generator

from envs.geometry.contours import rings_from_mask
from envs.geometry.damage import damaged
from envs.polygons import flat_answers
from rewards.target import Target
from rl.config.pairs import DamageSettings, PairRule
from rl.pairs.outlines import ExampleTruth, read_examples
from rl.pairs.select import Choice, Pair
from rl.pairs.shortlist import USABLE, HeldOut, index_examples
from rollout.archive.archive import RolloutArchive

_OTHER_STRENGTHS = (0.9, 0.7, 0.5, 0.35, 0.25, 0.15, 0.1, 0.05)
"""Strengths that are tried where the one that was drawn does too much, or nothing to a small object."""


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


def damage_alone(
    archives: Sequence[RolloutArchive], settings: DamageSettings, rule: PairRule, held_out: HeldOut
) -> Iterator[Pair]:
    """`settings.per_example` pairs of every training example of these archives, all of them true masks, damaged.

    Step and position of such a pair are -1, its index is its number. An example that several runs asked counts once.
    A mask that no damage brings into the range of IoU of the rule gives none.
    """
    if not settings.per_example:
        return
    index = index_examples(archives, rule, held_out)
    wanted = index.keys[index.verdicts == USABLE]
    for archive in archives:
        examples, run = read_examples([archive], rule, wanted), archive.folder.absolute().parent.name
        for key in examples.keys:
            truth = examples.truth(key)
            if truth.target.area_px:
                yield from _pairs_of(truth, run, settings, rule, int(key))
        wanted = np.setdiff1d(wanted, examples.keys)


def _pairs_of(truth: ExampleTruth, run: str, settings: DamageSettings, rule: PairRule, key: int) -> Iterator[Pair]:
    rings = tuple(rings_from_mask(truth.target.mask))
    for k in range(settings.per_example):
        whole = Pair(
            **truth.fields,
            coarse_rings=rings,
            iou=1.0,
            boundary_iou=1.0,
            run=run,
            step=-1,
            position=-1,
            index=k,
            policy_version=-1,
        )
        first = (key + k) % len(settings.kinds)
        kinds = settings.kinds[first:] + settings.kinds[:first]
        pair = _damaged_pair(whole, truth.target, kinds, rule, np.random.default_rng([rule.seed, key, k]))
        if pair.damage is not None:
            yield pair
