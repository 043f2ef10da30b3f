"""`polytrace data`: look at the data of a config, and prepare it once."""

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from rl.cli.candidates import candidates
from rl.cli.options import AsJson, Config, Overrides, RunFolders

if TYPE_CHECKING:
    from collections.abc import Mapping

    from envs.pool_files import Pools
    from envs.readers.base import Findings
    from envs.shards.files import Card
    from rl.sources.difficulty import Choice, Thresholds
    from rl.sources.select import RunEnv
    from rl.sources.source import Source

data_app = typer.Typer(no_args_is_help=True, help="Look at the data of a config, and prepare it once.")
console = Console(emoji=False)

MOST_POINTS = 4096
"""Most points that `points` tries."""

Splits = Annotated[
    list[str] | None,
    typer.Option("--split", help="Only this split; may be given several times.", show_default="all of the env"),
]


Format = Annotated[str | None, typer.Option("--format", help="Reader of the files.", show_default="found by the files")]
Images = Annotated[str | None, typer.Option(help="Folder of the photos.", show_default="where the format has them")]
Against = Annotated[
    list[Path] | None,
    typer.Option(help="Data set, as files or prepared, whose held-out photos no train split may have; several times."),
]
Setting = Annotated[list[str] | None, typer.Option("--set", help="Setting of the reader, as key=value; several times.")]
PoolsOf = Annotated[
    Path | None, typer.Option(help="Candidates of the images, as `data candidates` writes them; others are left out.")
]
Processes = Annotated[int, typer.Option(min=1, help="Processes that open photos and fill masks.")]


@data_app.command()
def prepare(
    source: Annotated[Path, typer.Argument(help="Folder or file of a data set; or a config, for the env it names.")],
    out: Annotated[Path, typer.Option(help="Folder for the shards; one that was stopped goes on there.")],
    overrides: Overrides = None,
    split: Splits = None,
    embed: Annotated[
        bool, typer.Option("--embed", help="Write images into the shards, not only where their files are.")
    ] = False,
    format: Format = None,
    images: Images = None,
    name: Annotated[str | None, typer.Option(help="First part of ids.", show_default="the folder's name")] = None,
    image_side: Annotated[
        int | None, typer.Option(min=1, help="Pixels of the longer side.", show_default="as photos are")
    ] = None,
    square: Annotated[bool, typer.Option("--square", help="Pad photos with grey to squares.")] = False,
    against: Against = None,
    processes: Processes = 2,
    setting: Setting = None,
    pools: PoolsOf = None,
) -> None:
    """Write examples once, as Parquet that opens at once: `env: {name: shards, folder: OUT}`.

    They come from the files of a data set, whose format is found by itself (docs/readers.md), or from a config's env.
    Overrides are settings of the reader, or of the config. Images are referred to by file and hash; those that an env
    composes are always embedded (docs/data.md).
    """
    from envs.images import View

    refuse_out(out)
    candidates_of = _pools(pools)
    if format is None and not _is_data(source):
        if images or name or image_side or square or against:
            raise ValueError(f"{source} is a config, whose env says how images are shown; set that there.")
        _prepare_config(source, out, overrides or [], split, embed, candidates_of)
        return
    from rl.sources.leaks import HeldOut
    from rl.sources.prepare import Preparation, chosen_splits, prepare_source
    from rl.sources.source import source_of

    if square and image_side is None:
        raise ValueError("--square without --image-side would leave images of different sizes; give both.")
    found = source_of(source, format, images, [*(overrides or []), *(setting or [])])
    console.print(f"{found.format}: {found.what}", markup=False, highlight=False, soft_wrap=True)
    _tell_others(found)
    splits, how = (
        chosen_splits(found, split or []),
        Preparation(out, View(image_side, square), embed, processes, name, candidates_of),
    )
    made = prepare_source(found, splits, how, HeldOut.of(against or []), console)
    again = _check_command(source, format, images, against, [*(overrides or []), *(setting or [])])
    _tell_prepared(made, out, again)


