"""Charts placed in SVG units, curves of what was logged and dots; rl/pages/templates/page_parts.j2 draws them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Tick:
    """A number on an axis."""

    at: float
    """Place along the axis, in SVG units."""
    label: str


@dataclass(frozen=True)
class PlacedCurve:
    """A named curve in the frame of its chart."""

    name: str
    points: tuple[tuple[float, float, str], ...]
    """Points in SVG units, each with what it says: (x, y, "step 10: 0.412")."""
    last: str
    """Last value, as text."""

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
    series: Mapping[str, tuple[Sequence[int], Sequence[float]]],
    width: float = 460,
    height: float = 240,
    x_name: str = "step",
) -> LineChart:
    """Place curves, each (steps, values), in one frame of width x height SVG units; empty curves are left out.

    x_name: what a step is called where a point is told of.
    """
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
            tuple((place_x(s), place_y(v), f"{x_name} {s}: {v:.4g}") for s, v in zip(*curve, strict=True)),
            _short(curve[1][-1]),
        )
        for name, curve in drawn.items()
    )
    return LineChart(
        *(width, height, left, right, top, bottom),
        x_ticks=tuple(Tick(place_x(x), f"{x:.0f}") for x in x_ticks),
        y_ticks=tuple(Tick(place_y(y), f"{y:.{_digits(y_ticks)}f}") for y in y_ticks),
        curves=curves,
    )


@dataclass(frozen=True)
class Chart:
    """Curves that share one pair of axes."""

    title: str
    y_label: str
    series: Mapping[str, tuple[Sequence[int], Sequence[float]]]
    """Curves (steps, values) by their name in the legend."""
    x_label: str = "training step"
    """What x is."""

    @property
    def placed(self) -> LineChart:
        """The curves in SVG units."""
        return line_chart(self.series, x_name=self.x_label.rpartition(" ")[2])


def chart(
    title: str, y_label: str, curves: Mapping[str, tuple[Sequence[int], Sequence[float]]], names: Mapping[str, str]
) -> Chart:
    """A chart of those of `curves` (see rl.run.metrics.read_curves) that `names` asks for.

    names: name in the legend -> name in the file. Curves that the run did not write are left out.
    """
    return Chart(title, y_label, {shown: curves[name] for shown, name in names.items() if name in curves})


@dataclass(frozen=True)
class PlacedDots:
    """Named dots, and lines across the plot area, in the frame of a chart."""

    frame: LineChart
    """Axes and dots; a curve of it is the dots of one name, and its last value their number."""
    x_lines: tuple[float, ...]
    """Places of the upright lines."""
    y_lines: tuple[float, ...]
    """Places of the level lines."""


@dataclass(frozen=True)
class Scatter:
    """Dots by two numbers; both axes hold 0, and that of x at least 0 to 1."""

    title: str
    x_label: str
    y_label: str
    dots: Mapping[str, Sequence[tuple[float, float, str]]]
    """By name in the legend: x, y, and what the dot says; drawn in this order."""
    x_lines: tuple[float, ...] = ()
    """Values of x that lines mark; those outside of the axis are left out."""
    y_lines: tuple[float, ...] = ()
    """Values of y that lines mark."""

    def placed(self, width: float = 760, height: float = 380) -> PlacedDots:
        """The dots in a frame of width x height SVG units."""
        all_dots = [dot for dots in self.dots.values() for dot in dots]
        xs = nice_ticks(min([0.0, *(x for x, _, _ in all_dots)]), max([1.0, *(x for x, _, _ in all_dots)]), 6)
        ys = nice_ticks(min([0.0, *(y for _, y, _ in all_dots)]), max([0.05, *(y for _, y, _ in all_dots)]))
        left, right, top, bottom, inset = 56.0, width - 14, 12.0, height - 38, 12.0

        def place_x(value: float) -> float:
            return left + inset + (value - xs[0]) / (xs[-1] - xs[0]) * (right - left - 2 * inset)

        def place_y(value: float) -> float:
            return bottom - (value - ys[0]) / (ys[-1] - ys[0]) * (bottom - top)

        curves = tuple(
            PlacedCurve(name, tuple((place_x(x), place_y(y), said) for x, y, said in dots), f"{len(dots):,}")
            for name, dots in self.dots.items()
        )
        frame = LineChart(
            *(width, height, left, right, top, bottom),
            x_ticks=tuple(Tick(place_x(x), f"{x:.{_digits(xs)}f}") for x in xs),
            y_ticks=tuple(Tick(place_y(y), f"{y:.{_digits(ys)}f}") for y in ys),
            curves=curves,
        )
        return PlacedDots(
            frame,
            tuple(place_x(x) for x in self.x_lines if xs[0] <= x <= xs[-1]),
            tuple(place_y(y) for y in self.y_lines if ys[0] <= y <= ys[-1]),
        )


def _digits(ticks: Sequence[float]) -> int:
    """Digits after the point that tell ticks apart."""
    return max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9))
