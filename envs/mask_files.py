"""Masks of one image from a file: a PNG of labels, a COCO JSON, or an array [N, H, W] of numpy."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.pool_files import nearest_names, refuse_ambiguous, refuse_other_file
from envs.readers._pixels import INDEX, pixels_of
from envs.reading import read_json
from envs.shapes import shape_of

Masks = NDArray[np.bool_]
ENDINGS = (".png", ".json", ".npz", ".npy")


def masks_from_file(path: Path, image: Path, height: int, width: int) -> Masks:
    """[N, H, W] the masks that a file has of an image of height x width pixels, N 1 or more.

    A PNG of one value a pixel has a mask for each value but 0, in their order; one of colours has a single mask, of all
    pixels that are not black. A JSON file is COCO's, of which the annotations count whose `file_name` is the end of
    the image's path, or ends with it (all, where it has one image), or a list of annotations or of segmentations, as
    SAM's automatic masks are saved. An .npy file, and an .npz file with one array, have an array [N, H, W] or [H, W];
    what is not 0 belongs to a mask.

    image: the image's own file, upright as `read_image` gives it. Raises FileNotFoundError without a file of masks;
    ValueError for another ending, for what cannot be read, for masks of another size than the image's, and for those
    that a file of pools has of another image, of several of the name, or of the image as it is stored where that lies
    on its side.
    """
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(f"{path} does not end in {', '.join(ENDINGS)}; give masks in one of these forms.")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; check the path of the masks.")
    if path.suffix.lower() == ".png":
        labels = pixels_of(path, INDEX)
        masks = np.stack([labels == value for value in np.unique(labels)[1:]] or [labels > 0])
    elif path.suffix.lower() == ".json":
        masks = _of_json(path, image, height, width)
    else:
        masks = _of_array(path)
    if masks.shape[1:] != (height, width):
        found = " x ".join(map(str, masks.shape[1:]))
        raise ValueError(
            f"{path} has masks of {found} pixels (height x width), and the image has {height} x {width}; give masks in "
            "the pixels of the image as a viewer shows it."
        )
    return masks


def one_mask(path: Path, image: Path, height: int, width: int) -> Masks:
    """[H, W] the only mask of a file; raises as `masks_from_file`, and ValueError where it has several, or an empty
    one."""
    masks = masks_from_file(path, image, height, width)
    if len(masks) != 1 or not masks.any():
        what = f"{len(masks)} masks" if len(masks) != 1 else "a mask without a pixel"
        raise ValueError(f"{path} has {what}, where one region is meant; give a file with one mask.")
    return np.asarray(masks[0])


def _of_array(path: Path) -> Masks:
    try:
        held = np.load(path, allow_pickle=False)
        if not isinstance(held, np.ndarray):
            names = list(held)
            if len(names) != 1:
                raise ValueError(f"it has {len(names)} arrays, and one [N, H, W] is meant")
            held = held[names[0]]
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read ({error}); save one array [N, H, W] of numbers or bools.") from error
    values = held[None] if held.ndim == 2 else held
    if values.ndim != 3 or values.dtype.kind not in "buif" or not len(values):
        raise ValueError(
            f"{path} has an array {list(held.shape)} of {held.dtype}; save one [N, H, W] of numbers or bools, N 1 or "
            "more."
        )
    if values.dtype.kind != "b" and (odd := sorted(set(np.unique(values).tolist()) - {0, 1, 255})):
        raise ValueError(
            f"{path} has the value {odd[0]:g}, and masks are of 0 and 1 (or 255); cut scores at a threshold first."
        )
    return np.asarray(values != 0)


def _of_json(path: Path, image: Path, height: int, width: int) -> Masks:
    held = read_json(str(path))
    listed = _annotations(held, path, image) if isinstance(held, dict) else held
    if not isinstance(listed, list) or not listed:
        raise ValueError(f"{path} lists no annotation of {image}; give COCO's form, or a list of segmentations.")
    found = []
    for k, entry in enumerate(listed):
        inner = entry.get("segmentation", entry) if isinstance(entry, dict) else entry
        size = inner.get("size") if isinstance(inner, dict) else None
        if size is not None and list(size) != [height, width]:
            raise ValueError(
                f"{path}: mask {k} has a size of {size}, and the image, turned as a viewer shows it, [{height}, "
                f"{width}]; give its own."
            )
        found.append(shape_of(inner, height, width, f"{path}: mask {k}").mask(height, width))
    return np.stack(found)


def _annotations(held: dict[str, Any], path: Path, image: Path) -> Any:
    """The annotations of an image, those in a dictionary without images as they are."""
    images, listed = held.get("images"), held.get("annotations")
    if not isinstance(images, list) or not isinstance(listed, list):
        return listed
    by_name = {str(one.get("file_name")): one for one in images if isinstance(one, dict)}
    names = nearest_names(str(image.absolute()), by_name)
    if not names and len(images) != 1:
        raise ValueError(f"{path} has {len(images)} images, and none is {image}; give the file of this image.")
    refuse_ambiguous(path, str(image), names)
    found = by_name[names[0]] if names else images[0]
    if not isinstance(found, dict):
        return None
    refuse_other_file(path, str(found.get("file_name")), found.get("file_bytes"), image if image.is_file() else None)
    if found.get("upright") is False:
        raise ValueError(
            f"{path}: the masks of {found.get('file_name')} lie on the photo as it is stored, and here it is turned "
            "upright as its EXIF says; make candidates of the photo itself, as by `polytrace data candidates FOLDER`."
        )
    return [one for one in listed if isinstance(one, dict) and one.get("image_id") == found.get("id")]
