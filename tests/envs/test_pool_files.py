"""Files of pools: by which name an image is found, and what is refused in a line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs.geometry.rle import rle_from_mask
from envs.pool_files import Pools


def block(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((8, 10), np.bool_)
    mask[y0:y1, x0:x1] = True
    return mask


def annotation(image_id: int, mask: np.ndarray) -> dict[str, Any]:
    counts = rle_from_mask(mask)
    return {"id": 1, "image_id": image_id, "segmentation": {"size": list(mask.shape), "counts": counts}}


def image(number: int, name: str, **more: int) -> dict[str, Any]:
    return {"id": number, "file_name": name, "height": 8, "width": 10, **more}


def written(folder: Path, images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> Path:
    path = folder / "pools.json"
    path.write_text(json.dumps({"info": {}, "images": images, "annotations": annotations}))
    return path


def test_an_image_is_found_by_the_end_of_its_path_and_another_of_the_name_is_not_it(tmp_path: Path) -> None:
    images = [image(1, "train/a.png"), image(2, "val/a.png"), image(3, "b.png")]
    masks = [annotation(1, block(0, 0, 2, 2)), annotation(2, block(4, 4, 9, 8)), annotation(1, block(1, 1, 5, 5))]
    pools = Pools(written(tmp_path, images, masks))
    assert pools.num_images == 3
    found = pools.of("/data/set/train/a.png")
    assert [int(shape.mask(8, 10).sum()) for shape in found.shapes] == [4, 16] and (found.height, found.width) == (
        8,
        10,
    )
    assert int(pools.of("/other/val/a.png").shapes[0].mask(8, 10).sum()) == 20
    assert pools.of("/data/test/a.png") is None and pools.of("c.png") is None
    assert pools.of("anywhere/b.png").shapes == ()  # known, and without a candidate
    with pytest.raises(ValueError, match=r"has train/a\.png and val/a\.png, and a\.png may be either"):
        pools.of("a.png")


def test_another_file_of_the_name_is_refused_by_its_length(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"12345")
    pools = Pools(written(tmp_path, [image(1, "a.png", file_bytes=5)], [annotation(1, block(0, 0, 2, 2))]))
    assert len(pools.of("a.png", tmp_path / "a.png").shapes) == 1
    (tmp_path / "a.png").write_bytes(b"123456")
    with pytest.raises(ValueError, match=r"a\.png were made for a file of 5 bytes, and .* has 6; .* candidates anew"):
        pools.of("a.png", tmp_path / "a.png")


def test_masks_of_another_size_or_without_a_pixel_are_counted_and_none_is_decoded_wrongly(tmp_path: Path) -> None:
    large = annotation(1, np.ones((9, 10), np.bool_))
    masks = [annotation(1, block(0, 0, 2, 2)), large, annotation(1, block(0, 0, 0, 0)), {"id": 9, "image_id": 1}]
    pool = Pools(written(tmp_path, [image(1, "a.png")], masks)).of("a.png")
    assert len(pool.shapes) == 1 and pool.unusable == 3


def test_a_file_of_another_form_is_refused_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.json: no such file; give the pools that `polytrace data cand"):
        Pools(tmp_path / "none.json")
    other = tmp_path / "other.json"
    other.write_text('{"pools": [1]}')
    with pytest.raises(ValueError, match=r"has no `images` and `annotations`; give pools in COCO's form"):
        Pools(other)
    with pytest.raises(ValueError, match=r"images\[0\] is no entry of COCO's form .*height"):
        Pools(written(tmp_path, [{"id": 1, "file_name": "a.png", "width": 3}], []))
    with pytest.raises(ValueError, match=r"has a\.png twice in `images`"):
        Pools(written(tmp_path, [image(1, "a.png"), image(2, "a.png")], []))
