"""Reasoning before an answer: any text is cut, the rest alone is read, and without the setting nothing differs."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asking import ask
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import AutoTokenizer

from envs.codecs import path_tokens
from envs.codecs.point_text import Codec
from envs.example import Example, ImageRef, Prompt, TextPart, Truth
from envs.polygons import Answer, AnswerStatus
from policies.families.base import Response
from policies.families.vision_language import Policy
from policies.processor import Processor
from policies.settings import THINKING_QUESTION, Asking
from policies.thinking import (
    BlockForm,
    Thinking,
    asking_for_thinking,
    split_thinking,
    without_answer_marks,
)

MARKS = ("<think>", "</think>")
CODEC = Codec(coordinates="unit")
OUTLINE = "[[[0.1, 0.1], [0.5, 0.1], [0.5, 0.4]]]"
TEXTS = st.lists(
    st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", " ", "\n", "a", "<", "think>", "[", "0.5", "]"])
    | st.text(max_size=3)
).map("".join)
IMAGE, TRUTH = np.zeros((32, 32, 3), np.uint8), Truth(np.zeros((0, 64, 64), np.bool_))


def read(text: str, mode: str, truncated: bool = False, begun: bool = False, reading: str = "strict") -> Answer:
    codec = Codec(coordinates="unit", reading=reading)
    thinking = Thinking(mode, MARKS, begun)
    return thinking.read(lambda rest: codec.read(rest, 100, 100, truncated=truncated), text, truncated)


@given(TEXTS, st.booleans())
def test_any_text_is_cut_and_its_parts_joined_give_it_back(text: str, begun: bool) -> None:
    form, *parts = split_thinking(text, MARKS, begun)
    assert "".join(parts) == text
    marks = text.count("<think>") + text.count("</think>")
    assert (form is BlockForm.ABSENT) == (not marks and not begun)
    if form is BlockForm.WHOLE:
        opening, thinking, closing, rest = parts
        assert (opening.strip(), closing) == ("" if begun else "<think>", "</think>") and marks == 2 - begun
        assert not [mark for mark in MARKS for part in (thinking, rest) if mark in part]
    else:
        assert parts == ["", "", "", text]


@given(TEXTS, TEXTS)
def test_a_block_around_any_reasoning_before_any_text_is_found_where_neither_writes_a_mark(
    inner: str, rest: str
) -> None:
    inner, rest = (part.replace(">", "") for part in (inner, rest))
    form, _, thinking, _, behind = split_thinking(f"\n <think>{inner}</think>{rest}", MARKS)
    assert (form, thinking, behind) == (BlockForm.WHOLE, inner, rest)
    assert split_thinking(f"{inner}</think>{rest}", MARKS, begun=True)[2::2] == (inner, rest)


@given(TEXTS, st.sampled_from(["none", "optional", "required"]), st.booleans(), st.booleans())
def test_any_text_reads_as_some_status_in_every_mode(text: str, mode: str, truncated: bool, begun: bool) -> None:
    found = read(text, mode, truncated, begun)
    assert (found.thinking is None) or (mode != "none" and found.thinking in text)
    if mode == "none":
        strict = CODEC.read(text, 100, 100, truncated=truncated)
        assert (found.status, found.bare) == (strict.status, strict.bare)
    if truncated:
        assert found.status is AnswerStatus.TRUNCATED


@pytest.mark.parametrize(
    ("text", "none", "optional", "required"),
    [
        (OUTLINE, "ok", "ok", "unparsable"),
        (f"<think>so</think>{OUTLINE}", "unparsable", "ok", "ok"),
        (f" <think>\nso [[[1]]]\n</think>\n\n{OUTLINE}\n", "unparsable", "ok", "ok"),
        (f"<think></think>{OUTLINE}", "unparsable", "ok", "ok"),
        (f"<think>so</think><answer>\n{OUTLINE}</answer> ", "unparsable", "ok", "ok"),
        (f"<answer>{OUTLINE}</answer>", "unparsable", "ok", "unparsable"),
        ("<think>nothing</think>[]", "unparsable", "empty", "empty"),
        (f"<think>so {OUTLINE}", "unparsable", "unparsable", "unparsable"),
        (f"so</think>{OUTLINE}", "unparsable", "unparsable", "unparsable"),
        (f"Well. <think>so</think>{OUTLINE}", "unparsable", "unparsable", "unparsable"),
        (f"<think>so</think><think>or so</think>{OUTLINE}", "unparsable", "unparsable", "unparsable"),
        (f"<think>so</think>{OUTLINE}<think>or so</think>", "unparsable", "unparsable", "unparsable"),
        (f"<think>so <think>or</think> so</think>{OUTLINE}", "unparsable", "unparsable", "unparsable"),
        (f"<think>so</think>Here it is: {OUTLINE}", "unparsable", "unparsable", "unparsable"),
    ],
)
def test_how_a_text_reads_by_the_mode(text: str, none: str, optional: str, required: str) -> None:
    assert [read(text, mode).status for mode in ("none", "optional", "required")] == [none, optional, required]


def test_the_reasoning_is_kept_without_white_space_at_its_ends_and_is_no_prose_around_the_answer() -> None:
    for reading in ("strict", "lenient"):
        found = read(f"<think>\n the left one \n</think>{OUTLINE}", "required", reading=reading)
        assert (found.status, found.thinking, found.bare) == (AnswerStatus.OK, "the left one", True)
        assert found.rings_px[0].tolist() == [[10.0, 10.0], [50.0, 10.0], [50.0, 40.0]]
    wrapped = read(f"<think>so</think>Sure, it is {OUTLINE}.", "required", reading="lenient")
    assert (wrapped.status, wrapped.thinking, wrapped.bare) == (AnswerStatus.OK, "so", False)
    assert read(f"<think>so</think>{OUTLINE[:9]}", "required").thinking == "so"
    assert read(OUTLINE, "optional").thinking is None


def test_what_the_limit_cuts_is_truncated_within_the_block_and_behind_it() -> None:
    cut = [read(text, "required", truncated=True) for text in ("<think>so", f"<think>so</think>{OUTLINE}", OUTLINE)]
    assert {answer.status for answer in cut} == {AnswerStatus.TRUNCATED}
    assert [answer.thinking for answer in cut] == [None, "so", None]


def test_behind_a_template_that_opens_the_block_a_response_begins_within_it() -> None:
    assert read(f"so</think>{OUTLINE}", "required", begun=True).thinking == "so"
    assert read(f"<think>so</think>{OUTLINE}", "required", begun=True).status is AnswerStatus.UNPARSABLE
    assert read(OUTLINE, "optional", begun=True).status is AnswerStatus.UNPARSABLE


def test_answer_marks_are_taken_off_where_they_are_around_everything() -> None:
    assert without_answer_marks(" <answer> 1 </answer>\n") == " 1 "
    for text in ("1", "<answer>1", "1</answer>", "<answer>1</answer>.", "<answer>"):
        assert without_answer_marks(text) == text


@pytest.mark.parametrize("marks", [["<think>"], ["a", "a"], ["a", "ab"], ["", "b"], [" a", "b"], ["a", "b", "c"]])
def test_marks_that_tell_no_block_are_refused(marks: list[str]) -> None:
    with pytest.raises(ValueError, match=r"^policy\.thinking_marks is .*; give two marks"):
        Asking(thinking="required", thinking_marks=marks)
    with pytest.raises(ValueError, match=r"^policy\.thinking is 'requird'; did you mean 'required'\?"):
        Asking(thinking="requird")


def test_every_question_asks_for_the_block_by_its_marks_unless_told_otherwise() -> None:
    asking = Asking("A {phrase}.", ["B {phrase}.", "C {phrase}."], thinking="optional")
    found = asking_for_thinking(asking, ("(", ")"))
    sentence = THINKING_QUESTION.replace("{open}", "(").replace("{close}", ")")
    assert found.question == f"A {{phrase}}. {sentence}"
    assert found.questions == [f"B {{phrase}}. {sentence}", f"C {{phrase}}. {sentence}"]
    silent = Asking("A {phrase}.", thinking="required", thinking_question=None)
    assert asking_for_thinking(silent, MARKS) is silent
    assert asking_for_thinking(Asking("A {phrase}."), MARKS) == Asking("A {phrase}.")


@pytest.fixture
def folder(tiny_untrained: Path, tmp_path: Path) -> Path:
    """A checkpoint that has the marks as control tokens, as Qwen3's tokenizer has them."""
    copied = Path(shutil.copytree(tiny_untrained, tmp_path / "model"))
    tokenizer = AutoTokenizer.from_pretrained(copied)
    tokenizer.add_tokens([AddedToken(mark, normalized=False) for mark in (*MARKS, "<tool_call>")])
    tokenizer.save_pretrained(copied)
    config = json.loads((copied / "config.json").read_text())
    config["text_config"]["vocab_size"] = len(tokenizer)
    (copied / "config.json").write_text(json.dumps(config))
    return copied


