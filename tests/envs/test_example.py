"""Prompts: texts joined, other parts and other answers refused by name."""

import numpy as np
import pytest

from envs.example import BoxPart, MaskPart, Part, PointPart, Prompt, TextPart


def test_texts_are_joined_by_one_space_and_other_parts_have_none() -> None:
    assert Prompt.of_text("the", "red cup").text == Prompt.of_text("the", "red cup").text_alone == "the red cup"
    assert Prompt((TextPart("left of"), PointPart((3.0, 4.0)), TextPart("now"))).text == "left of now"


@pytest.mark.parametrize(
    "part", [PointPart((1.5, 2.0)), BoxPart((0.0, 0.0, 2.0, 3.0)), MaskPart(np.ones((2, 2), np.bool_))]
)
def test_a_family_of_text_alone_refuses_another_part_by_its_name(part: Part) -> None:
    with pytest.raises(ValueError, match=rf"'the cup near'.*{type(part).__name__}"):
        _ = Prompt((TextPart("the cup near"), part)).text_alone


def test_a_box_is_asked_for_by_name_and_other_forms_are_refused() -> None:
    with pytest.raises(ValueError, match="asks for a box"):
        _ = Prompt((TextPart("the cup"),), asked="box").text_alone
    with pytest.raises(ValueError, match=r"'polygon'.*mask, box, point"):
        Prompt((TextPart("the cup"),), asked="polygon")
