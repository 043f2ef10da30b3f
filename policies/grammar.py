"""A codec's grammar over characters, lifted to token ids: which tokens may come next, in sampling and in learning.

The text that each token adds (`token_pieces`), the grammar over them (`TokenGrammar`), and many answers on their way
through it at once (`GrammarWalk`).

A token may come if the answer can still be ended within the tokens that are left, the end token included: with the
grammar on, no answer is cut by the length limit. Masks are a function of an answer's own tokens and of the limit, so
the learner makes them again from the tokens alone.

What may follow is found by walking the tree of all token texts, once for each condensed state; near a limit, where
nothing can be left out of a state, it is found anew.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.codecs.base import AnswerGrammar, State

_CPU = torch.device("cpu")


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


class Progress(NamedTuple):
    """Where an answer has got to."""

    state: State | None
    """None after the end token."""
    tokens_left: int
    """The end token included."""


class _Branch:
    """A tree of texts: the tokens that end here, and the branches by next character."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.branches: dict[str, _Branch] = {}

    def below(self) -> list[int]:
        """All tokens that end here or further on."""
        return self.tokens + [token for branch in self.branches.values() for token in branch.below()]


class _Scan(NamedTuple):
    """Tokens that a state allows, the limit on tokens aside."""

    sure: list[int]
    unsure: list[int]
    """A condensed state could not tell."""


