"""A worker with a refiner that grows every mask by a pixel: what its rewards are paid, and which weights it takes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from growing_refiner import write_growing_refiner
from scipy.ndimage import binary_dilation
from test_worker import LooseCodec

from envs.geometry.contours import mask_from_rings
from envs.plugin import Plugin
from envs.polygons import Answer, AnswerStatus, answer_from_rings
from policies.families.vision_language import Policy
from policies.weights import bucket_names, make_bucket
from rewards.settings import RewardRecipe
from rollout.records import Group
from rollout.refined import AnswerRefiner
from rollout.settings import RefinedSettings, Sampling
from rollout.worker import RolloutWorker, Unit, WorkerSettings

NAMES = ("mask_iou", "refined_iou", "unmended")
UNIT = Unit("train", 3, positions=(4, 5, 6), indices=(7, 11, 2), group_size=5, sampling=Sampling(1.0, 12))


@pytest.fixture(scope="module")
def refiner(tiny_untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("refiner")
    write_growing_refiner(folder, Policy(tiny_untrained, LooseCodec()), crop_px=32)
    return folder


def worker(checkpoint: Path, refiner: Path, batch_size: int = 64) -> RolloutWorker:
    settings = WorkerSettings(
        run="a-run",
        seed=1,
        env=Plugin("envs.datasets", "Env", "cutout_scenes", {"image_size": 32, "num_scenes": 20}),
        policy=Plugin(
            "policies.families", "Policy", "vision_language", {"checkpoint": checkpoint, "codec": LooseCodec()}
        ),
        rewards={name: RewardRecipe(Plugin("rewards.terms", "Reward", name, {})) for name in NAMES},
        refined=RefinedSettings(str(refiner), batch_size),
    )
    made = RolloutWorker(settings, "one")
    made.set_weights(0, [])
    return made


@pytest.fixture(scope="module")
def groups(tiny_untrained: Path, refiner: Path) -> list[Group]:
    return worker(tiny_untrained, refiner).answer(UNIT, 0)


def test_terms_are_those_of_the_outlines_grown_by_a_pixel(groups: list[Group]) -> None:
    told = set()
    for group in groups:
        truth = group.example.truth.union
        for rollout in group.rollouts:
            if not rollout.answer.status.valid:
                assert rollout.terms == dict.fromkeys(NAMES, 0.0)
                continue
            drawn = mask_from_rings(rollout.answer.rings_px, 32, 32)
            grown = binary_dilation(drawn, np.ones((3, 3)))
            wrong = (drawn != truth) & (grown != truth)
            assert rollout.terms["mask_iou"] == rollout.iou == (drawn & truth).sum() / (drawn | truth).sum()
            assert rollout.terms["refined_iou"] == (grown & truth).sum() / (grown | truth).sum()
            assert rollout.terms["unmended"] == pytest.approx(1 - wrong.sum() / (wrong | truth).sum())
            told.add((rollout.iou != rollout.terms["refined_iou"], bool(drawn.any())))
    assert told >= {(True, True), (False, False)}  # masks that grew, and answers without a pixel


def test_another_worker_says_the_same_to_the_bit(tiny_untrained: Path, refiner: Path, groups: list[Group]) -> None:
    again = worker(tiny_untrained, refiner).answer(UNIT, 0)
    terms = [[[rollout.terms for rollout in group.rollouts] for group in each] for each in (again, groups)]
    assert terms[0] == terms[1]


def test_answers_without_a_pixel_get_no_ring_and_others_keep_their_places(tiny_untrained: Path, refiner: Path) -> None:
    policy = Policy(tiny_untrained, LooseCodec())
    square = answer_from_rings([np.array([[4.0, 4], [8, 4], [8, 8], [4, 8]])])
    line = answer_from_rings([np.array([[4.0, 4], [8, 4], [8, 4]])])
    answers = [[Answer(AnswerStatus.EMPTY), line], [line, square, replace(square, status=AnswerStatus.TRUNCATED)]]
    images = [np.zeros((32, 32, 3), np.uint8)] * 2
    found = AnswerRefiner(RefinedSettings(str(refiner)), policy).refine(policy, images, answers)
    assert [flat.answer_offsets.tolist() for flat in found] == [[0, 0, 0], [0, 0, 1, 1]]
    assert found[1].vertices.tolist() == [[3, 3], [9, 3], [9, 9], [3, 9]]
    assert (
        AnswerRefiner(RefinedSettings(str(refiner)), policy).refine(policy, images[:1], answers[:1])[0].num_answers == 2
    )


def test_a_refiner_of_another_tower_is_refused_and_so_are_weights_that_move_the_tower(
    tiny_untrained: Path, refiner: Path, tmp_path: Path
) -> None:
    policy = Policy(tiny_untrained, LooseCodec())
    moved = next(policy.vision_tower.parameters())
    moved.data += 1
    sent = [make_bucket(part) for part in bucket_names(policy.model)]
    one = worker(tiny_untrained, refiner)
    with pytest.raises(ValueError, match=r"vision tower is now .* set learner.freeze_vision to true"):
        one.set_weights(1, sent)
    with pytest.raises(RuntimeError, match=r"version -1"):
        one.answer(UNIT, 1)
    write_growing_refiner(tmp_path, policy, crop_px=32)
    with pytest.raises(ValueError, match=r"load the policy it goes with, or train a refiner for this one"):
        worker(tiny_untrained, tmp_path)


def test_a_batch_holds_one_mask_or_more() -> None:
    with pytest.raises(ValueError, match=r"refined.batch_size is 0; set it to 1 or more"):
        RefinedSettings("runs/demo/refiner", 0)
