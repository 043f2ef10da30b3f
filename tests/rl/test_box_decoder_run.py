"""Boxes with masks that a decoder draws, through supervised training, RL, stop and resume, and the archive."""

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmark_here import run_benchmark
from commands import here
from drawn_pairs import exported, refined, rows_of
from in_process import LocalLearner, LocalPool, LocalWriter, apart, run_here, settings
from omegaconf import OmegaConf
from PIL import Image
from ranks import free_port
from rich.console import Console
from safetensors.torch import load_file, save_file

from envs.codecs.box_masks import Codec
from envs.datasets.cutout_scenes import Env
from envs.datasets.shards import Env as ShardsEnv
from envs.datasets.tasks import box_px
from envs.geometry.contours import mask_from_rings
from envs.geometry.pools import oracle
from envs.geometry.rle import mask_from_rle
from policies.decoders.box_guided import FILE
from policies.families.box_decoder import Policy
from policies.families.vision_language import Policy as PlainPolicy
from policies.weights import bucket_checksum, held_checksum
from rl.config.load import load_settings
from rl.config.plugins import codec_plugin, policy_plugin
from rl.config.run import RunConfig
from rl.config.sft import SftConfig
from rl.learner.batches.batch import Batch
from rl.predict import Predictor, find_source
from rl.run.folder import RunFolder
from rl.run.parts import processor_of, run_parts
from rl.run.preflight import refuse_unfit_policy
from rl.sft import run_sft
from rl.train import begin, loop
from rollout.archive.archive import RolloutArchive
from rollout.archive.schema import answer_from_row
from rollout.engines.shared import Engine
from rollout.settings import Sampling

SCENES = ["env.image_size=64", "codec={name: box_masks, box_bins: 64, max_masks: 4}", "policy.name=box_decoder"]
DRAWS = ["policy.mask_cells=32"]


