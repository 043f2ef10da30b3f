"""RefCOCO's own files: which sentences are asked of which masks, where photos are found, and what is told."""

import json
import os
import pickle
import shutil

import numpy as np
import pytest
from made_field_sets import (
    CROWD,
    HEIGHT,
    OVERLAPPING,
    SQUARE,
    TRAIN,
    TRIANGLE,
    WIDTH,
    annotation,
    by_pycocotools,
    image,
    instances,
    photo,
    ref,
    refclef,
    refcoco,
)

from envs.readers._image_files import MISSING
from envs.readers._refer import (
    CROWD_TARGET,
    NO_ANNOTATION,
    NO_SENTENCE,
    OTHER_IMAGE,
    REPEATED_REFERENCE,
    UNUSABLE,
)
from envs.readers.base import Findings
from envs.readers.refcoco import Reader


def asked(reader, split, findings=None):
    """(id, words, masks) of each question of a split."""
    photos = reader.photos(split, findings or Findings())
    return [
        (one.id, one.parts, [shape.mask(HEIGHT, WIDTH) for shape in one.masks])
        for each in photos
        for one in each.references
    ]


def test_each_sentence_is_a_question_with_the_mask_of_pycocotools(tmp_path):
    found = asked(Reader(str(refcoco(tmp_path))), "train")
    assert [(question, words) for question, words, _ in found] == [
        ("1/100", ("left cup",)),
        ("1/101", ("the cup!",)),
        ("1/102", ("cup on the left",)),
    ]
    for _, _, (mask,) in found:
        np.testing.assert_array_equal(mask, by_pycocotools(SQUARE))


def test_raw_text_is_as_it_was_typed(tmp_path):
    assert asked(Reader(str(refcoco(tmp_path)), text="raw"), "train")[0][1] == ("Left Cup",)


def test_parts_that_overlap_count_once(tmp_path):
    ((_, _, (mask,)),) = asked(Reader(str(refcoco(tmp_path))), "testA")
    np.testing.assert_array_equal(mask, by_pycocotools(OVERLAPPING))
    alone = [by_pycocotools([part]) for part in OVERLAPPING]
    assert (alone[0] & alone[1]).sum() > 50 and mask.sum() == (alone[0] | alone[1]).sum()


def test_a_joined_split_belongs_to_each_of_its_letters(tmp_path):
    reader = Reader(str(refcoco(tmp_path)))
    assert reader.splits() == ("train", "val", "testA", "testB")
    assert [one[0] for one in asked(reader, "testA")] == ["2/200"]
    assert [one[0] for one in asked(reader, "testB")] == ["2/200", "4/400"]
    with pytest.raises(ValueError, match=r"no split 'testC'.* There are: train, val, testA, testB"):
        list(reader.photos("testC", Findings()))


def test_the_photo_comes_from_the_images_and_not_from_the_reference(tmp_path):
    (one,) = Reader(str(refcoco(tmp_path))).photos("train", Findings())
    assert one.photo.path.name == TRAIN.format(1) and one.photo.path.is_file()
    assert (one.photo.height, one.photo.width, one.photo.licence) == (HEIGHT, WIDTH, "CC-BY-2.0")


def test_what_is_given_can_be_sent_to_another_process(tmp_path):
    (one,) = pickle.loads(pickle.dumps(list(Reader(str(refcoco(tmp_path))).photos("testA", Findings()))))
    np.testing.assert_array_equal(one.references[0].masks[0].mask(HEIGHT, WIDTH), by_pycocotools(OVERLAPPING))


def test_refclef_has_text_ids_and_run_lengths_in_a_list(tmp_path):
    mask = refclef(tmp_path)
    ((question, words, (read,)),) = asked(Reader(str(tmp_path)), "testA")
    assert (question, words) == ("1/100", ("the sky",))
    np.testing.assert_array_equal(read, mask)


@pytest.mark.parametrize(
    ("folder", "photos"),
    [
        ("refer/data/refcoco", "refer/data/images/mscoco/images/train2014"),
        ("refer_seg/refcoco", "refer_seg/images/mscoco/images/train2014"),
        ("refer_seg/refcoco", "refer_seg/images/coco_2014/train2014"),
        ("datasets/refcoco", "datasets/images/train2014"),
        ("datasets/anns/refcoco", "datasets/images/train2014"),
        ("ref_seg/refcoco", "glamm_data/images/coco2014/train2014"),
        ("data/refcoco", "data/coco/train2014"),
        ("refcoco", "train2017"),
    ],
)
def test_photos_are_found_where_each_project_has_them(tmp_path, folder, photos):
    refcoco(tmp_path / folder, photos=None)
    name = TRAIN.format(1) if "2014" in photos else f"{1:012d}.jpg"
    file = photo(tmp_path / photos / name)
    (one,) = Reader(str(tmp_path / folder)).photos("train", Findings())
    assert one.photo.path.resolve() == file.resolve()


def test_photos_of_refclef_are_found_beside_those_of_coco(tmp_path):
    refclef(tmp_path / "refer/data/refclef")
    shutil.move(tmp_path / "refer/data/refclef/saiapr_tc-12", tmp_path / "refer/data/images/saiapr_tc-12")
    assert len(list(Reader(str(tmp_path / "refer/data/refclef")).photos("testA", Findings()))) == 1


def test_a_photo_that_is_missing_is_told_with_the_questions_that_are_lost(tmp_path):
    folder = refcoco(tmp_path)
    os.remove(folder / "images" / TRAIN.format(1))
    findings = Findings()
    assert asked(Reader(str(folder)), "train", findings) == []
    assert findings.left_out[MISSING].which == [TRAIN.format(1)]
    assert findings.lost["questions about a photo that is missing"].which == ["1/100", "1/101", "1/102"]