class TokenGrammar:
    """The grammar of a codec for one vocabulary. Remembers masks by number: equal masks have equal numbers."""

    def __init__(self, grammar: AnswerGrammar, pieces: Pieces, end_token: int, vocabulary_size: int) -> None:
        """Raises ValueError where the vocabulary cannot write what the grammar needs."""
        self._grammar, self._pieces = grammar, pieces
        self._end_token, self._vocabulary_size = end_token, vocabulary_size
        self._root = _Branch()
        for token, text in pieces.texts.items():
            branch = self._root
            for character in text:
                branch = branch.branches.setdefault(character, _Branch())
            branch.tokens.append(token)
        self._num_characters = max(map(len, pieces.texts.values()), default=0)
        self._longest = len(grammar.longest) if pieces.spaced else len(grammar.joint.join(grammar.longest))
        self._scans: dict[State, _Scan] = {}
        self._allowed: list[NDArray[np.int64]] = []
        self._numbers: dict[tuple[int, ...], int] = {}
        self._number_of: dict[tuple[State, bool], int] = {}
        self._tables: dict[torch.device, MaskTable] = {}
        self._cost = lru_cache(maxsize=100_000)(self._fewest_tokens)
        words = grammar.words(pieces.spaced)
        missing = [word for word in words if self._cost(word + " " * pieces.spaced) is None]
        if missing:
            raise ValueError(
                f"the tokenizer has no way to write {', '.join(map(repr, missing[:5]))}"
                f"{' ...' if missing[5:] else ''}, which the codec's grammar needs; set sampling.grammar to false, or "
                "change the codec's limits or the tokenizer."
            )

    def start(self, max_tokens: int) -> Progress:
        """Before the first of up to `max_tokens` tokens; raises ValueError where they are too few for any answer."""
        shortest = self._tokens_to_end(self._grammar.start)
        if shortest > max_tokens:
            raise ValueError(
                f"sampling.max_tokens is {max_tokens}, but the shortest valid answer takes {shortest} tokens; raise it."
            )
        return Progress(self._grammar.start, max_tokens)

    def mask(self, progress: Progress) -> int:
        """Number of the mask of the tokens that may come next; after the end token, that of the end token alone."""
        if progress.state is None:
            return self._number([self._end_token])
        accepts = self._grammar.accepts(progress.state)
        condensed = self._grammar.condensed(progress.state, self._num_characters)
        # Far from the limit, and where a condensed state tells everything, it alone says what may follow.
        settled = condensed is not None and self._any_ends_within(progress.tokens_left - 1)
        if condensed is not None and settled and (condensed, accepts) in self._number_of:
            return self._number_of[condensed, accepts]
        tokens = self._tokens(progress.state, condensed, progress.tokens_left)
        if accepts:
            tokens = [*tokens, self._end_token]
        if not tokens:
            raise ValueError(f"no token of the vocabulary goes on from {progress}; set sampling.grammar to false.")
        number = self._number(tokens)
        if condensed is not None and settled and not self._scans[condensed].unsure:
            self._number_of[condensed, accepts] = number
        return number

    def advance(self, progress: Progress, token: int) -> Progress:
        """The place after a token; raises ValueError for one that the grammar refuses here."""
        if progress.state is None or token == self._end_token:
            following = None
            refused = progress.state is not None and not self._grammar.accepts(progress.state)
        else:
            following = self._after(progress.state, token)
            refused = following is None or not self._ends_within(following, progress.tokens_left - 1)
        if refused:
            raise ValueError(f"token {token} cannot follow under the grammar at {progress}; it was sampled without.")
        return Progress(following, progress.tokens_left - 1)

    def masks_of(self, tokens: Sequence[int], max_tokens: int) -> list[int]:
        """[T] numbers of the masks under which a response's tokens were sampled; ValueError for impossible ones."""
        progress, numbers = self.start(max_tokens), []
        for token in tokens:
            numbers.append(self.mask(progress))
            progress = self.advance(progress, int(token))
        return numbers

    def masks_of_rows(self, tokens: NDArray[np.int64], real: NDArray[np.bool_], max_tokens: int) -> NDArray[np.int64]:
        """[N, T] numbers of the masks of N responses, 0 where not real; tokens, real: [N, T], real ones first."""
        masks = np.zeros(tokens.shape, np.int64)
        for row, own, is_real in zip(masks, tokens, real, strict=True):
            row[is_real] = self.masks_of(own[is_real].tolist(), max_tokens)
        return masks

    def allowed(self, numbers: Sequence[int] | NDArray[np.int64]) -> Tensor:
        """[N, V] bool, True on the tokens that masks `numbers` [N] allow."""
        distinct, places = np.unique(np.asarray(numbers, np.int64), return_inverse=True)
        table = torch.zeros(len(distinct), self._vocabulary_size, dtype=torch.bool)
        for row, number in enumerate(distinct):
            table[row, torch.from_numpy(self._allowed[number])] = True
        return table[torch.from_numpy(places)]

    def table(self, device: torch.device) -> "MaskTable":
        """The masks as a device holds them, the same table every time."""
        return self._tables.setdefault(device, MaskTable(self, self._vocabulary_size, device))

    def _number(self, tokens: list[int]) -> int:
        key = tuple(sorted(tokens))
        if key not in self._numbers:
            self._numbers[key] = len(self._allowed)
            self._allowed.append(np.array(key, np.int64))
        return self._numbers[key]

    def _after(self, state: State, token: int) -> State | None:
        text = self._pieces.texts.get(token)
        return None if text is None else self._grammar.advance(state, text)

    def _tokens(self, state: State, condensed: State | None, tokens_left: int) -> list[int]:
        """Tokens of text that may follow."""
        if condensed is None:
            scan = self._scan(state)
        else:
            scan = self._scans.get(condensed) or self._scans.setdefault(condensed, self._scan(condensed))
        if self._any_ends_within(tokens_left - 1):
            return scan.sure + [token for token in scan.unsure if self._after(state, token) is not None]
        following = [(token, self._after(state, token)) for token in scan.sure + scan.unsure]
        return [token for token, after in following if after and self._ends_within(after, tokens_left - 1)]

    def _any_ends_within(self, num_tokens: int) -> bool:
        """Whether every state's completion fits, the end token included."""
        return num_tokens > self._longest

    def _ends_within(self, state: State, num_tokens: int) -> bool:
        return self._any_ends_within(num_tokens) or self._tokens_to_end(state) <= num_tokens

    def _scan(self, state: State) -> _Scan:
        scan = _Scan([], [])
        waiting = [(state, self._root)]
        while waiting:
            state, branch = waiting.pop()
            for character, further in branch.branches.items():
                after = self._grammar.advance(state, character)
                if after is None:
                    continue
                if not after.sure:
                    scan.unsure.extend(further.below())
                    continue
                scan.sure.extend(further.tokens)
                waiting.append((after, further))
        return scan

    def _tokens_to_end(self, state: State) -> int:
        """Tokens of the completion, the end token included."""
        words = self._grammar.completion(state)
        text = "".join(f"{word} " for word in words) if self._pieces.spaced else self._grammar.joint.join(words)
        tokens = self._cost(text)
        return self._vocabulary_size if tokens is None else tokens + 1

    def _fewest_tokens(self, text: str) -> int | None:
        """The fewest tokens that write `text`; None where none do."""
        fewest: list[int | None] = [None] * len(text) + [0]
        for first in reversed(range(len(text))):
            branch, counts = self._root, []
            for place in range(first, len(text)):
                if text[place] not in branch.branches:
                    break
                branch = branch.branches[text[place]]
                rest = fewest[place + 1]
                if branch.tokens and rest is not None:
                    counts.append(rest + 1)
            fewest[first] = min(counts, default=None)
        return fewest[0]


