"""What is found while the files of a data set are read: mistakes, told all at once, and what a user should know of."""

import re
from collections.abc import Mapping, Sequence

_MOST_TOLD = 20
_FEW = 6


class Reading:
    """Mistakes and notes, gathered while a data set is read, so that a user mends a file once and not a line a run."""

    def __init__(self) -> None:
        self._mistakes: list[str] = []
        self._missing: list[str] = []
        self.notes: dict[str, list[str]] = {}
        """What was left out, or taken as it need not be meant, by the reason; of each, which entries."""

    def mistake(self, error: ValueError | FileNotFoundError) -> None:
        """Something that cannot be used as it is; `refuse` tells it."""
        (self._missing if isinstance(error, FileNotFoundError) else self._mistakes).append(str(error))

    def note(self, what: str, which: object) -> None:
        """Something that is passed over or decided for the user."""
        self.notes.setdefault(what, []).append(f"{which}")

    def refuse(self) -> None:
        """Raise where there was a mistake: FileNotFoundError where only files are missing, else ValueError.

        Tells the first twenty, a line each.
        """
        found = self._mistakes + self._missing
        if not found:
            return
        text = found[0]
        if len(found) > 1:
            more = [f"and {len(found) - _MOST_TOLD:,} more"] if len(found) > _MOST_TOLD else []
            text = "\n  ".join([f"{len(found):,} mistakes in the data:", *found[:_MOST_TOLD], *more])
        raise ValueError(text) if self._mistakes else FileNotFoundError(text)


def told(notes: Mapping[str, Sequence[str]]) -> list[str]:
    """Notes as a sentence each, with how many entries it is about and the first of them."""
    lines = []
    for what, which in notes.items():
        more = f" and {len(which) - _FEW:,} more" if len(which) > _FEW else ""
        lines.append(f"{len(which):,} {what}: {', '.join(which[:_FEW])}{more}")
    return lines


def refuse_no_text(text: str, what: str) -> None:
    """Raise ValueError where a str is no text: half of a surrogate pair, or (U+DC80 to U+DCFF) a byte not of UTF-8."""
    wrong = re.search("[\ud800-\udfff]", text)
    if wrong:
        raise ValueError(
            f"{what} is {text!r}, which is no text in UTF-8: character {wrong.start() + 1} is {wrong[0]!r}, "
            "half of a surrogate pair or a single byte; write it anew."
        )
