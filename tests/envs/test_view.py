"""A view is what the env of photos shows; what is said about it comes back into the image's pixels."""

import numpy as np
from PIL import Image

from envs.images import PADDING_GREY, View


def photo(height, width):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def test_a_photo_of_480_by_640_is_shown_at_48_by_64_and_padded_below():
    view = View(64, square=True)
    assert view.size(480, 640) == (48, 64)
    pixels = view.pixels(photo(480, 640))
    assert pixels.shape == (64, 64, 3)
    assert (pixels[48:] == PADDING_GREY).all() and pixels[:48].std() > 1


def test_a_portrait_is_padded_on_the_right_and_a_line_keeps_a_pixel():
    assert (View(64, square=True).pixels(photo(100, 50))[:, 32:] == PADDING_GREY).all()
    assert View(64).size(1000, 1) == (64, 1)


def test_without_a_side_an_image_is_shown_as_it_is():
    image = photo(30, 20)
    np.testing.assert_array_equal(View().pixels(image), np.asarray(image))


def test_a_small_image_is_enlarged():
    assert View(64).pixels(photo(16, 32)).shape == (32, 64, 3)


def test_corners_of_what_is_shown_are_corners_of_the_image():
    [ring] = View(64, square=True).rings_px([np.array([[0, 0], [64, 0], [32, 43]])], 301, 450)
    np.testing.assert_allclose(ring, [[0, 0], [450, 0], [225, 301]])
