"""A codec that a tokenizer cannot write is found from a few of its answers, with the words that are missing."""

from pathlib import Path

import pytest
from test_grammar import SIZES, byte_level

from envs.codecs import point_text
from envs.codecs.path_tokens import Codec
from envs.plugin import Plugin
from policies.families.vision_language import Policy
from policies.tiny_model import write_untrained
from rl.run.writable import refuse_unwritable, refuse_unwritable_codec, unwritable_words


@pytest.fixture(scope="module")
def policy(tiny_untrained: Path) -> Policy:
    return Policy(tiny_untrained, Codec(), weights=False)


def test_a_tokenizer_of_bytes_can_write_every_codec(tmp_path: Path) -> None:
    for name, built in (("path_tokens", Codec(box_bins=1000)), ("point_text", point_text.Codec())):
        policy = byte_level(tmp_path / name, built)
        recipe = Plugin("policies.families", "Policy", "vision_language", {"checkpoint": tmp_path / name})
        refuse_unwritable_codec(policy, recipe, Plugin("envs.codecs", "Codec", name, vars(built)))


def test_a_tokenizer_of_the_signs_of_point_text_may_write_them_with_spaces_but_is_not_taught_so(tmp_path: Path) -> None:
    write_untrained(tmp_path, [*"[],;", *[f"{k / 10:.1f}" for k in range(11)]], SIZES, seed=0)
    built = point_text.Codec(decimals=1, max_vertices=5)
    policy = Policy(tmp_path, built, weights=False)
    recipe = Plugin("policies.families", "Policy", "vision_language", {"checkpoint": tmp_path})
    refuse_unwritable_codec(policy, recipe, codec("point_text", decimals=1, max_vertices=5))
    with pytest.raises(ValueError, match=r"cannot write '\[\]'; choose"):
        refuse_unwritable(policy, built.encode([], 32, 32), "answer to a")


def codec(name: str, **settings: int) -> Plugin:
    return Plugin("envs.codecs", "Codec", name, settings)


def test_words_of_the_vocabulary_can_be_written_and_others_are_named_once(policy: Policy) -> None:
    assert unwritable_words(policy, "0 1 30 64 0 0 9 9 0 9 M 3 3 4 4 3 4 ; none") == []
    assert unwritable_words(policy, "65 1 65 M 066 2") == ["65", "066"]


def test_tokens_that_are_never_sampled_cannot_be_written(policy: Policy) -> None:
    for special in policy.tokenizer.all_special_tokens:
        assert unwritable_words(policy, f"1 {special} 2") == [special]


def test_an_answer_that_cannot_be_written_is_refused_with_what_it_is_of(policy: Policy) -> None:
    refuse_unwritable(policy, "1 2", "answer to a")
    with pytest.raises(
        ValueError, match=r"^the codec writes '1 70 2' as the answer to a, but .* cannot write '70'; ch"
    ):
        refuse_unwritable(policy, "1 70 2", "answer to a")
    with pytest.raises(ValueError, match=r"cannot write '70', '71', '72', '73', '74' \.\.\.; choose"):
        refuse_unwritable(policy, "70 71 72 73 74 75", "answer to a")


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
    policy: Policy, tiny_untrained: Path, name: str, settings: dict[str, int], word: str
) -> None:
    recipe, named = (
        Plugin("policies.families", "Policy", "vision_language", {"checkpoint": tiny_untrained}),
        codec(name, **settings),
    )
    refuse_unwritable_codec(policy, recipe, codec("path_tokens", max_rings=1, max_vertices=3))
    other = Policy(tiny_untrained, named.build(), weights=False)
    with pytest.raises(
        ValueError, match=rf"^codec is {name}, policy.checkpoint {tiny_untrained}: .* write {word}; cho"
    ):
        refuse_unwritable_codec(other, recipe, named)
