"""Shaping and totals, against hand-computed numbers; a slow loop over answers is the oracle of the weighted mean."""

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from rewards.settings import TermShaping
from rewards.shaping import Shaper, group_ranks, passed, quantiles, weighted_mean

NAN = float("nan")
Numbers = dict[str, list[list[float]]]
unit_values = st.lists(
    st.lists(st.one_of(st.just(NAN), st.floats(0, 1)), min_size=4, max_size=4), min_size=1, max_size=5
)


def totals(terms: Numbers, weights: Mapping[str, float], **shaping: TermShaping) -> list[list[float]]:
    found = Shaper(weights, shaping).totals(0, {name: np.array(values) for name, values in terms.items()})
    return [list(row) for row in found]


def steps_of(seed: int, num_steps: int, absent: float = 0.3) -> list[tuple[int, dict[str, NDArray[np.float64]]]]:
    """Terms a and b [3, 4] of each step; b does not apply to a share of the answers."""
    generator = np.random.default_rng(seed)
    drawn = [np.round(generator.random((2, 3, 4)), 1) for _ in range(num_steps)]
    holes = [generator.random((3, 4)) < absent for _ in range(num_steps)]
    return [(step, {"a": a, "b": np.where(holes[step], NAN, b)}) for step, (a, b) in enumerate(drawn)]


def test_the_total_is_the_weighted_mean_of_the_terms() -> None:
    terms = {"mask_iou": [[0.5, 0.0]], "centroid_distance": [[1.0, 0.6]]}
    assert totals(terms, {"mask_iou": 1.0, "centroid_distance": 0.25})[0] == pytest.approx([0.6, 0.12])


def test_a_term_that_does_not_apply_leaves_the_mean_of_the_others() -> None:
    assert totals({"a": [[0.5]], "b": [[NAN]]}, {"a": 1.0, "b": 0.25}) == [[0.5]]


def test_an_answer_to_which_nothing_applies_has_the_mean_total_of_its_group_so_nothing_is_learned_of_it() -> None:
    assert totals({"a": [[NAN, 0.25, 0.75]]}, {"a": 2.0}) == [[0.5, 0.25, 0.75]]


def test_a_group_to_which_nothing_applies_has_the_totals_0() -> None:
    assert totals({"a": [[NAN, NAN]]}, {"a": 2.0}) == [[0.0, 0.0]]
    assert totals({"a": [[NAN]], "b": [[1.0]]}, {"a": 2.0, "b": 0.0}) == [[0.0]]


def test_terms_without_a_weight_count_for_nothing() -> None:
    assert totals({"a": [[0.25]], "b": [[1.0]]}, {"a": 1.0}) == [[0.25]]


def test_scaling_all_weights_leaves_the_totals() -> None:
    terms = {"a": [[0.25, NAN]], "b": [[1.0, 0.5]]}
    assert totals(terms, {"a": 8.0, "b": 24.0}) == totals(terms, {"a": 1.0, "b": 3.0}) == [[0.8125, 0.5]]


def test_groups_without_answers_have_no_totals() -> None:
    for kind in ("raw", "threshold", "power", "rank", "quantile"):
        found = Shaper({"a": 1.0}, {"a": TermShaping(kind=kind)}).totals(0, {"a": np.zeros((2, 0))})
        assert found.shape == (2, 0)


@given(unit_values, st.lists(st.floats(0, 10), min_size=3, max_size=3))
def test_the_weighted_mean_has_the_bits_of_a_loop_over_answers(values: list[list[float]], weights: list[float]) -> None:
    terms = {name: np.roll(np.array(values), k, axis=1) for k, name in enumerate("abc")}
    found = weighted_mean(terms, dict(zip("abc", weights, strict=True)))
    for place in np.ndindex(found.shape):
        weighted = applied = 0.0
        for name, weight in zip("abc", weights, strict=True):
            if not np.isnan(terms[name][place]):
                weighted += weight * float(terms[name][place])
                applied += weight
        assert np.array_equal(found[place], weighted / applied if applied else NAN, equal_nan=True)


