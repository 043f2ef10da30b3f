"""Files as a viewer shows them: upright, over white, eight bits, the first frame; what is no image says so."""

import io

import numpy as np
import pytest
from PIL import Image

from envs.image_file import read_image

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
