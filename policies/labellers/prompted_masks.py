"""The mask of each object whose box, or a point in it, is known: by SAM, SAM 2 or SAM 3.

Of transformers, SamModel, Sam2Model and Sam3TrackerModel (SAM 3's part that takes boxes and points), in float32; a
published SAM 2 or 3 is a model for video, of which that part is loaded. SAM's image processor is the one made of PIL.
Those of SAM 2 and 3 exist for torchvision alone, so their two steps, resizing and normalising by the folder's numbers,
are done here by torch.

Letters: N prompts, H x W pixels of the image, k masks that a prompt is answered with.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import Sam2Model, Sam3TrackerModel, SamModel
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

from policies.labellers.model_folder import image_settings, loaded_model, loaded_part, model_kind, refuse_no_image

_FORM = "a SAM, SAM 2 or SAM 3 in transformers' form, with its image processor"
_CLASSES: dict[str, Any] = {
    "sam": SamModel,
    "sam2": Sam2Model,
    "sam2_video": Sam2Model,
    "sam3_tracker": Sam3TrackerModel,
    "sam3_tracker_video": Sam3TrackerModel,
    "sam3_video": Sam3TrackerModel,
}
_MOST_VALUES = 2**26
"""Logits of masks at the image's size that are held at once."""


@dataclass(frozen=True)
class PromptRule:
    """How a prompt is answered."""

    best_of_several: bool = True
    """Of the masks for one prompt (three in those published) the one that foretells the highest IoU; False: the single
    mask that the model makes for prompts that leave no doubt."""
    at_once: int = 64
    """Most prompts at once."""

    def __post_init__(self) -> None:
        if self.at_once < 1:
            raise ValueError(f"at_once is {self.at_once}; set it from 1.")


