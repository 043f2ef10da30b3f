"""Choosing among candidate masks: what of a mask a model is shown, one pass for all answers, and gradients against the
exact expected reward."""

import json
import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from test_vision_language import write_internvl, write_llava
from torch import Tensor

from envs.codecs import mask_group, path_tokens
from envs.datasets.cutout_scenes import Env
from envs.example import Example, Prompt, Question
from envs.plugin import Plugin
from envs.polygons import AnswerStatus
from policies.families.mask_selection import Policy
from policies.lora import learns_beside, pushed
from policies.selection.regions import CELLS, CODE_WIDTH, covered, inside, place_code, regions_of, within
from policies.settings import Asking, LoraSettings
from policies.weights import held_checksum, is_adapter, load_bucket, make_bucket
from rollout.engines import direct
from rollout.engines.direct import DirectSampler, Engine, answered
from rollout.settings import Sampling

ENV = Env(split="train", image_size=32, candidates=9, several_share=0.4, max_scale=0.45)


WORDS = sorted({word for name in ENV.phrase_words() for word in name.split()})


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaVA-1.5 that knows the words of all questions."""
    folder = tmp_path_factory.mktemp("llava")
    write_llava(folder, WORDS)
    return folder


@pytest.fixture(scope="module", params=[(name, order) for name in ("qwen", "llava") for order in ("free", "causal")])
def policy(request: pytest.FixtureRequest, tiny_untrained: Path, llava: Path) -> Policy:
    name, order = request.param
    return loud(Policy(llava if name == "llava" else tiny_untrained, mask_group.Codec(), order=order).eval())


def loud(policy: Policy) -> Policy:
    """The classifier with weights, so that candidates differ."""
    with torch.no_grad():
        policy.model.selection.classifier.weight.normal_(std=0.5, generator=torch.Generator().manual_seed(5))
    return policy


def examples(num: int = 6) -> list[Example]:
    return [ENV[index] for index in range(num)]


def asked(each: list[Example]) -> list[Question]:
    return [example.question(ENV.image(example.image)) for example in each]


def seeds(num: int, answers: int) -> list[list[int]]:
    return [[1000 * b + g for g in range(answers)] for b in range(num)]


def test_a_cell_holds_the_exact_share_that_a_mask_covers_and_no_pixel_is_lost() -> None:
    masks = np.zeros((2, 96, 40), np.bool_)
    masks[0, 3:6, 5:10] = True
    masks[1, 95, 39] = True
    found = covered(masks).double()
    # A cell is 1.5 pixels high and 0.625 wide: rows 2 and 3 and columns 8 to 15 are covered whole.
    assert found[0, 2:4, 8:16].min() == 1.0 and found[0].sum() == pytest.approx(16)
    assert found.sum(dim=(1, 2)).tolist() == pytest.approx([15 * CELLS**2 / (96 * 40), CELLS**2 / (96 * 40)], rel=1e-3)
    one = np.zeros((1, 2000, 2000), np.bool_)
    one[0, 777, 1234] = True
    assert covered(one).count_nonzero() == 1


def test_inside_of_a_mask_are_the_means_of_what_it_covers_its_place_and_its_size() -> None:
    mask = np.zeros((2, 8, 8), np.bool_)
    mask[0, :4, :4] = True
    mask[0, :4, 4:6] = True  # the left cell of the first row, and half of the right
    features = torch.tensor([[[1.0, 4.0], [7.0, 9.0]]])
    found = inside(covered(mask), features)
    assert found.shape == (2, 1 + CODE_WIDTH + 1)
    assert found[:, 0].tolist() == pytest.approx([(1.0 + 0.5 * 4.0) / 1.5, 21 / 4])  # without a pixel: of all
    code = place_code(2, 2)
    expected = (code[:, 0, 0] + 0.5 * code[:, 0, 1]) / 1.5
    torch.testing.assert_close(found[0, 1:-1], expected, atol=1e-6, rtol=0)
    assert found[0, -1].item() == pytest.approx(np.log(24 / 64), abs=1e-4)
    # y by its sine of the slowest wave: a quarter and three quarters of the image are 1 and -1.
    assert code[0, :, 0].tolist() == pytest.approx([1.0, -1.0]) and code[0, 0, 0] == code[0, 0, 1]
    assert code[CODE_WIDTH // 2, 0].tolist() == pytest.approx([1.0, -1.0])


def test_masks_of_a_photo_cover_exactly_what_they_cover_of_the_square_that_llava_sees(llava: Path) -> None:
    policy = Policy(llava, mask_group.Codec()).eval()
    # 40 x 64 pixels in a square of 64: twelve rows of the mean colour above, and as many below; 4 x 4 cells of 16.
    mask = np.zeros((1, 40, 64), np.bool_)
    mask[0, :10, 24:40] = True  # rows 12 to 21 of the square, columns 24 to 39
    found = policy.processor.family.seen_shares(covered(mask), (40, 64), (4, 4))
    expected = torch.zeros(4, 4)
    expected[0, 1:3], expected[1, 1:3] = 4 * 8 / 256, 6 * 8 / 256
    torch.testing.assert_close(found[0], expected, atol=1e-3, rtol=0)
    whole = within(torch.ones(1, CELLS, CELLS), (3, 5), (0.25, 0.5), (0.0, 1.0))
    assert whole[0].sum().item() == pytest.approx(0.5 * 15) and whole[0, 1].tolist() == pytest.approx([1.0] * 5)
    assert whole[0, 0].tolist() == pytest.approx([0.25] * 5)
    # What is told of the mask is the tower's own: of a mask that is one cell, that cell's features.
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    cell = np.zeros((1, 64, 64), np.bool_)
    cell[0, 16:32, 48:64] = True
    rows = policy.unanswered([Question(image, Prompt.of_text("dog"), cell)])
    _, [seen] = policy.seen_images(rows)
    tower = policy.model.model.vision_tower(rows.pixel_values, output_hidden_states=True).hidden_states[-2][:, 1:]
    assert seen.shape == (16, 4, 4) and torch.equal(seen[:, 1, 3], tower[0, 7])
    told = inside(policy.processor.family.seen_shares(covered(cell), (64, 64), (4, 4)), seen)
    torch.testing.assert_close(told[0, :16], tower[0, 7], atol=1e-5, rtol=0)


def test_learning_reaches_tower_projector_and_what_is_new(policy: Policy) -> None:
    questions = asked(examples(3))
    policy.zero_grad()
    policy(
        policy.processor.rows(questions, [[np.ones(len(q.candidates), np.int64)] for q in questions])
    ).sum().backward()
    parts = {"selection": policy.model.selection, "text": policy.model.model.language_model}
    parts |= {f"projector {k}": module for k, module in enumerate(policy.vision_projector)}
    parts |= {"tower": policy.vision_tower}
    for name, part in parts.items():
        gradients = [each.grad for each in part.parameters() if each.grad is not None]
        assert gradients and max(float(gradient.abs().max()) for gradient in gradients) > 0, name
    policy.zero_grad()


def test_what_is_sampled_has_the_log_probabilities_of_forward_whatever_stands_beside_it(policy: Policy) -> None:
    questions = asked(examples())
    found = answered(policy, policy.unanswered(questions), Sampling(0.7), seeds(6, 5))
    rows = policy.processor.rows(questions, [[each.tokens for each in row] for row in found])
    logprobs = policy(rows, 0.7).detach()
    assert logprobs.shape == rows.response_mask.shape and (logprobs[~rows.response_mask] == 0).all()
    for b, row in enumerate(found):
        alone = answered(policy, policy.unanswered(questions[b : b + 1]), Sampling(0.7), [seeds(6, 5)[b]])[0]
        for g, each in enumerate(row):
            assert len(each.tokens) == len(questions[b].candidates) and each.finish == "stop"
            told = torch.from_numpy(each.logprobs)
            torch.testing.assert_close(logprobs[b, g, : len(told)], told, atol=1e-5, rtol=0)
            torch.testing.assert_close(torch.from_numpy(alone[g].logprobs), told, atol=1e-5, rtol=0)
            assert np.array_equal(alone[g].tokens, each.tokens)
    # Both choices of a candidate add up to 1.
    both, counts = policy.place_logprobs(policy.unanswered(questions), 0.7)
    torch.testing.assert_close(both.exp().sum(-1), torch.ones(both.shape[:2]))
    assert counts.tolist() == [len(question.candidates) for question in questions]


def test_frequencies_are_those_of_the_probabilities(policy: Policy) -> None:
    (question,) = asked(examples(1))
    rows = policy.unanswered([question])
    found = answered(policy, rows, Sampling(1.0), seeds(1, 4000))[0]
    expected = policy.place_logprobs(rows, 1.0)[0][0, :, 1].exp()
    share = torch.from_numpy(np.mean([each.tokens for each in found], axis=0))
    assert (share - expected).abs().max() < 4 * 0.5 / 4000**0.5
    assert expected.max() - expected.min() > 0.015  # or any candidate could stand for another


@torch.no_grad()
def test_in_the_free_order_an_answer_does_not_depend_on_where_its_candidates_stand(tiny_untrained: Path) -> None:
    for order, same in (("free", True), ("causal", False)):
        policy = loud(Policy(tiny_untrained, mask_group.Codec(), order=order).eval())
        (question,) = asked(examples(1))
        n = len(question.candidates)
        shuffled = np.random.default_rng(0).permutation(n)
        moved = replace(question, candidates=question.candidates[shuffled])
        first, second = (
            policy.place_logprobs(policy.unanswered([each]), 1.0)[0][0, :, 1] for each in (question, moved)
        )
        difference = float((first[torch.from_numpy(shuffled)] - second).abs().max())
        assert (difference < 1e-5) == same, (order, difference)


def test_a_candidate_knows_of_image_words_and_other_candidates(policy: Policy) -> None:
    (question,) = asked(examples(1))

    def told(changed: Question) -> Tensor:
        return policy.place_logprobs(policy.unanswered([changed]), 1.0)[0][0, :, 1]

    plain = told(question)
    assert (told(replace(question, image=255 - question.image)) - plain).abs().max() > 1e-3
    words = Prompt.of_text("banana" if question.prompt.text != "banana" else "dog")
    assert (told(replace(question, prompt=words)) - plain).abs().max() > 1e-4
    others = question.candidates.copy()
    others[-1] = ~others[-1]
    assert (told(replace(question, candidates=others)) - plain)[:-1].abs().max() > 1e-5


def test_the_estimated_gradient_is_that_of_the_exact_expected_reward(policy: Policy) -> None:
    (example,) = examples(1)
    pool = np.concatenate([example.truth.masks[:1], example.candidates[:3]])
    question = Question(ENV.image(example.image), example.prompt, pool)
    choices = [np.array(each) for each in product((0, 1), repeat=4)]
    union = example.truth.union

    def reward(choice: np.ndarray) -> float:
        covered_px = pool[choice == 1].any(axis=0) if choice.any() else np.zeros_like(union)
        return float((covered_px & union).sum() / (covered_px | union).sum())

    def gradient(objective: Tensor) -> Tensor:
        policy.zero_grad()
        objective.backward()
        return policy.model.selection.classifier.weight.grad[0].clone()

    logprobs = policy(policy.processor.rows([question], [choices]))[0].sum(-1)
    rewards = torch.tensor([reward(choice) for choice in choices])
    assert logprobs.exp().sum().item() == pytest.approx(1.0, abs=1e-5)
    exact = gradient((logprobs.exp() * rewards).sum())
    # Groups of 8 answers: advantages are rewards less the group's mean, whose factor of 7/8 is known.
    drawn = [
        each.tokens for each in answered(policy, policy.unanswered([question]), Sampling(1.0), seeds(1, 8 * 600))[0]
    ]
    earned = torch.tensor([reward(choice) for choice in drawn]).view(-1, 8)
    advantages = (earned - earned.mean(1, keepdim=True)).flatten() * 8 / 7
    estimate = gradient((policy(policy.processor.rows([question], [drawn]))[0].sum(-1) * advantages).mean())
    assert torch.cosine_similarity(estimate, exact, dim=0) > 0.97
    assert float((estimate - exact).norm() / exact.norm()) < 0.25


def test_a_thousand_candidates_are_chosen_from(tiny_untrained: Path) -> None:
    policy = loud(Policy(tiny_untrained, mask_group.Codec()).eval())
    (question,) = asked(examples(1))
    many = np.random.default_rng(0).random((1000, 32, 32)) < 0.2
    (row,) = answered(policy, policy.unanswered([replace(question, candidates=many)]), Sampling(1.0), seeds(1, 2))
    assert [len(each.tokens) for each in row] == [1000, 1000] and len(set(row[0].logprobs.tolist())) > 100


def test_answers_are_read_beside_their_question_and_written_as_numbers(policy: Policy) -> None:
    (example,) = examples(1)
    processor = policy.processor
    text = processor.codec.chosen_text(example.candidates, example.truth.masks)
    choice = processor.answer_tokens(text)
    response = replace(direct.greedy(policy, asked([example]))[0], tokens=choice)
    assert processor.text(response) == text
    answer = processor.read_answer(response, example)
    assert answer.status is AnswerStatus.OK and len(answer.instances) == len(example.truth.masks)
    again = processor.read_text(text, example)
    assert [ring.tolist() for ring in again.rings_px] == [ring.tolist() for ring in answer.rings_px]
    assert processor.read_text(text, example, truncated=True).status is AnswerStatus.TRUNCATED
    assert processor.read_text("the dog", example).status is AnswerStatus.UNPARSABLE
    assert processor.read(response, 32, 32).status is AnswerStatus.UNPARSABLE
    with pytest.raises(ValueError, match=r"^'the dog' is no choice among candidates, such as '0 3 of 7'"):
        processor.answer_tokens("the dog")


def test_a_saved_policy_comes_back_to_the_bit_and_a_new_one_begins_the_same_everywhere(
    policy: Policy, tiny_untrained: Path, tmp_path: Path
) -> None:
    policy.save(tmp_path)
    again = Policy(tmp_path, mask_group.Codec())
    held, found = policy.model.state_dict(), again.model.state_dict()
    assert held.keys() == found.keys() and all(torch.equal(held[name], found[name]) for name in held)
    assert "selection.prefix.weight" in held and (tmp_path / "selection.safetensors").is_file()
    first, second = (Policy(tiny_untrained, mask_group.Codec()).model.selection.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    hollow = Policy(tmp_path, mask_group.Codec(), weights=False)
    assert {name: p.shape for name, p in hollow.model.named_parameters()} == {
        name: p.shape for name, p in policy.model.named_parameters()
    }


def test_adapters_leave_what_chooses_to_be_trained_whole_and_both_travel(
    policy: Policy, tiny_untrained: Path, llava: Path, tmp_path: Path
) -> None:
    folder = llava if policy.processor.family.title == "LLaVA-1.5" else tiny_untrained
    plain = Policy(folder, mask_group.Codec())
    adapted, worker = (Policy(folder, mask_group.Codec(), lora=LoraSettings(rank=2)).eval() for _ in range(2))
    named = dict(adapted.model.named_parameters())
    trained = {name for name, parameter in named.items() if parameter.requires_grad}
    whole = {name for name in named if name.startswith("selection.")}
    assert whole == {f"selection.{name}" for name in dict(plain.model.selection.named_parameters())}
    assert trained == whole | {name for name in named if is_adapter(name)} and len(trained) > len(whole)
    assert learns_beside(adapted.model)  # so that without its adapters it is not what it was
    with torch.no_grad():
        for name in trained:
            named[name].add_(0.1 * torch.randn(named[name].shape, generator=torch.Generator().manual_seed(len(name))))
    rows = adapted.processor.rows(
        asked(examples(3)), [[np.ones(len(each.candidates), np.int64)] for each in examples(3)]
    )
    found = adapted(rows)
    assert (found - worker(rows)).abs().max() > 1e-3
    parts = [[(each.name, each.value()) for each in part] for part in pushed(adapted.model, merged=False)]
    assert {name for part in parts for name, _ in part} == trained
    for part in parts:
        load_bucket(worker.model, make_bucket(part))
    assert torch.equal(worker(rows), found) and held_checksum(worker.model) == held_checksum(adapted.model)
    adapted.save(tmp_path, {each.name: each.value() for part in pushed(adapted.model, merged=True) for each in part})
    torch.testing.assert_close(Policy(tmp_path, mask_group.Codec()).eval()(rows), found, rtol=0, atol=1e-5)


def test_a_sampler_gives_the_same_answers_however_many_questions_go_at_once(tiny_untrained: Path) -> None:
    plugin = Plugin(
        "policies.families", "Policy", "mask_selection", {"checkpoint": tiny_untrained, "codec": mask_group.Codec()}
    )
    questions = asked(examples(5))
    found = []
    for most in (None, 2):
        sampler = DirectSampler(plugin, Engine(max_rows=most))
        loud(sampler.policy)
        found.append(sampler.sample(questions, Sampling(1.0), seeds(5, 3)))
    for one, other in zip(*found, strict=True):
        assert all(np.array_equal(a.tokens, b.tokens) for a, b in zip(one, other, strict=True))
    greedy = sampler.sample(questions, Sampling(0.0), seeds(5, 1))
    for (likeliest,), again in zip(greedy, direct.greedy(sampler.policy, questions), strict=True):
        assert np.array_equal(likeliest.tokens, again.tokens)
        assert (likeliest.logprobs >= np.log(0.5) - 1e-6).all()


def test_what_cannot_be_chosen_from_is_refused_in_a_line(tiny_untrained: Path, llava: Path, tmp_path: Path) -> None:
    processor = Policy.make_processor(tiny_untrained, mask_group.Codec())
    (question,) = asked(examples(1))
    for candidates in (None, question.candidates[:0]):
        with pytest.raises(ValueError, match=r"has no candidates to choose from; set env\.candidates"):
            processor.rows([replace(question, candidates=candidates)], [[np.zeros(0, np.int64)]])
    with pytest.raises(ValueError, match=r"set codec to \{name: mask_group\}"):
        Policy.make_processor(tiny_untrained, path_tokens.Codec(), Asking())
    with pytest.raises(ValueError, match=r"^policy\.order is 'any'; it must be one of free, causal"):
        Policy(tiny_untrained, mask_group.Codec(), order="any")
    write_internvl(tmp_path)
    with pytest.raises(ValueError, match=r"known over LLaVA-1\.5, Qwen2\.5-VL and Qwen3-VL, and .* is a InternVL"):
        Policy.make_processor(tmp_path, mask_group.Codec())
    shutil.copytree(llava, tmp_path / "two")
    config = json.loads((llava / "config.json").read_text()) | {"vision_feature_layer": [-2, -1]}
    (tmp_path / "two/config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"has vision_feature_layer \[-2, -1\], and masks are told by one layer"):
        Policy.make_processor(tmp_path / "two", mask_group.Codec())
    plain = Plugin(
        "policies.families", "Policy", "vision_language", {"checkpoint": tiny_untrained, "codec": path_tokens.Codec()}
    )
    with pytest.raises(ValueError, match=r"^pool\.engine is direct, and policy\.name vision_language writes a token"):
        DirectSampler(plain, Engine())


def test_an_empty_mask_and_two_equal_ones_are_candidates_like_others(policy: Policy) -> None:
    (question,) = asked(examples(1))
    pool = np.concatenate([question.candidates[:2], question.candidates[:1], np.zeros_like(question.candidates[:1])])
    logprobs, _ = policy.place_logprobs(policy.unanswered([replace(question, candidates=pool)]), 1.0)
    assert logprobs.isfinite().all()
    assert regions_of([pool]).mask.all()
