"""Where the errors come from: what each of their sources costs, and which kinds of objects gain by the refiner.

The sources are told apart by taking one away at a time (TITLES, NOTES); the objects by their true masks: size, thinness
and number of parts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text
from scipy.ndimage import distance_transform_edt, label
from torch import Tensor

from envs.codecs.base import AnswerCodec
from envs.example import Truth
from envs.geometry.contours import largest_rings, mask_from_rings, rings_from_mask, simplify
from envs.geometry.masks import tight_box_px
from envs.polygons import Answer, AnswerStatus, Box, Ring, bounding_box_px
from policies.crops import cut, paste
from policies.families.base import VisionTower
from policies.refiner.mask_refiner import MaskRefiner
from rl.evaluation.scores import Interval, mean_interval, score_answer
from rl.refiner.scenes import of_one_size, returned, unroll
from rl.refiner.scores import MaskScores, score_masks

TITLES = {
    "outline": "outline",
    "outline_true_box": "outline, true box",
    "refined": "refined",
    "refined_true_box": "refined, true box",
    "refined_oracle": "refined, best pass by the truth",
    "crop_bound": "bound of the crop",
    "crop_bound_true_box": "bound of the crop, true box",
    "codec_bound": "bound of the codec",
}
NOTES = {
    "outline": "the answer as it was drawn",
    "outline_true_box": "the same path, its box moved and stretched onto the truth's: what remains is the path's error",
    "refined": "what the refiner returns",
    "refined_true_box": "the outline in the true box, refined in the crop of the true box",
    "refined_oracle": "the best of the coarse mask and all passes: what a perfect prediction of IoU would return",
    "crop_bound": "the true mask, resampled to the crop around the answer and back: about the best of any refiner",
    "crop_bound_true_box": "the same, with the crop around the truth",
    "codec_bound": "the true mask, outlined within the budget of vertices, encoded and read back",
}


@dataclass(frozen=True)
class AnsweredScenes:
    """S scenes with an answer each."""

    images: Sequence[NDArray[np.uint8]]
    """RGB images [H, W, 3], of any sizes."""
    answers: Sequence[Answer]
    truths: Sequence[Truth]

    def __post_init__(self) -> None:
        """Raises ValueError where the numbers differ."""
        if not len(self.images) == len(self.answers) == len(self.truths):
            raise ValueError(
                f"{len(self.images)} images, {len(self.answers)} answers and {len(self.truths)} truths; give as many "
                "of each."
            )

    def part(self, places: Sequence[int]) -> "AnsweredScenes":
        """Some of the scenes."""
        images, answers = [self.images[k] for k in places], [self.answers[k] for k in places]
        return AnsweredScenes(images, answers, [self.truths[k] for k in places])


@dataclass(frozen=True)
class OutlineBudget:
    """What an outline may hold to be said by a codec."""

    codec: AnswerCodec
    max_vertices: int
    """Most vertices of a whole answer; its instances share them."""
    max_rings: int
    """Most rings of a whole answer; 3 * max_rings vertices or more must be allowed."""

    @classmethod
    def of(cls, codec: AnswerCodec) -> "OutlineBudget | None":
        """What the codec's settings allow; None for a codec without limits of these names."""
        limits = vars(codec)
        if not {"max_vertices", "max_rings"} <= limits.keys():
            return None
        most = int(limits["max_vertices"])
        return cls(codec, most, min(int(limits["max_rings"]), most // 3))


@dataclass(frozen=True)
class SplitRow:
    """Mean scores of the scenes with one source of error taken away."""

    giou: Interval
    boundary_iou: Interval

    @classmethod
    def of(cls, iou: NDArray[np.float64], boundary_iou: NDArray[np.float64]) -> "SplitRow":
        """Means over the scenes [S], with bootstrap intervals; raises ValueError without a scene."""
        return cls(mean_interval(iou), mean_interval(boundary_iou))


def split_errors(
    refiner: MaskRefiner, tower: VisionTower, scenes: AnsweredScenes, budget: OutlineBudget | None, batch_size: int = 64
) -> dict[str, SplitRow]:
    """A row for each of TITLES, with bootstrap intervals over scenes; raises ValueError without a scene.

    budget: None leaves the codec's bound out.
    """
    found: dict[str, list[NDArray[np.float64]]] = {name: [np.zeros((2, 0))] for name in TITLES}
    for places in of_one_size([image.shape for image in scenes.images], batch_size):
        batch = scenes.part(places)
        statuses = [answer.status for answer in batch.answers]
        for name, masks in _answer_masks(refiner, tower, batch).items():
            found[name].append(np.stack(score_masks(masks, batch.truths, statuses)))
        if budget is not None:
            said = [score_answer(codec_answer(truth, budget), truth, "") for truth in batch.truths]
            found["codec_bound"].append(np.array([[one.iou for one in said], [one.boundary_iou for one in said]]))
    if budget is None:
        del found["codec_bound"]
    return {name: SplitRow.of(*np.concatenate(parts, axis=1)) for name, parts in found.items()}


def split_dict(rows: dict[str, SplitRow]) -> dict[str, object]:
    """JSON-ready: the rows by name, plain numbers, with low and high of each under `intervals`."""
    return {
        name: {
            "giou": row.giou.value,
            "boundary_iou": row.boundary_iou.value,
            "intervals": {
                "giou": {"low": row.giou.low, "high": row.giou.high},
                "boundary_iou": {"low": row.boundary_iou.low, "high": row.boundary_iou.high},
            },
        }
        for name, row in rows.items()
    }


def split_table(rows: dict[str, SplitRow]) -> Table:
    """The rows as a table of three columns, 80 characters wide."""
    table = Table(title="Where the errors come from", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("scenes with")
    for title in ("gIoU", "boundary IoU"):
        table.add_column(title, justify="right", no_wrap=True)
    for name, row in rows.items():
        table.add_row(TITLES[name], Text(str(row.giou)), Text(str(row.boundary_iou)))
    return table


def reboxed(rings_px: Sequence[Ring], box_px: Box) -> list[Ring]:
    """Rings [N, 2] px, moved and stretched together so that their own tight box becomes `box_px`.

    A codec whose path is relative to a box would write the same path after this box. An axis along which the rings have
    no extent is only moved, middle onto middle. No ring gives none.
    """
    if not rings_px:
        return []
    x0, y0, x1, y1 = bounding_box_px(np.concatenate(rings_px))
    low, size = np.array([x0, y0]), np.array([x1 - x0, y1 - y0])
    new_low, new_size = np.array(box_px[:2]), np.array(box_px[2:]) - np.array(box_px[:2])
    scale = np.where(size > 0, new_size / np.where(size > 0, size, 1), 1)
    start = np.where(size > 0, new_low, new_low + new_size / 2)
    return [start + (ring - low) * scale for ring in rings_px]


def codec_answer(truth: Truth, budget: OutlineBudget) -> Answer:
    """The true masks, without ignored pixels, outlined within the budget, written by the codec and read back.

    Raises ValueError where the codec's own limits are below the budget.
    """
    height, width = truth.masks.shape[1:]
    masks = truth.masks if truth.ignore is None else truth.masks & ~truth.ignore
    # Where not every instance can have a ring, the largest are said.
    largest = sorted(masks[masks.any(axis=(1, 2))], key=lambda mask: -int(mask.sum()))[: budget.max_rings]
    num_rings, num_vertices = (most // max(1, len(largest)) for most in (budget.max_rings, budget.max_vertices))
    instances = [simplify(largest_rings(rings_from_mask(mask), num_rings, 0.0), num_vertices) for mask in largest]
    return budget.codec.read(budget.codec.encode(instances, height, width), height, width)


def _answer_masks(refiner: MaskRefiner, tower: VisionTower, batch: AnsweredScenes) -> dict[str, NDArray[np.bool_]]:
    """Masks [B, H, W] of every row that starts from the answers, for scenes of one image size."""
    height, width = batch.images[0].shape[:2]
    true = np.stack([truth.union for truth in batch.truths])
    outline = np.stack([mask_from_rings(answer.rings_px, height, width) for answer in batch.answers])
    in_true_box = outline.copy()
    for k, (answer, mask) in enumerate(zip(batch.answers, true, strict=True)):
        box_px = tight_box_px(mask)
        if box_px is not None:
            in_true_box[k] = mask_from_rings(reboxed(answer.rings_px, box_px), height, width)
    on_device = [torch.from_numpy(masks).to(refiner.device) for masks in (outline, in_true_box, true)]
    boxes = refiner.boxes_px(on_device[0])
    true_boxes = torch.where(on_device[2].any(dim=(1, 2))[:, None], refiner.boxes_px(on_device[2]), boxes)
    unrolled = unroll(refiner, tower, batch.images, list(outline), boxes_px=boxes)
    again = unroll(refiner, tower, batch.images, list(in_true_box), boxes_px=true_boxes)
    said = np.array([bool(answer.instances) for answer in batch.answers])[:, None, None]
    return {
        "outline": outline,
        "outline_true_box": in_true_box,
        "refined": returned(unrolled, refiner.settings.min_gain),
        "refined_true_box": returned(again, refiner.settings.min_gain),
        "refined_oracle": _best_by_truth(unrolled.masks.numpy(), batch.truths),
        "crop_bound": _through_crop(refiner, on_device[2], boxes) & said,
        "crop_bound_true_box": _through_crop(refiner, on_device[2], true_boxes) & said,
    }


def _best_by_truth(masks: NDArray[np.bool_], truths: Sequence[Truth]) -> NDArray[np.bool_]:
    """The masks [B, H, W] with the highest IoU among masks [K + 1, B, H, W]; of equals the earliest."""
    valid = [AnswerStatus.OK] * len(truths)
    ious = [score_masks(each, truths, valid)[0] for each in masks]
    return masks[np.argmax(ious, axis=0), np.arange(len(truths))]


def _through_crop(refiner: MaskRefiner, true: Tensor, boxes_px: Tensor) -> NDArray[np.bool_]:
    """True masks [B, H, W] cut to the crop of boxes [B, 4] and pasted back, as the refiner's own masks are."""
    height, width = true.shape[1:]
    crops = cut(true[:, None].float(), boxes_px, height, width, refiner.settings.crop_px)[:, 0]
    return np.asarray(paste(crops - 0.5, boxes_px, height, width).cpu().numpy())


_TOUCHING = np.ones((3, 3), np.bool_)
"""Pixels that touch at a corner are of one part."""


@dataclass(frozen=True)
class Traits:
    """One true mask, not empty."""

    size: float
    """Square root of the mask's share of the image's area: 0.25 is a square of a quarter of the image's side."""
    thinness: float
    """Square root of the mask's area over the diameter of the largest disc within: 0.89 for a disc, 1 for a square, 2
    for a bar four times as long as wide."""
    parts: int
    """Pieces that do not touch."""

    @property
    def numbers(self) -> dict[str, float]:
        """The traits by name."""
        return {"size": self.size, "thinness": self.thinness, "parts": float(self.parts)}


@dataclass(frozen=True)
class Kinds:
    """A way to tell objects apart: the kinds' names and the lower ends of all but the first."""

    title: str
    trait: str
    """Name of the trait in Traits.numbers."""
    starts: tuple[float, ...]
    """Lower ends [K - 1], rising; an object is of the last kind whose start it reaches."""
    names: tuple[str, ...]
    """Names [K] of the kinds."""


KINDS = (
    Kinds(
        "Size of the object, of the image's side",
        "size",
        (0.125, 0.25, 0.5),
        ("under 1/8", "1/8 to 1/4", "1/4 to 1/2", "1/2 or more"),
    ),
    Kinds(
        "Thinness of the object",
        "thinness",
        (1.25, 2.0),
        ("compact, as a disc or square", "longish, up to 1 to 4", "thin, over 1 to 4"),
    ),
    Kinds("Parts of the object", "parts", (2, 3), ("1", "2", "3 or more")),
)


@dataclass(frozen=True)
class KindRow:
    """The masks of one kind of object."""

    name: str
    num_masks: int
    coarse_iou: float
    """Mean IoU of the coarse masks, in 0..1."""
    refined_iou: float
    """Mean IoU of the refined masks, in 0..1."""
    gain_iou: Interval
    gain_boundary_iou: Interval


def traits(mask: NDArray[np.bool_]) -> Traits | None:
    """Traits of a true mask [H, W], or None where it is empty."""
    area_px = int(mask.sum())
    if not area_px:
        return None
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    cropped = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    # On half pixels the middle of a bar lies on a centre, be it odd or even; distances there are diameters here.
    halved = np.pad(cropped.repeat(2, axis=0).repeat(2, axis=1), 1)
    diameter_px = float(distance_transform_edt(halved).max())
    return Traits(
        size=math.sqrt(area_px / mask.size),
        thinness=math.sqrt(area_px) / diameter_px,
        parts=int(label(cropped, _TOUCHING)[1]),
    )


def gain_by_kind(scores: MaskScores, objects: Sequence[Traits | None], kinds: Kinds) -> list[KindRow]:
    """A row per kind that has a mask, in the order of `kinds`; masks without a true object (None) are left out.

    objects: [S], of the masks in `scores`.
    """
    values = [np.nan if each is None else each.numbers[kinds.trait] for each in objects]
    kind = np.where(np.isnan(values), -1, np.digitize(np.nan_to_num(values), kinds.starts))
    rows = []
    for k, name in enumerate(kinds.names):
        mine = scores.selected(kind == k)
        if len(mine):
            rows.append(
                KindRow(
                    name=name,
                    num_masks=len(mine),
                    coarse_iou=float(mine.coarse_iou.mean()),
                    refined_iou=float(mine.refined_iou.mean()),
                    gain_iou=mean_interval(mine.gain_iou),
                    gain_boundary_iou=mean_interval(mine.gain_boundary_iou),
                )
            )
    return rows
