"""Coarse masks refined and scored: those of whole scenes as they are returned, and every pass over pairs of an index.

Scenes hold greedy answers on held-out scenes, pairs, or true masks damaged.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.datasets.base import Env
from envs.example import Truth
from envs.geometry.contours import mask_from_rings
from envs.geometry.damage import DAMAGES, damaged
from envs.geometry.masks import places_by_size, reaches_iou
from envs.polygons import AnswerStatus
from policies.families.base import VisionFeatures, VisionTower
from policies.heads.base import Unrolled
from policies.refiner.mask_refiner import MaskRefiner, chosen_pass
from policies.refiner.refining import crop_features
from rewards.score import Target
from rl.refiner.data import FeatureStore, PixelPair, RefinerPairs, truth_of_pair
from rl.refiner.scores import MaskScores, joined, score_masks, score_unrolled
from rollout.records import Group

_AT_ONCE = 64
_STRENGTHS = (0.2, 0.8)
"""Range of the damage done to true masks: from hardly seen to the outline of a poor annotator."""
_LEAST_IOU = 0.3
"""IoU that a damaged mask keeps; below it another object would have been drawn, as by PairRule.min_iou."""


@dataclass(frozen=True)
class CoarseScenes:
    """S scenes with a coarse mask each."""

    images: Sequence[NDArray[np.uint8]]
    """RGB images [H, W, 3], of any sizes."""
    coarse: Sequence[NDArray[np.bool_]]
    """Coarse masks [H, W]."""
    truths: Sequence[Truth]
    statuses: Sequence[AnswerStatus]
    """Statuses of the answers: how they read."""
    prompts: Sequence[str]
    example_ids: Sequence[str]

    @classmethod
    def of_groups(cls, env: Env, groups: Sequence[Group]) -> "CoarseScenes":
        """The first answer of each group."""
        answers = [group.rollouts[0].answer for group in groups]
        refs = [group.example.image for group in groups]
        coarse = [mask_from_rings(a.rings_px, ref.height, ref.width) for a, ref in zip(answers, refs, strict=True)]
        return cls(
            [env.image(ref) for ref in refs],
            coarse,
            [group.example.truth for group in groups],
            [answer.status for answer in answers],
            [group.example.prompt.told for group in groups],
            [group.example.id for group in groups],
        )

    @classmethod
    def of_pairs(cls, pairs: RefinerPairs, numbers: Sequence[int]) -> "CoarseScenes":
        """Some pairs of an index."""
        pixels, rows = [pairs.pixels(number) for number in numbers], [pairs.row(number) for number in numbers]
        return cls(
            [pair.image for pair in pixels],
            [pair.coarse for pair in pixels],
            [truth_of_pair(pair.true, pair.counted) for pair in pixels],
            [AnswerStatus.OK] * len(pixels),
            [row["prompt"] for row in rows],
            [row["example_id"] for row in rows],
        )

    @classmethod
    def of_damage(cls, env: Env, num: int, seed: int) -> "CoarseScenes":
        """`num` true masks, damaged: of the first examples that have one, and where those are fewer, of each several
        times, every time in another way as far as there are."""
        examples = (env[k] for k in range(len(env)))
        held = list(islice((example for example in examples if Target.from_truth(example.truth).area_px), num))
        turns = [divmod(k, len(held)) for k in range(num)] if held else []
        chosen, coarse = [held[which] for _, which in turns], []
        for k, (turn, which) in enumerate(turns):
            kind = DAMAGES[(which + turn) % len(DAMAGES)]
            coarse.append(_damaged(held[which].truth.union, kind, np.random.default_rng([seed, k])))
        return cls(
            [env.image(example.image) for example in chosen],
            coarse,
            [example.truth for example in chosen],
            [AnswerStatus.OK] * len(chosen),
            [example.prompt.told for example in chosen],
            [example.id for example in chosen],
        )

    def part(self, places: Sequence[int]) -> "CoarseScenes":
        """Some of the scenes."""
        return CoarseScenes(
            [self.images[k] for k in places],
            [self.coarse[k] for k in places],
            [self.truths[k] for k in places],
            [self.statuses[k] for k in places],
            [self.prompts[k] for k in places],
            [self.example_ids[k] for k in places],
        )


def _damaged(mask: NDArray[np.bool_], kind: str, rng: np.random.Generator) -> NDArray[np.bool_]:
    """A true mask [H, W], damaged, but no more than leaves _LEAST_IOU of it; as it is where nothing else does."""
    for strength in rng.uniform(*_STRENGTHS) * 0.7 ** np.arange(8):
        found = damaged(mask, kind, float(strength), rng)
        if reaches_iou(found, mask, _LEAST_IOU):
            return found
    return mask


def refine_scenes(
    refiner: MaskRefiner, tower: VisionTower, scenes: CoarseScenes
) -> tuple[list[NDArray[np.bool_]], MaskScores]:
    """(refined masks [H, W], their scores) of S scenes, in their order."""
    masks: list[NDArray[np.bool_]] = list(scenes.coarse)
    parts, order = [], list[int]()
    for places in of_one_size([mask.shape for mask in scenes.coarse]):
        some = scenes.part(places)
        unrolled = unroll(refiner, tower, some.images, some.coarse)
        for place, mask in zip(places, returned(unrolled, refiner.settings.min_gain), strict=True):
            masks[place] = mask
        parts.append(score_unrolled(unrolled, refiner.settings.min_gain, some.truths, some.statuses))
        order += places
    return masks, joined(parts).selected(np.argsort(order))


def unroll(
    refiner: MaskRefiner,
    tower: VisionTower,
    images: Sequence[NDArray[np.uint8]],
    coarse: Sequence[NDArray[np.bool_]],
    features: VisionFeatures | None = None,
    boxes_px: Tensor | None = None,
) -> Unrolled:
    """Every pass over coarse masks [H, W] of images of one size, on the CPU.

    features: of the whole images where they are at hand; else they are computed.
    """
    device = refiner.device
    pixels, masks = (torch.from_numpy(np.stack(column)).to(device) for column in (images, coarse))
    boxes = refiner.boxes_px(masks) if boxes_px is None else boxes_px
    if refiner.settings.features == "crop":
        features = crop_features(refiner, tower, pixels, boxes)
    elif features is None:
        features = tower.vision_features(images, refiner.settings.early_block)
    moved = VisionFeatures(features.final.to(device), features.early.to(device))
    unrolled = refiner.unroll(pixels, moved, masks, boxes)
    return Unrolled(unrolled.masks.cpu(), unrolled.predicted_iou.cpu(), unrolled.raw_iou.cpu())


def returned(unrolled: Unrolled, min_gain: float) -> NDArray[np.bool_]:
    """[B, H, W] the masks that the stop rule returns."""
    taken, _ = chosen_pass(unrolled.predicted_iou, min_gain)
    masks: NDArray[np.bool_] = unrolled.masks[taken, torch.arange(len(taken))].numpy()
    return masks


def of_one_size(sizes: Sequence[tuple[int, ...]], at_once: int = _AT_ONCE) -> Iterator[list[int]]:
    """Places of images of one size, at most `at_once` of them."""
    for same in places_by_size(sizes):
        for first in range(0, len(same), at_once):
            yield same[first : first + at_once]


@dataclass(frozen=True)
class Outcomes:
    """N masks, K passes; place 0 of K + 1 is the coarse mask itself."""

    raw_iou: NDArray[np.float64]
    """IoU [K + 1, N] as the network predicts it."""
    predicted_iou: NDArray[np.float64]
    """Predicted IoU [K + 1, N], calibrated."""
    iou: NDArray[np.float64]
    """IoU [K + 1, N] with the truth, ignored pixels left out."""
    boundary_iou: NDArray[np.float64]
    """Boundary IoU [K + 1, N] with the truth, ignored pixels left out."""


def outcomes(
    refiner: MaskRefiner, tower: VisionTower, store: FeatureStore, pairs: RefinerPairs, numbers: Sequence[int]
) -> Outcomes:
    """Every pass over these pairs of an index."""
    found = Outcomes(*np.zeros((4, refiner.settings.passes + 1, len(numbers))))
    for places in of_one_size(pairs.sizes(numbers)):
        chosen = [numbers[place] for place in places]
        pixels = [pairs.pixels(number) for number in chosen]
        features = kept_features(refiner, store, pairs, chosen)
        images, coarse = [pair.image for pair in pixels], [pair.coarse for pair in pixels]
        unrolled = unroll(refiner, tower, images, coarse, features)
        found.raw_iou[:, places] = unrolled.raw_iou.numpy()
        found.predicted_iou[:, places] = unrolled.predicted_iou.numpy()
        for k, pair in enumerate(pixels):
            iou, band = pass_scores(unrolled.masks[:, k].numpy(), pair)
            found.iou[:, places[k]], found.boundary_iou[:, places[k]] = iou, band
    return found


def kept_features(
    refiner: MaskRefiner, store: FeatureStore, pairs: RefinerPairs, numbers: Sequence[int]
) -> VisionFeatures | None:
    """Features of the pairs' images as they are kept; None where crops are encoded, whose boxes were moved there."""
    if refiner.settings.features == "crop":
        return None
    found = [store.read(pairs.feature_path(store, number)) for number in numbers]
    return VisionFeatures(torch.cat([one.final for one in found]), torch.cat([one.early for one in found]))


def pass_scores(masks: NDArray[np.bool_], pair: PixelPair) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(IoU, Boundary IoU) [K + 1] of masks [K + 1, H, W] with the truth of a pair, over the pixels that count."""
    num = len(masks)
    return score_masks(masks, [truth_of_pair(pair.true, pair.counted)] * num, [AnswerStatus.OK] * num)
