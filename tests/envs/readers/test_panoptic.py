"""COCO panoptic: ids in three colours, void, crowds, stuff, and PNGs that are not what they should be."""

import json

import numpy as np
import pytest
from made_user_files import (
    colours_of_ids,
    counts,
    drawn_box,
    num_exact,
    read_back,
    two_photos,
    write_json,
    write_panoptic,
)
from PIL import Image

from envs.readers.base import Findings
from envs.readers.coco import Reader as CocoReader
from envs.readers.panoptic import Reader


def changed(folder, change):
    file = folder / "annotations/panoptic_train2017.json"
    data = json.loads(file.read_text())
    change(data)
    write_json(file, data)


def asked(reader):
    findings = Findings()
    return [one for photo in reader.photos("train", findings) for one in photo.references], findings


def test_segments_are_exact_and_void_counts_neither_way(tmp_path):
    write_panoptic(tmp_path, two_photos())
    reader = Reader(str(tmp_path))
    assert num_exact(read_back(reader, two_photos())[0]) == 4
    found, _ = asked(reader)
    void = ~np.any([each.mask for each in two_photos()[0].objects], axis=0)
    np.testing.assert_array_equal(found[0].ignore[0].mask(8, 10), void)


def test_an_id_takes_all_three_colours(tmp_path):
    write_panoptic(tmp_path, two_photos())
    pixels = np.array(Image.open(tmp_path / "annotations/panoptic_train2017/a.png"))
    assert sorted(np.unique(pixels @ [1, 256, 65536]).tolist()) == [0, 70_001, 140_002, 210_003]
    assert colours_of_ids(np.array([[3937500]])).tolist() == [[[220, 20, 60]]]  # a segment of COCO's sample file


def test_a_segment_below_another_loses_its_pixels_as_the_format_has_it(tmp_path):
    (photo, _) = two_photos()
    cup, dog = drawn_box("cup", 0, 0, 6, 4), drawn_box("dog", 4, 2, 8, 8)
    write_panoptic(tmp_path, (type(photo)("a.png", 8, 10, (cup, dog)),))
    (of_cup, of_dog), _ = asked(Reader(str(tmp_path)))
    assert of_cup.masks[0].mask(8, 10).sum() == cup.mask.sum() - 2 * 2
    np.testing.assert_array_equal(of_dog.masks[0].mask(8, 10), dog.mask)


def test_crowds_and_stuff_are_asked_for_on_demand_alone(tmp_path):
    write_panoptic(tmp_path, two_photos())

    def change(data):
        data["annotations"][0]["segments_info"][1]["iscrowd"] = 1
        data["categories"][1]["isthing"] = 0

    changed(tmp_path, change)
    (cup,), _ = asked(Reader(str(tmp_path)))
    assert (len(cup.masks), len(cup.ignore)) == (1, 2)
    found, _ = asked(Reader(str(tmp_path), crowds="objects", stuff=True))
    assert [(one.parts[0], len(one.masks)) for one in found] == [("cup", 2), ("dog", 1), ("dog", 1)]


def test_a_bad_segment_costs_itself_alone(tmp_path):
    write_panoptic(tmp_path, two_photos())

    def change(data):
        data["annotations"][0]["segments_info"] += [{"id": 5, "category_id": 99}, {"category_id": 1}, "no segment"]
        data["annotations"] += [{"image_id": 9}, data["annotations"][0], 7]

    changed(tmp_path, change)
    found, findings = read_back(Reader(str(tmp_path)), two_photos())
    assert num_exact(found) == 4
    assert sum(counts(findings.left_out).values()) == 6


def test_an_entry_of_bytes_that_are_no_text_costs_its_photo(tmp_path):
    write_panoptic(tmp_path, two_photos())
    file = tmp_path / "annotations/panoptic_train2017.json"
    file.write_bytes(
        file.read_bytes().replace(b'"file_name": "a.png", "segments', b'"file_name": "\xff.png", "segments')
    )
    found, findings = asked(Reader(str(tmp_path)))
    assert [one.id for one in found] == ["2/70001"]
    assert sum(counts(findings.left_out).values()) == 1


def test_a_png_that_is_missing_loses_its_questions_and_one_of_another_size_tells_it_when_drawn(tmp_path):
    write_panoptic(tmp_path, two_photos())
    (tmp_path / "annotations/panoptic_train2017/a.png").unlink()
    (dog,), findings = asked(Reader(str(tmp_path)))
    assert findings.num_lost == 2
    Image.new("RGB", (5, 5)).save(tmp_path / "annotations/panoptic_train2017/b.png")
    with pytest.raises(ValueError, match=r"b.png is 5 x 5 pixels and its photo 10 x 8"):
        dog.masks[0].mask(8, 10)
    (tmp_path / "annotations/panoptic_train2017/b.png").write_bytes(b"\x89PNG")
    with pytest.raises(ValueError, match=r"b.png is cut off, damaged or no image"):
        dog.masks[0].mask(8, 10)


def test_a_folder_of_pngs_elsewhere_has_to_be_told(tmp_path):
    write_panoptic(tmp_path, two_photos())
    (tmp_path / "annotations/panoptic_train2017").rename(tmp_path / "unpacked")
    with pytest.raises(FileNotFoundError, match="no folder of its PNGs"):
        asked(Reader(str(tmp_path)))
    assert num_exact(read_back(Reader(str(tmp_path), masks=str(tmp_path / "unpacked")), two_photos())[0]) == 4


def test_it_is_known_by_name_or_by_segments_info_and_not_as_instances(tmp_path):
    write_panoptic(tmp_path, two_photos())
    file = tmp_path / "annotations/panoptic_train2017.json"
    assert Reader.recognise(tmp_path).certainty == Reader.recognise(file).certainty == 3
    assert CocoReader.recognise(file) is None and CocoReader.recognise(tmp_path) is None
    with pytest.raises(FileNotFoundError, match="is not COCO panoptic"):
        Reader(str(tmp_path / "train2017")).splits()
    file.write_text(file.read_text()[:200])
    with pytest.raises(ValueError, match="is not JSON"):
        asked(Reader(str(file)))


def test_a_list_of_classes_and_the_same_annotations_as_masks_of_objects_give_way_to_the_file_with_pngs(tmp_path):
    write_panoptic(tmp_path, two_photos())
    file = tmp_path / "annotations/panoptic_train2017.json"
    (file.parent / "panoptic_coco_categories.json").write_text('[{"id": 1, "name": "cup", "isthing": 1}]')
    (file.parent / "panoptic_coco_detection_format.json").write_text(file.read_text())
    assert Reader.recognise(tmp_path).what == "COCO panoptic: panoptic_train2017.json"
    assert num_exact(read_back(Reader(str(tmp_path)), two_photos())[0]) == 4
    file.with_suffix("").rename(tmp_path / "unpacked")  # now neither has its PNGs beside it
    with pytest.raises(ValueError, match="are both train; give one file"):
        Reader(str(tmp_path)).splits()
