"""Masks of an image from files, and what is shown beside words: each form gives the same, each mistake a line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from envs.example import BoxPart, MaskPart, PointPart, TextPart
from envs.geometry.rle import rle_from_mask
from envs.images import View
from envs.mask_files import masks_from_file, one_mask
from envs.shown import Shown, ShownFiles, box_of, point_of

MASKS = np.zeros((3, 6, 8), np.bool_)
MASKS[0, 1:3, 1:4], MASKS[1, 0:2, 5:8], MASKS[2, 4:6, 2:7] = True, True, True
NAME = Path("photos/scene.jpg")


def coco(path: Path, masks: np.ndarray = MASKS, name: str = NAME.name) -> Path:
    """A file of two images; the other one has a mask too."""
    segments = [{"size": [6, 8], "counts": rle_from_mask(mask)} for mask in masks]
    annotations = [{"id": k, "image_id": 7, "segmentation": one} for k, one in enumerate(segments)]
    images = [{"id": 3, "file_name": "other.jpg"}, {"id": 7, "file_name": f"photos/{name}"}]
    path.write_text(json.dumps({"images": images, "annotations": [*annotations, {"image_id": 3, "segmentation": []}]}))
    return path


def written(folder: Path) -> dict[str, Path]:
    labels = np.zeros((6, 8), np.uint8)
    for value, mask in zip((3, 17, 200), MASKS, strict=True):
        labels[mask] = value
    Image.fromarray(labels).save(folder / "labels.png")
    np.save(folder / "array.npy", MASKS)
    np.savez_compressed(folder / "arrays.npz", masks=255 * MASKS.astype(np.uint8))
    sam = [{"segmentation": {"size": [6, 8], "counts": rle_from_mask(mask)}, "area": 1.0} for mask in MASKS]
    (folder / "sam.json").write_text(json.dumps(sam))
    found = {path.name: path for path in folder.iterdir()}
    return found | {"coco.json": coco(folder / "coco.json")}


def test_every_form_gives_the_same_masks_in_the_same_order(tmp_path: Path) -> None:
    files = written(tmp_path)
    assert set(files) == {"labels.png", "array.npy", "arrays.npz", "sam.json", "coco.json"}
    for name, path in files.items():
        found = masks_from_file(path, NAME, 6, 8)
        assert found.dtype == np.bool_ and np.array_equal(found, MASKS), name


def test_one_region_is_a_file_with_one_mask(tmp_path: Path) -> None:
    Image.fromarray(255 * MASKS[0].astype(np.uint8)).save(tmp_path / "one.png")
    np.save(tmp_path / "flat.npy", MASKS[1])
    colours = np.zeros((6, 8, 3), np.uint8)
    colours[MASKS[2]] = (200, 10, 0)
    colours[5, 3] = (0, 0, 9)
    Image.fromarray(colours).save(tmp_path / "colours.png")
    for name, mask in zip(("one.png", "flat.npy", "colours.png"), MASKS, strict=True):
        assert np.array_equal(one_mask(tmp_path / name, NAME, 6, 8), mask)
    with pytest.raises(ValueError, match=r"array\.npy has 3 masks, where one region is meant"):
        one_mask(written(tmp_path)["array.npy"], NAME, 6, 8)
    np.save(tmp_path / "empty.npy", np.zeros((6, 8)))
    with pytest.raises(ValueError, match=r"empty\.npy has a mask without a pixel, where one region is meant"):
        one_mask(tmp_path / "empty.npy", NAME, 6, 8)


def test_what_is_no_mask_of_the_image_is_told_in_a_line(tmp_path: Path) -> None:
    files = written(tmp_path)
    for name in ("labels.png", "array.npy", "arrays.npz"):
        with pytest.raises(ValueError, match=r"has masks of 6 x 8 pixels .*, and the image has 8 x 6; give masks in"):
            masks_from_file(files[name], NAME, 8, 6)
    for name in ("sam.json", "coco.json"):
        with pytest.raises(
            ValueError,
            match=r"mask 0 has a size of \[6, 8\], and the image, turned .* shows it, \[8, 6\]; give its own",
        ):
            masks_from_file(files[name], NAME, 8, 6)
    with pytest.raises(ValueError, match=r"has 2 images, and none is third\.jpg; give the file of this image"):
        masks_from_file(files["coco.json"], Path("third.jpg"), 6, 8)
    with pytest.raises(ValueError, match=r"masks\.tiff does not end in \.png, \.json, \.npz, \.npy"):
        masks_from_file(tmp_path / "masks.tiff", NAME, 6, 8)
    with pytest.raises(FileNotFoundError, match=r"gone\.png: no such file"):
        masks_from_file(tmp_path / "gone.png", NAME, 6, 8)
    wrong: dict[str, tuple[Any, str]] = {
        "words.npy": (np.array(["a", "b"]), r"has an array \[2\] of <U1; save one \[N, H, W\]"),
        "none.npy": (np.zeros((0, 6, 8)), r"has an array \[0, 6, 8\]"),
        "four.npy": (np.zeros((1, 1, 6, 8)), r"has an array \[1, 1, 6, 8\]"),
        "objects.npy": (np.array([{}], object), r"cannot be read \(.*allow_pickle"),
    }
    for name, (array, says) in wrong.items():
        np.save(tmp_path / name, array, allow_pickle=name == "objects.npy")
        with pytest.raises(ValueError, match=says):
            masks_from_file(tmp_path / name, NAME, 6, 8)
    np.savez(tmp_path / "two.npz", a=MASKS, b=MASKS)
    with pytest.raises(ValueError, match=r"it has 2 arrays, and one \[N, H, W\] is meant"):
        masks_from_file(tmp_path / "two.npz", NAME, 6, 8)
    for name, content in {"empty.json": "[]", "none.json": "{}", "odd.json": '[{"segmentation": 4}]'}.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match=name):
            masks_from_file(tmp_path / name, NAME, 6, 8)
    (tmp_path / "torn.png").write_bytes(files["labels.png"].read_bytes()[:40])
    with pytest.raises(ValueError, match=r"torn\.png is cut off, damaged or no image"):
        masks_from_file(tmp_path / "torn.png", NAME, 6, 8)


def test_images_of_one_name_in_two_folders_are_told_apart_and_another_file_of_the_name_is_refused(
    tmp_path: Path,
) -> None:
    counts = [{"size": [6, 8], "counts": rle_from_mask(mask)} for mask in MASKS[:2]]
    annotations = [{"id": k, "image_id": k, "segmentation": one} for k, one in enumerate(counts)]
    images = [{"id": 0, "file_name": "train/a.jpg"}, {"id": 1, "file_name": "val/a.jpg", "file_bytes": 5}]
    pools = tmp_path / "pools.json"
    pools.write_text(json.dumps({"images": images, "annotations": annotations}))
    for k, folder in enumerate(("train", "val")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.jpg").write_bytes(b"12345")
        assert np.array_equal(ShownFiles(pools).read(tmp_path / folder / "a.jpg", 6, 8).candidates, MASKS[k][None])
    with pytest.raises(ValueError, match=r"has 2 images, and none is test/a\.jpg"):
        masks_from_file(pools, Path("test/a.jpg"), 6, 8)
    (tmp_path / "val/a.jpg").write_bytes(b"123456")
    with pytest.raises(
        ValueError, match=r"the masks of val/a\.jpg were made for a file of 5 bytes, and .* has 6; it is"
    ):
        masks_from_file(pools, tmp_path / "val/a.jpg", 6, 8)
    images[1]["file_name"] = "x/a.jpg"
    pools.write_text(json.dumps({"images": [*images, {"id": 2, "file_name": "y/x/a.jpg"}], "annotations": annotations}))
    assert masks_from_file(pools, Path("z/x/a.jpg"), 6, 8).shape == (1, 6, 8)
    pools.write_text(json.dumps({"images": [{"id": k, "file_name": f"{k}/a.jpg"} for k in (0, 1)], "annotations": []}))
    with pytest.raises(ValueError, match=r"has 2 images, and none is .*a\.jpg"):
        masks_from_file(pools, Path("a.jpg"), 6, 8)


def test_scores_in_place_of_masks_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "bytes.npy", 255 * MASKS.astype(np.uint8))
    assert np.array_equal(masks_from_file(tmp_path / "bytes.npy", NAME, 6, 8), MASKS)
    np.save(tmp_path / "scores.npy", np.where(MASKS, 0.75, 0.0))
    with pytest.raises(ValueError, match=r"scores\.npy has the value 0\.75, and masks are of 0 and 1"):
        masks_from_file(tmp_path / "scores.npy", NAME, 6, 8)


def test_what_is_shown_stands_where_the_phrase_says_it_in_pixels_of_the_view() -> None:
    shown = Shown((MASKS[0], MASKS[1]), ((4.0, 3.0),), ((0.0, 0.0, 8.0, 3.0),), MASKS)
    view = View(16, square=True)  # twice the size, padded below
    prompt = shown.prompt("left of <mask> and <mask> near <point>", view, 6, 8)
    assert [type(part) for part in prompt.parts] == [
        TextPart,
        MaskPart,
        TextPart,
        MaskPart,
        TextPart,
        PointPart,
        BoxPart,
    ]
    assert prompt.told == "left of <mask> and <mask> near <point 8, 6> <box 0, 0, 16, 6>"
    first = prompt.parts[1]
    assert isinstance(first, MaskPart) and first.mask.shape == (16, 16)
    assert np.array_equal(first.mask[:12], MASKS[0].repeat(2, 0).repeat(2, 1)) and not first.mask[12:].any()
    behind = shown.prompt("dog", View(), 6, 8)
    assert behind.told == "dog <mask> <mask> <point 4, 3> <box 0, 0, 8, 3>"
    pool = shown.pool(view)
    assert pool is not None and pool.shape == (3, 16, 16) and Shown().pool(view) is None
    with pytest.raises(ValueError, match=r"says <mask> 1 times, and 2 are given; give one --mask for each"):
        shown.prompt("left of <mask>", view, 6, 8)
    with pytest.raises(ValueError, match=r"says <box> 1 times, and 0 are given"):
        Shown().prompt("in <box>", view, 6, 8)


def test_points_and_boxes_outside_inverted_or_without_area_are_refused() -> None:
    assert point_of("8,6", 6, 8) == (8.0, 6.0) and box_of("0,1.5,8,6", 6, 8) == (0.0, 1.5, 8.0, 6.0)
    for text in ("8.5,1", "1,-1", "1", "a,b", "1,2,3", "nan,1"):
        with pytest.raises(ValueError, match=r"^--point is "):
            point_of(text, 6, 8)
    for text in ("4,0,2,3", "1,1,1,4", "0,0,9,3", "0,0,3", "inf,0,1,1"):
        with pytest.raises(ValueError, match=r"^--box is "):
            box_of(text, 6, 8)


def test_files_and_texts_become_what_is_shown(tmp_path: Path) -> None:
    np.save(tmp_path / "pool.npy", MASKS)
    np.save(tmp_path / "one.npy", MASKS[2])
    files = ShownFiles(tmp_path / "pool.npy", (tmp_path / "one.npy",), ("1,2",), ("0,0,4,4",))
    shown = files.read(NAME, 6, 8)
    assert np.array_equal(shown.candidates, MASKS) and np.array_equal(shown.masks[0], MASKS[2])
    assert (shown.points, shown.boxes) == (((1.0, 2.0),), ((0.0, 0.0, 4.0, 4.0),))
