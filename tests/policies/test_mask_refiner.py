import dataclasses
import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.plugin import Plugin
from policies.families.base import VisionFeatures
from policies.heads.base import RefinerCrops, expected_iou, foretold
from policies.refiner.calibration import Calibration, Curve
from policies.refiner.mask_refiner import MaskRefiner, chosen_pass
from policies.settings import RefinerSettings

SMALL = RefinerSettings(min_gain=-1)
HEADS = {
    "pixel_head": {"channels": 4, "halvings": 2},
    "two_way_head": {"cell_px": 8, "width": 32, "heads": 2, "mlp_ratio": 2, "mask_channels": 4, "map_heads": 2},
}


def untrained(head: str, wanted: RefinerSettings = SMALL) -> MaskRefiner:
    torch.manual_seed(0)
    return MaskRefiner(wanted, Plugin("policies.heads", "Head", head, HEADS[head]), 6, 5, "tower-a")


def refiner(head: str, wanted: RefinerSettings = SMALL, seed: int = 0) -> MaskRefiner:
    """One whose every weight is random, those included that start at zero."""
    made = untrained(head, wanted)
    torch.manual_seed(seed)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return made


def scenes(num: int, size: int = 64, seed: int = 1) -> tuple[torch.Tensor, VisionFeatures]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (num, size, size, 3), generator=generator).to(torch.uint8)
    final, early = (torch.randn(num, channels, 8, 8, generator=generator) for channels in (6, 5))
    return images, VisionFeatures(final, early)


def coarse_masks() -> torch.Tensor:
    """[4, 64, 64]: a ring, nothing, a flat box, a dot."""
    masks = torch.zeros(4, 64, 64, dtype=torch.bool)
    masks[0, 10:42, 20:52] = True
    masks[0, 24:30, 30:40] = False
    masks[2, 5:12, 3:50] = True
    masks[3, 60, 63] = True
    return masks


def of(features: VisionFeatures, rows: slice) -> VisionFeatures:
    return VisionFeatures(features.final[rows], features.early[rows])


def test_of_four_outputs_the_best_before_the_stop_is_taken_and_the_earlier_of_equals():
    predicted = torch.tensor(
        [
            [0.50, 0.50, 0.50, 0.50, 0.50],
            [0.60, 0.40, 0.50, 0.504, 0.60],
            [0.70, 0.90, 0.90, 0.90, 0.55],
            [0.80, 0.90, 0.90, 0.90, 0.90],
        ]
    )
    taken, run = chosen_pass(predicted, 0.005)
    # It goes on; got worse; gained nothing; gained less than 0.005, but gained; got worse after having gained.
    assert run.tolist() == [3, 1, 1, 1, 2]
    assert taken.tolist() == [3, 0, 0, 1, 1]
    assert chosen_pass(predicted, -1)[0].tolist() == [3, 2, 2, 2, 3]


OUTPUTS = st.lists(st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4), min_size=1, max_size=6)


@given(OUTPUTS, st.floats(-1, 1))
def test_no_pass_is_returned_that_is_predicted_worse_than_what_it_was_given(columns, min_gain):
    predicted = torch.tensor(columns).T
    taken, run = chosen_pass(predicted, min_gain)
    assert (run >= 1).all() and (run <= 3).all() and (taken <= run).all()
    for column, (k, last) in zip(columns, zip(taken.tolist(), run.tolist(), strict=True), strict=True):
        assert all(column[k] > other for other in column[:k])
        assert all(column[k] >= other for other in column[k : last + 1])


@given(OUTPUTS, st.floats(-1, 1), st.floats(-1, 1))
def test_who_asks_for_more_gain_runs_fewer_passes(columns, one, other):
    predicted = torch.tensor(columns).T
    lazy, eager = (chosen_pass(predicted, gain)[1] for gain in (max(one, other), min(one, other)))
    assert (lazy <= eager).all()


