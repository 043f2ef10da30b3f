"""One rank in this process, as a training of one rank has it; several ranks in processes of their own."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ellipses import (
    HEAD,
    NETWORK,
    TOWER,
    TRAINING,
    Env,
    features_of,
    iou_of,
    prepared,
    row_of,
    with_training,
    write_index,
)
from hypothesis import given
from hypothesis import strategies as st
from ranks import free_port, together
from rich.console import Console
from safetensors.torch import load_file

from envs.plugin import Plugin
from policies.families.base import VisionFeatures
from policies.refiner.mask_refiner import MaskRefiner
from rl.config.learner import RankPlace
from rl.config.refiner import RefinerStage
from rl.refiner.data import shares
from rl.refiner.rank import RefinerRank, RefinerRankSettings
from rl.refiner.train import train_refiner

Weights = dict[str, torch.Tensor]
QUIET = Console(quiet=True)
SPARE = 1e-5
"""What sums in another order may differ by."""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> RefinerRankSettings:
    """Twenty pairs, four steps of four."""
    return prepared(tmp_path_factory.mktemp("small"), env=Env("train", 20))


def trained(settings: RefinerRankSettings, out: Path, **changed: object) -> Weights:
    train_refiner(with_training(settings, **changed), out, QUIET)
    return load_file(out / "refiner.safetensors")


def same(a: Weights, b: Weights) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def rank_of(settings: RefinerRankSettings, **changed: object) -> RefinerRank:
    return RefinerRank(with_training(settings, **changed), RankPlace(port=free_port()))


def weights_of(rank: RefinerRank) -> Weights:
    return {name: value.detach().clone() for name, value in rank._engine.network.named_parameters()}


def lines_of(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_after_40_small_steps_unseen_masks_are_0_15_better_and_their_iou_is_foretold(tmp_path: Path) -> None:
    training = replace(TRAINING, steps=40, batch_size=12, save_every=40)
    train_refiner(prepared(tmp_path / "pairs", training, Env("train", 120)), tmp_path / "out", QUIET)
    refiner, env = MaskRefiner.load(tmp_path / "out", TOWER), Env("test", 40)
    images, true, coarse = (np.stack(part) for part in zip(*(env.drawn(k) for k in range(40)), strict=True))
    found = [features_of(env[k].image.sha256) for k in range(40)]
    features = VisionFeatures(torch.cat([one.final for one in found]), torch.cat([one.early for one in found]))
    refined = refiner.refine(torch.from_numpy(images), features, torch.from_numpy(coarse))
    before = np.mean([iou_of(*masks) for masks in zip(coarse, true, strict=True)])
    after = np.mean([iou_of(*masks) for masks in zip(refined.masks.numpy(), true, strict=True)])
    assert 0.6 < before < 0.85
    assert after > before + 0.15
    assert refined.predicted_iou.mean().item() == pytest.approx(after, abs=0.1)
    logged = [line["refiner/iou"] for line in lines_of(tmp_path / "out")]
    assert np.mean(logged[-5:]) == pytest.approx(after, abs=0.1) and np.mean(logged[:2]) < after - 0.1


def test_equal_seeds_give_equal_weights_and_another_seed_others(small: RefinerRankSettings, tmp_path: Path) -> None:
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first = trained(small, tmp_path / "first")
    assert torch.equal(torch.get_rng_state(), state)  # the caller's random numbers are left alone
    torch.manual_seed(8)
    assert same(first, trained(small, tmp_path / "again"))
    assert not same(first, trained(small, tmp_path / "other", seed=1))
    lines = lines_of(tmp_path / "first")
    assert [line["step"] for line in lines] == [0, 1, 2, 3] and lines == lines_of(tmp_path / "again")
    assert [line["refiner/lr"] for line in lines] == [small.training.lr_at(step) for step in range(4)]
    assert all(
        line["refiner/loss"]
        == pytest.approx(sum(line[f"refiner/{n}"] for n in ("mask_loss", "dice_loss", "iou_error")))
        for line in lines
    )


@pytest.mark.parametrize("stopped_at", [1, 3])
@pytest.mark.parametrize("average", [0.0, 0.9])
def test_a_training_stopped_and_gone_on_with_gives_the_very_weights_and_metrics_of_an_unbroken_one(
    small: RefinerRankSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_at: int, average: float
) -> None:
    whole = trained(small, tmp_path / "whole", average=average)
    plain, done = RefinerRank._step, 0

    def stopping(rank: RefinerRank) -> dict[str, float]:
        nonlocal done
        done += 1
        if done > stopped_at:
            raise KeyboardInterrupt
        return plain(rank)

    with monkeypatch.context() as patch:
        patch.setattr(RefinerRank, "_step", stopping)
        with pytest.raises(KeyboardInterrupt):
            trained(small, tmp_path / "broken", average=average)
    assert not (tmp_path / "broken" / "refiner.json").exists()
    (tmp_path / "broken" / "metrics.jsonl").open("a").write('{"step": 2, "refiner/loss": 9}\n{"step": 3, "ref')
    assert same(trained(small, tmp_path / "broken", average=average), whole)
    assert (tmp_path / "broken/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()
    assert [path.name for path in (tmp_path / "broken/checkpoints").iterdir()] == ["step-000004"]


def test_what_is_kept_is_the_running_average_where_there_is_one(small: RefinerRankSettings, tmp_path: Path) -> None:
    rank = rank_of(small, average=0.5)
    average, name = weights_of(rank), "head.mask_out.weight"
    for step in range(1, 5):
        rank.steps(step)
        decay = min(0.5, step / (step + 10))
        now = weights_of(rank)
        average = {key: decay * value + (1 - decay) * now[key] for key, value in average.items()}
    rank.save_policy(tmp_path / "average")
    found = load_file(tmp_path / "average/refiner.safetensors")
    assert set(found) == set(average)
    for key, value in found.items():
        torch.testing.assert_close(value, average[key], atol=1e-6, rtol=0)
    assert not torch.equal(found[name], now[name])
    plain = rank_of(small)
    plain.steps(4)
    plain.save_policy(tmp_path / "last")
    assert same(load_file(tmp_path / "last/refiner.safetensors"), now)  # the average changes nothing but what is kept


def test_each_stage_has_its_own_crop_pairs_and_boundary_weight(
    small: RefinerRankSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    middle = float(np.median(small.pairs().iou[shares(small.pairs().image_hashes(), 0.1, 0.1)["train"]]))
    stages = [
        RefinerStage("coarse", crop_px=16, max_iou=middle),
        RefinerStage("fine", min_iou=middle, boundary_weight=3.0),
    ]
    rank, seen = rank_of(small, stages=stages), []
    batch_of, near = rank._pairs.batch, []

    def spied(numbers: Sequence[int], moves: np.ndarray, crop_px: int, cells: int, store: object) -> object:
        seen.append((crop_px, cells, [rank._pairs.iou[number] for number in numbers]))
        return batch_of(numbers, moves, crop_px, cells, store)

    monkeypatch.setattr(rank._pairs, "batch", spied)
    monkeypatch.setattr("rl.refiner.rank.pass_losses", _noting_weights(near))
    rank.steps(4)
    assert [one[:2] for one in seen] == [(16, 4), (16, 4), (24, 6), (24, 6)]
    assert all(iou <= middle for one in seen[:2] for iou in one[2])
    assert all(iou >= middle for one in seen[2:] for iou in one[2])
    assert near == [0.0] * 4 + [3.0] * 4  # of two passes a step


def _noting_weights(noted: list[float]) -> object:
    from rl.refiner.loss import pass_losses

    def noting(found, inputs, truth, training, stage):
        noted.append(stage.boundary_weight)
        return pass_losses(found, inputs, truth, training, stage)

    return noting


def test_a_stage_without_a_pair_or_with_a_crop_that_the_head_cannot_take_is_refused(small: RefinerRankSettings) -> None:
    with pytest.raises(ValueError, match=r"stage 'fine' trains on pairs of IoU 0.999 to 1, and none of the \d+"):
        rank_of(small, stages=[RefinerStage("fine", min_iou=0.999)])
    with pytest.raises(ValueError, match="crop_px is 18"):
        with_training(small, stages=[RefinerStage(), RefinerStage("odd", crop_px=18)]).refuse_wrong_crops()


def test_a_loss_that_is_not_finite_ends_the_training_with_one_line(
    small: RefinerRankSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    rank = rank_of(small)
    rank.steps(1)
    rank._engine.network.head.mask_gain.data.fill_(math.nan)
    with pytest.raises(FloatingPointError, match=r"the refiner's loss of step 1 is nan; lower training.lr"):
        rank.steps(2)


def test_the_pairs_of_a_step_are_keyed_by_seed_and_step_and_shared_out_evenly(small: RefinerRankSettings) -> None:
    rank, stage = rank_of(small, batch_size=6), small.training.stages[0]
    numbers, moves = rank._draw(3, stage)
    rank.steps(1)
    again, moved = rank._draw(3, stage)
    assert again == numbers and np.array_equal(moves, moved) and rank._draw(2, stage)[0] != numbers
    assert abs(moves).max() <= small.training.box_jitter and moves.shape == (6, 4)
    train = set(shares(small.pairs().image_hashes(), 0.1, 0.1)["train"].tolist())
    assert {number for step in range(40) for number in rank._draw(step, stage)[0]} == train
    for k in range(3):
        rank._place = RankPlace(k, 3)
        assert rank._draw(3, stage)[0] == numbers[k::3] and np.array_equal(rank._draw(3, stage)[1], moves[k::3])


def test_previews_are_the_first_held_out_pairs_and_change_nothing(small: RefinerRankSettings) -> None:
    rank = rank_of(small)
    before = weights_of(rank)
    shown = rank.preview(3)
    pairs = small.pairs()
    first = shares(pairs.image_hashes(), 0.1, 0.1)
    held_out = np.concatenate([first["evaluation"], first["calibration"], first["train"]])[:3]
    batch = pairs.batch(held_out.tolist(), np.zeros((3, 4)), 24, 6, small.store())
    for k, one in enumerate(shown):
        np.testing.assert_array_equal(one.coarse, batch.coarse[k].numpy() > 0.5)
        np.testing.assert_array_equal(one.fine, one.coarse)  # untrained, it is the identity
        np.testing.assert_array_equal(one.true, batch.truth.true[k].numpy() > 0.5)
        np.testing.assert_allclose(one.image.transpose(2, 0, 1), (batch.crops.images[k] + 1) * 127.5, atol=0.51)
    assert same(weights_of(rank), before)


def test_bfloat16_trains_and_what_is_kept_is_float32(small: RefinerRankSettings, tmp_path: Path) -> None:
    found = trained(small, tmp_path / "out", dtype="bfloat16", average=0.5)
    assert all(value.dtype == torch.float32 and torch.isfinite(value).all() for value in found.values())


@given(seed=st.integers(0, 3))
def test_an_untrained_refiner_is_the_same_at_every_call_and_follows_the_seed(seed: int) -> None:
    training = replace(TRAINING, seed=seed)
    made = RefinerRankSettings(NETWORK, HEAD, training, Path("x"), {}, Path("y"), TOWER, 4, 3, 0.1, 0.1)
    assert same(made.refiner().state_dict(), made.refiner().state_dict())
    other = replace(made, training=replace(training, seed=seed + 1))
    assert not same(made.refiner().state_dict(), other.refiner().state_dict())


def _halves(place: RankPlace, settings: Sequence[RefinerRankSettings], folder: Path) -> None:
    """Four steps of each training by several ranks, saved after the second."""
    for made in settings:
        rank, out = RefinerRank(made, place), folder / f"{made.training.zero_stage}"
        rank.steps(2)
        out.mkdir(parents=True, exist_ok=True)
        rank.save(out, "learner")
        rank.steps(4)
        rank.save_policy(out / "two" / "refiner")


def _wholes(place: RankPlace, settings: Sequence[RefinerRankSettings], folder: Path) -> None:
    """Four steps of each training by one rank, and the last two of them from what several have saved."""
    for made in settings:
        out = folder / f"{made.training.zero_stage}"
        rank = RefinerRank(made, place)
        rank.steps(4)
        rank.save_policy(out / "one" / "refiner")
        rank = RefinerRank(made, place)
        rank.load(out, "learner")
        assert len(rank.steps(4)) == 2
        rank.save_policy(out / "then_one" / "refiner")


def _near(a: Path, b: Path) -> None:
    one, other = (load_file(folder / "refiner/refiner.safetensors") for folder in (a, b))
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], atol=SPARE, rtol=0)


@pytest.mark.long
def test_two_ranks_learn_what_one_does_and_one_goes_on_from_two(small: RefinerRankSettings, tmp_path: Path) -> None:
    # A small rate: AdamW makes whole steps of the rounding errors in gradients that should be 0.
    stages = [with_training(small, zero_stage=stage, average=0.9, lr=1e-4) for stage in (0, 1)]
    together(_halves, 2, [with_training(made, ranks=2) for made in stages], tmp_path)
    together(_wholes, 1, stages, tmp_path)
    for stage in ("0", "1"):
        _near(tmp_path / stage / "one", tmp_path / stage / "two")
        _near(tmp_path / stage / "one", tmp_path / stage / "then_one")


@pytest.mark.long
def test_two_ranks_over_ray_write_the_refiner_of_one(small: RefinerRankSettings, tmp_path: Path) -> None:
    from rollout import cluster

    settings = with_training(small, lr=1e-4)
    trained(settings, tmp_path / "one" / "refiner")
    try:
        trained(settings, tmp_path / "two" / "refiner", ranks=2)
    finally:
        cluster.stop()
    _near(tmp_path / "one", tmp_path / "two")
    assert len(lines_of(tmp_path / "two/refiner")) == 4


@pytest.mark.long
def test_what_a_rank_over_ray_finds_wrong_is_told_as_it_is(small: RefinerRankSettings, tmp_path: Path) -> None:
    from rollout import cluster

    settings = with_training(small, ranks=2, lr=1e30, steps=8)
    try:
        with pytest.raises(FloatingPointError, match=r"^the refiner's loss of step \d+ is \w+; lower training.lr\.$"):
            train_refiner(settings, tmp_path / "out", QUIET)
    finally:
        cluster.stop()


def test_the_boxes_of_crops_move_by_the_seed_of_the_training(tmp_path: Path) -> None:
    index = write_index(tmp_path, [row_of(Env("train", 1), 0)])
    env = Plugin("envs.datasets", "Env", "ellipses", {"num": 1}, str(Path(__file__).parents[2] / "ellipses.py"))
    network = replace(NETWORK, features="crop")
    made = RefinerRankSettings(network, HEAD, TRAINING, index, {"made": env}, tmp_path, TOWER, 4, 3, 0.1, 0.1)
    paths = {
        with_training(made, **changed).pairs().feature_path(made.store(), 0)
        for changed in ({}, {"seed": 1}, {"box_jitter": 0.2}, {"lr": 0.5})
    }
    assert len(paths) == 3
