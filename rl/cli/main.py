"""The `polytrace` command.

Each command reads its settings before it imports what does the work, so that --help is quick and a mistake in a setting
is told before torch is loaded.
"""

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from rl.cli.archive import archive_app
from rl.cli.bench_scores import bench_app
from rl.cli.data import data_app, refuse_out
from rl.cli.export import export_app
from rl.cli.label import label_app
from rl.cli.options import (
    CONFIG_HELP,
    AsJson,
    Config,
    Overrides,
    Resume,
    RunFolder,
    run_config,
    run_folder,
    run_settings,
    without_gpu_warning,
)
from rl.cli.plan import plan
from rl.cli.rewards import rewards_app


def predict(
    checkpoint: Annotated[
        Path,
        typer.Argument(help="Folder of a run (its best policy), Hugging Face folder of a policy, or tiny."),
    ],
    image: Annotated[Path, typer.Argument(help="Any image file, of any size.")],
    phrase: Annotated[str, typer.Argument(help='What to outline, such as "the left apple".')],
    svg: Annotated[Path | None, typer.Option(help="Write the outline here, as a path in the image's pixels.")] = None,
    png: Annotated[Path | None, typer.Option(help="Write the mask here: that path filled, 0 or 255.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the numbers here: rings, box, predicted IoU.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML with the codec of a policy that is no run.", show_default="demo")
    ] = None,
    refiner: Annotated[
        Path | None, typer.Option(help="Folder of a refiner.", show_default="RUN/refiner, if it is there")
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="The outline as the policy drew it, without the refiner.")] = False,
    min_iou: Annotated[
        float, typer.Option(help="Least IoU of the simplified outline with the refined mask; 1 keeps each pixel.")
    ] = 0.995,
    side: Annotated[
        int | None,
        typer.Option(help="Longer side, px, at which the policy sees the image.", show_default="as the run's env"),
    ] = None,
    over: Annotated[bool, typer.Option("--over", help="Lay the image under the path in the SVG.")] = False,
    candidates: Annotated[
        Path | None,
        typer.Option(help="Masks to choose from: a PNG of labels, a COCO JSON, or an array [N, H, W] (.npy, .npz)."),
    ] = None,
    mask: Annotated[
        list[Path] | None,
        typer.Option(help="File of a region that the phrase refers to, as --candidates; again for more."),
    ] = None,
    point: Annotated[list[str] | None, typer.Option(help="X,Y: a place, pixels of the image; again for more.")] = None,
    box: Annotated[list[str] | None, typer.Option(help="X0,Y0,X1,Y1: a box, pixels; again for more.")] = None,
) -> None:
    """Outline what a phrase means in an image: an SVG path and the mask it fills to (docs/predict.md).

    The answer is the policy's likeliest one. An answer that is empty or not valid gives empty files and its status.
    """
    from envs.geometry.vector import check_floor
    from envs.images import read_image
    from envs.shown import ShownFiles
    from policies.question import check_phrase
    from rl.predict import Predictor, check_outputs, find_source, table_of, write_prediction

    outputs = {"svg": svg, "png": png, "json": json}
    check_outputs(outputs, image)
    check_floor(min_iou)
    check_phrase(phrase)
    source = find_source(checkpoint, config, refiner, raw, side)
    picture = read_image(image)
    files = ShownFiles(candidates, tuple(mask or ()), tuple(point or ()), tuple(box or ()))
    prediction = Predictor(source).predict(picture, phrase, min_iou, files.read(image, picture.height, picture.width))
    written = write_prediction(prediction, outputs, picture if over else None)
    console.print(table_of(prediction))
    for path in written:
        console.print(f"{path}", markup=False, soft_wrap=True)


app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Reinforcement-learning fine-tuning for vision-language models that answer with polygons.",
)
app.add_typer(archive_app, name="archive")
app.add_typer(data_app, name="data")
app.add_typer(export_app, name="export")
app.add_typer(label_app, name="label")
app.add_typer(rewards_app, name="rewards")
app.add_typer(bench_app, name="bench")
console = Console(emoji=False)


@app.command()
def demo(overrides: Overrides = None) -> None:
    """Run the whole job on the CPU: embedded SFT checkpoint, RL, archive, refiner, report. Same as `make demo`.

    Writes to runs/demo. A demo that was stopped goes on; a finished one is kept as runs/demo.previous*.
    """
    config = run_settings(Path("demo"), overrides)
    without_gpu_warning()
    from rl.demo import run_job

    run_job(config, _make_way(Path(config.run)), console)


