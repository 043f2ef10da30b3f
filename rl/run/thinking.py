"""Reasoning before an answer (policy.thinking): what does not go with it is refused before anything starts.

What a block takes of the limit on tokens cannot be known beforehand; how much is left for it is told.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from policies.processor import Processor
from policies.thinking import BlockForm, split_thinking
from rewards.settings import RewardRecipe
from rl.run.writable import unwritable_words
from rollout.settings import Sampling


def refuse_unfit_thinking(processor: Processor, sampling: Sampling, rewards: Sequence[str] = ()) -> None:
    """Raise ValueError where reasoning is wanted that cannot be written, or paid for that is not wanted.

    rewards: names of those that pay for reasoning.
    """
    thinking = processor.thinking
    if not thinking.wanted:
        if rewards:
            raise ValueError(
                f"rewards.{rewards[0]} pays for reasoning before an answer, but policy.thinking is none; set that to "
                "required or optional, or leave the reward out."
            )
        return
    if sampling.grammar:
        raise ValueError(
            f"sampling.grammar is true and policy.thinking is {thinking.mode}, but the codec's grammar knows the "
            "answer alone and would let no block of reasoning be written; set sampling.grammar to false, or "
            "policy.thinking to none."
        )
    _refuse_taken_marks(processor)
    missing = unwritable_words(processor, " ".join(thinking.written))
    if missing:
        raise ValueError(
            f"policy.thinking is {thinking.mode}, but the policy's tokenizer cannot write {', '.join(missing)}, which "
            "marks the block of reasoning; set policy.thinking_marks to what the checkpoint was trained with."
        )


def _refuse_taken_marks(processor: Processor) -> None:
    """Raise ValueError for a mark that is a token with another meaning, which must not, or will not, be in a text."""
    vocabulary: dict[str, int] = processor.tokenizer.get_vocab()
    for mark in processor.thinking.marks:
        if vocabulary.get(mark) in (processor.image_token, *processor.end_tokens):
            raise ValueError(
                f"policy.thinking_marks names {mark}, which stands for a place of an image or ends an answer; name "
                "what the checkpoint was trained with, such as ['<think>', '</think>']."
            )


def without_block(processor: Processor, sentences: Sequence[str] | None) -> list[str]:
    """Those of the sentences in which answers are taught that lack the block which the policy requires; [] otherwise.

    sentences: None for the bare answer.
    """
    thinking = processor.thinking
    if thinking.mode != "required":
        return []
    return [
        text
        for text in sentences or ["{answer}"]
        if split_thinking(text, thinking.marks, thinking.begun).form is not BlockForm.WHOLE
    ]


def refuse_untaught_thinking(processor: Processor, sentences: Sequence[str] | None) -> None:
    """Raise ValueError where supervised answers would be unparsable for want of the block that is required.

    sentences: sft.answers, which may hold one, such as a draft.
    """
    if bare := without_block(processor, sentences):
        opens, closes = processor.thinking.marks
        raise ValueError(
            f"policy.thinking is required, but supervised answers such as {bare[0]!r} hold no reasoning, so the policy "
            "would be taught answers that read as unparsable; set policy.thinking to optional or none, or teach drafts "
            f"by sft.draft and sft.answers: ['{opens} {{draft}} {closes} {{answer}}']."
        )


def refuse_unread_drafts(rewards: Mapping[str, RewardRecipe], codec: Mapping[str, Any]) -> None:
    """Raise ValueError for a reward that reads drafts by another codec than the run's, `codec` of its config."""
    for name, recipe in rewards.items():
        found = recipe.plugin.settings.get("codec")
        if found is not None and dict(found) != dict(codec):
            raise ValueError(
                f"rewards.{name}.codec is {dict(found)}, and answers are written by {dict(codec)}, so that no draft "
                "could be read; leave it out there: the reward is given the codec of the config."
            )


def block_tokens(processor: Processor) -> int:
    """Tokens that an empty block of reasoning takes of an answer; 0 where none is required."""
    if processor.thinking.mode != "required":
        return 0
    return sum(len(processor.answer_tokens(mark)) - 1 for mark in processor.thinking.written)


def thinking_notes(processor: Processor, outline_tokens: int, max_tokens: int) -> list[str]:
    """What to look at where a block of reasoning and the answer share a limit, or a template's block is not read.

    outline_tokens: of an ordinary outline; max_tokens: sampling.max_tokens.
    """
    thinking = processor.thinking
    if thinking.wanted:
        return [
            f"policy.thinking is {thinking.mode}, and the reasoning takes its tokens of sampling.max_tokens "
            f"{max_tokens} too: an ordinary outline of {outline_tokens} tokens leaves "
            f"{max(0, max_tokens - outline_tokens)} for it. What the limit cuts earns nothing."
        ]
    if thinking.begun:
        return [
            f"the chat template opens a block of reasoning ({thinking.marks[0]}), and policy.thinking is none, so that "
            "reasoning would make every answer unparsable; set policy.thinking to required, or change that by "
            "policy.template_arguments."
        ]
    return []
