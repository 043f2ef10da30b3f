"""Calibration: from the IoU that a head predicts to the one that masks with that prediction have on the average.

For each of a refiner's K + 1 outputs (its input as the first pass sees it, then each pass) one monotone curve, straight
between its knots. A head is sure of itself in its own way at each pass, and the stop rule compares passes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Curve:
    """A piecewise linear map of 0..1 to itself that never falls; constant before its first knot and after its last."""

    raw: tuple[float, ...] = (0.0, 1.0)
    """Raw predicted IoU at each knot, 0..1, increasing."""
    calibrated: tuple[float, ...] = (0.0, 1.0)
    """Calibrated IoU at each knot, 0..1, nowhere falling."""

    def __post_init__(self) -> None:
        if len(self.raw) != len(self.calibrated) or not self.raw:
            raise ValueError(
                f"a curve has {len(self.raw)} raw and {len(self.calibrated)} calibrated values; give one pair per knot."
            )
        if not all(0 <= value <= 1 for value in (*self.raw, *self.calibrated)):
            raise ValueError(f"a curve runs through {self.raw} and {self.calibrated}; give values in 0..1.")
        if not all(a < b for a, b in pairwise(self.raw)) or not all(a <= b for a, b in pairwise(self.calibrated)):
            raise ValueError(
                f"a curve runs through {self.raw} and {self.calibrated}; the first must increase, the second not fall."
            )

    def __call__(self, raw_iou: Tensor) -> Tensor:
        """Calibrated IoU of raw_iou, float of any shape."""
        x, y = raw_iou.new_tensor(self.raw), raw_iou.new_tensor(self.calibrated)
        if len(x) == 1:
            return y.expand(raw_iou.shape).clone()
        held = raw_iou.clamp(x[0], x[-1])
        right = torch.searchsorted(x, held.contiguous()).clamp(1, len(x) - 1)
        share = (held - x[right - 1]) / (x[right] - x[right - 1])
        return torch.lerp(y[right - 1], y[right], share)


@dataclass(frozen=True)
class Calibration:
    """One curve for each of K + 1 outputs: [0] for the mask that comes in, [k] for the best mask of pass k."""

    curves: tuple[Curve, ...]

    @classmethod
    def identity(cls, passes: int) -> "Calibration":
        """Leaves every prediction of `passes` passes as it is."""
        return cls((Curve(),) * (passes + 1))

    def of_output(self, output: int, raw_iou: Tensor) -> Tensor:
        """Calibrated IoU of raw_iou, of any shape, all from one output: 0 the input, k pass k."""
        if not 0 <= output < len(self.curves):
            raise ValueError(
                f"the calibration has curves for {len(self.curves) - 1} passes, and pass {output} was run; calibrate "
                "the refiner again with as many passes as it runs."
            )
        return self.curves[output](raw_iou)

    def __call__(self, raw_iou: Tensor) -> Tensor:
        """Calibrated IoU [K + 1, B] of raw_iou [K + 1, B]."""
        return torch.stack([self.of_output(output, raw) for output, raw in enumerate(raw_iou)])

    def to_json(self) -> list[dict[str, list[float]]]:
        """Knots of each curve, for JSON."""
        return [{"raw": list(curve.raw), "calibrated": list(curve.calibrated)} for curve in self.curves]

    @classmethod
    def from_json(cls, curves: Sequence[dict[str, Any]]) -> "Calibration":
        """What to_json gave; ValueError where knots are no curve."""
        return cls(tuple(Curve(tuple(curve["raw"]), tuple(curve["calibrated"])) for curve in curves))
