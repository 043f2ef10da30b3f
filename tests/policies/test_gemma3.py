"""Gemma 3: windows by positions against slow loops, the template as released, published names, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from asking import ask, ask_all
from jinja2 import Environment
from safetensors.torch import load_file, save_file
from test_vision_language import images, tokens_of, write_gemma3
from torch import Tensor
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, PreTrainedTokenizerFast

from envs.codecs import point_text
from envs.codecs.path_tokens import Codec
from policies.checkpoint import Checkpoint
from policies.families._gemma3 import Gemma3
from policies.families._loading import refuse_unfilled
from policies.families.vision_language import Policy
from policies.question import QuestionTemplate
from policies.settings import Asking
from policies.sharing.packing import pack_rows
from policies.sharing.prompt_cache import EncodedPrompts, PromptCache
from policies.sharing.windowed import masks_of_prompts, masks_of_rows
from policies.tiny_model import word_tokenizer

RELEASED_TEMPLATE = (
    "{{ bos_token }}{%- for message in messages -%}{{ '<start_of_turn>' + message['role'] + '\n' }}"
    "{%- for item in message['content'] -%}{%- if item['type'] == 'image' -%}{{ '<start_of_image>' }}"
    "{%- else -%}{{ item['text'] | trim }}{%- endif -%}{%- endfor -%}{{ '<end_of_turn>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"
)
"""What a released folder's template does with one question, in short."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("gemma3")
    write_gemma3(made)
    return made


def test_a_window_of_three_shows_a_prompt_token_and_an_answer_what_is_at_most_two_places_back() -> None:
    mask = torch.tensor([[False, True, True, True, True]])
    image = torch.tensor([[False, False, True, True, False]])
    kinds = masks_of_prompts(mask, image, window=3)
    seen = ["10000", "01000", "01110", "01110", "01111"]  # padding sees itself; the image's two tokens see each other
    near = ["10000", "01000", "01110", "01110", "00111"]
    for kind, expected in (("full_attention", seen), ("sliding_attention", near)):
        found = ["".join(str(int(cell)) for cell in row) for row in kinds[kind][0, 0]]
        assert found == expected, kind


