"""Folders of runs as a user gives them: one by one, or a folder that holds several."""

from collections.abc import Sequence
from pathlib import Path


def archived_runs(folders: Sequence[Path]) -> list[Path]:
    """The runs that have an archive: each folder itself, or the runs in it where it is no run, by name.

    Raises FileNotFoundError where a folder is neither, ValueError where a run is given twice.
    """
    runs: list[Path] = []
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is not a folder; give the folder of a run, such as runs/demo.")
        found = [folder] if (folder / "archive").is_dir() else sorted(p.parent for p in folder.glob("*/archive"))
        if not found:
            raise FileNotFoundError(f"{folder} holds no archive; give the folder of a run that has made a step.")
        runs += found
    resolved = [run.resolve() for run in runs]
    twice = [run for run, path in zip(runs, resolved, strict=True) if resolved.count(path) > 1]
    if twice:
        raise ValueError(f"{twice[0]} is given twice; name each run once, or its answers count twice.")
    return runs
