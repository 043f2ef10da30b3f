"""`polytrace bench`: how fast we are, beside what one would take instead."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console, RenderableType

from rl.cli.options import AsJson
from rl.pages.json_text import json_text

bench_app = typer.Typer(no_args_is_help=True, help="Measure speed, side by side with the alternatives.")
console = Console(emoji=False)
T = TypeVar("T")

Quick = Annotated[
    bool, typer.Option("--quick", help="Only the first workload, and not those that show how cost grows.")
]
Work = Annotated[
    str | None,
    typer.Option("--work", help="First workload: groups x answers x image tokens x tokens.", show_default=False),
]
Model = Annotated[str, typer.Option(help="Random Qwen3-VL to measure on: tiny, or in the shape of 2b, 4b or 8b.")]
Dtype = Annotated[str, typer.Option(help="float32 or bfloat16.")]
Keep = Annotated[
    Path | None, typer.Option(help="Folder where the data is written once, and used again.", show_default=False)
]


@bench_app.command()
def rewards(
    as_json: AsJson = False,
    quick: Annotated[bool, typer.Option("--quick", help="Three cases instead of all.")] = False,
) -> None:
    """IoU of groups of answers: pycocotools, OpenCV, shapely, scikit-image where installed, C, and ours; one thread.

    Takes about two minutes. The extra `bench` of the package installs the others.
    """
    from rich.progress import track

    from rl.bench.scoring import rewards as bench
    from rl.bench.scoring.rewards import batch_milliseconds

    cases = bench.cases(quick)
    quiet = Console(stderr=True)
    timed = list(track(bench.bench(quick), "measuring", total=len(cases), console=quiet, transient=True))
    batch = batch_milliseconds()
    told = f"a batch of 32 x 16 answers at 64 px, scored as a worker of the demo does: {batch:.1f} ms"
    tell(as_json, bench.as_json(timed) | {"batch_milliseconds": batch}, bench.table(timed), told)


@bench_app.command()
def vertices(as_json: AsJson = False) -> None:
    """What every vertex is worth: outlines that lack one, all in one pass, and one at a time; one thread.

    Takes about half a minute.
    """
    from rich.progress import track

    from rl.bench.scoring import vertices as bench

    total = len(bench.cases())
    timed = list(track(bench.bench(), "measuring", total=total, console=Console(stderr=True), transient=True))
    tell(as_json, bench.as_json(timed), bench.table(timed))


@bench_app.command()
def benchmark(
    as_json: AsJson = False,
    quick: Annotated[bool, typer.Option("--quick", help="1,000 answers instead of 10,000.")] = False,
) -> None:
    """Answers scored under the protocol `res`, beside a plain pycocotools script; the scores compared.

    About four minutes on two cores, 40 s with --quick. pycocotools comes with the extra `bench`.
    """
    from rich.progress import track

    from rl.bench.scoring import benchmark as bench

    total, quiet = len(bench.cases(quick)), Console(stderr=True)
    timed = list(track(bench.bench(quick), "measuring", total=total, console=quiet, transient=True))
    tell(as_json, bench.as_json(timed), bench.table(timed))


@bench_app.command()
def push(
    as_json: AsJson = False,
    mib: Annotated[int, typer.Option(help="Size of the model, MiB of bfloat16; each process holds one.")] = 512,
    workers: Annotated[int, typer.Option(help="Processes that take it.")] = 2,
) -> None:
    """Weights to workers on this machine: by the object store with SHA-256, and by both of pool.transport.

    About a minute on two cores.
    """
    from rich.progress import track

    from rl.bench import push as bench

    size, rounds, quiet = bench.Size(mib=mib, workers=workers), 5, Console(stderr=True)
    *_, timed = track(bench.bench(size, rounds), "measuring", total=rounds + 1, console=quiet, transient=True)
    tell(as_json, bench.report(size, timed), bench.table(size, timed))


@bench_app.command()
def gpu(
    as_json: AsJson = False,
    out: Annotated[Path, typer.Option(help="Folder for gpu.json, gpu.md and what each part printed.")] = Path(
        "bench_gpu"
    ),
    parts: Annotated[
        str | None, typer.Option(help="Only these, such as card,agreement,vision.", show_default="all")
    ] = None,
    device: Annotated[str, typer.Option(hidden=True)] = "cuda",
) -> None:
    """What one card does: agreement with the CPU, speed, memory and kernels of learner, sampler and push (docs/gpu.md).

    At most eight minutes; each part within its own limit. Exit status 1 where a part failed or found something amiss.
    """
    from rl.bench.gpu import bench
    from rl.bench.gpu.page import as_json as numbers_of

    bench.refuse_without_card(device)
    machine, outcomes = bench.bench(bench.chosen(parts), device, out, Console(stderr=True))
    tell(as_json, numbers_of(machine, outcomes), f"{out / bench.PAGE_FILE} and {out / bench.JSON_FILE} are written")
    if not all(outcome.is_well for outcome in outcomes):
        raise typer.Exit(1)


@bench_app.command()
def rescore(as_json: AsJson = False) -> None:
    """Archived answers rescored per second, at 64 and at 640 x 480 pixels, masks decoded each time."""
    from rl.bench.scoring import rescore as bench

    found = bench.bench()
    tell(as_json, [asdict(one) for one in found], bench.table(found))


@bench_app.command()
def learner(
    as_json: AsJson = False,
    quick: Quick = False,
    work: Work = None,
    model: Model = "tiny",
    dtype: Dtype = "float32",
    peak_tflops: Annotated[
        float | None,
        typer.Option(help="Peak of the device in this dtype: gives the share of it used.", show_default=False),
    ] = None,
) -> None:
    """Forward and backward over groups that share their prompt, beside one row per answer: the same model and answers.

    About two minutes on two cores, 20 s with --quick; on a GPU where there is one.
    """
    from rl.bench import learner as bench
    from rl.bench.random_qwen import ModelChoice
    from rl.bench.side_by_side import Workload, table

    workload = bench.WORKLOAD if work is None else Workload.read(work)
    found = list(_tracked(bench.bench(workload, ModelChoice(model, dtype), quick), quick))
    report = bench.report(found, peak_tflops)
    told = [
        f"largest difference of a log-probability: {report['max_logprob_difference']:.1e}",
        f"answer tokens learned from per second, first workload: {report['tokens_per_second']:,.0f}",
    ]
    if peak_tflops is not None:
        told.append(f"share of {peak_tflops:g} TFLOP/s used: {report['model_flops_utilisation']:.1%}")
    timed = table("Learning, forward and backward", "row per answer", [one.timed for one in found])
    tell(as_json, report, timed, *told)


@bench_app.command()
def rollout(
    as_json: AsJson = False, quick: Quick = False, work: Work = None, model: Model = "tiny", dtype: Dtype = "float32"
) -> None:
    """G answers to each prompt, by our sampler and by transformers' generate: the same model and number of tokens.

    About four minutes on two cores, 40 s with --quick; on a GPU where there is one.
    """
    from rl.bench import rollout as bench
    from rl.bench.random_qwen import ModelChoice
    from rl.bench.side_by_side import Workload, table
    from rl.bench.side_by_side import as_json as report

    workload = bench.WORKLOAD if work is None else Workload.read(work)
    found = list(_tracked(bench.bench(workload, ModelChoice(model, dtype), quick), quick))
    tell(as_json, report(bench.OTHER, found) | {"bar": bench.BAR}, table("Sampling", bench.OTHER, found))


@bench_app.command()
def step(as_json: AsJson = False, quick: Quick = False, work: Work = None) -> None:
    """A whole GSPO step (sample, score, update), ours beside TRL's GRPOTrainer; then where a step of the demo goes.

    About seven minutes on two cores, two with --quick. TRL comes with the extra `bench`; without it, ours is alone.
    """
    from rl.bench import demo_step
    from rl.bench import step as bench
    from rl.bench.side_by_side import Workload, table
    from rl.bench.side_by_side import as_json as report

    workload = bench.WORKLOAD if work is None else Workload.read(work)
    found = list(_tracked(bench.bench(workload, quick), quick))
    demo = demo_step.measure()
    shown: list[RenderableType] = [table("A GSPO step: sample, score, update", "TRL", found), demo_step.table(demo)]
    if found[0].other is None:
        shown.insert(1, "TRL is not installed; it is part of the extra `bench`: pip install 'polytrace[bench]'")
    tell(as_json, report(bench.OTHER, found) | {"bar": bench.BAR} | demo_step.as_json(demo), *shown)


@bench_app.command()
def archive(
    as_json: AsJson = False,
    quick: Quick = False,
    answers: Annotated[int, typer.Option(help="Answers of the largest archive.")] = 1_000_000,
    pairs: Annotated[
        int | None, typer.Option(help="Pairs to export; a hundredth of the answers.", show_default=False)
    ] = None,
    keep: Keep = None,
) -> None:
    """Export pairs from a generated archive, and append a step to it: time, peak memory, bytes read.

    A million answers take about two minutes and 0.5 GB of disk on two cores; --answers 10000000 takes ten times as much
    of both; --quick takes 30,000.
    """
    import tempfile

    from rl.bench import archive as bench

    answers = bench.QUICK_ANSWERS if quick else answers
    if answers < 1 or (pairs is not None and pairs < 1):
        raise ValueError(f"answers is {answers} and pairs {pairs}; set each to 1 or more.")
    with tempfile.TemporaryDirectory(prefix="polytrace-bench-") as made:
        found = bench.bench(answers, pairs or max(1, answers // 100), keep or Path(made))
    tell(as_json, bench.as_json(found), *bench.tables(found))


@bench_app.command()
def examples(
    as_json: AsJson = False,
    quick: Annotated[bool, typer.Option("--quick", help="20,000 examples.")] = False,
    examples: Annotated[int, typer.Option(help="Examples to write and open.")] = 1_000_000,
    keep: Keep = None,
) -> None:
    """Made-up examples written as shards, opened and read: time and memory.

    A million take about five minutes and 0.1 GB of disk on two cores.
    """
    import tempfile

    from rl.bench import examples as bench

    number = bench.QUICK_EXAMPLES if quick else examples
    if number < 1:
        raise ValueError(f"examples is {number}; set it to 1 or more.")
    with tempfile.TemporaryDirectory(prefix="polytrace-bench-") as made:
        found = bench.bench(number, keep or Path(made), Console(stderr=True))
    tell(as_json, bench.as_json(found), bench.table(found))


@bench_app.command()
def prepare(
    as_json: AsJson = False,
    quick: Annotated[bool, typer.Option("--quick", help="A file of 5,000 photos, 500 of them drawn.")] = False,
    drawn: Annotated[int, typer.Option(min=1, help="Photos that are opened and drawn.")] = 5_000,
) -> None:
    """A made-up file as large as LVIS read, and some of its photos prepared: time and memory.

    About ten minutes and 1 GB of disk on two cores, most of it to write the file.
    """
    import tempfile

    from rl.bench import prepare as bench

    photos, opened = (bench.QUICK_PHOTOS, 500) if quick else (bench.PHOTOS, drawn)
    with tempfile.TemporaryDirectory(prefix="polytrace-bench-") as made:
        found = bench.bench(Path(made), photos, opened, Console(stderr=True))
    tell(as_json, bench.as_json(found), bench.table(found))


@bench_app.command()
def start(as_json: AsJson = False) -> None:
    """Seconds until the command answers: its help, and a mistake in a setting; a few processes of each."""
    from rich.progress import track

    from rl.cli.start import CASES, measure, table

    found = list(track(measure(), "measuring", total=len(CASES), console=Console(stderr=True), transient=True))
    tell(as_json, [asdict(one) for one in found], table(found))


def tell(as_json: bool, numbers: Any, *shown: RenderableType) -> None:
    """Print the numbers as JSON, or else tables and lines about them."""
    if as_json:
        print(json_text(numbers, indent=2))
        return
    for each in shown:
        console.print(each)


def _tracked(found: Iterator[T], quick: bool) -> Iterable[T]:
    """With a bar on stderr, so that stdout is what was asked for."""
    from rich.progress import track

    from rl.bench.side_by_side import NUM_SCALED

    total = 1 if quick else 1 + NUM_SCALED
    return track(found, "measuring", total=total, console=Console(stderr=True), transient=True)
