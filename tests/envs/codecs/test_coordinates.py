"""Places in the numbers that a family was trained on, read back as pixels of the photo."""

from collections.abc import Callable

import numpy as np
import pytest
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from envs.codecs.point_text import Codec
from envs.polygons import AnswerStatus, signed_area_px

RNG = np.random.default_rng(0)
SIZES = [(int(h), int(w)) for h, w in RNG.integers(20, 4000, (50, 2))]


def resized(height: int, width: int) -> tuple[int, int]:
    return smart_resize(height, width, 28, 3136, 1_003_520)


def bound(coordinates: str) -> Codec:
    codec = Codec(coordinates=coordinates, max_characters=10**6).seen_by("unit", resized)
    assert isinstance(codec, Codec)
    return codec


def test_the_three_kinds_write_one_square_as_their_models_do() -> None:
    square = np.array([[64.0, 120.0], [320.0, 120.0], [320.0, 360.0], [64.0, 360.0]])  # in 480 x 640
    written = {kind: bound(kind).encode([[square]], 480, 640) for kind in ("unit", "thousandths", "resized_px")}
    assert resized(480, 640) == (476, 644)
    assert written == {
        "unit": "[[[0.1, 0.25], [0.5, 0.25], [0.5, 0.75], [0.1, 0.75]]]",
        "thousandths": "[[[100, 250], [500, 250], [500, 750], [100, 750]]]",
        "resized_px": "[[[64, 119], [322, 119], [322, 357], [64, 357]]]",  # 64 * 644 / 640 = 64.4
    }


@pytest.mark.parametrize(
    ("kind", "step"),
    [
        ("unit", lambda h, w: (w / 1000, h / 1000)),
        ("thousandths", lambda h, w: (w / 1000, h / 1000)),
        ("resized_px", lambda h, w: (w / resized(h, w)[1], h / resized(h, w)[0])),
    ],
)
def test_a_round_trip_keeps_every_vertex_within_half_a_step_at_50_photo_sizes(
    kind: str, step: Callable[[int, int], tuple[float, float]]
) -> None:
    codec = bound(kind)
    for height, width in SIZES:
        angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
        ring = np.stack([0.5 + 0.4 * np.cos(angles), 0.5 + 0.45 * np.sin(angles)], 1) * [width, height]
        assert signed_area_px(ring) > 0
        answer = codec.read(codec.encode([[ring]], height, width), height, width)
        assert answer.status is AnswerStatus.OK
        (found,) = answer.rings_px
        nearest = np.abs(found[None] - ring[:, None]).max(-1).argmin(1)
        assert (np.abs(found[nearest] - ring) <= np.array(step(height, width)) / 2 + 1e-9).all()


def test_numbers_beyond_the_image_that_was_shown_are_out_of_range() -> None:
    for kind, beyond in (("unit", "1.01"), ("thousandths", "1001"), ("resized_px", "645")):
        codec = bound(kind)
        edge = {"unit": "1.0", "thousandths": "1000", "resized_px": "644"}[kind]
        text = "[[[0, 0], [{}, 0], [0, 0.4]]]" if kind == "unit" else "[[[0, 0], [{}, 0], [0, 300]]]"
        assert codec.read(text.format(edge), 480, 640).status is AnswerStatus.OK
        assert codec.read(text.format(beyond), 480, 640).status is AnswerStatus.OUT_OF_RANGE


def test_family_coordinates_are_fractions_without_a_policy_and_the_familys_own_with_one() -> None:
    square = [[np.array([[0.0, 0.0], [32.0, 0.0], [32.0, 32.0], [0.0, 32.0]])]]
    assert Codec().encode(square, 64, 64) == "[[[0.0, 0.0], [0.5, 0.0], [0.5, 0.5], [0.0, 0.5]]]"
    assert Codec().seen_by("thousandths", resized).encode(square, 64, 64).startswith("[[[0, 0], [500, 0]")
    assert Codec(coordinates="unit").seen_by("thousandths", resized) == Codec(coordinates="unit")
    with pytest.raises(ValueError, match=r"coordinates is resized_px .* set codec.coordinates to unit"):
        Codec().seen_by("resized_px", resized).grammar()
