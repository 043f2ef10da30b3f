"""Cut-outs: folders of pictures with names beside them, OpenMoji's drawings, and which names are held out."""

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from envs.datasets._cutouts import RENDER_PX, load_cutouts, opaque, read_folder, split_names
from envs.datasets._scene import SPATIAL_WORDS


def picture(width=40, height=30, colour=(200, 30, 30), border=5):
    """RGBA [height, width]: an opaque rectangle inside a transparent border."""
    rgba = np.zeros((height, width, 4), np.uint8)
    rgba[border : height - border, border : width - border] = (*colour, 255)
    return Image.fromarray(rgba)


def add(folder, stem, name=None, image=None, suffix="png"):
    """A picture in `folder`, and its name beside it unless that is None."""
    folder.mkdir(parents=True, exist_ok=True)
    (image or picture()).save(folder / f"{stem}.{suffix}", lossless=True)
    if name is not None:
        (folder / f"{stem}.txt").write_text(name, encoding="utf-8")


def names_of(folder):
    return [cutout.name for cutout in read_folder(folder).cutouts]


def test_the_first_line_beside_a_picture_is_its_name_in_subfolders_too(tmp_path):
    add(tmp_path / "animals" / "birds", "a", "A Barn-Owl.\nUne chouette.\n")
    add(tmp_path / "food", "b", "red apple\nTRANSLATIONS", suffix="webp")
    add(tmp_path, "c", "\ufeffTruck no. 7")
    assert sorted(names_of(tmp_path)) == ["barn owl", "red apple", "truck no 7"]


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("The ox", "ox"),
        ("An apple tree.", "apple tree"),
        ("theatre", "theatre"),
        ("A", "a"),
        ("Vitamin A", "vitamin a"),
    ],
)
def test_a_leading_article_is_no_part_of_a_name(tmp_path, line, name):
    add(tmp_path, "picture", line)
    assert names_of(tmp_path) == [name]


def test_pictures_without_a_name_and_names_without_a_picture_are_skipped(tmp_path):
    add(tmp_path, "apple", "apple")
    add(tmp_path, "no_text")
    add(tmp_path, "empty_text", "")
    add(tmp_path, "blank_first_line", "\nname too late")
    (tmp_path / "no_picture.txt").write_text("pear")
    (tmp_path / "sound.ogg").write_bytes(b"OggS")
    assert names_of(tmp_path) == ["apple"]


def test_of_mirrored_and_recoloured_variants_the_first_stands_for_all(tmp_path):
    add(tmp_path, "cup", "A cup.", picture(colour=(1, 2, 3)))
    add(tmp_path, "cup_mirror", "the cup", picture(colour=(9, 9, 9)))
    (cutout,) = read_folder(tmp_path).cutouts
    assert cutout.rgba[0, 0].tolist() == [1, 2, 3, 255]


def test_a_cutout_is_cropped_to_its_opaque_pixels_and_scaled_to_96_px(tmp_path):
    add(tmp_path, "small", "small", picture(40, 30, border=5))
    add(tmp_path, "large", "large", picture(420, 220, border=10))
    large, small = (cutout.rgba for cutout in load_cutouts(str(tmp_path)).cutouts)
    assert small.shape == (20, 30, 4) and small.dtype == np.uint8
    assert large.shape == (48, RENDER_PX, 4)
    assert opaque(small).all() and opaque(large).all()


def test_half_opacity_is_in_and_less_is_out(tmp_path):
    alpha = np.full((4, 6), 127, np.uint8)
    alpha[1:3, 2:5] = 128
    rgba = np.dstack([np.zeros((4, 6, 3), np.uint8), alpha])
    add(tmp_path, "glass", "glass", Image.fromarray(rgba))
    assert read_folder(tmp_path).cutouts[0].rgba.shape == (2, 3, 4)


@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_a_picture_without_alpha_is_a_whole_rectangle(tmp_path, mode):
    add(tmp_path, "photo", "photo", picture().convert("RGB").convert(mode))
    rgba = read_folder(tmp_path).cutouts[0].rgba
    assert rgba.shape == (30, 40, 4) and opaque(rgba).all()


