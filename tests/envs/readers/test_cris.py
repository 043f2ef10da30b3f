"""CRIS's files: sentences in JSON, masks as PNGs whose pixels that are not 0 count."""

import numpy as np
import pytest
from made_field_sets import HEIGHT, TRAIN, WIDTH, block, photo, saved
from PIL import Image

from envs.readers.base import Findings
from envs.readers.cris import NO_MASK_FILE, Reader


def entry(segment, image_id, *texts):
    sentences = [{"idx": place, "sent_id": 100 + place, "sent": text} for place, text in enumerate(texts)]
    named = {"bbox": [1, 2, 3, 4], "cat": 7, "segment_id": segment, "img_name": TRAIN.format(image_id)}
    return {**named, "sentences": sentences, "sentences_num": len(sentences)}


def made(tmp_path, entries, segments=(49428,), name="train"):
    for number in (1, 2):
        photo(tmp_path / "images" / "train2014" / TRAIN.format(number))
    values = np.where(block(3, 4, 20, 31), 255, 0) - block(10, 10, 12, 12)  # 254 where parts overlap
    (tmp_path / "masks" / "refcoco").mkdir(parents=True, exist_ok=True)
    for segment in segments:
        Image.fromarray(values.astype(np.uint8)).save(tmp_path / "masks" / "refcoco" / f"{segment}.png")
    saved(tmp_path / "anns" / "refcoco" / f"{name}.json", entries)
    return str(tmp_path / "anns" / "refcoco")


def test_a_mask_is_what_is_not_0_so_that_overlaps_count(tmp_path):
    reader = Reader(made(tmp_path, [entry(49428, 1, "left cup", "the cup")]))
    assert reader.splits() == ("train",)
    (one,) = reader.photos("train", Findings())
    assert [(each.id, each.parts[0]) for each in one.references] == [
        ("49428/100", "left cup"),
        ("49428/101", "the cup"),
    ]
    np.testing.assert_array_equal(one.references[0].masks[0].mask(HEIGHT, WIDTH), block(3, 4, 20, 31))
    assert one.photo.path.name == TRAIN.format(1) and one.photo.height == 0


def test_a_missing_mask_a_repeated_segment_and_an_unnamed_one_are_told(tmp_path):
    entries = [entry(1, 1, "a"), entry(2, 2, "b"), entry(1, 2, "c"), {"img_name": "x.jpg"}, "text", entry(3, 1)]
    findings = Findings()
    (one,) = Reader(made(tmp_path, entries, (1, 3))).photos("train", findings)
    assert [each.id for each in one.references] == ["1/100"]
    assert findings.lost[NO_MASK_FILE].which[0].startswith("2/100 (") and findings.num_lost == 5


def test_a_mask_of_another_size_than_the_photo_is_refused_where_it_is_asked_for(tmp_path):
    (one,) = Reader(made(tmp_path, [entry(49428, 1, "a")])).photos("train", Findings())
    with pytest.raises(ValueError, match=r"49428\.png is 60 x 40 pixels and its photo 20 x 10"):
        one.references[0].masks[0].mask(10, 20)


def test_masks_and_photos_may_lie_elsewhere(tmp_path):
    folder = made(tmp_path, [entry(49428, 1, "a")])
    (tmp_path / "masks").rename(tmp_path / "elsewhere")
    (tmp_path / "images").rename(tmp_path / "photos")
    reader = Reader(
        folder, images=str(tmp_path / "photos" / "train2014"), masks=str(tmp_path / "elsewhere" / "refcoco")
    )
    assert len(list(reader.photos("train", Findings()))) == 1


def test_the_folder_is_recognised_by_what_its_files_begin_with(tmp_path):
    folder = made(tmp_path, [entry(49428, 1, "a")], name="testA")
    saved(tmp_path / "anns" / "refcoco" / "other.json", {"images": []})
    found = Reader.recognise(tmp_path / "anns" / "refcoco")
    assert found.certainty == 3 and Reader(folder).splits() == ("testA",)
    assert Reader.recognise(tmp_path) is None
    with pytest.raises(FileNotFoundError, match=r"anns/refcoco.*has it"):
        Reader(str(tmp_path / "anns")).splits()
