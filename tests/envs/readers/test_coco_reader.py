"""COCO instances as a data set: splits by file name, photos found by themselves, crowds, phrases, and bad entries."""

import json

import numpy as np
import pytest
from made_user_files import (
    coco_data,
    counts,
    lost_ids,
    num_exact,
    read_back,
    rectangle,
    two_photos,
    write_coco,
    write_json,
)

from envs.readers.base import Findings
from envs.readers.coco import Reader


def changed(folder, change, name="instances_train2017.json"):
    """The small set with its JSON changed."""
    write_coco(folder, two_photos())
    file = folder / "annotations" / name
    data = json.loads(file.read_text())
    change(data)
    write_json(file, data)
    return Reader(str(folder))


def asked(reader, split="train"):
    findings = Findings()
    return [one for photo in reader.photos(split, findings) for one in photo.references], findings


def test_classes_are_asked_with_all_their_objects_exact_to_the_pixel(tmp_path):
    write_coco(tmp_path, two_photos())
    found, findings = read_back(Reader(str(tmp_path)), two_photos())
    assert num_exact(found) == 4
    assert [(photo.name, label) for photo, label, _, _ in found] == [
        ("a.png", "cup"),
        ("a.png", "dog"),
        ("b.png", "dog"),
    ]
    assert findings.as_json() == Findings().as_json()


def test_a_single_object_is_asked_for_where_its_class_has_no_other(tmp_path):
    write_coco(tmp_path, two_photos())
    found, _ = asked(Reader(str(tmp_path), ask="single"))
    assert [one.id for one in found] == ["1/3", "2/4"]


def test_a_file_a_split_and_photos_of_both_years_names(tmp_path):
    photos = two_photos()
    write_coco(tmp_path, photos[:1], "train2017")
    write_coco(tmp_path, photos[1:], "val2017")
    reader = Reader(str(tmp_path))
    assert reader.splits() == ("train", "val")
    assert [len(list(reader.photos(split, Findings()))) for split in reader.splits()] == [1, 1]
    assert Reader.recognise(tmp_path).certainty == 3


def test_a_file_without_a_split_in_its_name_is_train_and_photos_lie_in_images(tmp_path):
    for photo in two_photos():
        photo.save(tmp_path / "images")
    write_json(tmp_path / "labels.json", coco_data(two_photos()))
    for path in (tmp_path, tmp_path / "labels.json"):
        assert Reader(str(path)).splits() == ("train",)
        assert num_exact(read_back(Reader(str(path)), two_photos())[0]) == 4
        assert Reader.recognise(path).certainty == 2


def test_two_files_of_one_split_are_refused_by_name(tmp_path):
    write_coco(tmp_path, two_photos(), "train2017")
    write_coco(tmp_path, two_photos(), "train2014")
    with pytest.raises(ValueError, match=r"instances_train2014.json and instances_train2017.json, both for .* train"):
        Reader(str(tmp_path)).splits()


def test_a_crowd_counts_neither_way_and_is_an_object_where_that_is_asked(tmp_path):
    change = lambda data: data["annotations"][1].update(iscrowd=1)  # noqa: E731
    (cup, *_), _ = asked(changed(tmp_path, change))
    assert (len(cup.masks), len(cup.ignore)) == (1, 1)
    assert cup.ignore[0].mask(8, 10).sum() == 4 * 3
    (cup, *_), _ = asked(Reader(str(tmp_path), crowds="objects"))
    assert (len(cup.masks), len(cup.ignore)) == (2, 0)
    found, _ = asked(Reader(str(tmp_path), ask="single"))
    assert [one.parts for one in found] == [("dog",), ("dog",)]


def test_a_class_with_an_object_of_a_box_alone_is_lost_and_a_sliver_is_not_missed(tmp_path):
    def change(data):
        data["annotations"][0]["segmentation"] = []
        data["annotations"].append(
            {"id": 9, "image_id": 2, "category_id": 2, "segmentation": [[1, 1, 1.1, 1, 1.1, 1.1]]}
        )

    found, findings = asked(changed(tmp_path, change))
    assert [one.id for one in found] == ["1/3", "2/4"]
    assert lost_ids(findings) == ["1 (cup)"]
    assert sorted(counts(findings.left_out).values()) == [1, 1]
    single, _ = asked(Reader(str(tmp_path), ask="single"))
    assert [one.id for one in single] == ["1/3"]  # the sliver is a second dog of photo 2


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"category_id": 77}, "a class that is not in the file"),
        ({"segmentation": [[0, 0, float("nan"), 1, 1, 1]]}, "cannot be read"),
        ({"segmentation": {"size": [3, 3], "counts": [9]}}, "cannot be read"),
        ({"image_id": 5}, "not in the file"),
        ({"id": 2}, "was there before"),
        ({"segmentation": "a cup"}, "cannot be read"),
    ],
)
def test_a_bad_annotation_is_told_and_stops_nothing(tmp_path, entry, reason):
    bad = {"id": 50, "image_id": 2, "category_id": 1, "segmentation": [rectangle(1, 1, 4, 4)], "iscrowd": 0}
    found, findings = asked(changed(tmp_path, lambda data: data["annotations"].append(bad | entry)))
    assert [one.id for one in found] == ["1/1+2", "1/3", "2/4"]
    ((told, finding),) = findings.left_out.items()
    assert reason in told and finding.count == 1


