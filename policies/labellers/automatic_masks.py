"""Every mask that SAM sees in an image: asked at points of a grid, the sure and steady answers kept.

As its authors' generator of automatic masks does (Kirillov et al. 2023, appendix B), without crops: three masks a
point; those whose foretold IoU and whose stability, the IoU of the mask cut a little higher and a little lower, are
high enough; of masks whose boxes nearly agree the surest. Of transformers, SamModel and its image processor are used;
the pipeline `mask-generation` would need torchvision for this last step.

Letters: P points, M masks, H x W pixels of the image.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, SamModel
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

from policies.labellers.boxes import boxes_apart

_POINTS_AT_ONCE = 64
_MOST_VALUES = 2**26
"""Logits of upscaled masks that are held at once."""
_OFFSET = 1.0
"""Logits by which the two cuts of the stability lie above and below 0."""
_FORM = "SAM in transformers' form, with config.json, model.safetensors and preprocessor_config.json"


@dataclass(frozen=True)
class AutomaticRule:
    """Where SAM is asked, and which answers are kept; the numbers of SAM's own generator."""

    points: int = 32
    """Points along each side of the grid."""
    least_quality: float = 0.88
    """Least IoU that a mask foretells of itself; it must be above."""
    least_stability: float = 0.95
    """Least stability; it must be above."""
    box_iou: float = 0.7
    """IoU of boxes above which the surer mask alone is kept."""

    def __post_init__(self) -> None:
        if not 1 <= self.points <= 256 or not 0 < self.box_iou <= 1:
            raise ValueError(
                f"SAM is asked at {self.points} points along a side, and box_iou is {self.box_iou}; set the first to "
                "1..256 and the second to 0..1 (0 excluded)."
            )


class AutomaticMasks:
    """A SAM, loaded; on a GPU where there is one."""

    def __init__(self, folder: Path, rule: AutomaticRule) -> None:
        """Raises FileNotFoundError or ValueError, in a line, where the folder has no SAM that can be loaded; nothing
        is downloaded."""
        refuse_no_sam(folder)
        self._rule = rule
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            loaded: Any = SamModel.from_pretrained(folder, local_files_only=True, output_loading_info=True)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            said = " ".join(str(error).split())[:200]
            raise ValueError(f"{folder}: the weights cannot be loaded ({said}); give {_FORM}.") from error
        model, told = loaded
        if lacking := sorted(told["missing_keys"]):
            raise ValueError(f"{folder}: the weights lack {lacking[0]} and {len(lacking) - 1} more; give {_FORM}.")
        self._model = model.eval().to(self._device)
        self._processor: Any = SamImageProcessorPil.from_pretrained(folder, local_files_only=True)

    @torch.no_grad()
    def of(self, image: NDArray[np.uint8]) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        """([M, H, W], [M]) masks of an image [H, W, 3] RGB and the IoU that each foretells, the surest first."""
        shown = self._processor(images=image, return_tensors="pt")
        [shown_size] = shown["reshaped_input_sizes"].tolist()
        seen = self._model.get_image_embeddings(shown["pixel_values"].to(self._device))
        masks, scores, boxes = [], list[float](), list[NDArray[np.int64]]()
        for points in grid_points(self._rule.points, *shown_size).split(_POINTS_AT_ONCE):
            answered = self._model(
                input_points=points[None, :, None].to(self._device),
                input_labels=torch.ones(1, len(points), 1, dtype=torch.int64, device=self._device),
                image_embeddings=seen,
            )
            sure = answered.iou_scores.flatten() > self._rule.least_quality
            logits = answered.pred_masks.flatten(0, 2)[sure]
            kept, steady = self._steady(logits, (image.shape[0], image.shape[1]), shown_size)
            masks += [np.packbits(mask) for mask in kept]
            scores += answered.iou_scores.flatten()[sure].cpu().double()[steady].tolist()
            boxes += [box_of(mask) for mask in kept]
        order = boxes_apart(np.array(boxes, np.float64).reshape(-1, 4), np.array(scores), self._rule.box_iou)
        found = np.zeros((len(order), *image.shape[:2]), np.bool_)
        for mask, place in zip(found, order, strict=True):
            mask[:] = np.unpackbits(masks[place], count=mask.size).reshape(mask.shape)
        return found, np.array(scores)[order]

    def _steady(self, logits: Tensor, size: tuple[int, int], shown_size: list[int]) -> tuple[list[Any], Tensor]:
        """(masks [H, W], [M] bool) those of logits [M, h, w] that are stable at the image's size, none empty."""
        steady, kept = torch.zeros(len(logits), dtype=torch.bool), []
        at_once = max(1, _MOST_VALUES // (size[0] * size[1]))
        for first in range(0, len(logits), at_once):
            some = logits[first : first + at_once, None]
            shaped = [some.transpose(0, 1)]
            [large] = self._processor.post_process_masks(shaped, [size], [shown_size], binarize=False)
            stable = (stability(large[0]) > self._rule.least_stability) & (large[0] > 0).flatten(1).any(1)
            steady[first : first + at_once] = stable.cpu()
            kept += list((large[0][stable] > 0).cpu().numpy())
        return kept, steady


def refuse_no_sam(folder: Path) -> None:
    """Raise FileNotFoundError or ValueError where a folder has no SAM in transformers' form, by its files alone."""
    for name in ("config.json", "preprocessor_config.json"):
        if not (folder / name).is_file():
            what = f"has no {name}" if folder.is_dir() else "is no folder"
            raise FileNotFoundError(f"--sam is {folder}, which {what}; give the folder of a {_FORM}.")
    try:
        kind = AutoConfig.from_pretrained(folder, local_files_only=True).model_type
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder}/config.json cannot be read ({' '.join(str(error).split())[:200]}).") from error
    if kind != "sam":
        raise ValueError(f"--sam is {folder}, a model of type {kind}; give a {_FORM}.")
    if not any((*folder.glob("*.safetensors"), *folder.glob("*.bin"))):
        raise FileNotFoundError(f"--sam is {folder}, which has no weights; give a {_FORM}.")


def grid_points(side: int, height: int, width: int) -> Tensor:
    """[side * side, 2] (x, y) the centres of side x side cells over height x width pixels, row by row."""
    rows, columns = ((torch.arange(side) + 0.5) / side * length for length in (height, width))
    return torch.stack([columns.repeat(side), rows.repeat_interleave(side)], dim=1)


def stability(logits: Tensor) -> Tensor:
    """[M] IoU of masks of logits [M, H, W] cut at 1 and at -1; 0 where even the lower cut has no pixel."""
    high, low = ((logits > cut).flatten(1).sum(1) for cut in (_OFFSET, -_OFFSET))
    return high / low.clamp(min=1)


def box_of(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """[4] (x0, y0, x1, y1) of the first and last columns and rows of a mask [H, W] that has a pixel."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return np.array([columns[0], rows[0], columns[-1], rows[-1]])
