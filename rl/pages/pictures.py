"""Pictures of answers: outlines over their images, as pixels for TensorBoard and as SVG for the pages.

SVG fills by the non-zero rule in the continuous pixel frame of envs/geometry/raster.py, so a browser shows the exact
answer.
"""

import base64
import io
import math
from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw

from envs.geometry.contours import rings_from_mask
from envs.geometry.raster import fill
from envs.geometry.vector import svg_path
from envs.polygons import Ring, flatten_rings

COLOURS = {"truth": "#2fbf71", "sft": "#f59f00", "control": "#9a7bff", "rl": "#3b9eff", "refined": "#e64fb4"}
"""Fill and outline by stage, the truth among them, as "#rrggbb"; told apart on photos, on light and on dark pages."""

_OVERLAY_MIN_SIDE_PX = 256
_EXACT_MAX_SIDE_PX = 256
_CLOSE_UP_MAX_SIDE_PX = 320
_FILL_OPACITY = 0.35


def overlay(image: NDArray[np.uint8], rings: Sequence[Ring], colour: str) -> NDArray[np.uint8]:
    """Pixel rings filled and outlined in `colour` ("#rrggbb") over a uint8 RGB image [H, W, 3].

    A small image is enlarged by a whole factor k until its longer side has 256 pixels or more.
    Returns [k * H, k * W, 3] uint8.
    """
    height, width, _ = image.shape
    scale = max(1, math.ceil(_OVERLAY_MIN_SIDE_PX / max(height, width)))
    large = image.repeat(scale, axis=0).repeat(scale, axis=1)
    if not rings:
        return large
    vertices, offsets = flatten_rings([np.asarray(ring, np.float64) * scale for ring in rings])
    inside = fill(vertices, offsets, height * scale, width * scale)
    rgb = np.array(ImageColor.getrgb(colour), np.float64)
    large[inside] = np.rint((1 - _FILL_OPACITY) * large[inside] + _FILL_OPACITY * rgb)
    picture = Image.fromarray(large)
    draw = ImageDraw.Draw(picture)
    for ring in rings:
        closed = np.concatenate([ring, ring[:1]]) * scale - 0.5  # Pillow puts whole numbers on pixel centres
        draw.line([(float(x), float(y)) for x, y in closed], fill=colour, width=2, joint="curve")
    return np.asarray(picture)


def svg_overlay(
    image: NDArray[np.uint8], rings: Sequence[Ring], colour: str, title: str, outline: Sequence[Ring] = ()
) -> str:
    """A self-contained <svg> of pixel rings filled in `colour` over a uint8 RGB image [H, W, 3], one unit per pixel.

    title: what a screen reader says and a pointer shows. outline: further rings (the truth), drawn as a dashed line.
    """
    height, width, _ = image.shape
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        f"<title>{escape(title)}</title>",
        f'<image href="{_data_uri(image)}" width="{width}" height="{height}" style="image-rendering:pixelated"/>',
    ]
    if rings:
        parts.append(
            f'<path d="{svg_path(rings)}" fill="{colour}" fill-opacity="{_FILL_OPACITY}" fill-rule="nonzero" '
            f'stroke="{colour}" stroke-width="2" stroke-linejoin="round" vector-effect="non-scaling-stroke"/>'
        )
    if outline:
        parts.append(
            f'<path d="{svg_path(outline)}" fill="none" stroke="#fff" stroke-width="1.5" stroke-dasharray="4 3" '
            'stroke-linejoin="round" vector-effect="non-scaling-stroke"/>'
        )
    return "".join([*parts, "</svg>"])


def _data_uri(image: NDArray[np.uint8]) -> str:
    """PNG, or JPEG for a photo with a side of more than 256 pixels, where a PNG would make a page of many megabytes."""
    buffer = io.BytesIO()
    kind = "png" if max(image.shape[:2]) <= _EXACT_MAX_SIDE_PX else "jpeg"
    Image.fromarray(image).save(buffer, kind, quality=88)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def png(pixels: NDArray[np.uint8] | NDArray[np.bool_]) -> bytes:
    """A PNG file of an RGB image [H, W, 3] uint8, or of a mask [H, W] bool as grey, 255 inside and 0 outside."""
    buffer = io.BytesIO()
    values = pixels.astype(np.uint8) * 255 if pixels.dtype == np.bool_ else pixels
    Image.fromarray(values).save(buffer, "png")
    return buffer.getvalue()


def close_up(
    image: NDArray[np.uint8], masks: Sequence[NDArray[np.bool_]]
) -> tuple[NDArray[np.uint8], list[list[Ring]]]:
    """The part of an RGB image [H, W, 3] around what masks [H, W] hold, and each mask's pixel-edge rings in its frame.

    All of the image where the masks are empty. A part whose longer side has over 320 pixels is scaled down to that, so
    that pages stay small; its rings are rounded to a tenth of a pixel.
    """
    drawn = np.logical_or.reduce(masks)
    window = _window_around(drawn) if drawn.any() else (slice(None), slice(None))
    part = image[window]
    scale = min(1.0, _CLOSE_UP_MAX_SIDE_PX / max(part.shape[:2]))
    if scale < 1:
        height, width = (max(1, round(side * scale)) for side in part.shape[:2])
        part = np.asarray(Image.fromarray(part).resize((width, height)))
    return part, [[np.round(ring * scale, 1) for ring in rings_from_mask(mask[window])] for mask in masks]


def _window_around(drawn: NDArray[np.bool_]) -> tuple[slice, slice]:
    """Rows and columns around the pixels of bool `drawn` [H, W], which must hold one.

    As square as the image allows, with half of the longer side to spare on every side.
    """
    spans = [np.flatnonzero(drawn.any(axis=axis)) for axis in (1, 0)]
    side = 2 * max(int(span[-1] - span[0]) + 1 for span in spans)
    window = []
    for span, length in zip(spans, drawn.shape, strict=True):
        first = max(0, min(int(span[0] + span[-1] + 1 - side) // 2, length - side))
        window.append(slice(first, min(length, first + side)))
    return window[0], window[1]
