"""A scene: cut-outs drawn over a background, back to front, and what can be seen of each."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from envs.datasets._cutouts import Cutout, opaque

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
    together: bool = False
    """Whether a name asks for all objects of its kind at once."""

    @property
    def questions(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """What can be asked, back to front: a phrase, and which objects it means."""
        if not self.together:
            return tuple((phrase, (k,)) for k, phrase in enumerate(self.phrases))
        kinds = dict.fromkeys(self.names)
        return tuple((kind, tuple(k for k, name in enumerate(self.names) if name == kind)) for kind in kinds)

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
class Layout:
    """How a scene is laid out."""

    size: int
    """H and W, pixels."""
    max_objects: int
    """Most objects, 1 or more."""
    min_scale: float
    """Shortest longer side of an object as a share of size."""
    max_scale: float
    """Longest longer side of an object as a share of size."""
    max_overlap: float
    """Largest share of what is visible of an object that a later one may hide."""
    twin_share: float
    """Chance of two of a kind."""
    several_share: float = 0.0
    """Chance of two or more of a kind that are asked for together."""


def compose(rng: Generator, cutouts: Mapping[str, Cutout], layout: Layout, where: str) -> Scene:
    """Some of the cut-outs (by name; their order counts) over a background, back to front, then perhaps all mirrored.

    Raises ValueError, naming the scene by `where`, where nothing could be placed.
    """
    image = _background(rng, layout.size, cutouts)
    together = layout.several_share > 0 and rng.random() < layout.several_share
    names = list(rng.permutation(list(cutouts))[: int(rng.integers(1, layout.max_objects + 1))])
    if together:
        num = int(rng.integers(2, layout.max_objects + 1))
        names = list(rng.permutation([names[0]] * num + names[1 : layout.max_objects - num + 1]))
    elif len(names) > 1 and rng.random() < layout.twin_share:
        names[-1] = names[0]
    masks: list[NDArray[np.bool_]] = []
    shown: list[str] = []
    for name in names:
        placed = _place(rng, cutouts[name].rgba, masks, layout)
        if placed is None:
            continue
        rgba, top, left, mask = placed
        _paste(image, rgba, top, left)
        masks = [other & ~mask for other in masks] + [mask]
        shown.append(str(name))
    if not masks:
        raise ValueError(
            f"nothing could be placed in {where}: no pixel of {', '.join(names)} is opaque "
            "at this size; raise env.min_scale or env.image_size, or remove these cut-outs."
        )
    scene = Scene(image.round().astype(np.uint8), tuple(shown), np.stack(masks), together)
    return mirrored(scene) if rng.random() < 0.5 else scene


def _place(
    rng: Generator, rgba: NDArray[np.uint8], masks: list[NDArray[np.bool_]], layout: Layout
) -> tuple[NDArray[np.uint8], int, int, NDArray[np.bool_]] | None:
    """A size, a flip and a place that hide no earlier object too much: (rgba, top, left, mask), or None after twenty
    tries."""
    size = layout.size
    for _ in range(20):
        longer = rng.uniform(layout.min_scale, layout.max_scale) * size
        scaled = _scaled(rgba, longer)[:, :: int(rng.choice([-1, 1]))]
        height, width = scaled.shape[:2]
        top, left = int(rng.integers(0, size - height + 1)), int(rng.integers(0, size - width + 1))
        mask = np.zeros((size, size), np.bool_)
        mask[top : top + height, left : left + width] = opaque(scaled)
        if mask.any() and all((other & mask).sum() <= layout.max_overlap * other.sum() for other in masks):
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


def _background(rng: Generator, size: int, cutouts: Mapping[str, Cutout]) -> NDArray[np.float64]:
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
        for name in rng.permutation(list(cutouts))[: int(rng.integers(3, 8))]:
            scaled = _scaled(cutouts[name].rgba, rng.uniform(0.15, 0.3) * size)
            top, left = rng.integers(0, size - scaled.shape[0] + 1), rng.integers(0, size - scaled.shape[1] + 1)
            _paste(image, scaled, int(top), int(left), strength=0.25)
    return image


def _centre(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(x, y) mean of the pixel centres of a mask that is not empty."""
    ys, xs = np.nonzero(mask)
    return np.array([xs.mean(), ys.mean()]) + 0.5
