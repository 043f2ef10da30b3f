"""The refiner at work between reading an answer and scoring it: what rewards of the refined mask are measured on.

A worker holds the refiner beside its policy and hands on nothing but rings, so that no reward ever sees a model. What
it says of an answer follows from the answers of the unit alone, whichever worker has it.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from envs.geometry.contours import mask_from_rings, rings_from_mask
from envs.polygons import Answer, FlatAnswers, Ring, flat_answers
from policies.families.base import PolicyContract
from policies.refiner.mask_refiner import MaskRefiner
from policies.refiner.refining import refine_masks
from rollout.settings import RefinedSettings


class AnswerRefiner:
    """A refiner that takes answers and gives the rings of their refined masks."""

    def __init__(self, settings: RefinedSettings, policy: PolicyContract) -> None:
        """Raises FileNotFoundError or ValueError where `MaskRefiner.load` does."""
        self._refiner = MaskRefiner.load(Path(settings.refiner), policy.vision_checksum()).to(policy.device)
        self._batch_size = settings.batch_size

    def refuse_other_tower(self, policy: PolicyContract) -> None:
        """Raises ValueError where the policy's vision tower is not, to the bit, the one that the refiner knows."""
        held = policy.vision_checksum()
        if held != self._refiner.tower_checksum:
            raise ValueError(
                f"the policy's vision tower is now {held}, the refiner of `refined` was trained on features of "
                f"{self._refiner.tower_checksum}; set learner.freeze_vision to true, and give policy and refiner that "
                "belong together."
            )

    def refine(
        self, policy: PolicyContract, images: Sequence[NDArray[np.uint8]], answers: Sequence[Sequence[Answer]]
    ) -> list[FlatAnswers]:
        """For each of B images [H, W, 3], the exact rings of the refined masks of its answers, in their order.

        An answer that is not valid, or has no pixel, gets no ring.
        """
        coarse = [
            [mask_from_rings(answer.rings_px if answer.status.valid else [], *image.shape[:2]) for answer in group]
            for image, group in zip(images, answers, strict=True)
        ]
        drawn = [[mask for mask in masks if mask.any()] for masks in coarse]
        refined = refine_masks(self._refiner, policy, images, drawn, self._batch_size)
        places = [(b, k) for b, masks in enumerate(coarse) for k, mask in enumerate(masks) if mask.any()]
        rings: list[list[list[Ring]]] = [[[] for _ in group] for group in answers]
        for (b, k), fine in zip(places, (one for masks in refined for one in masks), strict=True):
            rings[b][k] = rings_from_mask(fine.mask)
        return [flat_answers(group) for group in rings]
