"""Image files: opened as eight-bit pixels the way a viewer shows them, then resized and padded to a view.

The one way in which files are opened: photos of an env, cut-outs, and what a policy is asked about by hand. Of an
animation it is the first frame; the image is upright and lies over white.
"""

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from envs.polygons import Ring, px_from_unit, unit_from_px

MOST_PIXELS = 2**29
"""An image of more is refused: Pillow's own limit, made for files that strangers send, is passed by panoramas."""
Image.MAX_IMAGE_PIXELS = MOST_PIXELS // 2  # beyond it Pillow warns, and refuses twice as many

# What Pillow's readers raise for a file that is cut off, damaged, or meant to do harm.
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, TypeError, Image.DecompressionBombError)

_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0
"""A tag of TIFF, and its value where low numbers are light, as scanners write it."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image of an EXIF orientation upright."""
_AS_STORED = _UPRIGHT | {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
"""The way back."""


@dataclass(frozen=True)
class ImageHeader:
    """What a file says of its image before any pixel is decoded."""

    height: int
    """H of the pixels as they are stored."""
    width: int
    """W of the pixels as they are stored."""
    orientation: int
    """EXIF orientation, 1 to 8: 1 is upright, 2 to 4 are mirrored or upside down, 5 to 8 lie on their side."""

    @property
    def lies_on_its_side(self) -> bool:
        """Whether height and width change places when the image is made upright."""
        return self.orientation > 4


def image_header(path: Path) -> ImageHeader:
    """The size and orientation of the image in `path`; raises as `read_image`, but for what only decoding finds."""
    with _opened(path) as image:
        return _header(image)


def read_image(path: Path, upright: bool = True) -> Image.Image:
    """The image in `path` as 8-bit RGB, in the pixels that a viewer shows.

    An EXIF orientation is applied, so that height and width are those of the upright picture, or with `upright` False
    left alone; of an animation, it is the first frame; what is transparent lies over white. 16-bit grey is divided by
    257; 32-bit integers and floats, whose white nobody agreed on, are stretched from their lowest to their highest
    value. Raises FileNotFoundError where there is no such file, ValueError where it is no image that can be read whole.
    """
    with _opened(path) as image:
        return _over_white(_decoded(image, upright))


def _over_white(shown: Image.Image) -> Image.Image:
    if not shown.has_transparency_data:
        return shown.convert("RGB")
    layer = shown.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def read_bytes(data: bytes, called: str, most_pixels: int = MOST_PIXELS) -> Image.Image:
    """The image that the bytes of a file hold, as `read_image` gives it; called: what it is, for errors.

    Raises ValueError where it is no image that can be read whole, or one of more than `most_pixels`, of which nothing
    is decoded.
    """
    with _reading(called), Image.open(io.BytesIO(data)) as image:
        header = _header(image)
        if header.height * header.width > most_pixels:
            raise ValueError(f"it has {header.width} x {header.height} pixels, more than {most_pixels:,}")
        return _over_white(_decoded(image, upright=True))


def read_layer(path: Path) -> Image.Image:
    """The image in `path` as 8-bit RGBA, its transparency kept; else as `read_image`."""
    with _opened(path) as image:
        return _decoded(image, upright=True).convert("RGBA")


@contextmanager
def _opened(path: Path) -> Iterator[ImageFile.ImageFile]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is {'a folder' if path.exists() else 'not there'}; give an image file.")
    # It is given no path, since it maps grey TIFFs that lie on their side into memory with height and width confused.
    with _reading(f"{path}"), path.open("rb") as file, Image.open(file) as image:
        yield image


@contextmanager
def _reading(called: str) -> Iterator[None]:
    """Around what reads an image: what Pillow raises becomes a ValueError that says what is wrong with `called`."""
    try:
        # What Pillow warns of (odd metadata, a large image) would stand between a user and the answer.
        with warnings.catch_warnings(action="ignore"):
            yield
    except PermissionError as error:
        raise ValueError(f"{called} cannot be opened ({error.strerror}); make it readable.") from error
    except _UNREADABLE as error:
        said = "nothing in it that Pillow knows" if isinstance(error, UnidentifiedImageError) else str(error)
        said = " ".join(said.split())
        raise ValueError(f"{called} is cut off, damaged or no image ({said}); give a file that opens whole.") from error


def _late_exif(png: IO[bytes]) -> bytes:
    """The EXIF chunk that some programs write behind the pixels of a PNG; b"" without one."""
    place, found = png.tell(), b""
    png.seek(8)
    while not found and len(head := png.read(8)) == 8:
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if kind == b"eXIf":
            found = png.read(length)
        png.seek(length + 4, 1)
    png.seek(place)
    return found


def _header(image: ImageFile.ImageFile) -> ImageHeader:
    """Read before pixels are decoded: afterwards Pillow's reader of TIFF has forgotten the orientation."""
    if (
        image.format == "PNG" and "exif" not in image.info and image.fp
    ):  # else Pillow decodes all pixels to look behind them
        image.info["exif"] = _late_exif(image.fp)
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except _UNREADABLE:  # what is no EXIF turns nothing
        orientation = 1
    orientation = orientation if orientation in _UPRIGHT else 1
    width, height = image.size
    if image.format == "TIFF" and orientation > 4:  # this reader gives the size, and then the pixels, upright
        width, height = height, width
    return ImageHeader(height, width, orientation)


def _decoded(image: ImageFile.ImageFile, upright: bool) -> Image.Image:
    """The image with 8 bits a channel, turned upright or as it is stored."""
    orientation, turned_by_reader = _header(image).orientation, image.format == "TIFF"
    shown = _eight_bit(image)
    if orientation == 1 or upright == turned_by_reader:
        return shown
    return shown.transpose((_UPRIGHT if upright else _AS_STORED)[orientation])


def _eight_bit(image: Image.Image) -> Image.Image:
    if not image.mode.startswith(("I", "F")):
        image.load()
        return image
    values = np.asarray(image)
    sixteen_bits = image.mode.startswith("I;16") or (
        image.mode == "I" and image.format == "PPM"
    )  # whose reader scales to 65535
    shown = _stretched(values, (0.0, 65535.0) if sixteen_bits else None)
    if isinstance(image, TiffImageFile) and image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        shown = 255 - shown  # Pillow does so for eight bits only
    grey = Image.fromarray(shown)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):  # one grey value of a 16-bit PNG
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey


