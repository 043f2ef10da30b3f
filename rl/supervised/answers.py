"""What supervised training teaches: outlines as annotators draw them, in the codec's words.

Whether the answers can be taught at all (limits of the codec, words of the tokenizer, tokens of an answer) is found
before the first step, from a bounded number of examples; a later one that cannot be stops the training by its name.
"""

import hashlib
from dataclasses import replace
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from envs.codecs.base import AnswerCodec, ChoosingCodec, FittingCodec, PlaceCodec
from envs.datasets.base import Env
from envs.datasets.tasks import box_px, inner_point_px
from envs.example import Example
from policies.families.base import TaughtAnswer
from policies.processor import Processor
from rl.config.outlines import OutlineSettings
from rl.config.sft import SftConfig, SftSettings, SftStage
from rl.run.tasks import forms_asked, refuse_unasked_forms
from rl.run.writable import refuse_unwritable
from rl.supervised.annotator import annotate, annotator_of

CHECKED = 64
"""Training scenes whose answers are looked at before the first step."""

Taught = list[TaughtAnswer]
"""Questions about one image, each with the answer that is taught."""


@runtime_checkable
class BoxCodec(Protocol):
    """A codec whose texts begin with the box of their first object."""

    def box_text(self, text: str) -> str:
        """The beginning of a text that says the box, or all of it where it says none."""
        ...


def answer_text(example: Example, codec: AnswerCodec, settings: OutlineSettings) -> str:
    """The supervised answer to an example: an outline, a box or a point for each true mask, whichever is asked for.

    The box is the tight one, the point the pixel deepest inside; where nothing fits it is the empty answer.

    Raises ValueError, naming the example, where it exceeds a limit of the codec.
    """
    text = _bare_text(example, codec, settings)
    if settings.answers is None:
        return text
    # Which sentence, is the same in any process.
    digest = hashlib.sha256(example.id.encode()).digest()
    sentence = settings.answers[int.from_bytes(digest[:8], "big") % len(settings.answers)]
    if settings.draft is not None and "{draft}" in sentence:
        drawn = replace(settings, annotators=[settings.draft], draft=None, answers=None)
        sentence = sentence.replace("{draft}", _bare_text(example, codec, drawn))
    return sentence.replace("{answer}", text)


def _bare_text(example: Example, codec: AnswerCodec, settings: OutlineSettings) -> str:
    if example.prompt.asked != "mask":
        return _place_text(example, codec)
    if isinstance(codec, ChoosingCodec):
        return codec.chosen_text(example.candidates, example.truth.masks)
    if settings.simplify == "traced" and not isinstance(codec, FittingCodec):
        raise ValueError(
            "outlines are to be taught as they were traced (simplify: traced), but the codec writes every vertex that "
            "it is given; set codec.name to svg_path, which fits them, or simplify to budget or chosen."
        )
    drawn = annotator_of(settings, example.id)
    outlines = [annotate(mask, settings, example.id) for mask in example.truth.masks]
    try:
        return codec.encode(outlines, example.image.height, example.image.width)
    except ValueError as error:
        raise ValueError(
            f"the answer to {example.id} has {len(outlines)} outlines of up to max_rings {drawn.max_rings} and "
            f"max_vertices {drawn.max_vertices}, which the codec does not write: {error} These are codec.max_rings and "
            "codec.max_vertices."
        ) from error


def _place_text(example: Example, codec: AnswerCodec) -> str:
    asked, masks = example.prompt.asked, [mask for mask in example.truth.masks if mask.any()]
    if not isinstance(codec, PlaceCodec):
        raise ValueError(f"{example.id} asks for a {asked}, which the codec does not write; choose codec path_tokens.")
    places = [np.array(box_px(mask) if asked == "box" else inner_point_px(mask)).reshape(-1, 2) for mask in masks]
    return codec.encode_places(places, example.image.height, example.image.width)


def answer_tokens(example: Example, processor: Processor, text: str) -> NDArray[np.int64]:
    """[T] tokens of the answer `text` to an example, end token included.

    Raises ValueError, naming the example, where the policy could not sample them.
    """
    refuse_unwritable(processor, text, f"answer to {example.id}")
    return processor.answer_tokens(text)


def questions_about(env: Env, index: int, settings: SftSettings) -> list[Example]:
    """The examples that a scene of `env` teaches."""
    return env.scene(index) if settings.questions == "all" else [env[index]]