@pytest.mark.parametrize("bad", [b'"iscrowd": 1e999999', b'"iscrowd": "\xff\xfe"', b'"iscrowd": "\\ud800"'])
def test_numbers_and_bytes_that_json_does_not_have_stop_nothing(tmp_path, bad):
    write_coco(tmp_path, two_photos())
    file = tmp_path / "annotations" / "instances_train2017.json"
    file.write_bytes(file.read_bytes().replace(b'"iscrowd": 0', bad, 1))
    found, _ = asked(Reader(str(tmp_path)))
    assert {"1/3", "2/4"} <= {one.id for one in found}


def test_a_photo_that_is_missing_loses_its_questions_alone(tmp_path):
    write_coco(tmp_path, two_photos())
    (tmp_path / "train2017" / "a.png").unlink()
    found, findings = asked(Reader(str(tmp_path)))
    assert [one.id for one in found] == ["2/4"]
    assert lost_ids(findings) == ["1/1+2", "1/3"]


def test_half_a_file_and_a_wrong_folder_are_refused_with_what_is_there(tmp_path):
    write_coco(tmp_path, two_photos())
    file = tmp_path / "annotations" / "instances_train2017.json"
    half = tmp_path / "half.json"
    half.write_bytes(file.read_bytes()[:400])
    with pytest.raises(ValueError, match=r"half.json is not JSON"):
        list(Reader(str(half)).photos("train", Findings()))
    with pytest.raises(FileNotFoundError, match=r"there is a.png, b.png; .* has it; give that"):
        Reader(str(tmp_path / "train2017")).splits()
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        Reader(str(tmp_path / "nowhere")).splits()
    with pytest.raises(ValueError, match="no split 'tran'; did you mean 'train'"):
        list(Reader(str(tmp_path)).photos("tran", Findings()))


def phrased(folder, *entries, **settings):
    write_json(folder / "phrases.json", list(entries))
    return Reader(str(folder), phrases=str(folder / "phrases.json"), **settings)


def test_phrases_ask_for_annotations_together_for_one_and_for_nothing(tmp_path):
    write_coco(tmp_path, two_photos())
    both = {"image_id": 1, "ann_ids": [1, 2], "phrases": ["both cups", "the cups"]}
    none = {"image_id": "2", "ann_ids": [], "phrases": ["a whale"]}
    found, findings = asked(phrased(tmp_path, both, none, both))
    assert [(one.id[:-8], one.parts[0], len(one.masks)) for one in found] == [
        ("1/1+2/", "both cups", 2),
        ("1/1+2/", "the cups", 2),
        ("2/none/", "a whale", 0),
    ]
    assert findings.num_lost == 0


def test_a_phrase_may_name_a_crowd_and_other_crowds_of_its_class_count_neither_way(tmp_path):
    changed(tmp_path, lambda data: data["annotations"][1].update(iscrowd=1))
    one = {"image_id": 1, "ann_ids": [1], "phrases": ["left cup"]}
    group = {"image_id": 1, "ann_ids": [2], "phrases": ["cups"]}
    (cup, cups), _ = asked(phrased(tmp_path, one, group))
    assert (len(cup.ignore), len(cups.ignore)) == (1, 0)
    (cup, cups), _ = asked(phrased(tmp_path, one, group, crowds="objects"))
    assert (len(cup.ignore), len(cups.ignore)) == (0, 0)


def test_each_mistake_in_a_phrases_file_loses_its_own_question(tmp_path):
    write_coco(tmp_path, two_photos())
    bad = [
        "no entry",
        {"image_id": 1, "ann_ids": [1], "phrases": [""]},
        {"image_id": 1, "ann_ids": [99], "phrases": ["of no annotation"]},
        {"image_id": 1, "ann_ids": [4], "phrases": ["of another image"]},
        {"image_id": 9, "ann_ids": [], "phrases": ["of no image"]},
    ]
    found, findings = asked(phrased(tmp_path, *bad, {"image_id": 1, "ann_ids": [3], "phrases": ["dog"]}))
    assert [one.parts[0] for one in found] == ["dog"]
    assert list(counts(findings.lost).values()) == [2, 1, 1, 1] and findings.num_lost == 5


def test_phrases_of_another_split_are_no_mistake(tmp_path):
    photos = two_photos()
    write_coco(tmp_path, photos[:1], "train2017")
    write_json(tmp_path / "annotations/instances_val2017.json", coco_data([]) | {"images": [{"id": 2}]})
    entry = {"image_id": 1, "ann_ids": [3], "phrases": ["dog"]}
    found, findings = asked(phrased(tmp_path, entry, entry | {"image_id": 2}))
    assert len(found) == 1 and findings.num_lost == 0


def test_masks_of_real_lists_of_numbers_and_text_are_equal(tmp_path):
    write_coco(tmp_path, two_photos())
    (_, dog, _), _ = asked(Reader(str(tmp_path)))
    runs = dog.masks[0].runs.tolist()
    change = lambda data: data["annotations"][2]["segmentation"].update(counts=runs)  # noqa: E731
    (_, again, _), _ = asked(changed(tmp_path, change))
    np.testing.assert_array_equal(dog.masks[0].mask(8, 10), again.masks[0].mask(8, 10))
