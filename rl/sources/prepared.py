"""`polytrace data check` of prepared examples, such as labels: what they hold, which photos are gone or held out."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq

from envs.plugin import did_you_mean
from envs.readers.base import Findings
from envs.shards.files import CARD, read_card
from rl.sources.check import Report, SplitCount
from rl.sources.leaks import LEAK, HeldOut, is_held_out

GONE = "photos that are not where they were"
EMBEDDED = "images that lie in the shards: only their names can say whether they are held out elsewhere"
_COLUMNS = ("image_key", "image_file", "masks")


def is_prepared(path: Path) -> bool:
    """Whether a folder holds prepared examples."""
    return any(path.glob(f"*/{CARD}"))


def refuse_reader_options(path: Path, images: str | None, settings: Sequence[str]) -> None:
    """Raise ValueError for options of `data check` that mean something to the files of a data set alone."""
    given = [f"--images {images}"] * (images is not None) + [f"--set {setting}" for setting in settings]
    if given:
        raise ValueError(
            f"{path} holds prepared examples, which name their photos, and {given[0]} is for files of a data set; "
            "leave it out, or name the format of such files by --format."
        )


def check_prepared(path: Path, asked: Sequence[str], held_out: HeldOut) -> Report:
    """Count what is prepared in a folder, look for its photos, and for those that are held out elsewhere.

    asked: splits; none means all. Raises ValueError or FileNotFoundError where a split is not there or torn.
    """
    there = tuple(card.parent.name for card in sorted(path.glob(f"*/{CARD}")))
    for split in asked:
        if split not in there:
            raise ValueError(
                f"{path} has no split {split!r}{did_you_mean(split, there)} There are: {', '.join(there)}."
            )
    report = Report(str(path), "prepared", "prepared examples")
    photos: dict[str, set[str]] = {}
    for split in asked or there:
        findings, count = Findings(), SplitCount(lost=read_card(path, split).num_lost)
        photos[split] = _count(path, split, count)
        _look_for(photos[split], None if is_held_out(split) else held_out, findings)
        report.splits[split] = count
        report.findings.add(findings)
    trained = set[str]().union(*(found for split, found in photos.items() if not is_held_out(split)))
    shared = {split: sorted(found & trained) for split, found in photos.items() if is_held_out(split)}
    report.shared = {split: found for split, found in shared.items() if found}
    return report


def _count(path: Path, split: str, count: SplitCount) -> set[str]:
    """Take in what a split holds; its photos, by file or by name."""
    photos = set[str]()
    for shard in read_card(path, split).shards:
        for row in pq.read_table(path / split / shard.name, columns=list(_COLUMNS)).to_pylist():
            photos.add(row["image_file"] or row["image_key"])
            count.questions += 1
            count.nothing += not row["masks"]
            count.masks += len(row["masks"])
    count.photos = len(photos)
    return photos


def _look_for(photos: set[str], held_out: HeldOut | None, findings: Findings) -> None:
    for name in sorted(photos):
        photo = Path(name)
        is_file = photo.is_absolute()
        if is_file and not photo.is_file():
            findings.leave_out(GONE, name)
        if held_out is None or held_out.is_empty:
            continue
        if where := held_out.where(photo):
            findings.leave_out(LEAK, f"{name} ({where})")
        elif not is_file:
            findings.note(EMBEDDED, name)
