"""Placement and sizes: what does not fit is refused with its arithmetic; a cluster loses a node in mid-run."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from commands import SMALL, numbers, polytrace, shards, train
from safetensors.torch import load_file

from rl.config.load import load_settings
from rl.config.run import RunConfig
from rl.run.parts import run_parts
from rl.run.preflight import object_store_bytes, refuse_missing_gpus, weight_bytes
from rollout import cluster
from rollout.settings import RaySettings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"placement": "spread"}, r"^ray.placement is 'spread'.* [Ss]et it to shared or apart\.$"),
        ({"placement": "apart"}, r"^ray.placement is 'apart', which needs two nodes or more, but without ray.address"),
        ({"object_store_gb": 0.01}, r"^ray.object_store_gb is 0.01; set it to 0.08 or more, the least that Ray takes"),
    ],
)
def test_wrong_ray_settings_are_refused_when_the_config_is_read(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RaySettings(**settings)


def test_the_object_store_is_as_large_as_the_weights_ask_or_as_one_says() -> None:
    config = load_settings(RunConfig, Path("tiny"), ["run=unused"])
    parts = run_parts(config)
    checkpoint = Path(parts.policy.settings["checkpoint"]) / "model.safetensors"
    size = 4 * sum(value.numel() for value in load_file(checkpoint).values())
    assert weight_bytes(parts) == size < checkpoint.stat().st_size
    half = replace(parts, policy=parts.policy.with_settings(dtype="bfloat16"))
    assert weight_bytes(half) == size // 2
    assert object_store_bytes(config, parts) == 3 * size + 256 * 2**20
    assert object_store_bytes(load_settings(RunConfig, Path("tiny"), ["ray.object_store_gb=2"]), parts) == 2**31


def test_more_ranks_than_gpus_are_refused_with_the_arithmetic_unless_a_cluster_has_them() -> None:
    asked = ["run=unused", "learner.ranks=2", "learner.micro_groups=8", "learner.gpus_per_rank=1"]
    config = load_settings(RunConfig, Path("tiny"), [*asked, "pool.gpus_per_worker=0.5"])
    refuse_missing_gpus(config, found=3)
    message = "^learner.ranks 2 x learner.gpus_per_rank 1 .* 2 x pool.gpus_per_worker 0.5 = 3 GPUs, but .* has 2; lower"
    with pytest.raises(ValueError, match=message):
        refuse_missing_gpus(config, found=2)
    refuse_missing_gpus(load_settings(RunConfig, Path("tiny"), [*asked, "ray.address=10.0.0.1:6379"]), found=0)


START = """
import os
from pathlib import Path
from rollout import cluster
cluster.start(None, 1)
print(max(len(os.fsencode(path)) for path in Path(os.environ["TMPDIR"]).rglob("*") if path.is_socket()))
cluster.stop()
"""


@pytest.mark.slow
@pytest.mark.parametrize("more", [0, 1])
def test_ray_starts_in_the_deepest_folder_that_is_not_refused(more: int) -> None:
    room = 107 - len("/ray/session_2026-01-31_23-59-59_999999_/sockets/plasma_store") + more
    with tempfile.TemporaryDirectory(prefix="p", dir="/tmp") as short:
        # The process id is in the path: a shell learns its own, fills the folder's name up and becomes Python.
        fill = (
            f"d={short}/; while [ $((${{#d}} + ${{#$}})) -lt {room} ]; do d=${{d}}x; done; mkdir $d; export TMPDIR=$d"
        )
        done = subprocess.run(
            ["bash", "-c", f'{fill}; exec "$@"', "-", sys.executable, "-c", START],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env={name: value for name, value in os.environ.items() if name != "RAY_TMPDIR"},
            cwd=Path(__file__).parents[2],
        )
        if more:
            assert "too long for Ray: its sockets there would have paths of 108 bytes" in done.stderr
            assert not list(Path(short).glob("*/*"))
        else:
            assert (done.returncode, done.stdout.split()) == (0, ["107"]), done.stderr


def test_a_folder_too_deep_for_rays_sockets_is_refused_before_ray_starts_and_the_other_setting_mends_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    room = 107 - len(f"/ray/session_2026-01-31_23-59-59_999999_{os.getpid()}/sockets/plasma_store")
    fits, deeper = "/tmp/" + "x" * (room - 5), "/tmp/" + "x" * (room - 4)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", fits)
    cluster.refuse_unfit_temporary_folder()
    monkeypatch.setenv("TMPDIR", deeper)
    said = rf"^TMPDIR is {deeper}, .* paths of 108 bytes, and no .* more than 107\. Set RAY_TMPDIR .* at most 39 bytes"
    with pytest.raises(ValueError, match=said):
        cluster.refuse_unfit_temporary_folder()
    monkeypatch.setenv("TMPDIR", "/tmp/" + "é" * (room // 2))  # bytes count, not letters
    with pytest.raises(ValueError, match="too long for Ray"):
        cluster.refuse_unfit_temporary_folder()
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    cluster.refuse_unfit_temporary_folder()
    monkeypatch.setenv("RAY_TMPDIR", "tmp/x")
    with pytest.raises(ValueError, match=r"^RAY_TMPDIR is 'tmp/x', but Ray needs an absolute path; set"):
        cluster.refuse_unfit_temporary_folder()
    monkeypatch.delenv("RAY_TMPDIR")
    monkeypatch.delenv("TMPDIR")
    cluster.refuse_unfit_temporary_folder()


@contextmanager
def nodes(num: int) -> Iterator[Any]:
    """A cluster of nodes with room for one actor each, which no other Ray program on this machine joins by itself."""
    temporary = tempfile.mkdtemp(prefix="polytrace", dir="/tmp")  # a longer path would not do for Ray's sockets
    os.environ |= {"RAY_TMPDIR": temporary, "RAY_worker_niceness": "0"}
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        for _ in range(num - 1):
            made.add_node(num_cpus=1)
        yield made
    finally:
        made.shutdown()
        del os.environ["RAY_TMPDIR"]
        shutil.rmtree(temporary, ignore_errors=True)


def raylet(node: Any) -> int:
    return node.all_processes["raylet"][0].process.pid


def runs_a_rank(node: Any) -> bool:
    return any("LearnerActor" in " ".join(child.cmdline()) for child in psutil.Process(raylet(node)).children())


@pytest.mark.long
def test_a_node_removed_in_mid_run_costs_nothing_and_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken" / "whole"
    train(whole, "steps=5", "pool.workers=1")
    with nodes(3) as joined:
        there = [f"ray.address={joined.address}", "ray.placement=apart"]
        large = polytrace("train", "tiny", f"run={tmp_path / 'large'}", *SMALL, "steps=5", *there, "pool.workers=3")
        done = subprocess.run(large, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 2
        assert "1 learner ranks and 3 rollout workers need 4 CPUs (every actor counts as one CPU), but" in done.stderr
        assert "the cluster has 3; lower learner.ranks" in done.stderr

        two = ["pool.workers=2", "pool.restart_seconds=4"]
        command = polytrace("train", "tiny", f"run={broken}", *SMALL, "steps=5", *there, *two)
        driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 300
        while not (broken / "archive/rollouts/step-00000001.parquet").exists():
            assert driver.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        (removed, *_) = [node for node in joined.worker_nodes if not runs_a_rank(node)]
        joined.remove_node(removed)
        _, said = driver.communicate(timeout=400)
        assert driver.returncode == 0, said
        assert "is given up" in said
    assert shards(broken) == shards(whole)
    assert numbers(broken) == numbers(whole)
