"""How far an export has come, in its own folder: export.json, rewritten whole after every shard.

It holds no clock, host or path, so that an export that was interrupted and continued is the same, byte for byte.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl.pairs.formats import Shard, write_text
from rl.pairs.index import HeldOutSplit, PairRun
from rl.pairs.select import SelectionReport
from rollout.disk import refuse_unwritable

STATE = "export.json"


@dataclass(frozen=True)
class ExportState:
    """What is done of one export."""

    runs: dict[str, int]
    """By name, the last step of each run when its pairs were chosen."""
    settings: dict[str, Any]
    """All settings, as plain values."""
    selection: SelectionReport | None = None
    """What was chosen; None until the index of the pairs is whole."""
    held_out: tuple[HeldOutSplit, ...] = ()
    """Against what the pairs were checked then."""
    shards: tuple[Shard, ...] = ()
    finished: bool = False

    @property
    def pairs_done(self) -> int:
        """Pairs in whole shards."""
        return sum(shard.pairs for shard in self.shards)

    def save(self, folder: Path) -> None:
        """Write it to its folder, whole or not at all."""
        write_text(folder / STATE, json.dumps(dataclasses.asdict(self), indent=2) + "\n")


def new_state(runs: Sequence[PairRun], settings: Any) -> ExportState:
    """The state of an export that has not begun; settings: a dataclass."""
    plain = json.loads(json.dumps(dataclasses.asdict(settings)))
    return ExportState({run.name: run.last_step for run in runs}, plain)


def begin(folder: Path, wanted: ExportState) -> ExportState:
    """How far the export in `folder` is: `wanted` where the folder is empty or absent.

    Raises ValueError where it holds anything but an export of the same runs and settings.
    """
    refuse_unwritable(folder / STATE)
    leftover = {f".{STATE}.partial"}  # of a first write that was interrupted
    if not folder.exists() or (folder.is_dir() and {path.name for path in folder.iterdir()} <= leftover):
        return wanted
    if not (folder / STATE).is_file():
        raise ValueError(f"{folder} is not empty; give a new folder for the pairs, or empty this one.")
    found = _read(folder / STATE)
    if difference := _difference(dataclasses.asdict(found), dataclasses.asdict(wanted)):
        raise ValueError(
            f"{folder} is not empty: it holds another export: {difference}; go on with the same runs and "
            "settings where it was interrupted, or give a new folder."
        )
    return found


def _read(path: Path) -> ExportState:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        selection = values.pop("selection")
        shards = tuple(Shard(**shard) for shard in values.pop("shards"))
        held_out = tuple(HeldOutSplit(**split) for split in values.pop("held_out"))
        report = None if selection is None else SelectionReport(**selection)
        return ExportState(**values, selection=report, held_out=held_out, shards=shards)
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not the state of an export ({error}); give a new folder for the pairs.") from error


def _difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The first thing that is not as it was, in words; "" where all is."""
    for what in ("runs", "settings"):
        before, now = _flat(found[what]), _flat(wanted[what])
        for name in sorted(before.keys() | now.keys()):
            if before.get(name) != now.get(name):
                kind = "the last step of run " if what == "runs" else ""
                return f"{kind}{name} was {before.get(name)} and is {now.get(name)}"
    return ""


def _flat(values: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{where}{name}.") if isinstance(value, dict) else {f"{where}{name}": value}
    return flat