def taught(examples: list[Example], env: Env, processor: Processor, settings: SftSettings, stage: SftStage) -> Taught:
    """The examples of one image of `env`, as a stage teaches them; none of those it does not ask about.

    Raises ValueError where an answer cannot be written.
    """
    asked = [example for example in examples if stage.with_absent or len(example.truth.masks)]
    if not asked:
        return []
    drawn = settings if stage.outline_margin is None else replace(settings, outline_margin=stage.outline_margin)
    image, found = env.image(asked[0].image), Taught()
    for example in asked:
        text = answer_text(example, processor.codec, drawn)
        if stage.answer == "box" and example.prompt.asked == "mask" and isinstance(processor.codec, BoxCodec):
            # A box is only the beginning of an answer: its end is not to be learned.
            tokens = answer_tokens(example, processor, processor.codec.box_text(text))[:-1]
        else:
            tokens = answer_tokens(example, processor, text)
        found.append(TaughtAnswer(example.question(image), tokens, example.truth.masks))
    return found


def refuse_unfit_answers(processor: Processor, splits: tuple[Env, Env], config: SftConfig) -> None:
    """Raise ValueError for the first answer that the codec or the policy cannot write, or that evaluations cut off.

    splits: train, of which the first scenes are looked at, and validation, of which the examples that evaluations ask.
    """
    train, validation = splits
    codec, settings = processor.codec, config.sft
    for name, split in (("train", train), ("validation", validation)):
        if not len(split):
            raise ValueError(f"split {name} of the env has no example; give it data of both train and validation.")
    _refuse_unfit_stages(processor, settings)
    if others := sorted(set(forms_asked(train)) - {"mask"}):
        refuse_unasked_forms(train, processor)
        if settings.draft is not None:
            raise ValueError(
                f"sft.draft is set, and the env asks for a {others[0]} too, of which a draft would be the answer "
                "itself; set sft.draft to null and leave {draft} out of sft.answers, or ask for masks alone."
            )
    for index in range(min(CHECKED, len(train))):
        for example in questions_about(train, index, settings):
            text = answer_text(example, codec, settings)
            answer_tokens(example, processor, text)
            if settings.answers is not None:
                _refuse_unread(example, processor, text)
    longest, its_id = 0, ""
    for index in range(min(settings.evaluate_scenes, len(validation))):
        example = validation[index]
        tokens = len(answer_tokens(example, processor, answer_text(example, codec, settings)))
        longest, its_id = max((longest, its_id), (tokens, example.id))
    if longest > config.max_tokens:
        traced = settings.simplify == "traced"
        setting = "codec.max_vertices" if traced else f"sft.max_vertices (now {settings.max_vertices})"
        raise ValueError(
            f"max_tokens is {config.max_tokens}, but the answer to {its_id} takes {longest} tokens, so evaluations cut "
            f"it off and count it as wrong; set max_tokens to {longest} or more, or lower {setting}."
        )


def _refuse_unread(example: Example, processor: Processor, text: str) -> None:
    """Raise ValueError for an answer in a sentence that its own codec does not read, behind a block if there is one."""
    answer = processor.read_text(text, example)
    if not answer.status.valid:
        raise ValueError(
            f"the answer to {example.id} would be taught as {text[:60]!r}..., which the codec reads as "
            f"{answer.status}; set codec.reading to lenient, policy.thinking to required where a block stands before "
            "answers, or leave sft.answers out."
        )


def _refuse_unfit_stages(processor: Processor, settings: SftSettings) -> None:
    """number_spread is for tokenizers whose numbers are single tokens: elsewhere it would blur digits; box stages are
    for codecs that begin with a box, weights of chosen candidates for those that choose."""
    for stage in settings.stages:
        if stage.number_spread > 0 and len(processor.number_tokens) <= 10:
            raise ValueError(
                f"number_spread of stage {stage.name} is {stage.number_spread}, but this tokenizer writes 10 in "
                "several tokens, so that neighbours of a digit would be taught in place of neighbours of a number; set "
                "it to 0."
            )
        if stage.positive_weight != 1 and not isinstance(processor.codec, ChoosingCodec):
            raise ValueError(
                f"positive_weight of stage {stage.name} is {stage.positive_weight}, and the codec writes answers, none "
                "of whose tokens is a candidate; set it to 1, or choose codec mask_group."
            )
        if stage.answer == "box" and not isinstance(processor.codec, BoxCodec):
            raise ValueError(
                f"stage {stage.name} teaches boxes (answer: box), but the codec's answers do not begin with one; set "
                "answer to outline, or choose codec path_tokens."
            )
