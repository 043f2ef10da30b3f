"""Moondream 3 as a policy: two choices at one place, prompts whose image sees itself, boxes as text."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from asking import ask, ask_all
from moondream_toy import codec, slow_states, toy, write_toy
from test_vision_language import PHRASES, images

from envs.codecs import path_tokens
from envs.codecs.svg_path import Codec
from envs.example import BoxPart, MaskPart, PointPart, Prompt, Question, TextPart
from envs.polygons import AnswerStatus
from policies.choices import NO_BIN, apart, joined
from policies.families.base import Response, TaughtAnswer
from policies.families.moondream import Policy
from policies.families.vision_language import Policy as OtherPolicy
from policies.settings import Asking
from policies.sharing.prompt_cache import PromptCache
from rollout.engines.base import uniforms
from rollout.engines.shared import sample
from rollout.settings import Sampling

ANSWERS = [["20 30 40 50 M 0 0 32 0 32 32 Z", "none"], ["63 0 0 63 M 1 2 3 4 9 0 Z ; 5 6 7 8 M 1 1 2 2 1 2 Z", "M 3"]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("moondream")
    write_toy(made)
    return made


@pytest.fixture(scope="module")
def policy(folder: Path) -> Policy:
    return toy(folder).eval()


def choices_of(policy: Policy, texts: list[list[str]]) -> list[list[np.ndarray]]:
    return [[policy.processor.answer_tokens(text) for text in row] for row in texts]


def response(choices: np.ndarray, finish: str = "stop") -> Response:
    tokens, bins = apart(choices)
    return Response(tokens, np.zeros(len(tokens), np.float32), finish, bins.astype(np.int16))


def slow_logprobs(
    policy: Policy, image: np.ndarray, phrase: str, answer: np.ndarray, temperature: float
) -> list[float]:
    """Of one answer by the slow forward pass and softmaxes of its own."""
    rows = policy.rows([ask(image, phrase)], [[answer]])
    prompt = joined(rows.prompt_tokens[0].numpy(), rows.prompt_bins[0].numpy())
    tokens, bins = apart(np.concatenate([prompt, answer]))
    model = policy.model.model
    seen = model.get_image_features(rows.pixel_values, rows.image_grid).pooler_output[0]
    states, found = slow_states(policy, tokens, bins, seen), []
    for place in range(len(prompt), len(tokens)):
        before = states[place - 1]
        logits = model.text.lm_head.weight @ model.text.post_ln(before) + model.text.lm_head.bias
        logits[policy.processor.unsampled_tokens] = -torch.inf
        total = (logits / temperature).log_softmax(0)[tokens[place]]
        read, half = model.region.ln(before), model.region.num_bins[1]
        sizes = model.region.size_decoder(read)
        of_heads = (model.region.coord_decoder(read), sizes[:half], sizes[half:])
        for head, own in enumerate(of_heads):
            if bins[place, head] != NO_BIN:
                total = total + (own / temperature).log_softmax(0)[bins[place, head]]
        found.append(float(total))
    return found


@torch.no_grad()
def test_a_shared_row_equals_the_formulas_an_answer_at_a_time(policy: Policy) -> None:
    answers = choices_of(policy, ANSWERS)
    rows = policy.rows(ask_all(images(2), PHRASES), answers)
    assert not rows.prompt_mask.all()  # one prompt is padded, behind whose padding the image stands
    for temperature in (1.0, 0.5):
        logprobs = policy(rows, temperature)
        for b, image in enumerate(images(2)):
            for g, answer in enumerate(answers[b]):
                expected = slow_logprobs(policy, image, PHRASES[b], answer, temperature)
                assert logprobs[b, g, : len(answer)].tolist() == pytest.approx(expected, abs=2e-5)


def test_sampled_log_probabilities_are_those_of_forward_and_greedy_is_the_likeliest(policy: Policy) -> None:
    rows = policy.rows(ask_all(images(2), PHRASES), [[policy.processor.answer_tokens("none")]] * 2)
    draws = np.array([[uniforms((b, k), 24, 3) for k in range(40)] for b in range(2)])
    responses = sample(policy, rows, Sampling(0.7, 24), draws)
    chosen = sum(int((one.bins != NO_BIN).any(1).sum()) for one in responses)
    assert chosen > 20  # coordinates and sizes are drawn as other tokens are
    again = [[one.choices for one in responses[40 * b : 40 * b + 40]] for b in range(2)]
    rows = policy.rows(ask_all(images(2), PHRASES), again)
    logprobs = policy(rows, temperature=0.7)[rows.response_mask].detach().numpy()
    np.testing.assert_allclose(np.concatenate([one.logprobs for one in responses]), logprobs, atol=2e-5)
    for one in responses:
        for token, bins in zip(one.tokens, one.bins, strict=True):
            heads = [token == head.token for head in policy.processor.heads]
            assert ((bins != NO_BIN) == heads).all()
    # Few at a time, entering and leaving, they are the same.
    apart_ = sample(policy, policy.rows(ask_all(images(2), PHRASES), again), Sampling(0.7, 24), draws, max_answers=40)
    assert all((a.choices == b.choices).all() for a, b in zip(responses, apart_, strict=True))


@torch.no_grad()
def test_what_may_come_next_adds_up_to_one_over_tokens_and_bins_together(tmp_path: Path) -> None:
    # 4 bins a head: a coordinate is said in 4 ways, a size in 16.
    write_toy(tmp_path, bins=3, words=("0", "1", "M"))
    policy = toy(tmp_path, bins=3).eval()
    processor = policy.processor
    one = [
        [token] + [NO_BIN] * 3 for token in range(processor.vocabulary_size) if token not in processor.unsampled_tokens
    ]
    ways = [choice for choice in one if choice[0] not in (processor.config.coord_id, processor.config.size_id)]
    ways += [[processor.config.coord_id, k, NO_BIN, NO_BIN] for k in range(4)]
    ways += [[processor.config.size_id, NO_BIN, w, h] for w, h in itertools.product(range(4), repeat=2)]
    assert len(ways) == len(one) - 2 + 20
    ended = [way for way in ways if way[0] == processor.end_token]
    goes_on = [way for way in ways if way[0] != processor.end_token]
    answers = [np.array(answer) for answer in [ended, *itertools.product(goes_on, ways)]]
    for temperature in (1.0, 0.6):
        total = 0.0
        for first in range(0, len(answers), 200):
            rows = policy.rows([ask(images(1)[0], "dog")], [answers[first : first + 200]])
            total += float(policy(rows, temperature).double().sum(-1).exp().sum())
        assert total == pytest.approx(1.0, abs=1e-5)


@torch.no_grad()
def test_heads_that_spread_count_neighbouring_bins_by_a_gaussian(policy: Policy) -> None:
    image, answer = images(1)[0], policy.processor.answer_tokens("20 30 40 50 M")[:3]
    spread = policy(policy.rows([ask(image, "dog")], [[answer]]), number_spread=1.5)[0, 0]
    alone = policy(policy.rows([ask(image, "dog")], [[answer]]))[0, 0]
    expected = 0.0
    weights = [np.exp(-((k - 20) ** 2) / (2 * 1.5**2)) for k in range(64)]
    for k in range(64):
        other = answer.copy()
        other[0, 1] = k
        found = policy(policy.rows([ask(image, "dog")], [[other]]))[0, 0, 0]
        expected += weights[k] * float(found) / sum(weights)
    assert float(spread[0]) == pytest.approx(expected, rel=1e-5) and float(spread[0]) != float(alone[0])


@torch.no_grad()
def test_the_image_sees_itself_and_not_the_question(policy: Policy) -> None:
    model, question = policy.model.model, ask(images(1)[0], "the banana")
    rows = policy.rows([question], [[policy.processor.answer_tokens("none")]])

    def keys_of(other: object) -> torch.Tensor:
        return policy.encode(other).keys[1, 0]  # of the second layer: [H, d, P]

    seen = keys_of(rows)
    changed = images(1)[0].copy()
    changed[24:, 24:] ^= 255  # the last of 16 patches
    vision = model.vision.forward
    model.vision.forward = lambda crops: vision(crops) + torch.eye(16)[15].view(1, 4, 4, 1)  # of that patch alone
    try:
        moved = (keys_of(rows) - seen).abs().amax((0, 1))
    finally:
        model.vision.forward = vision
    assert (moved[:17] > 1e-6).all()  # the beginning and every patch look at the last patch
    words = rows.prompt_tokens.clone()
    words[0, -2] = policy.processor.tokenizer.convert_tokens_to_ids("dog")
    found = (keys_of(type(rows)(**(vars(rows) | {"prompt_tokens": words}))) - seen).abs().amax((0, 1))
    assert (found[:-1] == 0).all() and found[-1] > 1e-6  # what comes later is seen by nobody before


def test_gradients_reach_heads_and_encoders_and_repeat_to_the_bit(policy: Policy) -> None:
    rows = policy.rows(ask_all(images(2), PHRASES), choices_of(policy, ANSWERS))

    def gradients() -> dict[str, torch.Tensor]:
        policy.zero_grad()
        policy(rows).sum().backward()
        return {name: p.grad.clone() for name, p in policy.model.named_parameters() if p.grad is not None}

    first, second = gradients(), gradients()
    assert all(torch.equal(first[name], second[name]) for name in first)
    without = {name for name, _ in policy.model.named_parameters()} - first.keys()
    assert without == {"model.region.coord_features", "model.region.size_features"}  # drawn once and kept
    assert all(first[f"model.region.{part}.weight"].abs().sum() > 0 for part in ("coord_encoder", "size_decoder"))
    text = policy.model.model.text
    policy.checkpoint_gradients()
    policy.train()
    try:
        again = gradients()
    finally:
        policy.eval()
        policy.model.gradient_checkpointing_disable()
    assert all(torch.allclose(again[name], first[name], atol=1e-5) for name in first)
    assert text.lm_head.bias.grad.abs().sum() > 0


def test_a_box_is_text_again_and_only_where_the_heads_said_it(policy: Policy) -> None:
    processor = policy.processor
    for text in ("none", "20 30 40 50 M 0 0 32 0 32 32 Z", "1 2 3 4 M 1 2 3 4 9 0 Z ; 5 6 7 8 M 1 1 2 2 1 2 Z"):
        choices = processor.answer_tokens(text)
        assert processor.text(response(choices)) == text
        assert processor.read(response(choices), 32, 32).status.valid
    whole = processor.answer_tokens("20 30 40 50 M 0 0 32 0 32 32 Z")
    words = processor._words_alone(processor._ids("20 30 40 50 M 0 0 32 0 32 32 Z"))
    end = whole[-1:]
    wrong = {
        "numbers of the vocabulary": np.concatenate([words, end]),
        "no size": np.concatenate([whole[:2], whole[3:]]),
        "no box": whole[3:],
        "a size first": whole[[2, 0, 1, *range(3, len(whole))]],
        "a coordinate within the path": np.concatenate([whole[:5], whole[:1], whole[6:]]),
        "a box and no path": np.concatenate([whole[:3], end]),
    }
    for name, choices in wrong.items():
        assert processor.read(response(choices), 32, 32).status is AnswerStatus.UNPARSABLE, name
    assert processor.text(response(wrong["no box"])) == "<?> M 0 0 32 0 32 32 Z"
    assert processor.read(response(whole[:-1], "length"), 32, 32).status is AnswerStatus.TRUNCATED


def test_points_and_boxes_of_a_question_are_said_by_bins_before_its_words(policy: Policy) -> None:
    image = images(1)[0]
    parts = (TextPart("the banana"), PointPart((8.0, 24.0)), BoxPart((0.0, 8.0, 16.0, 24.0)), TextPart("left"))
    rows = policy.rows([Question(image, Prompt(parts))], [[policy.processor.answer_tokens("none")]])
    behind = joined(rows.prompt_tokens[0].numpy(), rows.prompt_bins[0].numpy())[17:]
    coordinate, size = policy.processor.config.coord_id, policy.processor.config.size_id
    said = [[coordinate, 16], [coordinate, 47], [coordinate, 16], [coordinate, 32]]  # of 63: 0.25, 0.75, 0.25, 0.5
    assert behind[1:5, :2].tolist() == said and (behind[1:5, 2:] == NO_BIN).all()
    assert behind[5].tolist() == [size, NO_BIN, 57, 57]  # half a side is 2 ** (10 * 57 / 63 - 10) = 0.517
    words = policy.processor.tokenizer.convert_ids_to_tokens(behind[6:, 0])
    assert words == ["find", "the", "banana", "left", "<|answer|>"]
    masks = Question(image, Prompt((TextPart("dog"), MaskPart(np.ones((32, 32), np.bool_)))))
    with pytest.raises(ValueError, match="a question shows a mask, and Moondream 3 is asked with text, points and box"):
        policy.processor.prompt_tokens(masks)
    with pytest.raises(ValueError, match="the data asks for a box, and Moondream 3 is asked for masks alone"):
        policy.processor.prompt_tokens(Question(image, Prompt((TextPart("dog"),), asked="box")))


def test_the_prompt_is_shown_with_the_image_in_its_place(policy: Policy) -> None:
    shown = policy.processor.prompt_text(ask(images(1)[0], "the banana"))
    assert shown == "<|vision_start|> <image> <|vision_end|> find the banana <|answer|>"


def test_a_phrase_of_control_tokens_is_asked_as_words(policy: Policy) -> None:
    tokens = policy.processor.prompt_tokens(ask(images(1)[0], "the <|size|> <|end|> banana"))
    assert policy.processor.config.size_id not in tokens and policy.processor.end_token not in tokens


def test_supervised_rows_score_the_same_answers_as_rows(policy: Policy) -> None:
    image, answers = images(1), choices_of(policy, ANSWERS)[0]
    supervised = policy.processor.supervised_rows([list(map(TaughtAnswer, ask_all(image * 2, PHRASES), answers))])
    assert supervised.scored_mask.sum() == sum(map(len, answers))
    for g, answer in enumerate(answers):
        asked = policy(policy.rows(ask_all(image, PHRASES[g : g + 1]), [[answer]]))[0, 0]
        found = policy(supervised)[0, g][supervised.scored_mask[0, g]]
        torch.testing.assert_close(found, asked, atol=1e-5, rtol=0)


def test_photos_of_any_size_share_rows_and_keep_their_crops(folder: Path, policy: Policy) -> None:
    policy.model.config.vision.max_crops = 4
    wide = Policy(folder, codec())
    wide.processor.image_processor.max_crops, wide.processor.image_processor.overlap_margin = 4, 1
    wide.model.model.vision.settings.overlap_margin = 1
    mixed = [images(1)[0], images(1, height=64, width=96)[0], images(1, seed=2)[0]]
    rows = wide.rows(
        ask_all(mixed, [*PHRASES, "dog"]), [*choices_of(wide, ANSWERS), [wide.processor.answer_tokens("none")]]
    )
    assert rows.image_grid.tolist() == [[1, 1, 1], [1, 1, 2], [1, 1, 1]]
    assert rows.pixel_rows == [1, 3, 1] and len(rows.pixel_values) == 5
    assert wide.processor.image_patches(64, 96) == 3 * 16 and wide.processor.image_tokens(64, 96) == 16
    torch.testing.assert_close(wide(rows.groups(1, 3)), wide(rows)[1:], atol=1e-5, rtol=0)
    chosen = rows.chosen([2, 1])
    assert chosen.pixel_rows == [1, 3]
    torch.testing.assert_close(wide(chosen), wide(rows)[[2, 1]], atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_saved_policy_comes_back_to_the_bit(policy: Policy, tmp_path: Path) -> None:
    policy.save(tmp_path)
    loaded = toy(tmp_path).eval()
    rows = policy.rows(ask_all(images(2), PHRASES), choices_of(policy, ANSWERS))
    assert torch.equal(loaded(rows), policy(rows))
    hollow = Policy(tmp_path, codec(), weights=False)
    assert {parameter.device.type for parameter in hollow.parameters()} == {"meta"}


@torch.no_grad()
def test_features_of_the_tower_lie_where_their_pixels_are(policy: Policy) -> None:
    picture = images(1)[0]
    changed = picture.copy()
    changed[8:16, 16:24] ^= 255
    for early in (0, 2):
        assert policy.vision_features([picture] * 2, early).early.shape == (2, 16, 4, 4)
    features, moved = policy.vision_features([picture]), policy.vision_features([changed])
    assert features.final.shape == (1, 16, 4, 4)
    assert (features.early != moved.early).any(1).nonzero().tolist() == [[0, 1, 2]]
    with pytest.raises(ValueError, match="early_block is 3, and the vision tower has 2 blocks"):
        policy.vision_features([picture], 3)


def test_what_moondream_cannot_be_told_is_refused_in_a_line(folder: Path, tiny_untrained: Path) -> None:
    for other, message in (
        (path_tokens.Codec(), r"set codec\.name to svg_path and codec\.boxes to centre, with box_bins 63"),
        (Codec(), r"set codec\.name to svg_path and codec\.boxes to centre, with box_bins 63"),
        (codec(64), r"codec\.box_bins is 64 .* a coordinate in 63 steps and a size in 63; set codec\.box_bins to 63"),
    ):
        with pytest.raises(ValueError, match=message):
            Policy.make_processor(folder, other)
    for asking, message in (
        (Asking(system="you"), r"^policy\.system is 'you', and Moondream 3 has no chat template for it; leave it out"),
        (Asking(thinking="optional"), r"^policy\.thinking is 'optional', and Moondream 3 has no chat template"),
        (Asking(min_pixels=9), r"^policy\.min_pixels is 9, but Moondream 3 sees an image as whole crops"),
        (Asking(max_pixels=9), r"^policy\.max_pixels is 9, less than one crop of Moondream 3 shows \(1024\)"),
    ):
        with pytest.raises(ValueError, match=message):
            Policy.make_processor(folder, codec(), asking)
    with pytest.raises(ValueError, match=r"is a Moondream 3, which has heads of its own; set policy\.name"):
        OtherPolicy(folder, codec())
    with pytest.raises(ValueError, match=r"policy\.name is moondream, and .* is a qwen3_vl model; set policy\."):
        Policy(tiny_untrained, codec())
    with pytest.raises(ValueError, match=r"^sampling\.grammar is true, and Moondream 3 says boxes by heads"):
        Policy.make_processor(folder, codec()).token_grammar()


@torch.no_grad()
def test_a_cache_answers_as_before_when_others_have_left(policy: Policy) -> None:
    rows = policy.rows(ask_all(images(2), PHRASES), [[policy.processor.answer_tokens("none")]] * 2)
    whole, kept = (PromptCache(policy.encode(rows), 3, 6) for _ in range(2))
    tokens, bins = torch.full((2, 3), policy.processor.config.coord_id), torch.full((2, 3, 3), NO_BIN)
    bins[..., 0] = torch.arange(6).view(2, 3) * 9
    for cache in (whole, kept):
        policy.decode(cache, tokens, 1.0, None, bins)
    places, answers = torch.tensor([1]), torch.tensor([[2, 0]])
    kept.keep(places, answers)
    expected = policy.decode(whole, tokens, 1.0, None, bins).view(2, 3, -1)[1, [2, 0]]
    found = policy.decode(kept, tokens[:1, :2], 1.0, None, bins[1:, [2, 0]])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    of_heads = policy.bin_logprobs(kept, 1.0)
    assert [tuple(each.shape) for each in of_heads] == [(2, 64)] * 3
    torch.testing.assert_close(of_heads[0].exp().sum(1), torch.ones(2))
