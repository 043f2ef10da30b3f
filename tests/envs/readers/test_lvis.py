"""LVIS: what may be asked of a photo whose classes are listed as drawn, partly drawn or absent."""

import os

import numpy as np
import pytest
from made_field_sets import (
    HEIGHT,
    SQUARE,
    TRIANGLE,
    WIDTH,
    annotation,
    by_pycocotools,
    lvis_v1,
    photo,
    run_lengths,
    saved,
)

from envs.readers._by_class import NO_OUTLINE
from envs.readers._coco_json import NO_PIXEL
from envs.readers.base import Findings
from envs.readers.lvis import ABSENT_YET_DRAWN, NOT_ALL, Reader, class_names


def references(reader, split="train", findings=None):
    return [one for each in reader.photos(split, findings or Findings()) for one in each.references]


def test_all_objects_of_a_class_that_is_wholly_drawn_are_one_question(tmp_path):
    lvis_v1(tmp_path)
    findings = Findings()
    (cans,) = references(Reader(str(tmp_path), negatives=0), findings=findings)
    assert (cans.id, cans.parts, cans.ignore) == ("7/21+22", ("trash can",), ())
    for shape, part in zip(cans.masks, (SQUARE, TRIANGLE), strict=True):
        np.testing.assert_array_equal(shape.mask(HEIGHT, WIDTH), by_pycocotools(part))
    assert findings.noted[NOT_ALL].which == ["7 (bow (weapon))"] and not findings.lost and not findings.left_out


def test_the_photo_lies_where_its_address_says(tmp_path):
    lvis_v1(tmp_path)
    (one,) = Reader(str(tmp_path)).photos("train", Findings())
    assert one.photo.path.parts[-2:] == ("train2017", "000000000007.jpg")
    assert (one.photo.id, one.photo.height, one.photo.width) == ("7", HEIGHT, WIDTH)


@pytest.mark.parametrize(("negatives", "count"), [(0, 0), (1, 1), (2, 2), (9, 3)])
def test_only_classes_that_are_listed_as_absent_are_asked_for_as_absent(tmp_path, negatives, count):
    lvis_v1(tmp_path)
    reader = Reader(str(tmp_path), negatives=negatives)
    absent = [one for one in references(reader) if not one.masks]
    assert len(absent) == count and [one.id for one in absent] == [
        one.id for one in references(reader) if not one.masks
    ]
    assert {one.id for one in absent} <= {"7/none/1", "7/none/4", "7/none/5"}
    assert {one.parts[0] for one in absent} <= {"bat", "bow (decorative ribbons)", "cab"}


def test_the_choice_of_absent_classes_depends_on_the_ids_of_photo_and_class_alone(tmp_path):
    data = lvis_v1(tmp_path)
    before = [one.id for one in references(Reader(str(tmp_path)))]
    data["images"][0]["neg_category_ids"].reverse()
    saved(tmp_path / "lvis_v1_train.json", data)
    assert [one.id for one in references(Reader(str(tmp_path)))] == before


def test_a_class_that_is_listed_as_absent_and_drawn_is_told_and_asked_for_once(tmp_path):
    data = lvis_v1(tmp_path)
    data["images"][0]["neg_category_ids"] = [2, 99, "x", None]
    saved(tmp_path / "lvis_v1_train.json", data)
    findings = Findings()
    assert [one.id for one in references(Reader(str(tmp_path)), findings=findings)] == ["7/21+22"]
    assert findings.noted[ABSENT_YET_DRAWN].which == ["7 (trash can)"]


def test_names_are_cleaned_and_keep_their_sense_where_two_would_be_the_same(tmp_path):
    data = lvis_v1(tmp_path)
    names = class_names({str(entry["id"]): entry for entry in data["categories"]})
    assert names == {
        "1": ("bat",),
        "2": ("trash can", "dust bin", "bin"),
        "3": ("bow (weapon)",),
        "4": ("bow (decorative ribbons)",),
        "5": ("cab", "taxi"),
    }


def test_a_synonym_that_another_class_goes_by_is_never_asked():
    entries = {"1": {"name": "mug", "synonyms": ["mug", "cup"]}, "2": {"name": "cup", "synonyms": ["cup"]}}
    assert class_names(entries) == {"1": ("mug",), "2": ("cup",)}
    assert class_names({"1": {"name": "(odd)"}, "2": {}}) == {"1": ("(odd)",), "2": ()}


