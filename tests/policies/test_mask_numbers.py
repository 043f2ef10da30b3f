"""Writing the numbers of candidate masks: where candidates stand in a question, that what is sampled is learned,
and that all answers together have the probability 1."""

from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from test_vision_language import write_internvl, write_llava
from torch import Tensor

from envs.codecs import mask_group, mask_numbers
from envs.datasets.cutout_scenes import Env
from envs.example import Example, MaskPart, Prompt, Question, TextPart
from envs.polygons import AnswerStatus
from policies.families import mask_selection
from policies.families.base import Response
from policies.families.mask_numbers import Policy
from policies.settings import Asking, LoraSettings
from rollout.engines.base import uniforms
from rollout.engines.shared import sample
from rollout.settings import Sampling

ENV = Env(split="train", image_size=32, candidates=9, several_share=0.4, max_scale=0.45)
TEMPERATURE = 0.3
"""So low that an untrained model prefers some tokens."""


WORDS = sorted({word for name in ENV.phrase_words() for word in name.split()})


@pytest.fixture(scope="module", params=["qwen", "llava"])
def policy(request: pytest.FixtureRequest, tiny_untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Policy:
    folder = tiny_untrained
    if request.param == "llava":
        folder = tmp_path_factory.mktemp("llava")
        write_llava(folder, WORDS)
    return Policy(folder, mask_numbers.Codec()).eval()


def examples(num: int = 6) -> list[Example]:
    return [ENV[index] for index in range(num)]


def asked(each: list[Example]) -> list[Question]:
    return [example.question(ENV.image(example.image)) for example in each]


def sampled(policy: Policy, questions: list[Question], answers: int, tokens: int, first: int = 0) -> list[Response]:
    rows = policy.rows(questions, [[np.array([policy.processor.end_token])]] * len(questions))
    keys = [[(1000 * (first + b) + g,) for g in range(answers)] for b in range(len(questions))]
    draws = np.array([[uniforms(key, tokens) for key in row] for row in keys])
    return sample(policy, rows, Sampling(TEMPERATURE, tokens), draws)


def test_each_candidate_stands_behind_its_number_between_the_question_and_the_answer(policy: Policy) -> None:
    (question,) = asked(examples(1))
    n, processor = len(question.candidates), policy.processor
    shown = processor.prompt_text(question).split()
    end = processor.tokenizer.decode([processor.end_token])
    numbered = [word for k in range(n) for word in (str(k), end)]
    assert shown[-2 * n - 2 :] == [end, *numbered, "<|answer|>"]
    assert shown[-2 * n - 2 - len(question.prompt.text.split()) : -2 * n - 2] == question.prompt.text.split()
    rows = processor.rows([question], [[processor.answer_tokens("0")]])
    places = rows.prompt_tokens.shape[1] - 1 - rows.regions.behind[0]
    tokens = rows.prompt_tokens[0]
    assert (tokens[places] == processor.end_token).all() and (tokens == processor.end_token).sum() == 1 + n
    assert processor.tokenizer.decode(tokens[places[1:] - 1]).split() == [str(k) for k in range(n)]


def test_what_is_sampled_has_the_log_probabilities_of_forward_whatever_stands_beside_it(policy: Policy) -> None:
    questions = asked(examples())
    assert len({len(each.candidates) for each in questions}) > 1  # so that some prompts are padded
    found = sampled(policy, questions, 5, 6)
    rows = policy.rows(questions, [[each.tokens for each in found[5 * b : 5 * b + 5]] for b in range(6)])
    logprobs = policy(rows, TEMPERATURE).detach()
    assert logprobs.shape == rows.response_mask.shape and (logprobs[~rows.response_mask] == 0).all()
    for b in range(6):
        alone = sampled(policy, questions[b : b + 1], 5, 6, first=b)
        for g in range(5):
            response = found[5 * b + g]
            told = torch.from_numpy(response.logprobs)
            torch.testing.assert_close(logprobs[b, g, : len(told)], told, atol=2e-5, rtol=0)
            torch.testing.assert_close(torch.from_numpy(alone[g].logprobs), told, atol=2e-5, rtol=0)
            assert np.array_equal(alone[g].tokens, response.tokens)


@torch.no_grad()
def test_the_probabilities_of_all_answers_add_up_to_one_and_are_those_with_which_they_come(policy: Policy) -> None:
    (example,) = examples(1)
    pool = example.candidates[:3]
    example = replace(example, candidates=pool)
    (question,) = asked([example])
    processor = policy.processor
    banned = set(processor.unsampled_tokens)
    words = [token for token in range(processor.vocabulary_size) if token not in banned]
    ends = [token for token in words if token in processor.end_tokens]
    assert ends == [processor.end_token]
    answers = [np.array(ends)]
    answers += [np.array(pair) for pair in product([word for word in words if word not in ends], words)]
    expected, total = Counter[str](), 0.0
    for first in range(0, len(answers), 500):
        part = answers[first : first + 500]
        found = policy(policy.rows([question], [part]), TEMPERATURE)[0].sum(-1).double().exp()
        total += found.sum().item()
        for tokens, probability in zip(part, found.tolist(), strict=True):
            finish = "stop" if tokens[-1] in ends else "length"
            response = Response(tokens, np.zeros(len(tokens), np.float32), finish)
            answer = processor.read_answer(response, example)
            expected[f"{answer.status} {len(answer.instances)}"] += probability
    assert total == pytest.approx(1.0, abs=1e-4)
    drawn = Counter[str]()
    for response in sampled(policy, [question], 2000, 2):
        answer = processor.read_answer(response, example)
        drawn[f"{answer.status} {len(answer.instances)}"] += 1
    assert {"truncated 0", "unparsable 0"} <= set(drawn)
    for name, probability in expected.items():
        spread = (probability * (1 - probability) / 2000) ** 0.5
        assert abs(drawn[name] / 2000 - probability) < 4 * spread + 1e-3, name


def test_a_candidate_is_seen_by_what_is_written(policy: Policy) -> None:
    (question,) = asked(examples(1))

    def told(changed: Question) -> Tensor:
        return policy(policy.rows([changed], [[policy.processor.answer_tokens("0 2")]])).detach()[0, 0]

    plain = told(question)
    assert plain.shape == (3,)
    for k in (0, len(question.candidates) - 1):
        others = question.candidates.copy()
        others[k] = ~others[k]
        assert (told(replace(question, candidates=others)) - plain).abs().max() > 1e-5
    moved = replace(question, candidates=question.candidates[::-1].copy())
    assert (told(moved) - plain).abs().max() > 1e-5  # numbers follow the masks' order
    assert (told(replace(question, image=255 - question.image)) - plain).abs().max() > 1e-4


def test_learning_reaches_what_makes_mask_tokens(policy: Policy) -> None:
    questions = asked(examples(3))
    policy.zero_grad()
    policy(policy.rows(questions, [[policy.processor.answer_tokens("0 1")]] * 3)).sum().backward()
    for name, parameter in policy.model.selection.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    policy.zero_grad()


def test_the_taught_text_is_written_and_read_back(policy: Policy) -> None:
    processor = policy.processor
    for example in examples(20):
        text = processor.codec.chosen_text(example.candidates, example.truth.masks)
        tokens = processor.answer_tokens(text)
        response = Response(tokens, np.zeros(len(tokens), np.float32), "stop")
        assert processor.text(response) == text and tokens[-1] == processor.end_token
        answer = processor.read_answer(response, example)
        assert len(answer.instances) == len(example.truth.masks)
        other = mask_group.Codec()
        meant = other.read_chosen(other.chosen_text(example.candidates, example.truth.masks), example.candidates)
        assert [ring.tolist() for ring in answer.rings_px] == [ring.tolist() for ring in meant.rings_px]
        cut = replace(response, finish="length")
        assert processor.read_answer(cut, example).status is AnswerStatus.TRUNCATED
    assert processor.most_places(9) == 10


def test_a_saved_policy_comes_back_to_the_bit_and_is_not_taken_for_the_other(
    policy: Policy, tiny_untrained: Path, tmp_path: Path
) -> None:
    policy.save(tmp_path)
    held, found = policy.model.state_dict(), Policy(tmp_path, mask_numbers.Codec()).model.state_dict()
    assert held.keys() == found.keys() and all(torch.equal(held[name], found[name]) for name in held)
    with pytest.raises(
        ValueError, match=r"safetensors lacks classifier\.bias, classifier\.weight: it is of policy mask_n"
    ):
        mask_selection.Policy(tmp_path, mask_group.Codec())
    # Both begin with the same mask tokens.
    other = mask_selection.Policy(tiny_untrained, mask_group.Codec()).model.selection.state_dict()
    own = Policy(tiny_untrained, mask_numbers.Codec()).model.selection.state_dict()
    assert other.keys() - own.keys() == {"classifier.weight", "classifier.bias", "reference_prefix.weight"}
    assert all(torch.equal(own[name], other[name]) for name in own)
    # Who writes may begin with what choosing taught.
    chooser = mask_selection.Policy(tiny_untrained, mask_group.Codec())
    chooser.model.selection.first.bias.data.fill_(0.25)
    chooser.save(tmp_path / "chooser")
    begun = Policy(tmp_path / "chooser", mask_numbers.Codec()).model.selection.state_dict()
    assert (begun["first.bias"] == 0.25).all() and begun.keys() == own.keys()


def test_what_cannot_be_numbered_is_refused_in_a_line(tiny_untrained: Path, tmp_path: Path) -> None:
    processor = Policy.make_processor(tiny_untrained, mask_numbers.Codec())
    (question,) = asked(examples(1))
    for candidates in (None, question.candidates[:0]):
        with pytest.raises(ValueError, match=r"has no candidates to choose from; set env\.candidates"):
            processor.rows([replace(question, candidates=candidates)], [[np.zeros(0, np.int64)]])
    pointed = Prompt((TextPart("same as"), MaskPart(question.candidates[0])))
    with pytest.raises(ValueError, match=r"has a MaskPart, and this model family reads text parts alone"):
        processor.prompt_tokens(replace(question, prompt=pointed))
    # The tokenizer of words has numbers as far as the codec of outlines needs them.
    many = np.ones((len(processor.number_tokens) + 1, 32, 32), np.bool_)
    with pytest.raises(ValueError, match=rf"candidates up to number {len(many) - 1}, which the tokenizer .* at most"):
        processor.prompt_tokens(replace(question, candidates=many))
    with pytest.raises(ValueError, match=r"set codec to \{name: mask_numbers\}"):
        Policy.make_processor(tiny_untrained, mask_group.Codec(), Asking())
    adapted = Policy(tiny_untrained, mask_numbers.Codec(), lora=LoraSettings(rank=2))
    trained = {name for name, parameter in adapted.model.named_parameters() if parameter.requires_grad}
    assert {name for name in trained if "lora_" not in name} == {
        f"selection.{name}" for name in dict(adapted.model.selection.named_parameters())
    }
    write_internvl(tmp_path)
    with pytest.raises(ValueError, match=r"mask_numbers, which is known over LLaVA-1\.5, Qwen2\.5.*, and .* InternVL"):
        Policy.make_processor(tmp_path, mask_numbers.Codec())