def test_a_threshold_is_met_by_itself() -> None:
    assert passed(np.array([0.49, 0.5, 1.0, NAN]), 0.5).tolist() == pytest.approx([0.0, 1.0, 1.0, NAN], nan_ok=True)


def test_power_2_squares_a_term() -> None:
    assert totals({"a": [[0.5, 1.0, NAN]]}, {"a": 1.0}, a=TermShaping("power")) == [[0.25, 1.0, 0.625]]


def test_ranks_run_from_0_to_1_within_the_group_and_ties_share_the_mean_of_theirs() -> None:
    values = np.array([[0.1, 0.4, 0.2, 0.4, 0.0], [0.9, 0.8, 0.7, 0.6, 0.5]])
    assert group_ranks(values).tolist() == [[0.25, 0.875, 0.5, 0.875, 0.0], [1.0, 0.75, 0.5, 0.25, 0.0]]


def test_an_answer_that_a_term_does_not_apply_to_takes_no_rank() -> None:
    assert group_ranks(np.array([[0.9, NAN, 0.1, 0.5]])).tolist() == [pytest.approx([1.0, NAN, 0.0, 0.5], nan_ok=True)]


def test_equal_values_and_a_value_alone_rank_one_half() -> None:
    assert group_ranks(np.array([[0.3, 0.3, 0.3]])).tolist() == [[0.5, 0.5, 0.5]]
    assert group_ranks(np.array([[NAN, 0.3]]))[0].tolist() == pytest.approx([NAN, 0.5], nan_ok=True)


@given(unit_values)
def test_ranks_do_not_change_under_a_monotone_transform(values: list[list[float]]) -> None:
    array = np.round(np.array(values), 3)  # so that no two different values meet when they are transformed
    assert np.array_equal(group_ranks(np.exp(3 * array) - 7), group_ranks(array), equal_nan=True)


@given(unit_values)
def test_ranks_of_a_group_lie_in_0_to_1_around_one_half(values: list[list[float]]) -> None:
    ranks = group_ranks(np.array(values))
    assert np.array_equal(np.isnan(ranks), np.isnan(np.array(values)))
    for row in ranks:
        applying = row[~np.isnan(row)]
        assert not len(applying) or applying.mean() == pytest.approx(0.5)
        assert ((applying >= 0) & (applying <= 1)).all()


def test_a_quantile_is_the_share_below_and_half_the_share_equal() -> None:
    found = quantiles(np.array([0.0, 0.2, 0.5, 0.9, NAN]), np.array([0.5, 0.2, 0.2, 0.8]))
    assert found.tolist() == pytest.approx([0.0, 0.25, 0.625, 1.0, NAN], nan_ok=True)


def test_quantiles_are_taken_among_the_last_values_with_those_of_the_step() -> None:
    shaper = Shaper({"a": 1.0}, {"a": TermShaping("quantile", history=4)})
    assert shaper.totals(0, {"a": np.array([[0.2, NAN, 0.6]])}).tolist() == [[0.25, 0.5, 0.75]]
    assert shaper.totals(1, {"a": np.array([[0.4, 0.6]])}).tolist() == [[0.375, 0.75]]  # among 0.2 0.6 0.4 0.6
    assert shaper.totals(2, {"a": np.array([[1.0]])}).tolist() == [[0.875]]  # 0.2 is forgotten


def test_a_history_shorter_than_a_step_holds_the_end_of_the_step() -> None:
    shaper = Shaper({"a": 1.0}, {"a": TermShaping("quantile", history=2)})
    assert shaper.totals(0, {"a": np.array([[0.9, 0.1, 0.3]])}).tolist() == [[1.0, 0.25, 0.75]]


