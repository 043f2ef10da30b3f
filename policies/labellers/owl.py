"""OWLv2 (Minderer et al. 2023), asked about names: each box has the name that it is surest of."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer

from policies.labellers.boxes import corners
from policies.labellers.model_folder import loaded_part
from policies.labellers.sightings import Sightings


class Owl:
    """The model with its tokenizer and image processor; a Detector."""

    def __init__(self, model: Any, folder: Path, form: str, threshold: float, prompt: str) -> None:
        """Raises ValueError where the tokenizer or image processor cannot be loaded."""
        self._model, self._threshold, self._prompt = model, threshold, prompt
        self._tokenizer = loaded_part(AutoTokenizer, folder, form)
        self._processor = loaded_part(AutoImageProcessor, folder, form, backend="pil")
        self._most = int(model.config.text_config.max_position_embeddings)

    def reading(self, name: str) -> str:
        """A name in lower case, as its tokenizer reads it."""
        return " ".join(name.lower().split())

    def reads(self, name: str) -> bool:
        """Whether a name has a sign, and its prompt fits into the model's few places (16 in those published)."""
        return (
            bool(self.reading(name))
            and len(self._tokenizer(self._text(name), verbose=False)["input_ids"]) <= self._most
        )

    def parts(self, names: Sequence[str]) -> list[slice]:
        """All names at once."""
        return [slice(0, len(names))] if names else []

    def look(self, images: Sequence[NDArray[np.uint8]], names: Sequence[Sequence[str]]) -> list[Sightings]:
        """[images] what is seen in images of one size.

        An image is padded to a square at the right and below, so boxes are shares of its longer side.
        """
        most = max(len(some) for some in names)
        texts = [self._text(name) for some in names for name in (*some, *[some[0]] * (most - len(some)))]
        read = self._tokenizer(texts, padding="max_length", max_length=self._most, return_tensors="pt")
        shown = self._processor(images=[Image.fromarray(image) for image in images], return_tensors="pt")
        said = self._model(
            input_ids=read["input_ids"].to(self._model.device),
            attention_mask=read["attention_mask"].to(self._model.device),
            pixel_values=shown["pixel_values"].to(self._model.device),
        )
        found = list[Sightings]()
        for image, some, logits, boxes in zip(images, names, said.logits, said.pred_boxes, strict=True):
            # What stands after an image's own names only fills the batch.
            scores, places = logits[:, : len(some)].sigmoid().double().cpu().max(dim=1)
            sure = scores.numpy() > self._threshold
            boxes_px = corners(boxes.double().cpu().numpy()[sure]) * max(image.shape[:2])
            found.append(Sightings(boxes_px, places.numpy()[sure], scores.numpy()[sure]))
        return found

    def _text(self, name: str) -> str:
        return self._prompt.replace("{}", self.reading(name))