@pytest.mark.parametrize("head", HEADS)
def test_an_untrained_refiner_returns_coarse_masks_after_one_pass(head):
    images, features = scenes(4)
    result = untrained(head, RefinerSettings()).refine(images, features, coarse_masks())
    assert torch.equal(result.masks, coarse_masks())
    assert result.passes.tolist() == [1, 0, 1, 1]
    assert result.taken.tolist() == [0, 0, 0, 0]
    assert torch.equal(result.predicted_iou, result.coarse_iou)


@pytest.mark.parametrize("head", HEADS)
def test_every_pass_of_an_untrained_refiner_draws_the_coarse_mask(head):
    images, features = scenes(4)
    unrolled = untrained(head).unroll(images, features, coarse_masks())
    assert unrolled.masks.shape == (4, 4, 64, 64)
    assert torch.equal(unrolled.masks[3, [0, 1, 3]], coarse_masks()[[0, 1, 3]])


@pytest.mark.parametrize("head", HEADS)
@settings(max_examples=10)
@given(seed=st.integers(0, 1000), min_gain=st.sampled_from([-1.0, 0.0, 0.005, 0.1]))
def test_refining_with_stops_equals_choosing_from_all_passes(head, seed, min_gain):
    network, (images, features) = refiner(head, RefinerSettings(min_gain=min_gain), seed), scenes(4, seed=seed)
    network.calibration = Calibration((Curve(calibrated=(0.1, 0.5)), Curve(), Curve((0.2, 0.9), (0.3, 1.0)), Curve()))
    stopped = network.refine(images, features, coarse_masks())
    unrolled = network.unroll(images, features, coarse_masks())
    taken, run = chosen_pass(unrolled.predicted_iou, min_gain)
    drawn = coarse_masks().flatten(1).any(1)
    assert torch.equal(stopped.taken, taken)
    assert torch.equal(stopped.passes, run * drawn)
    torch.testing.assert_close(stopped.predicted_iou, unrolled.predicted_iou[taken, torch.arange(4)])
    torch.testing.assert_close(stopped.coarse_iou, unrolled.predicted_iou[0])
    assert (stopped.masks ^ unrolled.masks[taken, torch.arange(4)]).sum() <= 2  # a logit at 0, to rounding


def test_stopped_masks_go_through_no_further_pass():
    network, (images, features) = refiner("pixel_head", RefinerSettings(min_gain=0.0)), scenes(4)
    seen: list[int] = []
    network.head.register_forward_hook(lambda _module, inputs, _output: seen.append(len(inputs[0])))
    # Calibrated so, pass 1 gains, pass 2 loses: three masks in passes 1 and 2, none in pass 3.
    network.calibration = Calibration(tuple(Curve((0.5,), (value,)) for value in (0.2, 0.6, 0.4, 0.9)))
    result = network.refine(images, features, coarse_masks())
    assert seen == [3, 3]
    assert result.passes.tolist() == [2, 0, 2, 2] and result.taken.tolist() == [1, 0, 1, 1]
    assert result.predicted_iou.tolist() == pytest.approx([0.6, 0, 0.6, 0.6])
    assert result.coarse_iou.tolist() == pytest.approx([0.2, 0, 0.2, 0.2])


@pytest.mark.parametrize("head", HEADS)
def test_a_mask_is_refined_alone_as_in_a_batch(head):
    network, (images, features), coarse = refiner(head), scenes(4), coarse_masks()
    batch = network.refine(images, features, coarse)
    for k in range(4):
        one = slice(k, k + 1)
        alone = network.refine(images[one], of(features, one), coarse[one])
        assert alone.taken[0] == batch.taken[k]
        assert (alone.masks[0] ^ batch.masks[k]).sum() <= 2
        torch.testing.assert_close(alone.predicted_iou[0], batch.predicted_iou[k], atol=1e-4, rtol=1e-4)