@given(st.lists(unit_values, min_size=1, max_size=5), st.integers(1, 30))
def test_quantiles_lie_in_0_to_1_and_keep_the_order(steps: list[list[list[float]]], history: int) -> None:
    shaper = Shaper({"a": 1.0}, {"a": TermShaping("quantile", history=history)})
    for step, values in enumerate(steps):
        array = np.array(values)
        shaped = shaper.shape(step, {"a": array}).terms["a"]
        assert np.array_equal(np.isnan(shaped), np.isnan(array))
        rising = shaped[~np.isnan(array)][np.argsort(array[~np.isnan(array)])]
        assert (np.diff(rising) >= 0).all()
        assert ((rising >= 0) & (rising <= 1)).all()


def test_the_weighted_mean_itself_can_be_shaped() -> None:
    terms = {"a": [[0.0, 0.5, 1.0, NAN]], "b": [[0.5, 1.0, 0.0, NAN]]}  # means 0.25, 0.75, 0.5, none
    assert totals(terms, {"a": 1.0, "b": 1.0}, total=TermShaping("rank")) == [[0.0, 1.0, 0.5, 0.5]]
    assert totals(terms, {"a": 1.0, "b": 1.0}, total=TermShaping("threshold")) == [[0.0, 1.0, 1.0, 2 / 3]]


def test_terms_are_shaped_before_the_mean_and_each_in_its_own_way() -> None:
    shaping = {"a": TermShaping("threshold", threshold=0.6), "b": TermShaping("rank")}
    assert totals({"a": [[0.5, 0.7]], "b": [[0.1, 0.2]], "c": [[0.3, 0.3]]}, {"a": 2, "b": 1, "c": 1}, **shaping) == [
        [pytest.approx(0.3 / 4), pytest.approx((2 + 1 + 0.3) / 4)]
    ]


def test_weights_and_thresholds_move_over_the_steps() -> None:
    a = TermShaping("threshold", weight_schedule=[[0, 1.0], [10, 3.0]], threshold_schedule=[[0, 0.2], [10, 0.8]])
    shaper, terms = Shaper({"a": 9.0, "b": 1.0}, {"a": a}), {"a": np.array([[0.5, 0.9]]), "b": np.zeros((1, 2))}
    assert shaper.totals(0, terms).tolist() == [[0.5, 0.5]]
    assert shaper.totals(5, terms)[0].tolist() == pytest.approx([2 / 3, 2 / 3])
    assert shaper.totals(10, terms).tolist() == [[0.0, 0.75]]
    assert (shaper.weights_at(5), shaper.thresholds_at(5)) == ({"a": 2.0, "b": 1.0}, {"a": pytest.approx(0.5)})


HISTORIES = [
    {"b": TermShaping("quantile", history=30)},
    {"total": TermShaping("quantile", history=25)},
    {
        "a": TermShaping("quantile", history=7, weight_schedule=[[0, 1.0], [50, 0.0]]),
        "b": TermShaping("quantile", history=40),
        "total": TermShaping("quantile", history=30),
    },
]


@pytest.mark.parametrize("shaping", HISTORIES)
def test_a_shaper_that_replayed_the_past_goes_on_bit_for_bit(shaping: dict[str, TermShaping]) -> None:
    steps, weights = steps_of(0, 30), {"a": 1.0, "b": 0.7}
    through, resumed = Shaper(weights, shaping), Shaper(weights, shaping)
    for step, terms in steps[:20]:
        through.observe(step, terms)
    resumed.replay(reversed(steps[:20]))
    for step, terms in steps[20:]:
        assert np.array_equal(resumed.totals(step, terms), through.totals(step, terms))


