"""Refiners trained on different pairs, side by side: the same number of pairs, the same steps, the same judge.

Every variant sees through the vision tower of one RL run's best policy, and is judged by that policy's greedy answers
on held-out scenes. What differs is where the coarse masks come from: rollouts of the RL run, true masks damaged,
rollouts of the SFT checkpoint alone; or that only one pass is unrolled. Smoothing learns nothing but a radius.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from envs.datasets.base import Env
from rl.config.pairs import DamageSettings, PairRule
from rl.config.refiner import RefineConfig, RefinerTraining
from rl.evaluation.answers import greedy_units, score_masks
from rl.evaluation.scores import Interval
from rl.lab.ablation_scores import t_interval
from rl.refine import refine, tower_of
from rl.refiner.data import RefinerPairs
from rl.refiner.judge import smoothed_like
from rl.refiner.scenes import CoarseScenes, refine_scenes
from rl.run.folder import RunFolder
from rl.run.parts import run_parts, worker_settings
from rollout.disk import replace_text
from rollout.records import Group
from rollout.worker import RolloutWorker

METRICS = {"giou": "gIoU", "boundary_iou": "boundary IoU", "worse": "made worse", "passes": "passes"}
OUTLINES, SMOOTHED, ROLLOUTS, SYNTHETIC, SFT, SINGLE = (
    "outlines",
    "smoothing",
    "RL rollouts",
    "synthetic damage",
    "SFT rollouts",
    "RL rollouts, single pass",
)
VARIANTS = (ROLLOUTS, SYNTHETIC, SFT, SINGLE)


@dataclass(frozen=True)
class RefinerBench:
    """What to compare."""

    run: Path
    """The run of RL; its best policy is refined."""
    sft_run: Path
    """Rollouts of the checkpoint that it began with (`polytrace sample`)."""
    out: Path
    """Where the refiners go, and what was measured: a bench that was stopped goes on."""
    pairs: int
    steps: int
    seeds: int
    scenes: int
    """Held-out scenes."""

    def config(self, variant: str, seed: int) -> RefineConfig:
        """How a variant is trained."""
        base = RefineConfig(
            runs=[str(self.sft_run if variant == SFT else self.run)],
            out=str(self.out / f"{variant.replace(', ', '-').replace(' ', '-')}-{seed}"),
            features=str(self.out / "features"),
            checkpoint=str(RunFolder(self.run).best_policy().folder),
            rule=PairRule(per_example=2, limit=self.pairs, seed=seed),
            damage=DamageSettings(share=1.0 if variant == SYNTHETIC else 0.0),
            held_out_examples=0,
            training=RefinerTraining(steps=self.steps, save_every=self.steps, seed=seed),
            unfinished=True,
        )
        return replace(base, network=replace(base.network, passes=1)) if variant == SINGLE else base


Scores = dict[str, float]
"""By the keys of METRICS."""


def bench(wanted: RefinerBench, console: Console) -> dict[str, dict[int, Scores]]:
    """Scores by variant and seed; each is kept as soon as it is known. ValueError where `out` has other settings."""
    file = wanted.out / "measured.json"
    known = json.loads(file.read_text()) if file.is_file() else {"settings": _identity(wanted), "scores": {}}
    if known["settings"] != _identity(wanted):
        raise ValueError(f"{file} was measured with {known['settings']}; give another folder for other settings.")
    wanted.out.mkdir(parents=True, exist_ok=True)
    groups, env = greedy_answers(wanted.run, wanted.scenes)
    scenes = CoarseScenes.of_groups(env, groups)
    for seed in range(wanted.seeds):
        for variant in VARIANTS:
            if str(seed) not in known["scores"].get(variant, {}):
                config = wanted.config(variant, seed)
                found = _refined_scores(config, scenes, groups)
                known["scores"].setdefault(variant, {})[str(seed)] = found
                replace_text(file, json.dumps(known, indent=1) + "\n")
                console.print(f"{variant}, seed {seed}: gIoU {found['giou']:.4f}")
    return _all_scores(known, scenes, groups, wanted)


def _identity(wanted: RefinerBench) -> dict[str, Any]:
    free = {"out": "", "seeds": 0}
    return {name: str(value) for name, value in (asdict(wanted) | free).items()}


def _all_scores(
    known: Mapping[str, Any], scenes: CoarseScenes, groups: Sequence[Group], wanted: RefinerBench
) -> dict[str, dict[int, Scores]]:
    found = {name: {int(seed): scores for seed, scores in runs.items()} for name, runs in known["scores"].items()}
    first = wanted.config(ROLLOUTS, 0)
    pairs = RefinerPairs(Path(first.out) / "pairs.parquet", {}, first.network, 0, 0.0)
    smooth = smoothed_like(pairs, np.arange(len(pairs)), scenes.coarse)
    before = _scores(scenes.coarse, scenes.coarse, groups)
    return {OUTLINES: {0: before}, SMOOTHED: {0: _scores(smooth, scenes.coarse, groups)}} | found


def greedy_answers(run: Path, num_scenes: int) -> tuple[list[Group], Env]:
    """(greedy answers of a run's best policy on its final split, the Env of these)."""
    config = RunFolder(run).config()
    parts = run_parts(config)
    worker = RolloutWorker(worker_settings(config, parts), "bench")
    worker.load_checkpoint(RunFolder(run).best_policy().folder)
    worker.set_weights(0, list(worker.buckets()))
    split = config.evaluation.final_split
    env: Env = parts.env.build(split=split)
    units = greedy_units(config, split, min(num_scenes, len(env)))
    return [group for unit in units for group in worker.answer(unit, 0)], env


def _refined_scores(config: RefineConfig, scenes: CoarseScenes, groups: Sequence[Group]) -> Scores:
    """Train as `config` says, and score what becomes of the answers."""
    policy = tower_of(config)
    masks, found = refine_scenes(refine(config, Console(quiet=True)), policy, scenes)
    return _scores(masks, scenes.coarse, groups) | {"passes": float(found.passes[found.drawn].mean())}


def _scores(masks: Sequence[NDArray[np.bool_]], before: Sequence[NDArray[np.bool_]], groups: Sequence[Group]) -> Scores:
    scored, was = score_masks(masks, groups), score_masks(before, groups)
    worse = [one.iou < other.iou - 1e-9 for one, other in zip(scored, was, strict=True)]
    return {
        "giou": float(np.mean([one.iou for one in scored])),
        "boundary_iou": float(np.mean([one.boundary_iou for one in scored])),
        "worse": float(np.mean(worse)),
        "passes": 0.0,
    }


def summary(found: Mapping[str, Mapping[int, Scores]]) -> dict[str, dict[str, Interval]]:
    """For each variant: mean over seeds with t-interval of each score, and of gIoU less that of RL rollouts by seed."""
    rows: dict[str, dict[str, Interval]] = {}
    for name, runs in found.items():
        rows[name] = {metric: t_interval([scores[metric] for scores in runs.values()]) for metric in METRICS}
        common = sorted(runs.keys() & found.get(ROLLOUTS, {}).keys())
        if name in VARIANTS and name != ROLLOUTS and common:
            for metric in ("giou", "boundary_iou"):
                less = [runs[seed][metric] - found[ROLLOUTS][seed][metric] for seed in common]
                rows[name][f"{metric}_less_rollouts"] = t_interval(less)
    return rows


def table(found: Mapping[str, Mapping[int, Scores]], wanted: RefinerBench) -> Table:
    """The variants, a row each; 80 characters wide."""
    title = f"Refiners on {wanted.pairs:,} pairs, {wanted.steps} steps, {wanted.scenes} scenes; t-intervals over seeds"
    shown = Table(title=title, box=SIMPLE_HEAD, pad_edge=False)
    shown.add_column("coarse masks from", no_wrap=True)
    for heading in METRICS.values():
        shown.add_column(heading, justify="right", no_wrap=True)
    for name, row in summary(found).items():
        scores = [Text(_cell(row[metric])) for metric in ("giou", "boundary_iou")]
        shown.add_row(name, *scores, f"{row['worse'].value:.1%}", f"{row['passes'].value:.2f}")
    return shown


def differences(found: Mapping[str, Mapping[int, Scores]]) -> list[str]:
    """A line a variant: its scores less those of RL rollouts at equal seeds."""
    titles = {f"{metric}_less_rollouts": METRICS[metric] for metric in ("giou", "boundary_iou")}
    return [
        f"{name} less {ROLLOUTS}, paired by seed: "
        + ", ".join(f"{title} {_cell(row[key], '+.4f')}" for key, title in titles.items())
        for name, row in summary(found).items()
        if titles.keys() <= row.keys()
    ]


def _cell(interval: Interval, form: str = ".3f") -> str:
    known = np.isfinite(interval.low)
    width = format(interval.high - interval.value, form.lstrip("+"))
    return format(interval.value, form) + (f" ± {width}" if known else "")


def as_json(found: Mapping[str, Mapping[int, Scores]]) -> dict[str, Any]:
    """Every number, and the summary."""
    rows = {name: {metric: asdict(one) for metric, one in row.items()} for name, row in summary(found).items()}
    return {"scores": {name: dict(runs) for name, runs in found.items()}, "summary": rows}
