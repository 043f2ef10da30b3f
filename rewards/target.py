"""A truth made scorable: the spans of its mask, and what rewards ask of it, each computed once.

Frames: pixels, see envs/example.py. Pixels that a truth ignores count neither way: they are taken out of the true mask
here, and out of every answer in the kernels. Letters: A answers, K instances of a truth, N vertices of a ring, H W
pixels.
"""

import os
from bisect import bisect_right
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from envs.example import Truth
from envs.geometry.contours import outline_to_iou
from envs.geometry.rle import spans_from_rle
from envs.geometry.spans import Spans, mask_from_spans, spans_from_mask, spans_from_rings
from envs.polygons import Answer, Box, FlatAnswers, Ring, flat_answers
from rewards.kernels import overlap as kernels
from rewards.kernels.bands import eroded, shared_pixels, span_sums, united, without
from rewards.kernels.chains import SpanTable, span_table

_VERTICES_A_THREAD = 1 << 16
"""Fewer, and starting a thread costs more than it saves."""


@dataclass(frozen=True)
class Overlap:
    """How each of A answers overlaps a target, in counted pixels."""

    intersection: NDArray[np.int64]
    """[A] pixels of the answer that are true."""
    area: NDArray[np.int64]
    """[A] pixels of the answer."""
    iou: NDArray[np.float64]
    """[A] intersection over union, 1 where neither has a pixel; what an answer is worth, `compare` says."""
    centroid: NDArray[np.float64]
    """[A, 2] mean (x, y) px of the answer's pixel centres, NaN where it has no pixel."""


def span_box(spans: Spans) -> Box:
    """(x0, y0, x1, y1) tightly around the pixels of spans, of which there is one or more."""
    rows = np.flatnonzero(np.diff(spans.starts))
    bounds = spans.bounds
    return float(bounds[::2].min()), float(rows[0]), float(bounds[1::2].max()), float(rows[-1] + 1)


