"""Images as they lie on people's disks: what is opened, what is refused, and the words that come with them."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from envs.geometry.rle import mask_from_rle
from envs.images import read_bytes
from rollout.label.images import annotated, composed, folder, parquet
from rollout.label.images._opened import HUGE, SMALL, UNREADABLE
from rollout.label.record import Shown
from rollout.label.stages import file_boxes

RED = (220, 30, 30)


def picture(width: int = 40, height: int = 30, mode: str = "RGB") -> Image.Image:
    values = np.zeros((height, width, 3), np.uint8)
    values[:, : width // 2] = RED
    return Image.fromarray(values).convert(mode)


def reasons(shown: Shown) -> list[str]:
    return [one.reason for one in shown.image.refused]


def saved(image: Image.Image, path: Path, **settings: object) -> Path:
    image.save(path, **settings)
    return path


def test_odd_files_of_a_folder_are_opened_as_a_viewer_shows_them(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    saved(picture(), tmp_path / "a.png")
    saved(picture(mode="CMYK"), tmp_path / "b.jpg", quality=95)
    saved(picture(), tmp_path / "c.jpg", exif=turned, quality=95)
    grey = np.full((30, 40), 40000, np.uint16)
    saved(Image.fromarray(grey), tmp_path / "d.png")
    saved(picture(), tmp_path / "e.gif", save_all=True, append_images=[picture(mode="L")])
    (tmp_path / "f.jpg").write_bytes((tmp_path / "c.jpg").read_bytes()[:300])
    saved(Image.new("1", (9000, 9000)), tmp_path / "g.png")
    saved(picture(40, 8), tmp_path / "h.png")
    (tmp_path / ".hidden.png").write_bytes(b"")
    (tmp_path / "notes.md").write_text("no image")
    images = folder.Images(str(tmp_path), most_pixels=80_000_000)
    shown = [images.read(index) for index in range(len(images))]
    assert len(shown) == 8 and [Path(one.image.origin.key).name[0] for one in shown] == list("abcdefgh")
    assert [one.pixels.shape[:2] for one in shown[:5]] == [(30, 40), (30, 40), (40, 30), (30, 40), (30, 40)]
    assert abs(shown[1].pixels[5, 5].astype(int) - RED).max() < 12
    assert shown[3].pixels[0, 0].tolist() == [156] * 3  # 40000 / 257
    assert [reasons(one) for one in shown] == [[]] * 5 + [[UNREADABLE], [HUGE], [SMALL]]
    assert shown[6].image.refused[0].detail == "9000 x 9000" and not shown[6].image.is_open


def test_sides_licences_addresses_and_tags_of_a_crawl(tmp_path: Path) -> None:
    saved(picture(400, 300), tmp_path / "0001.png")
    saved(picture(400, 300), tmp_path / "0002.png")
    (tmp_path / "0001.txt").write_text("a red apple, pear;  pear\nplum")
    (tmp_path / "0001.json").write_text(json.dumps({"url": "https://example.org/1", "license": "CC-BY-4.0"}))
    (tmp_path / "0002.json").write_text('{"tags": ["cat", 5, "dog"], "url": 7')  # cut off
    images = folder.Images(str(tmp_path), side=100, licence="unknown-crawl")
    one, two = images.read(0), images.read(1)
    assert one.pixels.shape == (75, 100, 3)
    assert one.image.origin.tags == ("a red apple", "pear", "plum")
    assert (one.image.origin.licence, one.image.origin.address) == ("CC-BY-4.0", "https://example.org/1")
    assert (two.image.origin.licence, two.image.origin.address, two.image.origin.tags) == ("unknown-crawl", "", ())
    assert folder.tags_of(["cat", 5, "dog", "cat"]) == ("cat", "dog")


def test_folders_that_hold_no_images_are_told_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a folder without images: there is nothing|without images"):
        len(folder.Images(str(tmp_path)))
    with pytest.raises(FileNotFoundError, match="no folder"):
        len(folder.Images(str(tmp_path / "missing")))


def test_a_new_file_changes_the_fingerprint(tmp_path: Path) -> None:
    saved(picture(), tmp_path / "a.png")
    before = folder.Images(str(tmp_path)).fingerprint
    assert folder.Images(str(tmp_path)).fingerprint == before
    saved(picture(), tmp_path / "b.png")
    assert folder.Images(str(tmp_path)).fingerprint != before


def data_of(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


def test_rows_of_parquet_in_both_forms_with_what_is_beside(tmp_path: Path) -> None:
    rows = [data_of(picture()), data_of(picture(60, 50)), b"no image", None]
    plain = pa.table({"image": rows, "caption": ["pear", "plum, fig", None, ""], "licence": ["CC0-1.0", None, "", "x"]})
    pq.write_table(plain, tmp_path / "a.parquet", row_group_size=1)
    held = pa.table(
        {"image": [{"bytes": data_of(picture(70, 20)), "path": "x.png"}], "caption": ["a"], "licence": ["b"]}
    )
    pq.write_table(held, tmp_path / "b.parquet")
    images = parquet.Images(str(tmp_path), tags="caption", licence_column="licence", licence="none")
    shown = [images.read(index) for index in range(len(images))]
    assert [one.pixels.shape[:2] for one in shown] == [(30, 40), (50, 60), (0, 0), (0, 0), (20, 70)]
    assert [reasons(one) for one in shown] == [[], [], [UNREADABLE], [UNREADABLE], []]
    assert [one.image.origin.tags for one in shown] == [("pear",), ("plum", "fig"), (), (), ("a",)]
    assert [one.image.origin.licence for one in shown] == ["CC0-1.0", "none", "none", "x", "b"]
    assert len({one.image.origin.key for one in shown}) == 5 and shown[0].image.origin.file is None


def test_bombs_in_parquet_are_refused_by_their_header(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [data_of(Image.new("1", (9000, 9000)))]}), tmp_path / "a.parquet")
    [shown] = [parquet.Images(str(tmp_path), most_pixels=10_000).read(0)]
    assert reasons(shown) == [HUGE] and "9000 x 9000" in shown.image.refused[0].detail
    with pytest.raises(ValueError, match="9000 x 9000 pixels, more than 10,000"):
        read_bytes(data_of(Image.new("1", (9000, 9000))), "row", 10_000)


def test_columns_that_are_not_there_are_told_with_those_that_are(tmp_path: Path) -> None:
    pq.write_table(pa.table({"img": [b""]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"no column 'image'.*There are img"):
        len(parquet.Images(str(tmp_path)))


def test_composed_scenes_hide_their_truth_and_say_a_wrong_name_among_their_tags() -> None:
    images = composed.Images(num=20, wrong_tags=2, env={"image_size": 32})
    for index in range(20):
        image = images.read(index).image
        known = {truth.phrase for truth in image.origin.truths or ()}
        wrong = [tag for tag in image.origin.tags if tag not in known]
        assert len(wrong) == 2 and len(image.origin.tags) > 2
    assert images.read(3).image == composed.Images(num=20, wrong_tags=2, env={"image_size": 32}).read(3).image


def coco_photo(folder: Path) -> Path:
    """A photo of 40 x 30 pixels with a cup over 10 x 8 of them, in COCO's form."""
    saved(picture(), folder / "1.png")
    ring = [5, 4, 15, 4, 15, 12, 5, 12]
    held = {
        "images": [{"id": 1, "file_name": "1.png", "height": 30, "width": 40}],
        "categories": [{"id": 1, "name": "cup"}],
        "annotations": [
            {"id": 7, "image_id": 1, "category_id": 1, "segmentation": [ring], "bbox": [5, 4, 10, 8], "iscrowd": 0}
        ],
    }
    (folder / "instances.json").write_text(json.dumps(held))
    return folder / "instances.json"


