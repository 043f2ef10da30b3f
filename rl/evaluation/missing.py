"""Where the missing IoU lies: an answer's way to the truth, one of its faults mended after the other.

    drawn        the answer as it was drawn
    box          moved and stretched so that its tight box is the truth's
    order        besides, vertices of an outline that crosses itself taken in their order around its middle
    placement    every vertex on the true outline instead, at the nearest point, in the order of that outline
    spread       as many vertices, placed on the true outline as well as simplification can
    number       the truth outlined within all that the codec allows

What a row is above the one before it is what that fault costs; what the last one lacks to 1, vertices alone cannot
give. Only scenes whose answer draws something, and that show something true, have all rows; others cost their whole
IoU as `unread` (nothing drawn, or a wrong "nothing").
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.table import Table

from envs.example import Truth
from envs.geometry.contours import outline, rings_from_mask
from envs.polygons import Answer, Box, Ring, bounding_box_px, flatten_rings
from rewards.kernels.overlap import self_crossings
from rewards.target import Target
from rl.evaluation.scores import STAGE_TITLES

FAULTS = {
    "box": "box",
    "order": "order",
    "placement": "placement of vertices",
    "spread": "spread of vertices along the outline",
    "number": "number of vertices",
    "rest": "what vertices cannot say",
    "unread": "nothing drawn where something is",
}
_ROWS = ("drawn", "box", "order", "placement", "spread", "number")
_SPARSE = 3
"""Vertices that a ring needs."""


@dataclass(frozen=True)
class Missing:
    """Mean IoU of scenes, and what each fault costs of the rest."""

    iou: float
    costs: Mapping[str, float]
    """By a key of FAULTS; with `iou` they add up to 1. Below 0 where mending a fault alone makes an answer worse."""


def missing_iou(answers: Sequence[Answer], truths: Sequence[Truth], max_vertices: int, max_rings: int) -> Missing:
    """What each fault costs, mean over the scenes that show something true. Raises ValueError where none does.

    max_vertices, max_rings: most that the codec allows.
    """
    rows, unread = [], 0
    for answer, truth in zip(answers, truths, strict=True):
        target = Target.from_truth(truth)
        if not target.area_px:
            continue
        if answer.status == "ok" and sum(map(len, answer.rings_px)) >= _SPARSE:
            rows.append(mended(answer.rings_px, target, max_vertices, max_rings))
        else:
            unread += 1
    if not rows and not unread:
        raise ValueError("no scene shows anything, so that no IoU can be missing; evaluate scenes that do.")
    total = len(rows) + unread
    sums = np.array(rows).reshape(-1, len(_ROWS)).sum(axis=0) / total
    steps = np.diff(sums, append=len(rows) / total)
    names = [name for name in FAULTS if name != "unread"]
    return Missing(float(sums[0]), dict(zip(names, steps.tolist(), strict=True)) | {"unread": unread / total})


def mended(rings_px: Sequence[Ring], target: Target, max_vertices: int, max_rings: int) -> list[float]:
    """IoU of an answer with its faults mended one after the other, in the order at the top of this file."""
    true_box = target.box_px
    assert true_box is not None
    moved = _boxed(rings_px, true_box)
    ordered = [_uncrossed(ring) for ring in moved]
    true_rings = rings_from_mask(target.mask)
    placed = [_onto(ring, true_rings) for ring in ordered if len(ring)]
    num = sum(map(len, rings_px))
    spread = outline(target.mask, max(_SPARSE * max_rings, num), max_rings)
    if sum(map(len, spread)) > num >= _SPARSE:
        spread = outline(target.mask, max(num, _SPARSE), max(1, min(max_rings, num // _SPARSE)))
    best = outline(target.mask, max_vertices, max(1, min(max_rings, max_vertices // _SPARSE)))
    return target.overlap([list(rings_px), moved, ordered, placed, spread, best]).iou.tolist()


def _boxed(rings: Sequence[Ring], box: Box) -> list[Ring]:
    """Rings moved and stretched together onto a box; along a side without extent only moved."""
    own = np.array(bounding_box_px(np.concatenate(list(rings))))
    size, to = own[2:] - own[:2], np.array(box)
    ratio = np.divide(to[2:] - to[:2], size, out=np.ones(2), where=size > 0)
    return [(ring - own[:2]) * ratio + to[:2] for ring in rings]


def _uncrossed(ring: Ring) -> Ring:
    """The ring, its vertices in their order around its middle where it crosses itself."""
    flat, offsets = flatten_rings([ring])
    if not self_crossings(flat, offsets, np.array([0, 1]))[0]:
        return ring
    middle = ring - ring.mean(axis=0)
    return ring[np.argsort(np.arctan2(middle[:, 1], middle[:, 0]), kind="stable")]


def _onto(ring: Ring, true_rings: Sequence[Ring]) -> Ring:
    """The nearest point of the nearest true ring for each vertex, in the order of that ring's own vertices."""
    found = [_nearest(ring, true) for true in true_rings]
    best = int(np.argmin([distance.mean() for distance, _, _ in found]))
    _, places, points = found[best]
    return points[np.argsort(places, kind="stable")]


def _nearest(ring: Ring, true: Ring) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """([N] distances px, [N] places along the true ring in edges, [N, 2] points) nearest to each vertex of a ring."""
    step = np.roll(true, -1, axis=0) - true
    along = ((ring[:, None] - true) * step).sum(-1) / np.maximum((step**2).sum(-1), 1e-12)
    along = along.clip(0, 1)
    points = true + along[..., None] * step
    distances = np.linalg.norm(points - ring[:, None], axis=-1)
    edge = distances.argmin(axis=1)
    rows = np.arange(len(ring))
    return distances[rows, edge], edge + along[rows, edge], points[rows, edge]


def missing_table(stages: Mapping[str, Missing]) -> Table:
    """What each fault costs, a column a stage."""
    made = Table(title="Where the missing IoU lies", box=SIMPLE_HEAD, pad_edge=False)
    made.add_column("")
    for stage in stages:
        made.add_column(STAGE_TITLES.get(stage, stage), justify="right", no_wrap=True)
    made.add_row("mean IoU, of scenes that show something", *(f"{one.iou:.3f}" for one in stages.values()))
    for name, title in FAULTS.items():
        made.add_row(f"lost by: {title}", *(f"{one.costs[name]:.3f}" for one in stages.values()))
    return made


def missing_dict(stages: Mapping[str, Missing]) -> dict[str, object]:
    """JSON-ready: by stage, `iou` and the costs by name."""
    return {stage: {"iou": one.iou} | dict(one.costs) for stage, one in stages.items()}
