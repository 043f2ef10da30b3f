"""SmolVLM2: tiles of a photo and the tokens that say which is which, limits that are kept, and its real size."""

from pathlib import Path

import numpy as np
import pytest
import torch
from asking import ask, ask_all
from jinja2 import Environment
from test_vision_language import images, tokens_of, write_internvl, write_smolvlm
from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from envs.codecs import point_text
from envs.codecs.path_tokens import Codec
from policies.checkpoint import Checkpoint
from policies.families._smolvlm import SmolVLM, _layout, _tile_tokens
from policies.families.vision_language import Policy
from policies.settings import Asking

PHOTOS = [(h, w) for h in (40, 64, 97, 210, 333) for w in (33, 64, 65, 128, 200, 301, 640)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("smolvlm")
    write_smolvlm(made, longest_edge=96)
    return made


def test_tiles_are_those_of_transformers_own_processor_for_many_photos() -> None:
    sizes = {"size": {"longest_edge": 96}, "max_image_size": {"longest_edge": 32}}
    theirs = SmolVLMImageProcessorPil(**sizes, return_row_col_info=True)
    for height, width in PHOTOS:
        found = theirs(images=[images(1, height=height, width=width)[0]], input_data_format="channels_last")
        told = found["rows"][0][0], found["cols"][0][0]
        assert _layout(height, width, 96, 32) == (told if told != (0, 0) else (1, 1)), (height, width)
    # As released: 640 x 480 at a longest side of 2,048 in tiles of 512 is 3 x 4.
    assert _layout(480, 640, 2048, 512) == (3, 4)


def test_a_prompt_says_row_and_column_before_each_tile_and_shows_the_whole_last(folder: Path) -> None:
    processor = Policy.make_processor(folder, Codec(), Asking("the {phrase}"))
    image = images(1, height=60, width=96)[0]  # 2 x 3 tiles
    said = processor.tokenizer.convert_ids_to_tokens(processor.prompt_tokens(ask(image, "dog")))
    marks = [word for word in said if word != "<|image_pad|>"]
    around = "<fake_token_around_image>"
    tiles = [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2, 3)]
    expected = [word for tile in tiles for word in (around, tile)]
    assert marks == [*expected, around, "<global-img>", around, "the", "dog", "<|answer|>"]
    assert said.count("<|image_pad|>") == 7 * 16 == processor.image_tokens(60, 96)
    assert said[2:18] == ["<|image_pad|>"] * 16  # behind each mark the tile's own tokens
    shared, rest = processor.question_lengths(ask(image, "dog"))
    assert (shared, rest) == (len(said) - 3, 3)
    assert processor.shown_size(60, 96) == (64, 96) and processor.image_patches(60, 96) == 7 * 64
    small = processor.tokenizer.convert_ids_to_tokens(processor.prompt_tokens(ask(images(1)[0], "dog")))
    assert processor.image_tokens(32, 32) == 10 * 16  # enlarged to 96 x 96
    assert small.count("<row_3_col_3>") == 1


@torch.no_grad()
def test_answers_about_photos_of_several_layouts_in_one_batch_are_those_of_each_alone(folder: Path) -> None:
    policy = Policy(folder, Codec(), question="find {phrase}")
    mixed = [images(1, height=96, width=30)[0], images(1, height=60, width=96)[0]]
    answers = tokens_of(policy, [["1 2 30 40 0 0 5 5 0 5", "none"], ["7 8 9"]])
    rows = policy.rows(ask_all(mixed, ["dog", "the banana"]), answers)
    assert rows.image_grid.tolist() == [[4, 1, 1], [7, 1, 1]] and len(rows.pixel_values) == 11
    for b, phrase in enumerate(["dog", "the banana"]):
        alone = policy(policy.rows([ask(mixed[b], phrase)], answers[b : b + 1]))
        found = policy(rows)[b : b + 1, : alone.shape[1], : alone.shape[2]]
        torch.testing.assert_close(found, alone, atol=1e-5, rtol=0)


@torch.no_grad()
def test_features_of_tiles_lie_side_by_side_where_their_pixels_are(folder: Path) -> None:
    policy = Policy(folder, Codec())
    wide = images(1, height=64, width=96)[0]  # 2 x 3 tiles of 4 x 4 tokens, not resampled
    for early in (0, 2):
        features = policy.vision_features([wide, wide], early)
        assert features.final.shape == (2, 32, 8, 12) and features.early.shape == (2, 4 * 16, 8, 12)
    changed = wide.copy()
    changed[40:48, 64:72] ^= 255
    features, moved = policy.vision_features([wide]), policy.vision_features([changed])
    assert (features.early != moved.early).any(1).nonzero().tolist() == [[0, 5, 8]]
    tiles = (features.final != moved.final).any(1)[0].view(2, 4, 3, 4).any(3).any(1)
    assert tiles.tolist() == [[False, False, False], [False, False, True]]


