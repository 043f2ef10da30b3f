"""What all pages share: the close-up of their pictures, and the one frame."""

from pathlib import Path

import numpy as np

import rl.pages.page
from rl.pages.pictures import close_up

TEMPLATES = Path(rl.pages.page.__file__).parent / "templates"


def test_a_close_up_leaves_half_of_the_longer_side_around_what_is_drawn() -> None:
    image, drawn = np.zeros((10, 8, 3), np.uint8), np.zeros((10, 8), np.bool_)
    drawn[4:6, 3:5] = True
    image[4, 3] = 255
    part, [rings, none] = close_up(image, [drawn, np.zeros_like(drawn)])
    assert part.shape == (4, 4, 3) and part[1, 1, 0] == 255 and part.sum() == 3 * 255
    assert [ring.tolist() for ring in rings] == [[[1, 1], [3, 1], [3, 3], [1, 3]]] and none == []


def test_a_large_close_up_is_scaled_to_320_pixels_with_its_rings() -> None:
    part, [rings] = close_up(np.zeros((500, 1000, 3), np.uint8), [np.ones((500, 1000), np.bool_)])
    assert part.shape == (160, 320, 3)
    assert [ring.tolist() for ring in rings] == [[[0, 0], [320, 0], [320, 160], [0, 160]]]


def test_without_anything_drawn_the_whole_image_is_shown() -> None:
    part, [rings] = close_up(np.zeros((6, 9, 3), np.uint8), [np.zeros((6, 9), np.bool_)])
    assert part.shape == (6, 9, 3) and rings == []


def test_every_page_stands_in_the_one_frame() -> None:
    pages = [path for path in TEMPLATES.glob("*.html.j2") if path.name != "page.html.j2"]
    assert len(pages) >= 6
    for path in pages:
        text = path.read_text(encoding="utf-8")
        assert text.startswith('{% extends "page.html.j2" %}') and "<head>" not in text, path.name