def teach(config: SftConfig) -> int:
    run_sft(config, Console(quiet=True))
    return 0


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has just taught how answers are written to what the embedded checkpoint knows."""
    run = tmp_path_factory.mktemp("box_decoder") / "run"
    stage = "sft.stages=[{name: masks, steps: 80, lr: 3.0e-3, last_lr: 5.0e-4}]"
    more = ["sft.scenes_per_step=8", "sft.evaluate_every=40", "sft.evaluate_scenes=8", "learner.threads=1", stage]
    small = "policy.decoder={width: 16, heads: 2, mlp: 32, blocks: 1, frequencies: 4, places: 4}"
    named = [f"run={run}", small, *SCENES, *DRAWS, *more]
    assert apart(teach, load_settings(SftConfig, Path("sft_box_decoder"), named)) == 0
    return run


def overrides(run: Path, *more: str) -> list[str]:
    return [*SCENES, *DRAWS, "policy.freeze_decoder=true", f"policy.checkpoint={run / 'policy'}", *more]


def numbers_of(run: Path) -> list[dict[str, float]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [numbers for numbers in found if "learner/ratio_max" in numbers]


def test_text_and_masks_are_taught_together(taught: Path) -> None:
    curve = [line.split("\t") for line in (taught / "curve.tsv").read_text().splitlines()]
    losses = [float(dict(zip(curve[0], line, strict=True))["loss"]) for line in curve[1:]]
    assert len(losses) == 2 and losses[1] < 0.8 * losses[0]
    policy = Policy(taught / "policy", Codec(box_bins=64))
    assert policy.model.mask_decoder.sizes.width == 16
    assert float(policy.model.mask_decoder.injections[0].scale) != pytest.approx(1e-3, abs=1e-7)


def test_a_run_draws_scores_learns_and_goes_on_where_it_stopped(taught: Path, tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert apart(run_here, whole, free_port(), overrides(taught, "steps=4")) == 0
    assert apart(run_here, stopped, free_port(), overrides(taught, "steps=2")) == 0
    steps = numbers_of(whole)
    assert len(steps) == 4 and steps[0]["learner/ratio_max"] == pytest.approx(1.0, abs=0.05)
    assert all(numbers["learner/sampler_logprob_difference_max"] < 1e-4 for numbers in steps)
    for one, other in zip(steps, numbers_of(stopped), strict=False):
        assert one["learner/grad_norm"] == other["learner/grad_norm"]
    rows = [row for batch in RolloutArchive(whole / "archive").rollouts() for row in batch.to_pylist()]
    read = [(row, answer_from_row(row)) for row in rows if row["status"] == "ok"]
    assert len(rows) == 4 * 2 * 3 and len(read) > 4
    # What is kept is what was drawn: exact outlines along pixel edges, no rectangle of the box.
    shapes = [mask_from_rings(answer.rings_px, 64, 64) for _, answer in read]
    assert all((ring == ring.round()).all() for _, answer in read for ring in answer.rings_px)
    assert all(mask.sum() == row["answer_area_px"] for mask, (row, _) in zip(shapes, read, strict=True))
    assert all(instance.score is not None for _, answer in read for instance in answer.instances)


def test_rl_leaves_the_decoder_as_it_is_to_the_bit(taught: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert apart(run_here, run, free_port(), overrides(taught, "steps=2", "learner.lr=1.0e-2")) == 0
    [saved] = run.glob("checkpoints/step-000002/learner/mp_rank_00_model_states.pt")
    learned = torch.load(saved, weights_only=False)["module"]
    own = {f"model.mask_decoder.{name}": weight for name, weight in load_file(taught / "policy" / FILE).items()}
    assert own.keys() <= learned.keys() and all(torch.equal(learned[name], own[name]) for name in own)
    words = load_file(taught / "policy" / "model.safetensors")
    assert any(not torch.equal(learned[f"model.{name}"], weight) for name, weight in words.items())


ALONG = ["policy.freeze_decoder=false", "learner.decoder_weight=0.1", "learner.decoder_lr=1.0e-3"]


def run_along(folder: Path, port: int, named: list[str], dies_at: int | None = None) -> None:
    """A run whose decoder learns along, and whose process is killed in a step; at its end the worker holds the
    learner's decoder, to the checksum."""
    config, run_folder = settings(folder, *named), RunFolder(folder)
    parts, resume = run_parts(config), run_folder.can_resume
    run_folder.begin(config, parts.data, resume)
    learner, pool = LocalLearner(config, parts, port), LocalPool(config, parts)
    run = begin(config, parts, (learner, pool), resume)  # type: ignore[arg-type]
    run.archiving = LocalWriter(run.rollouts)  # type: ignore[assignment]
    first, plain = held_checksum(learner._rank._policy.network.decoder), run.learn

    def learn(batch: Batch) -> dict[str, float]:
        if learner._rank._engine.steps_done == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(batch)

    run.learn = learn  # type: ignore[method-assign]
    loop(run, Console(quiet=True))
    pool.set_weights(learner.weights(), version=config.steps)
    drawing, learned = pool._worker._sampler.policy, learner._rank._policy.network
    assert held_checksum(drawing.decoder) == held_checksum(learned.decoder) != first
    assert pool._worker.held_checksum() == bucket_checksum(learner.weights())
    save_file({name: p.detach() for name, p in learned.decoder.named_parameters()}, folder / FILE)
    run.close()


def test_a_decoder_that_learns_along_is_the_workers_too_and_a_killed_run_goes_on_to_the_same_numbers(
    taught: Path, tmp_path: Path
) -> None:
    whole, killed, named = tmp_path / "whole", tmp_path / "killed", overrides(taught, *ALONG, "steps=4")
    assert apart(run_along, whole, free_port(), named) == 0
    assert apart(run_along, killed, free_port(), named, 3) == -signal.SIGKILL
    assert len(numbers_of(killed)) == 3 and not (killed / FILE).exists()
    assert apart(run_along, killed, free_port(), named) == 0
    for one, other in zip(numbers_of(whole), numbers_of(killed), strict=True):
        names = [name for name in one if name.partition("/")[0] in ("learner", "reward", "sampled")]
        assert {"learner/decoder_loss", "learner/decoder_taught"} <= set(names)
        assert all(one[name] == other[name] for name in names)
        assert 0 < one["learner/decoder_loss"] < 6 and 0 < one["learner/decoder_taught"] <= 1
    start, one, other = (load_file(folder / FILE) for folder in (taught / "policy", whole, killed))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert max(float((one[name] - start[name]).abs().max()) for name in one) > 5e-4  # four steps of a warm-up


