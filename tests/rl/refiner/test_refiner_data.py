from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ellipses import HEAD, NETWORK, TOWER, TRAINING, Env, iou_of, prepared, row_of, write_index
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.plugin import Plugin
from policies.crops import cut
from policies.families.base import VisionFeatures
from policies.refiner.mask_refiner import MaskRefiner, RefinerSettings
from rl.refiner.data import PixelPair, RefinerPairs, crop_pixels, moved_box, shares
from rl.refiner.loss import CropTruth, crop_iou

SIZES = ((40, 28), (28, 40), (32, 32), (72, 130))
NEAR = 5e-3
"""Of the 255 of a pixel: two ways to resample in single precision."""


def pair_of(rng: np.random.Generator, height: int, width: int) -> PixelPair:
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PixelPair(image, *(rng.random((height, width)) > share for share in (0.5, 0.6, 0.1)))


def cut_whole(pair: PixelPair, box: tuple[float, ...], size: int) -> torch.Tensor:
    """All that crop_pixels says of one pair, from the whole image."""
    height, width = pair.coarse.shape
    masks = np.stack([pair.coarse, pair.true & pair.counted, pair.counted])
    maps = np.concatenate([pair.image.transpose(2, 0, 1), masks]).astype(np.float32)
    return cut(torch.from_numpy(maps)[None], torch.tensor([box]), height, width, size)[0]


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), size=st.sampled_from([1, 8, 24, 48]))
def test_crops_of_images_of_mixed_sizes_are_those_of_the_whole_images(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    pairs, boxes = [], []
    for _ in range(4):
        height, width = (int(side) for side in rng.integers(5, 150, 2))
        pairs.append(pair_of(rng, height, width))
        ends = np.sort(rng.uniform(0, 1, (2, 2)), axis=0) * [width, height]
        border = rng.random((2, 2)) < 0.4  # at these edges the box ends with the image
        ends = np.where(border, [[0, 0], [width, height]], ends)
        low, high = np.minimum(ends[0], [width - 1, height - 1]), np.maximum(ends[1], ends[0] + 1)
        boxes.append((*low.tolist(), *np.minimum(high, [width, height]).tolist()))
    found = crop_pixels(pairs, boxes, size)
    for pair, box, maps in zip(pairs, boxes, found, strict=True):
        torch.testing.assert_close(maps, cut_whole(pair, box, size), atol=NEAR, rtol=0)


def test_a_crop_of_the_whole_image_at_its_own_size_is_the_image() -> None:
    pair = pair_of(np.random.default_rng(0), 24, 24)
    (found,) = crop_pixels([pair], [(0.0, 0.0, 24.0, 24.0)], 24)
    np.testing.assert_allclose(found[:3].numpy(), pair.image.transpose(2, 0, 1), atol=NEAR)
    np.testing.assert_array_equal(found[4].numpy() > 0.5, pair.true & pair.counted)


def refiner_for(network: RefinerSettings) -> MaskRefiner:
    return MaskRefiner(network, HEAD, 4, 3, TOWER)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """Settings of ranks over 8 pairs of four sizes, by where their features come from."""
    env = Env("train", 8, SIZES)
    return {
        kind: prepared(tmp_path_factory.mktemp(kind), env=env, network=replace(NETWORK, features=kind))
        for kind in ("image", "crop")
    }


@pytest.mark.parametrize("crop_px", [16, 24])
@pytest.mark.parametrize("kind", ["image", "crop"])
def test_a_batch_of_mixed_sizes_is_what_the_refiner_would_cut_for_the_same_boxes(
    mixed: dict, kind: str, crop_px: int
) -> None:
    made = mixed[kind]
    pairs, store, refiner = made.pairs(), made.store(), refiner_for(made.network)
    numbers, moves = [3, 0, 1, 7, 2], np.random.default_rng(0).uniform(-0.1, 0.1, (5, 4))
    batch = pairs.batch(numbers, moves, crop_px, refiner.head.feature_cells(crop_px), store)
    for k, number in enumerate(numbers):
        pair = pairs.pixels(number)
        box = pairs.box_px(number, pair.coarse, moves[k].tolist())
        features, image = store.read(pairs.feature_path(store, number)), torch.from_numpy(pair.image)[None]
        expected = refiner.crops(image, features, torch.tensor([box]), crop_px)
        for name in ("images", "final", "early"):
            found = vars(batch.crops)[name][k : k + 1]
            torch.testing.assert_close(found, vars(expected)[name], atol=1e-4, rtol=0)
        coarse = cut(
            torch.from_numpy(pair.coarse)[None, None].float(), torch.tensor([box]), *pair.coarse.shape, crop_px
        )
        torch.testing.assert_close(batch.coarse[k : k + 1], coarse[:, 0], atol=1e-4, rtol=0)
        cell_px = (box[2] - box[0]) * (box[3] - box[1]) / crop_px**2
        assert batch.truth.area[k].item() == pytest.approx(pair.true.sum() / cell_px, rel=1e-5)


@pytest.mark.parametrize("kind", ["image", "crop"])
def test_a_pair_is_the_same_in_any_batch(mixed: dict, kind: str) -> None:
    made = mixed[kind]
    pairs, store, still = made.pairs(), made.store(), np.zeros((3, 4))
    together, alone = pairs.batch([5, 2, 0], still, 24, 6, store), pairs.batch([2], still[:1], 24, 6, store)
    torch.testing.assert_close(together.crops.images[1:2], alone.crops.images, atol=1e-5, rtol=0)
    torch.testing.assert_close(together.crops.final[1:2], alone.crops.final, atol=1e-5, rtol=0)
    torch.testing.assert_close(together.truth.true[1:2], alone.truth.true, atol=1e-5, rtol=0)


def test_boxes_move_by_what_is_drawn_for_images_and_once_a_pair_for_crops(mixed: dict) -> None:
    image, crop = mixed["image"].pairs(), mixed["crop"].pairs()
    coarse, moves = image.pixels(1).coarse, (-0.1, -0.05, 0.1, 0.0)
    still = image.box_px(1, coarse)
    assert still == tuple(refiner_for(NETWORK).boxes_px(torch.from_numpy(coarse)[None])[0].tolist())
    assert image.box_px(1, coarse, moves) == moved_box(still, moves, *coarse.shape) != still
    assert crop.box_px(1, coarse, moves) == crop.box_px(1, coarse) == mixed["crop"].pairs().box_px(1, coarse) != still
    longest = max(still[2] - still[0], still[3] - still[1])
    assert max(abs(a - b) for a, b in zip(crop.box_px(1, coarse), still, strict=True)) <= TRAINING.box_jitter * longest


def test_the_tower_sees_the_image_or_what_the_refiner_would_have_encoded(mixed: dict) -> None:
    image, crop = mixed["image"].pairs(), mixed["crop"].pairs()
    pair = image.pixels(3)
    np.testing.assert_array_equal(image.seen_by_tower(3), Env("train", 8, SIZES).drawn(3)[0])
    box = torch.tensor([crop.box_px(3, pair.coarse)])
    expected = refiner_for(mixed["crop"].network).crop_images(torch.from_numpy(pair.image)[None], box)[0]
    seen = crop.seen_by_tower(3)
    assert seen.shape == (24, 24, 3) and seen.dtype == np.uint8
    assert abs(seen.astype(int) - expected.numpy().astype(int)).max() <= 1  # where rounding falls on a half


def test_equal_images_share_their_features_and_other_crops_of_one_do_not(tmp_path: Path, mixed: dict) -> None:
    env, store = Env("train", 8, SIZES), mixed["image"].store()
    index = write_index(tmp_path, [row_of(env, 0), row_of(env, 0)])
    for kind, num in (("image", 1), ("crop", 2)):
        pairs = RefinerPairs(index, {"made": env}, replace(NETWORK, features=kind), seed=0, box_jitter=0.1)
        assert len({pairs.feature_path(store, number) for number in (0, 1)}) == num


def test_moved_edges_are_parts_of_the_sides_and_stay_in_the_image() -> None:
    assert moved_box((10, 20, 30, 60), (0.1, -0.1, 0.1, -0.1), 100, 100) == (12, 16, 32, 56)
    assert moved_box((1, 1, 39, 29), (-0.4, -0.4, 0.4, 0.4), 30, 40) == (0, 0, 40, 30)
    x0, y0, x1, y1 = moved_box((10, 10, 20, 20), (0.49, 0.49, -0.49, -0.49), 100, 100)
    assert x1 - x0 == pytest.approx(0.2) and y1 - y0 == pytest.approx(0.2)


def test_ignored_pixels_are_neither_true_nor_counted(tmp_path: Path) -> None:
    env = Env("train", 1)
    _, true, coarse = env.drawn(0)
    ignore = np.zeros((32, 32), np.bool_)
    ignore[:, 16:] = True
    pairs = RefinerPairs(write_index(tmp_path, [row_of(env, 0, ignore)]), {"made": env}, NETWORK, 0, 0.0)
    pair = pairs.pixels(0)
    np.testing.assert_array_equal(pair.counted, ~ignore)
    box = (0.0, 0.0, 32.0, 32.0)
    maps = crop_pixels([pair], [box], 32)
    np.testing.assert_array_equal(maps[0, 4].numpy() > 0.5, true & ~ignore)
    told = CropTruth(maps[:, 4], maps[:, 5], torch.tensor([float((true & ~ignore).sum())]))
    assert crop_iou(torch.from_numpy(coarse)[None, None], told).item() == pytest.approx(
        iou_of(coarse & ~ignore, true & ~ignore)
    )


def test_the_area_of_a_truth_leaves_ignored_pixels_out_and_counts_what_the_box_misses(tmp_path: Path) -> None:
    env, ignore = Env("train", 1), np.zeros((32, 32), np.bool_)
    ignore[:16] = True
    network = replace(NETWORK, box_growth=0.0, min_box_px=1.0)
    pairs = RefinerPairs(write_index(tmp_path, [row_of(env, 0, ignore)]), {"made": env}, network, 0, 0.0)
    made = prepared(tmp_path / "made", env=env)
    batch = pairs.batch([0], np.zeros((1, 4)), 24, 6, made.store())
    _, true, coarse = env.drawn(0)
    rows, columns = np.flatnonzero(coarse.any(axis=1)), np.flatnonzero(coarse.any(axis=0))
    box_px = (rows[-1] + 1 - rows[0]) * (columns[-1] + 1 - columns[0])
    assert batch.truth.area.item() == pytest.approx((true & ~ignore).sum() * 24**2 / box_px, rel=1e-5)
    assert batch.truth.area.item() > batch.truth.true.sum().item()  # the ellipse is wider than the box around its mask


def test_sizes_are_height_and_width_and_hashes_those_of_the_images(mixed: dict) -> None:
    pairs, env = mixed["image"].pairs(), Env("train", 8, SIZES)
    assert pairs.sizes([1, 3]) == [(28, 40), (72, 130)]
    assert pairs.image_hashes() == [env[k].image.sha256 for k in range(8)]
    assert len(pairs) == 8


def test_shares_of_images_are_as_asked_and_disjoint() -> None:
    hashes = [f"{k:064x}" for k in range(4000)]
    parts = shares(hashes, 0.1, 0.2)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(4000))
    assert [len(parts[name]) / 4000 for name in ("train", "calibration", "evaluation")] == pytest.approx(
        [0.7, 0.1, 0.2], abs=0.02
    )
    assert len(shares(hashes, 0.0, 0.0)["train"]) == 4000