def processor_of(folder: Path, **asking: Any) -> Processor:
    return Policy.make_processor(folder, CODEC, Asking(**asking))


def test_marks_that_are_control_tokens_are_sampled_where_a_block_may_stand_and_only_there(folder: Path) -> None:
    plain, thinking = processor_of(folder), processor_of(folder, thinking="optional")
    ids = set(plain.tokenizer.convert_tokens_to_ids(list(MARKS)))
    assert set(plain.unsampled_tokens) - set(thinking.unsampled_tokens) == ids
    assert plain.tokenizer.convert_tokens_to_ids("<tool_call>") in thinking.unsampled_tokens
    assert set(thinking.unsampled_tokens) < set(plain.unsampled_tokens)


def test_without_the_setting_prompts_and_tokens_are_as_before_and_with_it_prompts_ask_for_the_block(
    folder: Path,
) -> None:
    plain, question = processor_of(folder), ask(IMAGE, "the apple")
    other = processor_of(folder, thinking_question="never said")
    assert plain.prompt_tokens(question).tolist() == other.prompt_tokens(question).tolist()
    assert plain.unsampled_tokens == other.unsampled_tokens and not plain.thinking.wanted
    asked = processor_of(folder, thinking="required", thinking_question="apple banana")
    words = asked.tokenizer.convert_tokens_to_ids(["apple", "banana"])
    before = plain.prompt_tokens(question).tolist()
    assert asked.prompt_tokens(question).tolist() == [*before[:-1], *words, before[-1]]


