import numpy as np
import pytest
import torch

from rl.algorithms.best_of import Algorithm


def test_the_best_answer_of_a_group_weighs_as_much_as_the_whole_group_and_the_first_of_equals_is_taken() -> None:
    totals = np.array([[0.1, 0.9, 0.5], [0.7, 0.2, 0.7], [0.4, 0.4, 0.4]])
    advantages, counts = Algorithm().advantages(totals)
    assert advantages.tolist() == [[0, 3, 0], [3, 0, 0], [0, 0, 0]]
    assert counts.tolist() == [True, True, False]


def test_the_loss_is_the_mean_over_groups_of_the_best_answers_mean_negative_log_likelihood() -> None:
    new = torch.tensor([[[-1.0, -3.0], [-9.0, -9.0]], [[-9.0, -9.0], [-5.0, 0.0]]], requires_grad=True)
    mask = torch.tensor([[[True, True], [True, True]], [[True, True], [True, False]]])
    algorithm = Algorithm()
    terms = algorithm.terms(new, new.detach(), mask, torch.tensor([[2.0, 0.0], [0.0, 2.0]]))
    loss = algorithm.loss(terms, torch.full((2, 2), 0.25))
    assert float(loss.detach()) == pytest.approx((2.0 + 5.0) / 2)
    loss.backward()
    assert new.grad is not None
    assert new.grad.tolist() == [[[-0.25, -0.25], [0, 0]], [[0, 0], [-0.5, 0]]]
    assert terms.ratio.flatten().tolist() == [1.0] * 4 and not terms.clipped.any()


def test_settings_of_clipping_may_be_left_as_another_algorithm_had_them() -> None:
    assert Algorithm(clip_low=0.5, clip_high=0.004).clip_low == 0.5


def test_an_old_policy_far_away_changes_the_logged_ratio_and_nothing_else() -> None:
    new, mask = torch.tensor([[[-1.0], [-2.0]]], requires_grad=True), torch.ones(1, 2, 1, dtype=torch.bool)
    terms = Algorithm().terms(new, torch.tensor([[[-3.0], [-2.0]]]), mask, torch.tensor([[2.0, 0.0]]))
    assert terms.ratio.flatten().tolist() == pytest.approx([float(np.exp(2.0)), 1.0])
    assert terms.objective.tolist() == [[-2.0, 0.0]]
