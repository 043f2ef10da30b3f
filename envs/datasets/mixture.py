"""Env: several data sets asked as one, each with a share of the questions.

In train, a part with a share of 0.3 gives three questions of ten, evenly spread over the sequence; the sequence is as
long as it takes to ask every example of every part at least once, and what is over sooner begins again. Other splits
ask every example of every part once, since a score that counts some twice would be another score. Which question comes
where depends on lengths and shares alone, so a run that is resumed goes on where it was.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.datasets.base import AsksForms, FromFiles, NamesSplits, TellsLost
from envs.datasets.base import Env as AnyEnv
from envs.example import PART_END, Example, ImageRef
from envs.images import ShownFile
from envs.plugin import Plugin

_SHARE, _CALLED = "share", "called"


@dataclass(frozen=True)
class Part:
    """One data set of a mixture."""

    called: str
    """Name of the part in ids and tables."""
    share: float
    """Share of the questions that the part gives, before all shares are scaled to sum to 1."""
    plugin: Plugin
    """The env of this data set."""

    @classmethod
    def of(cls, entry: Mapping[str, Any], place: int) -> "Part":
        """A part from its entry: that of an env, with `share` and, if it should have another name, `called`.

        Raises ValueError for an entry without a share above 0, or without an env.
        """
        where = f"env.parts[{place}]"
        share, name, module = entry.get(_SHARE), entry.get("name"), entry.get("module")
        if not isinstance(share, int | float) or isinstance(share, bool) or not 0 < share < np.inf:
            raise ValueError(f"{where}.share is {share!r}; give a number above 0, such as 0.5.")
        if not isinstance(name or module, str):
            raise ValueError(f"{where} has no name; write the entry of an env, such as {{name: shards, folder: ...}}.")
        settings = {key: value for key, value in entry.items() if key not in (_SHARE, _CALLED, "name", "module")}
        called = str(entry.get(_CALLED) or name or module)
        if PART_END in called:
            raise ValueError(f"{where}.called is {called!r}; leave out {PART_END!r}, which parts names from ids.")
        return cls(called, float(share), Plugin("envs.datasets", "Env", name or called, settings, module))

    def env(self, split: str, place: int) -> AnyEnv:
        """The env itself; raises what it raises, with the place of the part in front."""
        try:
            built: AnyEnv = self.plugin.build(split=split)
        except FileNotFoundError as error:
            raise FileNotFoundError(_placed(f"{error}", place)) from error
        except ValueError as error:
            raise ValueError(_placed(f"{error}", place)) from error
        return built


def _placed(told: str, place: int) -> str:
    """What an env says is wrong with it, as of a part: "env.folder is ..." as "env.parts[1].folder is ..."."""
    where = f"env.parts[{place}]"
    return f"{where}.{told.removeprefix('env.')}" if told.startswith("env.") else f"{where}: {told}"


@dataclass
class Env:
    """Examples of one split of every part; raises ValueError for parts that cannot be told apart, and as parts do."""

    split: str
    """A split that every part has; parts whose split is called otherwise rename it (`names` of env shards)."""
    parts: list[dict[str, Any]] = field(default_factory=list)
    """Entries of envs, each with `share`, and `called` where two have one name."""

    def __post_init__(self) -> None:
        """Build every part, and place its examples."""
        if not self.parts:
            raise ValueError("env.parts is empty; list entries of envs, each with a share.")
        self._parts = [Part.of(entry, place) for place, entry in enumerate(self.parts)]
        self.part_names = tuple(part.called for part in self._parts)
        if len(set(self.part_names)) < len(self._parts):
            raise ValueError(
                f"env.parts are called {', '.join(self.part_names)}; give those that share a name another by `called`."
            )
        self._envs: list[AnyEnv] = [part.env(self.split, place) for place, part in enumerate(self._parts)]
        lengths = [len(env) for env in self._envs]
        empty = [name for name, length in zip(self.part_names, lengths, strict=True) if not length]
        if empty:
            raise ValueError(f"env.parts: {', '.join(empty)} has no example in the split {self.split}; take it out.")
        shares = [part.share for part in self._parts] if self.split.startswith("train") else lengths
        self._part_at, self._place_at = interleaved(lengths, shares)

    def part_of(self, index: int) -> str:
        """Name of the part that the example at `index` comes from."""
        return self.part_names[self._part_at[index]]

    @property
    def asked(self) -> tuple[str, ...]:
        """What any part may ask for."""
        forms = [env.asked if isinstance(env, AsksForms) else ("mask",) for env in self._envs]
        return tuple(dict.fromkeys(form for of in forms for form in of))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the parts' fingerprints, names and shares."""
        told = [
            f"{part.called}:{part.share!r}:{env.fingerprint}" for part, env in zip(self._parts, self._envs, strict=True)
        ]
        return hashlib.sha256("\n".join(told).encode()).hexdigest()

    @property
    def notes(self) -> Mapping[str, Sequence[str]]:
        """What every part was read with."""
        return {
            f"{name}: {what}": which
            for name, env in zip(self.part_names, self._envs, strict=True)
            for what, which in env.notes.items()
        }

    @property
    def num_lost(self) -> int:
        """Questions that the parts could not ask."""
        return sum(env.num_lost for env in self._envs if isinstance(env, TellsLost))

    def phrase_words(self) -> set[str]:
        """Words of all parts."""
        return set[str]().union(*(env.phrase_words() for env in self._envs))

    def splits(self) -> tuple[str, ...]:
        """The splits that every part has."""
        named = [env.splits() if isinstance(env, NamesSplits) else (self.split,) for env in self._envs]
        return tuple(split for split in named[0] if all(split in names for names in named))

    def __len__(self) -> int:
        """Number of questions."""
        return len(self._part_at)

    def __getitem__(self, index: int) -> Example:
        """The example at `index`; its id and the key of its image begin with the name of its part."""
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        part = int(self._part_at[index])
        return self._named(part, self._envs[part][int(self._place_at[index])])

    def scene(self, index: int) -> list[Example]:
        """Every example of the image of example `index`, all of one part."""
        part = int(self._part_at[index])
        return [self._named(part, one) for one in self._envs[part].scene(int(self._place_at[index]))]

    def image(self, ref: ImageRef) -> NDArray[np.uint8]:
        """The image [H, W, 3] RGB as its part shows it; raises as that does."""
        env, own = self._own(ref)
        return env.image(own)

    def image_file(self, ref: ImageRef) -> ShownFile | None:
        """The file behind an image; None where its part holds or composes its images."""
        env, own = self._own(ref)
        return env.image_file(own) if isinstance(env, FromFiles) else None

    def _named(self, part: int, example: Example) -> Example:
        name = self.part_names[part]
        image = replace(example.image, key=f"{name}{PART_END}{example.image.key}")
        return replace(example, id=f"{name}{PART_END}{example.id}", image=image)

    def _own(self, ref: ImageRef) -> tuple[AnyEnv, ImageRef]:
        name, between, key = ref.key.partition(PART_END)
        if not between or name not in self.part_names:
            raise ValueError(f"{ref.key} is no image of this mixture ({', '.join(self.part_names)}).")
        return self._envs[self.part_names.index(name)], replace(ref, key=key)


def interleaved(lengths: Sequence[int], shares: Sequence[float]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The part [N] and the place in it [N] of every question, each part evenly spread by its share.

    lengths: examples of each part, 1 or more; shares: above 0. N is the least number for which every part has been gone
    through; question k of a part with share s (of shares that sum to 1) stands at (k + 1/2) / s.
    """
    scaled = np.asarray(shares, np.float64) / np.sum(shares)
    total = max(length / share for length, share in zip(lengths, scaled, strict=True))
    counts = [max(length, round(total * share)) for length, share in zip(lengths, scaled, strict=True)]
    stands = np.concatenate([(np.arange(count) + 0.5) / share for count, share in zip(counts, scaled, strict=True)])
    parts = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    places = np.concatenate([np.arange(count) % length for count, length in zip(counts, lengths, strict=True)])
    order = np.argsort(stands, kind="stable")
    return parts[order], places[order].astype(np.int64)