def test_pairs_of_an_image_share_their_part_and_an_image_stays_when_others_join() -> None:
    few = [f"{k // 3:064x}" for k in range(300)]
    more = [f"{k:064x}" for k in range(500, 700)] + few
    before, after = shares(few, 0.2, 0.3), shares(more, 0.2, 0.3)
    for name, numbers in before.items():
        images = {few[number] for number in numbers}
        assert len(numbers) == 3 * len(images)
        assert images <= {more[number] for number in after[name]}


def test_the_decoded_images_that_are_kept_have_a_limit_and_the_oldest_go_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rl.refiner.data._IMAGE_BYTES", 2 * 32 * 32 * 3)
    asked: list[str] = []
    env = Env("train", 4)

    class Spied(Env):
        def image(self, ref):
            asked.append(ref.key)
            return super().image(ref)

    index = write_index(tmp_path, [row_of(env, k) for k in range(4)])
    pairs = RefinerPairs(index, {"made": Spied("train", 4)}, NETWORK, 0, 0.0)
    for number in (0, 1, 0, 1, 2, 1, 0):
        np.testing.assert_array_equal(pairs.pixels(number).image, env.drawn(number)[0])
    assert asked == ["0", "1", "2", "0"]  # 0 went for 2, as 1 had been seen later


