"""RefCOCO as rows of the hub: the original annotations, and flat outlines whose parts are joined."""

import json

import numpy as np
import pytest
from made_field_sets import (
    CROWD,
    HEIGHT,
    OVERLAPPING,
    SQUARE,
    TRAIN,
    WIDTH,
    annotation,
    by_pycocotools,
    encoded,
    image,
    parquet,
    photo,
    ref,
)

from envs.readers._parquet_rows import PACKED
from envs.readers._refer import UNUSABLE
from envs.readers.base import Findings
from envs.readers.refcoco_rows import CROWD_FLAT, FLAT, Reader


def by_object(number, segmentation, image_id=1, **more):
    """A row with the original annotation as JSON text; its box is in two forms."""
    row = ref(number, 10 + number, image_id, [f"Cup {number}", "it"])
    return row | {
        "raw_anns": json.dumps(annotation(10 + number, image_id, segmentation, **more)),
        "raw_image_info": json.dumps(image(image_id, TRAIN.format(image_id))),
        "raw_sentences": json.dumps(row["sentences"]),
        "image_path": f"coco/train2014/{TRAIN.format(image_id)}",
        "bbox": [1.0, 1.0, 3.0, 3.0],
        "captions": [f"cup {number}", "it"],
        "global_image_id": f"coco.{image_id}",
        "anns_id": f"coco.{10 + number}",
    }


def flat(number, rings, scratch, **more):
    """A row with a flat outline and its photo."""
    name = TRAIN.format(1).replace(".jpg", f"_{number}.jpg")
    return {
        "question_id": f"{500 + number}",
        "image": encoded(scratch / name),
        "question": "Please carefully observe the area",
        "answer": ["left cup", "the cup"],
        "segmentation": [float(value) for ring in rings for value in ring],
        "bbox": [1.0, 1.0, 2.0, 2.0],
        "iscrowd": 0,
        "file_name": name,
        **more,
    }


def test_rows_of_a_photo_that_lie_apart_are_one_photo_with_the_masks_of_pycocotools(tmp_path):
    rows = [by_object(1, SQUARE), by_object(2, CROWD, 2), by_object(3, OVERLAPPING)]
    parquet(tmp_path / "data" / "testB-00000-of-00001-ab12.parquet", rows)
    for number in (1, 2):
        photo(tmp_path / "train2014" / TRAIN.format(number))
    reader = Reader(str(tmp_path))
    assert reader.splits() == ("testB",)
    first, second = reader.photos("testB", Findings())
    assert [one.id for one in first.references] == ["1/100", "1/101", "3/300", "3/301"]
    assert first.references[0].parts == ("cup 1",) and second.photo.path.name == TRAIN.format(2)
    for found, segmentation in ((first.references[2], OVERLAPPING), (second.references[0], CROWD)):
        np.testing.assert_array_equal(found.masks[0].mask(HEIGHT, WIDTH), by_pycocotools(segmentation))
    assert next(Reader(str(tmp_path), text="raw").photos("testB", Findings())).references[0].parts == ("Cup 1",)


def test_annotations_that_cannot_be_read_lose_their_questions_alone(tmp_path):
    rows = [by_object(1, SQUARE), by_object(2, SQUARE) | {"raw_anns": "{"}, by_object(3, []), by_object(4, [[1, "x"]])]
    rows.append(by_object(5, SQUARE) | {"raw_image_info": None})
    parquet(tmp_path / "val.parquet", rows)
    photo(tmp_path / "train2014" / TRAIN.format(1))
    findings = Findings()
    (one,) = Reader(str(tmp_path)).photos("val", findings)
    assert [each.id for each in one.references][:2] == ["1/100", "1/101"] and findings.num_lost == 6


def test_a_flat_outline_is_one_ring_and_told(tmp_path):
    rows = [flat(1, SQUARE, tmp_path / "s"), flat(2, OVERLAPPING, tmp_path / "s"), flat(3, SQUARE, tmp_path, iscrowd=1)]
    parquet(tmp_path / "set" / "data" / "val-00000-of-00001.parquet", rows)
    findings = Findings()
    (one,) = Reader(str(tmp_path / "set"), unpack=str(tmp_path / "unpacked")).photos("val", findings)
    assert one.photo.path == tmp_path / "unpacked" / TRAIN.format(1) and one.photo.path.is_file()
    assert [each.id for each in one.references] == ["501/0", "501/1", "502/0", "502/1"]
    np.testing.assert_array_equal(one.references[0].masks[0].mask(HEIGHT, WIDTH), by_pycocotools(SQUARE))
    joined = one.references[2].masks[0].mask(HEIGHT, WIDTH)
    np.testing.assert_array_equal(joined, by_pycocotools([[*OVERLAPPING[0], *OVERLAPPING[1]]]))
    assert (joined != by_pycocotools(OVERLAPPING)).sum() > 20  # why it is told
    assert findings.noted[FLAT].which == ["501", "502"]
    assert findings.lost[f"{UNUSABLE} ({CROWD_FLAT})"].which == ["503/0", "503/1"]


def test_photos_in_the_rows_alone_need_a_folder(tmp_path):
    parquet(tmp_path / "set" / "testA-00000-of-00001.parquet", [flat(1, SQUARE, tmp_path / "s")])
    findings = Findings()
    assert list(Reader(str(tmp_path / "set")).photos("testA", findings)) == []
    assert findings.lost[PACKED].which == ["501/0", "501/1"]


def test_each_form_is_recognised_by_its_columns(tmp_path):
    parquet(tmp_path / "a" / "val.parquet", [by_object(1, SQUARE)])
    parquet(tmp_path / "b" / "val.parquet", [flat(1, SQUARE, tmp_path / "s")])
    parquet(tmp_path / "c" / "val.parquet", [{"image": b"", "text": "x"}])
    assert "raw_anns" in Reader.recognise(tmp_path / "a").what and "joined" in Reader.recognise(tmp_path / "b").what
    assert Reader.recognise(tmp_path / "c") is None
    with pytest.raises(FileNotFoundError, match="raw_anns, or with question_id"):
        Reader(str(tmp_path / "c")).splits()
    with pytest.raises(ValueError, match=r"no split 'train'.*There are: val"):
        list(Reader(str(tmp_path / "a")).photos("train", Findings()))
