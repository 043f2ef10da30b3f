import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.heads.base import RefinerPass
from rl.config.refiner import RefinerStage, RefinerTraining
from rl.refiner.loss import CropTruth, crop_iou, dice_losses, mask_losses, near_boundary, pass_losses

TRAINING, STAGE = RefinerTraining(others_share=0.0), RefinerStage()
FOCAL = RefinerTraining(mask_loss="focal")


def truth(true: list[list[float]], counted: list[list[float]] | None = None, area: float | None = None) -> CropTruth:
    """One crop; area: what is inside it where left out."""
    cells = torch.tensor([true])
    kept = torch.ones_like(cells) if counted is None else torch.tensor([counted])
    return CropTruth(cells, kept, torch.tensor([float((cells * kept).sum()) if area is None else area]))


def logits(*masks: list[list[float]]) -> torch.Tensor:
    return torch.tensor([masks], dtype=torch.float32)


HALF = [[1.0, 1.0], [0.0, 0.0]]
"""The upper row is inside."""


def test_cross_entropy_of_an_undecided_mask_is_ln_2_and_of_chances_of_three_quarters_ln_4_thirds() -> None:
    undecided = mask_losses(logits([[0.0, 0.0], [0.0, 0.0]]), truth(HALF), TRAINING, 0.0)
    assert undecided.tolist() == [[pytest.approx(math.log(2))]]
    odds = math.log(3)  # of a chance of 3/4
    right, wrong = [[odds, odds], [-odds, -odds]], [[-odds, -odds], [odds, odds]]
    both = mask_losses(logits(right, wrong), truth(HALF), TRAINING, 0.0)
    assert both.tolist() == [[pytest.approx(math.log(4 / 3)), pytest.approx(math.log(4))]]


def test_focal_loss_is_cross_entropy_times_the_squared_chance_of_the_wrong_side() -> None:
    odds = math.log(3)
    right, wrong = [[odds, odds], [-odds, -odds]], [[-odds, -odds], [odds, odds]]
    both = mask_losses(logits(right, wrong), truth(HALF), FOCAL, 0.0)
    assert both.tolist() == [[pytest.approx(math.log(4 / 3) / 16), pytest.approx(math.log(4) * 9 / 16)]]
    unfocused = mask_losses(logits(right), truth(HALF), replace(FOCAL, focal_gamma=0.0), 0.0)
    assert unfocused.tolist() == [[pytest.approx(math.log(4 / 3))]]


@pytest.mark.parametrize("training", [TRAINING, FOCAL])
@pytest.mark.parametrize("sure", [1.0, 60.0])
def test_the_gradient_of_a_mask_loss_points_to_the_truth_and_stays_finite(
    training: RefinerTraining, sure: float
) -> None:
    asked = logits([[sure, -sure], [sure, -sure]]).requires_grad_()
    mask_losses(asked, truth(HALF), training, 0.0).sum().backward()
    assert asked.grad is not None and torch.isfinite(asked.grad).all()
    assert asked.grad[0, 0, 0, 1] < 0 < asked.grad[0, 0, 1, 0]  # up where inside was missed, down where outside drawn


def test_ignored_cells_count_in_no_loss_and_no_iou() -> None:
    # The right column is ignored, where the mask is wrong both times; of the left, one cell is right at ln(4/3).
    odds = math.log(3)
    drawn, ignored = logits([[odds, -90.0], [odds, 90.0]]), [[1.0, 0.0], [1.0, 0.0]]
    told = truth(HALF, ignored)
    assert mask_losses(drawn, told, TRAINING, 0.0).item() == pytest.approx((math.log(4 / 3) + math.log(4)) / 2)
    # Soft 3/4 and 3/4, true 1 and 0: overlap 3/4, sums 3/2 and 1, smoothed by 1.
    assert dice_losses(drawn, told).item() == pytest.approx(1 - (2 * 0.75 + 1) / (1.5 + 1 + 1))
    assert crop_iou(drawn > 0, told).item() == pytest.approx(1 / 2)
    nothing = truth(HALF, [[0.0, 0.0], [0.0, 0.0]])
    assert mask_losses(drawn, nothing, TRAINING, 0.0).item() == dice_losses(drawn, nothing).item() == 0


