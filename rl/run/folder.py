"""Folders of runs as a user gives them: one by one, or a folder that holds several."""

from collections.abc import Sequence
from pathlib import Path

from rl.config.load import load_settings, save_settings
from rl.config.run import RunConfig
from rl.run.checkpoints import Checkpoints
from rl.run.data import RunData
from rollout.archive.archive import RolloutArchive


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


def prepare_folder(config: RunConfig, data: RunData, resume: bool) -> None:
    """Make the run's folder, write config.yaml and data.json into it; refuses to mix runs, or one run's data."""
    folder = Path(config.run)
    if not resume and (folder / "archive").exists():
        raise FileExistsError(
            f"{folder} holds a run already; go on with it by --resume, or give this one another folder by run=NAME."
        )
    if resume and not any((folder / "checkpoints").glob("step-??????")):
        raise FileNotFoundError(f"{folder} holds no checkpoint to resume from; start the run without --resume.")
    if resume:
        refuse_other_settings(config, load_settings(RunConfig, folder / "config.yaml"))
        data.refuse_other(folder)
        last_step = RolloutArchive(folder / "archive").last_step
        archived_steps = 0 if last_step is None else last_step + 1
        Checkpoints(folder, config.keep_checkpoints).refuse_other_place(config.groups_per_step, archived_steps)
    folder.mkdir(parents=True, exist_ok=True)
    save_settings(config, folder / "config.yaml")
    data.write(folder)


def refuse_other_settings(config: RunConfig, begun: RunConfig) -> None:
    """Refuse to go on with settings that would make another run of it."""
    kept = ["seed", "groups_per_step", "group_size", "groups_per_unit", "refills", "env", "codec", "policy", "rewards"]
    kept += ["shaping", "algorithm", "sampling", "refined"]
    now, before = ({name: vars(one)[name] for name in kept} for one in (config, begun))
    for name in ("staleness", "engine"):
        now[f"pool.{name}"], before[f"pool.{name}"] = vars(config.pool)[name], vars(begun.pool)[name]
    # The number of ranks, and how they share the work, may change: the sums are the same, up to their order.
    now |= {f"learner.{name}": value for name, value in config.learner.identity.items()}
    before |= {f"learner.{name}": value for name, value in begun.learner.identity.items()}
    for name, value in now.items():
        if value != before[name]:
            raise ValueError(
                f"{name} is {value}, but {config.run} began with {before[name]}; resume with the same settings, or "
                "start another run by run=NAME."
            )


def prepare_sampled_folder(config: RunConfig, data: RunData, resume: bool) -> None:
    """Make the run's folder, write config.yaml and data.json into it; refuses to mix runs, or one run's data."""
    folder = Path(config.run)
    archived = (folder / "archive").exists()
    if not resume and archived:
        raise FileExistsError(
            f"{folder} holds a run already; go on with it by --resume, or give this one another folder by run=NAME."
        )
    if (folder / "checkpoints").exists():
        raise ValueError(f"{folder} holds a training run; give what is sampled a folder of its own by run=NAME.")
    if resume and not archived:
        raise FileNotFoundError(f"{folder} holds no archive to go on with; start without --resume.")
    if resume:
        refuse_other_settings(config, load_settings(RunConfig, folder / "config.yaml"))
        data.refuse_other(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_settings(config, folder / "config.yaml")
    data.write(folder)
