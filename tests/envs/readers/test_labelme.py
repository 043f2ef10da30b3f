"""labelme: what its shapes cover, photos that a phone turned, parts of one object, and files that are not whole."""

import base64
import json

import numpy as np
import pytest
from made_user_files import (
    brush_blob,
    counts,
    drawn_box,
    labelme_brush,
    labelme_file,
    labelme_shape,
    lost_ids,
    png_text,
    read_back,
    save_phone_photo,
    two_photos,
    write_json,
    write_labelme,
)

from envs.geometry.masks import iou
from envs.readers._labelme_shapes import labelme_shape as drawn_shape
from envs.readers.base import Findings
from envs.readers.labelme import Reader

A, B = two_photos()


def read(folder, *shapes, photo=A, **more):
    """(references, findings) of one label file with some shapes; settings of the file in `more`."""
    photo.save(folder)
    write_json(folder / f"{photo.stem}.json", labelme_file(photo, list(shapes), **more))
    findings = Findings()
    return [one for given in Reader(str(folder)).photos("train", findings) for one in given.references], findings


def mask_of(folder, *shapes):
    (one,), _ = read(folder, *shapes)
    assert len(one.masks) == 1
    return one.masks[0].mask(8, 10)


def test_brush_masks_are_exact_and_polygons_have_the_pixels_of_their_outline(tmp_path):
    write_labelme(tmp_path, (A, B))
    found, _ = read_back(Reader(str(tmp_path)), (A, B))
    of_label = {(photo.name, label): (expected, read) for photo, label, expected, read in found}
    np.testing.assert_array_equal(*of_label["a.png", "dog"][0], *of_label["a.png", "dog"][1])
    (cup, low), drawn = of_label["a.png", "cup"]
    assert (cup.sum(), drawn[0].sum()) == (3 * 3, 4 * 4)  # the right and the lower edge are drawn too
    assert (low.sum(), drawn[1].sum()) == (4 * 3, 5 * 3)  # and cut off at the edge of the photo


def test_a_polygon_is_what_pillow_draws_with_its_outline(tmp_path):
    points = [[1.0, 1.0], [8.0, 1.0], [1.0, 6.0]]
    mask = mask_of(tmp_path, labelme_shape("cup", points))
    assert mask[1, 1:9].all() and mask[1:7, 1].all() and not mask[0].any() and not mask[:, 0].any()
    assert mask.sum() == 27  # the triangle has an area of 17.5 pixels


def test_rectangles_circles_and_turned_rectangles_are_objects(tmp_path):
    box = mask_of(tmp_path, labelme_shape("cup", [[6, 5], [2, 1]], "rectangle"))
    assert box[1:6, 2:7].all() and box.sum() == 5 * 5
    disc = mask_of(tmp_path, labelme_shape("cup", [[4, 4], [4, 6]], "circle"))
    assert disc[2:7, 4].all() and disc[4, 2:7].all() and not disc[2, 2] and disc.sum() == 21
    turned = mask_of(tmp_path, labelme_shape("cup", [[4, 0], [8, 4], [4, 7], [1, 4]], "oriented_rectangle"))
    assert turned[4, 1:9].all()


def test_four_corners_of_a_rectangle_are_read_as_two(tmp_path):
    four = mask_of(tmp_path, labelme_shape("cup", [[2, 1], [6, 1], [6, 5], [2, 5]], "rectangle"))
    np.testing.assert_array_equal(four, mask_of(tmp_path, labelme_shape("cup", [[2, 1], [6, 5]], "rectangle")))


def test_shapes_of_one_label_and_group_are_one_object(tmp_path):
    shapes = [
        labelme_shape("cup", [[x, 1], [x + 1, 2]], "rectangle", group) for x, group in ((0, 4), (3, 4), (6, None))
    ]
    other = labelme_shape("dog", [[0, 5], [1, 6]], "rectangle", 4)
    (cups, dog), _ = read(tmp_path, *shapes, other)
    assert [mask.mask(8, 10).sum() for mask in cups.masks] == [8, 4]
    assert (cups.id, dog.id) == ("a/0.1+2", "a/3")


