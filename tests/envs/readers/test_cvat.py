"""CVAT's two exports: brush objects, subsets, boxes, the run lengths of its XML, and files that are not whole."""

import json

import numpy as np
import pytest
from made_user_files import (
    Drawn,
    Photo,
    counts,
    num_exact,
    read_back,
    row_runs,
    two_photos,
    write_cvat_coco,
    write_cvat_xml,
    write_json,
)

from envs.readers._cvat_xml import BoxRuns
from envs.readers.base import Findings
from envs.readers.coco import Reader as CocoReader
from envs.readers.cvat import BRUSH, Reader


def asked(path, split="train", **settings):
    findings = Findings()
    return [
        one for given in Reader(str(path), **settings).photos(split, findings) for one in given.references
    ], findings


def changed(folder, change):
    write_cvat_coco(folder, two_photos())
    file = folder / "annotations/instances_default.json"
    data = json.loads(file.read_text())
    change(data)
    write_json(file, data)
    return folder


def xml_of(folder, *shapes, said='width="10" height="8"'):
    two_photos()[0].save(folder / "images")
    body = "".join(shapes)
    text = f'<annotations><version>1.1</version><image id="0" name="a.png" {said}>{body}</image></annotations>'
    (folder / "annotations.xml").write_text(text)
    return folder


def mask_tag(rle, left=0, top=0, width=2, height=2, label="cup"):
    return f'<mask label="{label}" rle="{rle}" left="{left}" top="{top}" width="{width}" height="{height}"></mask>'


def test_a_brush_mask_is_an_object_though_it_is_marked_as_a_crowd(tmp_path):
    write_cvat_coco(tmp_path, two_photos())
    found, findings = read_back(Reader(str(tmp_path)), two_photos())
    assert num_exact(found) == 4
    assert counts(findings.noted) == {BRUSH: 1}
    plain = [one for given in CocoReader(str(tmp_path)).photos("train", Findings()) for one in given.references]
    assert len(plain) == 2  # as COCO's own files are read, the painted dog would be a crowd


def test_crowds_can_be_taken_as_groups_and_an_attribute_always_makes_one(tmp_path):
    write_cvat_coco(tmp_path, two_photos())
    found, _ = asked(tmp_path, crowds="ignore")
    assert [one.parts for one in found] == [("cup",), ("dog",)] and len(found) == 2
    change = lambda data: data["annotations"][0]["attributes"].update(is_crowd=True)  # noqa: E731
    (cup, *_), _ = asked(changed(tmp_path, change))
    assert (len(cup.masks), len(cup.ignore)) == (1, 1)


def test_a_box_has_no_mask_and_costs_its_class(tmp_path):
    found, findings = asked(changed(tmp_path, lambda data: data["annotations"][0].update(segmentation=[])))
    assert [one.parts for one in found] == [("dog",), ("dog",)]
    assert counts(findings.left_out) == {"annotations without a mask (box alone)": 1} and findings.num_lost == 1


def test_subsets_are_splits_under_the_names_of_other_sets(tmp_path):
    for subset in ("Train", "Validation", "default", "extra"):
        write_cvat_coco(tmp_path, two_photos(), subset)
    reader = Reader(str(tmp_path))
    assert sorted(reader.splits()) == ["default", "extra", "train", "val"]
    assert num_exact(read_back(reader, two_photos(), "val")[0]) == 4
    write_cvat_coco(tmp_path / "one", two_photos())
    assert Reader(str(tmp_path / "one")).splits() == ("train",)


def test_both_exports_are_known_surer_than_plain_coco(tmp_path):
    write_cvat_coco(tmp_path / "coco", two_photos(), "train2017")
    write_cvat_xml(tmp_path, two_photos())
    assert Reader.recognise(tmp_path / "coco").certainty == Reader.recognise(tmp_path).certainty == 3
    assert CocoReader.recognise(tmp_path / "coco").certainty == 2
    assert CocoReader.recognise(tmp_path / "annotations.xml") is None


def test_xml_is_read_back_exact_and_photos_are_upright(tmp_path):
    write_cvat_xml(tmp_path, two_photos())
    for path in (tmp_path, tmp_path / "annotations.xml"):
        assert num_exact(read_back(Reader(str(path)), two_photos())[0]) == 4
    (first, _) = Reader(str(tmp_path)).photos("train", Findings())
    assert (first.photo.upright, first.photo.height, first.photo.width) == (True, 8, 10)


