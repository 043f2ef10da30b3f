"""`polytrace data select`: examples that a policy's own answers say it can learn from, written as example shards.

Which they are is said by archives (rl/sources/difficulty.py); what they are, by the env of the run's config. Each is
compared with what the archive holds of it, so that nothing is kept by answers to another question.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from envs.datasets.base import Env, FromFiles
from envs.example import Example, ImageRef
from envs.images import ShownFile
from envs.shards.files import Card, read_card
from rl.config.load import read_mapping
from rl.config.plugins import env_plugin
from rl.pages.progress import bar
from rl.run.steps import example_indices, refill_indices
from rl.sources.difficulty import Choice
from rollout.archive.archive import RolloutArchive
from rollout.archive.schema import example_table
from rollout.archive.shards import polytrace_version
from rollout.example_shards import SplitWriter

SPLIT = "train"
"""The split that runs are asked, and that a selection is of."""
_COMPARED = ["example_id", "image_sha256", "prompt", "masks", "ignore"]
_MOST_NAMED = 5


@dataclass(frozen=True)
class RunEnv:
    """The data set that some runs asked, as their configs build it today."""

    entry: dict[str, Any]
    """The entry `env` of the first run's config."""
    env: Env
    """What it gives of the split."""
    asking: tuple[tuple[int, int] | None, ...]
    """Seed and groups per step of each run, by which its steps are asked; None where its config does not say them."""


def run_env(runs: Sequence[Path]) -> RunEnv:
    """The env that all runs have asked.

    Raises FileNotFoundError or ValueError where it cannot be built, or runs are about different data.
    """
    configs = [_config(run) for run in runs]
    entry = configs[0]["env"]
    env: Env = env_plugin(entry).build(split=SPLIT)
    for run, config in zip(runs[1:], configs[1:], strict=True):
        if config["env"] != entry and env_plugin(config["env"]).build(split=SPLIT).fingerprint != env.fingerprint:
            raise ValueError(
                f"{runs[0]} and {run} ask different data, by the env of their configs; select from each of them, and "
                "put the selections together by env: {name: mixture}."
            )
    return RunEnv(entry, env, tuple(_asking(config) for config in configs))


def _config(run: Path) -> dict[str, Any]:
    path = run / "config.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, and without it the run's data cannot be opened; restore it.")
    config = read_mapping(path)
    if "env" not in config:
        raise ValueError(f"{path} names no env, and without it the run's data cannot be opened.")
    return config


def _asking(config: Mapping[str, Any]) -> tuple[int, int] | None:
    seed, groups = config.get("seed"), config.get("groups_per_step")
    return (seed, groups) if isinstance(seed, int) and isinstance(groups, int) else None


class _Located:
    """Where wanted examples are in an Env."""

    def __init__(self, data: RunEnv, wanted: Sequence[str]) -> None:
        self._env, self._asking = data.env, data.asking
        self._left = set(wanted)
        self.index_of: dict[str, int] = {}
        """Index of each example that was found, by id."""
        self.stamps: dict[str, tuple[str, bytes]] = {}
        """What is asked there, by id."""

    def look_where_asked(self, choice: Choice, console: Console) -> None:
        """Look where the run's own order has them; one of another length or order is found by `look_everywhere`."""
        asked = choice.difficulties.first_asked[choice.kept]
        order = np.lexsort(asked.T[::-1])
        steps, begins = np.unique(asked[order][:, :2], axis=0, return_index=True)
        groups = zip(steps.tolist(), np.split(asked[order][:, 2], begins[1:]), strict=True)
        for (run, step), positions in bar(groups, "examples where they were asked", console, len(steps)):
            if (asking := self._asking[run]) is not None:
                for index in _indices_at(asking, len(self._env), step, positions):
                    self._take(index)

    def look_everywhere(self, console: Console) -> None:
        """Go through the Env until all are found."""
        if self._left:
            for index in bar(range(len(self._env)), "examples by id", console, len(self._env)):
                self._take(index)
                if not self._left:
                    return

    def _take(self, index: int) -> None:
        example = self._env[index]
        if example.id in self._left:
            self._left.remove(example.id)
            self.index_of[example.id] = index
            (row,) = example_table([example]).select(_COMPARED).to_pylist()
            self.stamps[example.id] = _stamp(row)

    def refuse_missing(self, run: Path) -> None:
        """Raise ValueError where some are not there."""
        if self._left:
            raise ValueError(
                f"{run} has asked examples that its data set does not have any more ({len(self._left):,}): "
                f"{_named(sorted(self._left))}. Restore the files of that time, or sample the data of today."
            )

    def refuse_changed(self, run: Path) -> None:
        """Raise ValueError where a run's archive holds another image, phrase or mask of one of them."""
        changed: dict[str, list[str]] = {"image": [], "phrase or mask": []}
        for row in _archived_rows(run, pa.array(self.stamps, pa.string())):
            now, then = self.stamps[row["example_id"]], _stamp(row)
            if then != now:
                changed["image" if then[0] != now[0] else "phrase or mask"].append(row["example_id"])
        for what, ids in changed.items():
            if ids:
                raise ValueError(
                    f"{run} has asked examples whose {what} is another now ({len(ids):,}): {_named(ids)}. What was "
                    "answered then says nothing of them; restore the files of that time, or sample anew."
                )


