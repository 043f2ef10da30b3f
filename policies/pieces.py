"""What the tokens of a vocabulary add to a text, found by decoding them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Pieces:
    """What each token adds to an answer's text, of those tokens that a grammar has a use for."""

    texts: Mapping[int, str]
    """By token id, none of them empty."""
    spaced: bool
    """Whether the tokenizer puts a space between tokens: each text ends with one, so that words are whole."""


def token_pieces(tokenizer: Any, alphabet: str) -> Pieces:
    """Texts of the tokens made of `alphabet` alone, as decoding puts them together; special tokens are none of them.

    Raises ValueError for a tokenizer that neither puts texts end to end nor always a space between them.
    """
    ids = sorted(set(range(len(tokenizer))) - set(tokenizer.all_special_ids))
    alone = dict(zip(ids, _decoded(tokenizer, [[token] for token in ids]), strict=True))
    texts = {token: text for token, text in alone.items() if text and not set(text) - set(alphabet)}
    if not texts:
        return Pieces({}, False)
    anchor = min(texts, key=lambda token: (texts[token].strip() == "", len(texts[token]), token))
    pairs = _decoded(tokenizer, [[anchor, token] for token in texts])
    begun = texts[anchor]
    if all(pair == begun + text for pair, text in zip(pairs, texts.values(), strict=True)):
        return Pieces(texts, False)
    if all(pair == f"{begun} {text}" for pair, text in zip(pairs, texts.values(), strict=True)):
        return Pieces({token: f"{text} " for token, text in texts.items()}, True)
    raise ValueError("sampling.grammar needs a tokenizer whose texts are put end to end, or with spaces between.")


def _decoded(tokenizer: Any, rows: list[list[int]]) -> list[str]:
    return [str(tokenizer.decode(row, clean_up_tokenization_spaces=False)) for row in rows]
