"""Weights that do not fit into Ray's object store: the run is slower and the same, or ends with one line."""

import os
import subprocess
from pathlib import Path

import pytest
from commands import polytrace, shards

from envs.codecs.path_tokens import Codec
from envs.datasets._scene import SPATIAL_WORDS
from envs.datasets.cutout_scenes import Env
from policies.tiny_model import TinySizes, write_untrained

pytestmark = pytest.mark.long

SMALL = [
    *(
        "steps=1",
        "groups_per_step=2",
        "group_size=2",
        "groups_per_unit=2",
        "sampling.max_tokens=8",
        "learner.average=0",
    ),
    *("learner.micro_groups=1", "pool.workers=1", "evaluation.every=9", "evaluation.num_scenes=2"),
]


def large_checkpoint(folder: Path) -> Path:
    """Untrained weights of more than 100 MiB, in several buckets."""
    names = Env("train").names + Env("held_out_names").names
    words = sorted({word for name in names for word in name.split()} | SPATIAL_WORDS)
    sizes = TinySizes(
        image_size=64, text_width=512, text_layers=8, text_heads=8, vision_width=16, vision_layers=2, vision_heads=2
    )
    write_untrained(folder, Codec(box_bins=64, path_bins=32).words + words, sizes, seed=0)
    assert (folder / "model.safetensors").stat().st_size > 100 * 2**20
    return folder


def train(checkpoint: Path, run: Path, store_gb: float, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = [f"run={run}", f"policy.checkpoint={checkpoint}", f"ray.object_store_gb={store_gb}"]
    command = polytrace("train", "tiny", *SMALL, *settings)
    return subprocess.run(
        command, capture_output=True, text=True, timeout=500, check=False, env=os.environ | environment
    )


def test_a_store_smaller_than_the_weights_puts_them_on_disk_and_with_a_full_disk_the_run_says_so(
    tmp_path: Path,
) -> None:
    checkpoint = large_checkpoint(tmp_path / "large")
    roomy = train(checkpoint, tmp_path / "roomy/run", store_gb=1.0)
    assert roomy.returncode == 0, roomy.stderr
    tight = train(checkpoint, tmp_path / "tight/run", store_gb=0.08)
    assert tight.returncode == 0, tight.stderr
    assert shards(tmp_path / "tight/run") == shards(tmp_path / "roomy/run")
    # Ray's own word for a disk that counts as full from some share on.
    full = train(checkpoint, tmp_path / "full/run", store_gb=0.08, RAY_local_fs_capacity_threshold="0.0001")
    assert full.returncode == 2 and "Traceback" not in full.stderr
    (line,) = [text for text in full.stderr.splitlines() if "polytrace:" in text]
    assert "Ray's object store is full" in line and "ray.object_store_gb" in line and "--resume" in line
