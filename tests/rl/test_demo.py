"""The whole job in small: every stage runs, every promised file is there and says what it should."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.dataset as ds
import pytest

from rl.config.pairs import PairRule
from rl.pairs.select import choose
from rollout.archive.archive import RolloutArchive

SMALL = [
    "steps=2",
    "groups_per_step=8",
    "group_size=4",
    "groups_per_unit=4",
    "learner.micro_groups=4",
    "pool.workers=1",
    "evaluation.every=2",
    "evaluation.num_scenes=16",
    "evaluation.final_scenes=32",
    "refiner.training.steps=5",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "run"
    command = [sys.executable, "-c", "from rl.cli.main import main; main()", "demo", f"run={folder}", *SMALL]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "gIoU" in done.stdout and "report.html" in done.stdout
    return folder


@pytest.mark.slow
def test_summary_has_what_an_outside_program_is_promised(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    for stage in ("sft", "control", "rl", "refined"):
        scores = summary["stages"][stage]
        assert all(0 <= scores[name] <= 1 for name in ("giou", "ciou", "acc50", "boundary_iou", "valid"))
    for pair in ("rl_minus_sft", "rl_minus_control", "refined_minus_rl"):
        second, first = pair.split("_minus_")
        difference = summary["stages"][second]["giou"] - summary["stages"][first]["giou"]
        assert summary["paired"][pair]["giou"] == pytest.approx(difference)
        assert summary["paired"][pair]["low"] <= summary["paired"][pair]["giou"] <= summary["paired"][pair]["high"]
    assert summary["num_scenes"] == 32
    assert summary["seconds"] > 0 and 0.1 < summary["peak_rss_gib"] < 24


@pytest.mark.slow
def test_every_rollout_is_archived_whole(run: Path) -> None:
    archive = RolloutArchive(run / "archive")
    assert archive.verify() == []
    assert ds.dataset(run / "archive/rollouts").count_rows() == 2 * 8 * 4


@pytest.mark.slow
def test_no_held_out_scene_is_in_the_archive_or_in_the_refiners_pairs(run: Path) -> None:
    examples = ds.dataset(run / "archive/examples").to_table().to_pylist()
    assert {example["split"] for example in examples} == {"train"}
    assert all("/train/" in example["example_id"] for example in examples)
    chosen = {pair.example_id for pair in choose([RolloutArchive(run / "archive")], PairRule()).pairs()}
    assert chosen and chosen <= {example["example_id"] for example in examples}


@pytest.mark.slow
def test_a_run_leaves_config_events_checkpoint_report_and_refiner(run: Path) -> None:
    for name in ("config.yaml", "report.html", "refiner/refiner.safetensors", "metrics.jsonl"):
        assert (run / name).is_file(), name
    assert list(run.glob("events.out.tfevents.*"))
    assert list(run.glob("checkpoints/step-000002/learner")) and list(
        run.glob("checkpoints/best-*/policy/model.safetensors")
    )
    assert "<svg" in (run / "report.html").read_text()
