"""The same loop on real photos with human polygons; skipped where the photos are not beside the repository."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

DATA = Path("../shared/data/coco28")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"the annotated photos are not at {DATA}"),
]


def polytrace(*arguments: str) -> str:
    command = [sys.executable, "-c", "from rl.cli.main import main; main()", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_photos_go_through_the_loop_and_out_as_pairs(tmp_path: Path) -> None:
    run = tmp_path / "coco28"
    polytrace("train", "configs/coco28.yaml", f"run={run}", "steps=2", "pool.workers=1")
    rollouts = ds.dataset(run / "archive/rollouts").to_table()
    assert rollouts.num_rows == 2 * 16 * 8
    for name in ("total", "iou", "reward_format", "reward_mask_iou"):
        assert rollouts[name].null_count == 0, name
    examples = ds.dataset(run / "archive/examples").to_table().to_pylist()
    assert all(example["licence"].startswith("CC-BY") for example in examples)

    polytrace("export", "pairs", str(run), "rule.min_iou=0.05", "--out", str(tmp_path / "pairs"))
    pairs = pq.read_table(tmp_path / "pairs/pairs.parquet").to_pylist()
    assert pairs and all(pair["licence"].startswith("CC-BY") for pair in pairs)


@pytest.mark.long
def test_a_refiner_of_20_photos_mends_damaged_masks_of_the_8_others(tmp_path: Path) -> None:
    run, out = tmp_path / "photos", tmp_path / "refiner"
    whole = ["env.image_side=null", "env.square=false", "env.train_share=0.64"]  # 20 photos and 8, as they are
    polytrace("sample", "configs/coco28.yaml", f"run={run}", "steps=7", *whole)
    polytrace("refine", "configs/refiner_coco28.yaml", f"runs=[{run}]", f"out={out}")
    found = json.loads((out / "summary.json").read_text())["on_damaged"]
    assert found["num_masks"] == 165
    assert found["intervals"]["gain_iou"]["low"] > 0
    assert found["gain_boundary_iou"] > 0
    sizes = pq.read_table(out / "pairs.parquet", columns=["height", "width", "damage"]).to_pydict()
    assert len(set(zip(sizes["height"], sizes["width"], strict=True))) >= 5
    assert any(height > width for height, width in zip(sizes["height"], sizes["width"], strict=True))
