"""Outlines as annotators draw them around true masks: how many vertices, how tight, from where and in which order.

What an annotator chooses freely is a function of the example's id, so that it is the same in any process.
"""

import hashlib
import math
from dataclasses import replace

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from envs.geometry.contours import (
    canonical_start,
    largest_rings,
    mask_from_rings,
    outline,
    outline_to_iou,
    rings_from_mask,
    simplify,
)
from envs.geometry.curve_fit import fitted_within
from envs.geometry.curves import flattened
from envs.geometry.peucker import douglas_peucker
from envs.polygons import Ring
from rl.config.outlines import OutlineSettings

_LEAST_SHARE = 0.05
"""Rings of less than this share of the largest one are not drawn."""


def annotate(mask: NDArray[np.bool_], settings: OutlineSettings, example_id: str = "") -> list[Ring]:
    """The outline, rings [N, 2] px (x, y), that the annotator of an example would draw around `mask` [H, W]."""
    drawn = annotator_of(settings, example_id)
    rng = _own_rng(f"order of {example_id}")
    return [_ordered(ring, drawn.order, rng) for ring in _simplified(mask, drawn)]


def annotator_of(settings: OutlineSettings, example_id: str) -> OutlineSettings:
    """The settings of the one of `settings.annotators` who draws an example; where there is none, those of all."""
    if not settings.annotators:
        return settings
    rng = _own_rng(f"annotator of {example_id}")
    drawn = settings.annotators[int(rng.integers(len(settings.annotators)))]
    own = {name: value for name, value in vars(drawn).items() if value is not None}
    return replace(settings, annotators=[], **own)


def _own_rng(key: str) -> Generator:
    digest = hashlib.sha256(key.encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def _simplified(mask: NDArray[np.bool_], settings: OutlineSettings) -> list[Ring]:
    """Rings in canonical order, as few vertices as the settings say."""
    margin = settings.outline_margin * math.sqrt(mask.sum())
    loose = distance_transform_edt(~mask) <= margin if margin > 0 else mask
    if settings.simplify == "budget":
        return outline(loose, settings.max_vertices, settings.max_rings, min_share=_LEAST_SHARE)
    rings = largest_rings(rings_from_mask(loose), settings.max_rings, _LEAST_SHARE)
    if settings.simplify == "traced":
        return rings
    if settings.simplify == "chosen":
        paths = fitted_within(rings, 0.0, settings.max_vertices, degree=1)
        return [canonical_start(flattened(path, 1.0)) for path in paths]
    if settings.simplify == "douglas_peucker":
        rings = [douglas_peucker(ring, settings.peucker_share) for ring in rings]
    elif rings:
        rings = outline_to_iou(mask_from_rings(rings, *mask.shape), settings.min_iou, settings.max_vertices)
        rings = largest_rings(rings, settings.max_rings, 0.0)
    return rings if sum(map(len, rings)) <= settings.max_vertices else simplify(rings, settings.max_vertices)


def _ordered(ring: Ring, order: str, rng: Generator) -> Ring:
    """A ring [N, 2] in canonical order, its vertices in another."""
    if order == "counter_clockwise":
        return np.roll(ring[::-1], 1, axis=0)  # still from the same vertex
    if order == "any_start":
        return np.roll(ring, int(rng.integers(len(ring))), axis=0)
    if order == "shuffled":
        return rng.permutation(ring, axis=0)
    return ring
