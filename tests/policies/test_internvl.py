"""InternVL: tiles of a photo, the marks around them, a head that config.json leaves out, and its real size."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from asking import ask
from safetensors import safe_open
from test_vision_language import images, tokens_of, write_internvl
from transformers import InternVLConfig, InternVLForConditionalGeneration

from envs.codecs import point_text
from envs.codecs.path_tokens import Codec
from policies.families._internvl import InternVL
from policies.families.vision_language import Policy
from policies.settings import Asking


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("internvl")
    write_internvl(made)
    return made


def test_a_photo_is_the_tiles_of_its_ratio_and_itself_in_one_more(folder: Path) -> None:
    processor = Policy.make_processor(folder, Codec())
    # Tiles of 32 px of 16 tokens, at most 6: 3 to 2 is that of 640 x 480 and nearer than 2 to 1 or 1 to 1.
    for size, tiles, shown in (((32, 32), 1, (32, 32)), ((100, 300), 4, (32, 96)), ((440, 660), 7, (64, 96))):
        image = images(1, height=size[0], width=size[1])[0]
        pixels, grid = processor.patches([image])
        assert (grid.tolist(), len(pixels)) == ([[tiles, 1, 1]], tiles)
        assert processor.image_tokens(*size) == 16 * tiles and processor.shown_size(*size) == shown
        prompt = processor.prompt_tokens(ask(image, "dog"))
        assert (prompt == processor.image_token).sum() == 16 * tiles
    assert processor.image_patches(32, 32) == 64


def test_fewer_pixels_are_fewer_tiles_and_none_is_less_than_one(folder: Path) -> None:
    def tokens(max_pixels: int | None) -> int:
        return Policy.make_processor(folder, Codec(), Asking(max_pixels=max_pixels)).image_tokens(440, 660)

    assert [tokens(most) for most in (None, 4 * 32**2, 2 * 32**2 + 5, 32**2)] == [16 * 7, 16 * 5, 16 * 3, 16]
    with pytest.raises(ValueError, match=r"^policy\.max_pixels is 1000, less than one tile of InternVL shows \(1024\)"):
        tokens(1000)
    with pytest.raises(ValueError, match=r"^policy\.min_pixels is 9, but InternVL sees an image as whole tiles"):
        Policy.make_processor(folder, Codec(), Asking(min_pixels=9))


def test_marks_stand_around_the_image_which_all_questions_share(folder: Path) -> None:
    processor = Policy.make_processor(folder, Codec(), Asking("find {phrase}"))
    image = images(1, height=32, width=64)[0]
    words = processor.tokenizer.convert_ids_to_tokens(processor.prompt_tokens(ask(image, "dog")))
    tiles = processor.image_tokens(32, 64)
    assert words[0] == "<img>" and words[1 + tiles] == "</img>" and words.count("<img>") == 1
    assert processor.question_lengths(ask(image, "dog")) == (2 + tiles, len(words) - 2 - tiles)
    said = processor.tokenizer.convert_ids_to_tokens(processor.prompt_tokens(ask(image, "the <img> banana")))
    assert said.count("<img>") == 1


def test_a_tokenizer_without_the_marks_and_tiles_that_the_tower_does_not_see_are_refused(tmp_path: Path) -> None:
    write_internvl(tmp_path)
    values = json.loads((tmp_path / "preprocessor_config.json").read_text())
    other = values | {"size": {"height": 64, "width": 64}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match=r"6 tiles of 64x64 pixels, and the model's vision tower sees 32x32; copy"):
        Policy.make_processor(tmp_path, Codec())
    for wrong in ({"size": {"shortest_edge": 32}}, {"max_patches": 0}):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(values | wrong))
        with pytest.raises(ValueError, match=r"the model's vision tower sees 32x32; copy preprocessor_config\.json"):
            Policy.make_processor(tmp_path, Codec())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"image_seq_length": 64}))
    with pytest.raises(ValueError, match=r"says 64 tokens a tile \(image_seq_length\), and its vision tower makes 16"):
        Policy.make_processor(tmp_path, Codec())
    (tmp_path / "config.json").write_text(json.dumps(config | {"downsample_ratio": 0.25}))
    with pytest.raises(ValueError, match=r"has downsample_ratio 0\.25, and tiles are known here whose patches become"):
        Policy.make_processor(tmp_path, Codec())
    (tmp_path / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (tmp_path / name).read_text()
        (tmp_path / name).write_text(text.replace("<img>", "<imx>"))
    with pytest.raises(ValueError, match=r"lacks <img>, which stands around every image of a InternVL; copy the"):
        Policy.make_processor(tmp_path, Codec())


def test_places_are_thousandths_whatever_the_tiles(folder: Path) -> None:
    codec = Policy.make_processor(folder, point_text.Codec()).codec
    ring = np.array([(0.0, 0.0), (150.0, 0.0), (150.0, 50.0)])
    assert codec.encode([[ring]], 100, 300) == "[[[0, 0], [500, 0], [500, 500]]]"


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
    assert tiles.tolist() == [[False, False, False], [False, False, True]]  # a tile sees itself alone


def test_a_head_of_its_own_is_kept_where_config_json_does_not_speak_of_it(folder: Path, tmp_path: Path) -> None:
    policy = Policy(folder, Codec())
    with safe_open(folder / "model.safetensors", "pt") as stored:
        head, embedding = (stored.get_tensor(f"language_model.{n}.weight") for n in ("lm_head", "model.embed_tokens"))
    assert torch.equal(policy.model.lm_head.weight, head) and not torch.equal(head, embedding)
    policy.save(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as saved:
        assert torch.equal(saved.get_tensor("language_model.lm_head.weight"), head)
    # Said now, so that whatever reads the folder keeps it.
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is False


@torch.no_grad()
def test_it_is_known_over_qwen3_too_and_over_nothing_else(tmp_path: Path) -> None:
    write_internvl(tmp_path, "qwen3", use_qk_norm=True, norm_type="rms_norm")
    policy = Policy(tmp_path, Codec(), question="find {phrase}")
    answers = tokens_of(policy, [["1 2 30 40 0 0 5 5 0 5", "none"]])
    rows = policy.rows([ask(images(1)[0], "dog")], answers)
    prompt = policy.processor.prompt_tokens(ask(images(1)[0], "dog"))
    ids = torch.from_numpy(np.concatenate([prompt, answers[0][0]]))[None]
    logits = policy.model(input_ids=ids, pixel_values=rows.pixel_values).logits[0, len(prompt) - 1 : -1]
    logits[:, policy.processor.unsampled_tokens] = -torch.inf
    expected = torch.log_softmax(logits, -1)[range(len(answers[0][0])), answers[0][0]]
    torch.testing.assert_close(policy(rows)[0, 0, : len(expected)], expected, atol=1e-5, rtol=0)
    values = json.loads((tmp_path / "config.json").read_text())
    values["text_config"]["model_type"] = "llama"
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"is a llama, and InternVL is known here over qwen2 or qwen3"):
        Policy.make_processor(tmp_path, Codec())


def test_at_the_size_of_internvl3_8b_it_has_the_parameters_that_are_told_of_it() -> None:
    text = {"model_type": "qwen2", "vocab_size": 151674, "hidden_size": 3584, "intermediate_size": 18944}
    text |= {"num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4}
    with torch.device("meta"):
        config = InternVLConfig(text_config=text, vision_config={"attention_bias": True}, tie_word_embeddings=False)
        model = InternVLForConditionalGeneration(config)
    family = InternVL()
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == pytest.approx(7.94e9, rel=1e-3)
    of_tower = sum(parameter.numel() for parameter in family.tower(model).parameters())
    of_projector = sum(parameter.numel() for module in family.projector(model) for parameter in module.parameters())
    assert of_projector == 2 * 4096 + (4096 + 1) * 3584 + (3584 + 1) * 3584
    assert of_tower - of_projector == pytest.approx(304e6, rel=2e-3)  # the ViT of 300 M


def test_its_template_shows_the_image_once_and_asks_as_the_family_does() -> None:
    from jinja2 import Environment

    content = [{"type": "image"}, {"type": "text", "text": "Outline the dog."}]
    text = Environment().from_string(InternVL.template)
    asked = text.render(messages=[{"role": "user", "content": content}], add_generation_prompt=True)
    assert asked == "<|im_start|>user\n<IMG_CONTEXT>\nOutline the dog.<|im_end|>\n<|im_start|>assistant\n"
