"""Files as a viewer shows them: upright, over white, eight bits, the first frame; what is no image says so."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from envs.images import image_header, read_image, read_layer

TURNED = {1: (0, 0), 3: (5, 3), 6: (3, 0), 8: (0, 5)}
"""Where the first stored pixel of 6 x 4 pixels is seen, (x, y), by EXIF orientation."""


def saved(tmp_path, image, name, **options):
    image.save(tmp_path / name, **options)
    return read_image(tmp_path / name)


def dotted(mode="L"):
    """6 x 4 pixels, the first white, the others black."""
    pixels = np.zeros((4, 6), np.uint8)
    pixels[0, 0] = 255
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("mode", ["L", "RGB", "I;16"])
def test_an_exif_rotated_image_is_seen_upright(tmp_path, orientation, mode):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.array(dotted(), np.uint16) * 257) if mode == "I;16" else dotted(mode)
    seen = saved(tmp_path, image, "turned.png", exif=exif)
    assert seen.size == ((4, 6) if orientation > 4 else (6, 4))
    assert seen.getpixel(TURNED[orientation]) == (255, 255, 255)
    assert np.asarray(seen).sum() == 3 * 255


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_divided_by_257(tmp_path, suffix):
    deep = Image.fromarray(np.array([[0, 257, 32768, 65535]], np.uint16))
    assert np.asarray(saved(tmp_path, deep, f"deep.{suffix}"))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_floats_are_stretched_and_what_is_no_number_is_zero(tmp_path):
    floats = Image.fromarray(np.array([[0.0, 1.0, 4.0, np.nan]], np.float32))
    assert np.asarray(saved(tmp_path, floats, "floats.tif"))[0, :, 0].tolist() == [0, 64, 255, 0]


def test_what_is_transparent_lies_over_white(tmp_path):
    layer = np.array([[[200, 0, 0, 0], [200, 0, 0, 255], [0, 0, 0, 51]]], np.uint8)
    seen = np.asarray(saved(tmp_path, Image.fromarray(layer), "layer.png"))
    assert seen.tolist() == [[[255, 255, 255], [200, 0, 0], [204, 204, 204]]]
    grey = dotted("LA")
    grey.putalpha(0)
    assert np.asarray(saved(tmp_path, grey, "grey.png")).min() == 255


def test_of_an_animation_the_first_frame_is_seen(tmp_path):
    red, blue = Image.new("RGB", (6, 4), "red"), Image.new("RGB", (6, 4), "blue")
    seen = saved(tmp_path, red, "moving.gif", save_all=True, append_images=[blue])
    assert seen.getpixel((0, 0)) == (255, 0, 0)


def test_what_is_no_image_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.png is not there; give an image file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(FileNotFoundError, match="is a folder; give an image file"):
        read_image(tmp_path)
    (tmp_path / "note.png").write_text("no image")
    with pytest.raises(ValueError, match="cut off, damaged or no image"):
        read_image(tmp_path / "note.png")


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "tiff", "webp"])
def test_a_damaged_file_is_an_image_or_one_error(tmp_path, kind):
    rng, buffer = np.random.default_rng(0), io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).save(buffer, kind)
    path = tmp_path / "damaged"
    for k in range(60):
        content = np.frombuffer(buffer.getvalue(), np.uint8).copy()
        content[rng.integers(0, min(len(content), 400), 6)] = rng.integers(0, 256, 6)
        path.write_bytes(content[: rng.integers(len(content))].tobytes() if k % 2 else content.tobytes())
        try:
            assert read_image(path).mode == "RGB"
        except ValueError as error:
            assert "\n" not in str(error)


RAMP = [0, 28, 57, 85, 113, 142, 170, 198, 227, 255]


@pytest.mark.parametrize("kind", ["png", "tif", "pgm"])
def test_a_ramp_of_sixteen_bits_is_a_ramp_of_eight(tmp_path, kind):
    ramp = np.array([[0, 7196, 14649, 21845, 29041, 36494, 43690, 50886, 58339, 65535]], np.uint16)
    if kind == "pgm":  # Pillow writes none of 16 bits
        (tmp_path / "deep.pgm").write_bytes(b"P5 10 1 65535 " + ramp.byteswap().tobytes())
    else:
        Image.fromarray(ramp).save(tmp_path / f"deep.{kind}")
    assert np.asarray(read_image(tmp_path / f"deep.{kind}"))[0].tolist() == [[value] * 3 for value in RAMP]
    assert np.asarray(read_layer(tmp_path / f"deep.{kind}"))[0].tolist() == [[value] * 3 + [255] for value in RAMP]


def test_deep_grey_of_half_the_range_stays_dark(tmp_path):
    for name, ramp in (("deep.png", [[0, 16384]]), ("deep.pgm", None)):
        if ramp is None:
            (tmp_path / name).write_bytes(b"P5 2 1 65535 " + np.array([0, 16384], ">u2").tobytes())
        else:
            Image.fromarray(np.array(ramp, np.uint16)).save(tmp_path / name)
        assert np.asarray(read_image(tmp_path / name))[0, :, 0].tolist() == [0, 64]


def test_a_transparent_grey_of_sixteen_bits_lies_over_white(tmp_path):
    deep = Image.fromarray(np.array([[0, 257, 32768]], np.uint16))
    seen = saved(tmp_path, deep, "deep.png", transparency=257)
    assert np.asarray(seen)[0, :, 0].tolist() == [0, 255, 128]


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "LA", "PA", "RGBA"])
def test_every_mode_is_shown_as_pillow_converts_it(tmp_path, mode):
    colours = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    image = Image.fromarray(colours).convert("L" if mode in ("LA", "PA") else "RGB").convert(mode.replace("PA", "P"))
    seen = saved(tmp_path, image, "image.tif" if mode in ("CMYK", "YCbCr") else "image.png")
    np.testing.assert_array_equal(np.asarray(seen), np.asarray(image.convert("RGB")))


def test_a_palette_with_a_transparent_entry_lies_over_white(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([200, 0, 0, 0, 0, 200])
    image.putpixel((1, 0), 1)
    seen = saved(tmp_path, image, "palette.png", transparency=0)
    assert np.asarray(seen).tolist() == [[[255, 255, 255], [0, 0, 200]]]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "jpeg", "tiff", "webp", "grey.tiff"])
def test_as_stored_undoes_what_upright_does_whatever_the_reader_of_the_form_turns_by_itself(
    tmp_path, kind, orientation
):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.random.default_rng(1).integers(0, 256, (4, 6), np.uint8)).resize((60, 40))
    path = tmp_path / f"turned.{kind}"
    stored.convert("L" if "grey" in kind else "RGB").save(
        path, exif=exif, **({"lossless": True} if kind == "webp" else {})
    )
    header = image_header(path)
    assert (header.height, header.width, header.orientation) == (40, 60, orientation)
    assert header.lies_on_its_side == (orientation > 4)
    as_stored, upright = read_image(path, upright=False), read_image(path)
    tolerance = 12 if kind == "jpeg" else 0
    assert as_stored.size == (60, 40) and upright.size == ((40, 60) if orientation > 4 else (60, 40))
    assert np.abs(np.asarray(as_stored, int)[..., 0] - np.asarray(stored, int)).max() <= tolerance
    tagged = as_stored.copy()
    tagged.getexif()[0x0112] = orientation
    np.testing.assert_array_equal(np.asarray(upright), np.asarray(ImageOps.exif_transpose(tagged)))


def test_an_orientation_behind_the_pixels_of_a_png_counts_and_the_header_alone_finds_it(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3
    dotted("RGB").save(tmp_path / "early.png", exif=exif)
    whole = (tmp_path / "early.png").read_bytes()
    first = whole.index(b"eXIf") - 4
    length = int.from_bytes(whole[first : first + 4], "big") + 12
    chunk, rest = whole[first : first + length], whole[:first] + whole[first + length :]
    (tmp_path / "late.png").write_bytes(rest[:-12] + chunk + rest[-12:])
    assert image_header(tmp_path / "late.png").orientation == 3
    assert read_image(tmp_path / "late.png").getpixel((5, 3)) == (255, 255, 255)
    cut = (tmp_path / "late.png").read_bytes()[:60]
    (tmp_path / "cut.png").write_bytes(cut)
    assert image_header(tmp_path / "cut.png").width == 6


def test_a_panorama_of_199_megapixels_is_read_and_one_of_600_is_refused_by_its_header(tmp_path):
    Image.new("1", (19_900, 10_000)).save(tmp_path / "panorama.png")
    assert read_image(tmp_path / "panorama.png").size == (19_900, 10_000)
    Image.new("1", (30_000, 20_000)).save(tmp_path / "wall.png")
    with pytest.raises(ValueError, match="600000000 pixels"):
        image_header(tmp_path / "wall.png")


def test_floats_of_a_pfm_are_stretched_as_those_of_a_tiff(tmp_path):
    floats = Image.fromarray(np.array([[0.0, 0.25, 1.0]], np.float32))
    for kind in ("pfm", "tif"):
        assert np.asarray(saved(tmp_path, floats, f"floats.{kind}"))[0, :, 0].tolist() == [0, 64, 255]


@pytest.mark.parametrize(("depth", "white"), [(np.uint8, 255), (np.uint16, 65535)])
def test_a_tiff_whose_low_numbers_are_light_is_no_negative(tmp_path, depth, white):
    scan = Image.fromarray(np.array([[0, white]], depth))
    scan.save(tmp_path / "scan.tif")
    scan = bytearray((tmp_path / "scan.tif").read_bytes())
    tag = scan.index(b"\x06\x01\x03\x00\x01\x00\x00\x00") + 8
    seen = {}
    for photometric in (0, 1):
        scan[tag : tag + 2] = photometric.to_bytes(2, "little")
        (tmp_path / "scan.tif").write_bytes(scan)
        seen[photometric] = np.asarray(read_image(tmp_path / "scan.tif"))[0, :, 0].tolist()
    assert seen == {0: [255, 0], 1: [0, 255]}


@pytest.mark.parametrize("kind", ["png", "webp", "jpeg"])
def test_a_block_that_is_no_exif_turns_nothing(tmp_path, kind):
    seen = saved(tmp_path, dotted("RGB"), f"odd.{kind}", exif=b"Exif\0\0nonsense")
    assert seen.size == (6, 4)
