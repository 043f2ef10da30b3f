import numpy as np
import torch

from policies.heads.base import RefinerCrops
from rl.config.refiner import RefinerTraining
from rl.refiner.augment import augmented, mirrored, recoloured
from rl.refiner.data import RefinerBatch
from rl.refiner.loss import CropTruth


def batch(num: int = 4, size: int = 6) -> RefinerBatch:
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(num, 6, size, size, generator=generator)
    features = torch.rand(num, 2, 3, 3, generator=generator)
    crops = RefinerCrops(maps[:, :3] * 2 - 1, features, features + 1)
    return RefinerBatch(crops, maps[:, 3], CropTruth(maps[:, 4], maps[:, 5], torch.full((num,), 9.0)))


def maps_of(one: RefinerBatch) -> list[torch.Tensor]:
    crops, truth = one.crops, one.truth
    return [crops.images, crops.final, crops.early, one.coarse, truth.true, truth.counted]


def test_what_is_chosen_is_mirrored_whole_and_the_rest_stays() -> None:
    plain = batch()
    found = mirrored(plain, -1, np.array([True, False, False, True]))
    for before, after in zip(maps_of(plain), maps_of(found), strict=True):
        assert torch.equal(after[[0, 3]], before[[0, 3]].flip(-1)) and torch.equal(after[1:3], before[1:3])
    twice = mirrored(found, -1, np.array([True, False, False, True]))
    assert all(torch.equal(a, b) for a, b in zip(maps_of(plain), maps_of(twice), strict=True))
    assert torch.equal(found.truth.area, plain.truth.area)


def test_recolouring_changes_contrast_and_brightness_of_a_channel_by_one_number_each() -> None:
    images = torch.linspace(-0.2, 0.2, 16).view(1, 1, 4, 4).repeat(5, 3, 1, 1)
    found = recoloured(images, 0.1, np.random.default_rng(1))
    contrast = (found[..., 3, 3] - found[..., 0, 0]) / 0.4
    assert torch.allclose(found - found.mean(dim=(2, 3), keepdim=True), images * contrast[..., None, None], atol=1e-5)
    assert 0.02 < contrast.std() < 0.2 and found.abs().max() <= 1


def test_without_such_settings_a_batch_is_left_alone_and_with_them_it_follows_from_the_generator() -> None:
    plain = batch()
    same = augmented(plain, RefinerTraining(), np.random.default_rng(0))
    assert all(torch.equal(a, b) for a, b in zip(maps_of(plain), maps_of(same), strict=True))
    wanted = RefinerTraining(flips=True, colour_jitter=0.2, feature_dropout=0.5)
    first, again, other = (augmented(plain, wanted, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(maps_of(first), maps_of(again), strict=True))
    assert not torch.equal(first.crops.images, other.crops.images)


def test_features_are_dropped_by_whole_crops() -> None:
    found = augmented(batch(400), RefinerTraining(feature_dropout=0.25), np.random.default_rng(0)).crops
    gone = (found.final == 0).flatten(1).all(dim=1)
    assert torch.equal(gone, (found.early == 0).flatten(1).all(dim=1))
    assert 0.18 < gone.float().mean() < 0.32
    assert (found.final[~gone] > 0).all()
