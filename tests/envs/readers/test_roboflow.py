"""Roboflow's COCO export: split folders, the super-category, boxes without a mask."""

import json

import pytest
from made_user_files import counts, num_exact, read_back, two_photos, write_json, write_roboflow

from envs.readers.base import Findings
from envs.readers.coco import Reader as CocoReader
from envs.readers.roboflow import Reader


def test_folders_are_splits_and_masks_are_exact(tmp_path):
    photos = two_photos()
    write_roboflow(tmp_path, photos, "train")
    write_roboflow(tmp_path, photos[1:], "valid")
    reader = Reader(str(tmp_path))
    assert reader.splits() == ("train", "valid")
    assert num_exact(read_back(reader, photos)[0]) == 4
    assert num_exact(read_back(reader, photos, "valid")[0]) == 1
    assert num_exact(read_back(Reader(str(tmp_path / "valid")), photos, "valid")[0]) == 1


def test_the_export_is_known_surer_than_as_plain_coco(tmp_path):
    write_roboflow(tmp_path, two_photos())
    assert Reader.recognise(tmp_path).certainty == 3
    assert Reader.recognise(tmp_path / "train").certainty == 3
    assert CocoReader.recognise(tmp_path / "train").certainty == 2
    assert Reader.recognise(tmp_path / "valid") is None


def test_the_super_category_is_never_asked_and_a_box_costs_its_class(tmp_path):
    write_roboflow(tmp_path, two_photos())
    file = tmp_path / "train/_annotations.coco.json"
    data = json.loads(file.read_text())
    data["annotations"][0]["category_id"] = 0
    data["annotations"][3]["segmentation"] = []
    write_json(file, data)
    findings = Findings()
    found = [one for photo in Reader(str(tmp_path)).photos("train", findings) for one in photo.references]
    assert [one.parts for one in found] == [("cup",), ("dog",)]
    assert [len(one.masks) for one in found] == [1, 1]
    assert sum(counts(findings.left_out).values()) == 2 and findings.num_lost == 1


def test_a_class_0_that_is_no_super_category_is_a_class(tmp_path):
    write_roboflow(tmp_path, two_photos())
    file = tmp_path / "train/_annotations.coco.json"
    data = json.loads(file.read_text())
    del data["categories"][0]
    data["categories"][0] |= {"id": 0, "supercategory": "none"}
    for each in data["annotations"]:
        each["category_id"] *= each["category_id"] != 1
    write_json(file, data)
    assert num_exact(read_back(Reader(str(tmp_path)), two_photos())[0]) == 4


def test_missing_photos_half_a_file_and_wrong_folders(tmp_path):
    write_roboflow(tmp_path / "set", two_photos())
    (tmp_path / "set/train/b.png").unlink()
    findings = Findings()
    assert len(list(Reader(str(tmp_path / "set")).photos("train", findings))) == 1
    assert findings.num_lost == 1
    file = tmp_path / "set/train/_annotations.coco.json"
    file.write_text(file.read_text()[:300])
    with pytest.raises(ValueError, match="is not JSON"):
        list(Reader(str(tmp_path / "set")).photos("train", Findings()))
    with pytest.raises(FileNotFoundError, match=r"there is set; .*set has it; give that"):
        Reader(str(tmp_path)).splits()