def test_dice_of_an_undecided_mask_over_a_half_true_crop_is_0_4_and_of_a_sure_one_0() -> None:
    assert dice_losses(logits([[0.0, 0.0], [0.0, 0.0]]), truth(HALF)).item() == pytest.approx(0.4)  # 1 - 3 / 5
    sure = [[90.0, 90.0], [-90.0, -90.0]]
    assert dice_losses(logits(sure), truth(HALF)).item() == pytest.approx(0, abs=1e-6)
    assert dice_losses(-logits(sure), truth(HALF)).item() == pytest.approx(1 - 1 / 5)


def test_a_boundary_cell_counts_its_weight_more() -> None:
    # A row of 8: the step between cells 3 and 4 is seen by the cells 2 .. 5, which have logit 0, the others 90.
    row = [[1.0] * 4 + [0.0] * 4] * 8
    drawn = logits([[90.0] * 2 + [0.0] * 4 + [-90.0] * 2] * 8)
    assert mask_losses(drawn, truth(row), TRAINING, 0.0).item() == pytest.approx(math.log(2) / 2)
    # Weights 1 1 4 4 4 4 1 1.
    assert mask_losses(drawn, truth(row), TRAINING, 3.0).item() == pytest.approx(math.log(2) * 16 / 20)


def test_near_the_boundary_are_cells_that_see_both_sides_within_two_and_the_crops_edge_is_none() -> None:
    true = torch.zeros(2, 9, 9)
    true[0, :, :3], true[1] = 1.0, 1.0
    found = near_boundary(true)
    assert found[0].tolist() == [[0.0] + [1.0] * 4 + [0.0] * 4] * 9
    assert not found[1].any()


@settings(max_examples=10)
@given(seed=st.integers(0, 1000))
def test_near_the_boundary_is_what_a_slow_search_finds(seed: int) -> None:
    true = (torch.rand(1, 11, 11, generator=torch.Generator().manual_seed(seed)) > 0.8).float()
    found = near_boundary(true)[0]
    for i in range(11):
        for j in range(11):
            seen = true[0, max(0, i - 2) : i + 3, max(0, j - 2) : j + 3]
            assert found[i, j] == float(seen.min() < seen.max())


def test_crop_iou_counts_what_lies_outside_the_crop() -> None:
    drawn, true = torch.tensor([[[[True, True], [False, False]]]]), [[1.0, 0.0], [1.0, 0.0]]
    assert crop_iou(drawn, truth(true)).item() == pytest.approx(1 / 3)
    assert crop_iou(drawn, truth(true, area=5.0)).item() == pytest.approx(1 / 6)


def test_crop_iou_of_nothing_with_nothing_is_1_and_with_something_outside_0() -> None:
    drawn, nothing = torch.zeros(1, 1, 2, 2, dtype=torch.bool), [[0.0, 0.0], [0.0, 0.0]]
    assert crop_iou(drawn, truth(nothing)).item() == 1
    assert crop_iou(drawn, truth(nothing, area=3.0)).item() == 0


def test_crop_iou_is_of_each_mask_and_each_crop() -> None:
    drawn = torch.tensor([[[[True, True]], [[True, False]]], [[[False, True]], [[False, False]]]])
    told = CropTruth(torch.tensor([[[1.0, 1.0]], [[1.0, 1.0]]]), torch.ones(2, 1, 2), torch.tensor([2.0, 4.0]))
    assert crop_iou(drawn, told).tolist() == [[1.0, 0.5], [0.25, 0.0]]


def two_masks() -> tuple[RefinerPass, torch.Tensor]:
    """The second mask is the better one, but predicted to be the worse; the input is the whole crop."""
    drawn = logits([[-1.0, 1.0], [1.0, 1.0]], [[2.0, 2.0], [-2.0, 1.0]]).requires_grad_()
    predicted = torch.tensor([[0.9, 0.5]], requires_grad=True)
    return RefinerPass(drawn, predicted, torch.tensor([0.25], requires_grad=True)), torch.ones(1, 2, 2)


