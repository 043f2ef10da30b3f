"""YOLO segmentation: lines that are polygons, boxes or neither, where folders lie, and what six digits cost."""

import numpy as np
import pytest
from made_user_files import box_mask, counts, lost_ids, num_exact, read_back, two_photos, write_yolo

from envs.readers.base import Findings
from envs.readers.yolo_seg import OUTSIDE, Reader, UnitPolygon

A, B = two_photos()


def asked(path, split="train", **settings):
    findings = Findings()
    return [
        one for given in Reader(str(path), **settings).photos(split, findings) for one in given.references
    ], findings


def with_lines(folder, *lines):
    write_yolo(folder, (A,))
    (folder / "labels/train/a.txt").write_text("\n".join(lines))
    return folder


def test_polygons_are_read_back_exact_and_photos_are_upright(tmp_path):
    write_yolo(tmp_path, (A, B))
    for path in (tmp_path, tmp_path / "data.yaml"):
        found, findings = read_back(Reader(str(path)), (A, B))
        assert [(photo.name, label, len(read)) for photo, label, _, read in found] == [
            ("a.png", "cup", 2),
            ("b.png", "dog", 1),
        ]
        assert num_exact(found) == 3 and findings.as_json() == Findings().as_json()
    (given, _) = Reader(str(tmp_path)).photos("train", Findings())
    assert (given.photo.upright, given.photo.height) == (True, 0)


def test_a_line_of_five_numbers_is_a_box_and_costs_its_class(tmp_path):
    found, findings = asked(with_lines(tmp_path, "0 0.5 0.5 0.2 0.2", "1 0 0 0.5 0 0.5 0.5"))
    assert [one.parts for one in found] == [("dog",)]
    assert counts(findings.left_out) == {"annotations without a mask (box alone)": 1} and findings.num_lost == 1


@pytest.mark.parametrize(
    ("line", "lost"),
    [
        ("0 0.1 0.1 0.5 0.1 0.5 0.5 0.9", 1),
        ("0 0.1 0.1 nan 0.1 0.5 0.5", 1),
        ("0 0.1 0.1 inf 0.1 0.5 0.5", 1),
        ("0 0.1 0.1", 1),
        ("0", 1),
        ("0 300 300 400 300 400 400", 1),
        ("7 0.1 0.1 0.5 0.1 0.5 0.5", 0),
        ("0.5 0.1 0.1 0.5 0.1 0.5 0.5", 0),
        ("cup 0.1 0.1 0.5 0.1 0.5 0.5", 0),
    ],
)
def test_a_bad_line_is_told_and_stops_no_other(tmp_path, line, lost):
    found, findings = asked(with_lines(tmp_path, line, "", "1 0 0 0.5 0 0.5 0.5"))
    assert [one.id for one in found] == ["a/3"]
    assert sum(counts(findings.left_out).values()) == 1 and findings.num_lost == lost


def test_what_reaches_out_of_the_photo_is_cut_off_and_noted(tmp_path):
    (cup,), findings = asked(with_lines(tmp_path, "0 -0.2 -0.2 0.2 -0.2 0.2 1.5 -0.2 1.5"))
    np.testing.assert_array_equal(cup.masks[0].mask(8, 10), box_mask(8, 10, 0, 0, 2, 8))
    assert counts(findings.noted) == {OUTSIDE: 1}


def test_a_polygon_fits_the_photo_at_whatever_size_it_is():
    square = UnitPolygon(np.array([[0.25, 0.25], [0.75, 0.25], [0.75, 0.75], [0.25, 0.75]]))
    assert [square.mask(side, 2 * side).sum() for side in (4, 8, 400)] == [8, 32, 80_000]


def test_parts_joined_by_a_bridge_of_no_width_fill_as_two(tmp_path):
    bridge = "0 0 0 0.2 0 0.2 0.25 0 0.25 0 0 0.5 0.5 0.7 0.5 0.7 0.75 0.5 0.75 0.5 0.5 0 0"
    (cup,), _ = asked(with_lines(tmp_path, bridge))
    expected = box_mask(8, 10, 0, 0, 2, 2) | box_mask(8, 10, 5, 4, 7, 6)
    assert (cup.masks[0].mask(8, 10) ^ expected).sum() == 0


