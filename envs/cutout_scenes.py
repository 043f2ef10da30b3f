"""Env: scenes composed from named cut-outs, with the visible mask of each object as truth.

One to four objects over a gradient, noise or clutter; they overlap, differ in size and are flipped; the target is
what can be
seen of the object. The phrase is its name or, with two of a kind, a spatial one ("the left apple"). A scene is a
function
of (seed, split, index) alone.
"""

import re
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from envs.cutouts import Cutout, load_cutouts, opaque, split_names
from envs.example import SPLITS, Example, ImageRef, Prompt, Truth, image_sha256

SPATIAL_WORDS = {"the", "left", "right", "upper", "lower"}
"""Words of phrases beside the names."""

_MIRRORED = {"left": "right", "right": "left"}


@dataclass(frozen=True)
class Scene:
    """One composed image and what is in it."""

    image: NDArray[np.uint8]
    """[H, W, 3]."""
    names: tuple[str, ...]
    """Name of each object, back to front."""
    masks: NDArray[np.bool_]
    """[K, H, W] visible mask of each object."""

    @property
    def phrases(self) -> tuple[str, ...]:
        """What to call each object so that only it is meant."""
        return tuple(self._phrase(k) for k in range(len(self.names)))

    def _phrase(self, k: int) -> str:
        twins = [n for n, name in enumerate(self.names) if name == self.names[k] and n != k]
        if not twins:
            return self.names[k]
        here, there = _centre(self.masks[k]), _centre(self.masks[twins[0]])
        # Rounded, so that a tie is a tie: rounding errors would break it one way here and another way in the mirror.
        across, down = (here - there).round(9)
        if abs(across) >= abs(down):
            return f"the {'left' if across < 0 else 'right'} {self.names[k]}"
        return f"the {'upper' if down < 0 else 'lower'} {self.names[k]}"


def mirrored(scene: Scene) -> Scene:
    """The scene flipped left to right; its phrases follow, "left" and "right" changing places."""
    return replace(scene, image=scene.image[:, ::-1].copy(), masks=scene.masks[:, :, ::-1].copy())


def mirrored_phrase(phrase: str) -> str:
    """A phrase as it reads after a flip left to right."""
    return re.sub(r"\b(left|right)\b", lambda word: _MIRRORED[word[0]], phrase)


@dataclass(frozen=True)
class Env:
    """Settings of the scenes; a sequence of `num_scenes` examples, one question a scene."""

    split: str
    seed: int = 0
    image_size: int = 64
    """H and W, pixels."""
    num_scenes: int = 100_000
    folder: str | None = None
    """Folder of cut-outs (see envs/cutouts.py); None is OpenMoji."""
    held_out_share: float = 0.1
    """Share of the names that only the split held_out_names shows."""
    max_objects: int = 4
    min_scale: float = 0.34
    max_scale: float = 0.68
    """Longer side of an object as a share of image_size, drawn uniformly."""
    max_overlap: float = 0.2
    """Largest share of what is visible of an object that a later one may hide."""
    twin_share: float = 0.15
    """Share of the scenes with two of a kind."""
    absent_share: float = 0.0
    """Share of the questions about something that is not there."""
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
        seen, held_out = split_names(tuple(c.name for c in load_cutouts(self.folder)), self.held_out_share)
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
            "absent_share": self.absent_share,
        }
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise ValueError(f"env.{name} is {share}; a share is 0 to 1.")
        if not 0 <= self.max_overlap < 1 or self.num_scenes < 1 or self.seed < 0:
            raise ValueError(
                f"env.max_overlap is {self.max_overlap}, env.num_scenes {self.num_scenes}, env.seed {self.seed}; set "
                "0 <= max_overlap < 1 (1 would hide objects whole), num_scenes to 1 or more, seed to 0 or more."
            )

    def __len__(self) -> int:
        return self.num_scenes

    def __getitem__(self, index: int) -> Example:
        scene = self._scene(index)
        rng = self._rng(index, stream=1)
        if rng.random() < self.absent_share:
            absent = sorted(set(self.names) - set(scene.names))
            return self._example(index, scene, absent[rng.integers(len(absent))], None)
        k = int(rng.integers(len(scene.names)))
        return self._example(index, scene, scene.phrases[k], k)

    def scene(self, index: int) -> list[Example]:
        """One example for every object of scene `index`, back to front, then perhaps one that asks for something
        absent."""
        scene = self._scene(index)
        examples = [self._example(index, scene, phrase, k) for k, phrase in enumerate(scene.phrases)]
        rng = self._rng(index, stream=2)
        if rng.random() < self.absent_share * (len(examples) + 1):
            absent = sorted(set(self.names) - set(scene.names))
            examples.append(self._example(index, scene, absent[rng.integers(len(absent))], None))
        return examples

    def image(self, ref: ImageRef) -> NDArray[np.uint8]:
        """Pixels [H, W, 3] of a scene by its key; raises ValueError where they differ from when the reference was
        made."""
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
        return f"cutout_scenes/{source}/{self.image_size}px/{self.split}/{self.seed}/{index}"

    def _rng(self, index: int, stream: int) -> Generator:
        return np.random.default_rng([self.seed, SPLITS.index(self.split), index, stream])

    def _scene(self, index: int) -> Scene:
        if not 0 <= index < self.num_scenes:
            raise IndexError(
                f"example {index} is outside 0..{self.num_scenes - 1} (env.num_scenes is {self.num_scenes})"
            )
        return _compose(self, index)

    def _example(self, index: int, scene: Scene, phrase: str, k: int | None) -> Example:
        size = self.image_size
        masks = np.zeros((0, size, size), np.bool_) if k is None else scene.masks[k : k + 1]
        return Example(
            id=f"{self._key(index)}/{phrase.replace(' ', '-')}",
            image=ImageRef(self._key(index), image_sha256(scene.image), size, size),
            prompt=Prompt((phrase,)),
            truth=Truth(masks),
            split=self.split,
            source="OpenMoji 17 scenes" if self.folder is None else f"cut-outs of {self.folder}",
            licence="CC-BY-SA-4.0" if self.folder is None else "see folder",
        )

    @cached_property
    def _cutouts(self) -> dict[str, Cutout]:
        return {cutout.name: cutout for cutout in load_cutouts(self.folder)}


