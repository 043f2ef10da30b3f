"""Captions against a greedy loop over the model's forward, on tiny random vision-language models."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from test_vision_language import write_llava, write_qwen2_5_vl
from transformers import AutoModelForImageTextToText, AutoTokenizer, LlavaProcessor
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from policies.labellers.captions import CaptionRule, Captions, cleaned, refuse_no_captioner
from policies.tiny_model import TinySizes, write_untrained

_DRAWN = np.random.default_rng(0)
IMAGES = [_DRAWN.integers(0, 256, (*size, 3), np.uint8) for size in ((40, 60), (60, 30), (24, 24), (48, 48), (40, 60))]
WORDS = [f"w{i}" for i in range(60)] + ["the", "dog", "upper"]
ASKED = CaptionRule(prompt="the dog", max_tokens=6, max_words=4, batch=3)


def qwen2_5_vl(folder: Path) -> None:
    write_qwen2_5_vl(folder)


def qwen3_vl(folder: Path) -> None:
    sizes = TinySizes(
        image_size=32, text_width=32, text_layers=2, text_heads=2, vision_width=16, vision_layers=2, vision_heads=2
    )
    write_untrained(folder, WORDS, sizes, seed=0)
    _spread(folder, lambda name: "visual" in name)


def llava(folder: Path) -> None:
    write_llava(folder, WORDS)
    parts = LlavaImageProcessorPil.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    told = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    LlavaProcessor(*parts, image_token="<|image_pad|>", **told).save_pretrained(folder)
    _spread(folder, lambda name: "projector" in name)


def _spread(folder: Path, of_images: Callable[[str], bool]) -> None:
    """Save the model with weights by which answers depend on the image."""
    model = AutoModelForImageTextToText.from_pretrained(folder)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if weights.dim() > 1:
                weights.normal_(0, (3 if of_images(name) else 1) / weights[0].numel() ** 0.5)
    model.save_pretrained(folder)


MODELS = {"qwen2.5-vl": qwen2_5_vl, "qwen3-vl": qwen3_vl, "llava": llava}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {name: tmp_path_factory.mktemp(name) for name in MODELS}
    for name, folder in made.items():
        MODELS[name](folder)
    return made


def by_hand(folder: Path, image: NDArray[np.uint8]) -> str:
    """The words of the likeliest tokens, one forward each over the whole prompt, its image tokens counted here."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForImageTextToText.from_pretrained(folder).eval()
    content = [{"type": "image"}, {"type": "text", "text": ASKED.prompt}]
    asked = [{"role": "user", "content": content}]
    text = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    is_llava = model.config.model_type == "llava"
    processor: Any = (LlavaImageProcessorPil if is_llava else Qwen2VLImageProcessorPil).from_pretrained(folder)
    seen = dict(processor(images=image, return_tensors="pt"))
    count = (32 // 8) ** 2 if is_llava else int(seen["image_grid_thw"].prod()) // processor.merge_size**2
    assert text.count("<|image_pad|>") == 1
    whole = text.replace("<|image_pad|>", " ".join(["<|image_pad|>"] * count))
    ids: list[int] = tokenizer(whole)["input_ids"]
    place, new = tokenizer.convert_tokens_to_ids("<|image_pad|>"), list[int]()
    for _ in range(ASKED.max_tokens):
        given = torch.tensor([[*ids, *new]])
        kinds = {} if is_llava else {"mm_token_type_ids": (given == place).int()}
        with torch.no_grad():
            said = model(input_ids=given, attention_mask=torch.ones_like(given), **seen, **kinds)
        new.append(int(said.logits[0, -1].argmax()))
        if new[-1] == model.generation_config.eos_token_id:
            break
    return str(tokenizer.decode(new, skip_special_tokens=True))


@pytest.mark.parametrize("name", MODELS)
def test_captions_are_the_likeliest_words_alone_and_beside_other_images(folders: dict[str, Path], name: str) -> None:
    model = Captions(folders[name], ASKED)
    expected = [cleaned(by_hand(folders[name], image), ASKED.max_words) for image in IMAGES]
    assert model.captions(IMAGES) == expected
    assert [model.captions([image]) for image in IMAGES] == [[caption] for caption in expected]
    assert len(set(expected)) > 1 and all(len(caption.split()) <= ASKED.max_words for caption in expected)
    assert model.captions([]) == []


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        ('"A red car."', "A red car"),
        ("A red car\nIt stands in a street.", "A red car"),
        ("\n\n  'dogs' .\n", "dogs"),
        ("**Two   old dogs**.", "Two old dogs"),
        ("- a carpet", "a carpet"),
        ("<think>\nIs it a cat?\n</think>\n\nA cat.<|im_end|>", "A cat"),
        ("<s> A cat</s><end_of_turn>", "A cat"),
        ("a well-known St. Bernard", "a well-known St. Bernard"),
        ("one two three four five, six", "one two three four five"),
        ("\u201cUn chat\u201d", "Un chat"),
        ("3 < 4 > 2", "3 < 4 > 2"),
        ("<|im_end|>", ""),
        (' "" . \n', ""),
        ("", ""),
    ],
)
def test_a_caption_is_the_phrase_alone(text: str, caption: str) -> None:
    assert cleaned(text, max_words=5) == caption


def test_images_and_rules_that_are_none_are_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=r"^an image has shape \(40, 60\)"):
        Captions(folders["llava"], ASKED).captions([IMAGES[0][..., 0]])
    for bad in ({"prompt": " "}, {"max_tokens": 0}, {"max_words": 0}, {"batch": 0}):
        with pytest.raises(ValueError, match=r"write a prompt and set the numbers from 1"):
            CaptionRule(**bad)


def test_a_folder_without_such_a_model_is_refused_in_a_line(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere is no folder; give a vision-language model"):
        refuse_no_captioner(tmp_path / "nowhere")
    for file in folders["qwen2.5-vl"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    refuse_no_captioner(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match=r"a model of type bert, which writes no text about images"):
        refuse_no_captioner(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "unheard"}))
    with pytest.raises(ValueError, match=r"AutoConfig cannot load \(ValueError .*unheard"):
        refuse_no_captioner(tmp_path)
    (tmp_path / "config.json").write_bytes((folders["qwen2.5-vl"] / "config.json").read_bytes())
    told = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**told, "chat_template": None}))
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(ValueError, match=r"has no chat template, so it cannot be asked in words"):
        Captions(tmp_path, ASKED)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no weights"):
        Captions(tmp_path, ASKED)
