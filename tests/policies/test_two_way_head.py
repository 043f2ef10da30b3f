import pytest
import torch
from torch.nn import functional

from policies.heads._two_way_blocks import Attention
from policies.heads.base import RefinerCrops, RefinerPass
from policies.heads.two_way_head import Head

TINY = {"cell_px": 8, "width": 32, "heads": 2, "mlp_ratio": 2, "mask_channels": 4, "map_heads": 2}


def head(**changed) -> Head:
    torch.manual_seed(0)
    return Head(48, 6, 5, **TINY | changed)


def random_head() -> Head:
    """One whose every weight is random, those included that start at zero."""
    made = head()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return made


def crops(num: int, size: int = 48, seed: int = 0) -> RefinerCrops:
    draw = torch.Generator().manual_seed(seed)
    shapes = (3, size, size), (6, size // 8, size // 8), (5, size // 8, size // 8)
    return RefinerCrops(*(torch.randn(num, *shape, generator=draw) for shape in shapes))


def one_pass(network: Head, seen: RefinerCrops, masks: torch.Tensor) -> RefinerPass:
    return network(seen.images, network.context(seen), masks)


def test_at_moondreams_sizes_it_has_6_15_million_parameters():
    # Projection 295,168, early features 295,680, fusion 721,920, mask encoder 171,744, positions 186,624, tokens and
    # their places 2,560, two blocks 3,684,864 (a block: three attentions of 263,168, MLP 1,050,880, norms 2,048), last
    # look 263,680, upsampling 366,464, tokens to 32 channels 8,224, attention over the map 4,224, four filters 12,672,
    # IoU 132,612: 6,146,436, the 6.15 M of the head that Moondream ships. Attention at half the width, as Segment
    # Anything has it, would make 5.49 M. Ours beside: input IoU 257, mask gains 4.
    with torch.device("meta"):
        made = Head(378, 1152, 1152)
    assert sum(parameter.numel() for parameter in made.parameters()) == 6_146_436 + 257 + 4
    assert made.feature_cells(378) == 27


@pytest.mark.parametrize(("size", "masks"), [(48, 4), (24, 4), (80, 1), (40, 3)])
def test_each_mask_comes_at_the_crops_size_whatever_the_grid(size, masks):
    network = head(masks=masks)
    result = one_pass(network, crops(2, size), torch.rand(2, size, size))
    assert network.num_masks == masks
    assert result.logits.shape == (2, masks, size, size)
    assert result.predicted_iou.shape == (2, masks) and result.input_iou.shape == (2,)


def test_untrained_all_its_masks_are_its_input_each_at_another_gain():
    masks = (torch.rand(2, 48, 48) < 0.5).float()
    result = one_pass(head(), crops(2), masks)
    for m, gain in enumerate((1.5, 1.5 + 1 / 3, 1.5 + 2 / 3, 2.5)):
        torch.testing.assert_close(result.logits[:, m], gain * (2 * masks - 1))
    assert result.best().tolist() == [3, 3]
    torch.testing.assert_close(result.input_iou, result.best_iou)


def test_the_loss_of_masks_and_ious_reaches_every_weight():
    network = random_head()
    result = one_pass(network, crops(2), (torch.rand(2, 48, 48) < 0.5).float())
    (result.logits.square().mean() + result.predicted_iou.square().mean() + result.input_iou.square().mean()).backward()
    untouched = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # The softmax does not notice what is added to all keys alike.
    assert [name for name in untouched if not name.endswith("key.bias")] == []


def test_a_mask_is_judged_alone_as_in_a_batch():
    network, masks, seen = random_head(), (torch.rand(3, 48, 48) < 0.5).float(), crops(3)
    batch = one_pass(network, seen, masks)
    alone = one_pass(network, RefinerCrops(seen.images[1:2], seen.final[1:2], seen.early[1:2]), masks[1:2])
    torch.testing.assert_close(alone.logits[0], batch.logits[1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(alone.predicted_iou[0], batch.predicted_iou[1], atol=1e-4, rtol=1e-4)


def test_attention_equals_torchs_multi_head_attention_with_the_same_weights():
    torch.manual_seed(0)
    ours, theirs = Attention(12, 3), torch.nn.MultiheadAttention(12, 3, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key.bias, ours.value.bias]))
        theirs.out_proj.load_state_dict(ours.out.state_dict())
    queries, keys, values = torch.randn(2, 4, 12), torch.randn(2, 7, 12), torch.randn(2, 7, 12)
    torch.testing.assert_close(ours(queries, keys, values), theirs(queries, keys, values)[0], atol=1e-5, rtol=1e-4)


def ellipses(num: int, seed: int) -> tuple[RefinerCrops, torch.Tensor, torch.Tensor]:
    """(crops, coarse, true): features say of each cell how much of it is inside; coarse is the true mask, moved."""
    draw = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(48) + 0.5, torch.arange(48) + 0.5, indexing="ij")
    radius = torch.rand(num, 2, 1, 1, generator=draw) * 8 + 8
    true = (((x - 24) / radius[:, 0]) ** 2 + ((y - 24) / radius[:, 1]) ** 2 < 1).float()
    coarse = torch.stack(
        [
            m.roll(tuple(s), (0, 1))
            for m, s in zip(true, torch.randint(-6, 7, (num, 2), generator=draw).tolist(), strict=True)
        ]
    )
    inside = functional.avg_pool2d(true[:, None], 8)
    return RefinerCrops(torch.zeros(num, 3, 48, 48), inside.repeat(1, 6, 1, 1), inside.repeat(1, 5, 1, 1)), coarse, true


def iou(drawn: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Over the last two axes of bool masks."""
    return (drawn & true).sum((-2, -1)) / (drawn | true).sum((-2, -1))


def test_forty_small_steps_better_moved_ellipses_by_0_1_and_halve_the_loss_of_their_best_mask():
    network = head()
    optimiser = torch.optim.AdamW(network.parameters(), 4e-3)

    def losses(seed: int) -> tuple[torch.Tensor, torch.Tensor, RefinerPass, torch.Tensor, torch.Tensor]:
        seen, coarse, true = ellipses(8, seed)
        result = one_pass(network, seen, coarse)
        wanted = true[:, None].expand_as(result.logits)
        each = functional.binary_cross_entropy_with_logits(result.logits, wanted, reduction="none").mean(dim=(2, 3))
        iou_error = result.predicted_iou - iou(result.logits > 0, wanted > 0.5)
        return each.amin(dim=1).mean(), each.mean() + iou_error.square().mean(), result, coarse > 0.5, true > 0.5

    first = losses(1000)[0].item()
    for step in range(40):
        optimiser.zero_grad()
        best, others, *_ = losses(step)
        (best + 0.1 * others).backward()
        optimiser.step()
    last, _, result, coarse, true = losses(1000)
    assert last.item() < 0.5 * first
    assert iou(result.best_logits > 0, true).mean() > iou(coarse, true).mean() + 0.1


@pytest.mark.parametrize(
    ("changed", "advice"),
    [
        ({"cell_px": 14}, "crop_px is 48; feature cells of cell_px 14 need a multiple"),
        ({"width": 36}, "width is 36, heads 2.*multiple of 8"),
        ({"heads": 3}, "heads 3"),
        ({"map_heads": 3}, "map_heads 3"),
        ({"masks": 0}, "masks 0; give 1 or more"),
        ({"mask_channels": 6}, "mask_channels is 6; give a multiple of 4"),
    ],
)
def test_impossible_sizes_are_refused(changed, advice):
    with pytest.raises(ValueError, match=advice):
        head(**changed)
