"""Totals, against hand-computed numbers."""

import pytest

from rewards.shaping import totals


def test_the_total_is_the_weighted_mean_of_the_terms() -> None:
    terms = [{"mask_iou": 0.5, "centroid_distance": 1.0}, {"mask_iou": 0.0, "centroid_distance": 0.6}]
    assert totals(terms, {"mask_iou": 1.0, "centroid_distance": 0.25}).tolist() == pytest.approx([0.6, 0.12])


def test_a_term_that_does_not_apply_leaves_the_mean_of_the_others() -> None:
    terms = [{"mask_iou": 0.5, "centroid_distance": None}]
    assert totals(terms, {"mask_iou": 1.0, "centroid_distance": 0.25}).tolist() == [0.5]


def test_an_answer_to_which_nothing_applies_has_the_total_0() -> None:
    assert totals([{"a": None}, {"a": 0.25}], {"a": 2.0}).tolist() == [0.0, 0.25]
    assert totals([{"a": None, "b": 1.0}], {"a": 2.0, "b": 0.0}).tolist() == [0.0]


def test_terms_without_a_weight_count_for_nothing() -> None:
    assert totals([{"a": 0.25, "b": 1.0}], {"a": 1.0}).tolist() == [0.25]


def test_scaling_all_weights_leaves_the_totals() -> None:
    terms = [{"a": 0.25, "b": 1.0}, {"a": None, "b": 0.5}]
    scaled = totals(terms, {"a": 8.0, "b": 24.0}).tolist()
    assert scaled == totals(terms, {"a": 1.0, "b": 3.0}).tolist() == pytest.approx([0.8125, 0.5])


def test_a_group_without_answers_has_no_totals() -> None:
    assert totals([], {"a": 1.0}).shape == (0,)


def test_a_weight_that_names_no_term_is_refused_with_the_terms_there_are() -> None:
    with pytest.raises(ValueError, match=r"weight for boundary_iou.*only the terms mask_iou"):
        totals([{"mask_iou": 0.5}], {"boundary_iou": 1.0})


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_a_negative_or_non_finite_weight_is_refused_by_name(weight: float) -> None:
    with pytest.raises(ValueError, match="The weight of a is"):
        totals([{"a": 0.5}], {"a": weight})


@pytest.mark.parametrize("weights", [{}, {"a": 0.0}])
def test_weights_that_are_all_0_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="at least one above 0"):
        totals([{"a": 0.5}], weights)