def _tell_prepared(made: "Mapping[str, tuple[Card, Findings]]", out: Path, again: str) -> None:
    """Print what was written and what was not, and how a config opens it; again: the command that says all of it."""
    from rl.sources.prepare import env_entry, first_reasons, prepared_splits, thinned

    console.print(prepared_splits(made))
    for each, (_, findings) in made.items():
        for word, kind in (("lost", findings.lost), ("left out", findings.left_out)):
            if reasons := first_reasons(kind):
                console.print(f"{each}: {word} {reasons}", markup=False, highlight=False, soft_wrap=True)
    if any(findings.lost or findings.left_out for _, findings in made.values()):
        console.print(f"all of it: {again}", markup=False, highlight=False, soft_wrap=True)
    for line in thinned(made):
        console.print(f"[yellow]warning:[/yellow] {line}", soft_wrap=True)
    console.print(f"prepared: {out}   in a config: env: {env_entry(out)}", markup=False, soft_wrap=True)


def _tell_others(found: "Source") -> None:
    if found.others:
        told = f"other formats that know files there: {', '.join(found.others)} (--format chooses)"
        console.print(told, markup=False, highlight=False, soft_wrap=True)


def _check_command(
    source: Path, format: str | None, images: str | None, against: list[Path] | None, settings: list[str]
) -> str:
    """The `data check` of what was prepared, to be pasted into a shell."""
    words = ["polytrace", "data", "check", str(source)]
    words += ["--format", format] if format else []
    words += ["--images", images] if images else []
    words += [word for path in against or [] for word in ("--against", str(path))]
    return shlex.join(words + [word for each in settings for word in ("--set", each)])


def _is_data(source: Path) -> bool:
    """Whether a path is the files of a data set, and no config."""
    is_config = source.suffix in (".yaml", ".yml") or (source / "config.yaml").is_file()
    return source.exists() and not is_config


def _pools(path: Path | None) -> "Pools | None":
    from envs.pool_files import Pools

    return None if path is None else Pools(path)


def _prepare_config(
    source: Path, out: Path, overrides: list[str], split: list[str] | None, embed: bool, pools: "Pools | None"
) -> None:
    from rl.data import all_splits, data_config, prepared_table
    from rl.data import prepare as write

    config = source
    data = data_config(config, overrides)
    cards = write(data, split or all_splits(data), out, embed, console, pools)
    console.print(prepared_table(cards))
    console.print(f"prepared: {out}   in a config: env: {{name: shards, folder: {out}}}", markup=False, soft_wrap=True)


@data_app.command()
def check(
    paths: Annotated[list[Path], typer.Argument(help="Folders or files of data sets.")],
    split: Splits = None,
    setting: Setting = None,
    format: Format = None,
    images: Images = None,
    against: Against = None,
    processes: Processes = 2,
    quick: Annotated[bool, typer.Option("--quick", help="Read annotations only; open no photo, fill no mask.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit status 2 where anything is left out.")] = False,
    as_json: AsJson = False,
) -> None:
    """What files of a data set, or prepared examples, are, how much they hold, and what of it cannot be used, before
    anything is trained.

    Exit status 0: clean, 1: something was left out, 2: unusable.
    """
    from rl.pages.json_text import json_text
    from rl.sources.check import check_source, report_tables, unreadable_json
    from rl.sources.leaks import HeldOut
    from rl.sources.prepare import chosen_splits
    from rl.sources.prepared import check_prepared, is_prepared, refuse_reader_options
    from rl.sources.source import source_of

    held_out, status, reports = HeldOut.of(against or []), 0, []
    errors = Console(stderr=True, emoji=False)
    for path in paths:
        try:
            if format is None and is_prepared(path):
                refuse_reader_options(path, images, setting or [])
                report = check_prepared(path, split or [], held_out)
            else:
                source = source_of(path, format, images, setting or [])
                if not as_json:
                    _tell_others(source)
                quiet = errors if as_json else console
                report = check_source(source, chosen_splits(source, split or []), held_out, processes, quick, quiet)
        except (ValueError, OSError) as error:  # the others are worth a look all the same
            errors.print(f"[red]polytrace:[/red] {escape(str(error))}", soft_wrap=True)
            status = 2
            reports.append(unreadable_json(path, error))
            continue
        status = max(status, 2 if strict and report.exit_status else report.exit_status)
        reports.append(report.as_json())
        for table in () if as_json else report_tables(report):
            console.print(table)
    if as_json:
        print(json_text(reports, indent=2))
    raise typer.Exit(status)