@lru_cache(maxsize=256)
def _compose(env: Env, index: int) -> Scene:
    """Scene `index`: background, then objects back to front, then perhaps the whole of it mirrored."""
    rng = env._rng(index, stream=0)
    size = env.image_size
    image = _background(rng, size, env)
    names = list(rng.permutation(env.names)[: int(rng.integers(1, env.max_objects + 1))])
    if len(names) > 1 and rng.random() < env.twin_share:
        names[-1] = names[0]
    masks: list[NDArray[np.bool_]] = []
    shown: list[str] = []
    for name in names:
        placed = _place(rng, env._cutouts[name].rgba, masks, env)
        if placed is None:
            continue
        rgba, top, left, mask = placed
        _paste(image, rgba, top, left)
        masks = [other & ~mask for other in masks] + [mask]
        shown.append(str(name))
    if not masks:
        raise ValueError(
            f"nothing could be placed in scene {index} of split {env.split}: no pixel of {', '.join(names)} is opaque "
            "at this size; raise env.min_scale or env.image_size, or remove these cut-outs."
        )
    scene = Scene(image.round().astype(np.uint8), tuple(shown), np.stack(masks))
    return mirrored(scene) if rng.random() < 0.5 else scene


def _place(
    rng: Generator, rgba: NDArray[np.uint8], masks: list[NDArray[np.bool_]], env: Env
) -> tuple[NDArray[np.uint8], int, int, NDArray[np.bool_]] | None:
    """A size, a flip and a place that hide no earlier object too much: (rgba, top, left, mask), or None after twenty
    tries."""
    size = env.image_size
    for _ in range(20):
        longer = rng.uniform(env.min_scale, env.max_scale) * size
        scaled = _scaled(rgba, longer)[:, :: int(rng.choice([-1, 1]))]
        height, width = scaled.shape[:2]
        top, left = int(rng.integers(0, size - height + 1)), int(rng.integers(0, size - width + 1))
        mask = np.zeros((size, size), np.bool_)
        mask[top : top + height, left : left + width] = opaque(scaled)
        if mask.any() and all((other & mask).sum() <= env.max_overlap * other.sum() for other in masks):
            return scaled, top, left, mask
    return None


def _scaled(rgba: NDArray[np.uint8], longer: float) -> NDArray[np.uint8]:
    height, width = rgba.shape[:2]
    ratio = longer / max(height, width)
    size = (max(1, round(width * ratio)), max(1, round(height * ratio)))
    return np.asarray(
        Image.fromarray(rgba).resize(size, Image.Resampling.BOX if ratio < 0.5 else Image.Resampling.BILINEAR)
    )


def _paste(image: NDArray[np.float64], rgba: NDArray[np.uint8], top: int, left: int, strength: float = 1.0) -> None:
    """Blend [h, w, 4] over `image` in place, its corner at (top, left)."""
    window = image[top : top + rgba.shape[0], left : left + rgba.shape[1]]
    alpha = rgba[..., 3:] / 255 * strength
    window += (rgba[..., :3] - window) * alpha


def _background(rng: Generator, size: int, env: Env) -> NDArray[np.float64]:
    """Float [size, size, 3] in 0..255: a gradient between two colours, soft noise, or faint cut-outs as clutter."""
    kind = rng.integers(3)
    first, second = rng.uniform(30, 255, (2, 3))
    angle = rng.uniform(0, 2 * np.pi)
    ys, xs = np.mgrid[:size, :size] / size - 0.5
    ramp = (np.cos(angle) * xs + np.sin(angle) * ys + 0.75) / 1.5
    image = first + (second - first) * ramp[..., None]
    if kind == 1:
        cells = int(rng.integers(3, 12))
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        image = 0.6 * image + 0.4 * np.asarray(noise.resize((size, size), Image.Resampling.BICUBIC))
    if kind == 2:
        for name in rng.permutation(env.names)[: int(rng.integers(3, 8))]:
            scaled = _scaled(env._cutouts[name].rgba, rng.uniform(0.15, 0.3) * size)
            top, left = rng.integers(0, size - scaled.shape[0] + 1), rng.integers(0, size - scaled.shape[1] + 1)
            _paste(image, scaled, int(top), int(left), strength=0.25)
    return image


def _centre(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(x, y) mean of the pixel centres of a mask that is not empty."""
    ys, xs = np.nonzero(mask)
    return np.array([xs.mean(), ys.mean()]) + 0.5
