"""Answers that cannot be taught are refused before the first step, with the example, the words and what to do."""

from dataclasses import replace
from pathlib import Path

import pytest
from ellipses import Env
from rich.console import Console

from envs.codecs import point_text
from envs.codecs.path_tokens import Codec
from policies.families.vision_language import Policy
from rl.config.sft import SftConfig, SftLearner, SftSettings, SftStage
from rl.sft import run_sft
from rl.supervised.answers import answer_text, answer_tokens, refuse_unfit_answers
from rl.supervised.plan import refuse_small_budgets

ELLIPSES = {"module": str(Path(__file__).parents[2] / "ellipses.py"), "num": 5}
SETTINGS = SftSettings(
    [SftStage("outlines", 1, lr=0.01)], scenes_per_step=1, max_vertices=9, max_rings=1, evaluate_scenes=3
)
SPLITS = Env("train", num=5), Env("validation", num=5)
QUIET = Console(quiet=True)


def config(max_tokens: int, **sft: int) -> SftConfig:
    return SftConfig(run="never", max_tokens=max_tokens, sft=replace(SETTINGS, **sft))


def test_answers_that_fit_are_let_through_and_one_token_less_is_refused_by_the_longest(tiny_untrained: Path) -> None:
    processor = Policy.make_processor(tiny_untrained, Codec())
    lengths = [len(processor.answer_tokens(answer_text(SPLITS[1][k], Codec(), SETTINGS))) for k in range(3)]
    assert max(lengths) <= 4 + 2 * 9 + 1
    refuse_unfit_answers(processor, SPLITS, config(max(lengths)))
    message = (
        rf"^max_tokens is 5, but the answer to validation \d takes {max(lengths)} tokens, .*max_vertices \(now 9\)"
    )
    with pytest.raises(ValueError, match=message):
        refuse_unfit_answers(processor, SPLITS, config(5))


def test_an_answer_beyond_the_limits_of_the_codec_is_named(tiny_untrained: Path) -> None:
    small = Codec(max_vertices=5)
    with pytest.raises(
        ValueError, match=r"^the answer to train 0 has 1 outlines of up to .* write: 1 rings with \d vert"
    ):
        refuse_unfit_answers(Policy.make_processor(tiny_untrained, small), SPLITS, config(64))


def test_an_answer_with_words_that_the_tokenizer_has_not_is_named(tiny_untrained: Path) -> None:
    processor, codec = Policy.make_processor(tiny_untrained, Codec()), Codec(path_bins=500)
    example = SPLITS[0][0]
    with pytest.raises(ValueError, match=r"^the codec writes '.*' as the answer to train 0, but .* cannot write '\d+'"):
        answer_tokens(example, processor, answer_text(example, codec, SETTINGS))


def test_a_codec_that_the_checkpoint_cannot_write_stops_a_run_before_its_first_step(
    tiny_untrained: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    wrong = SftConfig(
        run=str(folder),
        env=ELLIPSES,
        codec={"name": "point_text"},
        policy={"checkpoint": str(tiny_untrained)},
        sft=SETTINGS,
    )
    text = answer_text(SPLITS[0][0], point_text.Codec(coordinates="thousandths"), SETTINGS)
    with pytest.raises(
        ValueError, match=r"^codec is point_text, policy\.checkpoint .*: the codec writes .*; choose"
    ) as e:
        run_sft(wrong, QUIET)
    assert repr(text.split()[0]) in str(e.value) and "answer to train 0" in str(e.value)
    assert not folder.exists()


def test_a_scene_above_a_budget_of_a_pass_is_refused_by_its_numbers(tiny_untrained: Path) -> None:
    processor = Policy.make_processor(tiny_untrained, Codec())
    question = SPLITS[0][0].question(SPLITS[0].image(SPLITS[0][0].image))
    prompt, rest = processor.question_lengths(question)
    assert (prompt + rest, prompt) == (len(processor.prompt_tokens(question)), 16 + 2)  # its image in a frame
    longest = max(len(processor.answer_tokens(answer_text(SPLITS[0][k], Codec(), SETTINGS))) for k in range(5))
    enough = SftLearner(token_budget=prompt + rest + longest, patch_budget=16)
    refuse_small_budgets(SPLITS[0], processor, replace(config(64), learner=enough))
    few = replace(enough, token_budget=prompt + rest + longest - 1)
    with pytest.raises(
        ValueError, match=rf"^an image of 32 x 32 pixels takes {prompt} tokens and its 1 questions and an"
    ):
        refuse_small_budgets(SPLITS[0], processor, replace(config(64), learner=few))
    with pytest.raises(ValueError, match=r"^an image has 16 patches, more than learner.patch_budget 15; set it to"):
        refuse_small_budgets(SPLITS[0], processor, replace(config(64), learner=replace(enough, patch_budget=15)))


def test_stages_that_a_tokenizer_or_a_codec_cannot_have_are_refused_by_name(tiny_untrained: Path) -> None:
    words = Policy.make_processor(tiny_untrained, Codec())
    spread = replace(SETTINGS, stages=[SftStage("soft", 1, lr=0.01, number_spread=1.5)])
    refuse_unfit_answers(words, SPLITS, replace(config(64), sft=spread))
    weighed = replace(SETTINGS, stages=[SftStage("chosen", 1, lr=0.01, positive_weight=2.0)])
    with pytest.raises(ValueError, match=r"^positive_weight of stage chosen is 2\.0, and the codec writes answers"):
        refuse_unfit_answers(words, SPLITS, replace(config(64), sft=weighed))
    boxes = replace(SETTINGS, stages=[SftStage("boxes", 1, lr=0.01, answer="box")])
    refuse_unfit_answers(words, SPLITS, replace(config(64), sft=boxes))
    text = Policy.make_processor(tiny_untrained, point_text.Codec(coordinates="unit"))
    with pytest.raises(ValueError, match=r"^stage boxes teaches boxes .* do not begin with one; set answer to outline"):
        refuse_unfit_answers(text, SPLITS, replace(config(64), sft=boxes))