def test_masks_of_packed_answers_are_those_of_each_answer_behind_its_own_prompt(folder: Path) -> None:
    policy = Policy(folder, Codec())
    answers = tokens_of(policy, [["1 2 30 40 0 0 5 5 0 5", "7 8 9"], ["none", "1 2 3 4 5 6"]])
    packed = pack_rows(policy.rows(ask_all(images(2), ["dog", "the upper left banana"]), answers))
    found = masks_of_rows(packed, window=5)
    p, t = packed.prompt_mask.shape[1], packed.shape[2]
    for b in range(2):
        real = packed.prompt_mask[b].tolist()
        # (answer or -1, place in the text), None for padding
        said = [(-1, sum(real[: k + 1])) if real[k] else None for k in range(p)]
        for k, slot in enumerate(packed.order[b].tolist()):
            said.append((slot // t, sum(real) + 1 + slot % t) if packed.real[b, k] else None)
        for q, asked in enumerate(said):
            for k, looked_at in enumerate(said):
                if asked is None or looked_at is None:
                    continue
                same = looked_at[0] in (-1, asked[0]) and looked_at[1] <= asked[1]
                assert bool(found["full_attention"][b, 0, q, k]) == same
                assert bool(found["sliding_attention"][b, 0, q, k]) == (same and asked[1] - looked_at[1] < 5)


@pytest.mark.parametrize("same_calls", [False, True])
def test_a_cache_shows_what_is_within_the_window_also_where_places_are_used_again(same_calls: bool) -> None:
    mask = torch.tensor([[False, False, True, True], [True, True, True, True]])
    lengths = mask.sum(1)

    def prompts(of: Tensor) -> EncodedPrompts:
        held, last = torch.zeros(1, len(of), 1, 4, 1), torch.zeros(len(of), dtype=torch.int64)
        return EncodedPrompts(held.transpose(3, 4), held.clone(), mask[of].clone(), last, lengths[of])

    cache = PromptCache(prompts(torch.tensor([0, 1])), 1, 5, same_calls)
    begun, length = [0, 0], [2, 4]  # step at which each prompt entered, and its tokens but the last
    for step in range(9):
        if step == 5:  # the first has had its tokens; another enters in its place
            cache.replace(torch.tensor([0]), prompts(torch.tensor([1])))
            begun[0], length[0] = 5, 4
        cache.begin_token()
        for r in (0, 1) if step - begun[1] < 5 else (0,):
            now = length[r] + step - begun[r]  # where the token stands, from 0
            visible = {("prompt", k) for k in range(4) if k >= 4 - length[r] and now - (k - 4 + length[r]) < 3}
            visible |= {("own", s % 5) for s in range(begun[r], step + 1) if step - s < 3}
            bias = cache.bias_within(3)[r]
            places = [("prompt", k) for k in range(4)] + [("own", k) for k in range(5)]
            found = {place for place, value in zip(places, bias, strict=True) if value == 0}
            assert found == visible, (step, r)
        cache.end_token()


def test_the_released_template_is_asked_by_with_all_that_stands_for_an_image(folder: Path, tmp_path: Path) -> None:
    tokenizer = _released_tokenizer()
    tokenizer.chat_template = RELEASED_TEMPLATE
    _copied(folder, tmp_path)
    tokenizer.save_pretrained(tmp_path)
    _change(tmp_path, {"image_token_index": tokenizer.convert_tokens_to_ids("<image_soft_token>")})
    processor = Policy.make_processor(tmp_path, Codec(), Asking("the {phrase}"))
    said = processor.tokenizer.convert_ids_to_tokens(processor.prompt_tokens(ask(images(1)[0], "dog")))
    assert said == [
        *("<|vision_start|>", "<start_of_turn>", "user", "<start_of_image>"),
        *["<image_soft_token>"] * 16,
        *("<end_of_image>", "the", "dog", "<end_of_turn>", "<start_of_turn>", "model"),
    ]
    assert processor.tokenizer.convert_ids_to_tokens(processor.end_tokens) == ["<end_of_turn>", "<|end|>"]


@pytest.mark.parametrize("place", ["tokenizer_config.json", "chat_template.json", "outside a string"])
def test_the_image_stands_the_same_wherever_and_however_the_template_is_written(
    folder: Path, tmp_path: Path, place: str
) -> None:
    tokenizer, written = _released_tokenizer(), RELEASED_TEMPLATE
    if place == "outside a string":
        written = written.replace("{{ '<start_of_image>' }}", "<start_of_image>")
    _copied(folder, tmp_path)
    _change(tmp_path, {"image_token_index": tokenizer.convert_tokens_to_ids("<image_soft_token>")})
    (tmp_path / "chat_template.jinja").unlink()
    if place == "chat_template.json":
        tokenizer.chat_template = None
        (tmp_path / place).write_text(json.dumps({"chat_template": written}))
    else:
        tokenizer.chat_template = written
    tokenizer.save_pretrained(tmp_path)
    processor = Policy.make_processor(tmp_path, Codec(), Asking("the {phrase}"))
    expected = "<bos><start_of_turn>user\n\n\n<start_of_image><image_soft_token><end_of_image>\n\n"
    expected += "the <end_of_image><end_of_turn>"
    template = QuestionTemplate(
        processor.tokenizer, Asking("the {phrase}"), processor.image_token, _legacy(tmp_path), True, Gemma3.image_text
    )
    assert template._in_template("the <end_of_image>").replace("<|vision_start|>", "<bos>").startswith(expected)
    shown = processor.prompt_tokens(ask(images(1)[0], "<start_of_image><image_soft_token><end_of_image>"))
    assert (shown == processor.image_token).sum() == 16  # a phrase is data


def test_a_folder_without_a_template_is_saved_with_one_that_leaves_the_image_to_the_processor(
    folder: Path, tmp_path: Path
) -> None:
    tokenizer = _released_tokenizer()
    tokenizer.chat_template = None
    _copied(folder, tmp_path)
    _change(tmp_path, {"image_token_index": tokenizer.convert_tokens_to_ids("<image_soft_token>")})
    (tmp_path / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(tmp_path)
    processor = Policy.make_processor(tmp_path, Codec(), Asking("the {phrase}"))
    (tmp_path / "saved").mkdir()
    processor.save(tmp_path / "saved")
    written = (tmp_path / "saved" / "chat_template.jinja").read_text()
    assert "<start_of_image>" in written and "<image_soft_token>" not in written


def test_dropped_attention_is_refused_in_learning(folder: Path, tmp_path: Path) -> None:
    _copied(folder, tmp_path)
    _change(tmp_path, {"attention_dropout": 0.1})
    policy = Policy(tmp_path, Codec()).train()
    with pytest.raises(ValueError, match=r"^a layer drops 0\.1 of its attention .* set attention_dropout to 0"):
        policy(policy.rows([ask(images(1)[0], "dog")], tokens_of(policy, [["1 2 3"]])))


def test_its_own_template_puts_what_the_system_says_first_in_the_users_turn() -> None:
    content = [{"type": "image"}, {"type": "text", "text": "Outline the dog."}]
    system = {"role": "system", "content": [{"type": "text", "text": "Be short."}]}
    text = Environment().from_string(Gemma3.template)
    asked = text.render(messages=[system, {"role": "user", "content": content}], add_generation_prompt=True)
    assert asked == (
        "<start_of_turn>user\nBe short.\n\n<start_of_image>Outline the dog.<end_of_turn>\n<start_of_turn>model\n"
    )


def test_published_names_are_read_to_the_bit_and_a_missing_one_is_named(folder: Path, tmp_path: Path) -> None:
    stored, published = load_file(folder / "model.safetensors"), dict[str, Tensor]()
    for name, weight in stored.items():
        name = name.replace("model.language_model.", "language_model.model.")
        name = name.replace("vision_tower.", "vision_tower.vision_model.")
        published[name.replace("model.multi_modal_projector.", "multi_modal_projector.")] = weight.clone()
    assert {
        "language_model.model.layers.3.post_feedforward_layernorm.weight",
        "language_model.model.layers.0.self_attn.q_norm.weight",
        "multi_modal_projector.mm_input_projection_weight",
        "multi_modal_projector.mm_soft_emb_norm.weight",
        "vision_tower.vision_model.embeddings.position_embedding.weight",
        "vision_tower.vision_model.encoder.layers.1.self_attn.out_proj.bias",
        "vision_tower.vision_model.post_layernorm.weight",
    } <= published.keys()
    _copied(folder, tmp_path)
    save_file(published, tmp_path / "model.safetensors", {"format": "pt"})
    read, expected = (Policy(place, Codec()).model.state_dict() for place in (tmp_path, folder))
    assert read.keys() == expected.keys()
    assert all(torch.equal(read[name], weight) for name, weight in expected.items())
    del published["multi_modal_projector.mm_soft_emb_norm.weight"]
    save_file(published, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lack 1 parameters of a Gemma 3 model, such as .*mm_soft_emb_norm"):
        refuse_unfilled(Checkpoint(tmp_path), Gemma3())


@torch.no_grad()
def test_what_is_outside_every_window_is_not_looked_at_and_image_tokens_see_each_other(folder: Path) -> None:
    model = Policy(folder, Codec()).model
    for layer in model.model.language_model.config.layer_types:
        assert layer in ("sliding_attention", "full_attention")
    policy = Policy(folder, Codec(), question="find {phrase}")
    answers = tokens_of(policy, [["1 2 3"]])
    plain = policy(policy.rows([ask(images(1)[0], "dog")], answers))
    changed = images(1)[0].copy()
    changed[-4:, -4:] ^= 255  # the last image token; the first sees it
    assert not torch.equal(policy(policy.rows([ask(changed, "dog")], answers)), plain)
    rows = policy.rows([ask(images(1)[0], "dog")], answers)
    together = Gemma3().together(policy.model, rows)
    assert together.sum() == 16 and (rows.prompt_tokens[together] == policy.processor.image_token).all()


def test_photos_are_stretched_and_places_are_thousandths_of_each_side(folder: Path) -> None:
    processor = Policy.make_processor(folder, point_text.Codec())
    ring = np.array([(0.0, 0.0), (150.0, 0.0), (150.0, 50.0)])
    assert processor.codec.encode([[ring]], 100, 300) == "[[[0, 0], [500, 0], [500, 500]]]"
    assert processor.shown_size(100, 300) == (32, 32) and processor.image_tokens(100, 300) == 16
    assert processor.image_patches(100, 300) == 64


def _released_tokenizer() -> PreTrainedTokenizerFast:
    special = ["<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<image_soft_token>", "<end_of_image>"]
    tokenizer = word_tokenizer([*Codec().words, "the", "dog", "user", "model"], special=special)
    tokenizer.bos_token = "<|vision_start|>"
    return tokenizer


def _legacy(folder: Path) -> str | None:
    found = folder / "chat_template.json"
    return json.loads(found.read_text())["chat_template"] if found.is_file() else None


def _copied(folder: Path, into: Path) -> None:
    for file in folder.iterdir():
        (into / file.name).write_bytes(file.read_bytes())


def _change(folder: Path, values: dict[str, object], file: str = "config.json") -> None:
    held = json.loads((folder / file).read_text())
    text = held.get("text_config", {})
    for name, value in values.items():
        (text if name in text or name == "use_bidirectional_attention" else held)[name] = value
    (folder / file).write_text(json.dumps(held))


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("config.json", {"mm_tokens_per_image": 15}, r"says 15 tokens an image \(mm_tokens_per_image\), and 8 by 8"),
        ("config.json", {"mm_tokens_per_image": 9}, r"says 9 tokens an image"),
        ("config.json", {"mm_tokens_per_image": -4}, r"says -4 tokens an image"),
        ("config.json", {"mm_tokens_per_image": None}, r"config\.json cannot be read"),
        ("config.json", {"vision_config": None}, r"says 16 tokens an image"),
        ("config.json", {"sliding_window": None}, r"sliding_window of .* is None, and layers see"),
        ("config.json", {"sliding_window": 0}, r"sliding_window of .* is 0, and layers see a window of 1"),
        ("processor", {"size": {"shortest_edge": 32}}, r"size \{.*'shortest_edge': 32"),
        (
            "config.json",
            {"use_bidirectional_attention": True},
            r"use_bidirectional_attention of .* is true",
        ),
        ("config.json", {"attn_logit_softcapping": 50.0}, r"has attn_logit_softcapping in its config\.json"),
        ("processor", {"size": {"height": 24, "width": 24}}, r"size \{'height': 24.* sees 32x32"),
    ],
)
def test_what_would_be_computed_otherwise_is_refused(
    folder: Path, tmp_path: Path, file: str, values: dict[str, object], message: str
) -> None:
    _copied(folder, tmp_path)
    _change(tmp_path, values, "preprocessor_config.json" if file == "processor" else file)
    with pytest.raises(ValueError, match=message):
        Policy.make_processor(tmp_path, Codec())


def test_limits_of_an_images_area_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"^policy\.min_pixels is None and policy\.max_pixels 900, but Gemma 3 sees"):
        Policy.make_processor(folder, Codec(), Asking(max_pixels=900))


def test_at_the_size_of_the_released_4b_it_has_the_parameters_that_are_told_of_it() -> None:
    text = {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "sliding_window": 1024}
    vision = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
    vision |= {"image_size": 896, "patch_size": 14, "vision_use_head": False}
    with torch.device("meta"):
        model = Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision))
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(4.30e9, rel=0.001)
    kinds = model.config.text_config.layer_types
    assert [k for k, kind in enumerate(kinds) if kind == "full_attention"] == [5, 11, 17, 23, 29]
