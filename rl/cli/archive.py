"""`polytrace archive`: look into the archives of runs, check them, merge their shards."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from rl.cli.options import AsJson, RunFolder, RunFolders, run_folder
from rl.pages.json_text import json_text

archive_app = typer.Typer(no_args_is_help=True, help="Look into the archives of runs, check them, merge their shards.")
console = Console(emoji=False)


@archive_app.command("ls")
def list_archives(runs: RunFolders, as_json: AsJson = False) -> None:
    """Steps, answers, examples, mean IoU, share of valid answers, size and schema of each run's archive."""
    from rl.browse.list import list_runs, table
    from rl.run.folder import archived_runs

    found = list_runs(archived_runs(runs), Console(stderr=True))
    if as_json:
        print(json_text([asdict(one) for one in found], indent=2))
    else:
        console.print(table(found))


@archive_app.command()
def show(
    run: RunFolder,
    out: Annotated[
        Path, typer.Option(help="A page (.html) or a picture (.png) to write; a folder that is missing is made.")
    ] = Path("answers.html"),
    step: Annotated[int | None, typer.Option(help="Only answers of this step.")] = None,
    position: Annotated[int | None, typer.Option(help="Only of the group at this position of its step.")] = None,
    example: Annotated[str | None, typer.Option(help="Only to this example, by its id.")] = None,
    status: Annotated[str | None, typer.Option(help="Only of this status: ok, empty, unparsable, ...")] = None,
    worst: Annotated[int | None, typer.Option(help="So many of the lowest IoU.")] = None,
    best: Annotated[int | None, typer.Option(help="So many of the highest IoU.")] = None,
    limit: Annotated[int, typer.Option(help="Most that are shown, without --worst and --best.")] = 64,
) -> None:
    """Draw answers over their images, the truth dashed, with IoU and reward terms; by default the last step's."""
    from rl.browse.page import SPELLED, is_spelled, write_shown
    from rl.browse.show import Wanted, choose
    from rollout.disk import refuse_unwritable

    wanted = Wanted(step, position, example, status, worst, best, limit)
    if out.suffix not in (".html", ".png"):
        raise ValueError(f"{out} ends in neither .html nor .png; give --out one of these.")
    refuse_unwritable(out)
    shown = choose(run_folder(run), wanted)
    for problem in shown.problems:
        console.print(f"[yellow]over grey, without its image:[/yellow] {escape(problem)}", soft_wrap=True)
    write_shown(shown, out)
    if out.suffix == ".png" and is_spelled(shown):
        console.print(f"[yellow]{SPELLED}[/yellow]", soft_wrap=True)
    console.print(
        f"{len(shown.answers)} of {shown.num_fitting} answers that fit ({wanted.says}): {out}",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )


@archive_app.command()
def verify(run: RunFolder) -> None:
    """Check every shard of a run's archive: torn, altered, missing, doubled or left over, and what can be saved.

    Exit status 1 where something is wrong.
    """
    from rich.progress import track

    from rollout.archive.check import check_archive, num_shards

    archive = _archive(run)
    checks = track(
        check_archive(archive),
        "reading",
        total=num_shards(archive) + 2,
        console=Console(stderr=True),
        transient=True,
    )
    findings = [finding for found in checks for finding in found]
    for finding in findings:
        console.print(f"{finding.path}: {finding.problem}; {finding.savable}", soft_wrap=True, markup=False)
    if findings:
        raise typer.Exit(1)
    console.print(f"{run / 'archive'} is whole", soft_wrap=True, markup=False)


@archive_app.command()
def query(
    runs: RunFolders,
    sql: Annotated[str, typer.Argument(help="One SELECT over the views rollouts and examples.")],
    as_json: AsJson = False,
    csv: Annotated[
        Path | None, typer.Option(help="Write all rows to this CSV file; a folder that is missing is made.")
    ] = None,
    parquet: Annotated[Path | None, typer.Option(help="Write all rows to this Parquet file, likewise.")] = None,
) -> None:
    """Ask the archives of runs by SQL (DuckDB): the tables of docs/archive.md, with `run_folder` before the columns.

    For example: polytrace archive query runs "SELECT step, avg(iou) FROM rollouts GROUP BY step ORDER BY step"
    """
    from rl.browse.query import asked, print_json, print_table, write_rows
    from rl.run.folder import archived_runs
    from rollout.disk import refuse_unwritable

    if parquet is not None and parquet.suffix != ".parquet":
        raise ValueError(f"{parquet} does not end in .parquet; name the file so, or take --csv.")
    if csv is not None and csv.suffix == ".parquet":
        raise ValueError(f"--csv is {csv}, which ends in .parquet; take --parquet, or another name.")
    outs = [out for out in (csv, parquet) if out is not None]
    for out in outs:
        refuse_unwritable(out)
    with asked(archived_runs(runs), sql, outs) as found:
        for out in outs:
            write_rows(found, out)
            Console(stderr=True).print(f"written: {out}", soft_wrap=True, markup=False)
        if as_json:
            print_json(found)
        elif not outs:
            print_table(found, console)


@archive_app.command()
def compact(
    run: RunFolder,
    steps_per_shard: Annotated[int, typer.Option(help="Steps of one merged shard.")] = 64,
) -> None:
    """Merge the shards of a run that has ended into larger ones: the same rows, a row group and a checksum a step.

    Killed at any point, no row is lost or doubled.
    """
    from rich.progress import track

    from rollout.archive.compact import Compaction

    work = Compaction(_archive(run), steps_per_shard)
    before, progress = work.num_shards, Console(stderr=True)
    for _ in track(work.run(), "merging", total=before, console=progress, transient=True):
        pass
    console.print(f"{run / 'archive'}: {before} shards are now {work.num_shards}", soft_wrap=True, markup=False)


def _archive(run: Path) -> Path:
    archive = run_folder(run) / "archive"
    if not archive.is_dir():
        raise FileNotFoundError(f"No archive in {archive}; give the folder of a run that has made a step.")
    return archive
