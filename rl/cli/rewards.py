"""`polytrace rewards`: score, compare, ablate and test rewards, most of it without a model."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from rl.cli.options import AsJson

rewards_app = typer.Typer(no_args_is_help=True, help="A lab for rewards: score, compare, ablate, test.")
console = Console(emoji=False)


@rewards_app.command()
def ablate(
    configs: Annotated[
        list[str],
        typer.Argument(help="Reward configs (files, or shipped ones such as rewards/iou), then key=value of the base."),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the runs, OUT/NAME/seed-K, and of the tables.")] = Path(
        "runs/ablate"
    ),
    seeds: Annotated[int, typer.Option(help="Runs of each config: seeds 0, 1, ...")] = 3,
    steps: Annotated[int, typer.Option(help="Steps of each run.")] = 60,
    base: Annotated[Path, typer.Option(help="Config of a run, for all but rewards, shaping, seed, steps.")] = Path(
        "demo"
    ),
) -> None:
    """Train shortly under several rewards and seeds; one table with intervals, the others compared with the first.

    A command that was stopped, or repeated, goes on: what is finished is not done again. Exit status 1 where a run
    failed.
    """
    from rl.lab.ablate import ablate as run_ablation
    from rl.lab.ablation import Ablation

    overrides = tuple(entry for entry in configs if "=" in entry and not Path(entry).exists())
    rewards = tuple(Path(entry) for entry in configs if entry not in overrides)
    if not run_ablation(Ablation(rewards, out, base, seeds, steps, overrides), console):
        raise typer.Exit(1)


@rewards_app.command()
def compare(
    run: Annotated[
        Path, typer.Argument(help="Folder of a run; its archive and algorithm are read, and images for the page.")
    ],
    configs: Annotated[
        list[Path],
        typer.Argument(
            help="Reward configs: files, shipped ones such as rewards/iou, built-in rewards, runs' folders."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("compare.html"),
    steps: Annotated[str, typer.Option(help="Only the steps A:B, B not included.")] = ":",
) -> None:
    """Score a run's archived answers under several rewards: what each would reinforce, and where they disagree."""
    from rl.lab.compare import compare_rewards, comparison_tables, step_range
    from rl.lab.pages import write_comparison
    from rollout.disk import refuse_unwritable

    refuse_unwritable(out)
    found = compare_rewards(run, configs, step_range(steps), console)
    for table in comparison_tables(found):
        console.print(table)
    write_comparison(out, found)
    console.print(f"wrote {out}", soft_wrap=True, markup=False)


@rewards_app.command()
def score(
    run: Annotated[Path, typer.Argument(help="Folder of a run; only its archive is read.")],
    rewards: Annotated[
        Path | None,
        typer.Option(help="A YAML of rewards, a .py file, a built-in reward; the run's own where it is left out."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Parquet file to write; RUN/rescored/NAME.parquet with --rewards.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Score every archived answer again, under other rewards or its own: no model, no GPU, a step in memory at a time.

    Under its own rewards, exit status 1 where a term or total has another bit than the archive.
    """
    from rl.lab.score import as_dict, rescore_run, tell
    from rl.pages.json_text import json_text

    if rewards is not None and out is None:
        out = run / "rescored" / f"{rewards.stem}.parquet"
    found = rescore_run(run, rewards, out, Console(stderr=True))
    if as_json:
        print(json_text(as_dict(found), indent=2))
    else:
        tell(found, rewards, out, console)
    if rewards is None and not found.identical:
        raise typer.Exit(1)


@rewards_app.command()
def test(
    module: Annotated[
        Path,
        typer.Argument(help="A .py file, the name of a built-in reward, a YAML, or a run's folder."),
    ],
    choices: Annotated[
        bool, typer.Option("--choices", help="Hostile choices among candidate masks, in place of hostile outlines.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what hostile answers would earn next to honest ones, term by term, and what that makes of the rewards.

    Exit status 0 only where they can be trained on as they are: 1 where a trick pays, also where one reward alone is
    fit beside mask_iou only, where it teaches nothing, and where it pays the same answer differently.
    """
    from rl.config.rewards import load_rewards
    from rl.lab.hostile import test_rewards

    if not test_rewards(load_rewards(module), console, as_json, choices):
        raise typer.Exit(1)
