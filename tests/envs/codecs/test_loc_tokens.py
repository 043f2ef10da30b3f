"""Place tokens: boxes as PaliGemma writes them, outlines in the same tokens; path_tokens is the oracle of geometry."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.codecs import path_tokens
from envs.codecs.loc_tokens import Codec
from envs.geometry.contours import mask_from_rings, outline
from envs.polygons import AnswerStatus

CODEC = Codec(path_bins=4)
BOX = "<loc0256><loc0128><loc0768><loc0512>"
"""Rows 1/4 to 3/4, columns 1/8 to 1/2."""


def square(x0: float, y0: float, side: float) -> np.ndarray:
    return np.array([(x0, y0), (x0 + side, y0), (x0 + side, y0 + side), (x0, y0 + side)], np.float64)


def test_a_box_of_the_model_card_is_rows_before_columns_in_1024ths_of_each_side() -> None:
    answer = CODEC.read(f"{BOX} dog", 200, 80)
    (instance,) = answer.instances
    assert answer.status is AnswerStatus.OK and instance.label == "dog"
    assert instance.box_px == (10.0, 50.0, 40.0, 150.0)
    assert mask_from_rings(instance.rings_px, 200, 80).sum() == 30 * 100


def test_spaces_that_a_tokenizer_puts_between_its_tokens_change_nothing() -> None:
    text = CODEC.encode([[square(16, 16, 32), square(24, 24, 16)[::-1]]], 64, 64)
    spaced = text.replace("><", "> <").replace(",", " , ")
    found, expected = (CODEC.read(each, 64, 64) for each in (spaced, text))
    assert [ring.tolist() for ring in found.rings_px] == [ring.tolist() for ring in expected.rings_px]


def test_codes_of_masks_are_passed_over_and_several_objects_keep_their_names() -> None:
    codes = "".join(f"<seg{k:03}>" for k in range(16))
    answer = CODEC.read(f"{BOX}{codes} the dog ; <loc0000><loc0000><loc0512><loc0512> cat", 200, 80)
    assert [instance.label for instance in answer.instances] == ["the dog", "cat"]
    assert answer.instances[1].box_px == (0.0, 0.0, 40.0, 100.0)


def test_a_triangle_in_half_of_its_box_is_written_as_this_text_and_read_back() -> None:
    triangle = np.array([(10.0, 50.0), (40.0, 50.0), (40.0, 150.0)])
    text = CODEC.encode([[triangle]], 200, 80)
    assert text == f"{BOX} <loc0000><loc0000><loc0000><loc0004><loc0004><loc0004>"
    assert CODEC.read(text, 200, 80).rings_px[0].tolist() == triangle.tolist()
    assert Codec(path_bins=4, outlines=False).encode([[triangle]], 200, 80) == BOX
    assert CODEC.box_text(f"{text} dog") == BOX


def test_holes_and_parts_are_rings_behind_a_comma_and_nothing_is_no_text() -> None:
    rings = [square(16, 16, 32), square(24, 24, 16)[::-1]]
    text = CODEC.encode([rings, [square(0, 0, 8)]], 64, 64)
    first, second = text.split(" ; ")
    assert first.count(",") == 1 and second.count(",") == 0
    answer = CODEC.read(text, 64, 64)
    assert mask_from_rings(answer.rings_px, 64, 64).sum() == 32 * 32 - 16 * 16 + 64
    assert CODEC.encode([], 64, 64) == "" and CODEC.read(" ", 64, 64).status is AnswerStatus.EMPTY


def test_an_object_over_the_whole_image_reaches_the_last_place_and_no_further() -> None:
    text = CODEC.encode([[square(0, 0, 64)]], 64, 64)
    assert text.startswith("<loc0000><loc0000><loc1023><loc1023> ") and "<loc1024>" not in text
    assert CODEC.read(text, 64, 64).instances[0].box_px == (0.0, 0.0, 1023 / 16, 1023 / 16)
    edge = CODEC.encode([[square(63.99, 63.99, 0.01)]], 64, 64)
    assert edge.startswith("<loc1022><loc1022><loc1023><loc1023> ")


@given(st.integers(0, 2**32), st.integers(8, 70), st.integers(8, 70))
@settings(max_examples=60, deadline=None)
def test_masks_are_those_of_path_tokens_on_the_same_grids(seed: int, height: int, width: int) -> None:
    # An empty last row and column: path_tokens says places up to 1024/1024.
    rng = np.random.default_rng(seed)
    mask = np.zeros((height, width), bool)
    mask[:-1, :-1] = rng.random((height - 1, width - 1)) < 0.4
    rings = outline(mask, 40, 8)
    codec = Codec(path_bins=255, max_vertices=400, max_rings=200)
    words = path_tokens.Codec(1024, 255, max_vertices=400, max_rings=200)
    found = codec.read(codec.encode([rings], height, width), height, width)
    expected = words.read(words.encode([rings], height, width), height, width)
    assert found.status is expected.status
    assert [ring.tolist() for ring in found.rings_px] == [ring.tolist() for ring in expected.rings_px]


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("<loc0256><loc0128><loc0768>", AnswerStatus.UNPARSABLE),
        (f"{BOX} <loc0000>", AnswerStatus.UNPARSABLE),
        (f"{BOX} <loc0000><loc0000><loc0004><loc0004>", AnswerStatus.DEGENERATE),
        ("<loc0256><loc0128><loc0256><loc0512>", AnswerStatus.DEGENERATE),
        (f"{BOX} <loc0000><loc0000><loc0000><loc0005><loc0004><loc0004>", AnswerStatus.OUT_OF_RANGE),
        ("<loc5000><loc0128><loc5001><loc0512>", AnswerStatus.OUT_OF_RANGE),
        (f"{BOX} dog ;", AnswerStatus.UNPARSABLE),
        (" ; ".join([BOX] * 9), AnswerStatus.OUT_OF_RANGE),
        ("a dog", AnswerStatus.UNPARSABLE),
    ],
)
def test_any_other_text_reads_as_a_status(text: str, status: AnswerStatus) -> None:
    assert CODEC.read(text, 200, 80).status is status
    assert CODEC.read(text, 200, 80, truncated=True).status is AnswerStatus.TRUNCATED


@given(st.text(alphabet="<loc0123seg>,; dog", max_size=60))
@settings(max_examples=300, deadline=None)
def test_no_text_raises(text: str) -> None:
    CODEC.read(text, 30, 40)
    for asked in ("box", "point"):
        CODEC.read_places(text, asked, 30, 40)
    CODEC.text_places(text)


def test_boxes_and_points_are_asked_and_answered_in_places() -> None:
    box, point = np.array([(10.0, 50.0), (40.0, 150.0)]), np.array([(20.0, 100.0)])
    assert CODEC.encode_places([box], 200, 80) == BOX
    assert CODEC.encode_places([point, point], 200, 80) == "<loc0512><loc0256> ; <loc0512><loc0256>"
    assert CODEC.encode_places([], 200, 80) == ""
    assert CODEC.read_places(f"{BOX} dog", "box", 200, 80).instances[0].box_px == (10.0, 50.0, 40.0, 150.0)
    assert CODEC.read_places(BOX, "point", 200, 80).status is AnswerStatus.UNPARSABLE
    assert CODEC.read_places("", "box", 200, 80).status is AnswerStatus.EMPTY
    assert CODEC.read_places(BOX, "box", 200, 80, truncated=True).status is AnswerStatus.TRUNCATED


def test_places_of_a_text_are_the_characters_of_its_tokens() -> None:
    text = CODEC.encode([[square(16, 16, 32)], [square(0, 0, 8)]], 64, 64)
    found = CODEC.text_places(text)
    assert [(place.instance, place.vertex) for place in found] == [
        (0, None),
        *[(0, k) for k in range(4)],
        (1, None),
        *[(1, k) for k in range(4, 8)],
    ]
    assert text[found[0].begin : found[0].end] == "<loc0256><loc0256><loc0768><loc0768>"
    assert text[found[-1].begin : found[-1].end] == "<loc0004><loc0000>"


def test_settings_that_no_text_can_meet_are_refused() -> None:
    with pytest.raises(ValueError, match=r"box_bins"):
        Codec(box_bins=512)
    with pytest.raises(ValueError, match=r"path_bins is 1024"):
        Codec(path_bins=1024)
    with pytest.raises(NotImplementedError, match=r"^codec loc_tokens has no grammar"):
        CODEC.grammar()


def test_boxes_alone_are_bounded_by_their_number_and_no_vertices_are_counted() -> None:
    angles = np.linspace(0, 2 * np.pi, 30, endpoint=False)
    ring = np.stack([32 + 20 * np.cos(angles), 32 + 10 * np.sin(angles)], 1)
    alone = Codec(outlines=False, max_vertices=8, max_rings=3)
    text = alone.encode([[ring]] * 3, 64, 64)
    assert text == " ; ".join(["<loc0352><loc0192><loc0672><loc0832>"] * 3)
    assert len(alone.read(text, 64, 64).instances) == 3
    with pytest.raises(ValueError, match=r"^4 boxes exceed the codec's max_rings 3; raise it"):
        alone.encode([[ring]] * 4, 64, 64)
    assert alone.read(" ; ".join([text, BOX]), 64, 64).status is AnswerStatus.OUT_OF_RANGE
    with pytest.raises(ValueError, match=r"max_vertices 8; simplify"):
        Codec(max_vertices=8).encode([[ring]], 64, 64)


def test_digits_of_other_scripts_are_none() -> None:
    assert CODEC.read(BOX.replace("0", "\u0660"), 200, 80).status is AnswerStatus.UNPARSABLE
