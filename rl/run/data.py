"""What data a run is about: a fingerprint of each split, and what its reader left out, as data.json in its folder."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from math import ceil
from pathlib import Path

from rich.console import Console

from envs.datasets.base import Env, TellsLost
from envs.plugin import Plugin
from envs.reading import told
from rollout.disk import replace_text

_NAME = "data.json"


@dataclass(frozen=True)
class RunData:
    """The data of a run as it is read now."""

    fingerprints: dict[str, str]
    """Fingerprint of each split by name; other masks, phrases, classes or photos give another (Env.fingerprint)."""
    notes: dict[str, list[str]] = field(default_factory=dict)
    """What was left out or taken as it need not be meant, and of each which entries, over all splits."""

    @classmethod
    def of(cls, env: Plugin, splits: Iterable[str], max_left_out: float = 1.0) -> "RunData":
        """The data of these splits; raises what the env raises for settings and files that cannot be used.

        ValueError, too, where a split has no example, or has lost more than this share of its questions.
        """
        fingerprints: dict[str, str] = {}
        notes: dict[str, dict[str, None]] = {}  # entries of a note in order, each once
        for split in dict.fromkeys(splits):
            built = env.build(split=split)
            if not isinstance(built, Env):
                raise ValueError(
                    f"env {env.name} lacks something that every Env has; give its class all of `Env` in "
                    "envs/example.py: split, fingerprint, notes, phrase_words, image, scene, and the length and items "
                    "of a sequence."
                )
            if not len(built):
                raise ValueError(
                    f"env has no example in the split {split}; change the env's settings or evaluation.final_split."
                )
            if isinstance(built, TellsLost):
                _refuse_thinned(split, built.num_lost, len(built), max_left_out)
            fingerprints[split] = built.fingerprint
            for what, which in built.notes.items():
                notes.setdefault(what, {}).update(dict.fromkeys(which))
        return cls(fingerprints, {what: list(which) for what, which in notes.items()})

    def tell(self, console: Console, folder: Path) -> None:
        """Print the notes, a line each; all entries stand in the file of `folder`."""
        for line in told(self.notes):
            console.print(f"data: {line}", soft_wrap=True, markup=False, highlight=False)
        if self.notes:
            console.print(f"data: all of these are listed in {folder / _NAME}", soft_wrap=True, markup=False)

    def write(self, folder: Path) -> None:
        """Write data.json into the folder of a run."""
        replace_text(folder / _NAME, json.dumps(asdict(self), indent=1) + "\n")

    def changed(self, folder: Path) -> Sequence[str]:
        """Splits whose data is not what the run in `folder` began with; none where it has no data.json."""
        if not (folder / _NAME).is_file():
            return []
        begun = json.loads((folder / _NAME).read_text(encoding="utf-8"))["fingerprints"]
        return [split for split, now in self.fingerprints.items() if begun.get(split, now) != now]

    def refuse_other(self, folder: Path) -> None:
        """Raise ValueError where the run in `folder` began with other data: its answers were judged by that."""
        for split in self.changed(folder):
            raise ValueError(
                f"the data of split {split} is not what {folder} began with: a mask, phrase, class or photo has "
                "changed since, and answers that are archived were judged by the old ones. Restore the files of that "
                "time, or begin anew in another folder."
            )


def least_allowance(share: float) -> float:
    """The least max_left_out of three digits that allows a share."""
    return ceil(1000 * share) / 1000


def _refuse_thinned(split: str, num_lost: int, num_left: int, max_left_out: float) -> None:
    share = num_lost / (num_lost + num_left)
    if share > max_left_out:
        raise ValueError(
            f"env: {num_lost:,} of the {num_lost + num_left:,} questions of split {split} ({share:.1%}) could not be "
            f"used when the data was prepared, and max_left_out is {max_left_out:g}; `polytrace data check` says why. "
            f"Mend the files and prepare them anew, or set max_left_out to {least_allowance(share):g} or more."
        )
