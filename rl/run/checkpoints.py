"""A run's checkpoints: written beside, synced to disk, renamed when whole, and old ones dropped only then.

    checkpoints/step-000040/   learner/ (files of all ranks, rl/learner/files.py), random-driver.safetensors, state.json
    checkpoints/best-000020/   policy/ (a Hugging Face folder), state.json: the best greedy gIoU on validation so far

A folder that is being written is called NAME.partial, one that is being deleted NAME.dropped; neither is ever read, so
a kill between any two operations leaves the last whole checkpoint in place. state.json lists every file with its size.

All that a run needs to go on is there or follows from the config: weights, optimizer and average of each rank, the
generators (torch, Python, numpy) of each rank and of the driver, the step, how many examples were asked and how many
steps are archived. The history of shaping is read from the archive. Answers and examples have no state: their random
numbers are keyed by seed and step.
"""

import json
import os
import random
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rollout.disk import sync_folder


def random_states() -> dict[str, Tensor]:
    """All states by name: `torch` and `torch_gpu.N` uint8 of any length, `python` int64 [625 + 1], `numpy` int64."""
    version, words, gauss = random.getstate()
    # A pending second Gaussian number travels as the bits of the float, its absence as no bits at all.
    pending = [] if gauss is None else np.array([gauss], np.float64).view(np.int64).tolist()
    name, keys, place, has_gauss, cached = np.random.get_state()
    assert (version, name) == (3, "MT19937")
    cached_bits = np.array([cached], np.float64).view(np.int64)
    numpy_state = np.concatenate([np.asarray(keys, np.int64), [place, has_gauss], cached_bits]).astype(np.int64)
    states = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor([*words, *pending], dtype=torch.int64),
        "numpy": torch.from_numpy(numpy_state),
    }
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return states | {f"torch_gpu.{k}": state for k, state in enumerate(gpus)}


def set_random_states(states: Mapping[str, Tensor]) -> None:
    """Go on drawing where `random_states` was taken; states of GPUs that this process does not see are left out."""
    torch.set_rng_state(states["torch"])
    words = states["python"].tolist()
    pending = None if len(words) == 625 else float(np.array([words[625]], np.int64).view(np.float64)[0])
    random.setstate((3, tuple(words[:625]), pending))
    numbers = states["numpy"].numpy()
    cached = float(numbers[626:].copy().view(np.float64)[0])
    keys = numbers[:624].astype(np.uint32)
    np.random.set_state(("MT19937", keys, int(numbers[624]), int(numbers[625]), cached))
    for k in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        if f"torch_gpu.{k}" in states:
            torch.cuda.set_rng_state(states[f"torch_gpu.{k}"], k)


FORMAT = 1
_DRIVER = "random-driver.safetensors"


class Savable(Protocol):
    """What of the learner a checkpoint asks for."""

    def save(self, folder: Path, tag: str) -> None:
        """Write what is needed to go on, below folder/tag."""

    def load(self, folder: Path, tag: str) -> None:
        """Go on from `save`."""

    def save_policy(self, folder: Path) -> None:
        """Write the policy as a Hugging Face folder."""


@dataclass(frozen=True)
class Position:
    """Where a run stands."""

    step: int
    """Steps done, and updates that the weights have seen."""
    examples_asked: int
    """The prompt cursor: how far the stream of training examples has been read."""
    archived_steps: int
    """Steps in the archive, 0 .. archived_steps - 1."""
    ranks: int
    """Learner ranks that wrote this; another number may read it."""
    zero_stage: int


