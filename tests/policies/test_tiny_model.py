import math
from pathlib import Path

import numpy as np
import pytest
import torch
from asking import ask

from envs.codecs.path_tokens import Codec
from policies.families.vision_language import Policy
from policies.tiny_model import TinySizes, sine_positions, word_tokenizer, write_untrained

SMALL = TinySizes(
    image_size=32, text_width=32, text_layers=1, text_heads=2, vision_width=16, vision_layers=1, vision_heads=2
)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_equal_arguments_write_equal_files_and_another_seed_other_weights(tmp_path: Path) -> None:
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        torch.rand(7)  # where the global stream stands must not matter
        write_untrained(tmp_path / name, ["1", "2", "dog"], SMALL, seed)
    first, again, other = (files(tmp_path / name) for name in ("first", "again", "other"))
    assert first == again
    assert [name for name in first if first[name] != other[name]] == ["model.safetensors"]


def test_each_word_is_one_token_after_the_special_ones_in_the_order_given() -> None:
    tokenizer = word_tokenizer(["1", "0", "M", "1", "dog"])
    assert tokenizer("dog 0 1 M").input_ids == [11, 9, 8, 10]
    assert len(tokenizer) == 12
    assert sorted(tokenizer.all_special_ids) == list(range(8))


def test_a_word_that_is_not_in_the_vocabulary_becomes_the_unknown_token() -> None:
    tokenizer = word_tokenizer(["dog"])
    assert tokenizer("dog cat dogs").input_ids == [8, tokenizer.unk_token_id, tokenizer.unk_token_id]


@pytest.mark.parametrize("text", ["0 1 30 64 0 0 9 9 0 9 M 3 3 4 4 3 4 ; 1 1 2 2 0 0 9 9 0 9", "none"])
def test_an_answer_comes_back_from_its_tokens_word_for_word(text: str) -> None:
    tokenizer = word_tokenizer(Codec().words)
    ids = tokenizer(text).input_ids
    assert len(ids) == len(text.split())
    assert tokenizer.decode(ids) == text


def test_sine_positions_of_row_1_column_2_by_hand() -> None:
    positions = sine_positions(4, 8)
    assert positions.shape == (16, 8)
    # Two frequencies, pi / 2 and pi / 20: sines then cosines of the row, then of the column.
    slow = math.pi / 20
    row = [1.0, math.sin(slow), 0.0, math.cos(slow)]
    column = [0.0, math.sin(2 * slow), -1.0, math.cos(2 * slow)]
    np.testing.assert_allclose(positions[1 * 4 + 2], row + column, atol=1e-6)


def test_every_place_of_the_grid_has_its_own_sine_position() -> None:
    positions = sine_positions(8, 96)
    distances = torch.cdist(positions, positions) + 1e9 * torch.eye(64)
    assert distances.min() > 0.5


def test_the_default_model_has_between_1_and_4_million_parameters_in_less_than_10_megabytes(tmp_path: Path) -> None:
    write_untrained(tmp_path, Codec().words, TinySizes(), seed=0)
    policy = Policy(tmp_path, Codec())
    assert 1e6 < sum(parameter.numel() for parameter in policy.parameters()) < 4e6
    assert (tmp_path / "model.safetensors").stat().st_size < 10e6


def test_layers_start_at_one_over_the_square_root_of_their_inputs_and_residual_ones_lower(tiny_untrained: Path) -> None:
    weights = dict(Policy(tiny_untrained, Codec()).model.named_parameters())
    text, vision = "model.language_model.layers.0.", "model.visual.blocks.0."
    for name, expected in {
        "model.language_model.embed_tokens.weight": 32**-0.5,
        text + "mlp.up_proj.weight": 32**-0.5,
        text + "mlp.down_proj.weight": 96**-0.5 / 2,
        text + "self_attn.o_proj.weight": 32**-0.5 / 2,
        vision + "attn.qkv.weight": 16**-0.5,
        vision + "mlp.linear_fc2.weight": 48**-0.5 / 2,
        "model.visual.patch_embed.proj.weight": 192**-0.5,
    }.items():
        assert weights[name].std().item() == pytest.approx(expected, rel=0.15), name
    assert torch.equal(weights["model.visual.pos_embed.weight"].detach(), sine_positions(4, 16))


def test_an_untrained_model_is_about_as_unsure_as_a_uniform_one(tiny_untrained: Path) -> None:
    policy = Policy(tiny_untrained, Codec())
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    rows = policy.rows([ask(image, "dog")], [[policy.processor.answer_tokens("1 2 3 4 5 6 7 8 9")]])
    possible = len(policy.processor.tokenizer) - 7
    assert -policy(rows).mean().item() == pytest.approx(math.log(possible), abs=0.7)


def test_an_image_is_cut_into_patches_without_resizing(tiny_untrained: Path) -> None:
    policy = Policy(tiny_untrained, Codec())
    image = np.zeros((32, 32, 3), np.uint8)
    image[8:16, 24:32] = 255
    rows = policy.rows([ask(image, "dog")], [[policy.processor.answer_tokens("none")]])
    assert rows.image_grid.tolist() == [[1, 4, 4]]
    assert rows.pixel_values.shape == (16, 192)
    white = (rows.pixel_values > 0).all(1)
    assert white.nonzero().flatten().tolist() == [1 * 4 + 3]