@app.command()
def benchmark(
    checkpoints: Annotated[
        list[str], typer.Argument(help="Runs, Hugging Face folders or tiny, each as PATH or NAME=PATH.")
    ],
    data: Annotated[
        list[str], typer.Option(help="NAME=PATH or NAME=PATH:SPLIT, prepared or files of a data set; several times.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for answers and tables; one that was stopped goes on there.")],
    protocol: Annotated[
        list[str] | None,
        typer.Option(help="Protocol or variant, such as res/lavt; several times.", show_default="the data set's"),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="YAML by which checkpoints that are no runs are asked.", show_default="demo"),
    ] = None,
    images: Annotated[str | None, typer.Option(help="Folder of photos of data sets that are not prepared.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Outlines alone, without the refiners of runs.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Most examples of a data set.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Rollout workers.", show_default="the config's")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer.", show_default="the config's")] = None,
    rows: Annotated[
        list[Path] | None, typer.Option(help="YAML of published numbers of your own, to stand beside; several times.")
    ] = None,
) -> None:
    """Greedy answers of checkpoints to data sets, scored by the papers' protocols, in tables beside published numbers.

    Answers are kept: the same command goes on, and another protocol asks nothing again (docs/benchmark.md).
    """
    without_gpu_warning()
    from rl.benchmark import Benchmark
    from rl.benchmark import benchmark as run_benchmark
    from rl.benchmarks.models import benchmark_model
    from rl.benchmarks.published import own_published
    from rl.benchmarks.sets import benchmark_sets

    refuse_out(out)
    own = [own_published(path) for path in rows or []]
    models = [benchmark_model(each, config, raw, workers, max_tokens) for each in checkpoints]
    names = [model.name for model in models]
    if len(set(names)) < len(names):
        raise ValueError(f"the checkpoints are called {', '.join(names)}; give NAME=PATH for those of one name.")
    sets = benchmark_sets(data, images, out, console)
    run_benchmark(Benchmark(out, models, sets, protocol or (), limit, own), console)


