import dataclasses
import math

import numpy as np
import pytest
import torch

from policies.base import VisionFeatures
from policies.mask_refiner import RefinerPass, RefinerSettings
from rl.train_refiner import (
    RefinerTraining,
    TrainingPairs,
    crop_iou,
    damage,
    pass_loss,
    predict_masks,
    train_refiner,
)

SMALL = RefinerSettings(crop_px=24, channels=8, halvings=2)


def ellipses(num: int, seed: int, size: int = 32) -> TrainingPairs:
    """One bright ellipse on noise an image; the coarse mask is a box of the same area, a little off."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] + 0.5
    middle, radius = rng.uniform(12, 20, (num, 2, 1, 1)), rng.uniform(5, 9, (num, 2, 1, 1))
    true = ((x - middle[:, 0]) / radius[:, 0]) ** 2 + ((y - middle[:, 1]) / radius[:, 1]) ** 2 < 1
    middle, radius = middle + rng.normal(0, 1.2, middle.shape), radius * math.sqrt(math.pi) / 2
    coarse = (abs(x - middle[:, 0]) < radius[:, 0]) & (abs(y - middle[:, 1]) < radius[:, 1])
    images = rng.integers(0, 120, (num, size, size, 3)) + 120 * true[..., None]
    features = VisionFeatures(torch.zeros(num, 4, 4, 4), torch.zeros(num, 3, 4, 4))
    return TrainingPairs(images.astype(np.uint8), features, coarse, true, np.arange(num))


def mean_iou(a: np.ndarray, b: np.ndarray) -> float:
    return float(((a & b).sum((1, 2)) / (a | b).sum((1, 2))).mean())


def test_after_40_small_steps_unseen_masks_are_0_2_better_than_their_coarse_ones_and_their_iou_is_foretold():
    training = RefinerTraining(steps=40, batch_size=16, lr=5e-3)
    refiner = train_refiner(ellipses(200, seed=1), SMALL, training, "tower-a")
    unseen = ellipses(100, seed=2)
    refined = predict_masks(refiner, unseen.images, unseen.features, unseen.coarse)
    before, after = mean_iou(unseen.coarse, unseen.true), mean_iou(refined.masks.numpy(), unseen.true)
    assert 0.6 < before < 0.8
    assert after > before + 0.2
    assert refined.predicted_iou.mean().item() == pytest.approx(after, abs=0.1)


def test_equal_seeds_give_equal_weights_and_another_seed_gives_others():
    pairs, training = ellipses(20, seed=1), RefinerTraining(steps=2, batch_size=4, synthetic_share=0.5)
    first, again, other = (
        train_refiner(pairs, SMALL, dataclasses.replace(training, seed=seed), "tower-a").state_dict()
        for seed in (0, 0, 1)
    )
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not torch.equal(first["head.mask_out.weight"], other["head.mask_out.weight"])


def test_training_leaves_the_callers_random_numbers_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    train_refiner(ellipses(4, seed=1), SMALL, RefinerTraining(steps=1, batch_size=2), "tower-a")
    assert torch.equal(torch.rand(3), expected)


def test_a_pair_without_a_coarse_mask_changes_nothing():
    pairs, training = ellipses(8, seed=1), RefinerTraining(steps=2, batch_size=4)
    longer = dataclasses.replace(
        pairs,
        coarse=np.concatenate([pairs.coarse, np.zeros_like(pairs.coarse[:1])]),
        true=np.concatenate([pairs.true, pairs.true[:1]]),
        image_index=np.append(pairs.image_index, 0),
    )
    first, second = (train_refiner(each, SMALL, training, "tower-a").state_dict() for each in (pairs, longer))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_batches_of_predictions_equal_one_pass_over_all():
    pairs = ellipses(10, seed=1)
    refiner = train_refiner(pairs, SMALL, RefinerTraining(steps=2, batch_size=4), "tower-a")
    whole = predict_masks(refiner, pairs.images, pairs.features, pairs.coarse)
    parts = predict_masks(refiner, pairs.images, pairs.features, pairs.coarse, batch_size=3)
    assert torch.equal(whole.masks, parts.masks)
    torch.testing.assert_close(whole.predicted_iou, parts.predicted_iou)


def test_predicting_nothing_gives_no_masks():
    pairs = ellipses(2, seed=1)
    refiner = train_refiner(pairs, SMALL, RefinerTraining(steps=1, batch_size=2), "tower-a")
    features = VisionFeatures(pairs.features.final[:0], pairs.features.early[:0])
    assert predict_masks(refiner, pairs.images[:0], features, pairs.coarse[:0]).masks.shape == (0, 32, 32)


def test_crop_iou_counts_what_lies_outside_the_crop():
    logits, true = torch.tensor([[[1.0, 1.0], [-1.0, -1.0]]]), torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    assert crop_iou(logits, true, torch.tensor([2.0])).item() == pytest.approx(1 / 3)
    assert crop_iou(logits, true, torch.tensor([5.0])).item() == pytest.approx(1 / 6)


def test_loss_of_an_undecided_pass_over_a_half_true_crop_is_ln_2_plus_0_4_plus_a_quarter():
    undecided = RefinerPass(torch.zeros(1, 2, 2), torch.tensor([0.5]))
    true = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])
    loss = pass_loss(undecided, true, torch.tensor([2.0]), RefinerTraining())
    assert loss.item() == pytest.approx(math.log(2) + 0.4 + 0.25)


def test_damaged_masks_overlap_the_true_ones_by_about_three_quarters_and_none_vanishes():
    true = torch.from_numpy(ellipses(200, seed=3).true)
    damaged = damage(true, torch.Generator().manual_seed(0))
    assert 0.7 < mean_iou(damaged.numpy(), true.numpy()) < 0.85
    assert damaged.flatten(1).any(dim=1).all()
    assert torch.equal(damaged, damage(true, torch.Generator().manual_seed(0)))


def test_a_damaged_single_pixel_does_not_vanish():
    dots = torch.zeros(50, 32, 32, dtype=torch.bool)
    dots[:, 5, 5] = True
    assert damage(dots, torch.Generator().manual_seed(0)).flatten(1).any(dim=1).all()


def test_the_rate_rises_over_a_twentieth_and_then_falls_along_a_cosine():
    training = RefinerTraining(steps=100, lr=1.0)
    assert training.lr_at(0.0) == pytest.approx(0.1)
    assert training.lr_at(0.5) == pytest.approx(0.5)
    assert training.lr_at(1.0) == pytest.approx(0.0)


def test_training_ends_at_whichever_limit_is_nearer():
    assert RefinerTraining(steps=100).done(25, 1e9) == 0.25
    assert RefinerTraining(steps=100, seconds=60.0).done(25, 45.0) == 0.75


def test_pairs_that_do_not_fit_are_refused_with_their_shapes():
    pairs = ellipses(4, seed=1)
    for change, message in [
        ({"true": pairs.true[:3]}, r"true masks \(3, 32, 32\)"),
        ({"images": pairs.images[:, :16]}, "masks 32 x 32; bring both to one size"),
        ({"image_index": np.array([0, 1, 2, 4])}, "from 0 to 4, but there are 4 images"),
        ({"coarse": np.zeros_like(pairs.coarse)}, "None of the 4 pairs"),
        ({"images": pairs.images[:3]}, "3 images have 4 features"),
    ]:
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(pairs, **change)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("steps", 0), ("batch_size", 0), ("lr", 0.0), ("seconds", 0.0), ("synthetic_share", 1.5), ("box_jitter", 0.5)],
)
def test_impossible_settings_are_refused(setting, value):
    with pytest.raises(ValueError, match=rf"{setting} is|{setting} {value}"):
        RefinerTraining(**{setting: value})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_refiner_trains_and_predicts_on_a_gpu():
    pairs = ellipses(20, seed=1)
    refiner = train_refiner(pairs, SMALL, RefinerTraining(steps=20, batch_size=8, lr=5e-3), "tower-a", device="cuda")
    refined = predict_masks(refiner, pairs.images, pairs.features, pairs.coarse)
    assert mean_iou(refined.masks.numpy(), pairs.true) > mean_iou(pairs.coarse, pairs.true)
