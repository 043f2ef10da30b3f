"""Rows of example shards keep every kind of prompt part."""

import numpy as np

from envs.example import BoxPart, Example, ImageRef, MaskPart, PointPart, Prompt, TextPart, Truth
from envs.shards.rows import Scene, example_of, example_row


def test_a_prompt_of_every_kind_of_part_comes_back():
    mask = np.zeros((4, 6), np.bool_)
    mask[1:3, 2:5] = True
    parts = (TextPart("left of"), PointPart((1.5, 2.0)), BoxPart((0.0, 1.0, 3.0, 4.0)), MaskPart(mask), TextPart("now"))
    image = ImageRef("k", "0" * 64, 4, 6)
    asked = Example("a", image, Prompt(parts, asked="box"), Truth(mask[None]), "train", "made", "CC0-1.0")
    row = example_row(asked, Scene(0, 1), None, b"")
    # What Parquet gives back has every field of a part, the others null.
    fields = ("kind", "text", "point_px", "box_px", "mask")
    row["prompt"] = [{name: part.get(name) for name in fields} for part in row["prompt"]]
    back = example_of(row).prompt
    assert back.asked == "box" and back.parts[:3] == parts[:3] and back.parts[4] == parts[4]
    assert isinstance(back.parts[3], MaskPart) and (back.parts[3].mask == mask).all()
