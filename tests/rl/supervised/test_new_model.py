"""A new tiny model for photos of one's own: its words are those that can be asked and answered, or it is not made."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from asking import ask_all
from ellipses import Env
from rich.console import Console

from envs.codecs import point_text
from envs.codecs.path_tokens import Codec
from envs.datasets import cutout_scenes
from envs.plugin import Plugin
from policies.families.base import Response
from policies.families.vision_language import Policy
from policies.tiny_model import TinySizes
from rl.config.sft import SftConfig, SftLearner, SftSettings, SftStage
from rl.sft import run_sft
from rl.supervised.new_model import asked_words, shown_smaller, write_new_model

SMALL = TinySizes(32, 8, 32, 1, 2, 16, 1, 2)
PATH = Plugin("envs.codecs", "Codec", "path_tokens", {})
ALONE = SftLearner(threads=1)
QUIET = Console(quiet=True)
ELLIPSES = {"module": str(Path(__file__).parents[2] / "ellipses.py")}


def config(run: Path, **settings: object) -> SftConfig:
    stages = [SftStage("outlines", 1, lr=0.01)]
    sft = SftSettings(stages, scenes_per_step=2, max_vertices=6, max_rings=1, evaluate_scenes=2)
    return SftConfig(
        **{
            "run": str(run),
            "env": ELLIPSES,
            "codec": {"name": "path_tokens"},
            "tiny": SMALL,
            "sft": sft,
            "learner": ALONE,
        }
        | settings
    )


def test_an_env_without_names_gives_a_model_that_knows_its_phrases_and_is_trained(tmp_path: Path) -> None:
    policy = Policy(run_sft(config(tmp_path), QUIET), Codec())
    assert policy.processor.tokenizer("ellipse none 64 M").input_ids == [76, 75, 72, 73]
    assert len(policy.processor.tokenizer) == 8 + 65 + 3 + 1  # special tokens, numbers, signs of the codec, the phrase
    assert (tmp_path / "curve.tsv").read_text().splitlines()[1].startswith("1\toutlines\t")


def test_words_of_the_question_are_known_as_they_touch_the_phrase() -> None:
    assert asked_words("{phrase}", ["left", "dog"]) == {"left", "dog"}
    asked = asked_words("Outline ({phrase}).", ["dog", "left"])
    assert asked == {"Outline", "(dog).", "(left).", "(dog", "(left", "dog).", "left)."}


def test_every_phrase_in_a_question_of_own_words_is_written_without_an_unknown_word(tmp_path: Path) -> None:
    env = cutout_scenes.Env("train", image_size=32, num_scenes=20)
    asking = config(tmp_path, policy={"question": "Outline {phrase}, please."})
    write_new_model(tmp_path, asking, env, PATH, QUIET)
    policy = Policy(tmp_path, Codec(), question="Outline {phrase}, please.")
    for index in range(20):
        for example in env.scene(index):
            ids = policy.processor.engine_tokens(example.question(env.image(example.image)))
            assert policy.processor.tokenizer.unk_token_id not in ids, example.prompt.text


NAMELESS = """
from dataclasses import dataclass

from envs.polygons import Answer, AnswerStatus


@dataclass(frozen=True)
class Codec:
    def encode(self, instances, height, width):
        return "yes"

    def read(self, text, height, width, truncated=False):
        return Answer(AnswerStatus.EMPTY)
