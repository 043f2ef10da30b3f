import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from made_run import SCENES, make_run
from omegaconf import OmegaConf
from rich.console import Console
from safetensors.torch import load_file

from policies.refiner.calibration import Curve
from policies.refiner.mask_refiner import MaskRefiner, RefinerSettings
from rl.config.load import load_settings, save_settings
from rl.config.pairs import DamageSettings, PairRule
from rl.config.refiner import RefineConfig, RefinerTraining
from rl.config.run import RunConfig
from rl.refine import refine, settings_of
from rl.refiner.data import shares

ROOT = Path(__file__).parents[2]
QUIET = Console(quiet=True)
TRAINING = RefinerTraining(steps=4, batch_size=4, save_every=2, threads=1)
TWO_WAY = {"name": "two_way_head", "cell_px": 8, "width": 16, "heads": 2, "blocks": 1, "mlp_ratio": 1, "masks": 2}
Made = Callable[..., RefineConfig]


def finished(folder: Path, env: dict[str, object] = SCENES, **changed: object) -> Path:
    """A run of made answers with all that its config must say."""
    make_run(folder, **{"steps": 3} | changed)
    said = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    said |= {"env": dict(env), "codec": {"name": "path_tokens"}, "policy": {"checkpoint": "tiny"}}
    OmegaConf.save(OmegaConf.create(said | {"rewards": {"mask_iou": {}}}), folder / "config.yaml")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("runs") / "one")


@pytest.fixture
def config(run: Path, tiny_untrained: Path, tmp_path: Path) -> Made:
    def made(**changed: object) -> RefineConfig:
        plain = RefineConfig(
            runs=[str(run)],
            out=str(tmp_path / "refiner"),
            checkpoint=str(tiny_untrained),
            rule=PairRule(per_example=4),
            held_out_examples=8,
            calibration_share=0.2,
            evaluation_share=0.2,
            network=RefinerSettings(crop_px=16, passes=2),
            head={"name": "pixel_head", "channels": 4, "halvings": 2},
            training=TRAINING,
        )
        return replace(plain, **changed)

    return made


def refused(config: RefineConfig, says: str, kind: type[Exception] = ValueError) -> None:
    """Refused by a message, and before anything is written to a folder that was not there."""
    there = Path(config.out).exists()
    with pytest.raises(kind, match=says):
        refine(config, QUIET)
    assert Path(config.out).exists() == there


def test_a_refiner_is_made_calibrated_and_judged_and_is_not_made_twice(config: Made) -> None:
    out = Path(config().out)
    refiner = refine(config(damaged_scenes=6), QUIET)
    names = {path.name for path in out.iterdir()}
    assert names >= {"config.yaml", "pairs.parquet", "features", "checkpoints", "metrics.jsonl"}
    assert names >= {"refiner.json", "refiner.safetensors", "summary.json"}
    rows = pq.read_table(out / "pairs.parquet").to_pylist()
    parts = shares([row["image_sha256"] for row in rows], 0.2, 0.2)
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary) == {"pairs", "steps", "on_pairs", "on_damaged"}
    assert summary["pairs"] == {name: len(part) for name, part in parts.items()} and min(map(len, parts.values())) > 0
    assert summary["steps"] == 4
    assert "NaN" not in (out / "summary.json").read_text()
    card = json.loads((out / "refiner.json").read_text())
    assert len(card["calibration"]) == 3
    loaded = MaskRefiner.load(out, card["vision_tower_sha256"])
    assert loaded.calibration == refiner.calibration
    assert not list(out.rglob("*.partial"))
    refused(config(damaged_scenes=6), "holds a finished refiner; give a new folder, or delete it")


def test_the_run_itself_says_how_its_refiner_is_made(run: Path) -> None:
    made = settings_of(load_settings(RunConfig, run / "config.yaml", [f"run={run}", "refiner.training.steps=7"]))
    assert (made.runs, made.out, made.checkpoint) == ([str(run)], str(run / "refiner"), None)
    assert made.training.steps == 7
    (run / "checkpoints").mkdir()
    refused(made, "holds no best policy; train it first", FileNotFoundError)


