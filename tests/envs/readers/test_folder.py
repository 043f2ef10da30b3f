"""A plain folder: phrases, mask images of any kind, several masks, none, and rows that say what cannot be."""

import numpy as np
import pytest
from made_user_files import box_mask, counts, num_exact, read_back, two_photos, write_folder
from PIL import Image

from envs.readers._pixels import FilePixels
from envs.readers.base import Findings
from envs.readers.folder import Reader

A, B = two_photos()
CUP = box_mask(8, 10, 1, 1, 4, 4)


def table(folder, *rows, columns="image,mask,phrase"):
    """(references, findings) of a table over the small set."""
    write_folder(folder, (A, B))
    (folder / "phrases.csv").write_text("\n".join([columns, *rows]) + "\n")
    return asked(folder)


def asked(path, split="train", **settings):
    findings = Findings()
    return [
        one for given in Reader(str(path), **settings).photos(split, findings) for one in given.references
    ], findings


def mask_of(folder, image, value=""):
    """The mask of a mask image, saved in place of the first one."""
    write_folder(folder, (A, B))
    image.save(folder / "masks/a_0.png")
    (folder / "phrases.csv").write_text(f"image,mask,phrase,value\na.png,a_0.png,the cup,{value}\n")
    (one,), _ = asked(folder)
    return one.masks[0].mask(8, 10)


def test_phrases_and_masks_are_read_back_exact(tmp_path):
    write_folder(tmp_path, (A, B))
    for path in (tmp_path, tmp_path / "phrases.csv"):
        found, findings = read_back(Reader(str(path)), (A, B))
        assert num_exact(found) == 4 and findings.as_json() == Findings().as_json()


def test_several_masks_are_several_objects_and_an_empty_one_says_that_nothing_fits(tmp_path):
    found, _ = table(tmp_path, "a.png,a_0.png; a_1.png,both cups", "b.png,,a whale", 'a.png,a_2.png,"the dog, asleep"')
    assert [(one.parts[0], len(one.masks)) for one in found] == [
        ("both cups", 2),
        ("the dog, asleep", 1),
        ("a whale", 0),
    ]
    assert found[0].id.startswith("a.png/a_0.png+a_1.png/") and found[2].id.startswith("b.png/none/")


@pytest.mark.parametrize("mode", ["1", "L", "P", "I;16", "RGB", "RGBA", "LA"])
def test_what_is_not_0_is_the_object_in_any_kind_of_image(tmp_path, mode):
    if mode == "I;16":
        image = Image.fromarray((CUP * 40_000).astype(np.uint16))
    elif mode == "P":
        image = Image.fromarray(CUP.astype(np.uint8), "L").convert("P")
    else:
        image = Image.fromarray((CUP * 255).astype(np.uint8)).convert(mode)
    np.testing.assert_array_equal(mask_of(tmp_path, image), CUP)


def test_a_value_picks_an_index_and_values_go_with_masks(tmp_path):
    indices = np.zeros((8, 10), np.uint8)
    indices[CUP], indices[6:, 6:] = 3, 7
    np.testing.assert_array_equal(mask_of(tmp_path, Image.fromarray(indices), "3"), CUP)
    row = "a.png,a_0.png;a_0.png,cup and corner,3;7"
    (tmp_path / "phrases.csv").write_text(f"image,mask,phrase,value\n{row}\n")
    (one,), _ = asked(tmp_path)
    assert [mask.mask(8, 10).sum() for mask in one.masks] == [9, 8]