@dataclass(frozen=True)
class BestPolicy:
    """The policy with the best greedy gIoU on validation."""

    step: int
    """Updates that it has seen."""
    giou: float
    folder: Path
    """Hugging Face folder of the policy."""


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, run: Path, keep: int) -> None:
        self._folder = run / "checkpoints"
        self._keep = keep

    def save(self, learner: Savable, position: Position) -> None:
        """Write a checkpoint; drop all but the last few. One that is there already, of a run just resumed, stays."""
        name = f"step-{position.step:06d}"
        if not _is_whole(self._folder / name):
            partial = self._begin(name)
            learner.save(partial, "learner")
            save_file(random_states(), partial / _DRIVER)
            self._finish(partial, {"position": asdict(position)})
        self._prune("step", self._keep)

    def load_last(self, learner: Savable) -> int:
        """Bring the learner and this process's generators to the last checkpoint; returns its step.

        Raises FileNotFoundError where there is none, ValueError where files of it are missing or cut.
        """
        position = self.last_position
        if position is None:
            raise FileNotFoundError(
                f"{self._folder} holds no whole checkpoint to resume from; start the run without --resume."
            )
        folder = self.folder_of(position.step)
        learner.load(folder, "learner")
        set_random_states(load_file(folder / _DRIVER))
        return position.step

    def save_best(self, learner: Savable, step: int, giou: float) -> bool:
        """Keep the policy of `step` if its greedy gIoU is the best so far; returns whether it is."""
        best = self.best
        if best is not None and (best.giou >= giou or best.step == step):
            return False
        partial = self._begin(f"best-{step:06d}")
        learner.save_policy(partial / "policy")
        self._finish(partial, {"step": step, "giou": giou})
        self._prune("best", 1)
        return True

    def forget_after(self, step: int) -> None:
        """Drop what was kept after `step`, so that a resumed run chooses its best policy as an uninterrupted one
        would."""
        for kind in ("step", "best"):
            for number, path in self._whole(kind).items():
                if number > step:
                    _drop(path)

    @property
    def steps(self) -> list[int]:
        """Steps of the whole checkpoints, in order."""
        return list(self._whole("step"))

    @property
    def last_step(self) -> int | None:
        """Step of the last whole checkpoint."""
        return max(self.steps, default=None)

    @property
    def last_position(self) -> Position | None:
        """Where the run stood at its last whole checkpoint. Raises ValueError where that one is damaged."""
        step = self.last_step
        return None if step is None else self.position_of(step)

    def position_of(self, step: int) -> Position:
        """Where the run stood at a whole checkpoint. Raises ValueError where that one is damaged."""
        folder = self.folder_of(step)
        state = _state(folder)
        _refuse_damage(folder, state["files"])
        return Position(**state["position"])

    def refuse_other_place(self, groups_per_step: int, archived_steps: int) -> None:
        """Check that the run's archive and settings still fit its last checkpoint. Raises ValueError where not.

        archived_steps: how many steps, from the first on, the archive holds now.
        """
        position = self.last_position
        if position is None:
            return
        asked = position.step * groups_per_step
        if asked != position.examples_asked:
            raise ValueError(
                f"{self.folder_of(position.step)} was written after {position.examples_asked} examples, but "
                f"{position.step} steps of {groups_per_step} groups ask {asked}; resume with the groups_per_step that "
                "the run began with."
            )
        if archived_steps < position.archived_steps:
            raise ValueError(
                f"{self.folder_of(position.step)} goes on after {position.archived_steps} archived steps, but the "
                f"archive holds {archived_steps}; bring back its missing shards (polytrace archive verify names them), "
                "or start another run."
            )

    @property
    def best(self) -> BestPolicy | None:
        """The best policy so far."""
        whole = self._whole("best")
        if not whole:
            return None
        step = max(whole)
        return BestPolicy(step, _state(whole[step])["giou"], whole[step] / "policy")

    def folder_of(self, step: int) -> Path:
        """Where the checkpoint of a step is, or would be."""
        return self._folder / f"step-{step:06d}"

    def _whole(self, kind: str) -> dict[int, Path]:
        """Whole folders by step, in order."""
        matches = [(re.fullmatch(rf"{kind}-(\d{{6,}})", path.name), path) for path in self._folder.glob(f"{kind}-*")]
        return dict(sorted((int(match[1]), path) for match, path in matches if match and _is_whole(path)))

    def _begin(self, name: str) -> Path:
        partial = self._folder / f"{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        return partial

    def _finish(self, partial: Path, state: Mapping[str, Any]) -> None:
        """Give a folder that is written its name, once all of it is on disk."""
        files = {str(path.relative_to(partial)): path.stat().st_size for path in _files(partial)}
        (partial / "state.json").write_text(json.dumps({"format": FORMAT, **state, "files": files}, indent=1) + "\n")
        for path in _files(partial):
            with path.open("rb") as file:
                os.fsync(file.fileno())
        for folder in [path for path in partial.rglob("*") if path.is_dir()] + [partial]:
            sync_folder(folder)
        partial.rename(partial.with_suffix(""))
        sync_folder(self._folder)

    def _prune(self, kind: str, keep: int) -> None:
        for path in list(self._whole(kind).values())[:-keep]:
            _drop(path)
        for leftover in [*self._folder.glob(f"{kind}-*.partial"), *self._folder.glob(f"{kind}-*.dropped")]:
            shutil.rmtree(leftover)  # of a run that was killed


def _drop(path: Path) -> None:
    dropped = path.with_name(f"{path.name}.dropped")
    shutil.rmtree(dropped, ignore_errors=True)
    path.rename(dropped)  # half a folder must never carry the name of a whole one
    shutil.rmtree(dropped)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _is_whole(path: Path) -> bool:
    return (path / "state.json").is_file()


def _state(path: Path) -> dict[str, Any]:
    state = json.loads((path / "state.json").read_text())
    if state.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {state.get('format')}, this version of Polytrace reads {FORMAT}; go on with the "
            "version that began the run, or start another run."
        )
    return state


def _refuse_damage(folder: Path, files: Mapping[str, int]) -> None:
    for name, size in files.items():
        path = folder / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            raise ValueError(
                f"{path} is {'missing' if found is None else f'{found} bytes long'}, {size} bytes were written; bring "
                f"the file back, or delete {folder} to go on from the checkpoint before it."
            )
