"""Plans of micro-batches: every group once, none above the budget, all ranks in step; by hand and for any lengths."""

from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.learner.batches.micro_batches import (
    GroupTokens,
    PassBudget,
    Round,
    budgeted_micro_batches,
    even_micro_batches,
    refuse_small_budget,
)
from rl.learner.batches.micro_batches import (
    PlannedMicroBatch as Micro,
)


def tokens(prompts: list[int], answers: list[int]) -> GroupTokens:
    return GroupTokens(np.array(prompts), np.array(answers))


def weighing(rounds: list[Round]) -> list[Micro]:
    return [one for one in chain(*rounds) if one.weighs]


def test_even_passes_hold_groups_of_like_length_and_those_of_a_round_are_alike() -> None:
    answers = [0, 0, 0, 0, 30, 80, 10, 50, 70, 40, 20, 60]
    found = even_micro_batches(range(4, 12), tokens([10] * 12, answers), size=2, ranks=2)
    assert found == [
        (Micro((5, 8)), Micro((11, 7))),
        (Micro((10, 6)), Micro((9, 4))),  # to and fro
    ]
    alike = even_micro_batches([3, 0, 2, 1], tokens([10] * 4, [5] * 4), size=1, ranks=2)
    assert alike == [(Micro((0,)), Micro((1,))), (Micro((3,)), Micro((2,)))]


def test_of_equally_long_groups_those_with_more_patches_come_first() -> None:
    lengths = GroupTokens(np.array([10, 10, 10]), np.array([5, 5, 5]), np.array([16, 40, 24]))
    assert even_micro_batches(range(3), lengths, size=1, ranks=1) == [(Micro((1,)),), (Micro((2,)),), (Micro((0,)),)]


def waited(rounds: list[Round], lengths: GroupTokens) -> float:
    """Share of the ranks' time that is waiting or padding, where a pass takes as long as it has tokens."""
    spent = sum(len(at_once) * max(lengths.padded(one.groups) for one in at_once) for at_once in rounds)
    return 1 - int((lengths.prompts + lengths.answers).sum()) / spent


@pytest.mark.parametrize(("size", "share"), [(1, 0.25), (2, 0.6)])
def test_of_made_lengths_ranks_wait_for_a_quarter_of_what_they_waited_by_position(size: int, share: float) -> None:
    """64 groups of 8 answers, 100 to 512 tokens each, behind prompts of 600 to 1,400; four ranks, mini-batches of 32.

    size: groups a micro-batch; share: what is left of the waste.
    """
    rng, before, after = np.random.default_rng(0), [], []
    for _ in range(20):
        each = np.clip(rng.lognormal(5.4, 0.5, (64, 1)) * rng.lognormal(0, 0.2, (64, 8)), 100, 512)
        lengths = GroupTokens(rng.integers(600, 1400, 64), each.sum(1).astype(np.int64))
        for first in (0, 32):
            here = lengths.of(range(first, first + 32))
            places = np.arange(32).reshape(-1, 4, size).tolist()
            by_position = [tuple(Micro(tuple(one)) for one in at_once) for at_once in places]
            before.append(waited(by_position, here))
            after.append(waited(even_micro_batches(range(32), here, size, 4), here))
    assert np.mean(before) > 0.2
    assert np.mean(after) < share * np.mean(before)


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
    assert budgeted_micro_batches([0, 1, 2], lengths, PassBudget(60), ranks=2) == [(Micro((1, 2)), Micro((0,)))]
    found = budgeted_micro_batches([0, 1, 2], lengths, PassBudget(20), ranks=2)
    assert found == [
        (Micro((0,)), Micro((1,))),
        (Micro((2,), weighs=False), Micro((2,))),  # to and fro
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


def test_micro_batches_of_as_much_work_share_a_round_patches_counted() -> None:
    """Shares of the budgets: 20 / 40 + 10 / 100, 0.5 + 0.9, 0.45 + 0.85, 0.4 + 0.1."""
    lengths = GroupTokens(np.array([10] * 4), np.array([10, 10, 8, 6]), np.array([10, 90, 85, 10]))
    budget = PassBudget(40, patches=100)
    assert [round(lengths.work([k], budget), 6) for k in range(4)] == [0.6, 1.4, 1.3, 0.5]
    found = budgeted_micro_batches(range(4), lengths, PassBudget(20, patches=100), ranks=2)
    assert found == [(Micro((1,)), Micro((2,))), (Micro((3,)), Micro((0,)))]


def test_a_budget_of_patches_cuts_too_and_an_image_above_it_is_refused() -> None:
    lengths = GroupTokens(np.array([10, 10, 10]), np.array([5, 5, 5]), np.array([40, 24, 16]))
    assert budgeted_micro_batches(range(3), lengths, PassBudget(45), ranks=1) == [(Micro((0, 1, 2)),)]
    assert budgeted_micro_batches(range(3), lengths, PassBudget(45, patches=40), ranks=1) == [
        (Micro((1, 2)),),
        (Micro((0,)),),
    ]
    with pytest.raises(ValueError, match=r"^the image of group 0 of the step has 40 patches, more than .* 39; set it"):
        refuse_small_budget(PassBudget(45, patches=39), lengths)