def _indices_at(asking: tuple[int, int], num_examples: int, step: int, positions: NDArray[np.int64]) -> Iterator[int]:
    """The examples at some positions of a step, refills included."""
    seed, groups = asking
    turns, places = np.divmod(positions, groups)
    for turn in np.unique(turns).tolist():
        if turn:
            indices = refill_indices(seed, num_examples, step, turn, groups)
        else:
            indices = example_indices(seed, num_examples, step, groups)
        yield from (indices[place] for place in places[turns == turn])


def _named(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - _MOST_NAMED:,} more" if len(ids) > _MOST_NAMED else ""
    return ", ".join(ids[:_MOST_NAMED]) + more


def _archived_rows(run: Path, ids: pa.Array) -> Iterator[dict[str, Any]]:
    for batch in RolloutArchive(run / "archive").examples(_COMPARED):
        yield from batch.filter(pc.is_in(batch["example_id"], value_set=ids)).to_pylist()


def _stamp(row: Mapping[str, Any]) -> tuple[str, bytes]:
    """Hashes of an example's image, and of its phrase and masks, by its row of an archive."""
    asked = repr((row["prompt"], row["masks"], row["ignore"])).encode("utf-8", "replace")
    return row["image_sha256"], hashlib.blake2b(asked, digest_size=16).digest()


class Chosen:
    """An Env of some examples of another one, in its order; a scene asks those of its questions that are chosen."""

    def __init__(self, env: Env, indices: Sequence[int], ids: Sequence[str]) -> None:
        """env: the other one; indices, ids: the chosen examples, in the order of the env."""
        self.split = env.split
        self._env, self._indices, self._ids = env, indices, frozenset(ids)
        told = "\n".join(["selection", env.fingerprint, *ids])
        self._fingerprint = hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the other Env's fingerprint and of which examples are chosen."""
        return self._fingerprint

    @property
    def notes(self) -> Mapping[str, Sequence[str]]:
        """What the other Env was read with."""
        return self._env.notes

    def phrase_words(self) -> set[str]:
        """Words of every phrase of the other Env: a model that knows the whole data set knows the selection."""
        return self._env.phrase_words()

    def __len__(self) -> int:
        """Number of chosen examples."""
        return len(self._indices)

    def __getitem__(self, index: int) -> Example:
        """The chosen example at `index`."""
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        return self._env[self._indices[index]]

    def image(self, ref: ImageRef) -> NDArray[np.uint8]:
        """The image [H, W, 3] RGB as the other Env shows it."""
        return self._env.image(ref)

    def scene(self, index: int) -> list[Example]:
        """The chosen questions about the image of example `index`."""
        example = self[index]
        return [one for one in self._env.scene(self._indices[index]) if one.id in self._ids] or [example]

    def image_file(self, ref: ImageRef) -> ShownFile | None:
        """The file behind an image, where the other Env has it from one."""
        return self._env.image_file(ref) if isinstance(self._env, FromFiles) else None


def chosen_env(data: RunEnv, choice: Choice, runs: Sequence[Path], console: Console) -> Chosen:
    """The kept examples as an Env, each compared with what the archives hold of it.

    Raises ValueError, naming some, where examples are gone or have changed since they were asked.
    """
    located = _Located(data, choice.kept_ids)
    located.look_where_asked(choice, console)
    located.look_everywhere(console)
    located.refuse_missing(runs[0])
    for run in runs:
        located.refuse_changed(run)
    places = sorted((index, name) for name, index in located.index_of.items())
    indices, ids = [index for index, _ in places], [name for _, name in places]
    return Chosen(data.env, indices, ids)


def provenance(data: RunEnv, choice: Choice, runs: Sequence[Path], steps: str | None) -> dict[str, Any]:
    """Where a selection comes from, in terms of JSON."""
    return {
        "env": data.entry,
        "polytrace": polytrace_version(),
        "runs": [f"{run.resolve()}" for run in runs],
        "steps": steps,
        **asdict(choice.thresholds),
        "funnel": choice.funnel(),
    }


def write_selection(chosen: Chosen, out: Path, come_from: Mapping[str, Any], embed: bool, console: Console) -> Card:
    """Write the chosen examples as the split `train` of `out`; goes on where it was stopped.

    embed: write images into the shards also where they are files. Raises ValueError where the folder holds something
    else, and what the env raises.
    """
    writer = SplitWriter(out / SPLIT, chosen, come_from, embed)
    if writer.is_whole:
        return read_card(out, SPLIT)
    for index in bar(range(writer.next_index, len(chosen)), "writing the kept examples", console):
        writer.add(index)
    return writer.finish()


def funnel_table(choice: Choice) -> Table:
    """How many examples each stage keeps."""
    table = Table("", "examples", "share", "dropped", title=f"Examples by {choice.thresholds.number} of their answers")
    for column in table.columns[1:]:
        column.justify = "right"
    before = choice.stages[0].num
    for stage in choice.stages:
        dropped = f"{before - stage.num:,}" if stage.num < before else ""
        table.add_row(stage.name, f"{stage.num:,}", f"{stage.num / choice.stages[0].num:.1%}", dropped)
        before = stage.num
    return table
