"""`polytrace export pairs`: pairs of runs written for others, with a report of what was kept and why.

In order: runs opened and checked, pairs chosen, every image of theirs looked at, then their index (pairs.parquet),
shards in the format asked for, and the pages about them. Interrupted at any point, the same command goes on.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.parquet as pq
from rich.console import Console

from envs.datasets.base import Env
from rl.config.pairs import WRONG_OBJECTS, DamageSettings, PairExport, PairRule
from rl.pages.progress import bar
from rl.pairs.card import ExportReport, export_report, write_pair_page, write_report
from rl.pairs.formats import PairPictures, clear_parts, finish, write_shards
from rl.pairs.index import (
    INDEX,
    HeldOutSplit,
    PairRun,
    all_pairs,
    held_out_of,
    open_runs,
    refuse_none,
    refuse_other_images,
    training_envs,
    write_index,
)
from rl.pairs.select import Choice, Pair, choose
from rl.pairs.shortlist import HeldOut
from rl.pairs.state import ExportState, begin, new_state


@dataclass(frozen=True)
class _Part:
    """Pairs with an index, shards and a report of their own."""

    folder: Path
    rule: PairRule
    damage: DamageSettings
    state: ExportState


def export_pairs(
    run_folders: Sequence[Path], out: Path, settings: PairExport, console: Console | None = None
) -> ExportReport:
    """Write the chosen pairs of these runs to `out`, or go on with that where it was interrupted.

    Raises ValueError or FileNotFoundError, before anything is written, where a run cannot be used, `out` is not empty,
    the rule keeps no answer, or an image is gone or another one than was answered about.
    """
    console = console or Console(quiet=True)
    runs = open_runs(run_folders, settings.unfinished)
    wanted = new_state(runs, settings)
    main = _Part(out, settings.rule, settings.damage, begin(out, wanted))
    if main.state.finished:
        clear_parts(out)
        raise ValueError(f"{out} is not empty: it holds a finished export; give a new folder for the pairs.")
    parts = [main]
    if settings.wrong_objects:
        apart = out / WRONG_OBJECTS
        parts.append(_Part(apart, settings.wrong_object_rule, DamageSettings(), begin(apart, wanted)))
    envs = training_envs(runs)
    parts = _with_indices(parts, runs, settings, envs, console)
    pictures = PairPictures(envs)
    reports = [_write_part(part, settings, pictures, console) for part in reversed(parts)]
    return reports[-1]  # of the main part, which is finished last


def _with_indices(
    parts: Sequence[_Part], runs: Sequence[PairRun], settings: PairExport, envs: Mapping[str, Env], console: Console
) -> list[_Part]:
    """The parts that have a pair, each with its index; images are looked at before anything is written."""
    if all(part.state.selection for part in parts):
        return list(parts)
    held_out, splits = held_out_of(runs, settings.held_out_examples, console)
    chosen = [(part, None if part.state.selection else _chosen(runs, part, held_out, console)) for part in parts]
    main_choice = chosen[0][1]
    if main_choice is not None:
        refuse_none(main_choice, runs, settings.damage, settings.rule)
    for _, choice in chosen:
        if choice is not None:
            refuse_other_images(choice, envs, console)
    return [
        part
        if choice is None
        else _indexed(part, choice, splits, all_pairs(choice, runs, part.damage, part.rule, held_out, console))
        for part, choice in chosen
        if choice is None or len(choice) or part.damage.per_example
    ]


def _chosen(runs: Sequence[PairRun], part: _Part, held_out: HeldOut, console: Console) -> Choice:
    return choose([run.archive for run in runs], part.rule, held_out, console)


def _indexed(part: _Part, choice: Choice, splits: Sequence[HeldOutSplit], pairs: Iterable[Pair]) -> _Part:
    """Write the index of a part, and that it is whole."""
    path = part.folder / INDEX
    part.state.save(part.folder)  # from here on the folder is known as this export's
    write_index(path, pairs)
    state = replace(part.state, selection=choice.report, held_out=tuple(splits))
    state.save(part.folder)
    return replace(part, state=state)


def _write_part(part: _Part, settings: PairExport, pictures: PairPictures, console: Console) -> ExportReport:
    """Write what is missing of the shards of a part, then the pages about it."""
    folder, state = part.folder, part.state
    assert state.selection is not None
    if not state.finished:
        total = pq.read_metadata(folder / INDEX).num_rows
        left = total - state.pairs_done
        console.print(f"writing {left:,} of {total:,} pairs to {folder}", soft_wrap=True, markup=False)
        shards = write_shards(folder, pictures, settings.format, settings.shard_mb, state.shards)
        for shard in bar(shards, "shards", console):
            state = replace(state, shards=(*state.shards, shard))
            state.save(folder)
    report = export_report(folder, part.rule, settings.format, state)
    if not state.finished:
        finish(folder, settings.format, len(state.shards), {name: k for k, name in enumerate(report.licences, 1)})
        write_report(folder, report, part.rule)
        write_pair_page(folder, report, part.rule, pictures, settings.pictures)
        replace(state, finished=True).save(folder)
    clear_parts(folder)
    return report
