"""Annotated outlines beside rollouts (learner.sft_weight): what is taught to the examples that a step learns from.

One answer for each question, appended to its group: the prompt is shared, so that it costs a learner pass as much as
one more answer.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from envs.example import Example
from policies.processor import Processor
from rl.config.outlines import OutlineSettings
from rl.config.run import RunConfig
from rl.run.parts import RunParts, processor_of
from rl.supervised.answers import answer_text, answer_tokens

_CHECKED = 64
"""Training examples whose outlines are looked at before the start."""


class Teacher:
    """Draws outlines and writes them in the codec's words."""

    def __init__(self, processor: Processor, settings: OutlineSettings) -> None:
        self._processor, self._settings = processor, settings

    def answers(self, examples: Sequence[Example]) -> list[NDArray[np.int64]]:
        """Token ids of an answer to each example; of a thing that is not there, the empty answer.

        Raises ValueError, naming the example, where the codec or the tokenizer cannot write one.
        """
        codec = self._processor.codec
        texts = [answer_text(example, codec, self._settings) for example in examples]
        return [answer_tokens(example, self._processor, text) for example, text in zip(examples, texts, strict=True)]


def teacher_of(config: RunConfig, parts: RunParts) -> Teacher | None:
    """The teacher of a run; None where learner.sft_weight is 0."""
    if not config.learner.sft_weight:
        return None
    return Teacher(processor_of(parts.policy), config.outlines)


def refuse_unfit_teaching(config: RunConfig, parts: RunParts) -> None:
    """Raise ValueError where a run's supervised term cannot be had.

    That is so where training examples have no mask, where the codec cannot write an outline or sampling.max_tokens
    would cut it off, and where the policy is to reason before it answers. Some examples are looked at.
    """
    teacher = teacher_of(config, parts)
    if teacher is None:
        return
    if config.policy.get("thinking", "none") == "required":
        raise ValueError(
            f"learner.sft_weight is {config.learner.sft_weight:g} and policy.thinking required, but outlines come "
            "without reasoning, so that they would teach to leave it out; set learner.sft_weight to 0, or "
            "policy.thinking to optional."
        )
    env = parts.env.build(split="train")
    examples = [env[index] for index in np.linspace(0, len(env) - 1, min(len(env), _CHECKED)).astype(int).tolist()]
    if not any(mask.any() for example in examples for mask in example.truth.masks):
        raise ValueError(
            f"learner.sft_weight is {config.learner.sft_weight:g}, but of {len(examples)} training examples looked at "
            "none has a mask to draw an outline of; set learner.sft_weight to 0."
        )
    try:
        lengths = [len(tokens) for tokens in teacher.answers(examples)]
    except ValueError as error:
        raise ValueError(
            f"learner.sft_weight is {config.learner.sft_weight:g}, and {error} Here outlines.max_vertices is "
            f"{config.outlines.max_vertices} and outlines.max_rings {config.outlines.max_rings}."
        ) from error
    _refuse_cut_off(examples, lengths, config)


def _refuse_cut_off(examples: Sequence[Example], lengths: Sequence[int], config: RunConfig) -> None:
    longest = int(np.argmax(lengths))
    if lengths[longest] > config.sampling.max_tokens:
        raise ValueError(
            f"sampling.max_tokens is {config.sampling.max_tokens}, but the outline that learner.sft_weight would teach "
            f"to {examples[longest].id} takes {lengths[longest]} tokens, so that answers learned from it would be cut "
            f"off; set sampling.max_tokens to {lengths[longest]} or more, or lower outlines.max_vertices (now "
            f"{config.outlines.max_vertices})."
        )
