"""Env: scenes composed from named cut-outs, with the visible mask of each object as truth.

One to four objects over a gradient, noise or clutter; they overlap, differ in size and are flipped; the target is what
can be seen of the object. The phrase is its name or, with two of a kind, a spatial one ("the left apple"); where
several_share is set, a name may ask for all of its kind. Other questions (colour, size, kind, the same as a mask, all
but a name) come by shares of their own; envs/datasets/_asked.py words them. A scene is a function of (seed, split,
index) alone; envs/datasets/_scene.py draws it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from hashlib import sha256

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from envs.datasets._asked import SORTS, Asked, colours_of, questions, words_of
from envs.datasets._cutouts import Cutout, load_cutouts, opaque, split_names
from envs.datasets._pool import EXACT, LEAST, Segmenter, pool_of
from envs.datasets._scene import SPATIAL_WORDS, Layout, Scene, compose
from envs.example import SPLITS, Example, ImageRef, MaskPart, Prompt, TextPart, Truth, image_sha256


@dataclass(frozen=True)
class Env:
    """Settings of the scenes; a sequence of `num_scenes` examples, one question per scene."""

    split: str
    seed: int = 0
    image_size: int = 64
    """H and W, pixels."""
    num_scenes: int = 100_000
    train_scenes: int | None = None
    """Different scenes of the split train, to see what few teach: they come again and again, each time with a question
    drawn anew. None is num_scenes."""
    folder: str | None = None
    """Folder of cut-outs (see envs/datasets/_cutouts.py); None is OpenMoji."""
    held_out_share: float = 0.1
    """Share of the names that only the split held_out_names shows."""
    max_objects: int = 4
    min_scale: float = 0.34
    max_scale: float = 0.68
    """Longer side of an object as a share of image_size, drawn uniformly."""
    max_overlap: float = 0.2
    """Largest share of what is visible of an object that a later one may hide."""
    twin_share: float = 0.15
    """Share of the scenes with two of a kind, which a phrase tells apart."""
    several_share: float = 0.0
    """Share of the scenes with two to max_objects of a kind, for all of which their bare name asks: answers of several
    instances. Such answers need more of the codec's rings and vertices. Of these some may find no place."""
    absent_share: float = 0.0
    """Share of the questions about something that is not there."""
    colour_share: float = 0.0
    """Share of the questions for everything of a colour ("everything red"). This and the four below mean one object or
    several; where a scene offers no such question with one answer, it is asked by name. Where all questions about a
    scene are asked, at most one of them is such."""
    size_share: float = 0.0
    """Share of the questions by size: the largest or smallest object, or that of a name ("the largest pear")."""
    kind_share: float = 0.0
    """Share of the questions for all birds, fish, insects, fruit or vehicles ("every fruit")."""
    same_share: float = 0.0
    """Share of the questions that show the mask of one of several objects of a name, and ask for all of them ("the same
    as <mask>"); set twin_share or several_share for scenes with such. The policy must read masks."""
    others_share: float = 0.0
    """Share of the questions for all objects but those of a name ("all but pear")."""
    candidates: int | None = None
    """Most masks to choose from beside each question, 4 or more: what can be seen of each object, halves, merged and
    moved ones; null: none."""
    candidates_off_px: int = 0
    """Most pixels by which a pool's masks of objects are grown or shrunk, and moved along each axis, as a segmenter's
    are off; 0: exact. The truth stays what it is, so that the best choice falls short of it."""
    candidates_missing: float = 0.0
    """Share of the objects of which a pool has no mask of their own; one object is always there."""
    names: tuple[str, ...] = field(init=False, repr=False)
    """The names that this split shows."""

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"env split is {self.split!r}; it must be one of {', '.join(SPLITS)}.")
        if self.image_size < 32 or not 0 < self.min_scale <= self.max_scale <= 1 or self.max_objects < 1:
            raise ValueError(
                f"env.image_size is {self.image_size}, env.min_scale {self.min_scale}, env.max_scale "
                f"{self.max_scale}, env.max_objects "
                f"{self.max_objects}; set image_size to 32 or more, 0 < min_scale <= max_scale <= 1, max_objects to "
                "1 or more."
            )
        self._check_shares()
        seen, held_out = split_names(load_cutouts(self.folder).names, self.held_out_share)
        names = held_out if self.split == "held_out_names" else seen
        if len(names) < 2:
            raise ValueError(
                f"split {self.split} has {len(names)} names with env.held_out_share {self.held_out_share}; it needs "
                "2 or more: add cut-outs or change the share."
            )
        if self.absent_share > 0 and len(names) <= self.max_objects:
            raise ValueError(
                f"env.absent_share is {self.absent_share}, but split {self.split} has {len(names)} names and a scene "
                f"may show all of them (env.max_objects {self.max_objects}); set absent_share to 0 or add cut-outs."
            )
        object.__setattr__(self, "names", names)

    def _check_shares(self) -> None:
        shares = {
            "held_out_share": self.held_out_share,
            "twin_share": self.twin_share,
            "several_share": self.several_share,
            "absent_share": self.absent_share,
            "candidates_missing": self.candidates_missing,
        } | self._asked_shares
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise ValueError(f"env.{name} is {share}; a share is 0 to 1.")
        if (total := sum(self._asked_shares.values())) > 1:
            raise ValueError(
                f"env.{', env.'.join(self._asked_shares)} add up to {total:g}; together they are shares of the "
                "questions, so set them to 1 or less."
            )
        if self.train_scenes is not None and self.train_scenes < 1:
            raise ValueError(f"env.train_scenes is {self.train_scenes}; set it to 1 or more, or to null.")
        if self.candidates is not None and self.candidates < max(LEAST, self.max_objects):
            raise ValueError(
                f"env.candidates is {self.candidates}; set it to {max(LEAST, self.max_objects)} or more, so that every "
                "object (env.max_objects) is among them, or to null."
            )
        if self.candidates_off_px < 0 or (self.candidates is None and self._segmenter != EXACT):
            raise ValueError(
                f"env.candidates is {self.candidates}, env.candidates_off_px {self.candidates_off_px}, "
                f"env.candidates_missing {self.candidates_missing}; set candidates_off_px to 0 or more, and either "
                "only with candidates to choose from."
            )
        if self.several_share and self.max_objects < 2:
            raise ValueError(
                f"env.several_share is {self.several_share} and env.max_objects {self.max_objects}, which leaves no "
                "room for two of a kind; set max_objects to 2 or more, or several_share to 0."
            )
        if not 0 <= self.max_overlap < 1 or self.num_scenes < 1 or self.seed < 0:
            raise ValueError(
                f"env.max_overlap is {self.max_overlap}, env.num_scenes {self.num_scenes}, env.seed {self.seed}; set "
                "0 <= max_overlap < 1 (1 would hide objects whole), num_scenes to 1 or more, seed to 0 or more."
            )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what shapes the scenes, the pixels of the cut-outs among it."""
        few = "" if self.train_scenes is None or self.split != "train" else f":{self.train_scenes}"
        pool = "" if self.candidates is None else f":pool {self.candidates}"
        pool += "" if self._segmenter == EXACT else f" {self._segmenter}"
        asked = f":asked {self._asked_shares}" if self._asks_otherwise else ""
        digest = sha256(f"{self._key(0)}:{self.absent_share}{few}{pool}{asked}".encode())
        for name, cutout in self._cutouts.items():
            digest.update(f"{name}:{cutout.rgba.shape}:".encode() + cutout.rgba.tobytes())
        return digest.hexdigest()

    @property
    def notes(self) -> Mapping[str, Sequence[str]]:
        """Which pictures of the folder were passed over, by the reason."""
        return load_cutouts(self.folder).notes

    def phrase_words(self) -> set[str]:
        """Words of all names, held-out ones too, and those that say where something is, or ask in other ways."""
        asked = [words_of(sort) for sort in SORTS if self._asked_shares[f"{sort}_share"]]
        names = load_cutouts(self.folder).names
        return {word for name in names for word in name.split()}.union(SPATIAL_WORDS, *asked)

    def splits(self) -> tuple[str, ...]:
        """The splits that show two names or more."""
        _, held_out = split_names(load_cutouts(self.folder).names, self.held_out_share)
        return tuple(split for split in SPLITS if split != "held_out_names" or len(held_out) > 1)

    def __len__(self) -> int:
        return self.num_scenes

    def __getitem__(self, index: int) -> Example:
        number = self._number(index)
        scene, rng = self._scene(number), self._rng(index, stream=1)
        if (other := self._other_question(scene, index)) is not None:
            return self._other_example(number, scene, other)
        if rng.random() < self.absent_share:
            absent = sorted(set(self.names) - set(scene.names))
            return self._example(number, scene, absent[rng.integers(len(absent))], ())
        return self._example(number, scene, *scene.questions[int(rng.integers(len(scene.questions)))])

    def scene(self, index: int) -> list[Example]:
        """One example for every object of scene `index` (or kind, where a name asks for several), back to front, then
        perhaps one that asks for something absent, and perhaps one that asks in another way."""
        number = self._number(index)
        scene = self._scene(number)
        examples = [self._example(number, scene, phrase, objects) for phrase, objects in scene.questions]
        rng = self._rng(index, stream=2)
        if rng.random() < self.absent_share * (len(examples) + 1):
            absent = sorted(set(self.names) - set(scene.names))
            examples.append(self._example(number, scene, absent[rng.integers(len(absent))], ()))
        if (other := self._other_question(scene, index)) is not None:
            examples.append(self._other_example(number, scene, other))
        return examples

    def image(self, ref: ImageRef) -> NDArray[np.uint8]:
        """Pixels [H, W, 3] of a scene by its key.

        Raises ValueError where they differ from when the reference was made.
        """
        tail = ref.key.rpartition("/")[2]
        index = int(tail) if tail.isascii() and tail.isdigit() else -1
        ours = 0 <= index < self.num_scenes and self._key(index) == ref.key
        if not ours or image_sha256(self._scene(index).image) != ref.sha256:
            raise ValueError(
                f"scene {ref.key} no longer has the pixels that its reference names ({ref.sha256[:12]}); it was "
                "composed with other env settings or another version of the cut-outs."
            )
        return self._scene(index).image

    def _key(self, index: int) -> str:
        source = "openmoji" if self.folder is None else "folder"
        return f"cutout_scenes/{source}-{self._digest}/{self.image_size}px/{self.split}/{self.seed}/{index}"

    @cached_property
    def _digest(self) -> str:
        """Eight hex digits of all else that shapes a scene, so that other settings give other ids."""
        shaping = (self.names, self.max_objects, self.min_scale, self.max_scale, self.max_overlap, self.twin_share)
        several = (self.several_share,) if self.several_share else ()
        return sha256(repr(shaping + several).encode()).hexdigest()[:8]

    def _rng(self, index: int, stream: int) -> Generator:
        return np.random.default_rng([self.seed, SPLITS.index(self.split), index, stream])

    def _number(self, index: int) -> int:
        """The scene of an example; raises IndexError where there is no such example."""
        if not 0 <= index < self.num_scenes:
            raise IndexError(
                f"example {index} is outside 0..{self.num_scenes - 1} (env.num_scenes is {self.num_scenes})"
            )
        return index if self.train_scenes is None or self.split != "train" else index % self.train_scenes

    def _scene(self, number: int) -> Scene:
        return _composed(self, number)

    @property
    def _segmenter(self) -> Segmenter:
        return Segmenter(self.candidates_off_px, self.candidates_missing)

    @property
    def _asked_shares(self) -> dict[str, float]:
        """By the names of their settings, in the order of SORTS."""
        shares = (self.colour_share, self.size_share, self.kind_share, self.same_share, self.others_share)
        return dict(zip((f"{sort}_share" for sort in SORTS), shares, strict=True))

    @property
    def _asks_otherwise(self) -> bool:
        return any(self._asked_shares.values())

    def _other_question(self, scene: Scene, index: int) -> Asked | None:
        """The question of example `index` where it is none by name; None where it is."""
        if not self._asks_otherwise:
            return None
        rng = self._rng(index, stream=4)
        sort = int(np.searchsorted(np.cumsum([*self._asked_shares.values()]), rng.random(), side="right"))
        found = questions(SORTS[sort], scene, self._colours) if sort < len(SORTS) else []
        return found[int(rng.integers(len(found)))] if found else None

    def _other_example(self, number: int, scene: Scene, asked: Asked) -> Example:
        plain = self._example(number, scene, asked.words, asked.objects)
        if asked.shown is None:
            return plain
        prompt = Prompt((TextPart(asked.words), MaskPart(scene.masks[asked.shown])))
        return replace(plain, id=f"{plain.id}-object-{asked.shown}", prompt=prompt)

    @cached_property
    def _colours(self) -> dict[str, dict[str, float]]:
        """Share of each colour, by name."""
        return {name: colours_of(cutout.rgba[opaque(cutout.rgba)][:, :3]) for name, cutout in self._cutouts.items()}

    def _example(self, number: int, scene: Scene, phrase: str, objects: tuple[int, ...]) -> Example:
        size = self.image_size
        return Example(
            id=f"{self._key(number)}/{phrase.replace(' ', '-')}",
            image=ImageRef(self._key(number), image_sha256(scene.image), size, size),
            prompt=Prompt.of_text(phrase),
            truth=Truth(scene.masks[list(objects)]),
            split=self.split,
            source="OpenMoji 17 scenes" if self.folder is None else f"cut-outs of {self.folder}",
            licence="CC-BY-SA-4.0" if self.folder is None else "see folder",
            candidates=None if self.candidates is None else _pooled(self, number),
        )

    @cached_property
    def _cutouts(self) -> dict[str, Cutout]:
        """What this split shows, by name, in the order of `names`."""
        by_name = {cutout.name: cutout for cutout in load_cutouts(self.folder).cutouts}
        return {name: by_name[name] for name in self.names}


@lru_cache(maxsize=256)
def _composed(env: Env, index: int) -> Scene:
    layout = Layout(
        env.image_size,
        env.max_objects,
        env.min_scale,
        env.max_scale,
        env.max_overlap,
        env.twin_share,
        env.several_share,
    )
    return compose(env._rng(index, stream=0), env._cutouts, layout, f"scene {index} of split {env.split}")


@lru_cache(maxsize=256)
def _pooled(env: Env, index: int) -> NDArray[np.bool_]:
    """One array for all questions about a scene."""
    assert env.candidates is not None
    return pool_of(_composed(env, index).masks, env.candidates, env._rng(index, stream=3), env._segmenter)
