"""Pascal VOC masks: objects and classes by palette index, the border, lists of photos, and damaged PNGs."""

import numpy as np
import pytest
from made_user_files import Photo, box_mask, counts, drawn_box, lost_ids, num_exact, read_back, save_palette, write_voc
from PIL import Image

from envs.readers.base import Findings
from envs.readers.voc_masks import NAMES, Reader

BORDER = box_mask(8, 10, 9, 0, 10, 8)
PHOTOS = (
    Photo(
        "2007_1.jpg",
        8,
        10,
        (drawn_box("bottle", 0, 0, 3, 3), drawn_box("bottle", 4, 4, 6, 8), drawn_box("dog", 6, 0, 9, 3)),
    ),
    Photo("2007_2.jpg", 8, 10, (drawn_box("dog", 2, 2, 9, 7),)),
)
NUMBERS = {"bottle": 5, "dog": 12}


def written(folder, **more):
    write_voc(folder, PHOTOS, NUMBERS, **more)
    return folder


def asked(path, split="train", **settings):
    findings = Findings()
    return [
        one for given in Reader(str(path), **settings).photos(split, findings) for one in given.references
    ], findings


def test_the_twenty_classes_have_their_indices():
    assert len(NAMES) == 21 and (NAMES[5], NAMES[12], NAMES[20]) == ("bottle", "dog", "tvmonitor")


def test_objects_are_exact_and_the_border_counts_neither_way(tmp_path):
    reader = Reader(str(written(tmp_path, border=BORDER)))
    assert num_exact(read_back(reader, PHOTOS)[0]) == 4
    found, findings = asked(tmp_path)
    for one in found:
        np.testing.assert_array_equal(one.ignore[0].mask(8, 10), BORDER)
    assert [(one.id, one.parts) for one in found][:2] == [("2007_1/1+2", ("bottle",)), ("2007_1/3", ("dog",))]
    assert findings.as_json() == Findings().as_json()


def test_the_index_is_read_and_not_the_colour(tmp_path):
    written(tmp_path)
    image = Image.open(tmp_path / "SegmentationObject/2007_1.png")
    assert image.mode == "P" and np.unique(image).tolist() == [0, 1, 2, 3]


def test_an_object_has_the_class_of_most_of_its_pixels(tmp_path):
    written(tmp_path)
    classes = np.array(Image.open(tmp_path / "SegmentationClass/2007_2.png"))
    classes[2, 2:9] = 5
    save_palette(tmp_path / "SegmentationClass/2007_2.png", classes)
    found, _ = asked(tmp_path)
    assert found[-1].parts == ("dog",)


def test_lists_are_splits_and_without_any_all_is_train(tmp_path):
    written(tmp_path)
    (tmp_path / "ImageSets/Segmentation/val.txt").write_text("2007_2\n\n")
    (tmp_path / "ImageSets/Segmentation/trainval.txt").write_text("2007_1\n2007_2\n")
    reader = Reader(str(tmp_path))
    assert reader.splits() == ("train", "val", "trainval")
    assert num_exact(read_back(reader, PHOTOS, "val")[0]) == 1
    for file in (tmp_path / "ImageSets/Segmentation").iterdir():
        file.unlink()
    assert Reader(str(tmp_path)).splits() == ("train",)
    assert num_exact(read_back(Reader(str(tmp_path)), PHOTOS)[0]) == 4


def test_own_classes_are_the_lines_of_class_names(tmp_path):
    write_voc(tmp_path, PHOTOS, {"bottle": 1, "dog": 2})
    (tmp_path / "class_names.txt").write_text("_background_\nbottle\ndog\n")
    assert num_exact(read_back(Reader(str(tmp_path)), PHOTOS)[0]) == 4


def test_an_unknown_class_costs_its_object(tmp_path):
    write_voc(tmp_path, PHOTOS, {"bottle": 5, "dog": 77})
    found, findings = asked(tmp_path)
    assert [one.parts for one in found] == [("bottle",)]
    assert counts(findings.left_out) == {"annotations of a class that is not in the file": 2}


@pytest.mark.parametrize("damage", ["missing", "half", "colours", "size"])
def test_a_png_that_cannot_be_read_costs_its_photo_alone(tmp_path, damage):
    file = written(tmp_path) / "SegmentationClass/2007_1.png"
    if damage == "missing":
        file.unlink()
    elif damage == "half":
        file.write_bytes(file.read_bytes()[:60])
    elif damage == "colours":
        Image.open(file).convert("RGB").save(file)
    else:
        Image.new("P", (4, 4)).save(file)
    found, findings = asked(tmp_path)
    assert [one.id for one in found] == ["2007_2/1"]
    assert sum(counts(findings.left_out).values()) == 1


def test_a_photo_that_is_missing_and_a_wrong_folder_are_told(tmp_path):
    written(tmp_path / "VOC2012")
    (tmp_path / "VOC2012/JPEGImages/2007_1.jpg").unlink()
    found, findings = asked(tmp_path / "VOC2012")
    assert len(found) == 1 and lost_ids(findings) == ["2007_1/1+2", "2007_1/3"]
    with pytest.raises(
        FileNotFoundError, match=r"is not a VOC folder .* there is VOC2012; .*VOC2012 has it; give that"
    ):
        Reader(str(tmp_path)).splits()
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        Reader(str(tmp_path / "nowhere")).splits()
    assert Reader.recognise(tmp_path / "VOC2012").certainty == 3
