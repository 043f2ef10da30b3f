"""PaliGemma 2: soft caps against autograd, prompts read both ways, the prompt as released, published names, and what is
refused; transformers' own forward pass and generate are the oracle in test_vision_language.py."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from asking import ask
from jinja2 import Environment
from safetensors.torch import load_file, save_file
from test_vision_language import images, tokens_of, write_paligemma
from torch import Tensor
from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration

from envs.codecs import loc_tokens
from envs.codecs.path_tokens import Codec
from policies.checkpoint import Checkpoint
from policies.families._loading import refuse_unfilled
from policies.families._paligemma import PaliGemma
from policies.families.base import Response
from policies.families.vision_language import Policy
from policies.settings import Asking
from policies.sharing import capped as capped_attention
from policies.sharing.capped import attend_capped, capped
from policies.sharing.scoring_head import Scoring, ScoringHead, scores
from policies.sharing.windowed import masks_of_prompts
from policies.tiny_model import word_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("paligemma")
    write_paligemma(made)
    return made


def test_a_cap_of_two_leaves_small_scores_and_holds_large_ones() -> None:
    # 2 tanh(1/2) = 0.924234 and 2 tanh(50) = 2.
    assert capped(torch.tensor([0.0, 1.0, -100.0]), 2.0).tolist() == pytest.approx([0.0, 0.924234, -2.0], abs=1e-6)


def test_capped_attention_a_stretch_at_a_time_is_the_formula_and_its_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, heads, 7, 4, dtype=torch.float64) * 3 for heads in (4, 2, 2))
    mask = torch.zeros(2, 1, 7, 7, dtype=torch.float64).masked_fill(
        ~torch.ones(7, 7, dtype=torch.bool).tril(), -torch.inf
    )

    def formula(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scores = query @ key.repeat_interleave(2, 1).transpose(2, 3) * 0.5
        weights = (1.5 * (scores / 1.5).tanh() + mask).softmax(-1, dtype=torch.float32).double()
        return (weights @ value.repeat_interleave(2, 1)).transpose(1, 2)

    found: dict[str, list[Tensor]] = {}
    for name, most in (("formula", 0), ("whole", 2**26), ("two queries", 2 * 2 * 4 * 7), ("one query", 1)):
        monkeypatch.setattr(capped_attention, "_MOST_SCORES", most)
        own = [part.clone().requires_grad_() for part in (query, key, value)]
        made = formula(*own) if name == "formula" else attend_capped(*own, mask, 0.5, 1.5)
        made.square().sum().backward()
        found[name] = [made.detach(), *(part.grad for part in own)]
    for name, parts in found.items():
        for one, other in zip(parts, found["formula"], strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6, msg=name)


@pytest.mark.parametrize("logit_bytes", [2**20, 4 * 11 * 3])
def test_scores_of_capped_logits_have_the_gradients_of_autograd(logit_bytes: int) -> None:
    torch.manual_seed(0)
    head = ScoringHead.in_place_of(torch.nn.Linear(5, 11, bias=False))
    with torch.no_grad():
        head.weight.mul_(6)
    scoring = Scoring(torch.tensor([3, 0, 9, 3]), torch.tensor([1, 2]), 0.7, logit_bytes, cap=2.0)
    states = torch.randn(4, 5)
    found = []
    for ours in (True, False):
        own = states.clone().requires_grad_()
        head.weight.grad = None
        if ours:
            scored = scores(head, own, scoring)
        else:
            logits = (2 * (own @ head.weight.t() / 2).tanh()).index_fill(1, scoring.unsampled, -torch.inf) / 0.7
            scored = logits.log_softmax(-1).gather(1, scoring.targets[:, None])[:, 0]
        (scored * torch.tensor([1.0, -2.0, 0.5, 3.0])).sum().backward()
        found.append((scored.detach(), own.grad, head.weight.grad.clone()))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert found[0][1].abs().max() > 0.1


def test_in_a_layer_with_a_window_of_three_a_prompt_is_seen_whole_and_padding_sees_itself() -> None:
    mask = torch.tensor([[False, True, True, True, True, True]])
    kinds = masks_of_prompts(mask, mask, window=3, together_near=False)
    for kind in kinds:
        found = ["".join(str(int(cell)) for cell in row) for row in kinds[kind][0, 0]]
        assert found == ["100000", *["011111"] * 5], kind


@torch.no_grad()
def test_the_first_token_of_a_prompt_is_moved_by_its_last_word(folder: Path) -> None:
    policy = Policy(folder, Codec(), question="find {phrase}")
    said, other = (policy.rows([ask(images(1)[0], word)], tokens_of(policy, [["1 2 3"]])) for word in ("dog", "banana"))
    first, second = (policy.encode(rows).keys for rows in (said, other))
    # The image comes first; below the first layer its keys know what is asked.
    assert torch.equal(first[0, ..., :16], second[0, ..., :16]) and not torch.equal(first[1, ..., 0], second[1, ..., 0])


def test_the_prompt_is_the_image_the_beginning_the_words_and_a_line_feed() -> None:
    content = [{"type": "image"}, {"type": "text", "text": "segment dog"}]
    template = Environment().from_string(PaliGemma.template)
    asked = template.render(messages=[{"role": "user", "content": content}], add_generation_prompt=True)
    assert asked == "<image><bos>segment dog\n"
    system = {"role": "system", "content": [{"type": "text", "text": "Be short."}]}
    asked = template.render(messages=[system, {"role": "user", "content": content}], add_generation_prompt=True)
    assert asked == "<image><bos>Be short. segment dog\n"


def test_a_folder_without_a_template_is_asked_as_released_and_writes_its_place_tokens(
    folder: Path, tmp_path: Path
) -> None:
    codec = loc_tokens.Codec()
    tokenizer = word_tokenizer(["segment", "dog", *codec.words], special=["<image>", "<bos>"])
    tokenizer.add_tokens([*codec.words, "<seg000>", "\n"])
    _copied(folder, tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    held = json.loads((tmp_path / "config.json").read_text())
    held["image_token_index"] = tokenizer.convert_tokens_to_ids("<image>")
    held["text_config"]["vocab_size"] = len(tokenizer)
    (tmp_path / "config.json").write_text(json.dumps(held))
    processor = Policy.make_processor(tmp_path, codec, Asking("segment {phrase}"))
    said = processor.tokenizer.convert_ids_to_tokens(processor.prompt_tokens(ask(images(1)[0], "dog")))
    assert said == [*["<image>"] * 16, "<bos>", "segment", "dog", "\n"]
    unsampled = {processor.tokenizer.convert_ids_to_tokens(token) for token in processor.unsampled_tokens}
    assert {"<image>", "<bos>", "<seg000>"} <= unsampled and not unsampled & set(codec.words)
    text = codec.encode([[np.array([(0.0, 0.0), (30.0, 0.0), (30.0, 20.0)])]], 40, 56)
    tokens = processor.answer_tokens(text)
    assert len(tokens) == 11  # a box, three vertices and the end; this toy has no token for a space
    answer = processor.read(Response(tokens, np.zeros(len(tokens), np.float32), "stop"), 40, 56)
    assert answer.instances[0].box_px == codec.read(text, 40, 56).instances[0].box_px


def test_published_names_are_read_to_the_bit_and_a_missing_one_is_named(folder: Path, tmp_path: Path) -> None:
    stored, published = load_file(folder / "model.safetensors"), dict[str, Tensor]()
    for name, weight in stored.items():
        published[name.replace("vision_tower.", "vision_tower.vision_model.")] = weight.clone()
    assert {
        "language_model.model.embed_tokens.weight",
        "language_model.model.layers.3.pre_feedforward_layernorm.weight",
        "multi_modal_projector.linear.bias",
        "vision_tower.vision_model.embeddings.position_embedding.weight",
        "vision_tower.vision_model.encoder.layers.1.self_attn.out_proj.bias",
    } <= published.keys()
    _copied(folder, tmp_path)
    save_file(published, tmp_path / "model.safetensors", {"format": "pt"})
    read, expected = (Policy(place, Codec()).model.state_dict() for place in (tmp_path, folder))
    assert read.keys() == expected.keys()
    assert all(torch.equal(read[name], weight) for name, weight in expected.items())
    del published["multi_modal_projector.linear.bias"]
    save_file(published, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lack 1 parameters of a PaliGemma 2 model, such as .*linear\.bias"):
        refuse_unfilled(Checkpoint(tmp_path), PaliGemma())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sliding_window": None}, r"sliding_window of .* is None, and layers see"),
        ({"attn_logit_softcapping": None}, r"attn_logit_softcapping of .* is None, and PaliGemma 2 has a cap above 0"),
        ({"final_logit_softcapping": -1.0}, r"final_logit_softcapping of .* is -1\.0, and"),
        ({"model_type": "gemma"}, r"is a gemma, and PaliGemma 2 is known here over gemma2"),
        ({"size": {"height": 24, "width": 24}}, r"stretches an image to size .*24.* sees 32x32"),
    ],
)
def test_what_would_be_computed_otherwise_is_refused(
    folder: Path, tmp_path: Path, values: dict[str, object], message: str
) -> None:
    _copied(folder, tmp_path)
    file = tmp_path / ("preprocessor_config.json" if "size" in values else "config.json")
    held = json.loads(file.read_text())
    (held if "size" in values else held["text_config"]).update(values)
    file.write_text(json.dumps(held))
    with pytest.raises(ValueError, match=message):
        Policy.make_processor(tmp_path, Codec())


def test_limits_of_an_images_area_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"^policy\.min_pixels is None and policy\.max_pixels 900, but PaliGemma 2"):
        Policy.make_processor(folder, Codec(), Asking(max_pixels=900))


def paligemma_3b() -> PaliGemmaConfig:
    """As the folders of the released 3B say it, at 224 pixels."""
    text = {"model_type": "gemma2", "vocab_size": 257216, "hidden_size": 2304, "intermediate_size": 9216}
    text |= {"num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256}
    vision = {"model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "patch_size": 14}
    vision |= {"num_hidden_layers": 27, "num_attention_heads": 16, "image_size": 224, "vision_use_head": False}
    return PaliGemmaConfig(text_config=text, vision_config=vision, image_token_index=257152, projection_dim=2304)


def test_at_the_size_of_the_released_3b_it_has_the_parameters_that_are_told_of_it() -> None:
    with torch.device("meta"):
        model = PaliGemmaForConditionalGeneration(paligemma_3b())
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(3.03e9, rel=0.002)
    assert model.config.text_config.attn_logit_softcapping == 50 and PaliGemma().logit_cap(model) == 30
    assert PaliGemma().heads(model).window == 4096


def _copied(folder: Path, into: Path) -> None:
    for file in folder.iterdir():
        (into / file.name).write_bytes(file.read_bytes())
