"""What a folder says of itself: config and tokenizer as transformers reads them, tokens that end an answer, tokens that
none has, the chat template; or why nothing of it is known here."""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from envs.codecs.base import AnswerCodec, WordCodec
from policies.checkpoint import Checkpoint
from policies.family import Family
from policies.question import is_control, shows_question

log = logging.getLogger(__name__)

_PLACE = re.compile(r"<[a-z]+[0-9]+>")
"""A codec's own token of a place, such as <loc0012>."""

_UNREADABLE = (
    TypeError,
    KeyError,
    AttributeError,
    IndexError,
    ValueError,
    ArithmeticError,
    OSError,
    RuntimeError,
    RecursionError,
    StrictDataclassError,
)
"""What transformers and tokenizers raise for values that they did not expect in a file."""


def read(checkpoint: Checkpoint, named: str, of: Callable[[Checkpoint], Any]) -> Any:
    """What `of` makes of a folder; ValueError, naming the file, where it cannot."""
    try:
        return of(checkpoint)
    except FileNotFoundError:
        raise
    except _UNREADABLE as error:
        if isinstance(error, ValueError) and str(checkpoint.folder) in str(error):
            raise  # it names the file itself
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{checkpoint.folder}: {named} cannot be read ({type(error).__name__}: {reason}); copy it anew from "
            "where the model came from."
        ) from error


def mark_ids(checkpoint: Checkpoint, family: Family, tokenizer: Any) -> tuple[list[int], list[int]]:
    """Tokens that go before and behind an image's; ValueError where the tokenizer lacks those of its family."""
    vocabulary = tokenizer.get_vocab()
    missing = [mark for mark in family.image_marks if mark not in vocabulary]
    if missing:
        raise ValueError(
            f"the tokenizer of {checkpoint.folder} lacks {missing[0]}, which stands around every image of a "
            f"{family.title}; copy the tokenizer's files of the model that this one was trained from."
        )
    marks = [[vocabulary[mark]] for mark in family.image_marks]
    return (marks[0], marks[1]) if marks else ([], [])


def refuse_other_layers(checkpoint: Checkpoint, family: Family, config: Any) -> None:
    """Raise ValueError for a language model that would be computed otherwise than it was trained."""
    text = config.get_text_config().to_dict()
    kind, kinds = text.get("model_type"), set(text.get("layer_types") or ["full_attention"])
    if kind not in family.texts:
        raise ValueError(
            f"the language model of {checkpoint.folder} is a {kind}, and {family.title} is known here over "
            f"{' or '.join(family.texts)}; give a checkpoint over that."
        )
    caps = [name for name in ("attn_logit_softcapping", "final_logit_softcapping") if text.get(name)]
    other = sorted(kinds - set(family.layer_kinds)) + (caps if not family.caps else [])
    if other:
        raise ValueError(
            f"the language model of {checkpoint.folder} has {', '.join(other)} in its config.json, which prompts "
            "shared by answers are not computed with here; give a checkpoint whose layers all attend to the whole text."
        )


def end_tokens(checkpoint: Checkpoint, tokenizer: Any, family: Family, size: int) -> list[int]:
    """The family's own end of a turn, the tokenizer's end, and those of generation_config.json, each once.

    size: tokens that the model gives logits to. Raises ValueError where there are none, or the file names no tokens.
    """
    vocabulary = tokenizer.get_vocab()
    listed = checkpoint.json("generation_config.json").get("eos_token_id")
    named = listed if isinstance(listed, list) else [] if listed is None else [listed]
    if any(not isinstance(token, int) or isinstance(token, bool) for token in named):
        raise ValueError(
            f"eos_token_id of {checkpoint.folder}/generation_config.json is {listed!r}; it must be the number of a "
            "token, or a list of such."
        )
    eos = tokenizer.eos_token_id
    ids = [vocabulary.get(token) for token in family.turn_ends] + [None if eos == tokenizer.unk_token_id else eos]
    known = [token for token in [*ids, *named] if token is not None and 0 <= token < min(len(tokenizer), size)]
    if not known:
        raise ValueError(
            f"{checkpoint.folder} names no token that ends an answer (eos_token in tokenizer_config.json, eos_token_id "
            "in generation_config.json), so every answer would run to sampling.max_tokens; name one there."
        )
    return list(dict.fromkeys(known))


def unsampled_tokens(tokenizer: Any, vocabulary_size: int, ends: Sequence[int]) -> list[int]:
    """Tokens that cannot be sampled: special and control tokens, and ids that no text has; less `ends`, in order."""
    added = tokenizer.added_tokens_decoder.items()
    controls = {token for token, one in added if is_control(one.content, one.special)}
    nothing = set(range(vocabulary_size)) - set(tokenizer.get_vocab().values())
    return sorted((set(tokenizer.all_special_ids) | controls | nothing) - set(ends))


def codec_tokens(codec: AnswerCodec, vocabulary: Mapping[str, int]) -> list[int]:
    """Tokens in angle brackets that a codec's texts are made of, as far as the vocabulary has them."""
    words = codec.words if isinstance(codec, WordCodec) else []
    return [vocabulary[word] for word in words if is_control(word, False) and word in vocabulary]


def number_tokens(codec: AnswerCodec, vocabulary: Mapping[str, int]) -> list[int]:
    """Ids of the numbers that answers are written in, in order: a codec's own tokens of places, or "0", "1", ... as far
    as each is one token."""
    words = codec.words if isinstance(codec, WordCodec) else []
    if places := [vocabulary[word] for word in words if _PLACE.fullmatch(word) and word in vocabulary]:
        return places
    ids: list[int] = []
    while str(len(ids)) in vocabulary:
        ids.append(vocabulary[str(len(ids))])
    return ids


def chat_template(checkpoint: Checkpoint, tokenizer: Any, family: Family, image_token: int) -> str | None:
    """The chat template to ask by: the tokenizer's own (None), that of chat_template.json, or the family's.

    The last only where the folder has none that shows an image, and said so. Raises ValueError where none does.
    """
    if shows_question(tokenizer, None, image_token, family.image_text):
        return None
    legacy = checkpoint.json("chat_template.json").get("chat_template")
    if isinstance(legacy, str) and shows_question(tokenizer, legacy, image_token, family.image_text):
        return legacy
    known = all(token in tokenizer.get_vocab() for token in family.turn_ends)
    if known and shows_question(tokenizer, family.template, image_token, family.image_text):
        log.warning(
            "%s has no chat template that shows an image and a text: it is asked by that of %s as released",
            checkpoint.folder,
            family.title,
        )
        return family.template
    raise ValueError(
        f"the chat template of {checkpoint.folder} does not show one image and one text (or there is none), and its "
        f"tokenizer lacks the tokens of {family.title}'s own; copy chat_template.jinja from the model that this one "
        "was trained from."
    )