def test_a_file_that_is_no_picture_is_named_with_its_path(tmp_path):
    add(tmp_path, "apple", "apple")
    whole = (tmp_path / "apple.png").read_bytes()
    header = b"IHDR" + (30_000).to_bytes(4, "big") * 2 + whole[24:29]
    huge = whole[:12] + header + zlib.crc32(header).to_bytes(4, "big") + whole[33:]  # Pillow takes it for a bomb
    (tmp_path / "pear.txt").write_text("pear")
    for content in (b"", b"no picture", whole[:-30], whole[:60], huge):
        (tmp_path / "pear.png").write_bytes(content)
        with pytest.raises(ValueError, match=r"pear\.png cannot be used as a cut-out: .*; remove or replace it"):
            read_folder(tmp_path)


def test_a_picture_without_an_opaque_pixel_is_named_with_its_path(tmp_path):
    add(tmp_path, "ghost", "ghost", Image.new("RGBA", (20, 20), (255, 0, 0, 127)))
    with pytest.raises(ValueError, match=r"ghost\.png cannot be used as a cut-out: it has no opaque pixel"):
        read_folder(tmp_path)


def test_a_picture_that_fades_away_when_it_is_scaled_is_named_with_its_path(tmp_path):
    dotted = np.zeros((400, 400, 4), np.uint8)
    dotted[::4, ::4] = 255
    add(tmp_path, "dots", "dots", Image.fromarray(dotted))
    with pytest.raises(
        ValueError, match=r"dots\.png cannot be used as a cut-out: no opaque pixel is left of it at 96 px"
    ):
        read_folder(tmp_path)


def test_a_folder_that_is_missing_or_holds_no_named_picture_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"env\.folder is .*nowhere, which is not a folder"):
        read_folder(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"holds no \.png or \.webp with a \.txt beside it"):
        read_folder(tmp_path)


def test_cutouts_come_ordered_by_name_whatever_their_files_are_called(tmp_path):
    for stem, name in (("1", "pear"), ("2", "apple"), ("3", "fig")):
        add(tmp_path, stem, name)
    assert [cutout.name for cutout in load_cutouts(str(tmp_path)).cutouts] == ["apple", "fig", "pear"]


def test_openmoji_gives_63_drawings_with_plain_unique_names():
    names = [cutout.name for cutout in load_cutouts(None).cutouts]
    assert len(names) == len(set(names)) == 63
    assert {"red apple", "dog", "lady beetle", "automobile", "rocket"} <= set(names)
    for name in names:
        assert all(word.isascii() and word.isalpha() and word.islower() for word in name.split(" ")), name
        assert len(name.split()) <= 4 and not SPATIAL_WORDS & set(name.split()), name


def test_every_openmoji_drawing_is_a_solid_object_of_96_px():
    for cutout in load_cutouts(None).cutouts:
        mask = opaque(cutout.rgba)
        assert max(mask.shape) == RENDER_PX and mask.mean() > 0.3, cutout.name
        assert min(mask.any(axis=0).sum(), mask.any(axis=1).sum()) >= 30, cutout.name
        # Closed and filled, not a line drawing: few holes, and one part that is most of it.
        assert mask.sum() / ndimage.binary_fill_holes(mask).sum() > 0.9, cutout.name
        parts = ndimage.label(mask, np.ones((3, 3)))[0]
        assert np.bincount(parts[mask]).max() / mask.sum() > 0.75, cutout.name


name_sets = st.lists(st.text("abcdefgh ", min_size=1, max_size=6), min_size=1, max_size=40, unique=True).map(tuple)
shares = st.floats(0, 1)


@given(name_sets, shares)
def test_each_name_is_on_exactly_one_side_and_the_held_out_side_has_its_share(names, share):
    seen, held_out = split_names(names, share)
    assert sorted(seen + held_out) == sorted(names) and not set(seen) & set(held_out)
    assert abs(len(held_out) - share * len(names)) <= 0.5 + 1e-9


@given(name_sets, shares, st.randoms())
def test_the_order_of_names_does_not_matter(names, share, random):
    shuffled = random.sample(names, len(names))
    assert set(split_names(tuple(shuffled), share)[1]) == set(split_names(names, share)[1])


@given(name_sets, shares)
def test_adding_a_name_moves_at_most_one_other(names, share):
    before = set(split_names(names, share)[1])
    after = set(split_names((*names, "zebra"), share)[1])
    assert len((before ^ after) - {"zebra"}) <= 1


