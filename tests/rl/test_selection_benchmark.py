"""Whole benchmarks of a policy that chooses, from files on disk to tables, under `ores`, `res` and `gres`: numbers are
those of its own choices scored by hand, and the oracle of the pool stands beside them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmark_here import run_benchmark
from commands import here
from made_every_set import EVERY

from envs.codecs import path_tokens
from envs.codecs.mask_group import Codec
from envs.datasets.shards import Env
from envs.geometry.pools import oracle
from envs.geometry.rle import rle_from_mask
from policies.families.mask_selection import Policy
from policies.settings import TinySizes
from policies.tiny_model import write_untrained
from rl.config.plugins import codec_plugin, policy_plugin
from rollout.engines import direct
from rollout.settings import Sampling

SIZES = TinySizes(
    image_size=32, text_width=32, text_layers=2, text_heads=2, vision_width=16, vision_layers=2, vision_heads=2
)


def policy_of(folder: Path, words: set[str]) -> Path:
    """A random policy that chooses, of these words."""
    write_untrained(folder / "begun", [*path_tokens.Codec().words, *sorted(words)], SIZES, seed=1)
    policy = Policy(folder / "begun", Codec())
    torch.manual_seed(2)
    policy.model.selection.classifier.weight.data.normal_()  # a new one chooses nothing
    policy.save(folder / "policy")
    return folder / "policy"


def pools_of(shards: Path, split: str, out: Path) -> Path:
    """Pools of what is true of all questions about an image, and of what is not, in COCO's form."""
    env, of_image = Env(split, str(shards)), dict[str, list[np.ndarray]]()
    for k in range(len(env)):
        example = env[k]
        masks = of_image.setdefault(example.image.key, [])
        masks += [np.roll(mask, 2, axis=1) for mask in example.truth.masks] + [~example.truth.union]
    images, annotations = [], []
    for number, (key, masks) in enumerate(of_image.items()):
        height, width = masks[0].shape
        images.append({"id": number, "file_name": key, "height": height, "width": width})
        for mask in masks:
            runs = {"size": [height, width], "counts": rle_from_mask(mask)}
            annotations.append({"id": len(annotations), "image_id": number, "segmentation": runs})
    out.write_text(json.dumps({"images": images, "annotations": annotations}))
    return out


def prepared(name: str, folder: Path) -> tuple[Path, str]:
    """Shards of a format with candidates, its own or those of a file of pools, at the policy's size."""
    path, split = folder / "anns" / name, EVERY[name].split
    path.mkdir(parents=True)
    EVERY[name].write(path)
    how = ["--split", split, "--processes", 1]
    if name != "maskgroups":
        plain = folder / "plain"
        assert here("data", "prepare", path, *how, "--out", plain).status == 0
        how += ["--pools", pools_of(plain, split, folder / "pools.json")]
    shown = ("--image-side", 32, "--square", "--out", folder / "shards")
    done = here("data", "prepare", path, *how, *shown)
    assert done.status == 0, done.stderr
    return folder / "shards", split


def scored_by_hand(masks: list[np.ndarray], truths: list[np.ndarray], protocol: str) -> dict[str, float]:
    """gIoU and cIoU of masks, by their definitions; nothing in either counts 1 where "nothing" can be right."""
    shared = np.array([(mask & true).sum() for mask, true in zip(masks, truths, strict=True)])
    either = np.array([(mask | true).sum() for mask, true in zip(masks, truths, strict=True)])
    ious = np.where(either > 0, shared / np.maximum(either, 1), 0.0 if protocol == "res" else 1.0)
    return {"mIoU" if protocol == "res" else "gIoU": ious.mean(), "cIoU": shared.sum() / max(1, either.sum())}


@pytest.mark.parametrize(("name", "protocol"), [("maskgroups", "ores"), ("refcoco", "res"), ("grefcoco", "gres")])
def test_a_benchmark_of_choices_is_that_of_the_same_choices_scored_by_hand(
    name: str, protocol: str, tmp_path: Path
) -> None:
    folder = tmp_path
    shards, split = prepared(name, folder)
    env = Env(split, str(shards))
    examples = [env[k] for k in range(len(env))]
    assert len(examples) == EVERY[name].questions and all(len(one.candidates) for one in examples)
    policy = policy_of(folder, {word for one in examples for word in one.prompt.text.split()})
    given = ("--data", f"mine={shards}:{split}", "--config", "gspo_groups", "--out", folder / "bench")
    told = run_benchmark(f"chooser={policy}", *given)
    scores = {one["model"]: one for one in json.loads((folder / "bench/summary.json").read_text())["scores"]}
    assert list(scores) == ["chooser", "best choice of the pool"]
    assert {one["protocol"] for one in scores.values()} == {protocol} and scores["chooser"]["unreadable"] == 0
    # The same policy, asked once more without a benchmark.
    plugin = policy_plugin({"name": "mask_selection", "checkpoint": str(policy)}, codec_plugin({"name": "mask_group"}))
    sampler = direct.Engine().open(plugin, "cpu")
    greedy, masks = Sampling(temperature=0.0, max_tokens=12), []
    for one in examples:
        [[response]] = sampler.sample([one.question(env.image(one.image))], greedy, [[0]])
        masks.append(np.asarray(one.candidates[response.tokens == 1].any(axis=0)))
    truths = [one.truth.union for one in examples]
    assert any(mask.any() for mask in masks)
    for title, value in scored_by_hand(masks, truths, protocol).items():
        assert scores["chooser"]["scores"][title]["value"] == pytest.approx(value), title
    best = scores["best choice of the pool"]["scores"]
    assert best["mIoU" if protocol == "res" else "gIoU"]["value"] == pytest.approx(
        np.mean([oracle(one.candidates, one.truth.union) for one in examples])
    )
    for table in (told, *((folder / "bench" / page).read_text() for page in ("tables.md", "tables.tex"))):
        assert "best choice of the pool" in table
    # A protocol beside it asks nothing again, and a policy's results are no oracle's.
    assert [path.name for path in (folder / "bench/results").iterdir()] == ["chooser"]
    again = run_benchmark(f"chooser={policy}", *given, "--protocol", "gres", "--protocol", "boundary")
    assert "best choice of the pool" in again and "chooser on mine" not in again
