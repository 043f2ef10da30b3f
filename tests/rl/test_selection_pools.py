"""Pools from files: MaskGroups with copies, overlaps, empty masks and no target, taught from and benchmarked."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import here
from in_process import settings
from made_field_sets import block, mask_groups, parquet, photo, run_lengths
from ranks import apart
from rich.console import Console

from envs.datasets.shards import Env
from policies.families.mask_selection import Policy
from rl.benchmarks.models import benchmark_model
from rl.benchmarks.sets import BenchmarkSet
from rl.config.load import load_settings
from rl.config.sft import SftConfig
from rl.run.parts import run_parts
from rl.run.pools import refuse_unfit_pools
from rl.sft import run_sft

FIRST, SECOND = block(2, 3, 9, 30), block(0, 50, 9, 60)
POOL = [FIRST, FIRST, FIRST | SECOND, block(0, 0, 40, 60), np.zeros((40, 60), bool), SECOND]
"""A mask twice, two as one, the whole image, an empty one."""


def pools(change: Callable[[dict[str, Any]], None]) -> list[dict[str, Any]]:
    """Questions with words alone and with a mask, twelve of each."""
    entries = []
    for k in range(12):
        for entry in mask_groups():
            entry = entry | {"id": f"{entry['id']}-{k}", "mask_pool": [run_lengths(mask) for mask in POOL]}
            change(entry)
            entries.append(entry)
    return entries


def shards(folder: Path, entries: list[dict[str, Any]]) -> Path:
    photo(folder / "files" / "images_resized" / "one.jpg")
    for split in ("train", "validation"):
        parquet(folder / "files" / "data" / f"{split}-00000-of-00001.parquet", entries)
    out = folder / "shards"
    splits = ("--split", "train", "--split", "validation")
    done = here("data", "prepare", folder / "files", *splits, "--out", out, "--processes", "1")
    assert done.status == 0, done.stderr
    return out


def as_it_is(_: dict[str, Any]) -> None:
    pass


def without_target(entry: dict[str, Any]) -> None:
    entry["mask_pool"] = entry["mask_pool"][3:4]


def without_pool(entry: dict[str, Any]) -> None:
    entry["mask_pool"] = []


def sft(folder: Path, run: Path, *more: str) -> SftConfig:
    sizes = "image_size: 32, text_width: 32, text_layers: 2, text_heads: 2, vision_width: 16, vision_layers: 2"
    stage = "sft.stages=[{name: choices, steps: 2, lr: 3.0e-3, with_absent: true}]"
    small = ["sft.scenes_per_step=4", "sft.evaluate_scenes=4", f"tiny={{{sizes}, vision_heads: 2}}", "max_left_out=1.0"]
    given = [f"run={run}", f"env={{name: shards, folder: {folder}}}", "policy={name: mask_selection}", stage, *small]
    return load_settings(SftConfig, Path("sft_groups"), [*given, *more])


def teach(config: SftConfig) -> str:
    try:
        run_sft(config, Console(quiet=True))
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.slow
def test_pools_with_copies_and_overlaps_are_taught_from_and_empty_masks_are_left_out_and_told(tmp_path: Path) -> None:
    folder = shards(tmp_path, pools(as_it_is))
    env = Env("train", str(folder))
    assert len(env) == 24 and len(env[0].candidates) == 5  # the empty one is none
    assert any("masks to choose from that cannot be read" in reason for reason in env.notes)
    assert {env[k].prompt.told for k in range(24)} == {"all cups", "cups right of <mask> on the table"}
    assert apart(teach, sft(folder, tmp_path / "run")) == ""
    curve = [line.split("\t") for line in (tmp_path / "run/curve.tsv").read_text().splitlines()]
    assert 0 < float(dict(zip(curve[0], curve[1], strict=True))["loss"]) < 2
    # And the best choice from them is told, at the side of what is taught.
    told = here(
        "data", "show", tmp_path / "run" / "config.yaml", "--split", "train", "--json", "--out", tmp_path / "a.html"
    )
    numbers = json.loads(told.stdout)["splits"]["train"]
    assert numbers["candidates"]["most"] == 5 and numbers["oracle"]["median"] == 1.0


@pytest.mark.slow
def test_without_its_target_a_pool_teaches_to_choose_nothing_and_without_candidates_it_is_refused(
    tmp_path: Path,
) -> None:
    folder = shards(tmp_path / "a", pools(without_target))
    assert apart(teach, sft(folder, tmp_path / "run")) == ""
    empty = shards(tmp_path / "b", pools(without_pool))
    said = apart(teach, sft(empty, tmp_path / "other"))
    assert "codec mask_group needs candidates to choose from, and the example has none" in said


def test_more_candidates_than_places_are_refused_before_the_first_step(tmp_path: Path) -> None:
    folder = shards(tmp_path, pools(as_it_is))
    said = teach(sft(folder, tmp_path / "run", "max_tokens=4"))
    assert "max_tokens is 4, but the answer to" in said and "takes 5 tokens" in said


def test_a_policy_that_chooses_is_benchmarked_with_the_candidates_of_the_data_and_others_without(
    tmp_path: Path,
) -> None:
    data = BenchmarkSet("groups", tmp_path, "validation", "ores")
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "config.json").write_text("{}")
    for config, candidates in (("gspo_groups", True), ("demo", False)):
        model = benchmark_model(f"m={tmp_path / 'policy'}", Path(config), True, None, None)
        assert model.asked_about(data).env["candidates"] is candidates


def test_a_pool_that_is_missing_or_too_large_anywhere_is_refused_before_the_start(
    tiny_untrained: Path, tmp_path: Path
) -> None:
    def look(name: str, change: Callable[[dict[str, Any]], None], most: int = 12) -> None:
        entries = pools(as_it_is) * 4  # 96 questions, of which 64 are looked at one by one
        for place, entry in enumerate(entries):
            entries[place] = entry | {"id": f"{place}"}
        change(entries[-2])
        folder = shards(tmp_path / name, entries)
        env = f"env={{name: shards, folder: {folder}, names: {{test: validation}}}}"
        chooses = ["codec={name: mask_group}", "policy.name=mask_selection", "pool.engine={name: direct}"]
        more = [env, *chooses, f"policy.checkpoint={tiny_untrained}", "max_left_out=1.0"]
        config = settings(tmp_path / "run", *more, f"sampling.max_tokens={most}")
        parts = run_parts(config)
        refuse_unfit_pools(config, parts, Policy.make_processor(tiny_untrained, parts.codec.build()))

    def twice_as_many(entry: dict[str, Any]) -> None:
        entry["mask_pool"] = entry["mask_pool"] * 2

    look("whole", as_it_is)
    with pytest.raises(ValueError, match=r"some questions of the split train have no candidates to choose from; prepa"):
        look("missing", without_pool)
    look("large", twice_as_many, 10)
    with pytest.raises(
        ValueError, match=r"train has 10 candidates, .* 10 places, .*max_tokens allows 9; set that to 10"
    ):
        look("too_large", twice_as_many, 9)
