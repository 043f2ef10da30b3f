"""Budgets of supervised passes where questions about one image share nothing."""

from pathlib import Path

import numpy as np
import pytest
from asking import ask
from test_vision_language import images, write_paligemma

from envs.codecs import loc_tokens
from envs.codecs.path_tokens import Codec
from policies.families.base import TaughtAnswer
from policies.families.vision_language import Policy
from policies.tiny_model import word_tokenizer
from rl.config.sft import SftLearner
from rl.supervised.plan import scene_tokens, stretches


def test_every_question_counts_its_image_and_a_budget_holds_for_all_rows_together(tmp_path: Path) -> None:
    write_paligemma(tmp_path)
    processor = Policy.make_processor(tmp_path, Codec())
    image = images(1)[0]
    scene = [
        TaughtAnswer(ask(image, word), processor.answer_tokens("1 2 3"))
        for word in ("dog", "banana", "upper left banana")
    ]
    counted = scene_tokens([scene], processor)
    rows = processor.supervised_rows([scene])
    real = int(rows.prompt_mask.sum()) + int(rows.response_mask.sum())
    assert int(counted.prompts[0] + counted.answers[0]) == real and counted.patches.tolist() == [3 * 16]
    assert len(rows.pixel_values) == 3
    learner = SftLearner(token_budget=real, patch_budget=96)
    assert stretches([scene, scene], processor, learner) == [(0,), (1,)]
    with pytest.raises(ValueError, match=rf"more than learner\.token_budget {real - 1}"):
        stretches([scene], processor, SftLearner(token_budget=real - 1))


def test_numbers_are_the_codecs_own_tokens_where_it_has_some(tmp_path: Path) -> None:
    write_paligemma(tmp_path)
    codec = loc_tokens.Codec()
    tokenizer = word_tokenizer(["dog", *codec.words])
    tokenizer.chat_template = (tmp_path / "chat_template.jinja").read_text()
    tokenizer.save_pretrained(tmp_path)
    processor = Policy.make_processor(tmp_path, codec)
    names = processor.tokenizer.convert_ids_to_tokens(processor.number_tokens)
    assert names == codec.words and np.all(np.diff(processor.number_tokens) == 1)