def test_outside_the_grown_box_a_pass_draws_nothing_and_where_nothing_was_drawn_nothing_at_all():
    network, (images, features) = refiner("pixel_head"), scenes(4)
    torch.nn.init.constant_(network.head.mask_out.bias, 100.0)
    boxes = torch.tensor([[10.5, 3.6, 20.5, 9.4]]).repeat(4, 1)
    unrolled = network.unroll(images, features, coarse_masks(), boxes)
    box = torch.zeros(64, 64, dtype=torch.bool)
    box[4:9, 10:20] = True
    for k in (1, 2, 3):
        assert torch.equal(unrolled.masks[k], box & torch.tensor([True, False, True, True])[:, None, None])
    assert unrolled.predicted_iou[:, 1].tolist() == unrolled.raw_iou[:, 1].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("head", HEADS)
def test_each_pass_reads_the_best_soft_mask_of_the_one_before(head):
    network, mask = refiner(head), (torch.rand(2, 48, 48) < 0.5).float()
    cells = network.head.feature_cells(48)
    crops = RefinerCrops(torch.randn(2, 3, 48, 48), torch.randn(2, 6, cells, cells), torch.randn(2, 5, cells, cells))
    passes, context = network(crops, mask), network.head.context(crops)
    assert len(passes) == 3
    for result in passes:
        expected = network.head(crops.images, context, mask)
        torch.testing.assert_close(result.logits, expected.logits)
        best = expected.predicted_iou.max(dim=1).indices
        mask = 1 / (1 + (-torch.stack([expected.logits[b, best[b]] for b in range(2)])).exp())


@pytest.mark.parametrize("head", HEADS)
def test_no_gradient_flows_from_a_pass_to_the_one_before(head):
    network, mask = refiner(head), (torch.rand(2, 48, 48) < 0.5).float()
    cells = network.head.feature_cells(48)
    crops = RefinerCrops(*(torch.randn(2, c, n, n) for c, n in ((3, 48), (6, cells), (5, cells))))
    passes = network(crops, mask)
    last = passes[2].logits.square().sum() + passes[2].predicted_iou.sum() + passes[2].input_iou.sum()
    assert torch.autograd.grad(last, passes[1].logits, allow_unused=True, retain_graph=True) == (None,)
    assert torch.autograd.grad(last, passes[2].logits, allow_unused=True)[0] is not None


def test_features_of_crops_are_taken_as_they_are_and_those_of_images_cut_to_the_box():
    (images, features), boxes = scenes(2), torch.tensor([[0.0, 0.0, 64.0, 64.0], [16.0, 8.0, 48.0, 40.0]])
    of_images = untrained("two_way_head").crops(images, features, boxes, crop_px=64)
    of_crops = untrained("two_way_head", RefinerSettings(features="crop")).crops(images, features, boxes, crop_px=64)
    assert of_images.images.shape == (2, 3, 64, 64)
    assert torch.equal(of_images.images, of_crops.images)
    assert torch.equal(of_crops.final, features.final) and torch.equal(of_crops.early, features.early)
    torch.testing.assert_close(of_images.final[0], features.final[0])
    assert not torch.allclose(of_images.final[1], features.final[1])


def test_what_the_tower_encodes_of_a_box_on_whole_pixels_are_those_pixels():
    images, _ = scenes(2)
    boxes = torch.tensor([[16.0, 8.0, 64.0, 56.0]]).repeat(2, 1)
    cut_out = untrained("pixel_head").crop_images(images, boxes)
    assert cut_out.dtype == torch.uint8
    assert torch.equal(cut_out, images[:, 8:56, 16:64])
    assert untrained("pixel_head").crop_images(images, boxes, crop_px=24).shape == (2, 24, 24, 3)


