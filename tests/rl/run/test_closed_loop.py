"""A run on refined masks is refused before it starts where refiner, rewards, learner or engine do not fit together."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from growing_refiner import write_growing_refiner
from in_process import TINY
from safetensors.torch import load_file, save_file

from envs.codecs.path_tokens import Codec
from envs.plugin import Plugin
from policies.families.vision_language import Policy
from rl.config.load import load_settings, save_settings
from rl.config.run import RunConfig
from rl.run.data import RunData
from rl.run.folder import RunFolder
from rl.run.parts import run_parts, worker_settings
from rl.run.preflight import preflight
from rollout.settings import RefinedSettings

NO_DATA = RunData({})


@pytest.fixture(scope="module")
def refiner(tiny_untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("refiner")
    write_growing_refiner(folder, Policy(tiny_untrained, Codec()), crop_px=32)
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
    assert load_settings(RunConfig, Path("tiny")).refined is None


def check(config: RunConfig) -> None:
    preflight(config, run_parts(config))


def test_a_reward_on_the_refined_mask_needs_a_refiner(tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(
        "from dataclasses import dataclass\n\n\n@dataclass\nclass Reward:\n    needs_refined = True\n"
        "    weight: float = 1.0\n\n    def __call__(self, comparison):\n        return comparison.refined_iou\n"
    )
    for name, entry in (("unmended", "{}"), ("own", f"{{module: {own}}}"), ("mine", "{name: refined_iou}")):
        says = f"rewards.{name} is measured on the refined mask, but `refined` is not set; set refined.refiner"
        with pytest.raises(ValueError, match=says):
            check(load_settings(RunConfig, Path("tiny"), [f"rewards.{name}={entry}"]))


def test_a_tower_that_learns_and_an_engine_without_a_policy_are_refused(tiny_untrained: Path, refiner: Path) -> None:
    with pytest.raises(ValueError, match=r"learner.freeze_vision false, .* set learner.freeze_vision to true"):
        check(closed(tiny_untrained, refiner, "learner.freeze_vision=false"))
    config = closed(tiny_untrained, refiner)
    parts = replace(run_parts(config), engine=Plugin("rollout.engines", "Engine", "vllm", {}))
    with pytest.raises(ValueError, match=r"pool.engine is vllm, .* set pool.engine.name to shared"):
        preflight(config, parts)


def test_a_folder_without_a_fitting_refiner_is_refused_by_its_setting(
    tiny_untrained: Path, refiner: Path, tmp_path: Path
) -> None:
    check(closed(tiny_untrained, refiner))
    with pytest.raises(FileNotFoundError, match=r"refined.refiner is no/such, which is not a folder"):
        check(closed(tiny_untrained, Path("no/such")))
    with pytest.raises(FileNotFoundError, match=r"refined.refiner is .*holds no refiner.json; train a refiner into it"):
        check(closed(tiny_untrained, tmp_path))
    with pytest.raises(ValueError, match=r"refined.refiner is .* this policy's is .*; load the policy it goes with"):
        check(closed(Path("tiny"), refiner))
    with pytest.raises(ValueError, match=r"refined.batch_size is 0; set it to 1 or more"):
        closed(tiny_untrained, refiner, "refined.batch_size=0")


def test_the_vision_tower_is_compared_by_its_files_alone(tiny_untrained: Path, refiner: Path, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(tiny_untrained, tmp_path / "changed"))
    stored = load_file(checkpoint / "model.safetensors")
    tower = {name: value for name, value in stored.items() if ".visual." in name}
    check(closed(checkpoint, refiner))
    check(closed(checkpoint, refiner, "learner.lora={targets: [q_proj]}", "learner.average=0"))
    moved = next(iter(tower.values())).flatten()
    moved[0] += 1e-3
    save_file(stored, checkpoint / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"refined.refiner is .* was trained on features of the vision tower"):
        check(closed(checkpoint, refiner))
    # Adapters in the tower change what it is called and what travels; then the workers compare it.
    check(closed(checkpoint, refiner, "learner.lora={targets: [qkv]}", "learner.average=0"))


def test_a_run_does_not_go_on_with_another_refiner(tiny_untrained: Path, refiner: Path, tmp_path: Path) -> None:
    config = closed(tiny_untrained, refiner, f"run={tmp_path / 'run'}")
    RunFolder(tmp_path / "run").begin(config, NO_DATA, resume=False)
    (tmp_path / "run" / "checkpoints" / "step-000002").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"refined is .* but .* began with"):
        RunFolder(tmp_path / "run").begin(replace(config, refined=RefinedSettings("another")), NO_DATA, resume=True)
