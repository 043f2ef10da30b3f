"""`polytrace bench`: how fast we are, beside what one would take instead."""

import json
from typing import Annotated

import typer
from rich.console import Console

bench_app = typer.Typer(no_args_is_help=True, help="Measure speed, side by side with the alternatives.")
console = Console()

AsJson = Annotated[bool, typer.Option("--json", help="Print numbers as JSON instead of a table.")]


@bench_app.command()
def rewards(
    as_json: AsJson = False,
    quick: Annotated[bool, typer.Option("--quick", help="Three cases instead of all.")] = False,
) -> None:
    """IoU of groups of answers: pycocotools, OpenCV, shapely, scikit-image where installed, C, and ours; one thread.

    Takes about two minutes. The extra `bench` of the package installs the others.
    """
    from rich.progress import track

    from rl.bench import rewards as bench
    from rl.bench.batch import batch_milliseconds

    cases = bench.cases(quick)
    quiet = Console(stderr=True)
    timed = list(track(bench.bench(quick), "measuring", total=len(cases), console=quiet, transient=True))
    batch = batch_milliseconds()
    if as_json:
        print(json.dumps(bench.as_json(timed) | {"batch_milliseconds": batch}, indent=2))
    else:
        console.print(bench.table(timed))
        console.print(f"a batch of 32 x 16 answers at 64 px, scored as a worker of the demo does: {batch:.1f} ms")


@bench_app.command()
def rescore(as_json: AsJson = False) -> None:
    """Archived answers rescored a second, at 64 and at 640 x 480 pixels, masks decoded each time."""
    from rl.bench import rescore as bench

    found = bench.bench()
    if as_json:
        print(json.dumps([vars(one) for one in found], indent=2))
    else:
        console.print(bench.table(found))