def _stretched(values: NDArray, span: tuple[float, float] | None) -> NDArray[np.uint8]:
    """Numbers [H, W] as 0..255 over `span`, or from their lowest to their highest; what is no number is 0 before."""
    numbers = np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0)
    low, high = span or (numbers.min(), numbers.max())
    return np.rint((numbers - low) * (255 / max(high - low, 1e-300))).astype(np.uint8)


PADDING_GREY = 128


@dataclass(frozen=True)
class View:
    """How images are shown."""

    side: int | None = None
    """Pixels of the longer side; None shows them as they are."""
    square: bool = False
    """Whether the shorter side is padded with grey, on the right or below."""

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of an image after resizing, before padding."""
        if self.side is None:
            return height, width
        scale = self.side / max(height, width)
        return max(1, round(height * scale)), max(1, round(width * scale))

    def pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        """The view [h, w, 3] uint8 of an RGB image."""
        height, width = self.size(image.height, image.width)
        if (width, height) != image.size:
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        return self.padded(np.array(image, np.uint8), PADDING_GREY)

    def mask(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """The view [h, w] of a mask [H, W] of the image: what is under the centre of each pixel, nothing in padding."""
        height, width = self.size(*mask.shape)
        if (height, width) != mask.shape:
            rows = ((np.arange(height) + 0.5) * (mask.shape[0] / height)).astype(np.int64)
            columns = ((np.arange(width) + 0.5) * (mask.shape[1] / width)).astype(np.int64)
            mask = mask[rows[:, None], columns]
        return self.padded(mask, 0)

    def padded(self, pixels: NDArray[Any], value: int) -> NDArray[Any]:
        """Pixels [H, W, ...] with `value` on the right or below where the view is square; else as they are."""
        if not self.square:
            return pixels
        height, width = pixels.shape[:2]
        side = max(height, width)
        margins = [(0, side - height), (0, side - width), (0, 0)][: pixels.ndim]
        return np.pad(pixels, margins, constant_values=value)

    def rings_px(self, rings: Sequence[Ring], height: int, width: int) -> list[Ring]:
        """Rings [N, 2] in pixels of the view, in those of its image of height x width."""
        shown = self.size(height, width)
        return [px_from_unit(unit_from_px(ring, *shown), height, width) for ring in rings]


@dataclass(frozen=True)
class ShownFile:
    """A file, and how its image becomes the pixels that are asked about."""

    path: Path
    """Where the file lies."""
    upright: bool
    """Whether an EXIF orientation is applied."""
    view: View
    """How the image is resized and padded."""

    @property
    def turned(self) -> bool | None:
        """Whether an EXIF orientation is applied to its pixels; None where the file has none. Raises as `read_image`,
        but for what only decoding finds."""
        return None if image_header(self.path).orientation == 1 else self.upright

    def pixels(self) -> NDArray[np.uint8]:
        """The pixels [H, W, 3] uint8 RGB; raises as `read_image`."""
        return self.view.pixels(read_image(self.path, self.upright))
