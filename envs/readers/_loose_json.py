"""JSON as tools write it: of any encoding of Unicode, with NaN and Infinity, and values that are only maybe text."""

import json
import math
import reprlib
from pathlib import Path
from typing import Any

import msgspec

from envs.readers._coco_json import file_bytes
from envs.reading import refuse_no_text

_MOST_PX = 1e6
"""A point that is farther away is a mistake of a tool."""


def json_of(path: Path) -> Any:
    """What a JSON file holds.

    Raises FileNotFoundError where there is none, ValueError where it is not JSON.
    """
    refuse_no_text(str(path), "the path")
    data = file_bytes(path)
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    try:  # what some tools write: NaN, Infinity
        return json.loads(bytes(data))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}); export it again.") from error


def points_of(value: Any) -> list[tuple[float, float]]:
    """Points [[x, y], ...] of less than a million.

    Raises ValueError for anything else, NaN and infinite numbers among it.
    """
    if isinstance(value, list) and all(map(_is_point, value)):
        return [(float(x), float(y)) for x, y in value]
    raise ValueError(f"points {reprlib.repr(value)} are not [[x, y], ...] in finite numbers; correct them.")


def _is_point(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(map(is_coordinate, value))


def is_coordinate(value: Any) -> bool:
    """Whether a value is a finite number that a coordinate can be."""
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and abs(value) < _MOST_PX
        and not math.isnan(value)
    )


def side_of(value: Any) -> int:
    """Height or width that is recorded, pixels; 0 where it is none."""
    return int(value) if is_coordinate(value) and value >= 1 else 0
