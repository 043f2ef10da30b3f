"""A codec that a tokenizer cannot write is found from a few of its answers, with the words that are missing."""

from pathlib import Path

import pytest
from ellipses import Env
from test_grammar import SIZES, byte_level

from envs.codecs import point_text
from envs.codecs.path_tokens import Codec
from envs.plugin import Plugin
from policies.families.vision_language import Policy
from policies.processor import Processor
from policies.tiny_model import write_untrained
from rl.run.writable import refuse_unwritable, refuse_unwritable_codec, unread_words_note, unwritable_words


@pytest.fixture(scope="module")
def processor(tiny_untrained: Path) -> Processor:
    return Policy.make_processor(tiny_untrained, Codec())


def test_a_tokenizer_of_bytes_can_write_every_codec(tmp_path: Path) -> None:
    for name, built in (("path_tokens", Codec(box_bins=1000)), ("point_text", point_text.Codec())):
        processor = byte_level(tmp_path / name, built).processor
        recipe = Plugin("policies.families", "Policy", "vision_language", {"checkpoint": tmp_path / name})
        refuse_unwritable_codec(processor, recipe, Plugin("envs.codecs", "Codec", name, vars(built)))


def test_a_tokenizer_of_the_signs_of_point_text_may_write_them_with_spaces_but_is_not_taught_so(tmp_path: Path) -> None:
    write_untrained(tmp_path, [*"[],;", *[f"{k / 10:.1f}" for k in range(11)]], SIZES, seed=0)
    built = point_text.Codec(decimals=1, max_vertices=5, coordinates="unit")
    processor = Policy.make_processor(tmp_path, built)
    recipe = Plugin("policies.families", "Policy", "vision_language", {"checkpoint": tmp_path})
    refuse_unwritable_codec(processor, recipe, codec("point_text", decimals=1, max_vertices=5, coordinates="unit"))
    with pytest.raises(ValueError, match=r"cannot write '\[\]'; choose"):
        refuse_unwritable(processor, built.encode([], 32, 32), "answer to a")


def test_words_of_phrases_that_a_tokenizer_of_words_does_not_know_are_told(tmp_path: Path) -> None:
    env = Env("train", num=20)  # of the phrase "ellipse" alone
    knows_it, knows_none = tmp_path / "knows", tmp_path / "none"
    write_untrained(knows_it, [*Codec().words, "ellipse"], SIZES, seed=0)
    write_untrained(knows_none, Codec().words, SIZES, seed=0)
    assert unread_words_note(env, Policy.make_processor(knows_it, Codec())) is None
    assert unread_words_note(env, byte_level(tmp_path / "bytes", Codec()).processor) is None
    note = unread_words_note(env, Policy.make_processor(knows_none, Codec()))
    assert note is not None
    assert note.startswith(
        "phrases of 20 of the first 20 training examples have words that the policy's tokenizer does"
    )
    assert "('ellipse'): it reads each as <|unknown|>" in note


def codec(name: str, **settings: int | str) -> Plugin:
    return Plugin("envs.codecs", "Codec", name, settings)


def test_words_of_the_vocabulary_can_be_written_and_others_are_named_once(processor: Processor) -> None:
    assert unwritable_words(processor, "0 1 30 64 0 0 9 9 0 9 M 3 3 4 4 3 4 ; none") == []
    assert unwritable_words(processor, "65 1 65 M 066 2") == ["65", "066"]


def test_tokens_that_are_never_sampled_cannot_be_written(processor: Processor) -> None:
    for special in processor.tokenizer.all_special_tokens:
        assert unwritable_words(processor, f"1 {special} 2") == [special]


def test_an_answer_that_cannot_be_written_is_refused_with_what_it_is_of(processor: Processor) -> None:
    refuse_unwritable(processor, "1 2", "answer to a")
    with pytest.raises(
        ValueError, match=r"^the codec writes '1 70 2' as the answer to a, but .* cannot write '70'; ch"
    ):
        refuse_unwritable(processor, "1 70 2", "answer to a")
    with pytest.raises(ValueError, match=r"cannot write '70', '71', '72', '73', '74' \.\.\.; choose"):
        refuse_unwritable(processor, "70 71 72 73 74 75", "answer to a")


@pytest.mark.parametrize(
    ("name", "settings", "word"),
    [
        ("point_text", {}, r"'\[\]'"),
        ("path_tokens", {"box_bins": 65}, "'65'"),
        ("path_tokens", {"box_bins": 128}, "'65'"),
        ("path_tokens", {"path_bins": 100}, "'75'"),
    ],
)
def test_a_codec_with_words_that_are_no_tokens_is_refused_by_name(
    processor: Processor, tiny_untrained: Path, name: str, settings: dict[str, int], word: str
) -> None:
    recipe, named = (
        Plugin("policies.families", "Policy", "vision_language", {"checkpoint": tiny_untrained}),
        codec(name, **settings),
    )
    refuse_unwritable_codec(processor, recipe, codec("path_tokens", max_rings=1, max_vertices=3))
    other = Policy.make_processor(tiny_untrained, named.build())
    with pytest.raises(
        ValueError, match=rf"^codec is {name}, policy.checkpoint {tiny_untrained}: .* write {word}; cho"
    ):
        refuse_unwritable_codec(other, recipe, named)
