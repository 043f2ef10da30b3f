"""A user's model in transformers' form: what a folder lacks is told in a line, and nothing is downloaded."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from transformers import PreTrainedModel

PROCESSORS = ("preprocessor_config.json", "processor_config.json")
"""Either of them says how images are shown to a model."""
TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model")
"""Any of them holds a tokenizer's tokens."""


def model_kind(folder: Path, kinds: Sequence[str] | None, form: str, reads_text: bool) -> str:
    """The `model_type` of the model in a folder, judged by its files alone.

    `kinds` are those that are taken (None: all); `form` says in an error what to give instead. Raises FileNotFoundError
    where the folder, its config, weights, processor or, where the model reads text, its tokenizer is missing;
    ValueError where the config cannot be read or is of another kind.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; give {form}.")
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} has no config.json; give {form}.")
    try:
        kind = json.loads((folder / "config.json").read_text())["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder}/config.json names no model_type ({_in_line(error)}); give {form}.") from error
    if kinds is not None and kind not in kinds:
        raise ValueError(f"{folder} holds a model of type {kind}; give {form} (types: {', '.join(kinds)}).")
    needed = {"processor": PROCESSORS} | ({"tokenizer": TOKENIZERS} if reads_text else {})
    for what, names in needed.items():
        if not any((folder / name).is_file() for name in names):
            raise FileNotFoundError(f"{folder} has no {what} (any of {', '.join(names)}); give {form}.")
    if not any((*folder.glob("*.safetensors"), *folder.glob("*.bin"))):
        raise FileNotFoundError(f"{folder} has no weights; give {form}.")
    return str(kind)


def loaded_model(loader: Any, folder: Path, dtype: "torch.dtype | str", form: str) -> PreTrainedModel:
    """The model that a class of transformers loads from a folder, in evaluation, on a GPU where there is one.

    Raises ValueError where the weights cannot be loaded, or some of the model's are not among them.
    """
    try:
        loaded: Any = loader.from_pretrained(folder, local_files_only=True, dtype=dtype, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{folder}: the model cannot be loaded ({_in_line(error)}); give {form}.") from error
    model, told = loaded
    if lacking := sorted(told["missing_keys"]):
        raise ValueError(f"{folder}: the weights lack {lacking[0]} and {len(lacking) - 1} more; give {form}.")
    made: PreTrainedModel = model.eval().requires_grad_(False).to("cuda" if torch.cuda.is_available() else "cpu")
    return made


def loaded_part(loader: Any, folder: Path, form: str, **settings: Any) -> Any:
    """The image processor, tokenizer or processor that a class of transformers loads from a folder.

    Raises ValueError where it cannot be loaded, with the reason in a line.
    """
    try:
        return loader.from_pretrained(folder, local_files_only=True, **settings)
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder}: {loader.__name__} cannot load ({_in_line(error)}); give {form}.") from error


def image_settings(folder: Path, form: str) -> dict[str, Any]:
    """What a folder's files say of how images are shown, as they stand: of its image processor alone, or within a
    processor. Raises ValueError where they cannot be read."""
    for name in PROCESSORS:
        try:
            said = json.loads((folder / name).read_text()) if (folder / name).is_file() else {}
        except (OSError, ValueError) as error:
            raise ValueError(f"{folder / name} cannot be read ({_in_line(error)}); give {form}.") from error
        if found := said.get("image_processor", said if name == PROCESSORS[0] else {}):
            return dict(found)
    raise ValueError(f"{folder} says nothing of how images are shown; give {form}.")


def refuse_no_image(image: NDArray[np.uint8]) -> None:
    """Raise ValueError where an array is no image [H, W, 3] of uint8 with a pixel."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(
            f"an image has shape {image.shape} and dtype {image.dtype}; give uint8 [height, width, 3] in RGB."
        )


def _in_line(error: Exception) -> str:
    """What an error says, in at most 200 characters of one line."""
    return " ".join(f"{type(error).__name__} {error}".split())[:200]
