"""What a refiner mends of an answer, counted from the spans of outline, refined mask and truth: no bitmap is made.

A pixel that the outline C and the refined mask R both get wrong is unmended: |(C & R) - T| + |T - (C | R)| of them with
the truth T. Let M be the outline with all put right that the refiner mends, and nothing of what it spoils. In the truth
M is C | R, outside of it C & R; its wrong pixels are the unmended ones, and its IoU is |T & (C | R)| / |T | (C & R)|.

Frames: pixels, those that the target ignores left out. Letters: A answers.
"""

import numpy as np
from numpy.typing import NDArray

from envs.polygons import FlatAnswers
from envs.spans import Spans, spans_from_rings
from rewards.bands import shared_pixels, span_sums, without
from rewards.target import Target


def unmended(target: Target, outlines: FlatAnswers, refined: FlatAnswers) -> NDArray[np.float64]:
    """[A] in [0, 1]: 1 less the IoU of M, or |wrong in outline and refined mask| / |T | (C & R)|; 0 without a pixel.

    outlines, refined: A answers each, the k-th refined mask, as exact rings, made of the k-th outline. It is never more
    than 1 less the IoU of the outline, nor than 1 less that of the refined mask; where both are one, it is just that.
    """
    shares = np.zeros(outlines.num_answers)
    for a in range(outlines.num_answers):
        drawn, mended = (_counted(target, flat.part(a, a + 1)) for flat in (outlines, refined))
        outside = shared_pixels(drawn, without(mended, target.spans))
        missed = span_sums(without(without(target.spans, drawn), mended))[0]
        if target.area_px + outside:
            shares[a] = (outside + missed) / (target.area_px + outside)
    return shares


def _counted(target: Target, one: FlatAnswers) -> Spans:
    """The pixels of the only answer of `one` that count."""
    return Spans(*without(spans_from_rings(*one[:2], target.height, target.width), target.ignored))