Unreadable = Annotated[
    float | None, typer.Option(help="Largest share of unreadable answers, 0 to 1.", show_default="any")
]
Limit = Annotated[int | None, typer.Option(help="Most examples, those of the widest spread.", show_default="all")]
Seed = Annotated[int | None, typer.Option(help="Draw those of --limit by it.", show_default="the widest spread")]
Steps = Annotated[str | None, typer.Option(help="Answers of these steps: 10..20, 10.. or ..20.", show_default="all")]
EverySplit = Annotated[bool, typer.Option("--all-splits", help="Write the env's other splits too, as they are.")]


@data_app.command()
def select(
    runs: RunFolders,
    out: Annotated[Path, typer.Option(help="Folder for the shards; one that was stopped goes on there.")],
    by: Annotated[str, typer.Option(help="Number of an answer: iou, total, or reward_NAME.")] = "iou",
    min_mean: Annotated[float, typer.Option(help="Least mean over the answers; below it is too hard.")] = 0.1,
    max_mean: Annotated[float, typer.Option(help="Largest mean; above it is too easy.")] = 0.9,
    min_spread: Annotated[float, typer.Option(help="Least standard deviation over the answers.")] = 0.02,
    min_best: Annotated[float | None, typer.Option(help="Least of the best answer.", show_default="any")] = None,
    max_unreadable: Unreadable = None,
    min_answers: Annotated[int, typer.Option(help="Fewest answers.")] = 2,
    limit: Limit = None,
    seed: Seed = None,
    steps: Steps = None,
    embed: Annotated[bool, typer.Option("--embed", help="Write images into the shards.")] = False,
    every_split: EverySplit = False,
    page: Annotated[Path | None, typer.Option(help="Page (.html) of what is kept and dropped.")] = None,
    as_json: AsJson = False,
) -> None:
    """Keep the examples that sampled answers say can teach: neither always right nor never, and not all alike.

    Reads the archives of one or several runs of the same data (`polytrace sample` fills one without learning) and
    writes the kept examples as the split train of shards: `env: {name: shards, folder: OUT}` (docs/data.md).
    """
    from rl.sources.difficulty import Thresholds

    asked = Thresholds(by, min_mean, max_mean, min_spread, min_best, max_unreadable, min_answers, limit, seed)
    refuse_out(out)
    _refuse_no_page(page, "--page")
    from rl.pages.json_text import json_text
    from rl.run.folder import archived_runs
    from rl.sources.select import chosen_env, funnel_table, provenance, write_selection

    found, quiet = archived_runs(runs), Console(stderr=True) if as_json else console
    data, choice = _choice(found, asked, steps, page, quiet)
    if not as_json:
        console.print(funnel_table(choice))
    come_from = provenance(data, choice, found, steps)
    card = write_selection(chosen_env(data, choice, found, quiet), out, come_from, embed, quiet)
    if every_split:
        _prepare_other_splits(found[0], out, embed, quiet)
    if as_json:
        told = {**come_from, "quantiles": choice.quantiles(), "kept": card.num_examples, "out": f"{out}"}
        print(json_text(told, indent=2))
    quiet.print(f"selected: {out}   in a config: env: {{name: shards, folder: {out}}}", markup=False, soft_wrap=True)


def _choice(
    runs: list[Path], asked: "Thresholds", steps: str | None, page: Path | None, quiet: Console
) -> "tuple[RunEnv, Choice]":
    """The data that runs have asked, and which of it is kept; the page of it where one is asked for."""
    from rl.sources.difficulty import choose, difficulties, steps_range
    from rl.sources.select import run_env
    from rl.sources.select_page import write_selection_page

    wanted = None if steps is None else steps_range(steps)
    data = run_env(runs)
    choice = choose(difficulties(runs, asked.by, wanted, quiet), asked)
    if page is not None:
        write_selection_page(page, choice, data.env, runs, wanted, quiet)
        quiet.print(f"page: {page}", markup=False, soft_wrap=True)
    return data, choice


def refuse_out(out: Path) -> None:
    """Raise ValueError where the folder that a command writes to is a file, or nothing can be written there."""
    from rollout.disk import refuse_unwritable

    other = "give a folder, one that is new or that this command began"
    if out.is_file():
        raise ValueError(f"--out is {out}, which is a file; {other}.")
    try:
        refuse_unwritable(out / "split.json")
    except ValueError as error:
        raise ValueError(f"--out is {out}, where nothing can be written; {other}.") from error


