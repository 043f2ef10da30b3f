"""Arguments and options that several commands share."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rl.config.run import RunConfig

Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings to change, as dotted.key=value.", show_default=False)
]
CONFIG_HELP = "YAML file, or the name of a shipped one (demo, sft_tiny, coco28, ...)."
Config = Annotated[Path, typer.Argument(help=CONFIG_HELP)]
RunFolder = Annotated[Path, typer.Argument(help="Folder of a run.")]
RunFolders = Annotated[list[Path], typer.Argument(help="Folders of runs, or folders that hold several.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in its folder from its last checkpoint.")]


def without_gpu_warning() -> None:
    """Tell DeepSpeed, which transformers imports, where there is no GPU; else it warns of that in every process."""
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def run_folder(run: Path) -> Path:
    """`run` itself; raises FileNotFoundError where it is not a folder."""
    if not run.is_dir():
        raise FileNotFoundError(f"{run} is not a folder; give the folder of a run, such as runs/demo.")
    return run


def run_config(run: Path, overrides: Sequence[str] = ()) -> "RunConfig":
    """The config that the folder of a run holds, with some settings changed; its `run` is that folder."""
    from rl.config.load import load_settings, override_of
    from rl.config.run import RunConfig

    return load_settings(RunConfig, run_folder(run) / "config.yaml", [override_of("run", run), *overrides])


def run_settings(config: Path, overrides: Sequence[str] | None) -> "RunConfig":
    """The config of a run from a YAML file, or the name of a shipped one, and overrides; its plugins' entries too."""
    from rl.config.load import load_settings
    from rl.config.run import RunConfig

    settings = load_settings(RunConfig, config, overrides or [])
    from rl.config.plugins import check_entries

    check_entries(settings)
    return settings
