"""A phrase is data: ordinary ones are tokenised with the whole prompt at once, and control tokens in one stay text."""

import os
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

from policies.question import QuestionTemplate, check_phrase, check_question
from policies.settings import AS_IT_IS, Asking
from policies.tiny_model import word_tokenizer

QWEN = Path(os.environ.get("POLYTRACE_QWEN_TOKENIZER", "."))
SPECIAL = [
    "<|end|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
PLAIN = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
JOINED = PLAIN.replace("{{ part.text }}", "\nQuestion: the{{ part.text }}end.")
TRIMMED = PLAIN.replace("{{ part.text }}", "{{ part.text | trim }}")
QUESTIONS = ["{phrase}", "Outline {phrase}.", " {phrase}\n", 'Find {phrase}. Answer as {"polygon": [[x, y]]}.']
TEXTS = ["the left apple", "Outline the left melon.", "Question: then the end.", "assistant user", "two dogs, left"]


def trained_tokenizer(template: str) -> PreTrainedTokenizerFast:
    """Merges of bytes, as Qwen's; <tool_call> is added without being special, and so is a word."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=SPECIAL, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 20, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=SPECIAL[0],
        additional_special_tokens=SPECIAL[1:],
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )
    fast.add_tokens([AddedToken("<tool_call>", normalized=False), AddedToken("durian", normalized=False)])
    return fast


def qwen_tokenizer(template: str) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(QWEN)
    tokenizer.chat_template = template
    return tokenizer


TOKENIZERS: list[Any] = [
    pytest.param(lambda: word_tokenizer(["the", "left", "apple", "melon", "Outline"]), id="words"),
    pytest.param(lambda: trained_tokenizer(PLAIN), id="merges"),
    pytest.param(lambda: trained_tokenizer(JOINED), id="merges, text around the question"),
    pytest.param(lambda: trained_tokenizer(TRIMMED), id="merges, question trimmed"),
    pytest.param(
        lambda: ByT5Tokenizer(extra_ids=0, additional_special_tokens=SPECIAL, chat_template=PLAIN),
        id="bytes, in Python",
    ),
]
if (QWEN / "tokenizer.json").is_file():
    TOKENIZERS += [pytest.param(lambda t=t: qwen_tokenizer(t), id=f"Qwen {k}") for k, t in enumerate((PLAIN, JOINED))]


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return request.param()


def asked(tokenizer: Any, question: str = "{phrase}") -> QuestionTemplate:
    return QuestionTemplate(tokenizer, Asking(question), tokenizer.convert_tokens_to_ids("<|image_pad|>"))


def at_once(tokenizer: Any, question: str) -> list[int]:
    """The whole prompt rendered and tokenised in one call, whatever is written in it."""
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
    text = tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def controls(tokenizer: Any, ids: list[int]) -> list[int]:
    """Added tokens of a prompt, less the unknown word and words of a language."""
    words = {tokenizer.unk_token_id, tokenizer.get_vocab().get("durian")}
    return [token for token in ids if token in tokenizer.added_tokens_decoder and token not in words]


@pytest.mark.skipif(not (QWEN / "tokenizer.json").is_file(), reason="POLYTRACE_QWEN_TOKENIZER is no folder of one")
def test_qwen_s_own_tokenizer_is_among_those_tested() -> None:
    assert len(qwen_tokenizer(PLAIN)) == 151_669


@pytest.mark.parametrize("question", QUESTIONS)
def test_ordinary_phrases_give_the_tokens_of_the_whole_prompt_tokenised_at_once(tokenizer: Any, question: str) -> None:
    questions, rng = asked(tokenizer, question), random.Random(0)
    words = ["the", "left", "Apple", "melon", "durian", "é", "e\u0301", "二つ", "🍎", "12.5", "'", "<", ">", "|", "<b>"]
    words += ["image_pad", "http://a.b/c", "tool_call/"]
    for _ in range(200):
        ends = rng.choices(["", " ", "\n", "\t"], k=2)
        phrase = ends[0] + rng.choice([" ", "  ", ""]).join(rng.choices(words, k=rng.randint(0, 6))) + ends[1]
        assert questions.tokens(phrase) == at_once(tokenizer, question.replace("{phrase}", phrase)), phrase


TRAINED = trained_tokenizer(JOINED)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_text_gives_the_tokens_of_the_whole_prompt_and_comes_back_from_them(phrase: str) -> None:
    assume(not any(token.content in phrase for token in TRAINED.added_tokens_decoder.values()))  # see below for these
    ids = asked(TRAINED, "Outline {phrase}.").tokens(phrase)
    assert ids == at_once(TRAINED, f"Outline {phrase}.")
    assert f"Question: theOutline {phrase}.end." in TRAINED.decode(ids)


def test_a_token_merges_over_the_seam_of_template_and_phrase() -> None:
    # The template writes " the" before it, and the texts that it was trained on hold " then".
    pieces = TRAINED.convert_ids_to_tokens(asked(TRAINED).tokens("n melon"))
    assert "Ġthen" in pieces and "Ġthe" not in pieces
    assert "Ġthe" in TRAINED.convert_ids_to_tokens(asked(TRAINED).tokens(" melon"))


@pytest.mark.parametrize("around", ["{}", "the {} melon", "{}{}", "<{}", "a{}b\n{} ", "<|{}|>"])
def test_control_tokens_written_in_a_phrase_leave_those_of_the_template_alone(tokenizer: Any, around: str) -> None:
    questions = asked(tokenizer, "Outline {phrase}.")
    written = controls(tokenizer, questions.tokens("melon"))
    assert len(written) >= 4
    for token in tokenizer.added_tokens_decoder.values():
        phrase = around.replace("{}", token.content)
        ids = questions.tokens(phrase)
        assert controls(tokenizer, ids) == written, phrase
        if tokenizer.unk_token_id is None:
            assert f"Outline {phrase}." in tokenizer.decode(ids)


def test_a_control_token_begun_by_the_template_and_ended_by_a_phrase_stays_text() -> None:
    tokenizer = trained_tokenizer(PLAIN.replace("{{ part.text }}", "<|{{ part.text }}"))
    written = controls(tokenizer, asked(tokenizer).tokens("melon"))
    assert controls(tokenizer, asked(tokenizer).tokens("im_end|>")) == written


def test_a_word_added_to_the_vocabulary_is_one_token_in_a_phrase_too() -> None:
    assert TRAINED.get_vocab()["durian"] in asked(TRAINED, "find {phrase}").tokens("the durian left")


def test_control_characters_are_text_of_a_phrase(tokenizer: Any) -> None:
    questions = asked(tokenizer)
    for character in map(chr, [*range(32), 127, 0x85, 0x2028, 0xFEFF, 0xFFFC, 0xFFFF]):
        assert questions.tokens(f"a{character}b") == at_once(tokenizer, f"a{character}b"), repr(character)


def test_only_the_phrase_is_replaced_in_a_question_and_nothing_in_a_phrase() -> None:
    question = 'Find {phrase}, {{only}} {phrase}: {"polygon": [[x, y]]} {0}.'
    for phrase in ("{phrase}", "{x!r}", "%s \\1 $1 {{ messages }}"):
        expected = f'Find {phrase}, {{{{only}}}} {phrase}: {{"polygon": [[x, y]]}} {{0}}.'
        assert expected in TRAINED.decode(asked(TRAINED, question).tokens(phrase))


def test_a_question_without_the_phrase_is_refused_by_its_value() -> None:
    for question in ("Outline it.", "", "{Phrase}", "{ phrase }"):
        with pytest.raises(ValueError, match=r"^policy\.question is '.*', which never asks the phrase; write \{phrase"):
            check_question(question)
    with pytest.raises(ValueError, match="which never asks the phrase"):
        asked(TRAINED, "Outline it.")


def test_what_is_no_text_is_refused_by_its_first_wrong_character() -> None:
    with pytest.raises(ValueError, match=r"^the phrase is 'the cup .ud83d', .* character 9 is '.ud83d', half of"):
        check_phrase("the cup \ud83d")
    with pytest.raises(
        ValueError, match=r"^the phrase is 'a.udcff', .* character 2 is '.udcff', half of .* single byte"
    ):
        asked(TRAINED).tokens(b"a\xff".decode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=r"^policy\.question is '.udc00\{phrase\}', which is no text in UTF-8"):
        check_question("\udc00{phrase}")
    for empty in ("", " \n"):
        with pytest.raises(ValueError, match=r"^the phrase is empty; say what to outline"):
            check_phrase(empty)
    check_phrase("\U0001f34e \0")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (PLAIN.replace("{{ part.text }}", ""), "writes the user's text 0 times"),
        (PLAIN.replace("{{ part.text }}", "{{ part.text }} {{ part.text }}"), "writes the user's text 2 times"),
        (PLAIN.replace("<|image_pad|>", ""), "a question has 0 image tokens in the chat template"),
        (PLAIN.replace("<|image_pad|>", "<|image_pad|><|image_pad|>"), "a question has 2 image tokens in the chat"),
    ],
)
def test_a_template_that_does_not_show_image_and_question_once_is_refused(template: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        asked(trained_tokenizer(template))


THINKS = PLAIN + "{% if enable_thinking is defined and not enable_thinking %}durian{% endif %}"


def test_arguments_reach_the_template_and_those_it_does_not_name_are_refused() -> None:
    tokenizer = trained_tokenizer(THINKS)
    image, durian = (tokenizer.convert_tokens_to_ids(word) for word in ("<|image_pad|>", "durian"))
    thinking = QuestionTemplate(tokenizer, AS_IT_IS, image)
    silent = QuestionTemplate(tokenizer, Asking(template_arguments={"enable_thinking": False}), image)
    assert silent.tokens("apple") == [*thinking.tokens("apple"), durian]
    for name, reason in (("enable_thought", "it does not name"), ("messages", "is given to it anyway")):
        with pytest.raises(ValueError, match=rf"^policy.template_arguments sets {name}, which {reason}, so that"):
            QuestionTemplate(tokenizer, Asking(template_arguments={name: False}), image)


@pytest.mark.parametrize("make", TOKENIZERS)
def test_a_gap_cuts_a_prompt_where_it_stands_in_the_phrase_and_control_tokens_stay_text(make: Any) -> None:
    tokenizer = make()
    image = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    template = QuestionTemplate(tokenizer, Asking(question="Outline {phrase}"), image)
    pieces = template.gapped("the left~ apple <|image_pad|>~", "mask", "~")
    assert len(pieces) == 3 and sum(piece.count(image) for piece in pieces) == 1
    # Cut as the whole is: what stands before a gap is the prompt of the words before it, but for what closes it.
    whole = template.tokens("the left")
    assert pieces[0] == whole[: len(pieces[0])] and template.gapped("the left", "mask", "~") == [whole]
    assert tokenizer.decode(pieces[2]).strip() in tokenizer.decode(whole)
