from itertools import chain

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from policies.families.base import PromptRows
from policies.sharing.packing import pack_rows, pad_left, pad_responses


def rows_of(prompts: list[list[int]], responses: list[list[list[int]]], scored_from: int = 0) -> PromptRows:
    """Rows without images; of each response, the tokens from `scored_from` on are scored."""
    prompt_tokens, prompt_mask = pad_left([np.array(p) for p in prompts], 0)
    tokens, mask = pad_responses([[np.array(r, np.int64) for r in row] for row in responses], 0)
    scored = mask & (torch.arange(mask.shape[2]) >= scored_from)
    no_image = torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64)
    return PromptRows(prompt_tokens, prompt_mask, *no_image, tokens, mask, scored)


ragged = st.lists(
    st.tuples(st.integers(1, 4), st.lists(st.integers(0, 4), min_size=1, max_size=4)), min_size=1, max_size=3
)


@st.composite
def numbered_rows(draw) -> tuple[list[list[int]], list[list[list[int]]], int]:
    """Prompts and responses of any lengths whose tokens are all different, and where scoring starts."""
    fresh, prompts, responses = iter(range(100, 1000)), [], []
    for prompt_length, lengths in draw(ragged.filter(lambda rows: any(sum(lengths) for _, lengths in rows))):
        prompts.append([next(fresh) for _ in range(prompt_length)])
        responses.append([[next(fresh) for _ in range(length)] for length in lengths])
    return prompts, responses, draw(st.integers(0, 2))


def test_two_responses_are_packed_behind_their_prompt_without_gaps() -> None:
    packed = pack_rows(rows_of([[1, 2]], [[[11, 12], [21]]]))
    assert packed.tokens.tolist() == [[1, 2, 11, 12, 21]]
    assert packed.steps.tolist() == [[0, 1, 0]]
    assert packed.predictors.tolist() == [1, 2, 1]
    assert packed.targets.tolist() == [11, 12, 21]
    assert packed.places.tolist() == [0, 1, 2]
    assert packed.attends[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]


@given(numbered_rows())
def test_a_token_sees_exactly_its_prompt_and_what_came_before_it_in_its_own_response(case) -> None:
    prompts, responses, _ = case
    packed = pack_rows(rows_of(prompts, responses))
    for b, (prompt, row) in enumerate(zip(prompts, responses, strict=True)):
        tokens = packed.tokens[b].tolist()
        for response in row:
            for t, token in enumerate(response):
                seen = packed.attends[b, 0, tokens.index(token)]
                assert packed.tokens[b][seen].tolist() == prompt + response[: t + 1]
        for p, token in enumerate(prompt):
            assert packed.tokens[b][packed.attends[b, 0, tokens.index(token)]].tolist() == prompt[: p + 1]


@given(numbered_rows())
def test_every_query_sees_a_key_padding_only_itself_or_what_is_real(case) -> None:
    prompts, responses, _ = case
    packed = pack_rows(rows_of(prompts, responses))
    padding = packed.tokens == 0
    assert packed.attends.any(-1).all()
    others = packed.attends[:, 0] & ~torch.eye(packed.tokens.shape[1], dtype=torch.bool)
    assert not (others & padding[:, None, :]).any()


@given(numbered_rows())
def test_each_scored_token_knows_its_predecessor_and_its_place(case) -> None:
    prompts, responses, scored_from = case
    rows = rows_of(prompts, responses, scored_from)
    packed = pack_rows(rows)
    found = {
        target: (before, place)
        for target, before, place in zip(
            packed.targets.tolist(),
            packed.tokens.flatten()[packed.predictors].tolist(),
            packed.places.tolist(),
            strict=True,
        )
    }
    scored = {
        token: ([*prompt, *response][len(prompt) + t - 1], int((rows.response_tokens.flatten() == token).nonzero()))
        for prompt, row in zip(prompts, responses, strict=True)
        for response in row
        for t, token in enumerate(response)
        if t >= scored_from
    }
    assert found == scored
    assert len(packed.targets) == len(scored)


@given(numbered_rows())
def test_steps_count_from_zero_in_each_response(case) -> None:
    prompts, responses, _ = case
    packed = pack_rows(rows_of(prompts, responses))
    num_prompt = packed.tokens.shape[1] - packed.steps.shape[1]
    for b, row in enumerate(responses):
        steps = [t for response in row for t in range(len(response))]
        assert packed.steps[b, : len(steps)].tolist() == steps
        assert packed.tokens[b, num_prompt : num_prompt + len(steps)].tolist() == list(chain(*row))


def test_prompts_are_padded_on_the_left_and_responses_on_the_right() -> None:
    tokens, mask = pad_left([np.array([1, 2, 3]), np.array([4])], 9)
    assert tokens.tolist() == [[1, 2, 3], [9, 9, 4]]
    assert mask.int().tolist() == [[1, 1, 1], [0, 0, 1]]
    tokens, mask = pad_responses([[np.array([1, 2]), np.array([3])], [np.array([4])]], 9)
    assert tokens.tolist() == [[[1, 2], [3, 9]], [[4, 9], [9, 9]]]
    assert mask.int().tolist() == [[[1, 1], [1, 0]], [[1, 0], [0, 0]]]
