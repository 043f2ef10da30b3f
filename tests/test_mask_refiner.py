import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from policies.base import VisionFeatures
from policies.mask_refiner import (
    MaskRefiner,
    RefinerCrops,
    RefinerSettings,
    cut,
    expected_iou,
    grown_boxes_px,
    paste,
)

SMALL = RefinerSettings(crop_px=48, channels=4, halvings=2, passes=3)


def refiner(settings: RefinerSettings = SMALL, seed: int = 0) -> MaskRefiner:
    """One whose every weight is random, those included that start at zero."""
    torch.manual_seed(seed)
    made = MaskRefiner(settings, 6, 5, "tower-a")
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return made


def scenes(num: int, size: int = 64, seed: int = 1) -> tuple[torch.Tensor, VisionFeatures]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (num, size, size, 3), generator=generator).to(torch.uint8)
    final, early = (torch.randn(num, channels, 8, 8, generator=generator) for channels in (6, 5))
    return images, VisionFeatures(final, early)


def mask_of_box(x0: int, y0: int, x1: int, y1: int, size: int = 64) -> torch.Tensor:
    mask = torch.zeros(1, size, size, dtype=torch.bool)
    mask[0, y0:y1, x0:x1] = True
    return mask


def test_a_box_of_20_by_10_pixels_grows_by_5_and_2_and_a_half_on_each_side():
    assert grown_boxes_px(mask_of_box(20, 10, 40, 20), 0.25, 8.0).tolist() == [[15.0, 7.5, 45.0, 22.5]]


def test_a_box_is_clipped_to_the_image_and_a_small_one_is_widened_and_pushed_into_it():
    assert grown_boxes_px(mask_of_box(0, 30, 20, 62), 0.25, 8.0).tolist() == [[0.0, 22.0, 25.0, 64.0]]
    assert grown_boxes_px(mask_of_box(0, 0, 1, 1), 0.25, 8.0).tolist() == [[0.0, 0.0, 8.0, 8.0]]
    assert grown_boxes_px(mask_of_box(30, 63, 32, 64), 0.25, 8.0).tolist() == [[27.0, 56.0, 35.0, 64.0]]
    assert grown_boxes_px(mask_of_box(0, 0, 2, 2, size=6), 0.25, 8.0).tolist() == [[0.0, 0.0, 6.0, 6.0]]


def test_an_empty_mask_gets_the_whole_image():
    assert grown_boxes_px(torch.zeros(1, 5, 7, dtype=torch.bool), 0.25, 2.0).tolist() == [[0.0, 0.0, 7.0, 5.0]]


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 40), columns=st.integers(1, 40), size=st.integers(1, 40))
def test_cutting_the_whole_image_equals_torchs_antialiased_resize(rows, columns, size):
    maps = torch.randn(2, 3, rows, columns, generator=torch.Generator().manual_seed(rows))
    box = torch.tensor([[0.0, 0.0, columns, rows]]).repeat(2, 1)
    resized = functional.interpolate(maps, (size, size), mode="bilinear", antialias=True, align_corners=False)
    torch.testing.assert_close(cut(maps, box, rows, columns, size), resized, atol=1e-4, rtol=1e-4)


@settings(max_examples=40, deadline=None)
@given(
    x0=st.floats(0, 20),
    y0=st.floats(0, 20),
    width=st.floats(1, 12),
    height=st.floats(1, 12),
    cells=st.sampled_from([4, 8]),
)
def test_cutting_a_box_finely_equals_grid_sample_at_the_same_points(x0, y0, width, height, cells):
    maps = torch.randn(1, 2, cells, cells, generator=torch.Generator().manual_seed(cells))
    box = torch.tensor([[x0, y0, x0 + width, y0 + height]])
    theta = torch.tensor([[[width / 32, 0, (2 * x0 + width) / 32 - 1], [0, height / 32, (2 * y0 + height) / 32 - 1]]])
    grid = functional.affine_grid(theta, [1, 2, 16, 16], align_corners=False)
    sampled = functional.grid_sample(maps, grid, padding_mode="border", align_corners=False)
    torch.testing.assert_close(cut(maps, box, 32, 32, 16), sampled, atol=1e-4, rtol=1e-4)


@settings(max_examples=40, deadline=None)
@given(x0=st.integers(0, 16), y0=st.integers(0, 16), seed=st.integers(0, 99))
def test_a_mask_whose_crop_falls_on_the_pixels_is_pasted_back_exactly(x0, y0, seed):
    mask = torch.zeros(1, 64, 64, dtype=torch.bool)
    mask[:, y0 : y0 + 48, x0 : x0 + 48] = torch.rand(48, 48, generator=torch.Generator().manual_seed(seed)) < 0.5
    box = torch.tensor([[x0, y0, x0 + 48, y0 + 48]]).float()
    crop = cut(mask[:, None].float(), box, 64, 64, 48)[:, 0]
    assert torch.equal(paste(crop - 0.5, box, 64, 64), mask)