@pytest.mark.parametrize("head", HEADS)
def test_a_refiner_takes_crops_coarser_than_its_own(head):
    network, (images, features) = refiner(head), scenes(4)
    boxes = network.boxes_px(coarse_masks())
    crops = network.crops(images, features, boxes, crop_px=24)
    assert network(crops, torch.rand(4, 24, 24))[0].best_logits.shape == (4, 24, 24)


def test_expected_iou_of_a_cell_at_three_quarters_and_one_at_a_quarter_is_0_6_and_of_the_other_one_a_seventh():
    logits = torch.tensor([3.0, 1 / 3]).log().reshape(1, 1, 1, 2)
    drawn = torch.tensor([[True, False], [False, True]]).reshape(1, 2, 1, 2)
    # 0.75 / (1 + 0.25), and 0.25 / (0.75 + 1).
    torch.testing.assert_close(expected_iou(logits, drawn), torch.tensor([[0.6, 1 / 7]]), atol=1e-5, rtol=0)
    assert foretold(torch.tensor(0.6), torch.tensor(0.0)).item() == pytest.approx(0.6)
    assert foretold(torch.tensor(0.5), torch.tensor(3.0).log()).item() == pytest.approx(0.75)


@pytest.mark.parametrize("head", HEADS)
def test_a_saved_refiner_comes_back_to_the_bit(head, tmp_path):
    network, (images, features) = refiner(head), scenes(4)
    network.calibration = Calibration((Curve(), Curve((0.2, 0.9), (0.3, 1.0)), Curve(), Curve()))
    network.save(tmp_path / "refiner")
    loaded = MaskRefiner.load(tmp_path / "refiner", "tower-a")
    assert (loaded.settings, loaded.calibration, loaded.head_recipe) == (
        SMALL,
        network.calibration,
        network.head_recipe,
    )
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in network.state_dict().items())
    before, after = (vars(each.refine(images, features, coarse_masks())) for each in (network, loaded))
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_refiner_of_another_vision_tower_is_refused_by_both_checksums(tmp_path):
    refiner("pixel_head").save(tmp_path)
    with pytest.raises(ValueError, match=r"vision tower tower-a, this policy's is tower-b; load"):
        MaskRefiner.load(tmp_path, "tower-b")


@pytest.mark.parametrize(("format", "named"), [(None, 1), (3, 3)])
def test_a_card_of_another_format_is_refused_in_a_line_that_says_to_train_again(tmp_path, format, named):
    refiner("pixel_head").save(tmp_path)
    card: dict[str, Any] = json.loads((tmp_path / "refiner.json").read_text())
    assert card.pop("format") == 2
    card |= {} if format is None else {"format": format}
    (tmp_path / "refiner.json").write_text(json.dumps(card))
    with pytest.raises(
        ValueError, match=rf"is of format {named}, and format 2 is read here; delete that folder and train"
    ):
        MaskRefiner.load(tmp_path, "tower-a")


def test_a_folder_without_a_refiner_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere holds no refiner\.json"):
        MaskRefiner.load(tmp_path / "nowhere", "tower-a")


@pytest.mark.parametrize(
    ("setting", "value", "advice"),
    [
        ("crop_px", 0, "1 or more"),
        ("box_growth", -0.1, "0 or more"),
        ("min_box_px", 0.0, "set it to more than 0"),
        ("passes", 0, "passes is 0; set it to 1 or more"),
        ("features", "both", "features is 'both'; set it to image or crop"),
        ("early_block", -1, "0 for the patch embedding"),
        ("min_gain", 1.5, "difference of IoUs"),
        ("min_gain", float("nan"), "difference of IoUs"),
    ],
)
def test_impossible_settings_are_refused(setting, value, advice):
    with pytest.raises(ValueError, match=advice):
        dataclasses.replace(RefinerSettings(), **{setting: value})


def test_a_crop_that_the_head_cannot_take_is_refused():
    with pytest.raises(ValueError, match="crop_px is 50; 2 halvings need a multiple of 4"):
        refiner("pixel_head", RefinerSettings(crop_px=50))
