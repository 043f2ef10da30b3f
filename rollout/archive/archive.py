"""The archive of a run: every answer, beside the truth, in Parquet shards that any reader opens (docs/archive.md).

Two tables: `rollouts/`, one shard per step, and `examples/`, each example once, in the shard of its first step.
A shard is absent or whole: it is written under a temporary name, synced, then renamed. One process writes, many read.
"""

from collections.abc import Container, Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from rollout.archive.check import Finding, check_archive
from rollout.archive.compact import set_aside_after
from rollout.archive.lock import WriterLock
from rollout.archive.schema import example_table, reward_names, rollout_table
from rollout.archive.shards import open_shard, write_shard
from rollout.archive.table import ShardTable, StoredIds
from rollout.records import Group


class RolloutArchive:
    """Append, read and check the archive in one folder."""

    def __init__(self, folder: Path) -> None:
        """Open the archive in `folder`; nothing is created before the first `append`."""
        self.folder = folder
        self._examples, self._rollouts = ShardTable(folder, "examples"), ShardTable(folder, "rollouts")
        self._lock = WriterLock(folder)
        self._stored_ids: StoredIds | None = None  # examples in the archive; read at the first append
        self._last_step: int | None = None
        self._reward_names: tuple[str, ...] | None = None

    @property
    def last_step(self) -> int | None:
        """The last step in the archive; None where there is none."""
        return max((shard.last for shard in self._rollouts.shards()), default=None)

    @property
    def num_steps(self) -> int:
        """Steps in the archive."""
        return sum(shard.last - shard.first + 1 for shard in self._rollouts.shards())

    @property
    def reward_names(self) -> tuple[str, ...]:
        """The rewards whose terms are stored, sorted; none where there is no step."""
        shards = self._rollouts.shards()
        if not shards:
            return ()
        with open_shard(shards[-1].path) as file:
            names = file.schema_arrow.names
        return tuple(name.removeprefix("reward_") for name in names if name.startswith("reward_"))

    @property
    def being_written(self) -> bool:
        """Whether another process is writing to it."""
        return self._lock.taken_by_another

    def append(self, step: int, groups: Sequence[Group]) -> None:
        """Store the answers of a step, and its examples that were not stored yet.

        From then on this object is the one writer, until `close`. Raises ValueError where step, groups or rewards do
        not fit what is stored, or another process writes, OSError where the disk refuses.
        """
        stored = self._open_for_append()
        groups = sorted(groups, key=lambda group: group.position)
        self._refuse_unfit(step, groups)
        new = {group.example.id: group.example for group in groups if group.example.id not in stored}
        examples_path = self._examples.path(step)
        if new and examples_path.exists():
            raise ValueError(
                f"{examples_path} is left from a write of step {step} that was interrupted; "
                f"call set_aside_after({step - 1}) before the step is appended again."
            )
        if new:  # before the answers: an answer is never stored without its example
            write_shard(examples_path, example_table(list(new.values())), step)
            stored.add(new)
        write_shard(self._rollouts.path(step), rollout_table(groups), step)
        self._last_step, self._reward_names = step, reward_names(groups)

    def rollouts(
        self, columns: Sequence[str] | None = None, steps: Container[int] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Answers by step, position and index, in bounded memory; only some columns or steps where these are given.

        A batch holds rows of one step. Goes on undisturbed where the archive is compacted meanwhile.
        """
        self._refuse_absent()
        return self._rollouts.batches(columns, steps)

    def examples(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Examples in the order in which they were first asked."""
        self._refuse_absent()
        return self._examples.batches(columns)

    def verify(self) -> list[Finding]:
        """Everything wrong with the archive, by reading all of it once, a step at a time; empty where it is whole."""
        self._refuse_absent()
        return [finding for findings in check_archive(self.folder) for finding in findings]

    def set_aside_after(self, step: int) -> list[Path]:
        """Move rows of later steps to a new folder in `set_aside/`, delete leftovers of writes; the new paths."""
        if not self.folder.is_dir():
            return []
        self._lock.take()
        self._stored_ids = self._last_step = self._reward_names = None
        return set_aside_after(self.folder, step)

    def close(self) -> None:
        """Let another process write."""
        self._lock.release()
        self._stored_ids = None

    def _refuse_absent(self) -> None:
        if not any(table.folder.is_dir() for table in (self._examples, self._rollouts)):
            raise FileNotFoundError(f"No archive in {self.folder}; give the `archive` folder of a run.")

    def _open_for_append(self) -> StoredIds:
        """Ids of the stored examples; what is kept for `append` is read once, so that its cost does not grow."""
        if self._stored_ids is None:
            self._lock.take()
            self._examples.clean()
            self._rollouts.clean()
            self._last_step = self.last_step
            if self._last_step is not None:
                self._reward_names = self.reward_names
            self._stored_ids = StoredIds()
            for batch in self._examples.batches(["example_id"]):
                self._stored_ids.add(batch["example_id"].to_pylist())
        return self._stored_ids

    def _refuse_unfit(self, step: int, groups: Sequence[Group]) -> None:
        last, names = self._last_step, reward_names(groups)
        if last is not None and step <= last:
            raise ValueError(
                f"Step {step} cannot be appended to {self.folder}, which reaches step {last}; to run it again, "
                f"resume with set_aside_after({step - 1}), or use another run folder."
            )
        if not any(group.rollouts for group in groups):
            raise ValueError(f"Step {step} has no answer to archive; ask at least one example per step.")
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
