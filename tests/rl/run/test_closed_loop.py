"""A run on refined masks is refused before it starts where refiner, rewards, learner or engine do not fit together."""

from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest
from growing_refiner import write_growing_refiner
from in_process import TINY

from envs.codecs.path_tokens import Codec
from envs.plugin import Plugin
from rl.config.learner import LearnerSettings
from rl.config.load import load_settings, save_settings
from rl.config.rewards import reward_parts
from rl.config.run import RunConfig
from rl.run.data import RunData
from rl.run.folder import prepare_folder
from rl.run.parts import check_refined, run_parts, worker_settings
from rollout.settings import RefinedSettings

NO_DATA = RunData({})
FROZEN = LearnerSettings(freeze_vision=True)
SHARED = Plugin("rollout.engines", "Engine", "shared", {})


@pytest.fixture(scope="module")
def policy(tiny_untrained: Path) -> Plugin:
    return Plugin("policies.families", "Policy", "vision_language", {"checkpoint": tiny_untrained, "codec": Codec()})


@pytest.fixture(scope="module")
def refiner(policy: Plugin, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("refiner")
    write_growing_refiner(folder, policy.build(), crop_px=32)
    return folder


def closed(checkpoint: Path, refiner: Path, *overrides: str) -> RunConfig:
    paths = [f"policy.checkpoint={checkpoint}", f"refined.refiner={refiner}"]
    return load_settings(RunConfig, Path("closed_loop"), [*TINY[:-1], *paths, *overrides])


def test_a_fitting_refiner_travels_to_the_workers_by_its_absolute_path(
    tiny_untrained: Path, refiner: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(refiner.parent)
    config = closed(tiny_untrained, Path(refiner.name), "refined.batch_size=7")
    parts = run_parts(config)
    assert worker_settings(config, parts).refined == RefinedSettings(str(refiner), 7)
    assert parts.rewards.on_refined == ["refined_iou", "unmended"]
    save_settings(config, tmp_path / "config.yaml")
    assert load_settings(RunConfig, tmp_path / "config.yaml") == config
    assert load_settings(RunConfig, Path("demo")).refined is None


def test_a_reward_on_the_refined_mask_needs_a_refiner(tmp_path: Path, policy: Plugin) -> None:
    own = tmp_path / "own.py"
    own.write_text(
        "from dataclasses import dataclass\n\n\n@dataclass\nclass Reward:\n    needs_refined = True\n"
        "    weight: float = 1.0\n\n    def __call__(self, comparison):\n        return comparison.refined_iou\n"
    )
    for name, entry in (("unmended", {}), ("own", {"module": str(own)}), ("mine", {"name": "refined_iou"})):
        rewards = reward_parts({"mask_iou": {}, name: entry}, {})
        says = f"rewards.{name} is measured on the refined mask, but `refined` is not set; set refined.refiner"
        with pytest.raises(ValueError, match=says):
            check_refined(None, rewards, FROZEN, SHARED, policy)
    assert check_refined(None, reward_parts({"mask_iou": {}}, {}), LearnerSettings(), SHARED, policy) is None
    with pytest.raises(ValueError, match=r"rewards.refined_iou is measured on the refined mask, but `refined` is not"):
        run_parts(load_settings(RunConfig, Path("demo"), ["rewards.refined_iou={}"]))


def test_a_tower_that_learns_and_an_engine_without_a_policy_are_refused(policy: Plugin, refiner: Path) -> None:
    rewards, refined = reward_parts({"refined_iou": {}}, {}), RefinedSettings(str(refiner))
    with pytest.raises(ValueError, match=r"learner.freeze_vision false, .* set learner.freeze_vision to true"):
        check_refined(refined, rewards, LearnerSettings(), SHARED, policy)
    with pytest.raises(ValueError, match=r"pool.engine is vllm, .* set pool.engine.name to shared"):
        check_refined(refined, rewards, FROZEN, Plugin("rollout.engines", "Engine", "vllm", {}), policy)


def test_a_folder_without_a_fitting_refiner_is_refused_by_its_setting(
    tiny_untrained: Path, refiner: Path, policy: Plugin, tmp_path: Path
) -> None:
    rewards = reward_parts({"refined_iou": {}}, {})

    def check(folder: Path, begins_with: Plugin = policy) -> None:
        check_refined(RefinedSettings(str(folder)), rewards, FROZEN, SHARED, begins_with)

    with pytest.raises(FileNotFoundError, match=r"refined.refiner is no/such, which is not a folder"):
        check(Path("no/such"))
    with pytest.raises(FileNotFoundError, match=r"refined.refiner is .*holds no refiner.json; train a refiner into it"):
        check(tmp_path)
    with pytest.raises(ValueError, match=r"refined.refiner is .* this policy's is .*; load the policy it goes with"):
        check(refiner, policy.with_settings(checkpoint=Path(str(files("policies") / "tiny"))))
    with pytest.raises(ValueError, match=r"refined.batch_size is 0; set it to 1 or more"):
        closed(tiny_untrained, refiner, "refined.batch_size=0")


def test_a_run_does_not_go_on_with_another_refiner(tiny_untrained: Path, refiner: Path, tmp_path: Path) -> None:
    config = closed(tiny_untrained, refiner, f"run={tmp_path / 'run'}")
    prepare_folder(config, NO_DATA, resume=False)
    (tmp_path / "run" / "checkpoints" / "step-000002").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"refined is .* but .* began with"):
        prepare_folder(replace(config, refined=RefinedSettings("another")), NO_DATA, resume=True)
