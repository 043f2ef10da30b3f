"""JSON files of a data set and their entries, and what is found while they are read: mistakes, told all at once, and
what a user should know of."""

import json
import re
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

_MOST_TOLD = 20
_FEW = 6

T = TypeVar("T")
P = ParamSpec("P")


class Reading:
    """Mistakes and notes, gathered while a data set is read, so that a user mends a file once and not a line a run."""

    def __init__(self) -> None:
        self._mistakes: list[str] = []
        self._missing: list[str] = []
        self.notes: dict[str, list[str]] = {}
        """What was left out, or taken as it need not be meant, by the reason; of each, which entries."""

    def mistake(self, error: ValueError | OSError) -> None:
        """Something that cannot be used as it is; `refuse` tells it."""
        told = " ".join(str(error).split("\n"))
        (self._missing if isinstance(error, FileNotFoundError) else self._mistakes).append(told)

    def tried(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """What `function` returns; None where it raises ValueError or OSError, which then is a mistake."""
        try:
            return function(*args, **kwargs)
        except (ValueError, OSError) as error:
            self.mistake(error)
            return None

    def note(self, what: str, which: object) -> None:
        """Something that is passed over or decided for the user."""
        self.notes.setdefault(what, []).append(f"{which}")

    def refuse(self) -> None:
        """Raise where there was a mistake: FileNotFoundError where only files are missing, else ValueError.

        Tells the first twenty, a line each.
        """
        found = self._mistakes + self._missing
        if not found:
            return
        text = found[0]
        if len(found) > 1:
            more = [f"and {len(found) - _MOST_TOLD:,} more"] if len(found) > _MOST_TOLD else []
            text = "\n  ".join([f"{len(found):,} mistakes in the data:", *found[:_MOST_TOLD], *more])
        raise ValueError(text) if self._mistakes else FileNotFoundError(text)


def read_json(path: str) -> Any:
    """What a JSON file holds; UTF-8, UTF-16 or UTF-32, with or without a byte order mark."""
    if not Path(path).is_file():
        what = "is a folder" if Path(path).is_dir() else "no such file"
        raise FileNotFoundError(f"{path}: {what}; check the path (relative ones start from the working folder).")
    try:
        return json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}); export it again.") from error


def field(entry: Any, key: str, kind: type, where: str) -> Any:
    """The value at `key` of an entry, of type `kind`.

    A whole number may be written as 7.0 or "7". Raises ValueError, telling `where`, for any other value.
    """
    value = entry.get(key) if isinstance(entry, dict) else entry
    number = whole(value) if kind is int else None
    value = value if number is None else number
    if not isinstance(entry, dict) or not isinstance(value, kind) or isinstance(value, bool):
        found = reprlib.repr(value)
        raise ValueError(f"{where}: `{key}` should be {kind.__name__}, found {found}; correct this entry.")
    if isinstance(value, str):
        refuse_no_text(value, f"{where}: `{key}`")
    return value


def whole(value: Any) -> int | None:
    """The whole number that 7, 7.0 or "7" say; None for anything else."""
    if isinstance(value, str) and re.fullmatch("-?[0-9]{1,18}", value):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def entries(data: Any, key: str, path: str, reading: Reading) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """(id, where, entry) of each entry of the list `key` that has an id of its own."""
    seen = set()
    for k, entry in enumerate(reading.tried(field, data, key, list, path) or ()):
        entry_id = reading.tried(field, entry, "id", int, f"{path}: {key}[{k}]")
        if entry_id in seen:
            reading.mistake(ValueError(f"{path}: {key}[{k}] has id {entry_id} a second time; ids must be unique."))
        elif entry_id is not None:
            seen.add(entry_id)
            yield entry_id, f"{path}: {key}[{k}] (id {entry_id})", entry


def told(notes: Mapping[str, Sequence[str]]) -> list[str]:
    """Notes as a sentence each, with how many entries it is about and the first of them."""
    return [f"{len(which):,} {what}: {first_few(which)}" for what, which in notes.items()]


def first_few(entries: Sequence[str]) -> str:
    """The first six entries, and how many there are beside."""
    more = f" and {len(entries) - _FEW:,} more" if len(entries) > _FEW else ""
    return f"{', '.join(entries[:_FEW])}{more}"


def refuse_no_text(text: str, what: str) -> None:
    """Raise ValueError where a str is no text: half of a surrogate pair, or (U+DC80 to U+DCFF) a byte not of UTF-8."""
    wrong = re.search("[\ud800-\udfff]", text)
    if wrong:
        raise ValueError(
            f"{what} is {text!r}, which is no text in UTF-8: character {wrong.start() + 1} is {wrong[0]!r}, "
            "half of a surrogate pair or a single byte; write it anew."
        )


def plain_text(value: Any) -> str:
    """Text about a photo that nothing depends on; "" for what is none, "?" for half a character."""
    return value.encode("utf-8", "replace").decode("utf-8") if isinstance(value, str) else ""


def licence_names(data: Any) -> dict[str, str]:
    """Names of licences by the text of their id; what is not in the usual form has no name, and harms nothing."""
    listed = data.get("licenses") if isinstance(data, dict) else None
    given = [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    return {str(entry.get("id")): _licence(entry) for entry in given}


def _licence(entry: dict[str, Any]) -> str:
    """SPDX name of a Creative Commons licence, found by its address; else the name in the file."""
    match = re.search(r"creativecommons\.org/licenses/([a-z-]+)/([0-9.]+)", str(entry.get("url")))
    return f"CC-{match[1].upper()}-{match[2]}" if match else plain_text(entry.get("name")) or "unknown"
