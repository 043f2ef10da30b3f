"""RefCOCO-M: every sentence of every sample, photos of COCO where they are, else those in the files."""

import numpy as np
import pytest
from made_field_sets import HEIGHT, TRAIN, WIDTH, block, parquet, photo, refcoco_m_rows, run_lengths

from envs.readers._image_files import MISSING
from envs.readers._parquet_rows import PACKED, UNREADABLE, photo_name, split_files
from envs.readers._refer import NO_SENTENCE
from envs.readers.base import Findings
from envs.readers.refcoco_m import Reader


def made(tmp_path, rows=None):
    rows = refcoco_m_rows(tmp_path / "scratch") if rows is None else rows
    parquet(tmp_path / "set" / "data" / "validation-00000-of-00002.parquet", rows[:1])
    parquet(tmp_path / "set" / "data" / "validation-00001-of-00002.parquet", rows[1:] or rows[:1])
    return str(tmp_path / "set")


def test_each_sentence_of_each_sample_is_a_question_with_its_mask(tmp_path):
    reader = Reader(made(tmp_path), images=str(tmp_path / "scratch"))
    assert reader.splits() == ("validation",)
    first, second = reader.photos("validation", Findings())
    assert [(one.id, one.parts[0]) for one in (*first.references, *second.references)] == [
        ("1/501/0", "left cup"),
        ("1/501/1", "the cup"),
        ("1/502/0", "plate"),
        ("2/503/0", "edge"),
    ]
    np.testing.assert_array_equal(first.references[1].masks[0].mask(HEIGHT, WIDTH), block(2, 3, 9, 30))
    np.testing.assert_array_equal(first.references[2].masks[0].mask(HEIGHT, WIDTH), block(20, 20, 30, 50))
    assert (first.photo.height, first.photo.width, first.photo.path.name) == (HEIGHT, WIDTH, TRAIN.format(1))


def test_photos_in_the_files_alone_are_lost_until_there_is_a_folder_for_them(tmp_path):
    folder = made(tmp_path)
    findings = Findings()
    assert list(Reader(folder).photos("validation", findings)) == []
    assert findings.lost[PACKED].count == 4
    unpack, findings = tmp_path / "unpacked", Findings()
    first, second = Reader(folder, unpack=str(unpack)).photos("validation", findings)
    assert not findings.lost and sorted(file.name for file in unpack.iterdir()) == [TRAIN.format(1), TRAIN.format(2)]
    assert first.photo.path.read_bytes() == (tmp_path / "scratch" / TRAIN.format(1)).read_bytes()
    assert second.photo.path == unpack / TRAIN.format(2)


def test_photos_of_coco_are_preferred(tmp_path):
    folder = made(tmp_path)
    file = photo(tmp_path / "train2014" / TRAIN.format(2))
    first, second = Reader(folder, unpack=str(tmp_path / "unpacked")).photos("validation", Findings())
    assert second.photo.path.resolve() == file.resolve() and first.photo.path.parent.name == "unpacked"


def test_a_sample_without_a_sentence_or_with_a_mask_of_another_size_is_told(tmp_path):
    rows = refcoco_m_rows(tmp_path / "scratch")
    rows[0]["samples"][0]["sentences"] = []
    rows[0]["samples"][1]["mask"] = run_lengths(np.ones((7, 9), bool))
    rows[1]["samples"][0]["mask"] = run_lengths(np.zeros((HEIGHT, WIDTH), bool))
    findings = Findings()
    photos = Reader(made(tmp_path, rows), images=str(tmp_path / "scratch")).photos("validation", findings)
    assert list(photos) == []
    assert findings.lost[NO_SENTENCE].which == ["1/501"]
    assert sorted(which for finding in findings.lost.values() for which in finding.which) == [
        "1/501",
        "1/502/0",
        "2/503/0",
    ]


def test_rows_of_one_photo_are_one_photo(tmp_path):
    rows = refcoco_m_rows(tmp_path / "scratch")
    rows[1] = rows[0] | {"samples": [rows[0]["samples"][0] | {"id": 900}]}
    (one,) = Reader(made(tmp_path, rows), images=str(tmp_path / "scratch")).photos("validation", Findings())
    assert [each.id for each in one.references] == ["1/501/0", "1/501/1", "1/502/0", "1/900/0", "1/900/1"]


def test_a_damaged_file_is_told_and_the_others_are_read(tmp_path):
    folder = made(tmp_path)
    (tmp_path / "set" / "data" / "validation-00001-of-00002.parquet").write_bytes(b"PAR1 cut off")
    findings = Findings()
    (one,) = Reader(folder, images=str(tmp_path / "scratch")).photos("validation", findings)
    assert one.photo.id == "1" and findings.left_out[UNREADABLE].count == 1


def test_a_photo_that_is_in_no_place_is_told(tmp_path):
    rows = [row | {"image": {"bytes": None, "path": "x"}} for row in refcoco_m_rows(tmp_path / "scratch")]
    findings = Findings()
    assert list(Reader(made(tmp_path, rows), unpack=str(tmp_path / "u")).photos("validation", findings)) == []
    assert findings.left_out[MISSING].count == 2 and findings.num_lost == 4


def test_other_parquet_files_are_not_recognised(tmp_path):
    parquet(tmp_path / "other" / "train.parquet", [{"a": 1}])
    assert Reader.recognise(tmp_path / "other") is None and Reader.recognise(tmp_path / "none") is None
    made(tmp_path)
    assert Reader.recognise(tmp_path / "set").certainty == 3
    with pytest.raises(FileNotFoundError, match=r"image_id, file_name, samples.*set has it"):
        Reader(str(tmp_path)).splits()


def test_splits_are_told_by_the_names_of_files(tmp_path):
    for name in ("train-00000-of-00001-1f2e3d.parquet", "testA.parquet", "validation/0000.parquet"):
        parquet(tmp_path / "set" / name, [{"a": 1}])
    assert sorted(split_files(tmp_path / "set")) == ["testA", "train"]
    assert sorted(split_files(tmp_path / "set" / "validation")) == ["validation"]


def test_a_photo_goes_by_its_name_without_the_object():
    assert photo_name("COCO_train2014_000000581857_16.jpg") == "COCO_train2014_000000581857.jpg"
    assert photo_name("COCO_train2014_000000581857.jpg") == "COCO_train2014_000000581857.jpg"
    assert photo_name("8756_2.jpg") == "8756_2.jpg"
