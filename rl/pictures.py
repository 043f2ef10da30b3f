"""Pictures of answers and curves: overlays as pixels for TensorBoard, overlays and line charts as SVG for the report.

SVG fills by the non-zero rule in the continuous pixel frame of envs/raster.py, so a browser shows the exact answer.
"""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw

from envs.polygons import Ring, flatten_rings
from envs.raster import fill

COLOURS = {"truth": "#2fbf71", "sft": "#f59f00", "rl": "#3b9eff", "refined": "#e64fb4"}
"""Fill and outline by stage, the truth among them, as "#rrggbb"; told apart on photos, on light and on dark pages."""

_OVERLAY_MIN_SIDE_PX = 256
_EXACT_MAX_SIDE_PX = 256
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


def svg_path(rings: Sequence[Ring]) -> str:
    """Rings as the `d` attribute of an SVG path, "M1 2L3 4L5 6Z" a ring; every number reads back to the last bit."""
    return "".join(
        "M" + "L".join(f"{_number(x)} {_number(y)}" for x, y in np.asarray(ring, np.float64)) + "Z" for ring in rings
    )


def _number(value: float) -> str:
    return np.format_float_positional(value, trim="-")


def svg_overlay(
    image: NDArray[np.uint8], rings: Sequence[Ring], colour: str, title: str, outline: Sequence[Ring] = ()
) -> str:
    """A self-contained <svg> of pixel rings filled in `colour` over a uint8 RGB image [H, W, 3], one unit a pixel.

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
    """PNG, or JPEG for a photo of more than 256 pixels a side, where a PNG would make a page of many megabytes."""
    buffer = io.BytesIO()
    kind = "png" if max(image.shape[:2]) <= _EXACT_MAX_SIDE_PX else "jpeg"
    Image.fromarray(image).save(buffer, kind, quality=88)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def window_around(drawn: NDArray[np.bool_]) -> tuple[slice, slice]:
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


@dataclass(frozen=True)
class Tick:
    """A number on an axis."""

    at: float
    """Place along the axis, SVG units."""
    label: str


@dataclass(frozen=True)
class PlacedCurve:
    """A named curve in the frame of its chart."""

    name: str
    points: tuple[tuple[float, float, str], ...]
    """(x, y, "step 10: 0.412") each, SVG units."""
    last: str
    """The last value as text."""

    @property
    def path(self) -> str:
        """`d` attribute of the curve."""
        return "M" + "L".join(f"{x:.2f} {y:.2f}" for x, y, _ in self.points)


@dataclass(frozen=True)
class LineChart:
    """Geometry of a line chart in SVG units, y down; the plot area spans [left, right] x [top, bottom]."""

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    curves: tuple[PlacedCurve, ...]


def nice_ticks(low: float, high: float, num: int = 5) -> list[float]:
    """About `num` round numbers that enclose `low` and `high`, 1, 2 or 5 times a power of ten apart."""
    span = high - low if high > low else max(abs(low), 1.0)
    raw = span / max(num - 1, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    gap = next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / gap + 1e-9), math.ceil(high / gap - 1e-9)
    return [k * gap for k in range(first, max(last, first + 1) + 1)]


def _short(value: float) -> str:
    return f"{value:.3f}" if value == 0 or 1e-2 <= abs(value) < 1e3 else f"{value:.3g}"


def line_chart(
    series: Mapping[str, tuple[Sequence[int], Sequence[float]]], width: float = 460, height: float = 240
) -> LineChart:
    """Place curves, each (steps, values), in one frame of width x height SVG units; empty curves are left out."""
    drawn = {name: curve for name, curve in series.items() if len(curve[0])}
    steps = [step for curve in drawn.values() for step in curve[0]] or [0, 1]
    values = [value for curve in drawn.values() for value in curve[1]] or [0.0, 1.0]
    x_low, x_high = min(steps), max(max(steps), min(steps) + 1)
    x_ticks = [x for x in nice_ticks(x_low, x_high, 8) if float(x).is_integer() and x_low <= x <= x_high]
    y_ticks = nice_ticks(min(values), max(values))
    left, right, top, bottom = 56.0, width - 14, 12.0, height - 34

    def place_x(step: float) -> float:
        return left + (step - x_low) / (x_high - x_low) * (right - left)

    def place_y(value: float) -> float:
        return bottom - (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (bottom - top)

    curves = tuple(
        PlacedCurve(
            name,
            tuple((place_x(s), place_y(v), f"step {s}: {v:.4g}") for s, v in zip(*curve, strict=True)),
            _short(curve[1][-1]),
        )
        for name, curve in drawn.items()
    )
    digits = max(0, -math.floor(math.log10(y_ticks[1] - y_ticks[0]) + 1e-9))
    return LineChart(
        *(width, height, left, right, top, bottom),
        x_ticks=tuple(Tick(place_x(x), f"{x:.0f}") for x in x_ticks),
        y_ticks=tuple(Tick(place_y(y), f"{y:.{digits}f}") for y in y_ticks),
        curves=curves,
    )
