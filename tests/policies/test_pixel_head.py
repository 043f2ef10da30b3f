import pytest
import torch

from policies.heads.base import RefinerCrops, RefinerPass
from policies.heads.pixel_head import Head, colour_evidence


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


def test_evidence_of_colour_by_hand_in_two_colours():
    # Left half black, right half white, 4 x 4; the mask holds 3 of the 4 columns of neither: columns 0..2 of 4.
    images = torch.full((1, 3, 4, 4), -1.0)
    images[..., 2:] = 1.0
    masks = torch.zeros(1, 4, 4)
    masks[..., :3] = 1.0
    found = colour_evidence(images, masks, shades=2)
    # Inside: 8 black, 4 white of 12; outside: 0 black, 4 white of 4; half a cell for each of 8 colours.
    black = (8.5 / 16) / (8.5 / 16 + 0.5 / 8)
    white = (4.5 / 16) / (4.5 / 16 + 4.5 / 8)
    assert found.shape == (1, 1, 4, 4)
    assert found[0, 0, 0].tolist() == pytest.approx([black, black, white, white])


def test_evidence_of_colour_says_nothing_in_one_colour_and_of_an_empty_mask():
    images = torch.zeros(2, 3, 6, 6)
    masks = torch.zeros(2, 6, 6)
    masks[0, :3] = 1.0
    found = colour_evidence(images, masks, shades=4)
    assert found[0].tolist() == [[pytest.approx([0.5] * 6)] * 6]
    assert found[1].min() > 0 and found[1].max() < 0.5


def test_with_shades_it_is_still_the_identity_untrained_and_judges_a_mask_alone_as_in_a_batch():
    torch.manual_seed(0)
    network = Head(48, 128, 96, channels=4, halvings=2, shades=6).eval()
    generator = torch.Generator().manual_seed(3)
    seen = RefinerCrops(
        torch.rand(3, 3, 48, 48, generator=generator) * 2 - 1,
        torch.randn(3, 128, 12, 12, generator=generator),
        torch.randn(3, 96, 12, 12, generator=generator),
    )
    masks = (torch.rand(3, 48, 48, generator=generator) > 0.5).float()
    together = network(seen.images, network.context(seen), masks)
    assert torch.equal(together.logits[:, 0] > 0, masks > 0.5)
    one = RefinerCrops(seen.images[:1], seen.final[:1], seen.early[:1])
    alone = network(one.images, network.context(one), masks[:1])
    torch.testing.assert_close(alone.logits, together.logits[:1], atol=1e-5, rtol=1e-5)