def test_a_template_that_opens_the_block_is_found_and_one_that_closes_it_refused(folder: Path) -> None:
    template = (folder / "chat_template.jinja").read_text()
    assert not processor_of(folder, thinking="required").thinking.begun
    (folder / "chat_template.jinja").write_text(template + "<think>\n")
    thinking = processor_of(folder, thinking="required").thinking
    assert thinking.begun and thinking.written == ("</think>",)
    assert not processor_of(folder, thinking="required", thinking_marks=["(", ")"]).thinking.begun
    (folder / "chat_template.jinja").write_text(template + "<think>\n\n</think>\n\n")
    with pytest.raises(ValueError, match=r"^policy\.thinking is optional, but the chat template ends in </think>"):
        processor_of(folder, thinking="optional")
    assert not processor_of(folder).thinking.wanted


def test_reasoning_is_cut_off_before_the_box_that_was_asked_for_is_read(folder: Path) -> None:
    codec = path_tokens.Codec()
    processor = Policy.make_processor(folder, codec, Asking(box_question="{phrase}", thinking="required"))
    prompt = Prompt((TextPart("the apple"),), asked="box")
    example = Example("a", ImageRef("a", "ab" * 32, 64, 64), prompt, TRUTH, "train", "by hand", "CC0-1.0")
    said = codec.encode_places([np.array([[8.0, 8.0], [24.0, 32.0]])], 64, 64)
    found = {}
    for text in (f"<think> apple </think> {said}", said):
        tokens = processor.answer_tokens(text)
        found[text] = processor.read_answer(Response(tokens, np.zeros(len(tokens), np.float32), "stop"), example)
    [reasoned, bare] = found.values()
    assert (reasoned.status, reasoned.thinking) == (AnswerStatus.OK, "apple")
    assert reasoned.instances[0].box_px == (8.0, 8.0, 24.0, 32.0)
    assert bare.status is AnswerStatus.UNPARSABLE
