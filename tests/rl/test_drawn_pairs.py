"""Archives of policies that choose or draw masks as food for a refiner: the coarse mask of a pair is what was drawn."""

from pathlib import Path

import numpy as np
from drawn_pairs import exported, refined, rows_of
from in_process import apart, run_here
from omegaconf import OmegaConf
from ranks import free_port

from envs.codecs.mask_group import choice_of
from envs.datasets.cutout_scenes import Env
from envs.geometry.rle import mask_from_rle

SMALL = ["steps=2", "groups_per_step=4"]


def test_pairs_of_choices_have_the_union_of_the_chosen_candidates(tiny_untrained: Path, tmp_path: Path) -> None:
    pools = {"train_scenes": 12, "image_size": 32, "candidates": 8, "several_share": 0.3, "max_scale": 0.45}
    chooses = ["codec={name: mask_group}", "policy.name=mask_selection", "pool.engine={name: direct}"]
    named = [f"env.{name}={value}" for name, value in pools.items()]
    run = tmp_path / "run"
    assert apart(run_here, run, free_port(), [*named, *chooses, f"policy.checkpoint={tiny_untrained}", *SMALL]) == 0
    said = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))
    env = Env("train", **{key: value for key, value in said["env"].items() if key != "name"})
    asked = {row["example_id"] for row in rows_of(run).values()}
    examples = {one.id: one for one in (env[k] for k in range(len(env))) if one.id in asked}
    pairs, rows = exported(run, tmp_path / "pairs"), rows_of(run)
    assert len(pairs) > 4
    for pair in pairs:
        chosen = choice_of(rows[pair["step"], pair["position"], pair["index"]]["text"])
        drawn = examples[pair["example_id"]].candidates[chosen].any(axis=0)
        assert np.array_equal(mask_from_rle(pair["coarse_rle"], 32, 32), drawn) and drawn.any()
    assert apart(refined, run, tmp_path / "refiner", tiny_untrained) == 0