def test_fewer_pixels_are_a_shorter_longest_side_and_stay_so_in_what_is_saved(folder: Path, tmp_path: Path) -> None:
    def processor(most: int | None, of: Path = folder):
        return Policy.make_processor(of, Codec(), Asking(max_pixels=most))

    assert [processor(most).image_tokens(60, 96) for most in (None, 96**2, 64**2, 64**2 - 1, 32**2)] == [
        7 * 16,
        7 * 16,
        5 * 16,
        16,
        16,
    ]
    Policy(folder, Codec(), max_pixels=64**2).save(tmp_path)
    assert processor(None, tmp_path).image_tokens(60, 96) == 5 * 16
    with pytest.raises(ValueError, match=r"^policy\.max_pixels is 1000, less than one tile of SmolVLM2 shows \(1024\)"):
        processor(1000)
    with pytest.raises(ValueError, match=r"^policy\.min_pixels is 9, but SmolVLM2 sees an image as whole tiles"):
        Policy.make_processor(folder, Codec(), Asking(min_pixels=9))
    write_internvl(tmp_path / "internvl")
    Policy(tmp_path / "internvl", Codec(), max_pixels=2 * 32**2).save(tmp_path / "fewer")
    assert processor(None, tmp_path / "fewer").image_tokens(440, 660) == 3 * 16


def test_tokens_of_a_tile_are_those_of_the_released_sizes_and_others_are_refused() -> None:
    def tokens(side: int, patch: int, shuffle: int) -> int:
        held = Checkpoint(Path("released"))
        held.__dict__["config"] = {"vision_config": {"patch_size": patch}, "scale_factor": shuffle}
        return _tile_tokens(held, side)

    assert (tokens(384, 14, 3), tokens(512, 16, 4)) == (81, 64)  # 2.2B; 0.25B and 0.5B
    with pytest.raises(ValueError, match=r"are 384 pixels, 27 patches of 14, and 4 by 4 of them become a token"):
        tokens(384, 14, 4)


def test_places_are_thousandths_whatever_the_tiles(folder: Path) -> None:
    codec = Policy.make_processor(folder, point_text.Codec()).codec
    ring = np.array([(0.0, 0.0), (150.0, 0.0), (150.0, 50.0)])
    assert codec.encode([[ring]], 100, 300) == "[[[0, 0], [500, 0], [500, 500]]]"


def test_its_template_asks_as_the_family_does() -> None:
    content = [{"type": "image"}, {"type": "text", "text": "Outline the dog."}]
    text = Environment().from_string(SmolVLM.template)
    asked = text.render(messages=[{"role": "user", "content": content}], add_generation_prompt=True)
    assert asked == "<|im_start|>User:<image>Outline the dog.<end_of_utterance>\nAssistant:"
    system = {"role": "system", "content": [{"type": "text", "text": "Be short."}]}
    both = text.render(messages=[system, {"role": "user", "content": content}], add_generation_prompt=True)
    assert both.startswith("<|im_start|>System: Be short.<end_of_utterance>\nUser:<image>")


def test_at_the_size_of_smolvlm2_2_2b_it_has_the_parameters_that_are_told_of_it() -> None:
    text = {"model_type": "llama", "vocab_size": 49280, "hidden_size": 2048, "intermediate_size": 8192}
    text |= {"num_hidden_layers": 24, "num_attention_heads": 32, "num_key_value_heads": 32}
    vision = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
    vision |= {"image_size": 384, "patch_size": 14}
    with torch.device("meta"):
        config = SmolVLMConfig(text_config=text, vision_config=vision, scale_factor=3, tie_word_embeddings=False)
        model = SmolVLMForConditionalGeneration(config)
    family = SmolVLM()
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == pytest.approx(2.25e9, rel=0.01)
    of_projector = sum(p.numel() for module in family.projector(model) for p in module.parameters())
    assert of_projector == 9 * 1152 * 2048  # nine patches laid together
    of_tower = sum(parameter.numel() for parameter in family.tower(model).parameters())
    assert of_tower - of_projector == pytest.approx(0.413e9, rel=0.01)  # SigLIP So400m
