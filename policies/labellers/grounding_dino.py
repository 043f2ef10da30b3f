"""Grounding DINO (Liu et al. 2023), asked about names: its answers about tokens are made answers about names."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer

from policies.labellers.boxes import corners
from policies.labellers.model_folder import loaded_part
from policies.labellers.phrases import asked_text, named, plain_text, texts_that_fit
from policies.labellers.sightings import Sightings


class GroundingDino:
    """The model with its tokenizer and image processor; a Detector."""

    def __init__(self, model: Any, folder: Path, form: str, threshold: float, text_threshold: float) -> None:
        """Raises ValueError where the tokenizer or image processor cannot be loaded."""
        self._model, self._threshold, self._text_threshold = model, threshold, text_threshold
        self._tokenizer = loaded_part(AutoTokenizer, folder, form)
        self._processor = loaded_part(AutoImageProcessor, folder, form, backend="pil")
        self._separator = int(self._tokenizer.convert_tokens_to_ids("."))
        self._most = int(model.config.max_text_len)

    def reading(self, name: str) -> str:
        """A name as it stands in the text."""
        return plain_text(name)

    def reads(self, name: str) -> bool:
        """Whether a name has a token that is known, and fits into a text with the three tokens around it."""
        tokens = self._tokens(name)
        return len(tokens) + 3 <= self._most and any(token != self._tokenizer.unk_token_id for token in tokens)

    def parts(self, names: Sequence[str]) -> list[slice]:
        """The names in texts of at most `max_text_len` tokens; the model would cut a longer one."""
        return texts_that_fit([len(self._tokens(name)) for name in names], self._most)

    def look(self, images: Sequence[NDArray[np.uint8]], names: Sequence[Sequence[str]]) -> list[Sightings]:
        """[images] what is seen in images of one size."""
        ends = int(self._tokenizer.cls_token_id), self._separator, int(self._tokenizer.sep_token_id)
        texts = [asked_text([self._tokens(name) for name in some], *ends) for some in names]
        longest = max(len(tokens) for tokens, _ in texts)
        ids = torch.full((len(texts), longest), int(self._tokenizer.pad_token_id))
        real = torch.zeros_like(ids)
        for row, (tokens, _) in enumerate(texts):
            ids[row, : len(tokens)], real[row, : len(tokens)] = torch.tensor(tokens), 1
        shown = self._processor(images=[Image.fromarray(image) for image in images], return_tensors="pt")
        text = {"input_ids": ids, "attention_mask": real, "token_type_ids": torch.zeros_like(ids)}
        picture = {"pixel_values": shown["pixel_values"], "pixel_mask": shown["pixel_mask"]}
        said = self._model(**{key: value.to(self._model.device) for key, value in (text | picture).items()})
        sureness, boxes = said.logits.sigmoid().double().cpu().numpy(), said.pred_boxes.double().cpu().numpy()
        answers = zip(images, texts, sureness, boxes, strict=True)
        return [self._sightings(image.shape, spans, *seen) for image, (_, spans), *seen in answers]

    def _sightings(
        self, shape: tuple[int, ...], spans: list[slice], sureness: NDArray[np.float64], boxes: NDArray[np.float64]
    ) -> Sightings:
        """Of boxes [Q, 4], shares of an image's sides, and of their tokens [Q, T], those that are sure enough."""
        sure = sureness.max(axis=1) > self._threshold
        places, scores = named(sureness[sure], spans, self._threshold, self._text_threshold)
        sides = np.array([shape[1], shape[0], shape[1], shape[0]], np.float64)
        kept = places >= 0
        return Sightings(corners(boxes[sure][kept]) * sides, places[kept], scores[kept], int((~kept).sum()))

    def _tokens(self, name: str) -> list[int]:
        tokens: list[int] = self._tokenizer(plain_text(name), add_special_tokens=False)["input_ids"]
        return tokens
