"""Plans of micro-batches: every group once, none above the budget, all ranks in step; by hand and for any lengths."""

from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.learner.micro_batches import (
    GroupTokens,
    PassBudget,
    Round,
    budgeted_micro_batches,
    even_micro_batches,
    refuse_small_budget,
)
from rl.learner.micro_batches import (
    PlannedMicroBatch as Micro,
)


def tokens(prompts: list[int], answers: list[int]) -> GroupTokens:
    return GroupTokens(np.array(prompts), np.array(answers))


def weighing(rounds: list[Round]) -> list[Micro]:
    return [one for one in chain(*rounds) if one.weighs]


def test_even_passes_deal_groups_to_ranks_in_turn() -> None:
    found = even_micro_batches([4, 5, 6, 7, 8, 9, 10, 11], size=2, ranks=2)
    assert found == [
        (Micro((4, 6)), Micro((5, 7))),
        (Micro((8, 10)), Micro((9, 11))),
    ]


def test_groups_of_like_length_share_a_pass_and_the_longest_come_first() -> None:
    lengths = tokens([10] * 5, [90, 10, 80, 15, 10])
    # 100 + 90 tokens in a micro-batch of two would be 2 x 100; the three short ones are 3 x 25.
    assert budgeted_micro_batches(range(5), lengths, PassBudget(200), ranks=1) == [
        (Micro((0, 2)),),
        (Micro((3, 1, 4)),),
    ]
    assert budgeted_micro_batches(range(5), lengths, PassBudget(199), ranks=1) == [
        (Micro((0,)),),
        (Micro((2,)),),
        (Micro((3, 1, 4)),),
    ]


def test_padding_counts_the_longest_prompt_beside_the_longest_answers() -> None:
    lengths = tokens([50, 10], [10, 50])
    assert lengths.padded([0]) == lengths.padded([1]) == 60
    assert lengths.padded([0, 1]) == 200
    assert len(budgeted_micro_batches([0, 1], lengths, PassBudget(199), ranks=1)) == 2


def test_a_pass_is_halved_before_a_rank_repeats_one() -> None:
    lengths = tokens([10] * 3, [10] * 3)
    assert budgeted_micro_batches([0, 1, 2], lengths, PassBudget(60), ranks=2) == [(Micro((0,)), Micro((1, 2)))]
    found = budgeted_micro_batches([0, 1, 2], lengths, PassBudget(20), ranks=2)
    assert found == [
        (Micro((0,)), Micro((1,))),
        (Micro((2,)), Micro((2,), weighs=False)),
    ]


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 90)), min_size=1, max_size=12),
    st.integers(130, 600),
    st.integers(1, 4),
)
def test_every_group_weighs_once_no_pass_is_above_the_budget_and_ranks_stay_in_step(sizes, budget, ranks) -> None:
    lengths = tokens(*map(list, zip(*sizes, strict=True)))
    groups = list(range(1, len(sizes)))[::2] or [0]
    rounds = budgeted_micro_batches(groups, lengths, PassBudget(budget), ranks)
    assert all(len(at_once) == ranks for at_once in rounds)
    assert sorted(chain(*(one.groups for one in weighing(rounds)))) == sorted(groups)
    assert all(lengths.padded(one.groups) <= budget for one in chain(*rounds))
    # Repeats fill at most the last round, and none where a rank could still have been given groups of its own.
    repeats = [one for one in chain(*rounds) if not one.weighs]
    assert len(repeats) < ranks
    assert not repeats or all(len(one.groups) == 1 for one in weighing(rounds))
    assert rounds == budgeted_micro_batches(groups[::-1], lengths, PassBudget(budget), ranks)


def test_a_group_that_is_above_the_budget_or_could_be_is_refused_with_the_arithmetic() -> None:
    lengths = tokens([10, 20], [50, 80])
    with pytest.raises(ValueError, match=r"group 1 .* 20 prompt \+ 80 answer tokens = 100, more than .* 99, "):
        budgeted_micro_batches([0, 1], lengths, PassBudget(99), ranks=2)
    budgeted_micro_batches([0, 1], lengths, PassBudget(100), ranks=2)
    refuse_small_budget(PassBudget(140), lengths, most_answer_tokens=120)
    with pytest.raises(ValueError, match=r"20 prompt \+ 120 answer tokens = 140, .* set the budget to 140 or more"):
        refuse_small_budget(PassBudget(139), lengths, most_answer_tokens=120)


def test_a_budget_of_patches_cuts_too_and_an_image_above_it_is_refused() -> None:
    lengths = GroupTokens(np.array([10, 10, 10]), np.array([5, 5, 5]), np.array([40, 24, 16]))
    assert budgeted_micro_batches(range(3), lengths, PassBudget(45), ranks=1) == [(Micro((0, 1, 2)),)]
    assert budgeted_micro_batches(range(3), lengths, PassBudget(45, patches=40), ranks=1) == [
        (Micro((0,)),),
        (Micro((1, 2)),),
    ]
    with pytest.raises(ValueError, match=r"^the image of group 0 of the step has 40 patches, more than .* 39; set it"):
        refuse_small_budget(PassBudget(45, patches=39), lengths)
