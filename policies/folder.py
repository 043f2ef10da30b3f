"""What transformers makes of a folder's files, or why it makes nothing of them that is known here."""

from collections.abc import Callable
from typing import Any

from policies.checkpoint import Checkpoint
from policies.family import Family

_UNREADABLE = (TypeError, KeyError, AttributeError, IndexError, ValueError, OSError, RuntimeError, RecursionError)
"""What transformers and tokenizers raise for values that they did not expect in a file."""


def read(checkpoint: Checkpoint, named: str, of: Callable[[Checkpoint], Any]) -> Any:
    """What `of` makes of a folder; ValueError, naming the file, where it cannot."""
    try:
        return of(checkpoint)
    except FileNotFoundError:
        raise
    except _UNREADABLE as error:
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
    other = sorted(kinds - {"full_attention"}) + caps
    if other:
        raise ValueError(
            f"the language model of {checkpoint.folder} has {', '.join(other)} in its config.json, which prompts "
            "shared by answers are not computed with here; give a checkpoint whose layers all attend to the whole text."
        )
