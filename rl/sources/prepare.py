"""The files of a data set written once as example shards, split by split, and what was found wrong on the way."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from envs.images import View
from envs.plugin import did_you_mean
from envs.pool_files import Pools
from envs.readers.base import Finding, Findings
from envs.shards.files import CARD, Card, read_card
from envs.shards.from_photos import Shown
from rl.pages.progress import StepProgress
from rl.run.data import least_allowance
from rl.sources.leaks import HeldOut, is_held_out
from rl.sources.pooled import with_pools
from rl.sources.source import Source
from rollout.archive.shards import polytrace_version
from rollout.photo_shards import PhotoWriter

MOST_LEFT_OUT = 0.05
"""Share of lost questions above which a training refuses, unless its max_left_out says otherwise."""
_ASKED_BY_RUNS = ("train", "validation", "test")


@dataclass(frozen=True)
class Preparation:
    """How a data set is prepared."""

    out: Path
    """Folder for the shards, one folder a split."""
    view: View
    """How photos are shown."""
    embed: bool = False
    """Whether pixels are written into the shards."""
    processes: int = 1
    """Processes that open photos and fill masks."""
    data_set: str | None = None
    """First part of the examples' ids; None takes the name of the source's folder or file."""
    pools: Pools | None = None
    """Candidates of the photos; None leaves them as the data set has them."""

    def name_of(self, source: Source) -> str:
        """First part of the ids of a source's examples."""
        return self.data_set or (source.path.resolve().name if source.path.is_dir() else source.path.stem)


def chosen_splits(source: Source, asked: Sequence[str]) -> tuple[str, ...]:
    """The splits that were asked for, all where none was; raises ValueError for one that is not there."""
    there = source.reader().splits()
    for split in asked:
        if split not in there:
            raise ValueError(
                f"{source.path} has no split {split!r}{did_you_mean(split, there)} There are: {', '.join(there)}."
            )
    return tuple(asked) or there


def prepare_source(
    source: Source, splits: Sequence[str], preparation: Preparation, held_out: HeldOut, console: Console
) -> Mapping[str, tuple[Card, Findings]]:
    """Write the splits of a source as shards; one that was stopped goes on, one that is whole is left as it is.

    held_out: photos that no train split may have. Returns the card of each split and what was found wrong; a split that
    was whole before has told that when it was made. Raises ValueError where the folder holds other data, or where a
    split has no example that can be used.
    """
    made: dict[str, tuple[Card, Findings]] = {}
    reader = source.reader()
    provenance = {
        "reader": source.format,
        "settings": dict(source.settings),
        "annotations_sha256": source.annotations_sha256(preparation.out),
        "polytrace": polytrace_version(),
    }
    if preparation.pools is not None:
        provenance["pools_sha256"] = preparation.pools.sha256
    for split in splits:
        shown = Shown(preparation.view, preparation.name_of(source), split)
        thinned_by = {} if is_held_out(split) or held_out.is_empty else {"against": held_out.fingerprint}
        writer = PhotoWriter(preparation.out / split, shown, provenance | thinned_by, preparation.embed)
        findings = Findings()
        if not writer.is_whole:
            photos = reader.photos(split, findings)
            if not is_held_out(split):
                photos = held_out.without(photos, findings)
            if preparation.pools is not None:
                photos = with_pools(photos, preparation.pools, findings)
            with StepProgress(console, f"preparing {split}", None, writer.num_photos) as progress:
                for done in writer.write(photos, findings, preparation.processes):
                    progress.update(done)
        card = read_card(preparation.out, split)
        if not card.num_examples:
            shutil.rmtree(preparation.out / split)  # so that mended files can be prepared here
            told = first_reasons(findings.lost) or first_reasons(findings.left_out) or "nothing is asked in it"
            raise ValueError(
                f"{source.path}: split {split} has no example that can be used ({told}); mend the files, or name the "
                "splits that you want by --split."
            )
        made[split] = card, findings
    return made


def share_lost(num_lost: int, num_kept: int) -> float:
    """Share of a data set's questions that cannot be asked; 0 for one without a question."""
    return num_lost / max(1, num_lost + num_kept)


def by_count(found: Mapping[str, Finding]) -> list[tuple[str, Finding]]:
    """Findings by reason, the most frequent first."""
    return sorted(found.items(), key=lambda each: -each[1].count)


def first_reasons(found: Mapping[str, Finding], most: int = 3) -> str:
    """The most frequent findings of a kind, as a sentence; "" where there are none."""
    told = [f"{reason} ({one.count:,}): {', '.join(one.which[:3])}" for reason, one in by_count(found)[:most]]
    more = len(found) - most
    return "; ".join(told) + (f"; and {more} more kind{'s' if more > 1 else ''}" if more > 0 else "")


def prepared_splits(made: Mapping[str, tuple[Card, Findings]]) -> Table:
    """What was written of each split, and the share that was lost."""
    table = Table("split", "examples", "lost", "shards", "MB", "images", title="Prepared examples")
    for column in table.columns[1:5]:
        column.justify = "right"
    for split, (card, _) in made.items():
        size = sum(file.num_bytes for file in (*card.shards, *card.others)) / 1e6
        lost = f"{card.num_lost:,} ({share_lost(card.num_lost, card.num_examples):.1%})"
        images = card.image_folder or "embedded"
        cells = (f"{card.num_examples:,}", lost, f"{len(card.shards):,}", f"{size:,.1f}")
        table.add_row(escape(split), *cells, escape(images))
    return table


def thinned(made: Mapping[str, tuple[Card, Findings]]) -> list[str]:
    """A sentence for each split that has lost more than a training takes without being told to."""
    shares = {split: share_lost(card.num_lost, card.num_examples) for split, (card, _) in made.items()}
    return [
        f"split {split} has lost {share:.1%} of its questions; a training refuses that unless max_left_out is "
        f"{least_allowance(share):g} or more."
        for split, share in shares.items()
        if share > MOST_LEFT_OUT
    ]


def env_entry(out: Path) -> str:
    """The entry of a config that opens what is prepared in `out`, with names for the splits that a run asks for."""
    there = sorted(card.parent.name for card in out.glob(f"*/{CARD}"))
    near = {asked: next((name for name in there if name.startswith(asked[:3])), "") for asked in _ASKED_BY_RUNS}
    names = {asked: name for asked, name in near.items() if asked not in there and name}
    beside = f", names: {{{', '.join(f'{asked}: {name}' for asked, name in names.items())}}}" if names else ""
    return f"{{name: shards, folder: {out}{beside}}}"
