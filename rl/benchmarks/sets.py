"""A data set to be benchmarked on: prepared shards, or files that are prepared first, and what it is scored by."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from envs.datasets.shards import Env
from envs.images import View
from envs.shards.files import CARD, Card, read_card
from rl.sources.leaks import HeldOut, is_held_out
from rl.sources.prepare import Preparation, chosen_splits, prepare_source
from rl.sources.source import source_of

PROTOCOLS = {
    "refcoco": "res",
    "refcoco_m": "res",
    "refcoco_rows": "res",
    "seqtr": "res",
    "cris": "res",
    "grefcoco": "gres",
    "reasonseg": "reasonseg",
    "maskgroups": "ores",
    "lvis": "lvis_mask",
}
"""By reader, the protocol that its data set is for; of any other `gres`, which knows that nothing may fit."""


@dataclass(frozen=True)
class BenchmarkSet:
    """One split of a data set."""

    name: str
    """Name in tables, and the one by which configs/benchmarks calls it where papers have numbers of it."""
    folder: Path
    """Prepared shards."""
    split: str
    protocol: str
    """The protocol that the data set is for."""

    def env(self) -> Env:
        """The examples."""
        return Env(self.split, str(self.folder))

    @property
    def shown_side(self) -> int | None:
        """Pixels that the longer side of photos was resized to when they were prepared; None: as photos are."""
        side = read_card(self.folder, self.split).provenance.get("side")
        return int(side) if side is not None else None


def benchmark_sets(given: Sequence[str], images: str | None, out: Path, console: Console) -> list[BenchmarkSet]:
    """The data sets of "NAME=PATH" or "NAME=PATH:SPLIT"; without a split, all but train ones, each by NAME_SPLIT.

    Files are prepared into OUT/prepared first. Raises ValueError or FileNotFoundError for what cannot be read.
    """
    found: list[BenchmarkSet] = []
    for entry in given:
        name, equals, rest = entry.partition("=")
        if not equals or not name or not rest:
            raise ValueError(f"--data is {entry!r}; write NAME=FOLDER, or NAME=FOLDER:SPLIT.")
        refuse_no_name(name, entry)
        path, split = _path_and_split(rest)
        folder = (
            path if any(path.glob(f"*/{CARD}")) else _prepared(path, split, images, out / "prepared" / name, console)
        )
        there = sorted(card.parent.name for card in folder.glob(f"*/{CARD}"))
        for each in [split] if split else _held_out(path, there):
            called = name if split else f"{name}_{each}"
            found.append(BenchmarkSet(called, folder, each, _protocol_of(read_card(folder, each))))
    names = [one.name for one in found]
    if len(set(names)) < len(names):
        raise ValueError(f"--data names {', '.join(names)}; give every data set and split a name of its own.")
    return found


def refuse_no_name(name: str, given: str) -> None:
    """Raise ValueError for a name that cannot be that of a file."""
    if name in ("", ".", "..") or "/" in name:
        raise ValueError(f"{given!r} is called {name!r}, and files are named by it; give a name without a slash.")


def _held_out(path: Path, there: Sequence[str]) -> list[str]:
    """The splits that are no train ones; ValueError where there are none."""
    found = [each for each in there if is_held_out(each)]
    if not found:
        raise ValueError(f"{path} has train splits alone ({', '.join(there)}); name one by --data NAME={path}:SPLIT.")
    return found


def _protocol_of(card: Card) -> str:
    """The protocol of a data set, by its reader or by the env that it was prepared from."""
    env = card.provenance.get("env")
    if isinstance(env, dict) and env.get("name") in ("tasks", "mixture"):
        return "tasks"
    return PROTOCOLS.get(str(card.provenance.get("reader", "")), "gres")


def _path_and_split(text: str) -> tuple[Path, str | None]:
    if Path(text).exists():
        return Path(text), None
    path, colon, split = text.rpartition(":")
    return (Path(path), split) if colon else (Path(text), None)


def _prepared(path: Path, split: str | None, images: str | None, out: Path, console: Console) -> Path:
    source = source_of(path, None, images)
    splits = chosen_splits(source, [split] if split else [])
    preparation = Preparation(out, View())
    prepare_source(source, splits if split else _held_out(path, splits), preparation, HeldOut(), console)
    return out
