"""A run's checkpoints: written under a temporary name and renamed when whole, old ones dropped only then.

checkpoints/step-000040/   learner/ (DeepSpeed's files, of all ranks), state.json
checkpoints/best-000020/   policy/ (a Hugging Face folder), state.json: the best greedy gIoU on validation so far
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from rl.learner import Learner


@dataclass(frozen=True)
class BestPolicy:
    """The policy with the best greedy gIoU on validation."""

    step: int
    """Updates that it has seen."""
    giou: float
    folder: Path
    """Its Hugging Face folder."""


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, run: Path, keep: int) -> None:
        self._folder = run / "checkpoints"
        self._keep = keep
        self._folder.mkdir(parents=True, exist_ok=True)

    def save(self, learner: Learner, step: int) -> None:
        """Write a checkpoint after `step` updates; drop all but the last few."""
        partial = self._begin(f"step-{step:06d}")
        learner.save(partial, "learner")
        self._finish(partial, {"step": step})
        self._prune("step", self._keep)

    def load_last(self, learner: Learner) -> int:
        """Bring the learner to the last checkpoint; returns its step. Raises FileNotFoundError where there is none."""
        step = self.last_step
        if step is None:
            raise FileNotFoundError(
                f"{self._folder} holds no checkpoint to resume from; start the run without --resume."
            )
        learner.load(self._folder / f"step-{step:06d}", "learner")
        return step

    def save_best(self, learner: Learner, step: int, giou: float) -> bool:
        """Keep the policy of `step` if its greedy gIoU is the best so far; returns whether it is."""
        best = self.best
        if best is not None and best.giou >= giou:
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
            for path in self._whole(kind):
                if _state(path)["step"] > step:
                    shutil.rmtree(path)

    @property
    def last_step(self) -> int | None:
        """Step of the last whole checkpoint."""
        whole = self._whole("step")
        return int(_state(whole[-1])["step"]) if whole else None

    @property
    def best(self) -> BestPolicy | None:
        """The best policy so far."""
        whole = self._whole("best")
        if not whole:
            return None
        state = _state(whole[-1])
        return BestPolicy(int(state["step"]), state["giou"], whole[-1] / "policy")

    def _whole(self, kind: str) -> list[Path]:
        return sorted(path for path in self._folder.glob(f"{kind}-*") if path.suffix != ".partial")

    def _begin(self, name: str) -> Path:
        partial = self._folder / f"{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        return partial

    def _finish(self, partial: Path, state: dict[str, float]) -> None:
        (partial / "state.json").write_text(json.dumps(state) + "\n")
        whole = partial.with_suffix("")
        shutil.rmtree(whole, ignore_errors=True)
        partial.rename(whole)

    def _prune(self, kind: str, keep: int) -> None:
        for path in self._whole(kind)[:-keep]:
            shutil.rmtree(path)


def _state(path: Path) -> dict[str, float]:
    return json.loads((path / "state.json").read_text())
