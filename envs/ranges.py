"""What a setting may be stands on its field, and is told under the path that the user wrote.

    lr: Annotated[float, above(0)] = 1e-5
    dtype: Annotated[str, one_of("float32", "bfloat16")] = "float32"

What a file says, entries of plugins included, is checked while it is read (rl/config/load.py); dataclasses that Python
code builds are checked where `__post_init__` calls `check_ranges`, as settings of a run, codecs and algorithms do,
and rewards do not. Checks that need several fields stay in a `__post_init__`.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from envs.plugin import did_you_mean


@dataclass(frozen=True)
class Limit:
    """What one value may be: a number between bounds, or one of some names."""

    low: float = -math.inf
    """Lower bound."""
    high: float = math.inf
    """Upper bound."""
    open: bool = False
    """Whether the lower bound is out of range itself."""
    open_high: bool = False
    """Whether the upper bound is out of range itself."""
    names: tuple[Any, ...] = ()
    """Values to choose from, in place of bounds."""
    advice: str = ""
    """End of the message in place of the general one: why, or what else could be meant."""
    infinite: bool = False
    """Whether an infinite number is in range, as "no limit"."""

    def holds(self, value: Any) -> bool:
        """Whether a value of the right type is in range; None, for a setting that may be null, always is."""
        if value is None or self.names:
            return value is None or value in self.names
        if isinstance(value, float) and (math.isnan(value) or (math.isinf(value) and not self.infinite)):
            return False
        above = value > self.low if self.open else value >= self.low
        return above and (value < self.high if self.open_high else value <= self.high)

    def told(self, value: Any, path: str) -> str:
        """What is wrong with the value of the setting at `path`, and what to do."""
        if self.names:
            near = did_you_mean(str(value), [str(name) for name in self.names])
            what_to_do = f"{near} Set" if near != "." else "; set"
            return f"{path} is {value!r}{what_to_do} it to {_either(self.names)}{self.advice or '.'}"
        finite = ", and finite" if value == math.inf else ""
        return f"{path} is {value}; set it to {self._wanted}{finite}{self.advice or '.'}"

    @property
    def _wanted(self) -> str:
        low, high = str(self.low), str(self.high)
        if self.high == math.inf:
            return f"more than {low}" if self.open else f"{low} or more"
        out = [bound for bound, is_out in ((low, self.open), (high, self.open_high)) if is_out]
        return f"{low}..{high}" + (f", {' and '.join(out)} not included" if out else "")


def at_least(low: float, advice: str = "") -> Limit:
    """`low` or more, and finite."""
    return Limit(low, advice=advice)


def above(low: float, advice: str = "", infinite: bool = False) -> Limit:
    """More than `low`; finite, unless `infinite` is a way to say "no limit"."""
    return Limit(low, open=True, advice=advice, infinite=infinite)


def between(low: float, high: float, open: bool = False, open_high: bool = False, advice: str = "") -> Limit:
    """From `low` to `high`, both included unless they are said to be open."""
    return Limit(low, high, open, open_high, advice=advice)


def one_of(*names: Any, advice: str = "") -> Limit:
    """One of some names or numbers."""
    return Limit(names=names, advice=advice)


def limit_of(hint: Any) -> Limit | None:
    """The limit that stands on a type hint `Annotated[type, limit]`; None where there is none."""
    found = [each for each in get_args(hint)[1:] if isinstance(each, Limit)] if get_origin(hint) is Annotated else []
    return found[0] if found else None


def refuse_out_of_range(value: Any, limit: Limit | None, path: str) -> None:
    """Raise ValueError where the value of the setting at `path` is out of its limit."""
    if limit is not None and not limit.holds(value):
        raise ValueError(limit.told(value, path))


def check_ranges(settings: Any, where: str = "") -> None:
    """Raise ValueError at the first field out of range of a dataclass, those of nested dataclasses included.

    where: dotted path of `settings` in what the user wrote, "" at the top.
    """
    if isinstance(settings, Mapping | list | tuple):
        items = settings.items() if isinstance(settings, Mapping) else enumerate(settings)
        for key, item in items:
            check_ranges(item, f"{where}.{key}" if isinstance(settings, Mapping) else f"{where}[{key}]")
    if not dataclasses.is_dataclass(settings) or isinstance(settings, type):
        return
    values, hints = vars(settings), hints_of(type(settings))
    for field in dataclasses.fields(settings):
        if field.init and field.name in values:
            path = f"{where}.{field.name}" if where else field.name
            refuse_out_of_range(values[field.name], limit_of(hints[field.name]), path)
            check_ranges(values[field.name], path)


@cache
def hints_of(schema: type) -> dict[str, Any]:
    """Type hint of each field of a dataclass, with its limit; under a new default, the one that it inherits."""
    hints = get_type_hints(schema, include_extras=True)
    for base in schema.__mro__[1:]:
        inherited = get_type_hints(base, include_extras=True) if dataclasses.is_dataclass(base) else {}
        for name, hint in inherited.items():
            limit = limit_of(hint)
            if limit is not None and limit_of(hints[name]) is None:
                hints[name] = Annotated[hints[name], limit]
    return hints


def _either(names: tuple[Any, ...]) -> str:
    told = [str(name) for name in names]
    return told[0] if len(told) == 1 else f"{', '.join(told[:-1])} or {told[-1]}"
