"""Whether a policy can write what its codec writes, and read what is asked: each answer's text must come back from
tokens that can be sampled, and words of phrases must have tokens.

A tokenizer of words writes no word that it does not know, and some tokens are never sampled: an answer of such would
have a probability of 0, in learning and in sampling.
"""

import reprlib

import numpy as np

from envs.codecs.base import AnswerCodec, ChoosingCodec
from envs.datasets.base import Env
from envs.plugin import Plugin
from policies import choices
from policies.families.base import Response
from policies.processor import Processor

_SHOWN = 5
"""Words that a message names."""
_MEASURED = 256
"""Examples whose phrases are looked at."""
_SIDE_PX = 256
"""Side of the image whose triangles are written to try a codec."""


def refuse_unwritable_codec(processor: Processor, recipe: Plugin, codec: Plugin) -> None:
    """Raise ValueError, naming codec and checkpoint, where the policy that `recipe` makes cannot write its answers.

    Tried are the answer to what is not there, and triangles of every size: so numbers of the codec's grids as far as
    256 corners say them, not every text. A policy that can write valid answers in another form, such as with spaces
    between the signs of `point_text`, may: what it samples reads well, though it cannot be taught the codec's own.
    """
    if isinstance(processor.codec, ChoosingCodec):
        return  # what is chosen from is each question's own
    try:
        _write_triangles(processor, processor.seen(codec.build()))
    except ValueError as error:
        if _writes_otherwise(processor):
            return
        checkpoint = recipe.settings["checkpoint"]
        raise ValueError(f"codec is {codec.name}, policy.checkpoint {checkpoint}: {error}") from error


def _writes_otherwise(processor: Processor) -> bool:
    """Whether the codec's grammar can be followed in the policy's vocabulary."""
    try:
        processor.token_grammar()
    except (ValueError, NotImplementedError):  # a codec need have no grammar, where none is asked for
        return False
    return True


def _write_triangles(processor: Processor, codec: AnswerCodec) -> None:
    refuse_unwritable(processor, codec.encode([], _SIDE_PX, _SIDE_PX), "answer to what is not there")
    for side in range(1, _SIDE_PX + 1):
        triangle = np.array([[0.0, 0.0], [side, 0.0], [side, side]])
        text = codec.encode([[triangle]], _SIDE_PX, _SIDE_PX)
        refuse_unwritable(processor, text, f"outline of a triangle of {side}/{_SIDE_PX} of an image")


def refuse_unwritable(processor: Processor, text: str, what: str) -> None:
    """Raise ValueError where the policy cannot write `text`, an answer; what: of what it is one."""
    words = unwritable_words(processor, text)
    if words:
        named = ", ".join(map(repr, words[:_SHOWN])) + (" ..." if words[_SHOWN:] else "")
        raise ValueError(
            f"the codec writes {reprlib.repr(text)} as the {what}, but the policy's tokenizer cannot write {named}; "
            "choose the codec that the checkpoint was trained with, or a checkpoint whose tokenizer knows these words."
        )


def refuse_unfit_grammar(processor: Processor, grammar: bool) -> None:
    """Raise ValueError where the codec's grammar is asked for and the policy cannot follow it; grammar: whether it
    is."""
    if not grammar:
        return
    try:
        processor.token_grammar()
    except NotImplementedError:
        raise ValueError(
            "sampling.grammar is true, and this codec has no grammar; set it to false, or choose codec path_tokens."
        ) from None


def unread_words_note(env: Env, processor: Processor) -> str | None:
    """What to say where a policy's tokenizer does not know words of the first phrases; None where it reads them all.

    Tokenizers of released models write such words in pieces, or byte by byte. One of words reads all of them as one
    token, so that questions which differ in such words alone are the same question.
    """
    unknown = processor.tokenizer.unk_token_id
    if unknown is None:
        return None
    phrases = [env[k].prompt.text.split() for k in range(min(_MEASURED, len(env)))]
    words = dict.fromkeys(word for phrase in phrases for word in phrase)
    tokens = [processor.tokenizer(word, add_special_tokens=False)["input_ids"] for word in words]
    unread = [word for word, of_word in zip(words, tokens, strict=True) if unknown in of_word]
    if not unread:
        return None
    num = sum(not set(unread).isdisjoint(phrase) for phrase in phrases)
    named = ", ".join(map(repr, unread[:_SHOWN])) + (" ..." if unread[_SHOWN:] else "")
    return (
        f"phrases of {num} of the first {len(phrases)} training examples have words that the policy's tokenizer does "
        f"not know ({named}): it reads each as {processor.tokenizer.unk_token} and cannot tell them apart; take a "
        "checkpoint whose tokenizer knows them, or teach a new one by polytrace sft without policy.checkpoint."
    )


def unwritable_words(processor: Processor, text: str) -> list[str]:
    """The words of an answer's text that the policy cannot sample, each once; [] where it can write the whole text.

    The text itself where each of its words alone could be written.
    """
    if _comes_back(processor, text):
        return []
    return [word for word in dict.fromkeys(text.split()) if not _comes_back(processor, word)] or [text]


def _comes_back(processor: Processor, text: str) -> bool:
    """Whether `text` is what its own tokens say, up to white space, and all of them can be sampled."""
    tokens, bins = choices.apart(processor.answer_tokens(text))
    if not {*processor.unsampled_tokens, *processor.end_tokens}.isdisjoint(tokens[:-1].tolist()):
        return False
    held = None if bins is None else bins.astype(np.int16)
    written = processor.text(Response(tokens, np.zeros(len(tokens), np.float32), "stop", held))
    return written.split() == text.split()