def test_lines_points_and_the_background_are_left_out_and_counted(tmp_path):
    shapes = [labelme_shape("cup", [[1, 1], [5, 5]], kind) for kind in ("line", "linestrip", "points")]
    shapes += [labelme_shape("_background_", [[0, 0], [9, 0], [9, 7]])]
    found, findings = read(tmp_path, *shapes, labelme_shape("dog", [[1, 1], [5, 5]], "rectangle"))
    assert [one.parts for one in found] == [("dog",)]
    assert sum(counts(findings.left_out).values()) == 4 and findings.num_lost == 0


def test_an_ignored_region_counts_neither_way_for_every_label(tmp_path):
    ignored = labelme_shape("__ignore__", [[0, 0], [3, 3]], "rectangle")
    found, _ = read(tmp_path, ignored, *(labelme_shape(name, [[5, 5], [7, 7]], "rectangle") for name in ("cup", "dog")))
    assert [one.ignore[0].mask(8, 10).sum() for one in found] == [16, 16]


@pytest.mark.parametrize(
    "bad",
    [
        {"points": [[1, 1], [float("nan"), 2], [3, 3]]},
        {"points": [[1, 1], [2, 2]]},
        {"points": None},
        {"shape_type": "spline"},
        {"shape_type": "mask", "mask": None, "points": [[0, 0], [2, 2]]},
        {"shape_type": "circle", "points": [[1, 1]]},
    ],
)
def test_a_shape_that_cannot_be_drawn_costs_its_label_alone(tmp_path, bad):
    broken = labelme_shape("cup", [[1, 1], [5, 1], [5, 5]]) | bad
    found, findings = read(tmp_path, broken, labelme_shape("dog", [[1, 1], [5, 5]], "rectangle"))
    assert [one.parts for one in found] == [("dog",)]
    assert counts(findings.left_out) == {"shapes that cannot be drawn": 1} and findings.num_lost == 1


def test_a_brush_mask_whose_picture_is_damaged_says_so_when_it_is_drawn(tmp_path):
    whole = labelme_brush(brush_blob("dog"))
    half = base64.b64encode(base64.b64decode(whole["mask"])[:40]).decode()
    (dog,), _ = read(tmp_path, whole | {"mask": half})
    with pytest.raises(ValueError, match="picture of a brush mask is cut off, damaged"):
        dog.masks[0].mask(8, 10)


def test_a_moved_brush_mask_keeps_its_size_and_whole_corners_cut_it(tmp_path):
    picture = png_text(np.ones((3, 4), np.uint8))
    moved = mask_of(tmp_path, labelme_shape("cup", [[1.4, 1.6], [3.6, 3.4]], "mask", mask=picture))
    assert moved[2:5, 1:5].all() and moved.sum() == 12
    cut = mask_of(tmp_path, labelme_shape("cup", [[1, 2], [2, 3]], "mask", mask=picture))
    assert cut[2:4, 1:3].all() and cut.sum() == 4
    outside = mask_of(tmp_path, labelme_shape("cup", [[-2, -1], [1, 1]], "mask", mask=picture))
    assert outside[:2, :2].all() and outside.sum() == 4


def test_a_photo_whose_recorded_size_is_that_as_stored_is_taken_so_and_noted(tmp_path):
    photo = save_phone_photo(tmp_path)
    write_json(tmp_path / "phone.json", labelme_file(photo, [labelme_shape("cup", [[1, 1], [8, 6]], "rectangle")]))
    (given,) = Reader(str(tmp_path)).photos("train", Findings())
    assert (given.photo.upright, given.photo.height, given.photo.width) == (True, 10, 8)
    data = labelme_file(photo, [labelme_shape("cup", [[1, 1], [8, 6]], "rectangle")], imageHeight=8, imageWidth=10)
    write_json(tmp_path / "phone.json", data)
    findings = Findings()
    (given,) = Reader(str(tmp_path)).photos("train", findings)
    assert (given.photo.upright, given.photo.height, given.photo.width) == (False, 8, 10)
    assert len(findings.noted) == 1