def test_synonyms_are_chosen_by_the_ids_and_differ_between_photos(tmp_path):
    data = lvis_v1(tmp_path)
    entry = data["images"][0]
    data["images"] = [entry | {"id": number} for number in range(1, 30)]
    data["annotations"] = [annotation(number, number, SQUARE, category_id=2) for number in range(1, 30)]
    saved(tmp_path / "lvis_v1_train.json", data)
    reader = Reader(str(tmp_path), synonyms=True, negatives=0)
    said = [one.parts[0] for one in references(reader)]
    assert set(said) == {"trash can", "dust bin", "bin"} and said == [one.parts[0] for one in references(reader)]
    assert {one.parts[0] for one in references(Reader(str(tmp_path), negatives=0))} == {"trash can"}


def test_an_object_without_an_outline_loses_the_class_and_one_without_a_pixel_does_not(tmp_path):
    data = lvis_v1(tmp_path)
    speck = [[1.6, 1.6, 2.4, 1.6, 2.4, 2.4]]
    for bad, ids, lost in ((speck, ["7/21+22"], 0), ([[1, 2, "x"]], [], 1)):
        wrong = annotation(24, 7, bad, category_id=2)
        saved(tmp_path / "lvis_v1_train.json", data | {"annotations": [*data["annotations"], wrong]})
        findings = Findings()
        assert [one.id for one in references(Reader(str(tmp_path), negatives=0), findings=findings)] == ids
        assert findings.num_lost == lost and (NO_OUTLINE in findings.lost) == bool(lost)
        assert (NO_PIXEL in findings.left_out) == (not lost)


def test_run_lengths_are_read_as_polygons_are(tmp_path):
    data = lvis_v1(tmp_path)
    mask = by_pycocotools(TRIANGLE)
    data["annotations"] = [annotation(21, 7, run_lengths(mask), category_id=2)]
    saved(tmp_path / "lvis_v1_train.json", data)
    (one,) = references(Reader(str(tmp_path), negatives=0))
    np.testing.assert_array_equal(one.masks[0].mask(HEIGHT, WIDTH), mask)


def test_photos_of_v0_5_are_found_by_name_in_a_later_release_of_coco(tmp_path):
    data = lvis_v1(tmp_path)
    os.remove(tmp_path / "lvis_v1_train.json")
    name = "COCO_val2014_000000000009.jpg"
    data["images"][0] |= {"file_name": name, "coco_url": "http://images.cocodataset.org/val2017/000000000009.jpg"}
    saved(tmp_path / "annotations" / "lvis_v0.5_val.json", data)
    file = photo(tmp_path / "val2017" / "000000000009.jpg")
    reader = Reader(str(tmp_path))
    assert reader.splits() == ("val",)
    (one,) = reader.photos("val", Findings())
    assert one.photo.path.resolve() == file.resolve()


def test_test_files_hold_nothing_to_ask_and_two_versions_need_a_choice(tmp_path):
    data = lvis_v1(tmp_path)
    saved(tmp_path / "lvis_v1_image_info_test_dev.json", {"images": []})
    assert Reader(str(tmp_path)).splits() == ("train",)
    saved(tmp_path / "lvis_v0.5_val.json", data)
    with pytest.raises(ValueError, match=r"v0\.5 and v1; set version"):
        Reader(str(tmp_path)).splits()
    assert Reader(str(tmp_path), version="v1").splits() == ("train",)
    assert Reader(str(tmp_path), version="v0.5").splits() == ("val",)


def test_a_file_of_any_name_is_recognised_by_its_lists_of_classes(tmp_path):
    data = lvis_v1(tmp_path)
    mine = saved(tmp_path / "mine.json", data)
    assert Reader.recognise(mine).certainty == 3 and Reader(str(mine)).splits() == ("mine",)
    other = saved(tmp_path / "other.json", {"images": [], "annotations": []})
    assert Reader.recognise(other) is None
    assert "lvis_v1_train.json" in Reader.recognise(tmp_path).what


def test_a_wrong_folder_says_what_is_there_and_where_the_files_are(tmp_path):
    lvis_v1(tmp_path / "data" / "LVIS")
    with pytest.raises(FileNotFoundError, match=r"lvis_v1_train\.json.*there is LVIS.*LVIS has it"):
        Reader(str(tmp_path / "data")).splits()


def test_a_missing_photo_is_told_with_its_questions(tmp_path):
    lvis_v1(tmp_path)
    os.remove(tmp_path / "train2017" / "000000000007.jpg")
    findings = Findings()
    assert references(Reader(str(tmp_path)), findings=findings) == [] and findings.num_lost == 2