def test_any_mask_comes_back_from_rows_of_runs_in_its_box(tmp_path):
    draw = np.random.default_rng(3)
    masks = [draw.random((9, 13)) < share for share in (0.1, 0.5, 0.9, 1.0)]
    photo = Photo("a.png", 9, 13, tuple(Drawn(f"thing {k}", mask) for k, mask in enumerate(masks)))
    write_cvat_xml(tmp_path, (photo,))
    assert num_exact(read_back(Reader(str(tmp_path)), (photo,))[0]) == 4


def test_the_example_of_cvats_documentation_is_a_disc_of_thirteen_by_fifteen_pixels(tmp_path):
    rle = "3, 5, 7, 7, 5, 9, 3, 11, 2, 11, 2, 12, 1, 12, 1, 26, 1, 12, 1, 12, 2, 11, 3, 9, 5, 7, 7, 5, 3"
    runs = [int(run) for run in rle.split(",")]
    mask = BoxRuns(np.array(runs), (707, 888), (15, 13)).mask(1200, 1600)
    rows = mask[888:903, 707:720].sum(axis=1).tolist()
    assert (
        rows == [5, 7, 9, 11, 11, 12, 12, 13, 13, 12, 12, 11, 9, 7, 5]
        and sum(rows) == mask.sum()
        and row_runs(mask[888:903, 707:720]) == runs
    )


def test_a_mask_may_reach_out_of_its_photo_and_is_cut_off(tmp_path):
    (cup,), _ = asked(xml_of(tmp_path, mask_tag("0,4", 9, 7)))
    assert np.argwhere(cup.masks[0].mask(8, 10)).tolist() == [[7, 9]]


def test_shapes_of_one_label_and_group_are_one_object(tmp_path):
    polygons = [
        f'<polygon label="{label}" points="{x},0;{x + 2},0;{x + 2},2;{x},2" group_id="{group}"></polygon>'
        for x, label, group in ((0, "cup", 1), (3, "cup", 1), (6, "cup", 0), (8, "dog", 1))
    ]
    (cup, dog), _ = asked(xml_of(tmp_path, *polygons))
    assert sorted(mask.mask(8, 10).sum() for mask in cup.masks) == [4, 8] and len(dog.masks) == 1


@pytest.mark.parametrize(
    "bad",
    [
        mask_tag("0,3"),
        mask_tag("0,x"),
        mask_tag(""),
        mask_tag("-1,5"),
        '<polygon label="cup" points="1,1;nan,2;3,3"></polygon>',
        '<polygon label="cup" points="1;2,2;3,3"></polygon>',
        '<polygon label="cup"></polygon>',
        '<box label="cup" xtl="1" ytl="1" xbr="4" ybr="4"></box>',
        '<ellipse label="cup" cx="4" cy="4" rx="2" ry="2"></ellipse>',
    ],
)
def test_what_cannot_be_drawn_costs_its_label_alone(tmp_path, bad):
    found, findings = asked(xml_of(tmp_path, bad, mask_tag("0,4", label="dog")))
    assert [one.parts for one in found] == [("dog",)]
    assert sum(counts(findings.left_out).values()) == 1 and findings.num_lost == 1


def test_points_and_tags_cover_nothing_and_empty_masks_have_no_pixel(tmp_path):
    shapes = ('<points label="cup" points="1,1"></points>', '<tag label="cup"></tag>', mask_tag("4"))
    found, findings = asked(xml_of(tmp_path, *shapes, mask_tag("0,4")))
    assert len(found) == 1 and len(found[0].masks) == 1
    assert sum(counts(findings.left_out).values()) == 3 and findings.num_lost == 0


def test_files_that_are_not_whole_or_of_a_video_are_refused(tmp_path):
    write_cvat_xml(tmp_path, two_photos())
    file = tmp_path / "annotations.xml"
    file.write_text(file.read_text()[:-30])
    with pytest.raises(ValueError, match="no XML that can be read whole"):
        Reader(str(tmp_path)).splits()
    file.write_text('<annotations><version>1.1</version><track id="0" label="cup"></track></annotations>')
    with pytest.raises(ValueError, match=r'1 tracks of a video; export the task as "CVAT for images'):
        Reader(str(tmp_path)).splits()


def test_a_photo_that_is_missing_and_a_wrong_folder_are_told(tmp_path):
    write_cvat_xml(tmp_path, two_photos())
    (tmp_path / "images/a.png").unlink()
    found, findings = asked(tmp_path)
    assert len(found) == 1 and findings.num_lost == 2
    with pytest.raises(FileNotFoundError, match=r"is not an export of CVAT .*there is b.png; .* has it; give that"):
        Reader(str(tmp_path / "images")).splits()
