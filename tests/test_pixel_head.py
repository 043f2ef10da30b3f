import pytest
import torch

from policies.pixel_head import Head
from policies.refiner_pass import RefinerCrops, RefinerPass


def head(seed: int = 0) -> Head:
    """One whose every weight is random, those included that start at zero."""
    torch.manual_seed(seed)
    made = Head(48, 6, 5, channels=4, halvings=2)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return made


def crops(num: int, size: int = 48, seed: int = 0) -> RefinerCrops:
    draw = torch.Generator().manual_seed(seed)
    shapes = (3, size, size), (6, size // 4, size // 4), (5, size // 4, size // 4)
    return RefinerCrops(*(torch.randn(num, *shape, generator=draw) for shape in shapes))


def one_pass(network: Head, seen: RefinerCrops, masks: torch.Tensor) -> RefinerPass:
    return network(seen.images, network.context(seen), masks)


def test_untrained_it_returns_its_input_and_foretells_the_same_iou_of_both():
    masks = (torch.rand(2, 48, 48) < 0.5).float()
    result = one_pass(
        Head(48, 6, 5), RefinerCrops(*(torch.randn(2, c, n, n) for c, n in ((3, 48), (6, 6), (5, 6)))), masks
    )
    assert result.logits.shape == (2, 1, 48, 48)
    torch.testing.assert_close(result.best_logits, 4 * masks - 2)
    torch.testing.assert_close(result.input_iou, result.predicted_iou[:, 0])
    # Half the cells are drawn; each is true with probability 0.881, and each of the others with 0.119.
    assert result.input_iou.mean().item() == pytest.approx(0.881 / 1.119, abs=0.01)


def test_the_loss_of_masks_and_both_ious_reaches_every_weight():
    network = head()
    result = one_pass(network, crops(2), (torch.rand(2, 48, 48) < 0.5).float())
    (result.logits.square().mean() + result.predicted_iou.square().mean() + result.input_iou.square().mean()).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_a_mask_is_judged_alone_as_in_a_batch():
    network, masks = head(), (torch.rand(3, 48, 48) < 0.5).float()
    seen = crops(3)
    batch = one_pass(network, seen, masks)
    alone = one_pass(network, RefinerCrops(seen.images[1:2], seen.final[1:2], seen.early[1:2]), masks[1:2])
    torch.testing.assert_close(alone.logits[0], batch.logits[1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(alone.input_iou[0], batch.input_iou[1], atol=1e-4, rtol=1e-4)


def test_it_takes_crops_of_another_size_than_its_positions():
    result = one_pass(head(), crops(2, size=24), torch.rand(2, 24, 24))
    assert result.logits.shape == (2, 1, 24, 24)
    assert head().feature_cells(24) == 6


def test_by_default_over_features_of_128_and_96_channels_it_has_481_thousand_parameters():
    assert sum(parameter.numel() for parameter in Head(48, 128, 96).parameters()) == 481_412


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({"crop_px": 50}, "crop_px is 50; 3 halvings need a multiple of 8"),
        ({"crop_px": 48, "channels": 6}, "channels is 6.*multiple of 4"),
        ({"crop_px": 48, "halvings": 0}, "halvings 0.*1 or more"),
    ],
)
def test_impossible_sizes_are_refused(settings, advice):
    with pytest.raises(ValueError, match=advice):
        Head(final_channels=6, early_channels=5, **settings)
