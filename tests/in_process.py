"""A learner and a pool of one rank and one worker in this process: what the loop does is then the only thing tested."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from processes import forks
from rich.console import Console
from safetensors import SafetensorError

from policies.weights import Bucket
from rl.config.learner import RankPlace
from rl.config.load import load_settings
from rl.config.run import RunConfig
from rl.learner.batches.batch import Batch
from rl.learner.rank import LearnerRank
from rl.run.folder import RunFolder
from rl.run.parts import RunParts, rank_settings, run_parts, worker_settings
from rl.train import begin, loop
from rollout import disk
from rollout.archive.archive import RolloutArchive
from rollout.records import Group
from rollout.worker import RolloutWorker, Unit

TINY = [
    "groups_per_step=2",
    "group_size=3",
    "groups_per_unit=1",
    "sampling.max_tokens=24",
    "learner.micro_groups=1",
    "learner.threads=1",
    "learner.average=0",
    "evaluation.num_scenes=4",
    "save_every=2",
    "evaluation.every=2",
    "keep_checkpoints=1",
    "shaping.total={kind: quantile, history: 9}",
]


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """As Learner tells of a disk that refuses: torch and safetensors raise errors of their own."""
    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        raise disk.refused("this checkpoint", folder, f"{error}".partition("\n")[0]) from error


class LocalLearner:
    """One LearnerRank behind the methods of Learner."""

    def __init__(self, config: RunConfig, parts: RunParts, port: int) -> None:
        self._rank = LearnerRank(rank_settings(config, parts), RankPlace(port=port))

    def step(self, batch: Batch) -> dict[str, float]:
        return self._rank.step(batch)

    def weights(self, average: bool = False) -> list[Bucket]:
        return list(self._rank.buckets(average))

    def save(self, folder: Path, tag: str) -> None:
        with writing(folder):
            self._rank.save(folder, tag)

    def load(self, folder: Path, tag: str) -> None:
        self._rank.load(folder, tag)

    def save_policy(self, folder: Path) -> None:
        with writing(folder):
            self._rank.save_policy(folder)

    def close(self) -> None:
        pass


class LocalPool:
    """One RolloutWorker behind the methods of WorkerPool."""

    def __init__(self, config: RunConfig, parts: RunParts) -> None:
        self._worker = RolloutWorker(worker_settings(config, parts), "0")
        self._version = -1
        self._asked: deque[list[Group]] = deque()

    def set_weights(self, weights: Sequence[Bucket], version: int) -> None:
        self._worker.set_weights(version, weights)
        self._version = version

    def checkpoint_weights(self, checkpoint: Path) -> list[Bucket]:
        self._worker.load_checkpoint(checkpoint)
        return list(self._worker.buckets())

    def ask(self, units: Iterable[Unit]) -> None:
        self._asked.append([group for unit in units for group in self._worker.answer(unit, self._version)])

    def collect(self) -> list[Group]:
        return self._asked.popleft()

    def answer(self, units: Iterable[Unit]) -> list[Group]:
        self.ask(units)
        return self._asked.pop()

    def close(self) -> None:
        pass


class LocalWriter:
    """The archive itself behind the methods of ArchiveWriter: a step is on the disk before the next line runs."""

    def __init__(self, archive: RolloutArchive) -> None:
        self._archive = archive

    def append(self, step: int, groups: Sequence[Group]) -> None:
        self._archive.append(step, groups)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self._archive.close()


def settings(folder: Path, *overrides: str) -> RunConfig:
    return load_settings(RunConfig, Path("tiny"), [f"run={folder}", *TINY, *overrides])


def run_here(folder: Path, port: int, overrides: Sequence[str] = ()) -> None:
    """Train as `polytrace demo` does: from the last checkpoint where there is one."""
    config, run_folder = settings(folder, *overrides), RunFolder(folder)
    parts, resume = run_parts(config), run_folder.can_resume
    run_folder.begin(config, parts.data, resume)
    actors = (LocalLearner(config, parts, port), LocalPool(config, parts))
    run = begin(config, parts, actors, resume)  # type: ignore[arg-type]
    run.archiving = LocalWriter(run.rollouts)  # type: ignore[assignment]
    loop(run, Console(quiet=True))
    run.close()


def apart(function: Callable[..., None], *arguments: Any) -> int:
    """The exit code of a process that calls the function, -1 where that takes more than five minutes."""
    process = forks().Process(target=function, args=arguments)
    process.start()
    process.join(timeout=300)
    if process.exitcode is None:
        process.kill()
        return -1
    return process.exitcode