class PromptedMasks:
    """A SAM, loaded; on a GPU where there is one."""

    def __init__(self, folder: Path, rule: PromptRule) -> None:
        """Raises FileNotFoundError or ValueError, in a line, where the folder has no SAM that can be loaded; nothing
        is downloaded."""
        kind = refuse_no_prompted_sam(folder)
        self._rule = rule
        self._show: Callable[[NDArray[np.uint8]], _Shown] = _Padded(folder) if kind == "sam" else _Stretched(folder)
        self._model: Any = loaded_model(_CLASSES[kind], folder, torch.float32, _FORM)

    def masks(
        self, image: NDArray[np.uint8], boxes_px: NDArray[np.float64]
    ) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        """([N, H, W], [N]) the masks in an image [H, W, 3] RGB of boxes [N, 4] (x0, y0, x1, y1) in its pixels, and the
        IoU that each foretells, about 0..1.

        The image is seen once, whatever N is; not at all if it is 0. Raises ValueError where the image is none, or
        boxes have another shape, are not finite or end before they begin.
        """
        boxes = np.asarray(boxes_px, np.float64)
        if boxes.ndim != 2 or boxes.shape[1] != 4 or not np.isfinite(boxes).all():
            raise ValueError(f"boxes have shape {boxes.shape}; give [N, 4] finite numbers (x0, y0, x1, y1) in pixels.")
        if bad := np.flatnonzero((boxes[:, 2:] < boxes[:, :2]).any(axis=1)).tolist():
            raise ValueError(
                f"box {bad[0]} is {boxes[bad[0]].tolist()}, which ends before it begins; give x0, y0 first."
            )
        return self._answers(image, boxes.reshape(-1, 2, 2), lambda some: {"input_boxes": some.flatten(2)})

    def at_points(
        self, image: NDArray[np.uint8], points_px: NDArray[np.float64]
    ) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        """([N, H, W], [N]) as `masks`, of the objects at points [N, 2] (x, y), each a prompt of its own."""
        points = np.asarray(points_px, np.float64)
        if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
            raise ValueError(f"points have shape {points.shape}; give [N, 2] finite numbers (x, y) in pixels.")
        return self._answers(image, points[:, None], lambda some: {"input_points": some})

    @torch.inference_mode()
    def _answers(
        self, image: NDArray[np.uint8], places: NDArray[np.float64], prompt: Callable[[Tensor], dict[str, Tensor]]
    ) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        """Masks and foretold IoU of places [N, points, 2] in pixels, which `prompt` names as the model takes them."""
        refuse_no_image(image)
        size = image.shape[0], image.shape[1]
        masks, scores = np.zeros((len(places), *size), np.bool_), np.zeros(len(places))
        if not len(places):
            return masks, scores
        shown = self._show(image)
        seen = self._model.get_image_embeddings(shown.pixels.to(self._model.device))
        scaled = torch.from_numpy(places * shown.scale).float().to(self._model.device)
        at_once = max(1, min(self._rule.at_once, _MOST_VALUES // (size[0] * size[1])))
        for first in range(0, len(places), at_once):
            some = slice(first, first + at_once)
            said = self._model(
                **prompt(scaled[None, some]), image_embeddings=seen, multimask_output=self._rule.best_of_several
            )
            quality, best = said.iou_scores[0].max(dim=1)
            logits = said.pred_masks[0][torch.arange(len(best), device=best.device), best]
            masks[some] = (shown.at_image_size(logits[:, None], size)[:, 0] > 0).cpu().numpy()
            scores[some] = quality.double().cpu().numpy()
        return masks, scores


def refuse_no_prompted_sam(folder: Path) -> str:
    """The type of the SAM in a folder; raises FileNotFoundError or ValueError where its files show none."""
    return model_kind(folder, tuple(_CLASSES), _FORM, reads_text=False)


@dataclass(frozen=True)
class _Shown:
    """An image as a SAM takes it."""

    pixels: Tensor
    """[1, 3, side, side] normalised"""
    scale: NDArray[np.float64]
    """[2] (x, y) pixels of the model in a pixel of the image"""
    at_image_size: Callable[[Tensor, tuple[int, int]], Tensor]
    """([n, 1, H, W]) logits [n, 1, h, w] of the model's masks at the image's size (H, W)."""


class _Padded:
    """As SAM takes an image: its longer side resized, the shorter padded."""

    def __init__(self, folder: Path) -> None:
        self._processor: Any = loaded_part(SamImageProcessorPil, folder, _FORM)

    def __call__(self, image: NDArray[np.uint8]) -> _Shown:
        shown = self._processor(images=Image.fromarray(image), return_tensors="pt")
        [inner] = shown["reshaped_input_sizes"].tolist()

        def at_image_size(logits: Tensor, size: tuple[int, int]) -> Tensor:
            [large] = self._processor.post_process_masks([logits], [size], [inner], binarize=False)
            return torch.as_tensor(large)

        return _Shown(shown["pixel_values"], np.array(inner[::-1]) / image.shape[1::-1], at_image_size)


class _Stretched:
    """As SAM 2 and 3 take an image: resized to a square, whatever its shape."""

    def __init__(self, folder: Path) -> None:
        said = image_settings(folder, _FORM)
        try:
            self._side = int(said["size"]["height"]), int(said["size"]["width"])
            self._mean, self._std = (torch.tensor(said[key]).view(1, 3, 1, 1) for key in ("image_mean", "image_std"))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"{folder}: the image processor lacks size, image_mean or image_std ({error}); give {_FORM}."
            ) from error

    def __call__(self, image: NDArray[np.uint8]) -> _Shown:
        levels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float()
        sized = torch.nn.functional.interpolate(levels, self._side, mode="bilinear", antialias=True)
        pixels = (sized.round().clamp(0, 255) / 255 - self._mean) / self._std
        return _Shown(pixels, np.array(self._side[::-1]) / image.shape[1::-1], _interpolated)


def _interpolated(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return torch.nn.functional.interpolate(logits, size, mode="bilinear", align_corners=False)
