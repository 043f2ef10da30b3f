"""What a refiner makes of pairs that it did not learn from: every pass of every mask, at the size of its image."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from envs.polygons import AnswerStatus
from policies.base import VisionFeatures, VisionTower
from policies.mask_refiner import MaskRefiner
from rl.feature_store import FeatureStore
from rl.refined_scenes import of_one_size, unroll
from rl.refiner_data import PixelPair, RefinerPairs, truth_of_pair
from rl.scores import score_mask


@dataclass(frozen=True)
class Outcomes:
    """N masks, K passes; place 0 of K + 1 is the coarse mask itself."""

    raw_iou: NDArray[np.float64]
    """[K + 1, N] as the network predicts it."""
    predicted_iou: NDArray[np.float64]
    """[K + 1, N] calibrated."""
    iou: NDArray[np.float64]
    """[K + 1, N] with the truth, ignored pixels left out."""
    boundary_iou: NDArray[np.float64]
    """[K + 1, N] likewise."""


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
    truth = truth_of_pair(pair.true, pair.counted)
    scores = [score_mask(mask, truth, AnswerStatus.OK, "") for mask in masks]
    return np.array([score.iou for score in scores]), np.array([score.boundary_iou for score in scores])
