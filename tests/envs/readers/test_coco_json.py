"""Files in COCO's form as they are found: what is read of them, what is left out, and what is refused whole."""

import json

import numpy as np
import pytest
from made_field_sets import (
    CROWD,
    HEIGHT,
    OVERLAPPING,
    SQUARE,
    TRIANGLE,
    WIDTH,
    annotation,
    block,
    by_pycocotools,
    image,
    run_lengths,
    saved,
)

from envs.readers._coco_json import (
    NO_MASK,
    NO_PHOTO,
    NO_PIXEL,
    NOT_READ,
    REPEATED,
    SHORT_PART,
    CocoJson,
    id_text,
)
from envs.readers.base import Findings


def opened(tmp_path, annotations=(), images=None, findings=None, **more):
    images = [image(1, "1.jpg")] if images is None else images
    data = {"images": images, "annotations": list(annotations), "categories": [{"id": 1, "name": "cup"}], **more}
    return CocoJson(saved(tmp_path / "a.json", data), findings or Findings())


@pytest.mark.parametrize(
    "segmentation",
    [SQUARE, OVERLAPPING, TRIANGLE, CROWD, run_lengths(block(3, 4, 20, 31)), OVERLAPPING[::-1] + TRIANGLE],
)
def test_every_form_of_a_mask_gives_the_pixels_of_pycocotools(tmp_path, segmentation):
    (one,) = opened(tmp_path, [annotation(11, 1, segmentation)]).usable("1")
    np.testing.assert_array_equal(one.shape.mask(HEIGHT, WIDTH), by_pycocotools(segmentation))


@pytest.mark.parametrize(
    ("value", "text"), [(7, "7"), (7.0, "7"), ("7", "7"), ("8756_2", "8756_2"), (7.5, ""), (True, ""), (None, "")]
)
def test_an_id_is_the_same_in_each_way_of_writing_it(value, text):
    assert id_text(value) == text


def test_text_ids_join_with_numbers(tmp_path):
    coco = opened(tmp_path, [annotation("a1", "1", SQUARE), annotation(2.0, 1, SQUARE)])
    assert [one.id for one in coco.usable("1")] == ["a1", "2"] and coco.has("a1") and not coco.has("3")


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ([], NO_MASK),
        ([[]], NO_MASK),
        (None, NO_MASK),
        ([[1.6, 1.6, 2.4, 1.6, 2.4, 2.4]], NO_PIXEL),
        ({"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}, NO_PIXEL),
        ("text", NOT_READ),
        ([[1, 2, 3]], NOT_READ),
        ([[1, 2, "3", 4, 5, 6]], NOT_READ),
        ({"size": [WIDTH, HEIGHT], "counts": [HEIGHT * WIDTH]}, NOT_READ),
        ({"size": [HEIGHT, WIDTH], "counts": [1, 2, 3]}, NOT_READ),
        ({"size": [HEIGHT, WIDTH]}, NOT_READ),
    ],
)
def test_one_bad_annotation_is_left_out_with_its_reason_and_the_next_is_read(tmp_path, segmentation, reason):
    findings = Findings()
    coco = opened(tmp_path, [annotation(11, 1, segmentation), annotation(12, 1, SQUARE)], findings=findings)
    assert [one.id for one in coco.usable("1")] == ["12"]
    ((told, finding),) = findings.left_out.items()
    assert told.startswith(reason) and finding.which == ["11"]


def test_a_part_of_two_points_is_left_out_and_the_rest_is_kept(tmp_path):
    findings = Findings()
    (one,) = opened(tmp_path, [annotation(11, 1, [[1, 1, 2, 2], *TRIANGLE])], findings=findings).usable("1")
    np.testing.assert_array_equal(one.shape.mask(HEIGHT, WIDTH), by_pycocotools(TRIANGLE))
    assert findings.noted[SHORT_PART].which == ["11"]