class MaskTable:
    """Masks on a device: each is made and sent there once, whatever the number of answers and tokens that it is for."""

    def __init__(self, grammar: TokenGrammar, vocabulary_size: int, device: torch.device) -> None:
        self._grammar, self._device = grammar, device
        self._most = max(1, _MASK_BYTES // vocabulary_size)
        self._table = torch.zeros(0, vocabulary_size, dtype=torch.bool, device=device)
        self._rows: dict[int, int] = {}

    def allowed(self, numbers: Sequence[int]) -> Tensor:
        """[N, V] bool, True on the tokens that masks `numbers` [N] allow."""
        unknown = {number for number in numbers if number not in self._rows}
        if unknown:
            self._take(sorted(unknown), set(numbers))
        rows = torch.tensor([self._rows[number] for number in numbers], device=self._device)
        return self._table.index_select(0, rows)

    def _take(self, unknown: list[int], wanted: set[int]) -> None:
        if self._rows and len(self._rows) + len(unknown) > self._most:
            self._rows, unknown = {}, sorted(wanted)  # full: begun anew with what is asked for now
        first = len(self._rows)
        self._rows |= {number: first + k for k, number in enumerate(unknown)}
        if len(self._rows) > len(self._table):
            more = max(len(self._rows), min(2 * len(self._table), self._most)) - len(self._table)
            self._table = torch.cat([self._table, self._table.new_zeros(more, self._table.shape[1])])
        self._table[first : first + len(unknown)] = self._grammar.allowed(unknown).to(self._device)


_MASK_BYTES = 2**27
"""What the masks of one device may take; those of one token at a time are held in any case."""


class GrammarWalk:
    """N answers on their way through a grammar, together; without one, everything is allowed (None)."""

    def __init__(self, grammar: TokenGrammar | None, num: int, max_tokens: int, device: torch.device = _CPU) -> None:
        """device: where masks are wanted."""
        self._grammar, self._max_tokens, self._device = grammar, max_tokens, device
        self._progress = [] if grammar is None else [grammar.start(max_tokens)] * num

    def allowed(self) -> Tensor | None:
        """[N, V] bool: the tokens that may come next."""
        if self._grammar is None:
            return None
        # Once for all that are at one place, as they all are at the start.
        masks = {progress: self._grammar.mask(progress) for progress in set(self._progress)}
        return self._grammar.table(self._device).allowed([masks[progress] for progress in self._progress])

    def advance(self, tokens: Tensor) -> None:
        """Each answer takes its token of `tokens` [N]."""
        if self._grammar is not None:
            pairs = zip(self._progress, tokens.tolist(), strict=True)
            self._progress = [self._grammar.advance(each, token) for each, token in pairs]

    def restart(self, indices: Tensor) -> None:
        """Begin anew at `indices` [M]: other answers have taken those places."""
        if self._grammar is not None:
            for k in indices.tolist():
                self._progress[k] = self._grammar.start(self._max_tokens)

    def keep(self, indices: Tensor) -> None:
        """Drop all answers but `indices` [M], which come in that order."""
        if self._grammar is not None:
            self._progress = [self._progress[k] for k in indices.tolist()]
