"""Kimi's tokenizer from its files: a vocabulary of tiktoken, and names of the tokens behind it.

The folder holds no tokenizer.json, and the class that it names lies in the folder as code. What that class does is in
two files: `tiktoken.model` has a line a token, its bytes in base64 and its rank; `tokenizer_config.json` names the 256
special tokens that follow. Text is first cut by a pattern, in which Chinese characters are runs of their own and digits
come in threes.
"""

import base64
import binascii
import json
from pathlib import Path
from typing import Any

from transformers import AddedToken, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter

_NAME = "tiktoken.model"
_RESERVED = 256
"""Special tokens behind the ranks."""
_CAPITALS, _SMALL = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_PATTERN = "|".join(
    (
        r"[\p{Han}]+",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_CAPITALS}*{_SMALL}+{_ENDING}",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_CAPITALS}+{_SMALL}*{_ENDING}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
"""How text is cut before its bytes are merged."""


def read_ranks(path: Path) -> dict[bytes, int]:
    """Ranks by the bytes of a token, from a file of tiktoken.

    Raises FileNotFoundError without one, and ValueError, naming the line, where it is none, was cut off, or leaves a
    rank or a single byte out.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}; copy it from where the model came from.")
    ranks: dict[bytes, int] = {}
    lines = path.read_bytes().splitlines()
    for number, line in enumerate(lines, 1):
        parts = line.split()
        try:
            token, rank = base64.b64decode(parts[0], validate=True), int(parts[1])
        except (IndexError, ValueError, binascii.Error):
            raise ValueError(
                f"line {number} of {path} is {line[:40]!r}, and each must be a token in base64 and its rank; copy the "
                "file anew from where the model came from."
            ) from None
        ranks[token] = rank
    missing = set(range(len(lines))) - set(ranks.values())
    if missing or any(bytes([byte]) not in ranks for byte in range(256)):
        what = f"rank {min(missing)}" if missing else "a single byte"
        raise ValueError(
            f"{path} has {len(lines)} lines and lacks {what}; copy it anew from where the model came from."
        )
    return ranks


class _Converter(TikTokenConverter):
    """transformers' own, which asks for a package to read the file."""

    @staticmethod
    def load_tiktoken_bpe(tiktoken_url: str) -> dict[bytes, int]:
        """The ranks of a file."""
        return read_ranks(Path(tiktoken_url))


def kimi_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a Kimi folder, with its special tokens and chat template.

    Raises as `read_ranks` does, and ValueError where tokenizer_config.json names a special token among the ranks.
    """
    config = _config_of(folder)
    first = len(read_ranks(folder / _NAME))
    named = {int(token): str(entry["content"]) for token, entry in config.get("added_tokens_decoder", {}).items()}
    if wrong := sorted(token for token in named if not first <= token < first + _RESERVED):
        raise ValueError(
            f"{folder}/tokenizer_config.json names token {wrong[0]}, and those behind the {first} of {_NAME} are "
            f"{first} to {first + _RESERVED - 1}; copy both files of one model."
        )
    special = [named.get(token, f"<|reserved_token_{token}|>") for token in range(first, first + _RESERVED)]
    built = _Converter(str(folder / _NAME), pattern=_PATTERN).converted()
    built.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    roles = {role: _content(config[role]) for role in ("bos_token", "eos_token", "pad_token") if config.get(role)}
    return PreTrainedTokenizerFast(
        tokenizer_object=built,
        additional_special_tokens=special,
        chat_template=_template_of(folder, config),
        clean_up_tokenization_spaces=False,
        **roles,
    )


def _config_of(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return config


def _template_of(folder: Path, config: dict[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    return path.read_text(encoding="utf-8") if path.is_file() else config.get("chat_template")


def _content(token: Any) -> str:
    """A token that a file names by its text, or by an entry that holds it."""
    return str(token["content"] if isinstance(token, dict) else token)
