"""Label Studio: its run lengths against a slow reading of the bits, percent, labels, and tasks that are not whole."""

import json

import numpy as np
import pytest
from made_label_studio import brush_rle, studio_region, studio_task, write_label_studio
from made_user_files import (
    Drawn,
    Photo,
    box_mask,
    counts,
    lost_ids,
    num_exact,
    read_back,
    two_photos,
    write_json,
)

from envs.readers._brush_rle import brush_shape
from envs.readers.base import Findings
from envs.readers.label_studio import Reader

A, B = two_photos()
SQUARE = [[10, 12.5], [40, 12.5], [40, 50], [10, 50]]
"""A cup of 3 x 3 pixels of the photo of 10 x 8."""


def read(folder, *regions, **more):
    """(references, findings) of one task with some regions; `more` of the annotation."""
    A.save(folder)
    write_json(folder / "tasks.json", [studio_task(1, A, list(regions), **more)])
    return asked(folder)


def asked(path, **settings):
    findings = Findings()
    found = [one for given in Reader(str(path), **settings).photos("train", findings) for one in given.references]
    return found, findings


def polygon(points=None, label="cup", region_id="r1", **more):
    value = {"points": SQUARE if points is None else points, "polygonlabels": [label], "closed": True}
    return studio_region(A, "polygonlabels", value, region_id, **more)


def brush(rle, label="dog", region_id="r2", **more):
    return studio_region(A, "brushlabels", {"format": "rle", "rle": rle, "brushlabels": [label]}, region_id, **more)


def slow_alpha(data, height, width):
    """What has alpha, by a slow reading of the bits one after the other."""
    bits = "".join(f"{byte:08b}" for byte in data)
    place = 0

    def take(num):
        nonlocal place
        place += num
        return int(bits[place - num : place], 2)

    num, word, sizes = take(32), take(5) + 1, [take(4) + 1 for _ in range(4)]
    values = []
    while len(values) < num:
        repeated, size = take(1), sizes[take(2)]
        length = take(size) + 1
        values += [take(word)] * length if repeated else [take(word) for _ in range(length)]
    return np.reshape(values, (height, width, 4))[:, :, 3] > 0


def test_brush_masks_and_polygons_are_read_back_exact(tmp_path):
    for brush_only in (True, False):
        write_label_studio(tmp_path / f"{brush_only}", (A, B), brush_only)
        found, findings = read_back(Reader(str(tmp_path / f"{brush_only}")), (A, B))
        assert num_exact(found) == 4 and findings.as_json() == Findings().as_json()


@pytest.mark.parametrize("colour", [(255, 255, 255, 255), (30, 144, 255, 127), (0, 0, 0, 1)])
@pytest.mark.parametrize("sizes", [(3, 4, 8, 16), (1, 2, 3, 7)])
def test_bits_are_unpacked_as_a_slow_reading_has_them(colour, sizes):
    mask = np.random.default_rng(1).random((13, 17)) < 0.3
    packed = bytes(brush_rle(mask, colour, sizes))
    shape, num_on = brush_shape(packed, 13, 17)
    np.testing.assert_array_equal(slow_alpha(packed, 13, 17), mask)
    np.testing.assert_array_equal(shape.mask(13, 17), mask)
    assert num_on == mask.sum()


def test_the_first_bytes_of_a_real_export_are_those_of_a_photo_of_3332_by_2527_that_begins_empty():
    real = [2, 1, 233, 240, 57, 27, 255, 255, 255, 0, 255, 255, 224, 31, 255, 252, 3, 255, 255, 128, 127, 255, 240, 15]
    assert brush_rle(np.zeros((2527, 3332), bool))[: len(real)] == real


def test_colour_without_alpha_is_off():
    assert brush_shape(bytes(brush_rle(np.ones((3, 5), bool), (255, 255, 255, 0))), 3, 5)[1] == 0


@pytest.mark.parametrize("cut", [0, 3, 6, 20, -1])
def test_a_stream_that_is_cut_off_or_of_another_photo_is_refused(cut):
    packed = bytes(brush_rle(np.eye(20, dtype=bool), (1, 2, 3, 4)))
    with pytest.raises(ValueError, match="brush RLE"):
        brush_shape(packed[:cut], 20, 20)
    with pytest.raises(ValueError, match=r"brush RLE of 1600 values, not 4 for each of 10 x 20"):
        brush_shape(packed, 20, 10)


def test_percent_are_of_the_photo_and_numbers_may_reach_out_of_it(tmp_path):
    (cup,), _ = read(tmp_path, polygon())
    np.testing.assert_array_equal(cup.masks[0].mask(8, 10), box_mask(8, 10, 1, 1, 4, 4))
    (cup,), _ = read(tmp_path, polygon([[-10, -10], [20, -10], [20, 150], [-10, 150]]))
    np.testing.assert_array_equal(cup.masks[0].mask(8, 10), box_mask(8, 10, 0, 0, 2, 8))


