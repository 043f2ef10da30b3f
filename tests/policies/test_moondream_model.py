"""Moondream's parts: its real size, both published layouts, crops, coordinates and sizes."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from asking import ask
from moondream_toy import codec, toy, write_toy
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from envs.codecs import _centre_box
from policies.checkpoint import Checkpoint
from policies.families._loading import refuse_unfilled
from policies.families._moondream import Moondream
from policies.families.moondream import Policy
from policies.moondream.config import MoondreamConfig, MoondreamVisionConfig
from policies.moondream.crops import canvas, crops_of, num_crops, stitched, tiling_of
from policies.moondream.layouts import is_second, to_first, to_second
from policies.moondream.model import MoondreamForSegmentation
from policies.moondream.region import coordinate_of, size_of

# As published: 27 blocks of vision, 24 layers of text, of which 4 are dense.
RELEASED = {
    "model.text.wte": (51200, 2048),
    "model.text.lm_head.weight": (51200, 2048),
    "model.text.lm_head.bias": (51200,),
    "model.text.post_ln.weight": (2048,),
    "model.text.blocks.3.mlp.fc1.weight": (8192, 2048),
    "model.text.blocks.3.mlp.fc2.bias": (2048,),
    "model.text.blocks.4.mlp.router.weight": (64, 2048),
    "model.text.blocks.23.mlp.fc1.weight": (64, 2048, 2048),
    "model.text.blocks.23.mlp.fc2.weight": (64, 2048, 1024),
    "model.text.blocks.0.attn.qkv.weight": (6144, 2048),
    "model.text.blocks.0.attn.proj.bias": (2048,),
    "model.text.blocks.0.attn.tau.wq": (32, 6144),
    "model.text.blocks.0.attn.tau.alpha": (32,),
    "model.text.blocks.0.ln.bias": (2048,),
    "model.vision.patch_emb.weight": (1152, 588),
    "model.vision.pos_emb": (1, 729, 1152),
    "model.vision.blocks.26.attn.qkv.weight": (3456, 1152),
    "model.vision.blocks.26.mlp.fc1.weight": (4304, 1152),
    "model.vision.blocks.26.ln2.weight": (1152,),
    "model.vision.post_ln.bias": (1152,),
    "model.vision.proj_mlp.fc1.weight": (8192, 2304),
    "model.vision.proj_mlp.fc2.weight": (2048, 8192),
    "model.region.coord_encoder.weight": (2048, 256),
    "model.region.coord_decoder.weight": (1024, 2048),
    "model.region.size_encoder.weight": (2048, 512),
    "model.region.size_decoder.weight": (2048, 2048),
    "model.region.ln.weight": (2048,),
    "model.region.coord_features": (1, 128),
    "model.region.size_features": (2, 256),
}
VISION = MoondreamVisionConfig()


@pytest.fixture(scope="module")
def released() -> MoondreamForSegmentation:
    with torch.device("meta"):
        return MoondreamForSegmentation(MoondreamConfig())


def test_at_its_real_size_it_has_the_parameters_that_are_told_of_it(released: MoondreamForSegmentation) -> None:
    shapes = {name: tuple(parameter.shape) for name, parameter in released.named_parameters()}
    assert {name: shapes[name] for name in RELEASED} == RELEASED
    of = {part: [name for name in shapes if name.startswith(f"model.{part}.")] for part in ("vision", "text", "region")}
    assert {part: len(names) for part, names in of.items()} == {
        "vision": 27 * 12 + 9,
        "text": 24 * 13 + 5,
        "region": 12,
    }
    sizes = {part: sum(math.prod(shapes[name]) for name in names) for part, names in of.items()}
    # 27 blocks of 4 x 1152^2 + 2 x 1152 x 4304 and their vectors, and the projection.
    assert sizes["vision"] == pytest.approx(0.449e9, rel=1e-2)
    experts = 20 * 64 * 3 * 1024 * 2048
    dense = 24 * 4 * 2048**2 + 4 * 2 * 2048 * 8192 + 2 * 51200 * 2048
    assert sizes["text"] == pytest.approx(experts + dense, rel=5e-3)
    assert sum(sizes.values()) == pytest.approx(9.27e9, rel=5e-3)  # "9B"
    active = sum(sizes.values()) - experts * 56 // 64
    assert 2.0e9 < active < 2.5e9  # "2B active" of them


def test_both_published_layouts_use_each_name_once_and_turn_into_each_other(released: MoondreamForSegmentation) -> None:
    first = released.state_dict()
    second = to_second(first)
    assert len(second) == len(first) and is_second(second) and not is_second(first)
    for name, shape in {
        "text_model.transformer.embd.wte.weight": (51200, 2048),
        "text_model.transformer.h.0.mixer.Wqkv.weight": (6144, 2048),
        "text_model.transformer.h.3.mlp.fc1.weight": (8192, 2048),
        "text_model.transformer.h.4.gate.bias": (64,),
        "text_model.transformer.h.4.mlp.experts.weight": (64, 2048, 2048),
        "text_model.transformer.h.4.mlp.output_experts.weight": (64, 2048, 1024),
        "text_model.transformer.h.4.tau_wq": (32, 6144),
        "text_model.lm_head.linear.bias": (51200,),
        "vision_encoder.encoder.model.visual.blocks.0.norm1.weight": (1152,),
        "vision_encoder.encoder.model.visual.pos_embed": (1, 729, 1152),
        "vision_encoder.projection.mlp.fc2.weight": (2048, 8192),
        "region_model.coordinate_head.weight": (1024, 2048),
        "region_model.coordinate_features.weight": (128, 1),
        "region_model.size_features.weight": (256, 2),
    }.items():
        assert tuple(second[name].shape) == shape, name
    back = to_first(second)
    assert {name: tensor.shape for name, tensor in back.items()} == {
        name: tensor.shape for name, tensor in first.items()
    }
    joined = to_second(first, joined=True)
    assert tuple(joined["text_model.transformer.h.9.tau_wqwv"].shape) == (64, 6144) and len(joined) == len(first) - 24
    assert to_first(joined).keys() == first.keys()


@torch.no_grad()
@pytest.mark.parametrize("joined", [False, True])
def test_a_folder_of_the_second_layout_loads_to_the_bit(tmp_path: Path, joined: bool) -> None:
    write_toy(tmp_path)
    policy = toy(tmp_path)
    weights = to_second(load_file(tmp_path / "model.safetensors"), joined)
    compiled = {
        name.replace("text_model.", "text_model._orig_mod.") if joined else name: w for name, w in weights.items()
    }
    save_file({name: weight.contiguous() for name, weight in compiled.items()}, tmp_path / "model.safetensors")
    other = toy(tmp_path)
    held = other.model.state_dict()
    assert all(torch.equal(held[name], weight) for name, weight in policy.model.state_dict().items())
    refuse_unfilled(Checkpoint(tmp_path), Moondream())


def test_missing_doubled_and_unknown_weights_are_refused_by_name(tmp_path: Path) -> None:
    write_toy(tmp_path)
    whole = load_file(tmp_path / "model.safetensors")
    second = to_second(whole)
    head = "text_model.lm_head.linear.weight"

    def refused(weights: dict[str, torch.Tensor], message: str) -> None:
        save_file({name: weight.clone() for name, weight in weights.items()}, tmp_path / "model.safetensors")
        for load in (lambda: toy(tmp_path), lambda: refuse_unfilled(Checkpoint(tmp_path), Moondream())):
            with pytest.raises(ValueError, match=message):
                load()

    refused({name: w for name, w in whole.items() if "tau.alpha" not in name}, r"lack 2 parameters of a Moondream 3")
    refused(
        {name: w for name, w in second.items() if name != head}, r"lack 1 parameters .* model\.text\.lm_head\.weight"
    )
    doubled = second | {head.replace("text_model", "text_model._orig_mod"): second[head]}
    refused(doubled, r"and another weight are both model\.text\.lm_head\.weight of Moondream 3")
    refused(second | {"text_model.other": second[head]}, r"text_model\.other is no weight of Moondream 3")
    wide = whole | {"model.text.wte": whole["model.text.wte"][:-1].clone()}
    refused(wide, r"1 weights of .* have other shapes than its config\.json says, such as model\.text\.wte")
    more = whole | {"model.text.blocks.2.ln.bias": whole["model.text.blocks.1.ln.bias"]}
    refused(more, r"1 weights of .* have no place in the model of its config\.json, such as model\.text\.blocks\.2")


def test_a_folder_with_its_own_code_loads_without_it_and_one_of_quantised_weights_does_not(tmp_path: Path) -> None:
    write_toy(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | {"auto_map": {"AutoModelForCausalLM": "hf.Md"}}))
    toy(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(values | {"quantization_config": {"quant_method": "fp8"}}))
    with pytest.raises(ValueError, match=r"are quantised \(fp8\)"):
        toy(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(values))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer \(tokenizer\.json or"):
        toy(tmp_path)


def test_a_config_without_sizes_is_the_released_one_and_settings_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "moondream3", "config": {"skills": ["query"]}}))
    config = AutoConfig.from_pretrained(tmp_path)
    assert (config.text.dim, config.vision.enc_n_layers, config.region.coord_out_dim) == (2048, 27, 1024)
    assert config.segment == {"prefix": [1, 17374, 2], "suffix": [3]} and config.coord_id == 5
    for wrong, message in (
        ({"region": {"state": "amid"}}, r"config\.region\.state is 'amid'; it must be before or after"),
        ({"text": {"tau_gelu": "erf"}}, r"config\.text\.tau_gelu is 'erf'; it must be tanh or none"),
        ({"vision": {"overlap_margin": 14}}, r"config: vision\.crop_size 378 is not whole patches of 14 pixels, more"),
        (
            {"vision": {"enc_patch_size": 0}},
            r"config\.vision\.enc_patch_size is 0; it must be a whole",
        ),
        ({"text": {"dim": "2048"}}, r"config\.text\.dim is '2048'; it must be a whole number"),
        ({"text": {"prefix_attn": 700}}, r"text\.prefix_attn is 700, and beginning and image are 730 tokens"),
        ({"text": {"moe": {"experts_per_token": 65}}}, r"text\.moe has 65 experts a token, of 64"),
        ({"region": {"size_out_dim": 7}}, r"size_out_dim is odd; copy config\.json of this very model"),
        ({"tokenizer": {"coord_id": 6}}, r"tokenizer has the ids \(0, 0, 6, 6\)"),
    ):
        with pytest.raises(ValueError, match=message):
            MoondreamConfig(wrong)


def test_doubts_between_the_sources_are_settings_that_change_what_is_said(tmp_path: Path) -> None:
    write_toy(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)

    def said(**parts: dict) -> torch.Tensor:
        config = {name: values["config"][name] | parts.get(name, {}) for name in values["config"]}
        (tmp_path / "config.json").write_text(json.dumps(values | {"config": config}))
        policy = toy(tmp_path).eval()
        answer = policy.processor.answer_tokens("20 30 40 50 M 0 0 32 0 32 32 Z")
        return policy(policy.rows([ask(image, "dog")], [[answer]]))[0, 0].detach()

    plain = said()
    assert not torch.equal(said(region={"state": "after"}), plain)
    assert not torch.equal(said(text={"tau_gelu": "none"}), plain)
    with pytest.raises(ValueError, match=r"set codec\.box_bins to 64 and codec\.size_bins to 63"):
        said(region={"last_bin_is_one": False})


def test_crops_and_tokens_of_photos_as_published() -> None:
    # Windows of 19 patches of 14 px; a margin of 4 patches at the edges.
    for size, tiling in (
        ((378, 378), (1, 1)),
        ((378, 900), (1, 1)),  # one side fits a crop
        ((480, 640), (2, 4)),  # 2 x 2 are the fewest; of 12, sqrt(12 * 368 / 528) by sqrt(12 * 528 / 368), rounded down
        ((1333, 2000), (2, 4)),  # 5 x 8 would be needed: in proportion, within 12
        ((4000, 6000), (2, 4)),
    ):
        assert tiling_of(*size, VISION) == tiling, size
        rows, columns = tiling
        assert canvas(tiling, VISION) == (266 * rows + 112, 266 * columns + 112)
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    crops = crops_of(image, VISION)
    assert crops.shape == (num_crops((2, 4)), 3, 378, 378) == (9, 3, 378, 378)
    assert -1.0 <= float(crops.min()) < -0.9 and 0.9 < float(crops.max()) <= 1.0
    small = MoondreamVisionConfig(crop_size=32, enc_patch_size=8, overlap_margin=1)
    assert torch.equal(
        crops_of(image[:32, :32], small)[0], torch.from_numpy(image[:32, :32]).permute(2, 0, 1) / 127.5 - 1
    )


def test_stitched_crops_are_the_canvas_again() -> None:
    vision = MoondreamVisionConfig(crop_size=48, enc_patch_size=8, overlap_margin=2)
    rows, columns = 2, 3
    height, width = 2 * rows + 4, 2 * columns + 4  # patches of the canvas: windows of 2, margins of 2
    where = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"), dim=-1)
    crops = torch.stack([where[2 * r : 2 * r + 6, 2 * c : 2 * c + 6] for r in range(rows) for c in range(columns)])
    assert torch.equal(stitched(crops, (rows, columns), 2), where)
    assert canvas((rows, columns), vision) == (8 * height, 8 * width)


def test_a_bin_says_the_share_that_the_codec_writes_for_its_number() -> None:
    bins = torch.arange(1024)
    assert coordinate_of(bins, 1024)[[0, 341, 1023]].tolist() == pytest.approx([0, 1 / 3, 1])
    assert size_of(bins, 1024)[[0, 1023]].tolist() == pytest.approx([1 / 1024, 1])
    for number in range(0, 1024, 33):
        assert float(size_of(bins, 1024)[number]) == pytest.approx(_centre_box.size_share(number, 1023), rel=1e-5)
        assert _centre_box.size_number(float(size_of(bins, 1024)[number]), 1023) == number
    # As published: round((log2(max(size, 1 / 1024)) + 10) / 10 * 1023).
    for share in (0.0003, 0.01, 0.25, 0.7, 1.0):
        assert _centre_box.size_number(share, 1023) == round((math.log2(max(share, 1 / 1024)) + 10) / 10 * 1023)


def test_a_policy_of_the_toy_is_found_by_its_name(tmp_path: Path) -> None:
    write_toy(tmp_path)
    assert isinstance(toy(tmp_path).processor, type(Policy.make_processor(tmp_path, codec())))
