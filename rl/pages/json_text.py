"""JSON that every reader takes: without the NaN and Infinity that Python would write, which are none."""

import json
import math
from collections.abc import Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID


def json_text(value: Any, indent: int | None = None) -> str:
    """`value` as JSON by RFC 8259; see `json_value`. Raises TypeError for an object that it does not know."""
    return json.dumps(json_value(value), indent=indent, allow_nan=False)


def json_value(value: Any) -> Any:
    """`value` as JSON has it: null for each number that is not finite, however deep it lies, and keys that are text.

    Decimals are numbers, bytes hexadecimal; dates, times, spans of time and UUIDs are text.
    """
    if isinstance(value, Mapping):
        return {key if isinstance(key, str) else _text(key): json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    if isinstance(value, Decimal):
        whole = value.is_finite() and value == value.to_integral_value()
        return int(value) if whole else float(value) if value.is_finite() else None
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return _text(value) if isinstance(value, bytes | date | time | timedelta | UUID) else value


def _text(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)
