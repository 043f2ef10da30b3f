"""`polytrace data`: look at the data of a config, and prepare it once."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from rl.cli.options import AsJson, Config, Overrides

data_app = typer.Typer(no_args_is_help=True, help="Look at the data of a config, and prepare it once.")
console = Console(emoji=False)

Splits = Annotated[
    list[str] | None,
    typer.Option("--split", help="Only this split; may be given several times.", show_default="all of the env"),
]


@data_app.command()
def prepare(
    config: Config,
    out: Annotated[Path, typer.Option(help="Folder for the shards; one that was stopped goes on there.")],
    overrides: Overrides = None,
    split: Splits = None,
    embed: Annotated[
        bool, typer.Option("--embed", help="Write images into the shards, not only where their files are.")
    ] = False,
) -> None:
    """Write the examples of a config's env once, as Parquet that opens at once: `env: {name: shards, folder: OUT}`.

    Images are referred to by file and hash; those that an env composes are always embedded (docs/data.md).
    """
    from rl.data import all_splits, data_config, prepared_table
    from rl.data import prepare as write

    if out.exists() and not out.is_dir():
        raise ValueError(f"--out is {out}, which is a file; give a folder, one that is new or that this command began.")
    data = data_config(config, overrides or [])
    cards = write(data, split or all_splits(data), out, embed, console)
    console.print(prepared_table(cards))
    console.print(f"prepared: {out}   in a config: env: {{name: shards, folder: {out}}}", markup=False, soft_wrap=True)


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
    from rollout.disk import refuse_unwritable

    if limit < 1 or pictures < 0 or seed < 0:
        raise ValueError(f"limit is {limit}, pictures {pictures}, seed {seed}; set limit to 1 or more, others to 0.")
    if out is not None and out.suffix != ".html":
        raise ValueError(f"{out} does not end in .html; give --out the name of a page.")
    if out is not None:
        refuse_unwritable(out)
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
