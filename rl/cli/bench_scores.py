"""`polytrace bench`: what trainings are worth, beside what one would do instead."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from rl.cli.bench import bench_app, tell
from rl.cli.options import AsJson, Config, Overrides


@bench_app.command()
def refiner(  # noqa: PLR0913  # options of a command
    run: Annotated[Path, typer.Argument(help="Folder of an RL run, such as runs/demo.")],
    sft_run: Annotated[Path, typer.Argument(help="Answers of the checkpoint that it began with: `polytrace sample`.")],
    out: Annotated[Path, typer.Option(help="Folder for the refiners; a bench that was stopped goes on there.")],
    as_json: AsJson = False,
    pairs: Annotated[int, typer.Option(help="Pairs that each refiner is trained on.")] = 4000,
    steps: Annotated[int, typer.Option(help="Optimiser steps of each.")] = 300,
    seeds: Annotated[int, typer.Option(help="Trainings of each, with other pairs and weights.")] = 3,
    scenes: Annotated[int, typer.Option(help="Held-out scenes to judge by.")] = 600,
) -> None:
    """Refiners from RL rollouts, synthetic damage and SFT rollouts, single-pass, and smoothing: the same budget each.

    With the defaults some 40 minutes on two cores.
    """
    from rl.bench import refiner as bench
    from rollout.disk import refuse_unwritable

    refuse_unwritable(out / "measured.json")
    wanted = bench.RefinerBench(run, sft_run, out, pairs, steps, seeds, scenes)
    found = bench.bench(wanted, Console(stderr=True))
    tell(as_json, bench.as_json(found), bench.table(found, wanted), *bench.differences(found))


@bench_app.command()
def learning(  # noqa: PLR0913  # options of a command
    config: Config,
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="Folder of the trainings; a bench that was stopped goes on there.")] = Path(
        "runs/learning"
    ),
    as_json: AsJson = False,
    seeds: Annotated[int, typer.Option(help="Trainings of each way, with other random numbers.")] = 3,
    sft_lr: Annotated[
        float | None, typer.Option(help="Rate at which outlines are learned.", show_default="8 x learner.lr")
    ] = None,
    sft_weight: Annotated[float, typer.Option(help="Weight of outlines beside RL.")] = 0.1,
    controls: Annotated[str, typer.Option(help="What RL is compared with, of these.")] = "sft,best_of,rl_sft",
) -> None:
    """Whether RL teaches what SFT would not: one checkpoint, the same seconds, five ways.

    RL as configured; SFT on outlines of the masks, of as many as have some (outlines.scenes); SFT on the best of each
    group; RL with outlines beside; nothing.

    Takes as many trainings as long as the config's own for each seed as there are controls, and one more.
    """
    from rl.bench.learning import page, scores
    from rl.bench.learning.arms import Wanted
    from rl.bench.learning.trainings import left_out, train_all
    from rollout.disk import refuse_unwritable

    chosen = tuple(controls.replace(" ", "").split(","))
    wanted = Wanted(config, out, tuple(overrides or ()), seeds, sft_lr, sft_weight, chosen)
    quiet = Console(stderr=True)
    refuse_unwritable(out / "learning.json")
    without = left_out(wanted)
    said = [*map(str, without)]
    for line in said:
        quiet.print(f"note: {line}", markup=False, soft_wrap=True)
    trained = list(train_all(wanted, without, quiet))
    found = scores.score_all(wanted, trained, quiet)
    for path in page.write(wanted, trained, found, said):
        quiet.print(f"wrote {path}", markup=False, soft_wrap=True)
    tell(as_json, scores.as_json(found, said), scores.table(found), *scores.lines(found))


@bench_app.command()
def representations(  # noqa: PLR0913  # options of a command
    overrides: Overrides = None,
    of: Annotated[
        list[str] | None,
        typer.Option("--of", help="A kind of answer, as NAME=SFT,RL: the configs of its trainings; several times."),
    ] = None,
    refined: Annotated[str, typer.Option(help="Kinds that get a refiner, too; empty for none.")] = "outline",
    out: Annotated[Path, typer.Option(help="Folder of the trainings; a bench that was stopped goes on there.")] = Path(
        "runs/representations"
    ),
    sft_seconds: Annotated[float, typer.Option(help="Seconds of steps of supervision.")] = 180.0,
    rl_seconds: Annotated[float, typer.Option(help="Seconds of steps of RL after it.")] = 150.0,
    seeds: Annotated[int, typer.Option(help="Trainings of each kind, with other random numbers.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Which kind of answer wins on the same scenes, backbone and seconds: outlines, text, boxes and a decoder, groups.

    After supervision, after RL, and with a refiner; gIoU, Boundary IoU, tokens and time of an answer. Without --of the
    four shipped ones (configs/representations), which begin with what `polytrace sft sft_tiny_boxes` makes.
    """
    from rl.bench.representations import bench, report
    from rl.bench.representations.wanted import SHIPPED, Representation, Wanted

    chosen = tuple(map(Representation.read, of)) if of else SHIPPED
    names = tuple(filter(None, refined.replace(" ", "").split(",")))
    wanted = Wanted(out, chosen, tuple(overrides or ()), names, sft_seconds, rl_seconds, seeds)
    found = bench.measure(wanted, Console(stderr=True))
    tell(as_json, report.as_json(found), report.table(found), *report.lines(found))