"""


def test_a_codec_that_names_no_words_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "nameless.py").write_text(NAMELESS)
    with pytest.raises(
        ValueError, match=r"^codec is nameless, and the new model .* choose codec path_tokens or point_"
    ):
        run_sft(config(tmp_path / "run", codec={"module": str(tmp_path / "nameless.py")}), QUIET)
    assert not (tmp_path / "run").exists()


def test_a_new_model_writes_points_digit_by_digit_and_begins_from_another_of_its_sizes(tmp_path: Path) -> None:
    first = run_sft(config(tmp_path / "words"), QUIET)
    codec = {"name": "point_text", "decimals": 2}
    begun = replace(SMALL, begin_from=str(first))
    digits = config(tmp_path / "digits", codec=codec, tiny=begun, max_tokens=64)
    policy = Policy(run_sft(digits, QUIET), point_text.Codec(decimals=2, coordinates="unit"))
    old, new = Policy(first, Codec()), Policy(tmp_path / "digits" / "untrained", point_text.Codec())
    hole = "[[0.1, 0.1], [0.1, 0.2], [0.2, 0.2]]"
    text = f"[[[0.12, 0.3], [1.0, 0.05], [0.5, 0.77]]]; [[[0.0, 0.0], [0.3, 0.0], [0.3, 0.3]], {hole}]"
    tokens = policy.processor.answer_tokens(text)
    assert policy.processor.tokenizer.convert_ids_to_tokens(tokens)[:6] == ["[[[", "0.", "1", "2", ", ", "0."]
    assert policy.processor.text(Response(tokens, np.zeros(len(tokens), np.float32), "stop")) == text
    for name, parameter in new.model.named_parameters():
        if "embed_tokens" not in name:
            assert torch.equal(parameter, dict(old.model.named_parameters())[name]), name
    (was, old_rows), (now, new_rows) = (
        (p.processor.tokenizer.get_vocab(), p.model.get_input_embeddings().weight) for p in (old, new)
    )
    assert torch.equal(new_rows[now["ellipse"]], old_rows[was["ellipse"]])
    assert torch.equal(new_rows[now["7"]], old_rows[was["7"]])
    other = config(tmp_path / "other", codec=codec, tiny=replace(begun, text_layers=2), max_tokens=64)
    with pytest.raises(ValueError, match=r"^tiny.begin_from is .*words/policy, where .*layers\.1.* has shape None"):
        run_sft(other, QUIET)


def test_a_question_without_a_phrase_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^policy\.question is 'Outline it\.', which never asks the phrase"):
        run_sft(config(tmp_path / "run", policy={"question": "Outline it."}), QUIET)
    assert not (tmp_path / "run").exists()


def test_it_is_said_where_images_are_shown_smaller_than_they_are() -> None:
    assert shown_smaller(Env("train"), SMALL) is None
    assert shown_smaller(Env("train", sizes=((64, 16),)), SMALL) is None
    said = shown_smaller(Env("train", sizes=((48, 64),)), SMALL)
    assert said == (
        "note: images such as 0 have 48 x 64 pixels, and the new model is shown about 1024 of them, as many as 32 x 32;"
        " for finer outlines, raise tiny.image_size."
    )


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"image_size": 60}, r"tiny\.image_size is 60, which is no multiple of tiny\.patch_size 8.*set it to 64"),
        ({"patch_size": 0}, r"tiny\.patch_size is 0; set it to 1 or more"),
        ({"text_heads": 42}, r"tiny\.text_width is 128 for 42 heads.* a head of text needs an even width"),
        ({"vision_width": 90}, r"vision_width 90 for 4; .* must be a multiple of 4 x 4"),
    ],
)
def test_sizes_of_which_no_model_can_be_made_are_refused(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TinySizes(**sizes)


def test_photos_that_are_not_square_are_learned_in_their_own_ratio(tmp_path: Path) -> None:
    env = {**ELLIPSES, "sizes": [[48, 24], [20, 60]]}
    policy = Policy(run_sft(config(tmp_path, env=env), QUIET), Codec())
    images = [np.zeros((*size, 3), np.uint8) for size in ((48, 24), (20, 60))]
    rows = policy.rows(ask_all(images, ["ellipse"] * 2), [[policy.processor.answer_tokens("none")]] * 2)
    assert rows.image_grid.tolist() == [[1, 5, 2], [1, 2, 8]]
