"""`polytrace plan`."""

import re
from typing import Annotated

import typer
from rich.console import Console

from rl.cli.options import AsJson, Config, Overrides, run_settings, without_gpu_warning

console = Console(emoji=False)


def plan(
    config: Config,
    overrides: Overrides = None,
    gpus: Annotated[int | None, typer.Option(help="Cards that there are.", show_default="those of the config")] = None,
    gpu: Annotated[str, typer.Option(help="Kind of card: h100, h200, a100, l40s, rtx4090.")] = "h100",
    gpu_gb: Annotated[
        float | None, typer.Option("--gpu-gb", help="GB of one card.", show_default="the card's own")
    ] = None,
    mfu: Annotated[float, typer.Option(help="Share of a card's peak that learning reaches; assumed.")] = 0.35,
    image: Annotated[
        str | None,
        typer.Option(help="Largest photos, HEIGHTxWIDTH.", show_default="the largest that the model is shown"),
    ] = None,
    answer_tokens: Annotated[
        float | None, typer.Option(help="Mean tokens of an answer.", show_default="0.6 of sampling.max_tokens")
    ] = None,
    node_gpus: Annotated[int, typer.Option(help="Cards of one node.")] = 8,
    network_gbit: Annotated[float, typer.Option(help="Gbit a second between nodes, of each card.")] = 400.0,
    as_json: AsJson = False,
) -> None:
    """Whether a run fits its cards, how long a step takes, what limits it and what to change; all estimated.

    The checkpoint's folder needs no weights: config.json, tokenizer and image processor do. Exit status 1 where the run
    does not fit (docs/plan.md).
    """
    settings = run_settings(config, overrides)
    without_gpu_warning()
    from rl.pages.json_text import json_text
    from rl.plan import Look, lines_of, machines_for, tables_of
    from rl.plan import as_json as numbers_of
    from rl.plan import plan as make_plan
    from rl.planning.cards import card_named

    machines = machines_for(settings, card_named(gpu, gpu_gb), gpus, node_gpus, network_gbit, mfu)
    found = make_plan(settings, machines, Look(_sides(image), answer_tokens))
    if as_json:
        print(json_text(numbers_of(found), indent=2))
    else:
        for table in tables_of(found):
            console.print(table)
        for line in lines_of(found):
            console.print(line, markup=False, soft_wrap=True)
    if found.problems:
        raise typer.Exit(1)


def _sides(image: str | None) -> tuple[int, int] | None:
    if image is None:
        return None
    found = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", image)
    if found is None:
        raise ValueError(f"--image is {image!r}; give height and width in pixels, such as 480x640.")
    return int(found[1]), int(found[2])
