"""Labels judged by what is known to be true and was hidden: for trials on annotated data, never for labelling."""

from dataclasses import replace

import numpy as np

from envs.geometry.masks import iou
from envs.geometry.rle import mask_from_rle
from rollout.label.record import LabelImage, LabelObject

TRUE_IOU = "truth.iou"
"""Number of an object: IoU with the true object of the same phrase, or else the same name, that it fits best; 0 where
the image has none."""


def judged(image: LabelImage) -> LabelImage:
    """The record with TRUE_IOU at all its objects, refused ones included, and without the truth, which is large."""
    truths = image.origin.truths
    plain = replace(image, origin=replace(image.origin, truths=None))
    if truths is None or not image.height:
        return plain
    of_phrase: dict[str, list[np.ndarray]] = {}
    for truth in truths:
        of_phrase.setdefault(truth.phrase, []).append(mask_from_rle(truth.mask, image.height, image.width))

    def known(found: LabelObject) -> LabelObject:
        if found.mask is None:
            return found
        mask = image.mask(found)
        meant = of_phrase.get(found.phrase or "", of_phrase.get(found.name, []))
        best = max((iou(mask, true) for true in meant), default=0.0)
        return replace(found, numbers={**found.numbers, TRUE_IOU: best})

    refused = [one if one.found is None else replace(one, found=known(one.found)) for one in image.refused]
    return replace(plain, objects=tuple(map(known, image.objects)), refused=tuple(refused))
