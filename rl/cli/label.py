"""`polytrace label`: labels from unlabelled images, a look at them, and their review by people."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from rl.cli.options import AsJson, Overrides, without_gpu_warning

console = Console(emoji=False)
_RUN = "run"


class _ConfigFirst(TyperGroup):
    """A group in which a config stands for the command that runs it: `polytrace label CONFIG`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command of the first argument; that of a config is `run`."""
        return super().resolve_command(ctx, args if args[0] in self.commands else [_RUN, *args])


label_app = typer.Typer(
    cls=_ConfigFirst,
    no_args_is_help=True,
    help="Labels from unlabelled images: `polytrace label CONFIG`, then a report, and a review by people.",
)
Labels = Annotated[Path, typer.Argument(help="Folder of labels, the `out` of their config.")]


@label_app.command(_RUN, hidden=True)  # a config stands for it
def run(
    config: Annotated[Path, typer.Argument(help="YAML file, or the name of a shipped one (label/embedded, ...).")],
    overrides: Overrides = None,
) -> None:
    """Detect, segment, caption, verify and clean by the stages of a config; `polytrace label CONFIG` is enough.

    Writes example shards that `sft` and `train` open, and beside them everything that a stage refused (docs/label.md).
    A job that was stopped goes on by the same command.
    """
    from rl.config.label import LabelConfig
    from rl.config.load import load_settings

    settings = load_settings(LabelConfig, config, overrides or [])
    without_gpu_warning()
    from rl.label import label

    card = label(settings, console)
    console.print(
        f"labels: {card.num_examples:,} examples in {settings.out}   next: polytrace label report {settings.out}, "
        f"polytrace data show {settings.out}",
        markup=False,
        soft_wrap=True,
        highlight=False,
    )


@label_app.command()
def report(out: Labels, as_json: AsJson = False) -> None:
    """What each stage refused and why, how good labels are where the truth is known, and a page with pictures of both.

    Writes OUT/labels.html.
    """
    from rl.labels.report import LabelReport, table_of, times_of

    found = LabelReport(out)
    if as_json:
        from rl.pages.json_text import json_text

        print(json_text(found.as_json(), indent=2))
        return
    from rl.labels.page import write_label_page

    console.print(table_of(found))
    if found.times():
        console.print(times_of(found))
    if found.is_judged:
        before, after = found.before_and_after()
        console.print(f"mean IoU with the truth: {before:.3f} before verification, {after:.3f} of the labels")
    page = out / "labels.html"
    write_label_page(found, page)
    console.print(f"page: {page}", markup=False, soft_wrap=True, highlight=False)


@label_app.command()
def review(
    out: Labels,
    sample: Annotated[int, typer.Option(min=1, help="Images of the sample.")] = 100,
    seed: Annotated[int, typer.Option(help="Of the sample.")] = 0,
    corrected: Annotated[
        Path | None, typer.Option(help="Export of Label Studio (JSON) to compare the labels with.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """A sample of the labels as tasks of Label Studio, in OUT/review/; with --corrected, what people made of them."""
    from rl.labels.review import FOLDER, TASKS, read_review, table_of, write_tasks

    if corrected is None:
        num = write_tasks(out, sample, seed)
        folder = out / FOLDER
        console.print(
            f"{num:,} images in {folder / TASKS}   next: in Label Studio a project with {folder}/interface.xml, the "
            f"folder {out} as local storage, and these tasks; then polytrace label review {out} --corrected EXPORT",
            markup=False,
            soft_wrap=True,
            highlight=False,
        )
        return
    found = read_review(out, corrected)
    if as_json:
        from rl.pages.json_text import json_text

        print(json_text(found.as_json(), indent=2))
        return
    console.print(table_of(found))
