"""`polytrace benchmark` in this process, its one worker too."""

from collections import deque
from types import SimpleNamespace

import pytest
from commands import here
from in_process import LocalPool

from rl.run import workers
from rollout.worker import RolloutWorker, WorkerSettings


class Workers(LocalPool):
    """One worker in this process, built as WorkerPool is."""

    def __init__(self, _: object, worker: WorkerSettings) -> None:
        self._worker = RolloutWorker(worker, "0")
        self._version, self._asked = -1, deque()


def run_benchmark(*arguments: object) -> str:
    """What `polytrace benchmark` says, with its worker in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "WorkerPool", Workers)
        patch.setattr(workers, "cluster", SimpleNamespace(start=lambda *_: None, stop=lambda: None))
        done = here("benchmark", *arguments)
    assert done.status == 0, done.stdout + done.stderr
    return done.stdout