def interrupt(config: RefineConfig, at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(at, stop)
        with pytest.raises(KeyboardInterrupt):
            refine(config, QUIET)


def test_stopped_between_any_two_parts_it_goes_on_to_the_same_refiner(
    config: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = config(out=str(tmp_path / "whole")), config()
    refine(whole, QUIET)
    for part in (
        "rl.pairs.index.write_index",
        "rl.refine.keep_features",
        "rl.refine.train_refiner",
        "rl.refine.calibrated",
        "rl.refine.judge",
    ):
        interrupt(broken, part, monkeypatch)
    Path(broken.out).rename(tmp_path / "moved")
    refine(config(out=str(tmp_path / "moved"), training=replace(TRAINING, threads=2)), QUIET)
    for name in ("refiner.safetensors", "refiner.json", "summary.json", "metrics.jsonl"):
        assert (tmp_path / "moved" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_other_settings_do_not_go_on_with_a_refiner_that_was_begun(
    config: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(config(), "rl.refine.keep_features", monkeypatch)
    other = config(training=replace(TRAINING, steps=9), evaluation_share=0.3)
    refused(other, "made with other settings of evaluation_share, training; give a new folder, or delete it")


def test_a_folder_of_something_else_is_refused(config: Made, tmp_path: Path, run: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    refused(config(out=str(tmp_path / "photos")), "photos is not empty and holds no config.yaml of a refiner")
    refused(config(out=str(run)), "one is not empty and holds no config.yaml of a refiner; give a new folder")
    refused(config(out=str(tmp_path / "photos" / "cat.jpg")), "photos/cat.jpg is a file, and no folder")


def test_a_run_that_is_still_being_written_is_taken_only_where_that_is_asked_for(config: Made, tmp_path: Path) -> None:
    going = finished(tmp_path / "going")
    said = OmegaConf.load(going / "config.yaml")
    OmegaConf.save(OmegaConf.merge(said, {"steps": 9}), going / "config.yaml")
    refused(config(runs=[str(going)]), "holds 3 of 9 steps: it is still being written.*unfinished=true")
    refine(config(runs=[str(going)], unfinished=True), QUIET)


def test_a_rule_that_keeps_nothing_is_refused_with_the_counts(config: Made) -> None:
    refused(config(rule=PairRule(min_iou=0.9999)), r"keeps none of the 84 answers in one .*'wrong_object': \d+.*widen")


def test_images_that_are_other_ones_or_gone_are_refused_before_training(config: Made, tmp_path: Path) -> None:
    other = finished(tmp_path / "other", SCENES | {"image_size": 48})
    refused(config(runs=[str(other)]), r"images of the chosen pairs are gone or are not those of the archive")
    module = tmp_path / "photos.py"
    module.write_text(
        "from envs.datasets.cutout_scenes import Env as Scenes\n\n\nclass Env(Scenes):\n    def image(self, ref):\n"
        "        raise FileNotFoundError(f'there is no file {ref.key}')\n"
    )
    gone = finished(tmp_path / "gone", {"module": str(module), "image_size": 32, "num_scenes": 40})
    refused(config(runs=[str(gone)], held_out_examples=0), "images of the chosen pairs are gone.*there is no file")


def test_an_archive_of_a_schema_that_is_not_read_is_named(config: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rollout.archive.shards.READABLE_VERSIONS", (7,))
    refused(config(), "has archive schema version 4, this Polytrace .* reads 7")


def test_an_archive_of_schema_1_is_read(config: Made, tmp_path: Path) -> None:
    old = finished(tmp_path / "old")
    shutil.rmtree(old / "archive")
    shutil.copytree(ROOT / "tests" / "archive_v1", old / "archive")
    # Its three good answers are read, and made up: no Env has their image.
    made = config(runs=[str(old)], unfinished=True, calibration_share=0.0, evaluation_share=0.0)
    refused(made, r"^1 images of the chosen pairs are gone or are not those of the archive")


def test_without_images_to_calibrate_or_judge_by_a_refiner_is_made_all_the_same(config: Made) -> None:
    refiner = refine(config(calibration_share=0.0, evaluation_share=0.0), QUIET)
    assert refiner.calibration.curves == (Curve(),) * 3
    summary = json.loads((Path(config().out) / "summary.json").read_text())
    assert set(summary) == {"pairs", "steps"} and summary["pairs"]["train"] > 0


def test_a_choice_that_leaves_nothing_to_train_on_is_refused(config: Made, tmp_path: Path) -> None:
    for first in range(6):
        tiny = finished(tmp_path / f"run{first}", steps=1, groups=1, first=first)
        hashes = pq.read_table(next((tiny / "archive" / "examples").glob("*.parquet")))["image_sha256"].to_pylist()
        if not len(shares(hashes, 0.45, 0.45)["train"]):
            break
    made = config(runs=[str(tiny)], calibration_share=0.45, evaluation_share=0.45)
    refused(made, r"none of the \d pairs is left to train on: their 1 images all fell to calibration_share 0.45")


@pytest.mark.parametrize(
    ("network", "head"),
    [
        (RefinerSettings(crop_px=16, passes=2, features="crop"), {"name": "pixel_head", "channels": 4, "halvings": 2}),
        (RefinerSettings(crop_px=16, passes=2), TWO_WAY | {"mask_channels": 4, "map_heads": 1}),
    ],
)
def test_crops_seen_by_the_tower_and_the_two_way_head_work_from_end_to_end(
    config: Made, network: RefinerSettings, head: dict[str, object]
) -> None:
    refiner = refine(config(network=network, head=head, damaged_scenes=4, damage=DamageSettings(0.5)), QUIET)
    card = json.loads((Path(config().out) / "refiner.json").read_text())
    assert card["head"]["name"] == head["name"] and refiner.settings == network
    summary = json.loads((Path(config().out) / "summary.json").read_text())
    assert {"on_pairs", "on_damaged"} <= set(summary)
    untrained = type(refiner)(network, refiner.head_recipe, card["final_channels"], card["early_channels"], "x")
    assert any(not torch.equal(value, untrained.state_dict()[name]) for name, value in refiner.state_dict().items())


def test_trainings_may_share_their_features(config: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = str(tmp_path / "features")
    interrupt(config(features=shared), "rl.refine.train_refiner", monkeypatch)
    times = {path: path.stat().st_mtime_ns for path in Path(shared).rglob("*.safetensors")}
    assert times and not (Path(config().out) / "features").exists()
    interrupt(config(features=shared, out=str(tmp_path / "second")), "rl.refine.train_refiner", monkeypatch)
    assert {path: path.stat().st_mtime_ns for path in Path(shared).rglob("*.safetensors")} == times


def test_a_head_or_a_crop_that_cannot_be_is_refused(config: Made) -> None:
    refused(config(head={"name": "pixel_hat"}), "did you mean 'pixel_head'")
    refused(config(head={"name": "pixel_head", "crop_px": 3}), "head.crop_px is 3, but the run itself gives crop_px")
    refused(config(network=RefinerSettings(crop_px=18)), "crop_px is 18")
    refused(config(network=RefinerSettings(crop_px=16, early_block=9)), "early_block is 9")
    refused(config(checkpoint="no/such/folder"), "no/such/folder, which holds no config.json", FileNotFoundError)


def command(config: RefineConfig, file: Path, *overrides: str) -> subprocess.Popen[bytes]:
    """`polytrace refine` of a config in a process of its own."""
    save_settings(config, file)
    code = ["-c", "from rl.cli.main import main; main()", "refine", str(file), *overrides]
    return subprocess.Popen([sys.executable, *code], env=os.environ | {"PYTHONPATH": str(ROOT)})


@pytest.mark.long
def test_the_command_trains_on_two_ranks(config: Made, tmp_path: Path) -> None:
    assert command(config(), tmp_path / "two.yaml", "training.ranks=2").wait(timeout=400) == 0
    lines = (Path(config().out) / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 4 and (Path(config().out) / "summary.json").is_file()


@pytest.mark.long
def test_killed_in_the_middle_the_same_command_goes_on_to_the_same_weights(config: Made, tmp_path: Path) -> None:
    longer = config(training=replace(TRAINING, steps=200, save_every=7))
    whole = replace(longer, out=str(tmp_path / "whole"))
    assert command(whole, tmp_path / "whole.yaml").wait(timeout=400) == 0
    killed, checkpoints = command(longer, tmp_path / "killed.yaml"), Path(longer.out) / "checkpoints"
    while killed.poll() is None and not any(checkpoints.glob("step-000021")):
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL and not (Path(longer.out) / "refiner.json").exists()
    assert command(longer, tmp_path / "killed.yaml").wait(timeout=400) == 0
    first, second = (load_file(Path(one.out) / "refiner.safetensors") for one in (whole, longer))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    first, second = ((Path(one.out) / "metrics.jsonl").read_bytes() for one in (whole, longer))
    assert first == second


def test_a_training_that_goes_on_sees_through_the_tower_that_it_began_with(config: Made, tmp_path: Path) -> None:
    made = config()
    refine(made, Console(quiet=True))
    (Path(made.out) / "summary.json").unlink()
    (Path(made.out) / "tower.sha256").write_text("0" * 64 + "\n")
    with pytest.raises(ValueError, match="was begun over the vision tower 000000000000"):
        refine(made, Console(quiet=True))
