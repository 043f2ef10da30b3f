"""`polytrace rewards score`: a run's archived answers under its own rewards or others, written beside the archive."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from rewards.kernels.overlap import warm
from rewards.scorer import Scorer
from rl.config.rewards import load_rewards
from rl.pages.progress import bar
from rollout.archive.archive import RolloutArchive
from rollout.archive.rescore import RescoredStep, rescore
from rollout.disk import refuse_unwritable


@dataclass
class Sums:
    """One term, or the total, over all answers so far: rescored, and as archived where the run had it."""

    num: int = 0
    """Answers."""
    applies: int = 0
    """Answers to which it applies."""
    total: float = 0.0
    squares: float = 0.0
    archived: float | None = None
    """Sum of the archived values; None where the run had no such term."""
    archived_applies: int = 0
    differing: int = 0
    """Answers whose archived value is another one, in any bit."""

    def add(self, values: NDArray[np.float64], archived: NDArray[np.float64] | None) -> None:
        """Take in a step, NaN where the term does not apply."""
        held = values[~np.isnan(values)]
        self.num, self.applies = self.num + values.size, self.applies + held.size
        self.total, self.squares = self.total + float(held.sum()), self.squares + float((held**2).sum())
        if archived is not None:
            kept = archived[~np.isnan(archived)]
            self.archived, self.archived_applies = (
                (self.archived or 0.0) + float(kept.sum()),
                self.archived_applies + kept.size,
            )
            same = (values == archived) | (np.isnan(values) & np.isnan(archived))
            self.differing += int((~same).sum())

    @property
    def mean(self) -> float:
        """Over the answers to which it applies; NaN where there is none."""
        return self.total / self.applies if self.applies else float("nan")

    @property
    def std(self) -> float:
        """Standard deviation over the same."""
        return float(np.sqrt(max(0.0, self.squares / self.applies - self.mean**2))) if self.applies else float("nan")

    @property
    def archived_mean(self) -> float | None:
        """Mean of what the run archived; None where it had no such term."""
        return None if self.archived is None else self.archived / max(1, self.archived_applies)


@dataclass
class Rescored:
    """What rescoring a run came to."""

    sums: dict[str, Sums] = field(default_factory=dict)
    """By reward name, and `total`."""
    answers: int = 0
    seconds: float = 0.0
    """From the first step on; loading rewards and kernels left out."""
    skipped: dict[str, int] = field(default_factory=dict)
    """Answers that broke a reward and were left out of it."""

    @property
    def identical(self) -> bool:
        """Whether each term and the total have the very bits that the run archived."""
        return all(sums.archived is not None and not sums.differing for sums in self.sums.values())

    def add(self, step: RescoredStep) -> None:
        """Take in a step."""
        self.answers += step.totals.size
        for name, values in step.terms.items():
            self.sums.setdefault(name, Sums()).add(values, step.archived_terms.get(name))
        self.sums.setdefault("total", Sums()).add(step.totals, step.archived_totals)


def rescore_run(run: Path, rewards: Path | None, out: Path | None, console: Console) -> Rescored:
    """Rescore every archived answer of `run` under the rewards of a file (see load_rewards), or under its own.

    out: a Parquet file of one row per answer (step, position, index, example_id, reward_*, total), whole or absent.
    Raises ValueError or FileNotFoundError for rewards or an archive that cannot be used, before anything is written.
    """
    num_steps = _whole_steps(run)
    parts = load_rewards(rewards or run)
    if out is not None:
        refuse_unwritable(out)
    warm()
    scorer, found = Scorer(parts.recipes), Rescored()
    try:
        stream = bar(rescore(run, scorer, parts.shaper()), "rescoring", console, num_steps)
        started = time.perf_counter()
        for step in _written(stream, out):
            found.add(step)
        found.seconds = time.perf_counter() - started
    finally:
        scorer.close()
    found.skipped = dict(scorer.skipped)
    return found


def _whole_steps(run: Path) -> int:
    """Number of archived steps; raises where there is none, or one is missing between the first and the last."""
    archive = RolloutArchive(run / "archive")
    last_step = archive.last_step
    if last_step is None:
        raise FileNotFoundError(f"{run} holds no archived answers; give the folder of a run that has made a step.")
    if archive.num_steps != last_step + 1:
        raise ValueError(
            f"{run}/archive holds {archive.num_steps} of the {last_step + 1} steps up to its last; "
            f"`polytrace archive verify {run}` says which are missing."
        )
    return archive.num_steps


def _written(steps: Iterable[RescoredStep], out: Path | None) -> Iterator[RescoredStep]:
    """Hand the steps on, after each is written to `out`."""
    if out is None:
        yield from steps
        return
    partial, writer = out.with_name(f".{out.name}.partial"), None
    try:
        for step in steps:
            rows = _rows(step)
            if writer is None:
                out.parent.mkdir(parents=True, exist_ok=True)
                writer = pq.ParquetWriter(partial, rows.schema, compression="zstd")
            writer.write_table(rows)
            yield step
        if writer is not None:
            writer.close()
            partial.replace(out)
    finally:
        if writer is not None:
            writer.close()
        partial.unlink(missing_ok=True)


def _rows(step: RescoredStep) -> pa.Table:
    num_groups, group_size = step.totals.shape
    columns: dict[str, pa.Array] = {
        "step": pa.array(np.full(step.totals.size, step.step)),
        "position": pa.array(np.repeat(np.arange(num_groups, dtype=np.int32), group_size)),
        "index": pa.array(np.tile(np.arange(group_size, dtype=np.int32), num_groups)),
        "example_id": pa.array(np.repeat(step.example_ids, group_size)),
    }
    terms = {f"reward_{name}": pa.array(values.ravel(), from_pandas=True) for name, values in step.terms.items()}
    return pa.table(columns | terms | {"total": pa.array(step.totals.ravel())})


def table(found: Rescored) -> Table:
    """A row a term: mean, spread, answers it does not apply to, and the same of the archive."""
    made = Table(title=f"{found.answers:,} archived answers, rescored", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("term", "mean", "std", "does not apply", "archived mean", "differ"):
        made.add_column(column, justify="left" if column == "term" else "right")
    for name, sums in found.sums.items():
        archived = ["", ""] if sums.archived_mean is None else [f"{sums.archived_mean:.4f}", f"{sums.differing}"]
        made.add_row(name, f"{sums.mean:.4f}", f"{sums.std:.4f}", f"{sums.num - sums.applies}", *archived)
    return made


def tell(found: Rescored, rewards: Path | None, out: Path | None, console: Console) -> None:
    """Print the table, what was written, and whether the archive was reproduced."""
    console.print(table(found))
    for name, sums in found.sums.items():
        if not sums.applies:
            console.print(f"{name} applies to none of these answers, so that it changes no total")
    for name, num in found.skipped.items():
        console.print(f"{name} was left out of {num} answers that broke it")
    console.print(f"{found.answers / max(found.seconds, 1e-9):,.0f} answers per second")
    if rewards is None:
        verdict = "the archived rewards, to the last bit" if found.identical else "NOT the archived rewards, see above"
        console.print(f"the run's own rewards give {verdict}")
    if out is not None:
        console.print(f"wrote {out}", soft_wrap=True)


def as_dict(found: Rescored) -> dict[str, object]:
    """What --json prints."""
    terms = {
        name: {
            "mean": sums.mean,
            "std": sums.std,
            "does_not_apply": sums.num - sums.applies,
            "archived_mean": sums.archived_mean,
            "differing": sums.differing,
        }
        for name, sums in found.sums.items()
    }
    speed = found.answers / max(found.seconds, 1e-9)
    rest = {"answers_per_second": speed, "identical": found.identical, "skipped": found.skipped}
    return {"answers": found.answers, "terms": terms} | rest