def test_what_cannot_be_joined_is_lost_by_its_reason_and_nothing_else_is(tmp_path):
    refs = [
        ref(1, 11, 1, ["left cup"]),
        ref(2, 999, 1, ["no such annotation"]),
        ref(3, 11, 77, ["no such image"]),
        ref(4, 14, 1, ["annotation of the other image"]),
        ref(5, 16, 2, ["a sliver"]),
        ref(6, 11, 1, []),
        ref(7, 13, 2, ["the crowd"]),
        ref(1, 11, 1, ["the same id again"]),
        {"split": "train", "image_id": 1, "sentences": [{"sent": "no ids"}]},
    ]
    kept = [
        annotation(11, 1, SQUARE),
        annotation(13, 2, CROWD, iscrowd=1),
        annotation(14, 2, TRIANGLE),
        annotation(16, 2, [[1.6, 1.6, 2.4, 1.6, 2.4, 2.4]]),
    ]
    findings = Findings()
    found = asked(Reader(str(refcoco(tmp_path, refs, annotations=kept))), "train", findings)
    assert [question for question, _, _ in found] == ["1/100", "1 at 7/100", "7/700"]
    assert {reason: finding.which for reason, finding in findings.lost.items()} == {
        NO_ANNOTATION: ["2/200 (annotation 999)"],
        "questions about an image that is not in the file": ["3/300 (image 77)"],
        OTHER_IMAGE: ["4/400 (annotation 14)"],
        f"{UNUSABLE} (annotations that no pixel's centre is in)": ["5/500 (annotation 16)"],
        NO_SENTENCE: ["6"],
        "references that name no annotation and do not say that nothing is meant": ["entry 8/0"],
    }
    assert (findings.noted[CROWD_TARGET].which, findings.noted[REPEATED_REFERENCE].which) == (["7"], ["1"])
    np.testing.assert_array_equal(found[2][2][0], by_pycocotools(CROWD))


def test_ids_of_questions_do_not_depend_on_the_split_that_is_read(tmp_path):
    bare = [
        {"split": split, "ann_id": 11, "image_id": 1, "sentences": ["a", "b"]} for split in ("train", "val", "train")
    ]
    reader = Reader(str(refcoco(tmp_path, bare)))
    assert [one[0] for one in asked(reader, "train")] == ["entry 0/0", "entry 0/1", "entry 2/0", "entry 2/1"]
    assert [one[0] for one in asked(reader, "val")] == ["entry 1/0", "entry 1/1"]


def test_a_wrong_folder_says_what_is_there_and_where_the_set_is(tmp_path):
    refcoco(tmp_path / "refer_seg" / "refcoco+")
    with pytest.raises(FileNotFoundError, match=r"refs\(\.\.\.\)\.p.*there is refcoco\+.*refcoco\+ has it"):
        Reader(str(tmp_path / "refer_seg")).splits()
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        Reader(str(tmp_path / "nowhere")).splits()
    with pytest.raises(FileNotFoundError, match=r"refs\(google\)"):
        Reader(str(tmp_path / "refer_seg" / "refcoco+"), split_by="google").splits()


def test_two_ways_of_splitting_need_a_choice(tmp_path):
    folder = refcoco(tmp_path)
    (folder / "refs(google).p").write_bytes(pickle.dumps([ref(9, 11, 1, ["by google"])], protocol=2))
    with pytest.raises(ValueError, match=r"several ways \(google, unc\); set split_by"):
        Reader(str(folder)).splits()
    assert asked(Reader(str(folder), split_by="google"), "train")[0][0] == "9/900"
    assert asked(Reader(str(folder / "refs(google).p")), "train")[0][0] == "9/900"


def test_masks_without_their_file_are_asked_for_by_name(tmp_path):
    folder = refcoco(tmp_path)
    os.remove(folder / "instances.json")
    with pytest.raises(
        FileNotFoundError, match=r"instances\.json: no such file; it holds the masks that refs\(unc\)\.p"
    ):
        list(Reader(str(folder)).photos("train", Findings()))


def test_the_folder_is_recognised_by_its_file_of_references(tmp_path):
    found = Reader.recognise(refcoco(tmp_path / "refcoco"))
    assert found and found.certainty == 3 and "refs(unc).p" in found.what
    assert Reader.recognise(tmp_path) is None and Reader.recognise(tmp_path / "none") is None


def test_run_lengths_of_another_size_lose_the_question_with_that_reason(tmp_path):
    kept = [annotation(11, 1, {"size": [WIDTH, HEIGHT], "counts": [WIDTH * HEIGHT]}), annotation(14, 2, TRIANGLE)]
    findings = Findings()
    refs = [ref(1, 11, 1, ["turned"]), ref(2, 14, 2, ["tent"])]
    assert [one[0] for one in asked(Reader(str(refcoco(tmp_path, refs, annotations=kept))), "train", findings)] == [
        "2/200"
    ]
    ((reason, finding),) = findings.lost.items()
    assert "run lengths of another size than the image" in reason and finding.which == ["1/100 (annotation 11)"]


def test_instances_json_may_list_images_that_nothing_asks_about(tmp_path):
    folder = refcoco(tmp_path)
    data = json.loads((folder / "instances.json").read_text())
    instances(folder, data["annotations"], [*data["images"], image(3, TRAIN.format(3))])
    findings = Findings()
    assert len(asked(Reader(str(folder)), "train", findings)) == 3
    assert findings.as_json() == {"lost": {}, "left_out": {}, "noted": {}}
