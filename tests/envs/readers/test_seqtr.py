"""SeqTR's instances.json: lists of objects by split, with the photo named by its number."""

import numpy as np
import pytest
from made_field_sets import HEIGHT, OVERLAPPING, SQUARE, TRAIN, WIDTH, block, by_pycocotools, photo, run_lengths, saved

from envs.readers._refer import NO_SENTENCE, UNUSABLE
from envs.readers.base import Findings
from envs.readers.seqtr import Reader


def entry(image_id, mask, *expressions, **more):
    size = {"height": HEIGHT, "width": WIDTH}
    said = {"bbox": [1, 2, 3, 4], "mask": mask, "expressions": list(expressions), "image_id": image_id}
    return {**said, **size, "data_source": "refcoco_unc", **more}


def made(tmp_path, **splits):
    for number in (1, 2):
        photo(tmp_path / "train2014" / TRAIN.format(number))
    saved(tmp_path / "refcoco-unc" / "instances.json", splits)
    return str(tmp_path / "refcoco-unc")


def test_objects_of_a_photo_that_lie_apart_are_asked_together_with_the_masks_of_pycocotools(tmp_path):
    packed = run_lengths(block(3, 4, 20, 31))
    train = [entry(1, SQUARE, "left cup", "the cup"), entry(2, packed, "sky"), entry(1, OVERLAPPING, "odd one")]
    reader = Reader(made(tmp_path, train=train, testA=[]))
    assert reader.splits() == ("train", "testA")
    first, second = reader.photos("train", Findings())
    assert [(one.id, one.parts[0]) for one in (*first.references, *second.references)] == [
        ("train/0/0", "left cup"),
        ("train/0/1", "the cup"),
        ("train/2/0", "odd one"),
        ("train/1/0", "sky"),
    ]
    for one, mask in ((first.references[2], OVERLAPPING), (second.references[0], packed)):
        np.testing.assert_array_equal(one.masks[0].mask(HEIGHT, WIDTH), by_pycocotools(mask))
    assert (first.photo.id, first.photo.path.name) == ("1", TRAIN.format(1))
    assert list(reader.photos("testA", Findings())) == []


def test_photos_of_other_sources_go_by_their_number(tmp_path):
    photo(tmp_path / "saiapr_tc-12" / "8756.jpg")
    folder = made(tmp_path, val=[entry(8756, SQUARE, "sky", data_source="referitgame_berkeley")])
    (one,) = Reader(folder).photos("val", Findings())
    assert one.photo.path.name == "8756.jpg"


def test_entries_that_cannot_be_asked_are_told_and_the_others_are(tmp_path):
    boxed = {key: value for key, value in entry(1, None, "box alone").items() if key != "mask"}
    val = [
        boxed,
        entry(1, SQUARE),
        "text",
        entry(None, SQUARE, "x"),
        entry(1, [[1, "2"]], "bad"),
        entry(2, SQUARE, "ok"),
    ]
    findings = Findings()
    (one,) = Reader(made(tmp_path, train=[entry(1, SQUARE, "a")], val=val)).photos("val", findings)
    assert [each.id for each in one.references] == ["val/5/0"]
    assert findings.lost[NO_SENTENCE].which == ["val/1"]
    assert findings.lost[f"{UNUSABLE} (annotations without a mask (box alone))"].which == ["val/0/0"]
    assert findings.num_lost == 5


def test_it_is_told_from_the_instances_of_coco_and_of_refcoco(tmp_path):
    saved(tmp_path / "refcoco" / "instances.json", {"images": [], "annotations": []})
    assert Reader.recognise(tmp_path / "refcoco") is None and Reader.recognise(tmp_path / "none") is None
    folder = made(tmp_path, train=[entry(1, SQUARE, "a")])
    assert Reader.recognise(tmp_path / "refcoco-unc").certainty == 2
    with pytest.raises(FileNotFoundError, match=r"expressions and mask.*has it"):
        Reader(str(tmp_path)).splits()
    with pytest.raises(ValueError, match="no split 'val'"):
        list(Reader(folder).photos("val", Findings()))
