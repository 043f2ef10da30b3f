"""ReasonSeg: shapes drawn over one another, labels that count neither way, texts of each split, and odd files."""

import json
import pickle

import numpy as np
import pytest
from made_field_sets import HEIGHT, WIDTH, block, photo, reasonseg, saved

from envs.readers._image_files import MISSING
from envs.readers.base import Findings
from envs.readers.reasonseg import BAD_SHAPE, NO_SHAPE, NO_TEXT, UNREADABLE, Reader


def references(reader, split, findings=None):
    return [one for each in reader.photos(split, findings or Findings()) for one in each.references]


def test_what_is_small_lies_above_what_is_large(tmp_path):
    reasonseg(tmp_path)
    one = references(Reader(str(tmp_path)), "train")[0]
    small = block(12, 12, 16, 16)  # corners at whole pixels after the cut, contour included
    large, in_target = block(5, 35, 36, 56), block(10, 40, 15, 45)
    (target,), (ignore,) = one.masks, one.ignore
    np.testing.assert_array_equal(target.mask(HEIGHT, WIDTH), small | (large & ~in_target))
    np.testing.assert_array_equal(ignore.mask(HEIGHT, WIDTH), (block(10, 10, 30, 30) & ~small) | in_target)


def test_a_file_in_cp1252_is_read_and_train_asks_every_text(tmp_path):
    reasonseg(tmp_path)
    assert b"caf\xe9" in (tmp_path / "train" / "one.json").read_bytes()
    asked = {
        split: [(one.id, one.parts) for one in references(Reader(str(tmp_path)), split)] for split in ("train", "val")
    }
    assert asked == {
        "train": [("train/one/0", ("the café",)), ("train/one/1", ("where one eats",))],
        "val": [("val/one/0", ("first",))],
    }


@pytest.mark.parametrize(("text", "counts"), [("auto", (2, 1)), ("all", (2, 2)), ("first", (1, 1))])
def test_how_many_texts_are_asked_is_a_setting(tmp_path, text, counts):
    reasonseg(tmp_path)
    reader = Reader(str(tmp_path), text=text)
    assert tuple(len(references(reader, split)) for split in ("train", "val")) == counts


def test_a_file_without_shapes_has_an_empty_truth_and_is_told(tmp_path):
    reasonseg(tmp_path)
    findings = Findings()
    (one,) = references(Reader(str(tmp_path)), "test", findings)
    assert (one.masks, one.ignore) == ((), ()) and findings.noted[NO_SHAPE].which == ["test/bare"]


def test_outlines_lie_on_the_upright_photo_whatever_size_the_file_says(tmp_path):
    reasonseg(tmp_path)
    (one,) = Reader(str(tmp_path)).photos("val", Findings())
    assert (one.photo.upright, one.photo.height, one.photo.width) == (True, 0, 0)
    assert one.photo.path.name == "one.jpg"


def test_what_is_given_can_be_sent_to_another_process(tmp_path):
    reasonseg(tmp_path)
    before = references(Reader(str(tmp_path)), "val")[0]
    after = pickle.loads(pickle.dumps(before))
    np.testing.assert_array_equal(after.masks[0].mask(HEIGHT, WIDTH), before.masks[0].mask(HEIGHT, WIDTH))


@pytest.mark.parametrize(
    "shapes",
    [
        [{"label": "target", "points": []}],
        [{"label": "target", "points": [[1, 2], [3]]}],
        [{"label": "target", "points": [[1, float("nan")]]}],
        [{"label": None, "points": [[1, 2]]}],
        ["text"],
        {"label": "target"},
    ],
)
def test_a_shape_that_cannot_be_read_loses_the_questions_of_its_photo_alone(tmp_path, shapes):
    reasonseg(tmp_path)
    saved(tmp_path / "val" / "bad.json", {"text": ["what"], "is_sentence": False, "shapes": shapes})
    photo(tmp_path / "val" / "bad.jpg")
    findings = Findings()
    assert [one.id for one in references(Reader(str(tmp_path)), "val", findings)] == ["val/one/0"]
    ((reason, finding),) = findings.lost.items()
    assert reason == BAD_SHAPE and finding.which[0].startswith("val/bad/0 (")


