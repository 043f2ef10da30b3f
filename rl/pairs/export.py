"""`polytrace export pairs`: pairs of runs written for others, with a report of what was kept and why.

In order: runs opened and checked, pairs chosen and indexed (rl/pairs/index.py), shards in the format asked for, and the
pages about them. How far an export has come stands in its own folder, in export.json, rewritten whole after every
shard; interrupted at any point, the same command goes on. That file holds no clock, host or path, so that an export
that was interrupted and continued is the same, byte for byte.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rich.console import Console

from rl.config.pairs import WRONG_OBJECTS, DamageSettings, PairExport, PairRule
from rl.pages.progress import bar
from rl.pairs.card import ExportReport, strata_counts, write_pair_page, write_report
from rl.pairs.formats import PairPictures, Shard, clear_parts, finish, write_shards, write_text
from rl.pairs.index import INDEX, HeldOutSplit, PairRun, PairSet, choose_pairs, open_runs, training_envs
from rl.pairs.select import SelectionReport
from rollout.disk import partial_of, refuse_unwritable

_STATE = "export.json"
_COUNTED = ["example_id", "image_sha256", "iou", "boundary_iou", "damage", "run", "licence"]


@dataclass(frozen=True)
class _State:
    """How far an export has come."""

    runs: dict[str, int]
    """Last step of each run, by name, when its pairs were chosen."""
    settings: dict[str, Any]
    """All settings, as plain values."""
    selection: SelectionReport | None = None
    """Counts of the choice; None until the index of the pairs is whole."""
    held_out: tuple[HeldOutSplit, ...] = ()
    """Splits that the pairs were kept apart from."""
    shards: tuple[Shard, ...] = ()
    finished: bool = False

    def save(self, folder: Path) -> None:
        """Write it to its folder, whole or not at all."""
        write_text(folder / _STATE, json.dumps(asdict(self), indent=2) + "\n")


@dataclass(frozen=True)
class _Part:
    """Pairs with an index, shards and a report of their own."""

    folder: Path
    pairs: PairSet
    state: _State


def export_pairs(
    run_folders: Sequence[Path], out: Path, settings: PairExport, console: Console | None = None
) -> ExportReport:
    """Write the chosen pairs of these runs to `out`, or go on with that where it was interrupted.

    Raises ValueError or FileNotFoundError, before anything is written, where a run cannot be used, `out` is not empty,
    the rule keeps no answer, or an image is gone or another one than was answered about.
    """
    console = console or Console(quiet=True)
    runs = open_runs(run_folders, settings.unfinished)
    wanted = _State({run.name: run.last_step for run in runs}, json.loads(json.dumps(asdict(settings))))
    main = _Part(out, PairSet(settings.rule, settings.damage), _begin(out, wanted))
    if main.state.finished:
        clear_parts(out)
        raise ValueError(f"{out} is not empty: it holds a finished export; give a new folder for the pairs.")
    parts = [main]
    if settings.wrong_objects:
        apart = out / WRONG_OBJECTS
        pairs = PairSet(settings.wrong_object_rule, DamageSettings(), may_be_empty=True)
        parts.append(_Part(apart, pairs, _begin(apart, wanted)))
    pictures = PairPictures(training_envs(runs))
    parts = _indexed(parts, runs, settings, pictures, console)
    reports = [_write_part(part, settings, pictures, console) for part in reversed(parts)]
    return reports[-1]  # of the main part, which is finished last


def _indexed(
    parts: Sequence[_Part], runs: Sequence[PairRun], settings: PairExport, pictures: PairPictures, console: Console
) -> list[_Part]:
    """The parts that have a pair, the main one first, each with its index."""
    done = [part for part in parts if part.state.selection is not None]
    missing = [part for part in parts if part.state.selection is None]
    if not missing:
        return done
    asked = [part.pairs for part in missing]
    found = choose_pairs(runs, asked, settings.held_out_examples, pictures.envs, console)
    for part, chosen in zip(missing, found, strict=True):
        if not chosen.empty:
            part.state.save(part.folder)  # from here on the folder is known as this export's
            chosen.write(part.folder / INDEX, console)
            state = replace(part.state, selection=chosen.choice.report, held_out=tuple(chosen.splits))
            state.save(part.folder)
            done.append(replace(part, state=state))
    return done


def _write_part(part: _Part, settings: PairExport, pictures: PairPictures, console: Console) -> ExportReport:
    """Write what is missing of the shards of a part, then the pages about it."""
    folder, state, rule = part.folder, part.state, part.pairs.rule
    if not state.finished:
        total = pq.read_metadata(folder / INDEX).num_rows
        left = total - sum(shard.pairs for shard in state.shards)
        console.print(f"writing {left:,} of {total:,} pairs to {folder}", soft_wrap=True, markup=False)
        shards = write_shards(folder, pictures, settings.format, settings.shard_mb, state.shards)
        for shard in bar(shards, "shards", console):
            state = replace(state, shards=(*state.shards, shard))
            state.save(folder)
    report = _report(folder, rule, settings.format, state)
    if not state.finished:
        finish(folder, settings.format, len(state.shards), {name: k for k, name in enumerate(report.licences, 1)})
        write_report(folder, report, rule)
        write_pair_page(folder, report, rule, pictures, settings.pictures)
        replace(state, finished=True).save(folder)
    clear_parts(folder)
    return report


def _report(folder: Path, rule: PairRule, format_name: str, state: _State) -> ExportReport:
    """Count what the index of a part holds."""
    assert state.selection is not None
    table = pq.read_table(folder / INDEX, columns=_COUNTED)
    iou, boundary_iou = table["iou"].to_numpy(), table["boundary_iou"].to_numpy()
    text = {name: table[name].to_pylist() for name in ("damage", "run", "licence")}
    return ExportReport(
        answers=state.selection.answers,
        pairs=len(table),
        examples=len(table["example_id"].unique()),
        images=len(table["image_sha256"].unique()),
        runs={name: text["run"].count(name) for name in state.runs},
        left_out=state.selection.left_out,
        strata=strata_counts(rule, iou, boundary_iou),
        mean_iou=float(iou.mean()),
        mean_boundary_iou=float(boundary_iou.mean()),
        damaged=dict(sorted(Counter(kind for kind in text["damage"] if kind is not None).items())),
        licences=dict(sorted(Counter(text["licence"]).items())),
        held_out=list(state.held_out),
        format=format_name,
        shards=len(state.shards),
    )


def _begin(folder: Path, wanted: _State) -> _State:
    """How far the export in `folder` is: `wanted` where the folder is empty or absent.

    Raises ValueError where it holds anything but an export of the same runs and settings.
    """
    refuse_unwritable(folder / _STATE)
    leftover = {partial_of(folder / _STATE)}  # of a first write that was interrupted
    if not folder.exists() or (folder.is_dir() and set(folder.iterdir()) <= leftover):
        return wanted
    if not (folder / _STATE).is_file():
        raise ValueError(f"{folder} is not empty; give a new folder for the pairs, or empty this one.")
    found = _read(folder / _STATE)
    if difference := _difference(asdict(found), asdict(wanted)):
        raise ValueError(
            f"{folder} is not empty: it holds another export: {difference}; go on with the same runs and "
            "settings where it was interrupted, or give a new folder."
        )
    return found


def _read(path: Path) -> _State:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        selection = values.pop("selection")
        shards = tuple(Shard(**shard) for shard in values.pop("shards"))
        held_out = tuple(HeldOutSplit(**split) for split in values.pop("held_out"))
        report = None if selection is None else SelectionReport(**selection)
        return _State(**values, selection=report, held_out=held_out, shards=shards)
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
