"""The archive of a run: every answer, beside the truth, in Parquet shards that any reader opens (docs/archive.md).

Two tables: `rollouts/`, a shard a step, and `examples/`, each example once, in the shard of its first step.
A shard is absent or whole: it is written under a temporary name, synced, then renamed. One process writes, many read.
"""

import re
from collections.abc import Container, Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from rollout.records import Group, example_table, reward_names, rollout_table
from rollout.shards import Finding, check_shard, open_shard, sync_folder, write_shard

_SHARD = re.compile(r"step-(\d{8,})\.parquet")


def _strangers(folder: Path) -> list[Finding]:
    """Files in the tables that are not shards."""
    findings = []
    for path in sorted([*folder.glob("rollouts/*"), *folder.glob("examples/*")]):
        if path.name.endswith(".partial"):
            problem = "left from a write that was interrupted"
            findings.append(Finding(path, problem, "nothing is lost; a resumed run deletes it, or do so by hand"))
        elif not _SHARD.fullmatch(path.name):
            findings.append(
                Finding(path, "not a shard of this archive", "move it elsewhere; readers would stumble on it")
            )
    return findings


class RolloutArchive:
    """Append, read and check the archive in one folder."""

    def __init__(self, folder: Path) -> None:
        """Open the archive in `folder`; nothing is created before the first `append`."""
        self.folder = folder
        self._stored_ids: set[str] | None = None  # examples in the archive; read at the first append
        self._last_step: int | None = None
        self._reward_names: tuple[str, ...] | None = None

    @property
    def last_step(self) -> int | None:
        """The last step in the archive; None where there is none."""
        return max(self._shards("rollouts"), default=None)

    @property
    def num_steps(self) -> int:
        """Steps in the archive."""
        return len(self._shards("rollouts"))

    @property
    def reward_names(self) -> tuple[str, ...]:
        """The rewards whose terms are stored, sorted; none where there is no step."""
        last_step = self.last_step
        if last_step is None:
            return ()
        with open_shard(self._path("rollouts", last_step)) as file:
            names = file.schema_arrow.names
        return tuple(name.removeprefix("reward_") for name in names if name.startswith("reward_"))

    def append(self, step: int, groups: Sequence[Group]) -> None:
        """Store the answers of a step, and its examples that were not stored yet.

        Raises ValueError where step, groups or rewards do not fit what is stored, OSError where the disk refuses.
        """
        stored = self._open_for_append()
        groups = sorted(groups, key=lambda group: group.position)
        self._refuse_unfit(step, groups)
        new = {group.example.id: group.example for group in groups if group.example.id not in stored}
        examples_path = self._path("examples", step)
        if new and examples_path.exists():
            raise ValueError(
                f"{examples_path} is left from a write of step {step} that was interrupted; "
                f"call set_aside_after({step - 1}) before the step is appended again."
            )
        if new:  # before the answers: an answer is never stored without its example
            write_shard(examples_path, example_table(list(new.values())))
            stored.update(new)
        write_shard(self._path("rollouts", step), rollout_table(groups))
        self._last_step, self._reward_names = step, reward_names(groups)

    def rollouts(
        self, columns: Sequence[str] | None = None, steps: Container[int] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Answers by step, position and index, in bounded memory; only some columns or steps where these are given."""
        return self._batches("rollouts", columns, steps)

    def examples(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Examples in the order in which they were first asked."""
        return self._batches("examples", columns, None)

    def verify(self) -> list[Finding]:
        """Everything wrong with the archive, by reading all of it once, a shard at a time; empty where it is whole."""
        self._refuse_absent()
        findings = _strangers(self.folder)
        example_ids: set[str] = set()
        for path in self._shards("examples").values():
            problems, ids, _ = check_shard(path)
            findings += problems
            example_ids |= ids
        shards = self._shards("rollouts")
        for step, path in shards.items():
            problems, ids, steps = check_shard(path)
            findings += problems
            if not problems and steps != {step}:
                problem = f"holds answers of steps {sorted(steps)}, not of step {step}"
                findings.append(Finding(path, problem, "all of it; give the file back its name"))
            if missing := sorted(ids - example_ids):
                problem = f"{len(missing)} of its examples are not in the examples table, {missing[0]} first"
                findings.append(
                    Finding(path, problem, "answers and scores; the truth from the data set, by example_id")
                )
        # A run begins at step 0. Examples may be one step ahead: they are written before the answers to them.
        for step in sorted(set(range(max(shards, default=-1))) - set(shards)):
            lost = "the other steps; to fill it, resume from a checkpoint before it"
            findings.append(Finding(self._path("rollouts", step), f"step {step} is missing", lost))
        return findings

    def set_aside_after(self, step: int) -> list[Path]:
        """Move shards of later steps to a new folder in `set_aside/`, delete leftovers of writes; the new paths."""
        for table in ("rollouts", "examples"):
            for leftover in (self.folder / table).glob(".*.partial"):
                leftover.unlink()
        used = [int(path.name) for path in self.folder.glob("set_aside/*") if path.name.isdigit()]
        target = self.folder / "set_aside" / f"{max(used, default=0) + 1:04d}"
        moved = []
        for table in ("rollouts", "examples"):
            # Last first, so that an interrupted move leaves no gap.
            later = [path for number, path in reversed(self._shards(table).items()) if number > step]
            for path in later:
                (target / table).mkdir(parents=True, exist_ok=True)
                moved.append(path.rename(target / table / path.name))
            if later:
                sync_folder(target / table)
                sync_folder(self.folder / table)
        self._stored_ids = self._last_step = self._reward_names = None
        return moved

    def _path(self, table: str, step: int) -> Path:
        return self.folder / table / f"step-{step:08d}.parquet"

    def _shards(self, table: str) -> dict[int, Path]:
        """Shards of a table by step, in order."""
        matches = [(_SHARD.fullmatch(path.name), path) for path in (self.folder / table).glob("step-*.parquet")]
        return dict(sorted((int(match[1]), path) for match, path in matches if match))

    def _refuse_absent(self) -> None:
        if not any((self.folder / table).is_dir() for table in ("rollouts", "examples")):
            raise FileNotFoundError(f"No archive in {self.folder}; give the `archive` folder of a run.")

    def _open_for_append(self) -> set[str]:
        """Ids of the stored examples; what is kept for `append` is read once, so that its cost does not grow."""
        if self._stored_ids is None:
            self._last_step = self.last_step
            if self._last_step is not None:
                self._reward_names = self.reward_names
            batches = self.examples(["example_id"]) if self._shards("examples") else ()
            self._stored_ids = {name for batch in batches for name in batch["example_id"].to_pylist()}
        return self._stored_ids

    def _refuse_unfit(self, step: int, groups: Sequence[Group]) -> None:
        last, names = self._last_step, reward_names(groups)
        if last is not None and step <= last:
            raise ValueError(
                f"Step {step} cannot be appended to {self.folder}, which reaches step {last}; to run it again, "
                f"resume with set_aside_after({step - 1}), or use another run folder."
            )
        if not any(group.rollouts for group in groups):
            raise ValueError(f"Step {step} has no answer to archive; ask at least one example a step.")
        if names != (self._reward_names or names):
            raise ValueError(
                f"Step {step} has the rewards {names}, the archive in {self.folder} has {self._reward_names}; "
                "use another run folder where the rewards change."
            )
        for group in groups:
            if group.step != step or len(group.totals) != len(group.rollouts):
                raise ValueError(
                    f"The group at position {group.position} is of step {group.step}, with {len(group.totals)} totals "
                    f"for {len(group.rollouts)} answers; append groups of step {step}, with a total an answer."
                )

    def _batches(
        self, table: str, columns: Sequence[str] | None, steps: Container[int] | None
    ) -> Iterator[pa.RecordBatch]:
        self._refuse_absent()
        for step, path in self._shards(table).items():
            if steps is not None and step not in steps:
                continue
            with open_shard(path) as file:
                if unknown := sorted(set(columns or ()) - set(file.schema_arrow.names)):
                    raise ValueError(f"{path} has no column {unknown[0]}; it has {', '.join(file.schema_arrow.names)}.")
                try:
                    yield from file.iter_batches(columns=None if columns is None else list(columns))
                except (pa.ArrowException, OSError) as error:
                    raise ValueError(
                        f"{path} is altered: {error}; `polytrace archive verify RUN` says what can be saved."
                    ) from error