def test_what_would_draw_nothing_or_change_the_decoder_is_refused(taught: Path, tmp_path: Path) -> None:
    def look(*more: str, engine: str = "shared") -> None:
        config = settings(tmp_path / "run", *overrides(taught, *more))
        family = PlainPolicy if "policy.name=vision_language" in more else Policy
        parts = run_parts(config)
        parts = replace(parts, engine=replace(parts.engine, name=engine))
        refuse_unfit_policy(config, parts, family.make_processor(taught / "policy", parts.codec.build()))

    look()
    look(*ALONG)
    with pytest.raises(ValueError, match=r"freeze_decoder is false and learner\.decoder_weight 0, so that nothing but"):
        look("policy.freeze_decoder=false")
    with pytest.raises(ValueError, match=r"decoder_weight is 0\.1 and policy\.freeze_decoder true"):
        look("learner.decoder_weight=0.1")
    with pytest.raises(ValueError, match=r"policy\.losses has bce 0 and dice 0"):
        look(*ALONG, "policy.losses={bce: 0, dice: 0}")
    with pytest.raises(ValueError, match=r"decoder_lr is 0\.001 and learner\.decoder_weight 0"):
        look("learner.decoder_lr=1.0e-3")
    with pytest.raises(ValueError, match=r"push adapters, so that workers would go on drawing by the first decoder"):
        look(*ALONG, "learner.lora={push: adapters}")
    with pytest.raises(ValueError, match=r"set learner\.token_budget to null"):
        look(*ALONG, "learner.zero_stage=3", "learner.token_budget=4096", "learner.average=0")
    with pytest.raises(ValueError, match=r"pool\.engine is vllm, which does not draw"):
        look(engine="vllm")


def test_a_decoder_that_was_not_taught_first_is_refused_and_so_is_a_policy_without_one(
    taught: Path, tiny_untrained: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(taught / "policy", bare)
    (bare / FILE).unlink()
    config = settings(tmp_path / "run", *overrides(taught, *ALONG), f"policy.checkpoint={bare}")
    parts = run_parts(config)
    with pytest.raises(ValueError, match=r"holds no mask_decoder\.safetensors.*run `polytrace sft` first"):
        refuse_unfit_policy(config, parts, Policy.make_processor(bare, parts.codec.build()))
    config = settings(tmp_path / "run", f"policy.checkpoint={tiny_untrained}", "learner.decoder_weight=0.1")
    with pytest.raises(ValueError, match=r"policy\.name vision_language has no mask decoder that could learn"):
        refuse_unfit_policy(config, parts := run_parts(config), processor_of(parts.policy))


def test_the_config_that_has_the_decoder_learn_along_differs_from_the_other_by_this_alone() -> None:
    frozen, along = (load_settings(RunConfig, Path(name)) for name in ("gspo_box_decoder", "gspo_box_decoder_along"))
    assert along.policy == frozen.policy | {"freeze_decoder": False} and frozen.learner.decoder_weight == 0
    assert along.learner.decoder_weight > 0
    again = replace(along, run=frozen.run, policy=frozen.policy, learner=frozen.learner)
    assert again == frozen
    own = {"decoder_weight", "decoder_lr"}
    assert {name for name, value in vars(along.learner).items() if value != vars(frozen.learner)[name]} <= own


@pytest.mark.parametrize("name", ["vision_language", "mask_selection"])
def test_a_checkpoint_with_a_decoder_is_no_other_policy_s(taught: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"holds mask_decoder\.safetensors.*set policy\.name to box_decoder"):
        policy_plugin({"name": name, "checkpoint": str(taught / "policy")}, codec_plugin({"name": "mask_group"}))


def test_predict_gives_the_drawn_mask_and_no_rectangle(taught: Path) -> None:
    env = Env("test", image_size=64)
    example = next(env[k] for k in range(20) if len(env[k].truth.masks))
    image = Image.fromarray(env.image(example.image))
    predictor = Predictor(find_source(taught / "policy", Path("gspo_box_decoder"), None))
    prediction = predictor.predict(image, example.prompt.told)
    assert prediction.status == "ok" and prediction.mask.any()
    x0, y0, x1, y1 = box_px(prediction.mask)
    assert prediction.mask.sum() < (x1 - x0) * (y1 - y0)


def test_pairs_of_a_run_have_the_drawn_masks_to_the_pixel_and_a_refiner_takes_them(
    taught: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert (
        apart(run_here, run, free_port(), overrides(taught, "steps=2", "groups_per_step=6", "env.train_scenes=12")) == 0
    )
    pairs = exported(run, tmp_path / "pairs")
    rows = rows_of(run)
    first = [pair for pair in pairs if pair["step"] == 0]
    assert len(first) > 4
    # The same answers, drawn once more by the policy that the run began with.
    said = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))
    env = Env("train", **{key: value for key, value in said["env"].items() if key != "name"})
    wanted = {pair["example_id"] for pair in first}
    examples = {one.id: one for one in (env[k] for k in range(len(env))) if one.id in wanted}
    plugin = policy_plugin(said["policy"], codec_plugin(said["codec"]))
    sampler = Engine().open(plugin, "cpu")
    for pair in first:
        row, example = rows[pair["step"], pair["position"], pair["index"]], examples[pair["example_id"]]
        how = Sampling(temperature=row["temperature"], max_tokens=row["max_tokens"])
        question = example.question(env.image(example.image))
        [[response]] = sampler.sample([question], how, [[row["seed"]]])
        assert response.tokens.tolist() == row["tokens"]
        answer = sampler.policy.processor.read_answer(response, example)
        drawn = mask_from_rings(answer.rings_px, 64, 64)
        assert np.array_equal(mask_from_rle(pair["coarse_rle"], 64, 64), drawn) and drawn.any()
    assert apart(refined, run, tmp_path / "refiner", taught / "policy") == 0