@app.command()
def check(
    checkpoint: Annotated[str, typer.Argument(help="Hugging Face folder of a model, or tiny.")],
    overrides: Overrides = None,
    config: Annotated[
        Path | None,
        typer.Option(help="YAML with codec, policy, learner and sampling.", show_default="point_text and defaults"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What a checkpoint is and how it is asked, from its files in seconds; exit status 1 where a run would fail."""
    from rl.check import as_json as numbers_of
    from rl.check import check as look
    from rl.check import table_of
    from rl.pages.json_text import json_text

    report = look(checkpoint, config, overrides or [])
    if as_json:
        print(json_text(numbers_of(report), indent=2))
    else:
        console.print(table_of(report))
    if report.problems:
        raise typer.Exit(1)


@app.command()
def sft(config: Config, overrides: Overrides = None) -> None:
    """Fine-tune by supervision, or train the tiny model from nothing; goes on by itself where it was stopped."""
    from rl.config.load import load_settings
    from rl.config.sft import SftConfig

    settings = load_settings(SftConfig, config, overrides or [])
    without_gpu_warning()
    from rl.sft import run_sft

    run_sft(settings, console)


@app.command()
def train(
    config: Annotated[Path | None, typer.Argument(help=CONFIG_HELP, show_default=False)] = None,
    overrides: Overrides = None,
    resume: Resume = False,
    replay: Annotated[Path | None, typer.Option(help="Only look at the loss of a batch in RUN/dropped/.")] = None,
) -> None:
    """Train a policy by reinforcement learning: sample, score, archive, learn. Ends with the best checkpoint's path."""
    if replay is not None:
        from rl.learner.dropped import replay as replay_batch

        replay_batch(replay, console)
        return
    if config is None:
        raise ValueError("train has no config; give a YAML file or the name of a shipped one, such as demo.")
    settings = run_settings(config, overrides)
    from rl.run.folder import RunFolder as FolderOfRun

    without_gpu_warning()
    from rl.train import train as train_run

    folder = train_run(settings, resume, console)
    best = FolderOfRun(folder).best_policy()
    console.print(
        f"best policy: step {best.step}, greedy gIoU {best.giou:.3f} on validation, {best.folder}", markup=False
    )
    console.print(
        f"run: {folder}   next: polytrace evaluate {folder}, polytrace export pairs {folder} --out PAIRS", markup=False
    )


@app.command()
def sample(
    config: Config,
    overrides: Overrides = None,
    run: Annotated[
        Path | None, typer.Option(help="Sample the best policy of this run, not policy.checkpoint.", show_default=False)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on after the last archived step.")] = False,
) -> None:
    """Sample, score and archive as `train` does, without learning: what a policy draws, for refiner pairs or rewards.

    Step 0 is that of `train` under the same config, to the last bit.
    """
    settings = run_settings(config, overrides)
    from rl.sample import of_best_policy
    from rl.sample import sample as sample_run

    folder = sample_run(settings if run is None else of_best_policy(settings, run_folder(run)), resume, console)
    console.print(
        f"run: {folder}   next: polytrace archive show {folder}, polytrace export pairs {folder} --out PAIRS",
        markup=False,
    )


@app.command()
def refine(
    source: Annotated[Path, typer.Argument(help="Folder of a run, or a YAML file of runs and settings.")],
    overrides: Overrides = None,
) -> None:
    """Train a refiner on pairs from archives, calibrate it, and judge it on images kept apart; goes on if stopped.

    Of a run: its settings under `refiner:`, to RUN/refiner, through its best policy. Of a YAML file, such as the
    shipped `refiner`: any number of runs. Settings are such as training.steps=1000 (docs/refiner.md). A finished
    refiner is never overwritten: delete its folder, or give out=NEW with a YAML file.
    """
    from rl.config.load import load_settings, shipped_configs
    from rl.config.refiner import RefineConfig
    from rl.config.run import RunConfig

    changed, shipped = overrides or [], [name for name in shipped_configs() if name.startswith("refiner")]
    if not source.exists() and source.stem not in shipped:
        raise FileNotFoundError(
            f"{source} is neither the folder of a run nor a YAML file; give one of them, or a shipped one: "
            f"{', '.join(shipped)}."
        )
    asked: RefineConfig | RunConfig
    if source.is_dir():
        asked = run_config(source, [f"refiner.{each}" for each in changed])
    else:
        asked = load_settings(RefineConfig, source, changed)
    without_gpu_warning()
    from rl.refine import refine as make_refiner
    from rl.refine import settings_of

    config = asked if isinstance(asked, RefineConfig) else settings_of(asked)
    make_refiner(config, console)
    console.print(f"refiner: {config.out}   page: {Path(config.out) / 'refiner.html'}", markup=False)


@app.command()
def evaluate(run: RunFolder) -> None:
    """Compare SFT, RL and RL + refiner of a run on held-out scenes; trains the refiner where there is none.

    Runs that choose among candidate masks need none.
    """
    from rl.evaluate import evaluate as evaluate_run
    from rl.evaluate import lacks_refiner

    without_gpu_warning()
    from rl.refine import refine as make_refiner
    from rl.refine import settings_of
    from rl.run.metrics import JobUsage

    config = run_config(run)
    with JobUsage() as usage:
        if lacks_refiner(config):
            make_refiner(settings_of(config), console)
        evaluate_run(config, console, usage)


app.command()(predict)
app.command()(plan)


def _make_way(folder: Path) -> bool:
    """Whether to resume the demo in `folder`; a finished one is moved aside first."""
    if (folder / "summary.json").exists():
        taken = {path.name for path in folder.parent.glob(f"{folder.name}.previous*")}
        names = (f"{folder.name}.previous{k or ''}" for k in range(len(taken) + 1))
        previous = folder.with_name(next(name for name in names if name not in taken))
        folder.rename(previous)
        console.print(f"the finished demo is kept as {previous}", markup=False)
    return any((folder / "checkpoints").glob("step-??????"))


_INTERRUPTED = 130


def _to_go_on(arguments: list[str]) -> str:
    """The command by which a stopped one goes on; demo, sft and rewards ablate do so by themselves."""
    resumed = arguments[:1] in (["train"], ["sample"]) and "--resume" not in arguments
    return shlex.join(["polytrace", *arguments, *(["--resume"] if resumed else [])])


def main() -> None:
    """Entry point: what a user got wrong is one line, not a traceback."""
    # Read before torch and transformers load: one thread pool is enough for tokenizers, and no bars for loading 5 MB.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        app()
    except (ValueError, OSError, FloatingPointError) as error:
        # Apart from what was asked for, which another program may be reading.
        Console(stderr=True).print(f"[red]polytrace:[/red] {escape(str(error))}", soft_wrap=True)
        raise SystemExit(2) from error
    except SystemExit as end:
        if end.code == _INTERRUPTED:  # typer's own answer to Ctrl-C
            console.print(f"stopped; to go on: {_to_go_on(sys.argv[1:])}", markup=False, soft_wrap=True)
        raise
