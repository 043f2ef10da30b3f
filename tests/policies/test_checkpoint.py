"""Folders as people have them: what cannot be loaded is refused in one line, the rest is asked and ended rightly."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from asking import ask
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from test_vision_language import WRITTEN
from tokenizers import AddedToken
from transformers import (
    AutoTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from envs.codecs.path_tokens import Codec
from envs.polygons import AnswerStatus
from policies.checkpoint import Checkpoint
from policies.families._llava import Llava
from policies.families._loading import refuse_unfilled
from policies.families._qwen import Qwen2_5VL, Qwen3VL
from policies.families.base import Response
from policies.families.vision_language import Policy
from policies.processor import Processor
from policies.settings import Asking

Edit = Callable[[Path], None]


@pytest.fixture
def folder(tiny_untrained: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(tiny_untrained, tmp_path / "model"))


def rewritten(folder: Path, name: str, **values: Any) -> None:
    path = folder / name
    held = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(held | values))


def processor_of(folder: Path, **asking: Any) -> Processor:
    return Policy.make_processor(folder, Codec(), Asking(**asking))


def adapters_alone(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "Qwen/Qwen3-VL-4B-Instruct"}')


def without(*names: str) -> Edit:
    return lambda folder: [(folder / name).unlink(missing_ok=True) for name in names] and None


def endless(folder: Path) -> None:
    rewritten(folder, "tokenizer_config.json", eos_token=None)
    rewritten(folder, "generation_config.json", eos_token_id=None)


SPOILED: dict[str, tuple[Edit, type[Exception], str]] = {
    "adapters alone": (adapters_alone, FileNotFoundError, "adapters of Qwen/Qwen3-VL-4B-Instruct .* merge_and_unload"),
    "no config": (without("config.json"), FileNotFoundError, "no config.json"),
    "broken config": (lambda f: (f / "config.json").write_text("{") and None, ValueError, "config.json is no JSON"),
    "a list": (lambda f: (f / "config.json").write_text("[]") and None, ValueError, "holds no JSON object"),
    "code of its own": (
        lambda f: rewritten(f, "config.json", model_type="internvl_chat", auto_map={"AutoConfig": "own.Config"}),
        ValueError,
        r"internvl_chat model whose code lies in the folder \(auto_map\), and code of a checkpoint is never run",
    ),
    "FP8": (
        lambda f: rewritten(f, "config.json", quantization_config={"quant_method": "fp8"}),
        ValueError,
        r"quantised \(fp8\), .* give the unquantised",
    ),
    "AWQ": (
        lambda f: rewritten(f, "config.json", quantization_config={"quant_method": "awq", "bits": 4}),
        ValueError,
        r"quantised \(awq\)",
    ),
    "another family": (
        lambda f: rewritten(f, "config.json", model_type="florence2"),
        ValueError,
        "florence2 model, and the families here are gemma3, internvl, kimi_vl, .*qwen2_5_vl",
    ),
    "no image processor": (
        without("preprocessor_config.json", "processor_config.json"),
        FileNotFoundError,
        "no image processor .* copy it",
    ),
    "adapters beside a model": (
        lambda f: (f / "adapter_config.json").write_text("{}") and None,
        ValueError,
        "adapters .* beside a model",
    ),
    "quantised by a word": (
        lambda f: rewritten(f, "config.json", quantization_config="awq"),
        ValueError,
        r"quantised \(awq\)",
    ),
    "an end by its text": (
        lambda f: rewritten(f, "generation_config.json", eos_token_id="<|end|>"),
        ValueError,
        "eos_token_id of .* is '<|end|>'; it must be the number",
    ),
    "an end as a mapping": (
        lambda f: rewritten(f, "tokenizer_config.json", eos_token={"content": "<|end|>", "x": 1}),
        ValueError,
        "tokenizer_config.json or tokenizer.json cannot be read",
    ),
    "an empty tokenizer": (lambda f: (f / "tokenizer.json").write_text("{}") and None, ValueError, "no tokenizer"),
    "a pointer in its place": (
        lambda f: (f / "tokenizer.json").write_text("version https://git-lfs") and None,
        ValueError,
        "tokenizer.json is no JSON",
    ),
    "another model's patches": (
        lambda f: rewritten(f, "preprocessor_config.json", patch_size=14),
        ValueError,
        "patch_size 14 and the model's vision tower 8",
    ),
    "limits of nothing": (
        lambda f: rewritten(f, "preprocessor_config.json", size={"shortest_edge": 0, "longest_edge": 0}),
        ValueError,
        "0 where a whole number above 0 belongs",
    ),
    "limits of another kind": (
        lambda f: rewritten(f, "preprocessor_config.json", size={"height": 32, "width": 32}),
        ValueError,
        "cannot be read|where a whole number above 0",
    ),
    "no tokenizer": (without("tokenizer.json", "tokenizer_config.json"), FileNotFoundError, "no tokenizer"),
    "no end": (
        endless,
        ValueError,
        "names no token that ends an answer",
    ),
}


@pytest.mark.parametrize("case", SPOILED)
def test_a_folder_that_cannot_be_asked_is_refused_in_one_line(folder: Path, case: str) -> None:
    spoil, kind, message = SPOILED[case]
    spoil(folder)
    with pytest.raises(kind, match=message) as raised:
        processor_of(folder)
    assert "\n" not in str(raised.value)


def shards_missing(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    names = list(weights)
    (folder / "model.safetensors").unlink()
    save_file({name: weights[name] for name in names[:9]}, folder / "model-00001-of-00002.safetensors")
    index = {name: f"model-0000{1 + (k >= 9)}-of-00002.safetensors" for k, name in enumerate(names)}
    rewritten(folder, "model.safetensors.index.json", weight_map=index)


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def head_missing(folder: Path) -> None:
    """An untied head that the file does not hold."""
    rewritten(folder, "config.json", tie_word_embeddings=False)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["tie_word_embeddings"] = False
    (folder / "config.json").write_text(json.dumps(config))


def nested(folder: Path, part: str, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config[part] |= values
    (folder / "config.json").write_text(json.dumps(config))


WITHOUT_WEIGHTS: dict[str, tuple[Edit, type[Exception], str]] = {
    "half of its shards": (
        shards_missing,
        FileNotFoundError,
        r"lacks 1 of its 2 files of weights \(model-00002-of-00002.safetensors\)",
    ),
    "none": (without("model.safetensors"), FileNotFoundError, r"holds no weights"),
    "pickles": (pickled, FileNotFoundError, r"pickles alone \(pytorch_model.bin\)"),
    "weights elsewhere": (
        lambda f: rewritten(f, "model.safetensors.index.json", weight_map={"a": "../other.safetensors"}),
        ValueError,
        "names ../other.safetensors, which is not in it",
    ),
    "another width": (
        lambda f: nested(f, "text_config", intermediate_size=100),
        ValueError,
        r"\d+ weights of .* have other shapes than its config.json says, such as ",
    ),
    "fewer layers than stored": (
        lambda f: nested(f, "text_config", num_hidden_layers=1),
        ValueError,
        r"\d+ weights of .* have no place in the model of its config.json, such as .*layers.1",
    ),
    "no head": (head_missing, ValueError, r"lack 1 parameters .* such as lm_head.weight, which would be random"),
}


@pytest.mark.parametrize("case", WITHOUT_WEIGHTS)
def test_weights_that_do_not_fill_the_model_are_an_error_and_no_random_numbers(folder: Path, case: str) -> None:
    spoil, kind, message = WITHOUT_WEIGHTS[case]
    spoil(folder)
    processor_of(folder)
    with pytest.raises(kind, match=message):
        Policy(folder, Codec())
    with pytest.raises(kind, match=message):  # and without reading any of them
        refuse_unfilled(Checkpoint(folder), Qwen3VL())


def test_headers_tell_every_shape_and_a_file_that_was_cut_off(folder: Path) -> None:
    stored = load_file(folder / "model.safetensors")
    assert Checkpoint(folder).stored_shapes() == {name: tuple(value.shape) for name, value in stored.items()}
    content = (folder / "model.safetensors").read_bytes()
    for size in (3, 100, len(content) - 1):
        (folder / "model.safetensors").write_bytes(content[:size])
        with pytest.raises(ValueError, match="cut off"):
            Checkpoint(folder).stored_shapes()


def test_both_ends_that_generation_config_lists_end_an_answer_and_count_as_stop(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    first, second = tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("banana")
    rewritten(folder, "generation_config.json", eos_token_id=[first, second, 10**6])
    processor = processor_of(folder)
    assert processor.end_tokens == [first, second] and processor.end_token == first
    assert not set(processor.end_tokens) & set(processor.unsampled_tokens)
    words = processor.answer_tokens("none")[:-1].tolist()
    for end in (first, second):
        response = Response(np.array([*words, end]), np.zeros(len(words) + 1, np.float32), "stop")
        assert processor.read(response, 32, 32).status is AnswerStatus.EMPTY and processor.text(response) == "none"


def test_ids_that_no_text_has_and_control_words_are_never_sampled(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([AddedToken("<tool_call>", normalized=False), AddedToken("durian", normalized=False)])
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["vocab_size"] = len(tokenizer) + 20
    (folder / "config.json").write_text(json.dumps(config))
    processor = processor_of(folder)
    unsampled = set(processor.unsampled_tokens)
    assert set(range(len(tokenizer), len(tokenizer) + 20)) <= unsampled
    assert tokenizer.convert_tokens_to_ids("<tool_call>") in unsampled
    assert not {tokenizer.convert_tokens_to_ids("durian"), tokenizer.eos_token_id} & unsampled


def test_a_template_in_the_old_file_is_found(folder: Path) -> None:
    template = (folder / "chat_template.jinja").read_text()
    expected = processor_of(folder).prompt_tokens(ask(np.zeros((32, 32, 3), np.uint8), "banana"))
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match=r"chat.template"):
        processor_of(folder)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    found = processor_of(folder).prompt_tokens(ask(np.zeros((32, 32, 3), np.uint8), "banana"))
    assert found.tolist() == expected.tolist()


def test_without_a_template_that_shows_images_a_folder_is_asked_by_its_familys_own(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]}, False)
    text_alone = "{% for m in messages %}{{ '<|im_start|>' + m.content + '<|im_end|>' }}{% endfor %}"
    for template in (text_alone, None):
        tokenizer.chat_template = template
        (folder / "chat_template.jinja").unlink(missing_ok=True)
        tokenizer.save_pretrained(folder)
        caplog.clear()
        processor = processor_of(folder, question="the {phrase}")
        assert "has no chat template that shows an image and a text" in caplog.text and "Qwen3-VL" in caplog.text
        text = processor.tokenizer.decode(processor.engine_tokens(ask(np.zeros((32, 32, 3), np.uint8), "banana")))
        assert "<|vision_start|>" in text and text.index("<|image_pad|>") < text.index("banana")


def test_templates_of_both_families_write_what_their_released_folders_do() -> None:
    """Rendered as the released processors render one image and one text (families.md, 4.1 and 4.2)."""
    from jinja2 import Environment

    user = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Outline the cup."}]}]
    turn = (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Outline the cup.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    line = "<|im_start|>system\n{}<|im_end|>\n"
    for family, default in ((Qwen2_5VL(), line.format("You are a helpful assistant.")), (Qwen3VL(), "")):
        template = Environment().from_string(family.template)
        assert template.render(messages=user, add_generation_prompt=True) == default + turn
        own = [{"role": "system", "content": [{"type": "text", "text": "Be brief."}]}, *user]
        assert template.render(messages=own, add_generation_prompt=True) == line.format("Be brief.") + turn
    llava = Environment().from_string(Llava().template)
    said = "A chat between a curious user and an artificial intelligence assistant. "
    said += "The assistant gives helpful, detailed, and polite answers to the user's questions."
    asked = "USER: <image>\nOutline the cup. ASSISTANT:"
    assert llava.render(messages=user, add_generation_prompt=True) == f"{said} {asked}"
    assert llava.render(messages=own, add_generation_prompt=True) == f"Be brief. {asked}"


def test_of_several_questions_the_words_decide_and_always_alike(tiny_untrained: Path) -> None:
    asked = ["the {phrase}", "left {phrase}", "upper {phrase}"]
    processor, image = processor_of(tiny_untrained, questions=asked), np.zeros((32, 32, 3), np.uint8)
    alone = [processor_of(tiny_untrained, question=each) for each in asked]
    names = ["banana", "dog", "the dog", "left banana", "upper", "the left dog", "right banana", "lower dog"]
    chosen = []
    for name in names:
        tokens = processor.prompt_tokens(ask(image, name)).tolist()
        chosen.append([each.prompt_tokens(ask(image, name)).tolist() for each in alone].index(tokens))
        assert processor.prompt_tokens(ask(image, name)).tolist() == tokens
    assert set(chosen) == {0, 1, 2}
    with pytest.raises(ValueError, match="never asks the phrase"):
        processor_of(tiny_untrained, questions=["the {phrase}", "the dog"])


def real(family: Any, **limits: Any) -> Any:
    """The image processor of a released folder: patches of 14 or 16, merged by two."""
    patch = 14 if isinstance(family, Qwen2_5VL) else 16
    size = {"shortest_edge": 3_136, "longest_edge": 12_845_056}
    if patch == 16:
        size = {"shortest_edge": 65_536, "longest_edge": 16_777_216}
    return Qwen2VLImageProcessorPil(patch_size=patch, merge_size=2, temporal_patch_size=2, size=size | limits)


@pytest.mark.parametrize(
    ("family", "tokens"),
    [
        (Qwen2_5VL(), {(480, 640): 391, (1333, 2000): 3_408, (2000, 3000): 7_597, (4000, 6000): 16_224}),
        (Qwen3VL(), {(480, 640): 300, (64, 64): 64, (2000, 3000): 5_828, (4000, 6000): 16_224}),
    ],
)
def test_tokens_of_a_photo_are_those_of_the_released_processors(
    family: Any, tokens: dict[tuple[int, int], int]
) -> None:
    processor = real(family)
    assert {size: family.image_tokens(processor, *size) for size in tokens} == tokens


@given(st.integers(1, 400), st.integers(1, 400), st.sampled_from([Qwen2_5VL(), Qwen3VL()]))
def test_tokens_and_size_of_any_image_are_told_without_preparing_it(height: int, width: int, family: Any) -> None:
    processor = real(family, longest_edge=90_000)
    _, grid = family.patches(processor, [np.zeros((height, width, 3), np.uint8)])
    assert family.image_tokens(processor, height, width) == int(grid.prod()) // 4
    shown = family.shown_size(processor, height, width)
    assert shown == tuple((grid[0, 1:] * processor.patch_size).tolist())


def test_limits_of_an_images_area_reach_the_prompt_and_impossible_ones_are_refused(
    tiny_untrained: Path,
) -> None:
    question = ask(np.zeros((64, 64, 3), np.uint8), "banana")
    plain = processor_of(tiny_untrained)
    free = processor_of(tiny_untrained, min_pixels=64, max_pixels=64 * 64)
    small = processor_of(tiny_untrained, min_pixels=64, max_pixels=16 * 16)
    assert [each.image_tokens(64, 64) for each in (plain, free, small)] == [16, 64, 4]
    for each in (plain, free, small):
        rows = each.rows([question], [[each.answer_tokens("none")]])
        assert (rows.prompt_tokens == each.image_token).sum() == each.image_tokens(64, 64)
    with pytest.raises(ValueError, match=r"policy.max_pixels is 63, less than one image token .* \(64\)"):
        processor_of(tiny_untrained, max_pixels=63)
    with pytest.raises(ValueError, match=r"policy.min_pixels is 5000, and .* in 1024 pixels at most"):
        processor_of(tiny_untrained, min_pixels=5000, max_pixels=6000)
    with pytest.raises(ValueError, match=r"at least 1024 pixels .* at most 900"):
        processor_of(tiny_untrained, max_pixels=900)
    with pytest.raises(ValueError, match=r"policy.max_pixels is 0"):
        processor_of(tiny_untrained, max_pixels=0)


def test_a_saved_folder_holds_the_files_that_it_was_loaded_from_and_the_limits_it_was_asked_with(
    folder: Path, tmp_path: Path
) -> None:
    rewritten(folder, "tokenizer_config.json", extra_key_of_another_release={"a": 1})
    names = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "preprocessor_config.json"]
    Policy(folder, Codec()).save(tmp_path / "plain")
    for name in [*names, "generation_config.json"]:
        assert (tmp_path / "plain" / name).read_bytes() == (folder / name).read_bytes(), name
    Policy(folder, Codec(), min_pixels=64, max_pixels=16 * 16).save(tmp_path / "small")
    again = processor_of(tmp_path / "small")
    assert again.engine_limits == {"min_pixels": 64, "max_pixels": 256} and again.image_tokens(64, 64) == 4
    for name in names[:3]:
        assert (tmp_path / "small" / name).read_bytes() == (folder / name).read_bytes(), name


def test_a_question_longer_than_the_model_goes_is_refused_by_its_numbers(tiny_untrained: Path) -> None:
    processor, image = processor_of(tiny_untrained), np.zeros((32, 32, 3), np.uint8)
    assert len(processor.prompt_tokens(ask(image, "dog " * 1004))) == 1024 - 1
    with pytest.raises(ValueError, match=r"^the question 'dog dog.*' takes 10019 tokens, 16 of .* as far as 1024; ask"):
        processor.prompt_tokens(ask(image, "dog " * 10_000))


@pytest.mark.parametrize(
    ("config", "network", "parameters", "tower"),
    [
        (
            Qwen2_5_VLConfig(
                text_config={
                    "hidden_size": 3584,
                    "intermediate_size": 18944,
                    "num_hidden_layers": 28,
                    "num_attention_heads": 28,
                    "num_key_value_heads": 4,
                    "vocab_size": 152064,
                },
                vision_config={
                    "depth": 32,
                    "hidden_size": 1280,
                    "intermediate_size": 3420,
                    "num_heads": 16,
                    "out_hidden_size": 3584,
                },
                tie_word_embeddings=False,
            ),
            Qwen2_5_VLForConditionalGeneration,
            8.29e9,
            0.68e9,
        ),
        (
            Qwen3VLConfig(
                text_config={
                    "hidden_size": 2560,
                    "intermediate_size": 9728,
                    "num_hidden_layers": 36,
                    "num_attention_heads": 32,
                    "num_key_value_heads": 8,
                    "head_dim": 128,
                    "vocab_size": 151936,
                    "tie_word_embeddings": True,
                },
                vision_config={
                    "depth": 24,
                    "hidden_size": 1024,
                    "intermediate_size": 4096,
                    "num_heads": 16,
                    "out_hidden_size": 2560,
                    "deepstack_visual_indexes": [5, 11, 17],
                },
                tie_word_embeddings=True,
            ),
            Qwen3VLForConditionalGeneration,
            4.44e9,
            0.41e9,
        ),
    ],
    ids=["Qwen2.5-VL-7B", "Qwen3-VL-4B"],
)
def test_released_sizes_have_the_parameters_that_are_told_of_them(
    config: Any, network: Any, parameters: float, tower: float
) -> None:
    with torch.device("meta"):
        model = network(config)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(parameters, rel=0.005)
    assert sum(p.numel() for p in Qwen3VL().tower(model).parameters()) == pytest.approx(tower, rel=0.02)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("llava", {"model_type": "mistral"}, "is a mistral, and LLaVA-1.5 is known here over llama"),
        ("llava", {"model_type": "gemma2"}, "is a gemma2, and LLaVA-1.5 is known here over llama"),
        (
            "qwen2_5_vl",
            {"layer_types": ["full_attention", "sliding_attention"], "use_sliding_window": True},
            "has sliding_attention in its config.json, which prompts shared by answers",
        ),
    ],
)
def test_layers_that_attend_otherwise_are_refused_by_name(
    tmp_path: Path, family: str, changes: dict[str, Any], message: str
) -> None:
    WRITTEN[family](tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"] |= changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"^the language model of {tmp_path} {message}"):
        Policy.make_processor(tmp_path, Codec())
