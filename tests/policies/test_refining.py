from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from test_vision_language import images, write_qwen2_5_vl

from envs.codecs.path_tokens import Codec
from envs.plugin import Plugin
from policies.families.base import VisionFeatures
from policies.families.vision_language import Policy
from policies.refiner.mask_refiner import MaskRefiner
from policies.refiner.refining import crop_features, refine_masks
from policies.settings import RefinerSettings


class Blocks:
    """A vision tower for tests: means of squares of 8 px, and a record of what it was asked."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, tuple[int, ...], int]] = []

    def vision_features(self, images: Sequence[NDArray[np.uint8]], early_block: int = 0) -> VisionFeatures:
        self.seen.append((len(images), images[0].shape[:2], early_block))
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
        maps = torch.nn.functional.avg_pool2d(pixels, 8)
        return VisionFeatures(maps.repeat(1, 2, 1, 1), maps)


def refiner(features: str = "image", final: int = 6, early: int = 3, early_block: int = 0) -> MaskRefiner:
    """One whose every weight is random, those included that start at zero."""
    settings = RefinerSettings(crop_px=32, features=features, early_block=early_block, min_gain=-1)
    head = Plugin("policies.heads", "Head", "pixel_head", {"channels": 4, "halvings": 2})
    torch.manual_seed(0)
    made = MaskRefiner(settings, head, final, early, "tower-a")
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made.eval()


def box(height: int, width: int, x0: int, y0: int, x1: int, y1: int) -> NDArray[np.bool_]:
    mask = np.zeros((height, width), np.bool_)
    mask[y0:y1, x0:x1] = True
    return mask


def scenes() -> tuple[list[NDArray[np.uint8]], list[list[NDArray[np.bool_]]]]:
    """Images of two sizes, mixed, of two, no, one and three masks, one of them empty."""
    pictures = [images(1, seed, *size)[0] for seed, size in enumerate([(32, 48), (32, 48), (40, 24), (32, 48)])]
    masks = [
        [box(32, 48, 4, 4, 30, 20), box(32, 48, 20, 10, 46, 30)],
        [],
        [box(40, 24, 3, 8, 20, 33)],
        [box(32, 48, 0, 0, 9, 9), box(32, 48, 0, 0, 0, 0), box(32, 48, 8, 2, 40, 31)],
    ]
    return pictures, masks


@pytest.mark.parametrize("features", ["image", "crop"])
@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_masks_of_mixed_images_come_back_in_their_order_each_as_if_it_were_alone(features, batch_size):
    network, (pictures, coarse) = refiner(features), scenes()
    found = refine_masks(network, Blocks(), pictures, coarse, batch_size)
    assert [len(masks) for masks in found] == [2, 0, 1, 3]
    for picture, masks, refined in zip(pictures, coarse, found, strict=True):
        for mask, one in zip(masks, refined, strict=True):
            pixels, given = torch.from_numpy(picture)[None], torch.from_numpy(mask)[None]
            tower = Blocks()
            seen = tower.vision_features([picture])
            if features == "crop":
                seen = crop_features(network, tower, pixels, network.boxes_px(given))
            alone = network.refine(pixels, seen, given)
            assert one.mask.shape == picture.shape[:2] and one.mask.dtype == np.bool_
            assert (one.mask ^ alone.masks[0].numpy()).sum() <= 2
            assert (one.passes, one.taken) == (alone.passes.item(), alone.taken.item())
            assert one.predicted_iou == pytest.approx(alone.predicted_iou.item(), abs=1e-4)
            assert one.coarse_iou == pytest.approx(alone.coarse_iou.item(), abs=1e-4)
    assert not found[3][1].mask.any() and found[3][1].passes == 0


def test_features_of_an_image_are_computed_once_and_of_one_without_masks_never():
    tower, (pictures, coarse) = Blocks(), scenes()
    refine_masks(refiner(early_block=2), tower, pictures, coarse, batch_size=2)
    assert tower.seen == [(2, (32, 48), 2), (1, (40, 24), 2)]


def test_features_of_crops_are_computed_at_the_crops_size_once_a_mask():
    tower, (pictures, coarse) = Blocks(), scenes()
    refine_masks(refiner("crop"), tower, pictures, coarse, batch_size=3)
    assert [(num, size) for num, size, _ in tower.seen] == [(3, (32, 32)), (2, (32, 32)), (1, (32, 32))]


def test_no_images_or_no_masks_at_all_are_no_mistake():
    assert refine_masks(refiner(), Blocks(), [], []) == []
    assert refine_masks(refiner(), Blocks(), scenes()[0], [[], [], [], []]) == [[], [], [], []]


def test_masks_that_do_not_go_with_their_images_are_refused_by_their_place():
    pictures, coarse = scenes()
    with pytest.raises(ValueError, match="4 images, and coarse masks for 3"):
        refine_masks(refiner(), Blocks(), pictures, coarse[:3])
    for wrong in (box(32, 47, 0, 0, 4, 4), box(32, 48, 0, 0, 4, 4).astype(np.uint8)):
        with pytest.raises(
            ValueError, match=r"coarse\[0\]\[1\] is (bool|uint8) \(32, 4[78]\), its image \(32, 48, 3\)"
        ):
            refine_masks(refiner(), Blocks(), pictures, [[coarse[0][0], wrong], *coarse[1:]])
    with pytest.raises(ValueError, match="batch_size is 0"):
        refine_masks(refiner(), Blocks(), pictures, coarse, 0)


@pytest.fixture(scope="module", params=["qwen3_vl", "qwen2_5_vl"])
def policy(request: pytest.FixtureRequest, tiny_untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Policy:
    if request.param == "qwen3_vl":
        return Policy(tiny_untrained, Codec())
    folder = tmp_path_factory.mktemp("qwen2_5_vl")
    write_qwen2_5_vl(folder)
    return Policy(folder, Codec())


@pytest.mark.parametrize("features", ["image", "crop"])
@pytest.mark.parametrize("early_block", [0, 1])
def test_every_family_serves_both_kinds_of_features(policy, features, early_block):
    pictures, coarse = scenes()
    seen = policy.vision_features(pictures[:1], early_block)
    network = refiner(features, seen.final.shape[1], seen.early.shape[1], early_block)
    found = refine_masks(network, policy, pictures, coarse)
    assert [len(masks) for masks in found] == [2, 0, 1, 3]
    assert all(0 < one.predicted_iou < 1 for one in (found[0][0], found[2][0], found[3][2]))


def test_a_two_way_refiner_reads_crops_of_48_px_through_a_tower_that_resamples_them(tiny_untrained: Path) -> None:
    tiny = Policy(tiny_untrained, Codec())  # its image processor makes 32 x 32 px of everything square
    sizes = {"cell_px": 8, "width": 32, "heads": 2, "mlp_ratio": 2, "mask_channels": 4, "map_heads": 2}
    settings = RefinerSettings(features="crop", early_block=1)
    network = MaskRefiner(
        settings, Plugin("policies.heads", "Head", "two_way_head", sizes), 32, 16, tiny.vision_checksum()
    )
    pictures, coarse = scenes()
    found = refine_masks(network, tiny, pictures, coarse)
    for masks, refined in zip(coarse, found, strict=True):
        for mask, one in zip(masks, refined, strict=True):
            assert np.array_equal(one.mask, mask)  # untrained: the identity
