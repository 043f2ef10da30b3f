"""What a folder says of its tokenizer: tokens that end an answer, tokens that none has, and the chat template."""

import logging
from collections.abc import Sequence
from typing import Any

from policies.checkpoint import Checkpoint
from policies.family import Family
from policies.question import is_control, shows_question

log = logging.getLogger(__name__)


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


def chat_template(checkpoint: Checkpoint, tokenizer: Any, family: Family, image_token: int) -> str | None:
    """The chat template to ask by: the tokenizer's own (None), that of chat_template.json, or the family's.

    The last only where the folder has none that shows an image, and said so. Raises ValueError where none does.
    """
    if shows_question(tokenizer, None, image_token):
        return None
    legacy = checkpoint.json("chat_template.json").get("chat_template")
    if isinstance(legacy, str) and shows_question(tokenizer, legacy, image_token):
        return legacy
    known = all(token in tokenizer.get_vocab() for token in family.turn_ends)
    if known and shows_question(tokenizer, family.template, image_token):
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
