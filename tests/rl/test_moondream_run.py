"""A tiny Moondream through RL and the archive: what heads choose is sampled, learned from, and kept."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from in_process import apart, run_here, settings
from moondream_toy import codec, write_toy
from ranks import free_port
from rich.console import Console
from safetensors.torch import load_file

from envs.datasets._scene import SPATIAL_WORDS
from envs.datasets.cutout_scenes import Env
from policies.families._sizes import model_sizes
from policies.families.moondream import Policy
from rl.config.load import load_settings
from rl.config.sft import SftConfig
from rl.run.parts import run_parts
from rl.run.preflight import refuse_unfit_policy
from rl.sft import run_sft
from rollout.archive.archive import RolloutArchive
from rollout.archive.schema import answer_from_row

CODEC = "codec={name: svg_path, boxes: centre, box_bins: 63, path_bins: 32, max_vertices: 16, curves: false}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = Env("train").names + Env("held_out_names").names
    words = {word for name in names for word in name.split()} | SPATIAL_WORDS
    made = tmp_path_factory.mktemp("moondream")
    write_toy(made, words=(*codec().words, *sorted(words)))
    return made


def overrides(folder: Path) -> list[str]:
    return [CODEC, "policy.name=moondream", f"policy.checkpoint={folder}", "steps=2", "env.image_size=32"]


def test_a_run_samples_scores_learns_and_archives_what_heads_chose(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert apart(run_here, run, free_port(), overrides(folder)) == 0
    rows = [row for batch in RolloutArchive(run / "archive").rollouts() for row in batch.to_pylist()]
    assert len(rows) == 2 * 2 * 3
    by_heads = 0
    for row in rows:
        bins = np.array(row["bins"], np.int16).reshape(len(row["tokens"]), 3)
        by_heads += int((bins >= 0).any(1).sum())
        assert ((bins[:, 1] >= 0) == (bins[:, 2] >= 0)).all() and bins.max() <= 63
        assert answer_from_row(row).status.value == row["status"]
    assert by_heads > 0
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [numbers for numbers in steps if "learner/ratio_max" in numbers]
    assert len(steps) == 2
    for numbers in steps:
        assert numbers["learner/sampler_logprob_difference_max"] < 1e-4
    # The first update's ratio is that of a policy that has not moved.
    assert steps[0]["learner/ratio_max"] == pytest.approx(1.0, abs=0.05)


def test_a_cuda_graph_is_refused_before_the_start(folder: Path, tmp_path: Path) -> None:
    graph = ["pool.engine={cuda_graph: true}", "pool.gpus_per_worker=1"]
    parts = run_parts(config := settings(tmp_path / "run", *overrides(folder), *graph))
    with pytest.raises(
        ValueError, match=r"^pool\.engine\.cuda_graph is true, and the experts of Moondream 3 are dealt"
    ):
        refuse_unfit_policy(config, parts, Policy.make_processor(folder, codec()))


def test_its_sizes_are_known_to_a_plan(folder: Path) -> None:
    policy = Policy(folder, codec())
    sizes = model_sizes(policy.processor)
    assert sizes.parameters.all == sum(parameter.numel() for parameter in policy.model.parameters())
    assert sizes.parameters.tower == sum(parameter.numel() for parameter in policy.model.model.vision.parameters())
    assert (sizes.text.layers, sizes.text.width, sizes.vision.blocks) == (2, 32, 2)


def teach(config: SftConfig) -> None:
    run_sft(config, Console(quiet=True))


def test_a_new_one_is_made_and_taught_boxes_then_paths(tmp_path: Path) -> None:
    boxes, paths = (
        "{name: boxes, steps: 2, answer: box, lr: 1.0e-3, number_spread: 1.0}",
        "{name: paths, steps: 2, lr: 1e-3}",
    )
    stages, sides = f"sft.stages=[{boxes}, {paths}]", "image_size: 32, text_width: 32, text_layers: 2, text_heads: 2"
    sizes = f"tiny={{{sides}, vision_width: 16, vision_layers: 1, vision_heads: 2}}"
    small = ["sft.scenes_per_step=4", "sft.evaluate_every=2", "sft.evaluate_scenes=2", "env.image_size=32"]
    config = load_settings(SftConfig, Path("sft_moondream_tiny"), [f"run={tmp_path / 'run'}", stages, sizes, *small])
    assert apart(teach, config) == 0
    assert len((tmp_path / "run/curve.tsv").read_text().splitlines()) == 3  # names, and two evaluations
    policy = Policy(tmp_path / "run/policy", codec())
    assert len(policy.model.model.text.blocks) == 2 and not policy.model.model.region.coord_features.requires_grad
    untrained = load_file(tmp_path / "run/untrained/model.safetensors")
    moved = {name for name, parameter in policy.model.named_parameters() if not torch.equal(parameter, untrained[name])}
    assert {"model.region.coord_decoder.weight", "model.region.size_encoder.weight", "model.text.wte"} <= moved
    assert not moved & {"model.region.coord_features", "model.region.size_features"}


def test_a_new_one_is_refused_where_the_codec_is_another_or_it_should_begin_from_weights(tmp_path: Path) -> None:
    for override, message in (
        (
            "codec.boxes=corners",
            r"policy\.name is moondream, whose answers are boxes by centre and SVG paths; set codec",
        ),
        ("tiny.begin_from=tiny", r"tiny\.begin_from is tiny, and a new Moondream begins with random weights"),
    ):
        config = load_settings(SftConfig, Path("sft_moondream_tiny"), [f"run={tmp_path / 'run'}", override])
        with pytest.raises(ValueError, match=message):
            run_sft(config, Console(quiet=True))
