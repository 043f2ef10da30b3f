"""Checkpoints on a real file system, killed between any two operations on it."""

import json
import os
import random
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rl.run.checkpoints import Checkpoints, Position, random_states, set_random_states

CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree"}
"""Audit events of what changes a folder; `open` for writing is one more."""
KILLED = 9


class Learner:
    """Stands for the ranks: what it writes says which step wrote it."""

    def __init__(self, step: int = -1) -> None:
        self.step = step

    def save(self, folder: Path, tag: str) -> None:
        (folder / tag).mkdir()
        for rank in range(2):
            (folder / tag / f"rank-{rank}").write_text(str(self.step) * 1000)

    def load(self, folder: Path, tag: str) -> None:
        texts = {(folder / tag / f"rank-{rank}").read_text() for rank in range(2)}
        (text,) = texts
        self.step = int(text[: len(text) // 1000])

    def save_policy(self, folder: Path) -> None:
        self.save(folder.parent, folder.name)


def position(step: int) -> Position:
    return Position(step, 4 * step, step, ranks=2, zero_stage=1)


def save(run: Path, step: int, keep: int = 2) -> None:
    checkpoints = Checkpoints(run, keep)
    checkpoints.save_best(Learner(step), step, giou=step / 100)
    checkpoints.save(Learner(step), position(step))


def killed_at(change: int, work: Callable[[], None]) -> bool:
    """Do the work in a process that ends by itself just before its change number `change`; whether it came to that."""
    child = os.fork()
    if child == 0:
        left = change

        def count(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal left
            writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if event in CHANGES or writes:
                left -= 1
                if left < 0:
                    os._exit(KILLED)

        sys.addaudithook(count)
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == KILLED


def test_a_kill_between_any_two_changes_of_a_file_leaves_the_old_checkpoint_or_the_new_one(tmp_path: Path) -> None:
    before = tmp_path / "before"
    save(before, 10, keep=1)
    found, change, killed = [], 0, True
    while killed:
        run = tmp_path / f"run-{change}"
        shutil.copytree(before, run)
        killed = killed_at(change, lambda run=run: save(run, 20, keep=1))
        learner, checkpoints = Learner(), Checkpoints(run, keep=1)
        found.append(checkpoints.load_last(learner))
        assert learner.step == found[-1]
        best = checkpoints.best
        assert best is not None and best.folder.is_dir() and best.giou == best.step / 100
        # Whatever was left lying about does not hinder the next one, and is gone after it.
        save(run, 30, keep=1)
        assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["best-000030", "step-000030"]
        change += 1
    assert sorted(found) == found and set(found) == {10, 20}
    assert len(found) > 15


def test_a_checkpoint_says_where_the_run_stands_and_only_the_last_few_are_kept(tmp_path: Path) -> None:
    for step in (0, 20, 40):
        save(tmp_path, step)
    checkpoints, learner = Checkpoints(tmp_path, 2), Learner()
    assert checkpoints.steps == [20, 40]
    assert checkpoints.load_last(learner) == learner.step == 40
    assert checkpoints.last_position == Position(40, 160, 40, ranks=2, zero_stage=1)
    best = checkpoints.best
    assert best is not None and (best.step, best.giou) == (40, 0.4)
    checkpoints.forget_after(20)
    assert checkpoints.steps == [20] and checkpoints.best is None


def test_one_that_is_there_already_is_not_written_again(tmp_path: Path) -> None:
    save(tmp_path, 20)
    Checkpoints(tmp_path, 2).save(Learner(99), position(20))
    learner = Learner()
    Checkpoints(tmp_path, 2).load_last(learner)
    assert learner.step == 20


def test_steps_are_ordered_by_number_beyond_a_million(tmp_path: Path) -> None:
    for step in (999_980, 1_000_000):
        save(tmp_path, step)
    assert Checkpoints(tmp_path, 2).last_step == 1_000_000


def test_half_a_checkpoint_is_never_taken(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, 2)
    assert checkpoints.last_step is None
    (tmp_path / "checkpoints/step-000030.partial").mkdir(parents=True)
    (tmp_path / "checkpoints/step-000040").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no whole checkpoint to resume from"):
        checkpoints.load_last(Learner())
    save(tmp_path, 20)
    assert checkpoints.load_last(Learner()) == 20


@pytest.mark.parametrize(("spoil", "message"), [("cut", "rank-1 is 3 bytes long, 2000"), ("gone", "rank-1 is missing")])
def test_a_checkpoint_with_a_cut_or_missing_file_is_refused(tmp_path: Path, spoil: str, message: str) -> None:
    save(tmp_path, 20)
    file = tmp_path / "checkpoints/step-000020/learner/rank-1"
    if spoil == "cut":
        file.write_text("202")
    else:
        file.unlink()
    with pytest.raises(ValueError, match=f"{message}.* delete .*step-000020 to go on from the checkpoint before it"):
        Checkpoints(tmp_path, 2).load_last(Learner())


def test_a_checkpoint_of_another_format_or_another_place_of_archive_or_examples_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 20)
    checkpoints = Checkpoints(tmp_path, 2)
    checkpoints.refuse_other_place(groups_per_step=4, archived_steps=23)
    with pytest.raises(ValueError, match=r"after 80 examples, but 20 steps of 8 groups ask 160"):
        checkpoints.refuse_other_place(groups_per_step=8, archived_steps=20)
    with pytest.raises(ValueError, match=r"goes on after 20 archived steps, but the archive holds 19"):
        checkpoints.refuse_other_place(groups_per_step=4, archived_steps=19)
    state = tmp_path / "checkpoints/step-000020/state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"format": 0}))
    with pytest.raises(ValueError, match="has format 0, this version of Polytrace reads 1"):
        checkpoints.load_last(Learner())


def draws() -> list[float]:
    return [
        *torch.rand(3).tolist(),
        *torch.randn(2).tolist(),
        random.gauss(0, 1),
        *np.random.normal(size=3),
        *np.random.random(2),
    ]


@pytest.mark.parametrize("drawn", [0, 1])
def test_every_generator_goes_on_where_it_was(drawn: int) -> None:
    """An odd number of Gaussian draws leaves a second one pending in Python's and numpy's generators."""
    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(7)
    for _ in range(drawn):
        random.gauss(0, 1)
        np.random.normal()
    states = random_states()
    first = draws()
    assert draws() != first
    set_random_states(states)
    assert draws() == first


def test_a_position_survives_its_file(tmp_path: Path) -> None:
    save(tmp_path, 20)
    assert Checkpoints(tmp_path, 2).position_of(20) == replace(
        position(0), step=20, examples_asked=80, archived_steps=20
    )