def test_paste_fills_exactly_the_pixels_whose_centre_is_in_the_box():
    pasted = paste(torch.ones(1, 48, 48), torch.tensor([[10.5, 3.6, 20.5, 9.4]]), 64, 64)
    assert torch.equal(pasted, mask_of_box(10, 4, 20, 9))


def test_an_untrained_refiner_returns_the_coarse_mask():
    coarse = mask_of_box(20, 10, 52, 42)
    coarse[0, 24:30, 30:40] = False
    images, features = scenes(1)
    result = MaskRefiner(SMALL, 6, 5, "tower-a").refine(images, features, coarse)
    assert torch.equal(result.masks, coarse)


def test_an_empty_coarse_mask_stays_empty_beside_one_that_is_refined_as_if_alone():
    images, features = scenes(2)
    coarse = torch.cat([torch.zeros(1, 64, 64, dtype=torch.bool), mask_of_box(8, 8, 40, 30)])
    network = refiner()
    both = network.refine(images, features, coarse)
    alone = network.refine(images[1:], VisionFeatures(features.final[1:], features.early[1:]), coarse[1:])
    assert not both.masks[0].any()
    assert both.predicted_iou[0] == 0
    assert torch.equal(both.masks[1], alone.masks[0])
    assert both.predicted_iou[1] == pytest.approx(alone.predicted_iou[0].item(), abs=1e-5)


def test_each_pass_reads_the_soft_mask_of_the_one_before():
    network, mask = refiner(), (torch.rand(2, 48, 48) < 0.5).float()
    crops = RefinerCrops(torch.randn(2, 3, 48, 48), torch.randn(2, 6, 12, 12), torch.randn(2, 5, 12, 12))
    passes, context = network(crops, mask), network.head.context(crops)
    assert len(passes) == 3
    for result in passes:
        expected = network.head(crops.images, context, mask).logits
        torch.testing.assert_close(result.logits, expected)
        mask = 1 / (1 + (-expected).exp())


def test_the_loss_reaches_every_weight():
    network = refiner()
    crops = RefinerCrops(torch.randn(2, 3, 48, 48), torch.randn(2, 6, 12, 12), torch.randn(2, 5, 12, 12))
    passes = network(crops, (torch.rand(2, 48, 48) < 0.5).float())
    sum(result.logits.square().mean() + result.predicted_iou.square().mean() for result in passes).backward()
    untouched = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert untouched == []


def test_expected_iou_of_a_cell_at_three_quarters_and_one_at_a_quarter_is_0_6():
    logits = torch.tensor([math.log(3), -math.log(3)]).reshape(1, 1, 1, 2)
    assert expected_iou(logits).item() == pytest.approx(0.75 / 1.25, abs=1e-5)


def test_the_default_refiner_over_features_of_128_and_96_channels_has_480_thousand_parameters():
    network = MaskRefiner(RefinerSettings(), 128, 96, "tower-a")
    assert sum(parameter.numel() for parameter in network.parameters()) == 480_579


def test_a_saved_refiner_comes_back_to_the_bit(tmp_path):
    network, (images, features), coarse = refiner(), scenes(1), mask_of_box(8, 8, 40, 30)
    network.save(tmp_path / "refiner")
    loaded = MaskRefiner.load(tmp_path / "refiner", "tower-a")
    assert loaded.settings == network.settings
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in network.state_dict().items())
    before, after = (each.refine(images, features, coarse) for each in (network, loaded))
    assert torch.equal(before.masks, after.masks)
    assert torch.equal(before.predicted_iou, after.predicted_iou)


def test_a_refiner_of_another_vision_tower_is_refused_by_both_checksums(tmp_path):
    refiner().save(tmp_path)
    with pytest.raises(ValueError, match=r"vision tower tower-a, this policy's is tower-b; load"):
        MaskRefiner.load(tmp_path, "tower-b")


def test_a_folder_without_a_refiner_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere holds no refiner\.json"):
        MaskRefiner.load(tmp_path / "nowhere", "tower-a")


@pytest.mark.parametrize(
    ("setting", "value", "advice"),
    [
        ("crop_px", 50, "3 halvings need a multiple of 8"),
        ("channels", 6, "multiple of 4"),
        ("halvings", 0, "1 or more"),
        ("box_growth", -0.1, "0 or more"),
        ("min_box_px", 0.0, "above 0"),
        ("passes", 0, "at least once"),
    ],
)
def test_impossible_sizes_are_refused(setting, value, advice):
    with pytest.raises(ValueError, match=advice):
        dataclasses.replace(RefinerSettings(), **{setting: value})