def test_the_held_out_names_of_openmoji_are_these_six():
    _, held_out = split_names(tuple(cutout.name for cutout in load_cutouts(None).cutouts), 0.1)
    assert held_out == ("bus", "crocodile", "monkey", "ox", "penguin", "tropical fish")


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("Äpfel", "äpfel"),
        ("A\u0308pfel", "äpfel"),  # a letter and its mark apart, as macOS writes file names
        ("Café crème", "café crème"),
        ("苹果", "苹果"),
        ("Ёж и гриб", "ёж и гриб"),
        ("हाथी", "हाथी"),
        ("می\u200cروم", "می\u200cروم"),
        ("the bird's nest!", "bird s nest"),
    ],
)
def test_names_keep_the_letters_and_marks_of_every_script(tmp_path, line, name):
    add(tmp_path, "picture", line)
    assert names_of(tmp_path) == [name]


def test_names_that_differ_in_an_accent_are_two_names(tmp_path):
    add(tmp_path, "a", "pêche")
    add(tmp_path, "b", "pâche")
    assert names_of(tmp_path) == ["pâche", "pêche"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le-marked", "utf-16-be-marked"])
def test_a_name_in_utf_8_or_marked_utf_16_is_read(tmp_path, encoding):
    add(tmp_path, "picture", "")
    text, mark = "Äpfel\r\nApples\r\n", "\ufeff" if encoding.endswith("marked") else ""
    (tmp_path / "picture.txt").write_bytes((mark + text).encode(encoding.removesuffix("-marked")))
    assert names_of(tmp_path) == ["äpfel"]


def test_a_name_in_an_unknown_encoding_is_refused_with_its_file(tmp_path):
    add(tmp_path, "picture", "")
    (tmp_path / "picture.txt").write_bytes("Äpfel".encode("cp1252"))
    with pytest.raises(ValueError, match=r"picture\.txt: its first line is neither UTF-8 nor UTF-16.*save it as UTF-8"):
        read_folder(tmp_path)


def test_endings_in_capitals_count(tmp_path):
    add(tmp_path, "badger", None, suffix="PNG")
    add(tmp_path, "otter", None, suffix="WebP")
    (tmp_path / "badger.TXT").write_text("badger")
    (tmp_path / "otter.txt").write_text("otter")
    assert names_of(tmp_path) == ["badger", "otter"]


def test_a_cutout_of_sixteen_bits_is_a_ramp_and_one_with_an_orientation_is_upright(tmp_path):
    deep = np.tile(np.linspace(0, 65535, 20).round().astype(np.uint16), (20, 1))
    add(tmp_path, "deep", "deep", Image.fromarray(deep))
    exif = Image.Exif()
    exif[0x0112] = 6
    layer = picture(40, 30)
    layer.putpixel((5, 5), (0, 0, 0, 255))
    layer.save(tmp_path / "turned.png", exif=exif)
    (tmp_path / "turned.txt").write_text("turned")
    ramp, turned = (cutout.rgba for cutout in read_folder(tmp_path).cutouts)
    assert ramp[0, :, 0].tolist() == [round(255 * k / 19) for k in range(20)]
    assert turned.shape == (30, 20, 4) and turned[0, -1].tolist() == [0, 0, 0, 255]


def test_what_is_passed_over_is_noted_and_so_is_one_picture_under_two_names(tmp_path):
    add(tmp_path, "a", "apple", picture(colour=(9, 9, 9)))
    add(tmp_path, "b", "apple", picture(colour=(8, 8, 8)))
    add(tmp_path, "c")
    add(tmp_path / "more", "d", "pear", picture(colour=(9, 9, 9)))
    assert read_folder(tmp_path).notes == {
        "pictures of a name that another one has, passed over": ["b.png"],
        "pictures without a name in a .txt beside them, passed over": ["c.png"],
        "pictures that are another one to the pixel under a second name, which may be held out alone": [
            "more/d.png (pear, as apple)"
        ],
    }


def test_a_picture_without_a_transparent_pixel_is_noted(tmp_path):
    add(tmp_path, "photo", "photo", Image.new("RGB", (6, 4)))
    add(tmp_path, "cup", "cup", picture(border=1))
    assert read_folder(tmp_path).notes == {
        "pictures without a transparent pixel around the object, taken as whole rectangles": ["photo.png"]
    }


def test_linked_folders_count_once_and_what_macos_adds_to_archives_does_not(tmp_path):
    add(tmp_path / "elsewhere", "badger", "badger\ra badger is an animal")
    add(tmp_path / "stamps", "otter", "otter", picture(colour=(1, 2, 3)))
    (tmp_path / "stamps" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "stamps")
    (tmp_path / "stamps" / "folder.txt").mkdir()
    for name in ("._otter.png", "._otter.txt"):
        (tmp_path / "stamps" / name).write_bytes(b"\x00\x05\x16\x07")
    assert names_of(tmp_path / "stamps") == ["badger", "otter"]
