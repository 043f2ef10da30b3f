"""The `polytrace` command. Each command's module is imported when it runs, so that --help is quick."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from rl.cli_archive import archive_app
from rl.cli_bench import bench_app
from rl.cli_export import export_app
from rl.cli_predict import predict
from rl.cli_rewards import rewards_app

if TYPE_CHECKING:
    from rl.config import RunConfig

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Reinforcement-learning fine-tuning for vision-language models that answer with polygons.",
)
app.add_typer(archive_app, name="archive")
app.add_typer(export_app, name="export")
app.add_typer(rewards_app, name="rewards")
app.add_typer(bench_app, name="bench")
console = Console(emoji=False)

Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings to change, as dotted.key=value.", show_default=False)
]
CONFIG_HELP = "YAML file, or the name of a shipped one (demo, sft_tiny, coco28, ...)."
Config = Annotated[Path, typer.Argument(help=CONFIG_HELP)]
RunFolder = Annotated[Path, typer.Argument(help="Folder of a run.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in its folder from its last checkpoint.")]


@app.command()
def demo(overrides: Overrides = None) -> None:
    """Run the whole job on the CPU: embedded SFT checkpoint, RL, archive, refiner, report. Same as `make demo`.

    Writes to runs/demo. A demo that was stopped goes on; a finished one is kept as runs/demo.previous*.
    """
    from rl.config import RunConfig
    from rl.demo import run_job
    from rl.settings import load_settings

    config = load_settings(RunConfig, Path("demo"), overrides or [])
    run_job(config, _make_way(Path(config.run)), console)


@app.command()
def sft(config: Config, overrides: Overrides = None) -> None:
    """Fine-tune by supervision, or train the tiny model from nothing; goes on by itself where it was stopped."""
    from rl.settings import load_settings
    from rl.sft_settings import SftConfig
    from rl.train_sft import run_sft

    run_sft(load_settings(SftConfig, config, overrides or []), console)


@app.command()
def train(
    config: Annotated[Path | None, typer.Argument(help=CONFIG_HELP, show_default=False)] = None,
    overrides: Overrides = None,
    resume: Resume = False,
    replay: Annotated[Path | None, typer.Option(help="Only look at the loss of a batch in RUN/dropped/.")] = None,
) -> None:
    """Train a policy by reinforcement learning: sample, score, archive, learn. Ends with the best checkpoint's path."""
    if replay is not None:
        from rl.replay import replay as replay_batch

        replay_batch(replay, console)
        return
    if config is None:
        raise ValueError("train has no config; give a YAML file or the name of a shipped one, such as demo.")
    from rl.checkpoints import Checkpoints
    from rl.config import RunConfig
    from rl.settings import load_settings
    from rl.train import train as train_run

    settings = load_settings(RunConfig, config, overrides or [])
    folder = train_run(settings, resume, console)
    best = Checkpoints(folder, settings.keep_checkpoints).best
    if best is not None:
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
    from rl.config import RunConfig
    from rl.sample import of_best_policy
    from rl.sample import sample as sample_run
    from rl.settings import load_settings

    settings = load_settings(RunConfig, config, overrides or [])
    folder = sample_run(settings if run is None else of_best_policy(settings, _folder(run)), resume, console)
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
    from rl.refine import refine as make_refiner
    from rl.refine import settings_of
    from rl.refiner_settings import RefineConfig
    from rl.settings import load_settings, shipped_configs

    changed, shipped = overrides or [], [name for name in shipped_configs() if name.startswith("refiner")]
    if not source.exists() and source.stem not in shipped:
        raise FileNotFoundError(
            f"{source} is neither the folder of a run nor a YAML file; give one of them, or a shipped one: "
            f"{', '.join(shipped)}."
        )
    if source.is_dir():
        config = settings_of(_run_config(source, [f"refiner.{each}" for each in changed]))
    else:
        config = load_settings(RefineConfig, source, changed)
    make_refiner(config, console)
    console.print(f"refiner: {config.out}   page: {Path(config.out) / 'refiner.html'}", markup=False)


@app.command()
def evaluate(run: RunFolder) -> None:
    """Compare SFT, RL and RL + refiner of a run on held-out scenes; trains the refiner where there is none."""
    from rl.demo import finish_run

    finish_run(_run_config(run), console)


app.command()(predict)


@export_app.command("checkpoint")
def export_checkpoint(
    run: RunFolder,
    out: Annotated[Path, typer.Option(help="New folder for the model, its tokenizer and its image processor.")],
    step: Annotated[int | None, typer.Option(help="Checkpoint of this step; the last one if left out.")] = None,
    best: Annotated[bool, typer.Option("--best", help="The best policy on validation so far.")] = False,
) -> None:
    """Write a run's policy as a Hugging Face folder that `from_pretrained` loads; adapters are merged."""
    from rl.export_checkpoint import export_checkpoint as write_checkpoint

    if best and step is not None:
        raise ValueError(f"--best and --step {step} ask for two checkpoints; give one of them.")
    exported = write_checkpoint(_run_config(run), out, step, best)
    console.print(f"policy of step {exported}: {out}", markup=False)


def _folder(run: Path) -> Path:
    if not run.is_dir():
        raise FileNotFoundError(f"{run} is not a folder; give the folder of a run, such as runs/demo.")
    return run


def _run_config(run: Path, overrides: Sequence[str] = ()) -> "RunConfig":
    from rl.config import RunConfig
    from rl.settings import load_settings, override_of

    return load_settings(RunConfig, _folder(run) / "config.yaml", [override_of("run", run), *overrides])


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
            console.print("stopped; train and sample go on with --resume, demo, sft and rewards ablate by themselves")
        raise
