"""Outlines as they were drawn: rings that cross themselves, and what mending them would do to the mask."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from envs.geometry.raster import fill, fill_parts
from envs.polygons import Ring, flatten_rings, split_rings
from envs.shapes import PolygonShape


@dataclass(frozen=True)
class Crossing:
    """A ring that is no simple polygon."""

    why: str
    """What shapely says of it, with the place in pixels."""
    differs_px: int
    """Pixels in which the ring filled even-odd, as formats mean it, differs from it filled by non-zero winding."""
    mended_px: int
    """Pixels in which it differs from the ring once `make_valid` has mended it; all three by pixel centres."""

    @property
    def told(self) -> str:
        """All three in words."""
        return f"{self.why}; {self.differs_px} px otherwise by winding, {self.mended_px} px once mended"


def crossings(shape: PolygonShape, height: int, width: int) -> list[Crossing]:
    """The parts of a shape that cross themselves, over a photo of height x width pixels."""
    rings = [ring for ring in split_rings(shape.vertices, shape.offsets) if len(ring) > 2]
    if not rings:
        return []
    polygons = shapely.polygons([shapely.linearrings(np.vstack([ring, ring[:1]])) for ring in rings])
    odd = np.flatnonzero(~shapely.is_valid(polygons))
    return [_crossing(rings[k], polygons[k], height, width) for k in odd]


def _crossing(ring: Ring, polygon: shapely.Polygon, height: int, width: int) -> Crossing:
    vertices, offsets = flatten_rings([ring])
    as_read = fill_parts(vertices, offsets, height, width)
    winding = fill(vertices, offsets, height, width)
    mended = filled_polygons(shapely.make_valid(polygon), height, width)
    differs, mends = np.count_nonzero(as_read != winding), np.count_nonzero(as_read != mended)
    return Crossing(shapely.is_valid_reason(polygon), int(differs), int(mends))


def filled_polygons(geometry: shapely.Geometry, height: int, width: int) -> NDArray[np.bool_]:
    """[height, width] pixels of the polygons of a geometry, holes left out, by pixel centres."""
    mask = np.zeros((height, width), np.bool_)
    for polygon in _polygons(geometry):
        outer = _filled(polygon.exterior, height, width)
        for hole in polygon.interiors:
            outer &= ~_filled(hole, height, width)
        mask |= outer
    return mask


def _polygons(geometry: shapely.Geometry) -> Sequence[shapely.Polygon]:
    return [part for part in shapely.get_parts(geometry) if isinstance(part, shapely.Polygon)] or [
        inner
        for part in shapely.get_parts(geometry)
        for inner in shapely.get_parts(part)
        if isinstance(inner, shapely.Polygon)
    ]


def _filled(ring: shapely.LinearRing, height: int, width: int) -> NDArray[np.bool_]:
    vertices = shapely.get_coordinates(ring)[:-1]
    return fill(*flatten_rings([vertices]), height, width)
