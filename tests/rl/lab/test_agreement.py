import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import kendalltau

from rl.algorithms.gspo import Algorithm
from rl.lab.compare import ConfigSums, DirectionSums, Distribution, Judged, PairSums, StepPlace, kendall

# Group 0: A likes the first answer, B the last. Group 1: both agree. Group 2: B sees no difference.
A = np.array([[0.9, 0.5, 0.1], [0.1, 0.2, 0.3], [0.0, 0.5, 1.0]])
B = np.array([[0.1, 0.5, 0.9], [0.1, 0.2, 0.3], [0.5, 0.5, 0.5]])
PLACE = StepPlace(7, ["x", "y", "z"])


def judged(totals: np.ndarray) -> Judged:
    return Judged.by(Algorithm(), totals)


def test_tau_is_1_for_the_same_order_and_minus_1_for_the_opposite() -> None:
    assert kendall(A, B)[:2].tolist() == [-1, 1]


def test_tau_of_a_group_that_is_told_apart_nowhere_is_nan() -> None:
    assert np.isnan(kendall(A, B)[2])


def test_a_tie_on_one_side_costs_agreement() -> None:
    # Pairs of (1, 2, 3) against (1, 2, 2): two alike, one tied: 2 / sqrt(3 * 2).
    assert kendall(np.array([[1.0, 2, 3]]), np.array([[1.0, 2, 2]])) == pytest.approx(2 / np.sqrt(6))


def test_a_term_that_does_not_apply_leaves_its_pairs_out() -> None:
    assert kendall(np.array([[1.0, 2, 3]]), np.array([[2.0, np.nan, 1.0]])) == -1


@given(arrays(np.float64, (2, 3, 6), elements=st.integers(0, 4).map(float)))
def test_tau_is_that_of_scipy(values: np.ndarray) -> None:
    expected = [kendalltau(a, b).statistic for a, b in zip(*values, strict=True)]
    assert kendall(*values) == pytest.approx(np.array(expected), nan_ok=True)


def test_a_distribution_over_two_steps_is_that_of_all_numbers() -> None:
    values = Distribution()
    values.add(np.array([[0.0, 1.0], [np.nan, 0.26]]))
    values.add(np.array([0.5]))
    assert values.mean == pytest.approx(1.76 / 4) and values.absent_share == 0.2
    assert values.std == pytest.approx(np.std([0, 1, 0.26, 0.5]))
    assert np.flatnonzero(values.counts).tolist() == [0, 5, 10, 19]


def test_an_empty_distribution_has_no_mean() -> None:
    assert np.isnan(Distribution().mean) and np.isnan(Distribution().std)


def test_spread_and_silence_are_means_over_groups() -> None:
    sums = ConfigSums()
    sums.add({"mine": B}, judged(B), {"vertices": A})
    stds = [np.std([0.1, 0.5, 0.9]), np.std([0.1, 0.2, 0.3]), 0]
    assert sums.spread.mean == pytest.approx(np.mean(stds))
    assert sums.silent.mean == pytest.approx(1 / 3)
    assert sums.agreement["vertices"].mean == 0  # of -1 and 1; the third group has no order to agree with


def test_only_answers_with_opposite_advantages_are_disagreements() -> None:
    pair = PairSums()
    pair.add(PLACE, judged(A), judged(B), {"vertices": np.array([[8.0, 5, 2], [1, 1, 1], [1, 1, 1]])})
    assert pair.first_only.share.mean == pytest.approx(1 / 9)
    assert pair.first_only.deviations["vertices"].mean == 3  # 8 vertices where the group has 5
    assert pair.second_only.deviations["vertices"].mean == -3
    assert pair.same_best.mean == pytest.approx(2 / 3)


def test_a_disagreement_names_its_answer_and_both_opinions() -> None:
    pair = PairSums()
    pair.add(PLACE, judged(A), judged(B), {})
    found = pair.first_only.largest[0]
    assert (found.step, found.position, found.index, found.example_id) == (7, 0, 0, "x")
    assert found.totals == (0.9, 0.1)
    # Deviation 0.4 over std 0.3266 + floor 0.01.
    assert found.advantages == pytest.approx((0.4 / 0.33660, -0.4 / 0.33660), abs=1e-4)
    assert found.size == pytest.approx(1.18836, abs=1e-4)


def test_the_largest_are_kept_over_steps_one_an_example() -> None:
    direction = DirectionSums(num_shown=2)
    for step, gap in enumerate([0.10, 0.40, 0.20, 0.15]):
        up = np.array([[0.5 + gap, 0.5, 0.5 - gap]])
        direction.add(StepPlace(step, ["x" if step < 2 else f"x{step}"]), (judged(up), judged(up[:, ::-1])), {})
    assert [(found.step, found.example_id) for found in direction.largest] == [(1, "x"), (2, "x2")]
    assert direction.share.mean == pytest.approx(1 / 3)
