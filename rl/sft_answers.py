"""What a policy is taught to answer: outlines as a coarse annotator draws them, in the codec's words, as tokens.

Whether they can be taught at all (limits of the codec, words of the tokenizer, tokens of an answer) is found before the
first step, from a bounded number of examples; a later one that cannot be stops the training by its name.
"""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from envs.contours import outline
from envs.example import Env, Example
from envs.polygons import AnswerCodec, Ring
from policies.base import PolicyContract
from rl.sft_settings import SftConfig, SftSettings
from rl.writable import refuse_unwritable

_CHECKED = 64
"""Training scenes whose answers are looked at before the first step."""


def annotate(mask: NDArray[np.bool_], settings: SftSettings) -> list[Ring]:
    """The outline that a coarse annotator would draw around `mask` [H, W], in pixels."""
    margin = settings.outline_margin * math.sqrt(mask.sum())
    loose = distance_transform_edt(~mask) <= margin if margin > 0 else mask
    return outline(loose, settings.max_vertices, settings.max_rings, min_share=0.05)


def answer_text(example: Example, codec: AnswerCodec, settings: SftSettings) -> str:
    """The supervised answer to an example: one instance a true mask; the empty answer where nothing fits.

    Raises ValueError, naming the example, where it exceeds a limit of the codec.
    """
    outlines = [annotate(mask, settings) for mask in example.truth.masks]
    try:
        return codec.encode(outlines, example.image.height, example.image.width)
    except ValueError as error:
        raise ValueError(
            f"the answer to {example.id} has {len(outlines)} outlines of up to sft.max_rings {settings.max_rings} and "
            f"sft.max_vertices {settings.max_vertices}, which the codec does not write: {error}"
        ) from error


def answer_tokens(example: Example, policy: PolicyContract, text: str) -> NDArray[np.int64]:
    """[T] tokens of the answer `text` to an example, end token included.

    Raises ValueError, naming the example, where the policy could not sample them.
    """
    refuse_unwritable(policy, text, f"answer to {example.id}")
    return policy.answer_tokens(text)


def refuse_unfit_answers(
    policy: PolicyContract, codec: AnswerCodec, splits: tuple[Env, Env], config: SftConfig
) -> None:
    """Raise ValueError for the first answer that the codec or the policy cannot write, or that evaluations cut off.

    splits: train, of which the first scenes are looked at, and validation, of which the examples that evaluations ask.
    """
    train, validation = splits
    for index in range(min(_CHECKED, len(train))):
        for example in train.scene(index):
            answer_tokens(example, policy, answer_text(example, codec, config.sft))
    longest, its_id = 0, ""
    for index in range(min(config.sft.evaluate_scenes, len(validation))):
        example = validation[index]
        tokens = len(answer_tokens(example, policy, answer_text(example, codec, config.sft)))
        longest, its_id = max((longest, its_id), (tokens, example.id))
    if longest > config.max_tokens:
        raise ValueError(
            f"max_tokens is {config.max_tokens}, but the answer to {its_id} takes {longest} tokens, so evaluations cut "
            f"it off and count it as wrong; set max_tokens to {longest} or more, or lower sft.max_vertices (now "
            f"{config.sft.max_vertices})."
        )
