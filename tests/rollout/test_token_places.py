"""Tokens told apart by the vertex that they say, in every form of answer."""

from pathlib import Path

import numpy as np
import pytest

from envs.codecs import json_objects, path_tokens, point_text
from envs.polygons import Ring
from policies.families.base import Response
from rl.config.load import load_settings
from rl.config.run import RunConfig
from rl.run.parts import processor_of, run_parts
from rollout.token_places import text_ends, token_places

RINGS: list[list[Ring]] = [
    [np.array([(2.0, 2.0), (20.0, 2.0), (20.0, 20.0), (2.0, 20.0)]), np.array([(5.0, 5.0), (5.0, 9.0), (9.0, 5.0)])],
    [np.array([(40.0, 40.0), (60.0, 40.0), (50.0, 60.0)])],
]


@pytest.mark.parametrize(
    "codec",
    [
        path_tokens.Codec(),
        point_text.Codec(),
        point_text.Codec(coordinates="thousandths"),
        json_objects.Codec(boxes=True),
        json_objects.Codec(outline_key="a[b"),
    ],
)
def test_places_of_a_text_are_its_vertices_in_order_with_the_instance_of_each(
    codec: path_tokens.Codec | point_text.Codec | json_objects.Codec,
) -> None:
    text = codec.encode(RINGS, 64, 64)
    places = codec.text_places(text)
    vertices = [place for place in places if place.vertex is not None]
    assert [place.vertex for place in vertices] == list(range(10))
    assert [place.instance for place in vertices] == [0] * 7 + [1] * 3
    boxes = [place.instance for place in places if place.vertex is None]
    assert boxes == ([0, 1] if "bbox" in text or isinstance(codec, path_tokens.Codec) else [])
    for place in vertices:
        said = text[place.begin : place.end]
        assert len(said.replace(",", " ").split()) == 2 and said[0].isdigit() and said[-1].isdigit()


def test_a_label_that_looks_like_an_outline_is_none() -> None:
    text = '[{"label": "a } \\" [[1, 2], [3, 4]]", "polygon_2d": [[0.1, 0.1], [0.5, 0.1], [0.5, 0.5]]}]'
    places = json_objects.Codec().text_places(text)
    assert [(place.instance, place.vertex) for place in places] == [(0, 0), (0, 1), (0, 2)]


def test_texts_of_tokens_end_where_they_are_put_together_with_or_without_spaces() -> None:
    assert text_ends(["12", "3", ""], "123") is not None
    ends = text_ends(["12", "3", ""], "12 3")
    assert ends is not None and ends.tolist() == [2, 4, 4]
    assert text_ends(["a", "b"], "a-b") is None


def test_of_a_box_and_a_path_each_number_has_its_place_and_the_end_none() -> None:
    processor = processor_of(run_parts(load_settings(RunConfig, Path("tiny"), ["run=unused"])).policy)
    text = "4 4 40 40 0 0 32 0 16 32 ; 1 2 3 5 0 0 8 0 8 8"
    tokens = processor.answer_tokens(text)
    response = Response(tokens, np.zeros(len(tokens), np.float32), "stop")
    places = token_places(processor, response, text, processor.read(response, 64, 64))
    assert places is not None
    one = [[0, -1]] * 4 + [[0, 0]] * 2 + [[0, 1]] * 2 + [[0, 2]] * 2
    two = [[1, -1]] * 4 + [[1, 3]] * 2 + [[1, 4]] * 2 + [[1, 5]] * 2
    assert places.tolist() == [*one, [-1, -1], *two, [-1, -1]]
    cut = Response(tokens[:-3], np.zeros(len(tokens) - 3, np.float32), "length")
    assert token_places(processor, cut, processor.text(cut), processor.read(cut, 64, 64)) is None
