"""Layers of experts: how published files hold them, what adapters leave alone, and a real size."""

import json
import logging
from pathlib import Path

import pytest
import torch
from moondream_toy import codec, write_toy
from safetensors.torch import load_file
from test_vision_language import write_kimi_vl, write_llava, write_qwen3_vl_moe
from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

from envs.codecs.path_tokens import Codec
from policies.families import moondream
from policies.families._qwen import Qwen3VLMoe
from policies.families.vision_language import Policy
from policies.settings import LoraSettings

EXPERTS = "model.language_model.layers.0.mlp.experts"


def test_experts_lie_in_saved_files_as_in_published_ones_and_come_back(tmp_path: Path) -> None:
    write_qwen3_vl_moe(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    # Published: [experts, width, 2 inner] and [experts, inner, width]; in memory the last two axes change places.
    assert stored[f"{EXPERTS}.gate_up_proj"].shape == (4, 32, 48) and stored[f"{EXPERTS}.down_proj"].shape == (
        4,
        24,
        32,
    )
    policy = Policy(tmp_path, Codec())
    held = dict(policy.model.named_parameters())
    assert torch.equal(held[f"{EXPERTS}.gate_up_proj"], stored[f"{EXPERTS}.gate_up_proj"].transpose(1, 2))
    policy.save(tmp_path / "again")
    saved = load_file(tmp_path / "again/model.safetensors")
    assert saved.keys() == stored.keys() and all(torch.equal(saved[name], weight) for name, weight in stored.items())


def test_widths_by_which_the_layout_cannot_be_told_are_refused(tmp_path: Path) -> None:
    write_qwen3_vl_moe(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    for inner in (32, 16):
        values["text_config"]["moe_intermediate_size"] = inner
        (tmp_path / "config.json").write_text(json.dumps(values))
        with pytest.raises(ValueError, match=rf"have the width {inner} in a model of 32, and transformers tells the"):
            Policy(tmp_path, Codec())


def test_more_experts_a_token_than_there_are_is_refused_by_name(tmp_path: Path) -> None:
    for write, path in ((write_qwen3_vl_moe, tmp_path / "moe"), (write_kimi_vl, tmp_path / "kimi")):
        path.mkdir()
        write(path)
        values = json.loads((path / "config.json").read_text())
        values["text_config"]["num_experts_per_tok"] = 9
        (path / "config.json").write_text(json.dumps(values))
        with pytest.raises(ValueError, match=r"num_experts_per_tok of .* is 9, of 4|lets a token use 9 of 4 experts"):
            Policy(path, Codec())
    values["text_config"] |= {"num_experts_per_tok": 2, "scoring_func": "softmax"}
    (path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"text_config\.scoring_func of .* is 'softmax', and experts are known here"):
        Policy(path, Codec())


@pytest.mark.parametrize(
    ("write", "named"), [(write_qwen3_vl_moe, 4), (write_kimi_vl, 4), (write_toy, 2), (write_llava, 0)]
)
def test_adapters_leave_experts_alone_and_say_so(
    write: object, named: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path)
    with caplog.at_level(logging.WARNING, "policies.lora"):
        if write is write_toy:
            policy = moondream.Policy(tmp_path, codec(), lora=LoraSettings(rank=2))
        else:
            policy = Policy(tmp_path, Codec(), lora=LoraSettings(rank=2))
    told = [record.getMessage() for record in caplog.records if record.name == "policies.lora"]
    expected = [f"experts get no adapters: {named} tensors such as"] if named else []
    assert [message[: len(start)] for message, start in zip(told, expected, strict=True)] == expected
    learned = [name for name, parameter in policy.model.named_parameters() if parameter.requires_grad]
    assert learned and all("lora_" in name and "experts" not in name.replace("shared_experts", "") for name in learned)


def moe_config() -> Qwen3VLMoeConfig:
    """That of Qwen3-VL-30B-A3B."""
    text = {"vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 48}
    text |= {"num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "moe_intermediate_size": 768}
    text |= {"num_experts": 128, "num_experts_per_tok": 8, "decoder_sparse_step": 1, "mlp_only_layers": []}
    vision = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16, "out_hidden_size": 2048}
    vision |= {"num_position_embeddings": 2304, "deepstack_visual_indexes": [8, 16, 24]}
    return Qwen3VLMoeConfig(text_config=text, vision_config=vision, tie_word_embeddings=False)


def test_at_the_size_of_30b_a3b_it_has_the_parameters_that_its_name_tells() -> None:
    with torch.device("meta"):
        model = Qwen3VLMoeForConditionalGeneration(moe_config())
    count = sum(parameter.numel() for parameter in model.parameters())
    experts = 48 * 128 * 3 * 768 * 2048
    assert sum(p.numel() for name, p in model.named_parameters() if ".mlp.experts." in name) == experts
    tower = sum(parameter.numel() for parameter in Qwen3VLMoe().tower(model).parameters())
    assert count - tower == pytest.approx(30.5e9, rel=2e-3)
    assert count - tower - experts * 120 // 128 == pytest.approx(3.35e9, rel=1e-2)  # those that a token uses
