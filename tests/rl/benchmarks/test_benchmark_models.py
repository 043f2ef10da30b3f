"""Checkpoints of a benchmark: what each is called, how it is asked, and what cannot be one."""

import json
import shutil
from pathlib import Path

import pytest
from made_answers import prepared
from rich.console import Console

from rl.benchmarks.models import BenchmarkModel, benchmark_model
from rl.benchmarks.sets import benchmark_sets
from rl.config.load import load_settings, save_settings
from rl.config.run import RunConfig
from rl.run.checkpoints import FORMAT


def model(given: str, config: str | None = None, **how: int) -> BenchmarkModel:
    return benchmark_model(given, config and Path(config), False, how.get("workers"), how.get("max_tokens"))


def test_the_embedded_checkpoint_is_asked_as_the_demo_asks_it() -> None:
    found = model("tiny", workers=1, max_tokens=9)
    assert (found.name, found.checkpoint, found.refiner) == ("tiny", "tiny", None)
    assert (found.config.pool.workers, found.config.sampling.max_tokens) == (1, 9)
    assert found.config.codec["name"] == "path_tokens" and list(found.config.rewards) == ["mask_iou"]
    assert (found.config.max_left_out, found.config.learner.gpus_per_rank, found.config.refined) == (1.0, 0.0, None)
    assert model("mine=tiny").name == "mine"


def test_a_folder_of_hugging_face_needs_a_config_and_is_called_by_its_own_name(tiny_untrained: Path) -> None:
    with pytest.raises(ValueError, match=r"is no run, so nothing says how it is asked; give --config, such as presets"):
        model(str(tiny_untrained))
    found = model(str(tiny_untrained), "tiny")
    assert (found.name, found.checkpoint) == (tiny_untrained.name, str(tiny_untrained))
    assert model(f"a={tiny_untrained}", "tiny").name == "a"
    assert model(f"{tiny_untrained}/../{tiny_untrained.name}/.", "demo").name == tiny_untrained.name


def test_a_path_with_an_equals_sign_is_a_path_where_it_is_there(tiny_untrained: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_untrained, tmp_path / "lr=1e-4")
    assert model(str(tmp_path / "lr=1e-4"), "tiny").name == "lr=1e-4"
    assert model(f"a={tmp_path / 'lr=1e-4'}", "tiny").name == "a"


def run_of(folder: Path, policy: Path) -> Path:
    """A run of step 3 with a refiner; its answers have 7 tokens."""
    folder.mkdir()
    config = load_settings(RunConfig, Path("tiny"), [f"run={folder}", "sampling.max_tokens=7"])
    save_settings(config, folder / "config.yaml")
    shutil.copytree(policy, folder / "checkpoints/best-000003/policy")
    (folder / "checkpoints/best-000003/state.json").write_text(json.dumps({"format": FORMAT, "giou": 0.5}))
    (folder / "refiner").mkdir()
    (folder / "refiner/summary.json").write_text("{}")
    return folder


def test_a_run_is_asked_by_its_own_config_with_its_best_policy_and_its_refiner(
    tmp_path: Path, tiny_untrained: Path
) -> None:
    folder = run_of(tmp_path / "run", tiny_untrained)
    found = model(str(folder))
    assert found.checkpoint == str(folder / "checkpoints/best-000003/policy") and found.name == "run"
    assert (found.config.sampling.max_tokens, found.refiner) == (7, folder / "refiner")
    assert benchmark_model(str(folder), None, True, None, None).refiner is None
    (folder / "refiner/summary.json").unlink()  # a refiner that is not finished
    assert model(str(folder)).refiner is None


def test_what_is_no_checkpoint_or_has_no_policy_yet_is_refused(tmp_path: Path, tiny_untrained: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"holds neither config\.yaml nor config\.json; give the folder of a run"
    ):
        model(str(tmp_path))
    for name in ("a/b", "", ".."):
        with pytest.raises(ValueError, match="give a name without a slash"):
            model(f"{name}={tiny_untrained}", "tiny")
    folder = run_of(tmp_path / "run", tiny_untrained)
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(FileNotFoundError, match="let it train until its first evaluation"):
        model(str(folder))


def test_a_model_asks_every_split_of_a_run_of_the_data_set(tmp_path: Path) -> None:
    shards = prepared(tmp_path)
    [data] = benchmark_sets([f"mine={shards}:train"], None, tmp_path / "out", Console(quiet=True))
    config = model("tiny").asked_about(data)
    assert (config.env["name"], config.env["folder"]) == ("shards", str(shards))
    assert config.env["names"] == dict.fromkeys(("train", "validation", "test"), "train")
    assert config.policy["checkpoint"] == "tiny"
