"""`polytrace refine`: pairs chosen from archives, features computed once, a refiner trained, calibrated and judged.

Stopped at any point, the same command goes on: `out` says how far it is by what it holds.

    config.yaml  tower.sha256  pairs.parquet  features/  checkpoints/  metrics.jsonl    while it is made
    refiner.json  refiner.safetensors  summary.json  refiner.html         when it is done
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from envs.plugin import Plugin
from policies.families.base import PolicyContract, VisionFeatures
from policies.refiner.mask_refiner import MaskRefiner
from policies.vision.features import policy_with_tower_alone
from rl.config.load import load_settings, plugin_from_settings, read_mapping, save_settings
from rl.config.plugins import NAMED, checkpoint_folder, policy_plugin
from rl.config.refiner import RefineConfig
from rl.config.run import RunConfig
from rl.pages.progress import bar
from rl.pairs.index import INDEX, ChosenPairs, PairRun, PairSet, choose_pairs, open_runs, training_envs
from rl.refiner.data import shares
from rl.refiner.judge import SUMMARY, judge
from rl.refiner.rank import RefinerRankSettings
from rl.refiner.scenes import of_one_size, outcomes
from rl.refiner.scores import fit_calibration
from rl.refiner.train import train_refiner
from rl.run.folder import RunFolder
from rl.run.parts import run_parts
from rollout import cluster
from rollout.disk import refuse_unwritable, replace_text

_CONFIG, _TOWER = "config.yaml", "tower.sha256"


def refine(config: RefineConfig, console: Console) -> MaskRefiner:
    """Make a refiner as `config` says, or go on with it where it was stopped.

    Raises ValueError or FileNotFoundError, before anything is written, where a run cannot be used, `out` holds
    something else, the rule keeps no answer, or an image is gone or another one than was answered about.
    """
    out = Path(config.out)
    refuse_unwritable(out / _CONFIG)
    if config.training.ranks > 1:
        cluster.refuse_unfit_temporary_folder()
    head = head_plugin(config)
    _refuse_other(out, config)
    runs = open_runs([Path(run) for run in config.runs], config.unfinished)
    policy = tower_of(config)
    settings = _rank_settings(config, runs, head, policy)
    settings.refuse_wrong_crops()
    _choose(out, config, runs, console)
    _refuse_other_tower(out, settings.tower_checksum)
    settings.refuse_empty_stages()
    keep_features(settings, policy, console)
    if not (out / "refiner.json").is_file():
        train_refiner(settings, out, console)
    refiner = calibrated(settings, policy, out)
    judge(config, settings, policy, refiner, console)
    return refiner


def settings_of(config: RunConfig) -> RefineConfig:
    """How the refiner of a run is made: in its folder refiner/, over its best policy."""
    return RefineConfig(**vars(config.refiner), runs=[config.run], out=str(RunFolder(Path(config.run)).refiner))


def tower_of(config: RefineConfig) -> PolicyContract:
    """The policy whose vision tower the refiner sees through, that tower alone, on a GPU where there is one."""
    run = RunFolder(Path(config.runs[0]))
    settings = run.config()
    parts = run_parts(settings)
    recipe = parts.policy  # without `checkpoint`, the one that a run drew from which never learned
    if config.checkpoint is not None:
        if not (checkpoint_folder(config.checkpoint) / "config.json").is_file():
            raise FileNotFoundError(
                f"checkpoint is {config.checkpoint}, which holds no config.json; give a Hugging Face model folder, or "
                f"{NAMED} for an embedded one."
            )
        recipe = policy_plugin(settings.policy | {"checkpoint": config.checkpoint}, parts.codec)
    elif run.has_trained:
        recipe = recipe.with_settings(checkpoint=run.best_policy().folder)
    return policy_with_tower_alone(recipe, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def head_plugin(config: RefineConfig) -> Plugin:
    """The head that a config names; raises ValueError for a wrong one."""
    return plugin_from_settings(
        "policies.heads", "Head", config.head, "head", ["crop_px", "final_channels", "early_channels"]
    )


def _refuse_other(out: Path, config: RefineConfig) -> None:
    """Raise ValueError where `out` holds anything but the beginnings of this very training."""
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not (out / _CONFIG).is_file() or not {"runs", "out"} <= read_mapping(out / _CONFIG).keys():
        raise ValueError(f"{out} is not empty and holds no {_CONFIG} of a refiner; give a new folder, or delete it.")
    before = load_settings(RefineConfig, out / _CONFIG)
    if _identity(before) != _identity(config):
        changed = sorted(k for k, value in _identity(config).items() if _identity(before)[k] != value)
        raise ValueError(
            f"{out} holds a refiner made with other settings of {', '.join(changed)}; give a new folder, or delete it."
        )
    if (out / SUMMARY).is_file():
        raise ValueError(f"{out} holds a finished refiner; give a new folder, or delete it to train again.")


def _refuse_other_tower(out: Path, checksum: str) -> None:
    """Raise ValueError where a training that goes on would see through another tower, as when a run has a new best."""
    path = out / _TOWER
    if not path.is_file():
        replace_text(path, checksum + "\n")
    if (before := path.read_text().strip()) != checksum:
        raise ValueError(
            f"{out} was begun over the vision tower {before[:12]}..., the policy's is {checksum[:12]}... now: the run "
            "may have a newer best policy; give a new folder, or delete it."
        )


def _identity(config: RefineConfig) -> dict[str, object]:
    """What must stay as it is when a training goes on."""
    training = replace(config.training, ranks=1, threads=1, gpus_per_rank=0.0)
    runs = [Path(run).resolve() for run in config.runs]
    return asdict(config) | {"training": training, "runs": runs, "out": "", "features": None}


def _choose(out: Path, config: RefineConfig, runs: Sequence[PairRun], console: Console) -> None:
    """Write the index of the pairs, unless it is there."""
    if (out / INDEX).is_file():
        return
    wanted = PairSet(config.rule, config.damage)
    [chosen] = choose_pairs(runs, [wanted], config.held_out_examples, training_envs(runs), console)
    _refuse_none_to_train(chosen, config)
    out.mkdir(parents=True, exist_ok=True)
    save_settings(config, out / _CONFIG)
    num, choice = chosen.write(out / INDEX, console), chosen.choice
    left_out = ", ".join(f"{num:,} {reason}" for reason, num in choice.report.left_out.items() if num)
    console.print(
        f"refiner: {num:,} pairs, {len(choice):,} by {choice.report.answers:,} answers; left out: {left_out}",
        soft_wrap=True,
    )


def _refuse_none_to_train(chosen: ChosenPairs, config: RefineConfig) -> None:
    """Raise ValueError where all images are kept apart, as those of a few pairs can be."""
    if config.damage.per_example:
        return
    hashes = [pair.image_sha256 for pair in chosen.choice.pairs()]
    if not len(shares(hashes, config.calibration_share, config.evaluation_share)["train"]):
        raise ValueError(
            f"none of the {len(hashes)} pairs is left to train on: their {len(set(hashes))} images all fell to "
            f"calibration_share {config.calibration_share:g} and evaluation_share {config.evaluation_share:g}; lower "
            "these, or take more answers by a wider rule or more runs."
        )


def _rank_settings(
    config: RefineConfig, runs: Sequence[PairRun], head: Plugin, policy: PolicyContract
) -> RefinerRankSettings:
    out = Path(config.out)
    probe = policy.vision_features([np.zeros((64, 64, 3), np.uint8)], config.network.early_block)
    return RefinerRankSettings(
        config.network,
        head,
        config.training,
        index=out / INDEX,
        envs={run.name: run.env for run in runs},
        features=Path(config.features) if config.features else out / "features",
        tower_checksum=policy.vision_checksum(),
        final_channels=probe.final.shape[1],
        early_channels=probe.early.shape[1],
        calibration_share=config.calibration_share,
        evaluation_share=config.evaluation_share,
    )


def keep_features(settings: RefinerRankSettings, policy: PolicyContract, console: Console) -> None:
    """Compute what features are not kept yet, of every image (or crop) of the pairs."""
    pairs, store, network = settings.pairs(), settings.store(), settings.network
    dtype = next(policy.vision_tower.parameters()).dtype
    wanted = {pairs.feature_path(store, number): number for number in range(len(pairs))}
    missing = [(path, number) for path, number in wanted.items() if not path.is_file()]
    numbers = [number for _, number in missing]
    sizes = pairs.sizes(numbers) if network.features == "image" else [(0, 0)] * len(numbers)
    batches = list(of_one_size(sizes))
    for places in bar(batches, "features", console, len(batches)):
        part = [missing[place] for place in places]
        seen = [pairs.seen_by_tower(number) for _, number in part]
        found = policy.vision_features(seen, network.early_block)
        for k, (path, _) in enumerate(part):
            store.write(path, VisionFeatures(found.final[k : k + 1], found.early[k : k + 1]), dtype)


def calibrated(settings: RefinerRankSettings, policy: PolicyContract, out: Path) -> MaskRefiner:
    """The trained refiner in `out`, its predicted IoUs brought to what they turn out to be; saved again."""
    refiner = MaskRefiner.load(out, settings.tower_checksum).to(next(policy.vision_tower.parameters()).device)
    pairs = settings.pairs()
    numbers = shares(pairs.image_hashes(), settings.calibration_share, settings.evaluation_share)["calibration"]
    if len(numbers):
        found = outcomes(refiner, policy, settings.store(), pairs, numbers.tolist())
        refiner.calibration = fit_calibration(found.raw_iou, found.iou)
        refiner.save(out)
    return refiner