def by_hand(masks: list[np.ndarray], truths: list[np.ndarray], nothing: np.ndarray) -> tuple[float, float]:
    """(mean IoU, cIoU) of masks by their definitions; nothing: [S] the IoU where neither has a pixel."""
    pairs = list(zip(masks, truths, strict=True))
    shared, either = (np.array([each(*pair).sum() for pair in pairs]) for each in (np.logical_and, np.logical_or))
    return float(np.where(either > 0, shared / np.maximum(either, 1), nothing).mean()), shared.sum() / either.sum()


def benchmarked(taught: Path, folder: Path) -> None:
    scenes = "env={name: cutout_scenes, image_size: 64, num_scenes: 40, candidates: 8, absent_share: 0.2}"
    made = here("data", "prepare", "gspo_box_decoder", scenes, "--split", "test", "--out", folder / "shards")
    assert made.status == 0, made.stderr
    how = ("--config", "gspo_box_decoder", "--out", folder / "bench", "--limit", 24)
    kinds = ("--protocol", "res", "--protocol", "gres", "--protocol", "ores")
    told = run_benchmark(f"boxes={taught / 'policy'}", "--data", f"mine={folder / 'shards'}:test", *how, *kinds)
    env = ShardsEnv("test", str(folder / "shards"))
    examples = [env[k] for k in range(24)]
    entry = {"name": "box_decoder", "checkpoint": str(taught / "policy"), "mask_cells": 32}
    sampler = Engine().open(policy_plugin(entry, codec_plugin({"name": "box_masks", "box_bins": 64})), "cpu")
    masks, valid = [], []
    for one in examples:
        question = replace(one, candidates=None).question(env.image(one.image))
        [[response]] = sampler.sample([question], Sampling(temperature=0.0, max_tokens=24), [[0]])
        answer = sampler.policy.processor.read_answer(response, one)
        masks.append(mask_from_rings(answer.rings_px, 64, 64))
        valid.append(answer.status.valid)
    truths = [one.truth.union for one in examples]
    assert sum(mask.any() for mask in masks) > 8
    scores = json.loads((folder / "bench/summary.json").read_text())["scores"]
    assert [(one["model"], one["protocol"]) for one in scores] == [
        (model, protocol) for protocol in ("res", "gres", "ores") for model in ("boxes", "best choice of the pool")
    ]
    for one in scores:
        mean = "mIoU" if one["protocol"] == "res" else "gIoU"
        if one["model"] == "boxes":
            # An answer that cannot be read says "nothing" of nothing no better than any other.
            found = by_hand(masks, truths, np.array(valid) * (0.0 if one["protocol"] == "res" else 1.0))
            assert one["scores"]["cIoU"]["value"] == pytest.approx(found[1])
            assert one["scores"][mean]["value"] == pytest.approx(found[0])
        elif mean == "gIoU":
            best = [oracle(each.candidates, each.truth.union) for each in examples]
            assert one["scores"]["gIoU"]["value"] == pytest.approx(np.mean(best))
    assert "best choice of the pool" in told


def test_a_benchmark_of_drawn_masks_is_that_of_the_same_masks_scored_by_hand(taught: Path, tmp_path: Path) -> None:
    benchmarked(taught, tmp_path)
