"""JSON files that are one long list, or lists by the name of a split; entries are read when they are asked for."""

from pathlib import Path
from typing import Any

import msgspec

from envs.readers._coco_json import file_bytes
from envs.readers._loose_json import json_of


def raw_lists(path: Path) -> dict[str, list[Any]]:
    """The lists of a file by name, their entries unread (see `parsed`); a list alone is told under "".

    Raises FileNotFoundError where there is no file, ValueError where it is not JSON or holds neither.
    """
    try:
        found: Any = msgspec.json.decode(file_bytes(path), type=dict[str, msgspec.Raw] | list[msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError):
        found = json_of(path)
    if isinstance(found, list):
        return {"": found}
    opened = {name: _opened(each) for name, each in found.items()} if isinstance(found, dict) else {}
    lists = {name: each for name, each in opened.items() if isinstance(each, list)}
    if not lists:
        raise ValueError(f"{path} holds neither a list nor lists by name; give the file of the data set.")
    return lists


def parsed(entry: Any) -> Any:
    """An entry of `raw_lists`; None for one that cannot be read."""
    try:
        return msgspec.json.decode(entry) if isinstance(entry, msgspec.Raw) else entry
    except msgspec.DecodeError:
        return None


def _opened(value: Any) -> Any:
    try:
        return msgspec.json.decode(value, type=list[msgspec.Raw]) if isinstance(value, msgspec.Raw) else value
    except msgspec.DecodeError:
        return None