def test_files_that_cannot_be_read_or_ask_nothing_are_told(tmp_path):
    reasonseg(tmp_path)
    (tmp_path / "val" / "a.json").write_bytes(b"{")
    (tmp_path / "val" / "b.json").write_bytes(b"[]")
    (tmp_path / "val" / "c.json").write_bytes(b'{"text": "\x81"}')
    for name, text in (("d", []), ("e", [" "]), ("f", None)):
        saved(tmp_path / "val" / f"{name}.json", {"text": text, "is_sentence": False, "shapes": []})
    saved(tmp_path / "val" / "g.json", {"text": "one text alone", "is_sentence": False, "shapes": []})
    findings = Findings()
    assert [one.id for one in references(Reader(str(tmp_path)), "val", findings)] == ["val/one/0"]
    assert findings.lost[UNREADABLE].count == 3 and findings.lost[NO_TEXT].which == ["val/d", "val/e", "val/f"]
    assert findings.left_out[MISSING].which == ["g.jpg"]


def test_a_line_and_a_point_are_drawn_as_opencv_draws_them(tmp_path):
    shapes = [{"label": "target", "points": [[1, 1], [9, 1]]}, {"label": "target", "points": [[30, 30]]}]
    saved(tmp_path / "val" / "thin.json", {"text": ["line"], "is_sentence": False, "shapes": shapes})
    photo(tmp_path / "val" / "thin.png")
    (one,) = references(Reader(str(tmp_path)), "val")
    np.testing.assert_array_equal(one.masks[0].mask(HEIGHT, WIDTH), block(1, 1, 2, 10) | block(30, 30, 31, 31))


@pytest.mark.parametrize("above", ["", "ReasonSeg", "reason_seg/ReasonSeg"])
def test_the_set_is_found_below_the_folders_of_its_release(tmp_path, above):
    reasonseg(tmp_path / above)
    assert Reader(str(tmp_path)).splits() == ("train", "val", "test")
    assert Reader.recognise(tmp_path).certainty == 3


def test_one_split_alone_and_photos_elsewhere(tmp_path):
    reasonseg(tmp_path / "set")
    folder = tmp_path / "set" / "val"
    (folder / "one.jpg").rename(photo(tmp_path / "photos" / "one.jpg"))
    reader = Reader(str(folder), images=str(tmp_path / "photos"))
    assert reader.splits() == ("val",) and len(references(reader, "val")) == 1


def test_a_folder_of_other_files_is_not_recognised(tmp_path):
    saved(tmp_path / "labelme" / "a.json", {"version": "5", "shapes": [], "text": "", "imagePath": "a.jpg"})
    assert Reader.recognise(tmp_path / "labelme") is None and Reader.recognise(tmp_path / "none") is None
    reasonseg(tmp_path / "data" / "reason")
    with pytest.raises(FileNotFoundError, match=r"train, val or test.*there is reason.*reason has it"):
        Reader(str(tmp_path / "data")).splits()


def test_the_field_that_tells_the_format_may_stand_behind_many_shapes(tmp_path):
    many = [{"label": "target", "points": [[1, 1], [2, 2], [3, 1]], "flags": "x" * 80}] * 2000
    saved(tmp_path / "val" / "a.json", {"shapes": many, "text": ["many"], "is_sentence": True})
    assert (tmp_path / "val" / "a.json").stat().st_size > 3 * 65536 and Reader(str(tmp_path)).splits() == ("val",)


def test_json_in_utf_8_with_a_mark_is_not_read_as_cp1252(tmp_path):
    reasonseg(tmp_path)
    data = {"text": ["naïve"], "is_sentence": False, "shapes": []}
    (tmp_path / "val" / "one.json").write_bytes(json.dumps(data, ensure_ascii=False).encode("utf-8-sig"))
    assert references(Reader(str(tmp_path)), "val")[0].parts == ("naïve",)