def test_entries_that_place_nothing_are_told(tmp_path):
    findings = Findings()
    kept = [annotation(11, 1, SQUARE), annotation(11, 1, TRIANGLE), annotation(12, 9, SQUARE), "text", {"image_id": 1}]
    images = [image(1, "1.jpg"), image(1, "again.jpg"), "text", {"file_name": "no id"}]
    coco = opened(tmp_path, kept, images, findings)
    assert coco.annotation_ids("1") == ["11"] and coco.file_name("1") == "1.jpg"
    assert findings.left_out[REPEATED].which[1:] == ["11"] and findings.left_out[NO_PHOTO].which == ["12 (image 9)"]
    assert findings.left_out[NOT_READ].which == ["annotations[3]", "annotations[4]"]
    assert findings.left_out["images that cannot be read"].count == 2


def test_nan_in_a_file_harms_its_annotation_alone(tmp_path):
    text = json.dumps(
        {
            "images": [image(1, "1.jpg")],
            "annotations": [
                annotation(11, 1, [[1.0, 1.0, float("nan"), 1.0, 9.0, 9.0]]),
                annotation(12, 1, SQUARE, area=float("inf")),
            ],
            "categories": [],
        }
    )
    assert "NaN" in text and "Infinity" in text
    (tmp_path / "a.json").write_text(text)
    findings = Findings()
    coco = CocoJson(tmp_path / "a.json", findings)
    assert [one.id for one in coco.usable("1")] == ["12"] and findings.left_out


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_each_encoding_of_unicode_is_read(tmp_path, encoding):
    data = {"images": [image(1, "Maß.jpg")], "annotations": [annotation(11, 1, SQUARE)], "categories": []}
    (tmp_path / "a.json").write_bytes(json.dumps(data, ensure_ascii=False).encode(encoding))
    coco = CocoJson(tmp_path / "a.json", Findings())
    assert coco.file_name("1") == "Maß.jpg" and len(list(coco.usable("1"))) == 1


@pytest.mark.parametrize(
    "data",
    [
        {"images": {"1": {}}, "annotations": [], "categories": []},
        {"images": [], "annotations": 3, "categories": []},
        {"images": "text"},
        [],
        [1, 2],
        "text",
        3,
        None,
    ],
)
def test_a_file_of_another_form_is_refused_with_its_path(tmp_path, data):
    saved(tmp_path / "a.json", data)
    with pytest.raises(ValueError, match=r"a\.json is not in COCO's form"):
        CocoJson(tmp_path / "a.json", Findings())


@pytest.mark.parametrize("content", [b"", b"{", b'{"images": [', b"\xff\xfe", b"<html>"])
def test_what_is_no_json_is_refused_with_its_path(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.json is not"):
        CocoJson(tmp_path / "a.json", Findings())


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        CocoJson(tmp_path / "a.json", Findings())
    with pytest.raises(FileNotFoundError, match="is a folder"):
        CocoJson(tmp_path, Findings())


def test_the_name_of_a_photo_without_one_comes_from_its_address(tmp_path):
    entry = {"id": 1, "height": 2, "width": 3, "coco_url": "http://images.cocodataset.org/val2017/000000000001.jpg"}
    assert opened(tmp_path, images=[entry]).file_name("1") == "val2017/000000000001.jpg"


def test_licence_class_and_size_are_told_of_a_photo(tmp_path):
    licences = [{"id": 1, "name": "x", "url": "http://creativecommons.org/licenses/by-sa/2.0/"}]
    coco = opened(tmp_path, licenses=licences)
    photo = coco.photo("1", tmp_path / "1.jpg")
    assert (photo.licence, photo.height, photo.width, photo.source) == ("CC-BY-SA-2.0", HEIGHT, WIDTH, "1.jpg")
    assert coco.class_name("1") == "cup" and coco.class_name("2") == ""


def test_an_image_without_a_size_has_no_usable_annotation(tmp_path):
    findings = Findings()
    images = [{"id": 1, "file_name": "1.jpg", "height": None, "width": -3}]
    assert list(opened(tmp_path, [annotation(11, 1, SQUARE)], images, findings).usable("1")) == []
    assert list(findings.left_out) == ["annotations of an image whose size is not recorded"]