def test_colours_behind_no_opacity_are_0(tmp_path):
    pixels = np.full((8, 10, 4), 255, np.uint8)
    pixels[~CUP, 3] = 0
    np.testing.assert_array_equal(mask_of(tmp_path, Image.fromarray(pixels)), CUP)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_mask_image_of_several_values_is_soft_unless_one_is_picked_or_they_are_those_of_overlaps(tmp_path, mode):
    pixels = CUP * 255
    pixels[2, 2] = 120
    path = tmp_path / "mask.png"
    for other, soft in ((120, True), (254, False), (255, False)):
        pixels[2, 2] = other
        Image.fromarray(pixels.astype(np.uint8)).convert(mode).save(path)
        assert FilePixels(path).is_soft is soft
    Image.fromarray((CUP * 120).astype(np.uint8)).convert(mode).save(path)
    assert not FilePixels(path).is_soft  # one grey value
    Image.fromarray(np.arange(80, dtype=np.uint8).reshape(8, 10)).convert(mode).save(path)
    assert FilePixels(path).is_soft and not FilePixels(path, (3,)).is_soft


def test_splits_are_those_of_the_rows(tmp_path):
    rows = ("a.png,a_0.png,cup,val", "b.png,b_0.png,dog,", "b.png,b_0.png,hound,train")
    table(tmp_path, *rows[1:], columns="image,mask,phrase,split")
    (tmp_path / "phrases.csv").write_text("\n".join(["Image, Mask, Phrase, Split", *rows]))
    assert Reader(str(tmp_path)).splits() == ("val", "train")
    assert [len(asked(tmp_path, split)[0]) for split in ("val", "train")] == [1, 2]


def test_spreadsheets_write_marks_tabs_and_utf16(tmp_path):
    write_folder(tmp_path, (A, B))
    text = (tmp_path / "phrases.csv").read_text()
    for written in (
        text.encode("utf-8-sig"),
        text.replace(",", "\t").encode("utf-16"),
        text.replace("\n", "\r\n").encode(),
    ):
        (tmp_path / "phrases.csv").write_bytes(written)
        assert Reader.recognise(tmp_path).certainty == 3
        assert num_exact(read_back(Reader(str(tmp_path)), (A, B))[0]) == 4


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("a.png,gone.png,the cup,", "a mask that is missing"),
        ("a.png,a_0.png,,", "without a phrase"),
        ("a.png,a_0.png,the cup,nan", "no whole number"),
        ("a.png,a_0.png;a_1.png,the cup,1;2;3", "another number than its masks"),
        ("a.png,small.png,the cup,", "another size"),
        ("a.png,half.png,the cup,", "a mask that cannot be read"),
        ("gone.png,a_0.png,the cup,", "a photo that is missing"),
    ],
)
def test_a_bad_row_loses_itself_alone(tmp_path, row, reason):
    write_folder(tmp_path, (A, B))
    Image.new("L", (3, 3)).save(tmp_path / "masks/small.png")
    (tmp_path / "masks/half.png").write_bytes((tmp_path / "masks/a_0.png").read_bytes()[:20])
    (tmp_path / "phrases.csv").write_text(f"image,mask,phrase,value\na.png,a_2.png,dog,\n{row}\nb.png,b_0.png,dog,\n")
    found, findings = asked(tmp_path)
    assert [one.parts for one in found] == [("dog",), ("dog",)]
    ((told, finding),) = findings.lost.items()
    assert reason in told and finding.count == 1


def test_a_row_twice_is_asked_once(tmp_path):
    found, findings = table(tmp_path, "a.png,a_0.png,cup", "a.png,a_0.png,cup")
    assert len(found) == 1 and counts(findings.left_out) == {"rows that are there twice": 1}


def test_wrong_columns_and_wrong_folders_are_refused(tmp_path):
    write_folder(tmp_path / "set", (A, B))
    with pytest.raises(FileNotFoundError, match=r"set has it; give that"):
        Reader(str(tmp_path / "set/masks")).splits()
    (tmp_path / "set/phrases.csv").write_text("image,mask,phrase\n")
    with pytest.raises(ValueError, match="has no row below its first line"):
        Reader(str(tmp_path / "set")).splits()
    (tmp_path / "set/phrases.csv").write_text("image;mask;phrase\na.png;a_0.png;cup\n")
    assert Reader.recognise(tmp_path / "set") is None
    with pytest.raises(
        ValueError, match=r"begins with \['image;mask;phrase'\]; its first line should name the columns"
    ):
        Reader(str(tmp_path / "set")).splits()
