"""What a Hugging Face folder is, told from its files before anything of it is loaded, and what rules it out.

Nothing here imports transformers, opens a tensor or runs code: a folder whose model is code of its own is named so and
refused, and asks nothing on the terminal.
"""

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""Number formats by what safetensors calls them."""
_MOST_HEADER_BYTES = 100 * 2**20
"""Largest header that the safetensors format allows."""
_JSON_FILES = (
    "tokenizer_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "generation_config.json",
    "chat_template.json",
)
_SHOWN = 3
"""Files or names that a message names."""


@dataclass(frozen=True)
class Checkpoint:
    """A folder with a model, as its JSON files and the headers of its weights describe it."""

    folder: Path
    """Folder that holds config.json."""

    @cached_property
    def config(self) -> dict[str, Any]:
        """Values of config.json; FileNotFoundError or ValueError where there is none that can be read."""
        if not (self.folder / "config.json").is_file():
            raise FileNotFoundError(f"policy.checkpoint is {self.folder}, which {self._instead()}")
        return self.json("config.json")

    @property
    def model_type(self) -> str:
        """Name that transformers gives the model's family, such as qwen2_5_vl; "" where config.json names none."""
        return str(self.config.get("model_type", ""))

    @property
    def dtype(self) -> str | None:
        """Number format of the stored weights by config.json, such as bfloat16; None where it does not say."""
        nested = self.config.get("text_config")
        inner = nested if isinstance(nested, dict) else {}
        named = (values.get(key) for values in (self.config, inner) for key in ("dtype", "torch_dtype"))
        return next((str(name) for name in named if name), None)

    def json(self, name: str) -> dict[str, Any]:
        """Values of a JSON file of the folder, {} where there is none. Raises ValueError for one that is no object."""
        path = self.folder / name
        if not path.is_file():
            return {}
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is no JSON ({error}); copy it anew from where the model came from.") from error
        if not isinstance(values, dict):
            raise ValueError(f"{path} holds no JSON object; copy it anew from where the model came from.")
        return values

    def refuse_foreign(self, written_here: bool = False) -> None:
        """Raise ValueError or FileNotFoundError, by what its files say, for a folder that no family here can load.

        These are folders without config.json, with code of their own, or of quantised weights. written_here: whether
        what such code does is written here, so that nobody needs the folder's.
        """
        if (self.folder / "adapter_config.json").is_file() and (self.folder / "config.json").is_file():
            raise ValueError(
                f"{self.folder} holds adapters (adapter_config.json) beside a model, and which is meant is not clear; "
                "merge them into it (peft's merge_and_unload, then save_pretrained), or delete their files."
            )
        code = self.config.get("auto_map")
        if code and not written_here:
            raise ValueError(
                f"{self.folder} is a {self.model_type or 'nameless'} model whose code lies in the folder (auto_map), "
                "and code of a checkpoint is never run here; give a folder in the form of transformers' own classes "
                "(often published with the ending -hf)."
            )
        quantised = self.config.get("quantization_config")
        if quantised:
            method = quantised.get("quant_method", "an unnamed method") if isinstance(quantised, dict) else quantised
            raise ValueError(
                f"the weights of {self.folder} are quantised ({method}), and quantised weights can be neither trained "
                "nor pushed here; give the unquantised checkpoint that it was made from."
            )

    def refuse_incomplete(self, image_processor: bool = True) -> None:
        """Raise FileNotFoundError for a folder without tokenizer or, where its family has one, image processor,
        ValueError for broken files."""
        of_images = ("image processor", ("preprocessor_config.json", "processor_config.json"))
        of_text = ("tokenizer", ("tokenizer.json", "tokenizer_config.json", "tokenizer.model"))
        for what, names in (of_images, of_text) if image_processor else (of_text,):
            if not any((self.folder / name).is_file() for name in names):
                raise FileNotFoundError(
                    f"{self.folder} has no {what} ({' or '.join(names)}); copy it from the model that this one was "
                    "trained from."
                )
        for name in _JSON_FILES:
            self.json(name)
        tokenizer = self.folder / "tokenizer.json"
        if tokenizer.is_file() and not isinstance(self.json(tokenizer.name).get("model"), dict):
            raise ValueError(f"{tokenizer} holds no tokenizer; copy it anew.")

    def refuse_missing_weights(self) -> None:
        """Raise FileNotFoundError for a folder without weights, or with some of its shards alone.

        Pickled weights (pytorch_model.bin) are refused too: reading them can run code.
        """
        expected = self.shards
        missing = [name for name in expected if not (self.folder / name).is_file()]
        if missing:
            named = ", ".join(missing[:_SHOWN]) + (" ..." if len(missing) > _SHOWN else "")
            raise FileNotFoundError(
                f"{self.folder} lacks {len(missing)} of its {len(expected)} files of weights ({named}); add them."
            )
        if not expected:
            pickled = sorted(path.name for path in self.folder.glob("*.bin"))
            if pickled:
                raise FileNotFoundError(
                    f"{self.folder} holds its weights as pickles alone ({pickled[0]}), which are not read here since "
                    "they can run code; load and save it once by transformers, which writes safetensors."
                )
            raise FileNotFoundError(f"{self.folder} holds no weights (*.safetensors); copy them there.")

    @property
    def whole(self) -> bool:
        """Whether all its files of weights are there."""
        return bool(self.shards) and all((self.folder / name).is_file() for name in self.shards)

    @property
    def shards(self) -> Sequence[str]:
        """Names of its files of weights, those that are not there included where an index names them."""
        index = self.json("model.safetensors.index.json").get("weight_map")
        if isinstance(index, dict) and index:
            names = sorted({str(name) for name in index.values()})
            outside = [name for name in names if Path(name).name != name]
            if outside:
                raise ValueError(
                    f"{self.folder}/model.safetensors.index.json names {outside[0]}, which is not in it; "
                    "give a folder with all its weights."
                )
            return names
        return sorted(path.name for path in self.folder.glob("*.safetensors"))

    def stored_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every stored tensor by its name, from the files' headers alone.

        Raises ValueError for a file that is cut off or no safetensors file.
        """
        shapes: dict[str, tuple[int, ...]] = {}
        for name in self.shards:
            header = _header(self.folder / name)
            shapes |= {key: tuple(value["shape"]) for key, value in header.items() if key != "__metadata__"}
        return shapes

    def stored_dtype(self) -> str | None:
        """Number format of all stored tensors, such as bfloat16, from the files' headers; None where they differ.

        Raises as `stored_shapes` does.
        """
        headers = [_header(self.folder / name) for name in self.shards]
        kinds = {value["dtype"] for header in headers for key, value in header.items() if key != "__metadata__"}
        return _DTYPES.get(kinds.pop()) if len(kinds) == 1 else None

    def _instead(self) -> str:
        """What the folder is, where it is no model, and what to give."""
        if (self.folder / "adapter_config.json").is_file():
            base = self.json("adapter_config.json").get("base_model_name_or_path", "its base model")
            return (
                f"holds adapters of {base} and no model; merge them into it (peft's merge_and_unload, then "
                "save_pretrained) and give that folder."
            )
        return "has no config.json; give a Hugging Face model folder."


def _header(path: Path) -> dict[str, Any]:
    """Header of a safetensors file."""
    with path.open("rb") as file:
        start = file.read(8)
        size = struct.unpack("<Q", start)[0] if len(start) == 8 else _MOST_HEADER_BYTES + 1
        text = file.read(size) if size <= _MOST_HEADER_BYTES else b""
    try:
        header: dict[str, Any] = json.loads(text)
        tensors = [value for key, value in header.items() if key != "__metadata__"]
        end = max((value["data_offsets"][1] for value in tensors if len(value["shape"]) >= 0), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise ValueError(f"{path} is no safetensors file, or was cut off; copy it anew.") from error
    if path.stat().st_size < 8 + size + end:
        raise ValueError(f"{path} was cut off: {path.stat().st_size} of {8 + size + end} bytes; copy it anew.")
    return header
