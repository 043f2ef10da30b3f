"""Any image file as RGB pixels, the way a viewer would show it: the first frame, upright, over white."""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

# What Pillow's readers raise for a file that is cut off, damaged, or meant to do harm.
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, TypeError, Image.DecompressionBombError)


def read_image(path: Path) -> Image.Image:
    """The image in `path` as 8-bit RGB, in the pixels that a viewer shows.

    An EXIF orientation is applied, so that height and width are those of the upright picture; of an animation, it is
    the first frame; what is transparent lies over white. 16-bit grey is divided by 257; 32-bit integers and floats,
    whose white nobody agreed on, are stretched from their lowest to their highest value. Raises FileNotFoundError
    where there is no such file, ValueError where it is no image that can be read whole.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is {'a folder' if path.exists() else 'not there'}; give an image file.")
    try:
        # What Pillow warns of (odd metadata, a large image) would stand between a user and the answer.
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
            return _over_white(ImageOps.exif_transpose(_eight_bit(image)))
    except _UNREADABLE as error:
        said = " ".join(str(error).split())
        raise ValueError(f"{path} is cut off, damaged or no image ({said}); give a file that opens whole.") from error


def _eight_bit(image: Image.Image) -> Image.Image:
    """The image with 8 bits a channel, its EXIF kept."""
    if not image.mode.startswith(("I", "F")):
        image.load()
        return image
    values = np.nan_to_num(np.asarray(image).astype(np.float64), posinf=0.0, neginf=0.0)
    low, high = (0.0, 65535.0) if image.mode.startswith("I;16") else (values.min(), values.max())
    grey = Image.fromarray(np.rint((values - low) * (255 / max(high - low, 1e-300))).astype(np.uint8))
    grey.info["exif"] = image.getexif().tobytes()
    return grey


def _over_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