def test_photos_of_a_data_set_carry_its_masks_as_the_hidden_truth(tmp_path: Path) -> None:
    images = annotated.Images(str(coco_photo(tmp_path)), images=str(tmp_path), side=32)
    image = images.read(0).image
    assert (image.height, image.width, image.origin.tags) == (24, 32, ("cup",))
    [truth] = image.origin.truths or ()
    assert truth.phrase == "cup" and mask_from_rle(truth.mask, 24, 32).sum() == 8 * 7  # at 0.8 of its size


def test_boxes_of_a_file_are_scaled_to_the_image_as_it_is_shown(tmp_path: Path) -> None:
    path = coco_photo(tmp_path)
    shown = annotated.Images(str(path), images=str(tmp_path), side=32).read(0)
    [image] = file_boxes.Labeller(str(path)).label([shown])
    [found] = image.objects
    assert found.name == "cup" and found.numbers == {"file_boxes.score": 1.0}
    assert found.box_px == pytest.approx((4.0, 3.2, 12.0, 9.6))
    [image] = file_boxes.Labeller(str(path), least_score=1.0).label([folder.Images(str(tmp_path)).read(0)])
    assert image.objects[0].box_px == (5.0, 4.0, 15.0, 12.0)
    (tmp_path / "broken.json").write_text('{"images": []}')
    with pytest.raises(ValueError, match=r"no file of boxes in COCO's form \(KeyError: 'categories'\)"):
        file_boxes.Labeller(str(tmp_path / "broken.json")).check()