def _prepare_other_splits(run: Path, out: Path, embed: bool, quiet: Console) -> None:
    """Write every split of a run's env but train, as it is."""
    from rl.data import all_splits, data_config, prepared_table
    from rl.data import prepare as write

    data = data_config(run / "config.yaml", [])
    others = [split for split in all_splits(data) if split != "train"]
    quiet.print(prepared_table(write(data, others, out, embed, quiet)))


def _refuse_no_page(page: Path | None, option: str) -> None:
    """Raise ValueError for what is no name of a page, or cannot be written."""
    from rollout.disk import refuse_unwritable

    if page is not None and page.suffix != ".html":
        raise ValueError(f"{page} does not end in .html; give {option} the name of a page.")
    if page is not None:
        refuse_unwritable(page)


@data_app.command()
def show(
    config: Config,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Page (.html) of numbers and pictures to write.")] = None,
    as_json: AsJson = False,
    split: Annotated[
        list[str] | None,
        typer.Option("--split", help="Only this split; may be given several times.", show_default="the config's"),
    ] = None,
    limit: Annotated[int, typer.Option(help="Most examples of a split that are looked at.")] = 256,
    pictures: Annotated[int, typer.Option(help="Most pictures of a split on the page.")] = 24,
    seed: Annotated[int, typer.Option(help="Which examples are drawn.")] = 0,
) -> None:
    """Counts, token lengths of prompts and answers, the best IoU that the codec can reach, and pictures of a sample.

    Nothing is trained and no weights are loaded: about a minute on a large data set.
    """
    from rl.data import as_json as numbers_of
    from rl.data import data_config, look_at, summary_of, summary_table, write_data_page
    from rl.pages.json_text import json_text

    if limit < 1 or pictures < 0 or seed < 0:
        raise ValueError(f"limit is {limit}, pictures {pictures}, seed {seed}; set limit to 1 or more, others to 0.")
    _refuse_no_page(out, "--out")
    data = data_config(config, overrides or [])
    quiet = Console(stderr=True) if as_json else console
    found = {name: look_at(data, name, limit, seed, quiet) for name in split or data.splits}
    summaries = {name: summary_of(*seen) for name, seen in found.items()}
    if as_json:
        print(json_text(numbers_of(summaries), indent=2))
    else:
        console.print(summary_table(summaries))
    if out is not None:
        write_data_page(out, config.stem, {name: seen[:pictures] for name, (seen, _) in found.items()}, summaries)
        quiet.print(f"page: {out}", markup=False, soft_wrap=True)


@data_app.command()
def points(
    config: Config,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Page (.html) of numbers and curves to write.")] = None,
    as_json: AsJson = False,
    split: Annotated[str, typer.Option(help="Split that is looked at.")] = "train",
    budgets: Annotated[
        str, typer.Option("--points", help="Most points of an answer, several numbers.")
    ] = "6,8,12,16,24,32,48",
    limit: Annotated[int, typer.Option(help="Most examples that are looked at.", min=1)] = 200,
    seed: Annotated[int, typer.Option(help="Which examples are drawn.", min=0)] = 0,
) -> None:
    """How near outlines of few points come to the masks, and how many words they take: polygons and curves.

    Tells how many vertices are worth teaching, before anything is trained.
    """
    from rl import points as looked_at
    from rl.data import data_config
    from rl.pages.json_text import json_text

    numbers = [word.strip() for word in budgets.split(",")]
    if not all(word.isascii() and word.isdigit() and 3 <= int(word) <= MOST_POINTS for word in numbers):
        raise ValueError(f"--points is {budgets!r}; give whole numbers of 3 to {MOST_POINTS}, such as 8,12,16.")
    _refuse_no_page(out, "--out")
    quiet = Console(stderr=True) if as_json else console
    wanted = sorted({int(word) for word in numbers})
    found = looked_at.measure(data_config(config, overrides or []), split, limit, seed, wanted, quiet)
    if as_json:
        asked = {"config": str(config), "overrides": overrides or [], "limit": limit, "seed": seed}
        print(json_text(asked | asdict(found), indent=2))
    else:
        console.print(looked_at.table(found))
    if out is not None:
        looked_at.write_points_page(out, config.stem, found)
        quiet.print(f"page: {out}", markup=False, soft_wrap=True)


data_app.command()(candidates)
