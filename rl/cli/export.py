"""`polytrace export ...`: take something out of a run."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from rl.cli.options import RunFolder, run_config

export_app = typer.Typer(no_args_is_help=True, help="Take something out of a run.")
console = Console(emoji=False)


@export_app.command("pairs")
def export_pairs(
    runs: Annotated[
        list[str],
        typer.Argument(help="Folders of runs, then settings to change, as dotted.key=value.", metavar="RUN..."),
    ],
    out: Annotated[Path, typer.Option(help="New folder, or that of the same export where it was interrupted.")],
    config: Annotated[Path, typer.Option(help="YAML file of what is kept, or the shipped one, pairs.")] = Path("pairs"),
) -> None:
    """Write (coarse mask, true mask) pairs of runs' training answers, for a refiner: images, masks, report, pictures.

    Settings are such as rule.min_iou=0.4, rule.limit=1000, format=webdataset, damage.share=0.2 (docs/pairs.md).
    """
    from rl.config.load import load_settings
    from rl.config.pairs import PairExport
    from rl.pairs.export import export_pairs as write_pairs

    overrides = [run for run in runs if "=" in run and not Path(run).exists()]
    folders = [Path(run) for run in runs if run not in overrides]
    if not folders:
        raise ValueError("no run is given, only settings; give the folder of a run, such as runs/demo.")
    report = write_pairs(folders, out, load_settings(PairExport, config, overrides), console)
    for reason, count in report.left_out.items():
        if count:
            console.print(f"left out, {reason}: {count:,}")
    console.print(
        f"kept {report.pairs:,} of {report.answers:,} answers: {out}   next: look at {out / 'pairs.html'}",
        soft_wrap=True,
        markup=False,
    )


@export_app.command("checkpoint")
def export_checkpoint(
    run: RunFolder,
    out: Annotated[Path, typer.Option(help="New folder for the model, its tokenizer and its image processor.")],
    step: Annotated[int | None, typer.Option(help="Checkpoint of this step; the last one if left out.")] = None,
    best: Annotated[bool, typer.Option("--best", help="The best policy on validation so far.")] = False,
) -> None:
    """Write a run's policy as a Hugging Face folder that `from_pretrained` loads; adapters are merged."""
    from rl.learner.export import export_checkpoint as write_checkpoint

    if best and step is not None:
        raise ValueError(f"--best and --step {step} ask for two checkpoints; give one of them.")
    exported = write_checkpoint(run_config(run), out, step, best)
    console.print(f"policy of step {exported}: {out}", markup=False)