def test_a_photo_of_another_size_than_was_recorded_loses_its_questions(tmp_path):
    found, findings = read(
        tmp_path, labelme_shape("cup", [[1, 1], [5, 5]], "rectangle"), imageHeight=80, imageWidth=100
    )
    assert found == [] and lost_ids(findings) == ["a/0"]


def test_windows_paths_lead_to_the_photo_and_one_that_is_only_embedded_is_told(tmp_path):
    shape = labelme_shape("cup", [[1, 1], [5, 5]], "rectangle")
    A.save(tmp_path / "photos")
    write_json(tmp_path / "json" / "a.json", labelme_file(A, [shape], imagePath="..\\photos\\a.png"))
    (given,) = Reader(str(tmp_path / "json")).photos("train", Findings())
    assert given.photo.path.resolve() == tmp_path / "photos/a.png"
    write_json(tmp_path / "json" / "a.json", labelme_file(A, [shape], imagePath="gone.png", imageData="iVBORw0KGgo="))
    findings = Findings()
    assert list(Reader(str(tmp_path / "json")).photos("train", findings)) == []
    ((reason, finding),) = findings.lost.items()
    assert "only inside its label file" in reason and finding.count == 1


def test_a_photo_that_imagepath_does_not_name_is_found_by_the_name_of_its_label_file(tmp_path):
    shape = labelme_shape("cup", [[1, 1], [5, 5]], "rectangle")
    for wrong in ("a.json", "renamed.jpg", ""):  # old versions of labelme wrote the label file's own name
        A.save(tmp_path)
        write_json(tmp_path / "a.json", labelme_file(A, [shape], imagePath=wrong, imageData="iVBORw0KGgo="))
        findings = Findings()
        (given,) = Reader(str(tmp_path)).photos("train", findings)
        assert given.photo.path == tmp_path / "a.png" and findings.num_lost == 0
        ((reason, finding),) = findings.noted.items()
        assert "not what imagePath names" in reason and finding.count == 1 and "a.png" in finding.which[0]


def test_folders_are_splits_and_half_a_file_stops_no_other(tmp_path):
    write_labelme(tmp_path / "train", (A, B))
    write_labelme(tmp_path / "valid", (B,))
    (tmp_path / "train/b.json").write_text((tmp_path / "train/b.json").read_text()[:100])
    (tmp_path / "train/c.json").write_text(json.dumps({"shapes": "none"}))
    reader, findings = Reader(str(tmp_path)), Findings()
    assert reader.splits() == ("train", "val")
    assert [given.photo.id for given in reader.photos("train", findings)] == ["train/a"]
    assert sum(counts(findings.left_out).values()) == 2
    assert Reader.recognise(tmp_path).certainty == 3


def test_one_file_is_a_data_set_and_a_folder_without_any_is_refused(tmp_path):
    write_labelme(tmp_path / "set", (A, B))
    assert len(list(Reader(str(tmp_path / "set/a.json")).photos("train", Findings()))) == 1
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"is not a folder of labelme's label files .* there is nothing"):
        Reader(str(tmp_path / "empty")).splits()
    assert Reader.recognise(tmp_path / "empty") is None


def test_the_outline_makes_a_square_a_pixel_larger_and_a_large_one_hardly_so():
    square = drawn_box("cup", 10, 10, 90, 90, size=(100, 100))
    shape = labelme_shape("cup", np.reshape(square.rings[0], (-1, 2)).tolist())
    drawn = drawn_shape(shape).mask(100, 100)
    assert drawn.sum() == 81 * 81 and iou(drawn, square.mask) == pytest.approx(6400 / 6561)
