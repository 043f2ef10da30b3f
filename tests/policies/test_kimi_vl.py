"""Kimi-VL: released names both ways, a tokenizer made of its files, photos at their own size, and its real size."""

import base64
import json
import math
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import regex
import torch
from asking import ask
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import Environment
from released_sizes import kimi_vl_config
from safetensors.torch import load_file, save_file
from test_vision_language import images, tokens_of, write_kimi_vl
from transformers import Kimi_K25ForConditionalGeneration

from envs.codecs import point_text
from envs.codecs.path_tokens import Codec
from policies.checkpoint import Checkpoint
from policies.families._kimi_vl import KimiVL, _shown
from policies.families._loading import refuse_unfilled
from policies.families.vision_language import Policy
from policies.kimi.images import KimiImages, on_photo
from policies.kimi.tokenizer import _PATTERN, kimi_tokenizer, read_ranks
from policies.kimi.weights import released_weights
from policies.settings import Asking, LoraSettings
from policies.weights import bucket_names, held_checksum, load_bucket, make_bucket
from rollout.engines.shared import sample
from rollout.settings import Sampling

MERGED = [b"th", b"the", b" d", b" do", b" dog", b"12", b"123", b"\xe4\xb8", b"\xe4\xb8\xad"]
TEXTS = ["the dog", "[[0.512, 0.25], [1234, 7]]", "The 中文 dogs'll", " \n\n x", "don't THE", "", "0.5120"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("kimi")
    write_kimi_vl(made)
    return made


def write_tokenizer(folder: Path) -> None:
    """All bytes and a few merges, and special tokens by name."""
    tokens = [bytes([byte]) for byte in range(256)] + MERGED
    lines = [base64.b64encode(token) + b" %d" % rank for rank, token in enumerate(tokens)]
    (folder / "tiktoken.model").write_bytes(b"\n".join(lines) + b"\n")
    names = {0: "[BOS]", 1: "[EOS]", 2: "<|im_end|>", 20: "<|media_pad|>"}
    added = {str(len(tokens) + k): {"content": name, "special": True} for k, name in names.items()}
    config = {"added_tokens_decoder": added, "bos_token": "[BOS]", "eos_token": {"content": "[EOS]"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def test_what_is_saved_has_the_released_names_and_the_values_of_the_file(folder: Path, tmp_path: Path) -> None:
    stored = load_file(folder / "model.safetensors")
    expected = {
        "language_model.lm_head.weight",
        "language_model.model.embed_tokens.weight",
        "language_model.model.layers.0.mlp.gate_proj.weight",
        "language_model.model.layers.0.self_attn.kv_a_proj_with_mqa.weight",
        "language_model.model.layers.1.mlp.experts.3.down_proj.weight",
        "language_model.model.layers.1.mlp.gate.e_score_correction_bias",
        "language_model.model.layers.2.mlp.shared_experts.up_proj.weight",
        "multi_modal_projector.linear_1.bias",
        "multi_modal_projector.pre_norm.weight",
        "vision_tower.encoder.blocks.1.mlp.fc0.bias",
        "vision_tower.encoder.blocks.1.wqkv.weight",
        "vision_tower.encoder.final_layernorm.weight",
        "vision_tower.patch_embed.pos_emb.weight",
    }
    assert expected <= stored.keys()
    Policy(folder, Codec()).save(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() == stored.keys()
    assert all(torch.equal(saved[name], weight) for name, weight in stored.items())
    values = json.loads((tmp_path / "config.json").read_text())
    assert values["model_type"] == "kimi_vl" and "auto_map" in values


def test_queries_and_keys_of_the_tower_turn_in_pairs_on_disk() -> None:
    # Two heads of four rows: in memory halves (0, 1 | 2, 3), on disk pairs (0, 2, 1, 3).
    rows = torch.arange(8.0)[:, None]
    held = {f"model.vision_tower.layers.0.attn.{part}_proj.weight": rows for part in "qkv"}
    found = released_weights(held, vision_heads=2)["vision_tower.encoder.blocks.0.wqkv.weight"].flatten().tolist()
    assert found == [0, 2, 1, 3, 4, 6, 5, 7] * 2 + [0, 1, 2, 3, 4, 5, 6, 7]
    with pytest.raises(ValueError, match=r"model\.other is no weight of Kimi-VL"):
        released_weights({"model.other": rows}, 2)


def test_weights_that_are_missing_or_too_many_are_named(tmp_path: Path) -> None:
    write_kimi_vl(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    names = ("language_model.model.layers.2.mlp.experts.1.up_proj.weight", "vision_tower.encoder.blocks.0.wo.bias")
    for name in names:
        save_file({other: w for other, w in stored.items() if other != name}, tmp_path / "model.safetensors")
        for load in (lambda: Policy(tmp_path, Codec()), lambda: refuse_unfilled(Checkpoint(tmp_path), KimiVL())):
            with pytest.raises(
                ValueError, match=rf"lack 1 parameters of a Kimi-VL model, such as {re.escape(name)}; copy"
            ):
                load()
    save_file(stored | {"language_model.model.layers.3.x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"have, and nothing reads, 1 parameters .* language_model\.model\.layers\.3\.x"
    ):
        Policy(tmp_path, Codec())


def test_the_routers_bias_travels_with_the_weights_and_is_proved(folder: Path) -> None:
    learner, worker = Policy(folder, Codec()), Policy(folder, Codec())
    name = "model.language_model.layers.1.mlp.gate.e_score_correction_bias"
    bias = dict(learner.model.named_parameters())[name]
    assert not bias.requires_grad
    before = held_checksum(learner.model)
    with torch.no_grad():
        bias.add_(1.0)
    assert held_checksum(learner.model) != before == held_checksum(worker.model)
    for part in bucket_names(learner.model):
        load_bucket(worker.model, make_bucket(part))
    assert held_checksum(worker.model) == held_checksum(learner.model)
    assert torch.equal(dict(worker.model.named_parameters())[name], bias)


@torch.no_grad()
def test_adapters_count_in_the_maps_that_decoding_takes_apart(folder: Path) -> None:
    policy = Policy(folder, Codec(), question="the {phrase}", lora=LoraSettings(rank=2)).eval()
    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name:
            parameter.normal_(std=0.5)
    adapted = {
        name.split(".lora_B")[0].split(".")[-1] for name, _ in policy.model.named_parameters() if "lora_B" in name
    }
    assert {"kv_b_proj", "kv_a_proj_with_mqa", "q_proj", "o_proj"} <= adapted and "experts" not in adapted
    rows = policy.rows([ask(images(1)[0], "dog")], tokens_of(policy, [["none"]]))
    responses = sample(policy, rows, Sampling(0.7, 12), np.random.default_rng(0).random((1, 4, 12)))
    again = policy.rows([ask(images(1)[0], "dog")], [[one.tokens for one in responses]])
    scored = policy(again, 0.7)[again.response_mask].numpy()
    np.testing.assert_allclose(np.concatenate([one.logprobs for one in responses]), scored, atol=2e-5)


@torch.no_grad()
def test_the_cache_holds_one_latent_a_token_for_all_heads(folder: Path) -> None:
    policy = Policy(folder, Codec(), question="the {phrase}").eval()
    prompts = policy.encode(policy.rows([ask(images(1)[0], "dog")], tokens_of(policy, [["none"]])))
    tokens = prompts.mask.shape[1]
    # 16 numbers of latent and 4 that turn, in place of two heads of 12 and of 6.
    assert prompts.keys.shape == (3, 1, 1, 20, tokens) and prompts.values.shape == (3, 1, 1, tokens, 16)


def slow_bpe(text: str, ranks: dict[bytes, int], pattern: str) -> list[int]:
    """Tokens by the rule: of all neighbours the pair of the lowest rank merges, until none is left."""
    found: list[int] = []
    for piece in regex.findall(pattern, text, flags=regex.V1):
        parts = [bytes([byte]) for byte in piece.encode()]
        while True:
            pairs = [(ranks.get(a + b, 1 << 30), k) for k, (a, b) in enumerate(pairwise(parts))]
            if not pairs or min(pairs)[0] == 1 << 30:
                break
            k = min(pairs)[1]
            parts[k : k + 2] = [parts[k] + parts[k + 1]]
        found += [ranks[part] for part in parts]
    return found


def test_text_becomes_the_tokens_that_the_rule_of_ranks_makes(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    tokenizer, ranks = kimi_tokenizer(tmp_path), read_ranks(tmp_path / "tiktoken.model")
    named = dict(ranks)

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    assert ids("the dog") == [named[b"the"], named[b" dog"]]
    assert ids("1234") == [named[b"123"], named[b"4"]]  # three digits, then the rest
    assert ids("中") == [named["中".encode()]]
    assert ids("0.123") == [named[b"0"], named[b"."], named[b"123"]]
    assert ids("<|im_end|>") == [256 + len(MERGED) + 2] and tokenizer.eos_token_id == 256 + len(MERGED) + 1
    assert len(tokenizer) == 256 + len(MERGED) + 256
    for text in TEXTS:
        assert ids(text) == slow_bpe(text, ranks, _PATTERN) and tokenizer.decode(ids(text)) == text
    assert tokenizer.convert_ids_to_tokens(256 + len(MERGED) + 7) == f"<|reserved_token_{256 + len(MERGED) + 7}|>"


@given(st.text(alphabet="the dog0123.中 \n'sT", max_size=30))
def test_any_text_comes_back_from_its_tokens(text: str) -> None:
    tokenizer = _MADE[0]
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


@pytest.fixture(scope="module", autouse=True)
def made_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> None:
    place = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(place)
    _MADE.append(kimi_tokenizer(place))


_MADE: list = []


def test_a_file_that_was_cut_off_or_is_none_is_told_by_its_line(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    path = tmp_path / "tiktoken.model"
    whole = path.read_bytes()
    path.write_bytes(whole[:-6])
    with pytest.raises(ValueError, match=rf"line {256 + len(MERGED)} of .* and each must be a token in base64 and its"):
        kimi_tokenizer(tmp_path)
    path.write_bytes(b"\n".join(whole.splitlines()[5:]))
    with pytest.raises(ValueError, match=r"has 260 lines and lacks rank 0; copy it anew"):
        kimi_tokenizer(tmp_path)
    path.write_bytes(b"<html>\n")
    with pytest.raises(ValueError, match=r"line 1 of .*tiktoken\.model is b'<html>'"):
        kimi_tokenizer(tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no .*tiktoken\.model; copy it from where the model came"):
        kimi_tokenizer(tmp_path)
    write_tokenizer(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"]["3"] = {"content": "<|x|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"names token 3, and those behind the 265 of tiktoken\.model are 265 to 520"):
        kimi_tokenizer(tmp_path)


def test_fifty_photos_are_shown_at_their_own_size_within_the_limit_and_padded_to_whole_tokens() -> None:
    kimi = KimiImages()
    for height in (30, 224, 480, 999, 3000):
        for width in (28, 57, 333, 640, 641, 1000, 1333, 2000, 4000, 6000):
            shown, padded = kimi.shown(height, width), kimi.padded(height, width)
            if (width // 14) * (height // 14) <= 4096:
                assert shown == (height, width)
            else:
                scale = math.sqrt(4096 / ((width // 14) * (height // 14)))
                assert shown == (int(height * scale), int(width * scale))
            assert all(0 <= whole - side < 28 and whole % 28 == 0 for side, whole in zip(shown, padded, strict=True))
            assert abs(_shown((height, width), padded, 28)[0] - shown[0]) < 28
    # As told of the released model: 18 x 23 = 414 tokens; at most about 1,024.
    assert KimiVL().image_tokens(kimi, 480, 640) == 414
    assert KimiVL().image_tokens(kimi, 2000, 3000) <= 1024 + 60


def test_a_patch_holds_its_pixels_and_padding_is_black(folder: Path) -> None:
    kimi = KimiImages(patch_size=4)
    image = images(1, height=10, width=20)[0]
    patches, grid = kimi.patches(image)
    assert grid == (4, 6) and patches.shape == (24, 3, 4, 4)
    expected = torch.from_numpy(image[4:8, 8:12]).float().permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(patches[6 + 2], expected)
    assert (patches[5] == -1).all() and (patches[-1] == -1).all()  # right of 20, below 10
    processor = Policy.make_processor(folder, Codec(), Asking("the {phrase}"))
    assert processor.shown_size(10, 20) == (10, 20) and processor.image_tokens(10, 20) == 6
    codec = Policy.make_processor(folder, point_text.Codec()).codec
    ring = np.array([(0.0, 0.0), (20.0, 0.0), (20.0, 10.0)])
    assert codec.encode([[ring]], 10, 20) == "[[[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]]]"


@torch.no_grad()
def test_features_lie_on_the_photo_and_not_on_its_padding(folder: Path) -> None:
    policy = Policy(folder, Codec())
    ramp = (
        torch.linspace(0, 1, 8)[None, None, None].expand(1, 1, 4, 8).contiguous()
    )  # over 64 px, of which 48 are photo
    found = on_photo(ramp, (32.0, 48.0), (32, 64))
    centres = (torch.arange(8) + 0.5) * 48 / 8  # where the new cells lie, in pixels
    assert found[0, 0, 1].tolist() == pytest.approx(((centres / 8 - 0.5) / 7).clamp(min=0).tolist(), abs=1e-6)
    picture = images(1, height=32, width=44)[0]
    for early in (0, 2):
        features = policy.vision_features([picture] * 2, early)
        assert features.final.shape == (2, 32, 4, 6) and features.early.shape == (2, 64, 4, 6)
    exact = policy.vision_features(images(1))
    assert exact.final.shape == (1, 32, 4, 4)


def test_limits_are_patches_and_stay_in_what_is_saved(folder: Path, tmp_path: Path) -> None:
    def tokens(most: int | None, of: Path = folder) -> int:
        return Policy.make_processor(of, Codec(), Asking(max_pixels=most)).image_tokens(64, 64)

    assert [tokens(most) for most in (None, 32 * 32, 64)] == [64, 16, 1]
    Policy(folder, Codec(), max_pixels=32 * 32).save(tmp_path)
    assert tokens(None, tmp_path) == 16
    with pytest.raises(ValueError, match=r"^policy\.max_pixels is 63, less than one image token of Kimi-VL shows"):
        tokens(63)
    with pytest.raises(ValueError, match=r"^policy\.min_pixels is 9, but Kimi-VL never enlarges a photo"):
        Policy.make_processor(folder, Codec(), Asking(min_pixels=9))


def test_its_template_asks_as_the_family_does() -> None:
    content = [{"type": "image"}, {"type": "text", "text": "Outline the dog."}]
    text = Environment().from_string(KimiVL.template)
    asked = text.render(messages=[{"role": "user", "content": content}], add_generation_prompt=True)
    assert asked == (
        "<|im_system|>system<|im_middle|>You are a helpful assistant<|im_end|><|im_user|>user<|im_middle|>"
        "<|media_start|>image<|media_content|><|media_pad|><|media_end|>Outline the dog.<|im_end|>"
        "<|im_assistant|>assistant<|im_middle|>"
    )


def test_at_its_real_size_it_has_the_names_shapes_and_parameters_that_are_told_of_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(kimi_vl_config()))
    with torch.device("meta"):
        model = Kimi_K25ForConditionalGeneration(KimiVL().config(Checkpoint(tmp_path)))
    family = KimiVL()
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == pytest.approx(16.41e9, rel=2e-3)
    released = released_weights(model.state_dict(), 16)
    assert sum(weight.numel() for weight in released.values()) == count + 26 * 64  # and the routers' biases
    for name, shape in {
        "language_model.lm_head.weight": (163840, 2048),
        "language_model.model.layers.0.mlp.gate_proj.weight": (11264, 2048),
        "language_model.model.layers.26.mlp.experts.63.down_proj.weight": (2048, 1408),
        "language_model.model.layers.1.mlp.shared_experts.gate_proj.weight": (2816, 2048),
        "language_model.model.layers.1.mlp.gate.e_score_correction_bias": (64,),
        "language_model.model.layers.1.self_attn.q_proj.weight": (3072, 2048),
        "language_model.model.layers.1.self_attn.kv_a_proj_with_mqa.weight": (576, 2048),
        "language_model.model.layers.1.self_attn.kv_b_proj.weight": (4096, 512),
        "vision_tower.patch_embed.pos_emb.weight": (64, 64, 1152),
        "vision_tower.encoder.blocks.26.wqkv.weight": (3456, 1152),
        "multi_modal_projector.linear_1.weight": (4608, 4608),
        "multi_modal_projector.linear_2.weight": (2048, 4608),
        "multi_modal_projector.pre_norm.weight": (1152,),
    }.items():
        assert tuple(released[name].shape) == shape, name
    # 27 blocks of the tower; per layer of experts 3 x 64 maps, 3 shared, router and bias, attention and norms.
    patterns = (r"language_model\.", r"vision_tower\.", r"multi_modal_projector\.")
    counts = [sum(bool(re.match(pattern, name)) for name in released) for pattern in patterns]
    assert counts == [3 + 27 * 7 + 3 + 26 * (3 * 64 + 3 + 2), 3 + 27 * 12 + 2, 6]
    tower = sum(parameter.numel() for parameter in family.tower(model).parameters())
    assert tower == pytest.approx(0.449e9, rel=0.01)
