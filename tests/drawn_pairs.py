"""The pairs that an archive gives, and a refiner of a few steps from them."""

from pathlib import Path

import pyarrow.parquet as pq
from commands import here
from rich.console import Console

from rl.config.load import load_settings
from rl.config.refiner import RefineConfig
from rl.refine import refine
from rollout.archive.archive import RolloutArchive

ALL = ["rule.min_iou=0.001", "rule.per_example=9", "rule.near_duplicate_iou=1", "held_out_examples=0"]


def rows_of(run: Path) -> dict[tuple[int, int, int], dict]:
    rows = (row for batch in RolloutArchive(run / "archive").rollouts() for row in batch.to_pylist())
    return {(row["step"], row["position"], row["index"]): row for row in rows}


def exported(run: Path, out: Path) -> list[dict]:
    """The pairs of a run, as `export pairs` writes them."""
    done = here("export", "pairs", run, *ALL, "--out", out)
    assert done.status == 0, done.stdout + done.stderr
    return pq.read_table(out / "pairs.parquet").to_pylist()


def refined(run: Path, out: Path, checkpoint: Path) -> int:
    """A refiner of a few steps from the pairs of a run."""
    small = ["training.steps=3", "training.batch_size=4", "training.threads=1", "network.crop_px=24"]
    small += ["training.stages=[{name: all}]", "damage.share=0.0", f"checkpoint={checkpoint}"]
    rule = [each for each in ALL if not each.startswith("held")]
    given = [f"runs=[{run}]", f"out={out}", *small, *rule, "held_out_examples=0"]
    refine(load_settings(RefineConfig, Path("refiner"), given), Console(quiet=True))
    return 0 if (out / "refiner.json").is_file() else 1