def test_an_image_that_is_another_one_now_is_refused(tmp_path: Path) -> None:
    made = prepared(tmp_path, env=Env("train", 2))
    wide = Plugin("envs.datasets", "Env", "cutout_scenes", {"image_size": 32, "num_scenes": 2})
    with pytest.raises(ValueError, match=r"."):
        replace(made, envs={"made": wide}).pairs().pixels(0)


def test_features_of_another_grid_are_cut_by_their_own_scale(tmp_path: Path) -> None:
    """A map that says where it is: column numbers of a 4 x 8 grid over an image of 32 x 64 px."""
    env = Env("train", 1, ((32, 64),))
    made = prepared(tmp_path, env=env)
    pairs, store = made.pairs(), made.store()
    where = torch.arange(8.0).expand(1, 4, 4, 8)
    store.write(pairs.feature_path(store, 0), VisionFeatures(where, where[:, :3]), torch.float32)
    coarse = pairs.pixels(0).coarse
    x0, _, x1, _ = pairs.box_px(0, coarse)
    batch = pairs.batch([0], np.zeros((1, 4)), 24, 6, store)
    centres = x0 + (np.arange(6) + 0.5) * (x1 - x0) / 6
    np.testing.assert_allclose(batch.crops.final[0, 0, 2].numpy(), (centres / 8 - 0.5).clip(0, 7), atol=1e-4)
