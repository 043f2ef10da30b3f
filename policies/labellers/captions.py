"""A short phrase about each image, by a user's vision-language model.

Any model of transformers' AutoModelForImageTextToText that has a chat template, such as Qwen2.5-VL, Qwen3-VL or LLaVA,
in the numbers of its own files (usually bfloat16), asked through its own processor and answering greedily. The part of
a processor that takes videos, which needs torchvision, is left out; without torchvision, transformers takes the image
processor made of PIL. What else a processor needs (SmolVLM's: num2words) is told when it is loaded.

The caption of an image beside others is the one it has alone, up to the rounding of padded batches, which can turn two
words that are all but equally likely.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from policies.labellers.model_folder import loaded_model, loaded_part, model_kind, refuse_no_image

_FORM = "a vision-language model in transformers' form, with its processor, tokenizer and chat template"
_CONTROL = re.compile(r"<[/|]?[\w.:-]+\|?>")
"""Control tokens that a tokenizer does not know as such: <|im_end|>, </s>, <end_of_turn>."""
_QUOTES = " \t\"'`*_\u201c\u201d\u2018\u2019\u00ab\u00bb"


@dataclass(frozen=True)
class CaptionRule:
    """What is asked, and how much of the answer is kept."""

    prompt: str = "Name the main object of this image in one short phrase. Answer with the phrase alone."
    """The user's words beside the image."""
    max_tokens: int = 32
    """Most tokens of an answer."""
    max_words: int = 8
    """Most words of a caption; what follows them is dropped."""
    batch: int = 4
    """Images at once."""

    def __post_init__(self) -> None:
        if not self.prompt.strip() or min(self.max_tokens, self.max_words, self.batch) < 1:
            raise ValueError(
                f"prompt is {self.prompt!r}, max_tokens {self.max_tokens}, max_words {self.max_words} and batch "
                f"{self.batch}; write a prompt and set the numbers from 1."
            )


class Captions:
    """A vision-language model, loaded; on a GPU where there is one."""

    def __init__(self, folder: Path, rule: CaptionRule) -> None:
        """Raises FileNotFoundError or ValueError, in a line, where the folder has no such model that can be loaded, or
        its processor no chat template; nothing is downloaded."""
        refuse_no_captioner(folder)
        self._rule = rule
        self._processor = _processor(folder)
        tokenizer = self._processor.tokenizer
        self._template = self._processor.chat_template or tokenizer.chat_template
        if not self._template:
            raise ValueError(f"{folder} has no chat template, so it cannot be asked in words; give {_FORM}.")
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self._model: Any = loaded_model(AutoModelForImageTextToText, folder, "auto", _FORM)

    def captions(self, images: Sequence[NDArray[np.uint8]]) -> list[str]:
        """[images] the caption of each image [H, W, 3] RGB, "" where the answer has none (see `cleaned`).

        Raises ValueError where an image is none, before the model runs.
        """
        for image in images:
            refuse_no_image(image)
        said = list[str]()
        for first in range(0, len(images), self._rule.batch):
            said += self._answers(images[first : first + self._rule.batch])
        return [cleaned(text, self._rule.max_words) for text in said]

    @torch.inference_mode()
    def _answers(self, images: Sequence[NDArray[np.uint8]]) -> list[str]:
        """The model's words about some images at once."""
        asked = {"type": "text", "text": self._rule.prompt}
        conversations = [
            [{"role": "user", "content": [{"type": "image", "image": Image.fromarray(image)}, asked]}]
            for image in images
        ]
        given = self._processor.apply_chat_template(
            conversations,
            self._template,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            processor_kwargs={"return_tensors": "pt", "padding": True},
        ).to(self._model.device, dtype=self._model.dtype)
        tokenizer = self._processor.tokenizer
        answered = self._model.generate(
            **given,
            do_sample=False,
            num_beams=1,
            max_new_tokens=self._rule.max_tokens,
            pad_token_id=tokenizer.pad_token_id,
        )
        new = answered[:, given["input_ids"].shape[1] :]
        return [str(text) for text in tokenizer.batch_decode(new, skip_special_tokens=True)]


def refuse_no_captioner(folder: Path) -> None:
    """Raise FileNotFoundError or ValueError where a folder has no vision-language model, by its files alone."""
    kind = model_kind(folder, None, _FORM, reads_text=True)
    config = loaded_part(AutoConfig, folder, _FORM)
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise ValueError(f"{folder} holds a model of type {kind}, which writes no text about images; give {_FORM}.")


def cleaned(text: str, max_words: int) -> str:
    """The phrase in a model's answer: its first line that has any, without thoughts before it, control tokens, quotes
    around it, a bullet, or periods at its end, and at most so many words of it; "" where nothing is left."""
    lines = _CONTROL.sub(" ", text.rpartition("</think>")[2]).splitlines()
    for line in lines:
        words = line.strip(_QUOTES).removeprefix("- ").rstrip(_QUOTES + ".").lstrip(_QUOTES).split()
        if words:
            return " ".join(words[:max_words]).rstrip(_QUOTES + ".,;:")
    return ""


def _processor(folder: Path) -> Any:
    """The folder's processor; one that also takes videos without that part, which would need torchvision."""
    kind: Any = PROCESSOR_MAPPING.get(type(loaded_part(AutoConfig, folder, _FORM)), None)
    if kind is None or "video_processor" not in kind.get_attributes():
        return loaded_part(AutoProcessor, folder, _FORM)

    class OfImages(kind):  # type: ignore[misc]
        """The arguments of __init__ are what transformers loads from the folder."""

        def __init__(self, image_processor: Any = None, tokenizer: Any = None, **settings: Any) -> None:
            super().__init__(image_processor, tokenizer, video_processor=None, **settings)

    OfImages.__name__ = kind.__name__
    return loaded_part(OfImages, folder, _FORM)