@pytest.mark.parametrize(
    "bad",
    [
        polygon([[10, 10], [float("nan"), 20], [30, 30]]),
        polygon([[10, 10], "point", [30, 30]]),
        polygon(image_rotation=90),
        polygon(original_width=77),
        brush([1, 2, 3], "cup"),
        brush([256], "cup"),
        brush("text", "cup"),
        studio_region(A, "rectanglelabels", {"x": 1, "y": 1, "width": 9, "height": 9, "rectanglelabels": ["cup"]}),
        studio_region(A, "ellipselabels", {"x": 1, "y": 1, "radiusX": 9, "radiusY": 9, "ellipselabels": ["cup"]}),
    ],
)
def test_what_cannot_be_drawn_costs_its_label_alone(tmp_path, bad):
    found, findings = read(tmp_path, brush(brush_rle(A.objects[2].mask)), bad)
    assert [one.parts for one in found] == [("dog",)]
    assert sum(counts(findings.left_out).values()) == 1 and findings.num_lost == 1


def test_a_label_may_be_an_entry_of_its_own_and_there_may_be_two(tmp_path):
    plain = studio_region(A, "polygon", {"points": SQUARE}, "x")
    label = studio_region(A, "labels", {"points": SQUARE, "labels": ["cup", "mug"]}, "x")
    choice = studio_region(A, "choices", {"choices": ["unsure"]}, "x")
    found, findings = read(tmp_path, plain, label, choice)
    assert [(one.id, one.parts) for one in found] == [("1/x", ("cup",)), ("1/x.1", ("mug",))]
    found, findings = read(tmp_path, plain)
    assert found == [] and counts(findings.left_out) == {"objects without a class, which nothing asks for": 1}


def test_cancelled_annotations_are_passed_over_and_the_ground_truth_is_taken(tmp_path):
    task = studio_task(1, A, [polygon(label="first")], was_cancelled=True)
    task["annotations"] += studio_task(2, A, [polygon(label="second")])["annotations"]
    task["annotations"] += studio_task(3, A, [polygon(label="third")], ground_truth=True)["annotations"]
    A.save(tmp_path)
    write_json(tmp_path / "tasks.json", [task])
    (one,), findings = asked(tmp_path)
    assert one.parts == ("third",)
    assert counts(findings.left_out) == {"annotations that were cancelled": 1} and len(findings.noted) == 1


@pytest.mark.parametrize(
    "address",
    [
        "/data/upload/7/1a2b3c4d-a.png",
        "a.png",
        "https://example.org/some/where/a.png?size=2",
        "/data/local-files/?d=set/one/a.png",
        "s3://bucket/1a2b3c4d-a.png",
        "C:\\photos\\a.png",
    ],
)
def test_a_photo_is_found_by_the_last_part_of_its_address(tmp_path, address):
    A.save(tmp_path / "elsewhere")
    write_json(tmp_path / "tasks.json", [studio_task(1, A, [polygon()], address)])
    (given,) = Reader(str(tmp_path), images=str(tmp_path / "elsewhere")).photos("train", Findings())
    assert given.photo.path == tmp_path / "elsewhere/a.png"
    assert (given.photo.height, given.photo.width, given.photo.upright) == (8, 10, True)


def test_a_photo_that_is_missing_loses_its_questions_alone(tmp_path):
    write_label_studio(tmp_path, (A, B))
    (tmp_path / "images/a.png").unlink()
    found, findings = asked(tmp_path)
    assert [one.id for one in found] == ["2/r0"]
    assert lost_ids(findings) == ["1/r0+r1", "1/r2"]


def test_empty_brushes_broken_tasks_and_tasks_of_text_stop_nothing(tmp_path):
    write_label_studio(tmp_path, (B,))
    tasks = json.loads((tmp_path / "project-1.json").read_text())
    empty = studio_task(8, B, [studio_region(B, "brushlabels", {"rle": brush_rle(np.zeros((8, 10), bool))})])
    write_json(tmp_path / "project-1.json", [*tasks, "no task", {"id": 4}, {"annotations": [{"result": 3}]}, empty])
    found, findings = asked(tmp_path)
    assert len(found) == 1
    assert sum(counts(findings.left_out).values()) == 3


def test_half_a_file_several_exports_and_wrong_folders_are_refused(tmp_path):
    write_label_studio(tmp_path / "set", (A, B))
    file = tmp_path / "set/project-1.json"
    (tmp_path / "set/second.json").write_text(file.read_text())
    with pytest.raises(ValueError, match=r"several exports \(project-1.json, second.json\); give one"):
        Reader(str(tmp_path / "set")).splits()
    file.write_text(file.read_text()[:500])
    with pytest.raises(ValueError, match="is not JSON"):
        asked(file)
    with pytest.raises(FileNotFoundError, match=r"there is a.png, b.png; .*set has it"):
        Reader(str(tmp_path / "set/images")).splits()
    assert Reader.recognise(tmp_path / "set").certainty == 3


def test_a_large_brush_mask_of_one_run_and_one_pixel(tmp_path):
    mask = np.zeros((600, 800), bool)
    mask[599, 799] = True
    photo = Photo("large.png", 600, 800, (Drawn("dot", mask),))
    write_label_studio(tmp_path, (photo,))
    assert num_exact(read_back(Reader(str(tmp_path)), (photo,))[0]) == 1