@pytest.mark.parametrize(
    "yaml",
    [
        "train: images/train\nval: images/val\n",
        "path: .\ntrain: images/train\nval: [images/val]\n",
        "path: /content/set\ntrain: images/train\nval: images/val\n",
        "train: /content/set/images/train\nval: ../images/val\n",
        "nc: 2\n",
    ],
)
def test_splits_are_found_where_the_yaml_says_or_beside_it(tmp_path, yaml):
    write_yolo(tmp_path, (A, B), "train", yaml)
    write_yolo(tmp_path, (A, B), "val", yaml)
    reader = Reader(str(tmp_path))
    assert reader.splits() == ("train", "val")
    assert num_exact(read_back(reader, (A, B), "val")[0]) == 3


def test_roboflows_folders_a_list_of_photos_and_a_list_of_classes(tmp_path):
    write_yolo(tmp_path / "one", (A, B), yaml="train: ../train/images\n")
    (tmp_path / "one/train").mkdir()
    for kind in ("images", "labels"):
        (tmp_path / "one" / kind / "train").rename(tmp_path / "one/train" / kind)
    write_yolo(tmp_path / "two", (A, B), yaml="train: list.txt\n")
    (tmp_path / "two/list.txt").write_text("images/train/a.png\n")
    write_yolo(tmp_path / "three", (A, B))
    (tmp_path / "three/data.yaml").unlink()
    (tmp_path / "three/classes.txt").write_text("cup\ndog\n")
    numbers = [num_exact(read_back(Reader(str(tmp_path / name)), (A, B))[0]) for name in ("one", "two", "three")]
    assert numbers == [3, 2, 3]


def test_names_may_be_a_list_or_a_mapping(tmp_path):
    write_yolo(tmp_path, (A, B))
    (tmp_path / "data.yaml").write_text("names: [mug, hound]\n")
    assert [one.parts for one in asked(tmp_path)[0]] == [("mug",), ("hound",)]
    (tmp_path / "data.yaml").write_text("names: {'1': hound}\n")
    found, findings = asked(tmp_path)
    assert [one.parts for one in found] == [("hound",)] and sum(counts(findings.left_out).values()) == 2


def test_a_label_file_without_its_photo_loses_its_questions(tmp_path):
    write_yolo(tmp_path, (A, B))
    (tmp_path / "images/train/a.png").rename(tmp_path / "a.png")
    found, findings = asked(tmp_path)
    assert len(found) == 1 and lost_ids(findings) == ["a/1+2"]
    (found,) = Reader(str(tmp_path), images=str(tmp_path)).photos("train", Findings())
    assert found.photo.path == tmp_path / "a.png"


def test_a_yaml_that_is_none_or_has_no_labels_is_no_data_set(tmp_path):
    write_yolo(tmp_path / "set", (A, B))
    assert Reader.recognise(tmp_path / "set").certainty == 3
    with pytest.raises(FileNotFoundError, match=r"is not a YOLO data set .*set has it; give that"):
        Reader(str(tmp_path / "set/images")).splits()
    (tmp_path / "set/data.yaml").write_text("names: [cup\n  - x: {")
    with pytest.raises(FileNotFoundError, match="is not a YOLO data set"):
        Reader(str(tmp_path / "set")).splits()
    assert Reader.recognise(tmp_path) is None


def test_six_digits_of_a_vertex_move_no_mask_by_more_than_its_rim():
    ring = np.random.default_rng(0).uniform(0, 1, (40, 2))
    written = np.array([[float(f"{number:g}") for number in point] for point in ring])
    assert np.abs(written - ring).max() <= 5e-7
    both = [UnitPolygon(points).mask(480, 640) for points in (ring, written)]
    assert (both[0] ^ both[1]).sum() <= 20
