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
from rl.run.thinking import without_block
from rl.supervised.answers import answer_text, answer_tokens
from rollout.settings import Sampling

_CHECKED = 64
"""Training examples whose outlines are looked at before the start."""


class Teacher:
    """Draws outlines and writes them in the codec's words."""

    def __init__(self, processor: Processor, settings: OutlineSettings, sampling: Sampling) -> None:
        """sampling: how the answers beside them are sampled, which bounds what may be taught."""
        self._processor, self._settings, self._sampling = processor, settings, sampling

    def answers(self, examples: Sequence[Example]) -> list[NDArray[np.int64]]:
        """Token ids of an answer to each example; of a thing that is not there, the empty answer.

        Raises ValueError, naming the example, where the codec, the tokenizer or the grammar of sampling does not let it
        be written, or it is longer than answers may be.
        """
        return [self._answer(example) for example in examples]

    def _answer(self, example: Example) -> NDArray[np.int64]:
        most, text = self._sampling.max_tokens, answer_text(example, self._processor.codec, self._settings)
        tokens = answer_tokens(example, self._processor, text)
        if len(tokens) > most:
            raise ValueError(
                f"the answer to {example.id} takes {len(tokens)} tokens, and sampling.max_tokens is {most}; set that "
                f"to {len(tokens)} or more, or lower outlines.max_vertices (now {self._settings.max_vertices})."
            )
        if self._sampling.grammar:
            try:
                self._processor.token_grammar().masks_of(tokens.tolist(), most)
            except ValueError as error:
                raise ValueError(
                    f"the answer to {example.id} would be {text[:60]!r}..., which the grammar does not let be sampled "
                    f"({error}); set sampling.grammar to false, or leave outlines.answers out."
                ) from error
        return tokens


def teacher_of(config: RunConfig, parts: RunParts) -> Teacher | None:
    """The teacher of a run; None where learner.sft_weight is 0."""
    if not config.learner.sft_weight:
        return None
    return Teacher(processor_of(parts.policy), config.outlines, config.sampling)


def refuse_unfit_teaching(config: RunConfig, parts: RunParts) -> None:
    """Raise ValueError where a run's supervised term cannot be had.

    That is so where training examples have no mask, where an outline cannot be written within the limits of codec and
    sampling, and where the policy is to reason before it answers. Some examples are looked at.
    """
    teacher = teacher_of(config, parts)
    if teacher is None:
        return
    if bare := without_block(processor_of(parts.policy), config.outlines.answers):
        raise ValueError(
            f"learner.sft_weight is {config.learner.sft_weight:g} and policy.thinking required, but outlines such as "
            f"{bare[0]!r} come without reasoning, so that they would teach to leave it out; set learner.sft_weight to "
            "0, policy.thinking to optional, or outlines.draft and outlines.answers to teach drafts."
        )
    if config.outlines.scenes is not None:
        raise ValueError(
            f"learner.sft_weight is {config.learner.sft_weight:g} and outlines.scenes is {config.outlines.scenes}, but "
            "outlines beside rollouts are of the questions that a step asks, all of which must have some; set "
            "outlines.scenes to null, or learner.sft_weight to 0."
        )
    env = parts.env.build(split="train")
    examples = [env[index] for index in np.linspace(0, len(env) - 1, min(len(env), _CHECKED)).astype(int).tolist()]
    if not any(mask.any() for example in examples for mask in example.truth.masks):
        raise ValueError(
            f"learner.sft_weight is {config.learner.sft_weight:g}, but of {len(examples)} training examples looked at "
            "none has a mask to draw an outline of; set learner.sft_weight to 0."
        )
    try:
        teacher.answers(examples)
    except ValueError as error:
        raise ValueError(
            f"learner.sft_weight is {config.learner.sft_weight:g}, and {error} Here outlines.max_vertices is "
            f"{config.outlines.max_vertices} and outlines.max_rings {config.outlines.max_rings}."
        ) from error