@pytest.mark.parametrize(
    ("shaping", "taken"),
    [
        ({}, 0),
        ({"a": TermShaping("rank")}, 0),
        ({"a": TermShaping("quantile", history=24)}, 2),
        ({"a": TermShaping("quantile", history=25)}, 3),
        ({"b": TermShaping("quantile", history=25)}, 5),  # it applies to half of the answers
        ({"a": TermShaping("quantile", history=25), "total": TermShaping("quantile", history=12)}, 3),
        ({"a": TermShaping("quantile", history=25), "total": TermShaping("quantile", history=24)}, 4),
    ],
)
def test_a_replay_reads_no_more_steps_than_can_matter(shaping: dict[str, TermShaping], taken: int) -> None:
    half = {"a": np.full((3, 4), 0.5), "b": np.array([[0.5, NAN, 0.5, NAN]] * 3)}
    past = iter([(step, half) for step in reversed(range(20))])
    Shaper({"a": 1.0, "b": 1.0}, shaping).replay(past)
    assert 20 - len(list(past)) == taken


def test_a_weight_that_names_no_term_is_refused_with_the_terms_there_are() -> None:
    with pytest.raises(ValueError, match=r"weight for boundary_iou.*only the terms mask_iou"):
        totals({"mask_iou": [[0.5]]}, {"boundary_iou": 1.0})


@pytest.mark.parametrize("weight", [-0.1, NAN, float("inf")])
def test_a_negative_or_non_finite_weight_is_refused_by_name(weight: float) -> None:
    with pytest.raises(ValueError, match="The weight of a is"):
        Shaper({"a": weight})


@pytest.mark.parametrize("weights", [{}, {"a": 0.0}])
def test_weights_that_are_all_0_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="at step 0; set at least one above 0"):
        Shaper(weights)


def test_weights_that_are_all_0_at_a_later_step_are_refused_with_the_step() -> None:
    fading = TermShaping(weight_schedule=[[0, 1.0], [100, 0.0]])
    with pytest.raises(ValueError, match=r"'a': 0.0\} at step 100"):
        Shaper({"a": 1.0}, {"a": fading})
    Shaper({"a": 1.0, "b": 0.1}, {"a": fading})


def test_a_reward_called_total_is_refused() -> None:
    with pytest.raises(ValueError, match="A reward is called total"):
        Shaper({"total": 1.0})


@pytest.mark.parametrize(
    ("name", "term", "message"),
    [
        ("mask_iuo", TermShaping(), r"shaping.mask_iuo names no reward; did you mean 'mask_iou'\? Rewards: mask_iou"),
        (
            "mask_iou",
            TermShaping("rnak"),
            r"shaping.mask_iou.kind is 'rnak'; did you mean 'rank'\? Set it to raw",
        ),
        ("mask_iou", TermShaping(threshold=0.7), "threshold is 0.7, of no use to kind raw; set kind: threshold or rem"),
        ("mask_iou", TermShaping("rank", history=9), "history is 9, of no use to kind rank; set kind: quantile"),
        ("total", TermShaping(threshold_schedule=[[0, 0.5]]), "shaping.total.threshold_schedule is .* of no use"),
        ("total", TermShaping(weight_schedule=[[0, 1.0]]), "the weighted mean has no weight; remove it"),
        ("mask_iou", TermShaping("threshold", threshold=1.5), "shaping.mask_iou.threshold is 1.5; set it to 0..1"),
        ("mask_iou", TermShaping("power", power=0.0), "shaping.mask_iou.power is 0.0; set it to more than 0"),
        ("mask_iou", TermShaping("quantile", history=0), "history is 0; set it to 1 or more"),
        ("mask_iou", TermShaping(weight_schedule=[[0]]), r"weight_schedule\[0\] is \[0\]; give \[step, value\]"),
        ("mask_iou", TermShaping(weight_schedule=[[0, -1.0]]), "the value from 0 to inf"),
        ("mask_iou", TermShaping(weight_schedule=[[0, NAN]]), "the value from 0 to inf"),
        ("mask_iou", TermShaping("threshold", threshold_schedule=[[0, 2.0]]), "the value from 0 to 1"),
        ("mask_iou", TermShaping(weight_schedule=[[5, 1.0], [5, 2.0]]), r"\[1\] is at step 5, after 5; let steps grow"),
    ],
)
def test_a_wrong_shaping_is_refused_by_its_setting(name: str, term: TermShaping, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Shaper({"mask_iou": 1.0}, {name: term})