@dataclass(frozen=True)
class Target:
    """A true mask ready to be scored against; made once a prompt, by a `from_` method. Up to 32,767 pixels a side."""

    width: int
    """W, pixels."""
    spans: Spans
    """Spans of the true pixels that count: ignored ones are already out."""
    instances: tuple[Spans, ...]
    """[K] of each instance; the mask itself where it was given as one."""
    ignore: Spans | None
    """Spans of the pixels that count neither way; None where there are none."""
    area_px: int
    """Number of true pixels."""
    centroid_px: tuple[float, float] | None
    """Mean (x, y) of the true pixel centres; None without any."""

    @classmethod
    def from_mask(cls, mask: NDArray[np.bool_], ignore: NDArray[np.bool_] | None = None) -> "Target":
        """From a bool mask [H, W], or one of numbers 0 and 1.

        Raises ValueError for other values, another number of axes, or an `ignore` of another shape.
        """
        mask, ignore = _as_bool("mask", mask), None if ignore is None else _as_bool("ignore", ignore)
        if mask.ndim != 2:
            raise ValueError(f"mask has shape {mask.shape}; give one mask [H, W], the union of all instances.")
        if ignore is not None and ignore.shape != mask.shape:
            raise ValueError(f"ignore has shape {ignore.shape}, mask {mask.shape}; both must cover the same image.")
        return cls.from_spans([_spans(mask)], None if ignore is None else _spans(ignore), *mask.shape)

    @classmethod
    def from_rle(cls, counts: str | bytes | list[int], height: int, width: int) -> "Target":
        """From COCO run lengths, compressed text or numbers; raises ValueError where they do not fit height x width."""
        counts = counts.decode("ascii") if isinstance(counts, bytes) else counts
        return cls.from_spans([spans_from_rle(counts, height, width)], None, height, width)

    @classmethod
    def from_rings(cls, rings_px: Sequence[Ring], height: int, width: int) -> "Target":
        """From rings [N, 2] px, filled together by non-zero winding; raises ValueError for another shape of ring."""
        flat = flat_answers([rings_px])
        spans = spans_from_rings(flat.vertices, flat.ring_offsets, height, width)
        return cls.from_spans([spans], None, height, width)

    @classmethod
    def from_truth(cls, truth: Truth) -> "Target":
        """From a truth: the union of its instances, without the pixels to ignore."""
        instances = [_spans(mask) for mask in truth.masks]
        return cls.from_spans(instances, None if truth.ignore is None else _spans(truth.ignore), *truth.masks.shape[1:])

    @classmethod
    def from_spans(cls, instances: Sequence[Spans], ignore: Spans | None, height: int, width: int) -> "Target":
        """From the spans of K instances and of the pixels to ignore, in an image of height x width."""
        if max(height, width) > np.iinfo(np.int16).max:
            raise ValueError(f"The image is {height} x {width} pixels; scale it down to 32,767 a side or fewer.")
        if ignore is not None:
            instances = [without(instance, ignore) for instance in instances]
        spans = Spans(np.zeros(height + 1, np.int64), np.zeros(0, np.int32))
        for k, instance in enumerate(instances):
            spans = united(spans, instance) if k else instance
        area, twice_x, twice_y = span_sums(spans)
        centroid = (twice_x / 2 / area, twice_y / 2 / area) if area else None
        return cls(width, spans, tuple(instances), ignore, area, centroid)

    @property
    def height(self) -> int:
        """H, pixels."""
        return len(self.spans.starts) - 1

    @property
    def num_instances(self) -> int:
        """K."""
        return len(self.instances)

    @cached_property
    def mask(self) -> NDArray[np.bool_]:
        """[H, W] the true pixels, not to be written to: other rewards read them too."""
        mask = np.asarray(mask_from_spans(self.spans, self.height, self.width))
        mask.flags.writeable = False
        return mask

    @cached_property
    def box_px(self) -> Box | None:
        """(x0, y0, x1, y1) tightly around the true pixels; None without any."""
        if not self.area_px:
            return None
        return span_box(self.spans)

    @cached_property
    def table(self) -> SpanTable:
        """The spans by their place in the row."""
        return SpanTable(*span_table(self.spans))

    @cached_property
    def ignored(self) -> Spans:
        """The spans to ignore, also where there are none."""
        return self.ignore or Spans(np.zeros(self.height + 1, np.int64), np.zeros(0, np.int32))

    @cached_property
    def band_px(self) -> int:
        """Width of the boundary band of the image, pixels."""
        return kernels.boundary_band_px(self.height, self.width)

    @cached_property
    def core(self) -> Spans:
        """The true pixels that are not in the boundary band."""
        return Spans(*eroded(self.spans, self.width, self.band_px))

    def contains(self, x: float, y: float) -> bool:
        """Whether the pixel under (x, y) px is true; False outside of the image."""
        if not (0 <= x < self.width and 0 <= y < self.height):
            return False
        starts, bounds = self._lists
        first = starts[int(y)]
        return (bisect_right(bounds, int(x), first, starts[int(y) + 1]) - first) % 2 == 1

    @cached_property
    def _lists(self) -> tuple[list[int], list[int]]:
        """Starts and bounds of the spans, as plain numbers: quicker one at a time."""
        return self.spans.starts.tolist(), self.spans.bounds.tolist()

    def outline_vertices(self, min_iou: float) -> int:
        """Vertices of the true outline, simplified as far as its IoU with the truth allows."""
        counts = self._outline_vertices
        if min_iou not in counts:
            counts[min_iou] = sum(len(ring) for ring in outline_to_iou(self.mask, min_iou)) if self.area_px else 0
        return counts[min_iou]

    @cached_property
    def _outline_vertices(self) -> dict[float, int]:
        return {}

    def overlap(self, answers: Sequence[Sequence[Ring]], threads: int | None = None) -> Overlap:
        """Overlap with A answers, each a list of rings [N, 2] px filled together by non-zero winding.

        Any coordinates will do, also outside the image; an edge with a non-finite end is skipped. threads: None takes
        one for every 65,536 vertices, of the processors there are. Raises ValueError for a ring of another shape.
        """
        return self.overlap_flat(flat_answers(answers), threads)

    def overlap_flat(self, flat: FlatAnswers, threads: int | None = None) -> Overlap:
        """`overlap` of flat answers."""
        if threads is None:
            threads = min(len(flat.vertices) // _VERTICES_A_THREAD, len(os.sched_getaffinity(0)))
        if threads <= 1:
            return Overlap(*self._overlap(flat))
        cuts = np.linspace(0, flat.num_answers, threads + 1).astype(int)
        with ThreadPoolExecutor(threads) as pool:
            parts = list(pool.map(self._overlap, (flat.part(a, b) for a, b in pairwise(cuts))))
        return Overlap(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))

    def _overlap(self, flat: FlatAnswers) -> tuple[NDArray, NDArray, NDArray, NDArray]:
        if self.ignore is None:
            sums = kernels.overlap(*flat, self.spans, self.table, self.width)
        else:
            sums = kernels.counted_overlap(*flat, self.spans, self.ignore, self.width)
        return kernels.ratios(sums, self.area_px)

    def boundary_iou(self, flat: FlatAnswers) -> NDArray[np.float64]:
        """[A] IoU of the boundary bands of answers and target, in [0, 1]; 1 where both are empty."""
        counts = kernels.boundary_overlap(*flat, self.spans, self.core, self.ignored, self.width, self.band_px)
        return np.divide(counts[:, 0], counts[:, 1], out=np.ones(len(counts)), where=counts[:, 1] > 0)

    def instance_iou(self, flat: FlatAnswers) -> NDArray[np.float64]:
        """[A, K] IoU of answers with each instance; 0 where neither has a pixel."""
        shared, areas = np.zeros((flat.num_answers, self.num_instances)), np.zeros((flat.num_answers, 1))
        for a in range(flat.num_answers):
            one = flat.part(a, a + 1)
            drawn = without(spans_from_rings(*one[:2], self.height, self.width), self.ignored)
            shared[a], areas[a] = [shared_pixels(drawn, instance) for instance in self.instances], span_sums(drawn)[0]
        either = areas + [span_sums(instance)[0] for instance in self.instances] - shared
        return np.divide(shared, either, out=np.zeros(shared.shape), where=either > 0)

    def instance_iou_of(self, answer: Answer) -> NDArray[np.float64]:
        """[M, K] IoU of each instance of an answer with each true one."""
        return self.instance_iou(flat_answers([instance.rings_px for instance in answer.instances]))


def _as_bool(name: str, mask: NDArray) -> NDArray[np.bool_]:
    """A mask of bool, or of whole numbers 0 and 1, as bool; ValueError for anything that would have to be guessed."""
    mask = np.asarray(mask)
    if mask.dtype == np.bool_:
        return mask
    if mask.dtype.kind in "iu" and mask.min(initial=0) >= 0 and mask.max(initial=0) <= 1:
        return mask.astype(np.bool_)
    raise ValueError(
        f"{name} is of {mask.dtype}{'' if mask.dtype.kind not in 'iuf' else f' up to {mask.max(initial=0)}'}; give a "
        "bool mask, such as probabilities > 0.5 or labels == 1."
    )


def _spans(mask: NDArray[np.bool_]) -> Spans:
    return Spans(*spans_from_mask(np.ascontiguousarray(mask, np.bool_)))