@bench_app.command()
def headroom(
    config: Annotated[Path, typer.Argument(help="YAML of a run, or the name of a shipped one.")],
    overrides: Overrides = None,
    scenes: Annotated[int, typer.Option(help="Scenes of the split validation.", min=1)] = 256,
    samples: Annotated[int, typer.Option(help="Samples of each scene.", min=2)] = 32,
    as_json: AsJson = False,
) -> None:
    """What RL could gain by choosing better among the answers that the checkpoint gives already; a minute, no training.

    Greedy answers, samples at the config's temperature, their consensus, and the best of them.
    """
    from rl.bench.learning import headroom as bench
    from rl.config.load import load_settings
    from rl.config.run import RunConfig

    if any(override.startswith("run=") for override in overrides or ()):
        raise ValueError("bench headroom makes no run; leave run=... out.")
    asked = load_settings(RunConfig, config, ["run=headroom", *(overrides or ())])
    found = bench.measure(asked, "validation", scenes, samples, Console(stderr=True))
    shown = bench.table(found), bench.line(found), bench.baseline_line(found, asked.group_size)
    tell(as_json, bench.as_json(found), *shown)


@bench_app.command()
def selection(  # noqa: PLR0913  # options of a command
    config: Annotated[Path, typer.Argument(help="YAML of a run that chooses, or the name of a shipped one.")],
    checkpoints: Annotated[
        list[Path], typer.Argument(help="Folders of policies; the first is what others are compared with.")
    ],
    scenes: Annotated[int, typer.Option(help="Questions of the split.", min=2)] = 600,
    split: Annotated[str, typer.Option(help="Split of the env.")] = "test",
    written: Annotated[
        Path | None, typer.Option(help="Folder of a policy mask_numbers, which writes the numbers of candidates.")
    ] = None,
    at_once: Annotated[int, typer.Option(help="Questions that are answered together.", min=1)] = 1,
    as_json: AsJson = False,
) -> None:
    """What policies that choose among candidates reach, beside the pool's oracle and rules that look at no image.

    --written: also how much longer it takes to write the numbers of the chosen, side by side.
    """
    from rl.bench.learning import selection as bench
    from rl.config.load import load_settings
    from rl.config.run import RunConfig

    asked = load_settings(RunConfig, config, ["run=selection", f"policy.checkpoint={checkpoints[0]}"])
    found = bench.measure(asked, checkpoints, split, scenes, Console(stderr=True), written, at_once)
    tell(as_json, bench.as_json(found), bench.table(found))


@bench_app.command()
def boxes(
    config: Annotated[
        Path, typer.Argument(help="YAML of a run with policy box_decoder, or the name of a shipped one.")
    ],
    checkpoint: Annotated[Path, typer.Argument(help="Folder of the policy and its decoder.")],
    scenes: Annotated[int, typer.Option(help="Questions of the split that show something.", min=2)] = 600,
    split: Annotated[str, typer.Option(help="Split of the env.")] = "test",
    as_json: AsJson = False,
) -> None:
    """What a mask decoder draws in true, moved and predicted boxes, and how well it foretells its IoU."""
    from rl.bench.learning import boxes as bench
    from rl.config.load import load_settings
    from rl.config.run import RunConfig

    asked = load_settings(RunConfig, config, ["run=boxes", f"policy.checkpoint={checkpoint}"])
    found = bench.measure(asked, checkpoint, split, scenes, Console(stderr=True))
    tell(as_json, bench.as_json(found), bench.table(found), bench.line(found))
