from pathlib import Path

import pytest

from rl.config.load import load_settings
from rl.config.run import RunConfig
from rl.run.parts import run_parts
from rl.run.preflight import preflight, refuse_wrong_gradients


@pytest.mark.parametrize("version", ["0.17.6", "0.18.0", "0.18.2", "0.18.2+cu126", "0.18.3rc1", "0.18.3.dev4"])
def test_releases_with_wrong_gradients_are_refused_under_zero_2_alone(version: str) -> None:
    for stage in (0, 1, 3):
        refuse_wrong_gradients(version, stage)
    with pytest.raises(ValueError, match=r"learner\.zero_stage is 2 and DeepSpeed") as error:
        refuse_wrong_gradients(version, 2)
    assert version in str(error.value) and "set learner.zero_stage to 1 or 3, or install" in str(error.value)


@pytest.mark.parametrize("version", ["0.17.5", "0.18.3", "0.18.3.post1", "0.18.10", "0.19.8", "1.0", "0.16.9+rocm"])
def test_other_releases_pass(version: str) -> None:
    refuse_wrong_gradients(version, 2)


def test_what_is_no_version_is_refused() -> None:
    with pytest.raises(ValueError, match="calls itself 'main', which is no version"):
        refuse_wrong_gradients("main", 0)


def test_the_installed_release_is_checked_with_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rl.run.preflight.version", {"deepspeed": "0.18.1"}.__getitem__)
    for stage in (1, 2):
        config = load_settings(RunConfig, Path("tiny"), ["learner.average=0", f"learner.zero_stage={stage}"])
        if stage == 1:
            preflight(config, run_parts(config))
            continue
        with pytest.raises(ValueError, match=r"zero_stage is 2 and DeepSpeed 0\.18\.1"):
            preflight(config, run_parts(config))
        preflight(config, run_parts(config), learns=False)