def test_only_the_best_mask_is_held_to_the_truth_whatever_is_predicted_of_it() -> None:
    found, inputs = two_masks()
    losses = pass_losses(found, inputs, truth(HALF), TRAINING, STAGE)
    second = found.logits[:, 1:]
    assert losses.mask.item() == pytest.approx(mask_losses(second, truth(HALF), TRAINING, 0.0).item())
    assert losses.dice.item() == pytest.approx(dice_losses(second, truth(HALF)).item())
    (losses.mask + losses.dice).backward()
    assert found.logits.grad is not None
    assert not found.logits.grad[:, 0].any() and found.logits.grad[:, 1].all()
    assert found.predicted_iou.grad is None


def test_all_masks_together_have_the_share_of_the_loss_that_is_theirs() -> None:
    found, inputs = two_masks()
    best, shared, mean = (
        pass_losses(found, inputs, truth(HALF), replace(TRAINING, others_share=share), STAGE) for share in (0, 0.1, 1)
    )
    assert mean.mask.item() == pytest.approx(mask_losses(found.logits, truth(HALF), TRAINING, 0.0).mean().item())
    for name in ("mask", "dice"):
        expected = 0.9 * vars(best)[name].item() + 0.1 * vars(mean)[name].item()
        assert vars(shared)[name].item() == pytest.approx(expected)
    assert shared.iou.item() == best.iou.item()
    (shared.mask + shared.dice).backward()
    assert found.logits.grad is not None and found.logits.grad.all()


def test_the_predicted_iou_of_all_masks_and_of_the_input_is_held_to_what_it_is() -> None:
    found, inputs = two_masks()
    iou = pass_losses(found, inputs, truth(HALF), TRAINING, STAGE).iou
    # The first mask overlaps 1 of 4 cells, the second 2 of 3, the input 2 of 4.
    assert iou.item() == pytest.approx(((0.9 - 1 / 4) ** 2 + (0.5 - 2 / 3) ** 2) / 2 + (0.25 - 2 / 4) ** 2)
    iou.backward()
    assert found.predicted_iou.grad is not None and found.predicted_iou.grad.all()
    assert found.logits.grad is None


def test_each_crop_has_its_own_best_mask() -> None:
    drawn = logits([[90.0, 90.0], [-90.0, -90.0]], [[-90.0, -90.0], [90.0, 90.0]]).expand(2, 2, 2, 2)
    told = CropTruth(torch.tensor([HALF, HALF[::-1]]), torch.ones(2, 2, 2), torch.tensor([2.0, 2.0]))
    losses = pass_losses(
        RefinerPass(drawn, torch.ones(2, 2), torch.ones(2)), torch.ones(2, 2, 2), told, TRAINING, STAGE
    )
    assert losses.mask.item() == pytest.approx(0, abs=1e-6) and losses.dice.item() == pytest.approx(0, abs=1e-6)


def test_which_mask_is_best_follows_the_weights_of_the_losses() -> None:
    # One cell of 64 missed for sure costs cross-entropy most; a pale mask costs Dice most.
    true = torch.zeros(1, 8, 8)
    true[:, :, :4] = 1.0
    pale, sure = (2 * true - 1) * 0.6, (2 * true - 1) * 90.0
    sure[0, 0, 0] = -90.0
    found = RefinerPass(torch.stack([pale, sure], dim=1), torch.ones(1, 2), torch.ones(1))
    told = CropTruth(true, torch.ones_like(true), torch.tensor([32.0]))
    by_mask = pass_losses(found, true, told, replace(TRAINING, dice_weight=0.0), STAGE)
    by_dice = pass_losses(found, true, told, replace(TRAINING, mask_weight=0.0), STAGE)
    assert by_mask.mask.item() == pytest.approx(math.log(1 + math.exp(-0.6)), rel=1e-5)
    assert by_dice.mask.item() == pytest.approx(90 / 64, rel=1e-5)
