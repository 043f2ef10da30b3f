"""gRefCOCO: one, several and none meant, crowds kept with their masks, and rows that say too little."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from made_field_sets import CROWD, HEIGHT, OVERLAPPING, SQUARE, TRIANGLE, WIDTH, by_pycocotools, grefcoco, ref, saved

from envs.readers._refer import CONTRADICTION, CROWD_TARGET, NO_SENTENCE, NO_TARGET_NAMED
from envs.readers.base import Findings
from envs.readers.grefcoco import Reader

DATA = Path(__file__).parents[3] / ".." / "shared" / "data" / "coco28"


def references(reader, split, findings=None):
    return [one for each in reader.photos(split, findings or Findings()) for one in each.references]


def test_none_one_and_three_are_meant_with_the_masks_of_pycocotools(tmp_path):
    grefcoco(tmp_path)
    found = references(Reader(str(tmp_path)), "train")
    assert [(one.id, one.parts, len(one.masks)) for one in found] == [
        ("1/100", ("a whale",), 0),
        ("2/200", ("left cup",), 1),
        ("3/300", ("all three",), 3),
    ]
    for shape, part in zip(found[2].masks, (SQUARE, OVERLAPPING, TRIANGLE), strict=True):
        np.testing.assert_array_equal(shape.mask(HEIGHT, WIDTH), by_pycocotools(part))


def test_a_crowd_that_is_meant_keeps_its_mask_and_is_told(tmp_path):
    grefcoco(tmp_path)
    findings = Findings()
    (one,) = references(Reader(str(tmp_path)), "val", findings)
    np.testing.assert_array_equal(one.masks[0].mask(HEIGHT, WIDTH), by_pycocotools(CROWD))
    assert one.masks[0].mask(HEIGHT, WIDTH).sum() == 190 and findings.noted[CROWD_TARGET].which == ["4"]


def test_rows_that_say_too_little_or_too_much_are_lost_and_never_read_as_none(tmp_path):
    grefcoco(tmp_path)
    findings = Findings()
    references(Reader(str(tmp_path)), "train", findings)
    assert {reason: finding.which for reason, finding in findings.lost.items()} == {
        NO_SENTENCE: ["5"],
        NO_TARGET_NAMED: ["6/600"],
        CONTRADICTION: ["7/700"],
    }


@pytest.mark.parametrize(
    ("said", "num_masks"),
    [({"ann_id": [-1]}, 0), ({"ann_id": []}, 0), ({"no_target": True}, 0), ({"ann_id": 11}, 1), ({"ann_ids": [11]}, 1)],
)
def test_that_nothing_is_meant_is_said_in_several_ways(tmp_path, said, num_masks):
    grefcoco(tmp_path)
    bare = {key: value for key, value in ref(1, 0, 1, ["what"]).items() if key != "ann_id"}
    saved(tmp_path / "grefs(unc).json", [bare | said])
    (one,) = references(Reader(str(tmp_path)), "train")
    assert len(one.masks) == num_masks


def test_one_of_several_that_is_not_there_loses_the_question(tmp_path):
    grefcoco(tmp_path)
    saved(tmp_path / "grefs(unc).json", [ref(1, [11, 999], 1, ["both"])])
    findings = Findings()
    assert references(Reader(str(tmp_path)), "train", findings) == [] and findings.num_lost == 1


def test_a_pickle_of_the_same_entries_is_preferred_and_gives_the_same(tmp_path):
    entries = grefcoco(tmp_path)
    by_json = references(Reader(str(tmp_path / "grefs(unc).json")), "train")
    (tmp_path / "grefs(unc).p").write_bytes(pickle.dumps(entries, protocol=2))
    (tmp_path / "grefs(unc).json").write_text("[]")
    assert [one.id for one in references(Reader(str(tmp_path)), "train")] == [one.id for one in by_json]


def test_splits_and_recognition_are_those_of_the_file(tmp_path):
    grefcoco(tmp_path)
    assert Reader(str(tmp_path)).splits() == ("train", "val")
    found = Reader.recognise(tmp_path)
    assert found and found.certainty == 3 and "grefs(unc).json" in found.what
    with pytest.raises(FileNotFoundError, match="has it; give that"):
        Reader(str(tmp_path.parent)).splits()


def test_json_in_utf_16_is_read(tmp_path):
    entries = grefcoco(tmp_path)
    (tmp_path / "grefs(unc).json").write_bytes(json.dumps(entries).encode("utf-16"))
    assert len(references(Reader(str(tmp_path)), "train")) == 3


@pytest.mark.skipif(not DATA.is_dir(), reason=f"the photos are not here: {DATA} is missing")
def test_every_annotation_of_real_photos_is_the_mask_of_pycocotools(tmp_path):
    data = json.loads((DATA / "instances.json").read_text())
    (tmp_path / "instances.json").symlink_to((DATA / "instances.json").resolve())
    entries = [ref(place, [one["id"]], one["image_id"], ["it"]) for place, one in enumerate(data["annotations"])]
    saved(tmp_path / "grefs(unc).json", entries)
    sizes = {one["id"]: (one["height"], one["width"]) for one in data["images"]}
    findings = Findings()
    found = references(Reader(str(tmp_path), images=str(DATA / "images")), "train", findings)
    assert len(found) == len(data["annotations"]) == 159 and findings.noted[CROWD_TARGET].count == 2
    for one in found:
        annotation = data["annotations"][int(one.id.split("/")[0])]
        size = sizes[annotation["image_id"]]
        np.testing.assert_array_equal(one.masks[0].mask(*size), by_pycocotools(annotation["segmentation"], *size))
