"""`polytrace evaluate`: what SFT checkpoint, RL and refiner of a run are worth on held-out scenes: page and table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from envs.codecs.base import ChoosingCodec
from envs.datasets.base import Env
from envs.geometry.contours import mask_from_rings, rings_from_mask
from policies.families.vision_language import Policy
from policies.refiner.mask_refiner import MaskRefiner
from rewards.target import Target
from rl.config.plugins import checkpoint_folder, codec_plugin
from rl.config.run import RunConfig, num_gpus
from rl.evaluation.answers import greedy_groups, score_groups, score_masks
from rl.evaluation.missing import Missing, missing_dict, missing_iou, missing_table
from rl.evaluation.page import PAIR_TITLES, Drawn, Report, SceneRow, choose_scenes, write_report
from rl.evaluation.scores import (
    Interval,
    SceneScore,
    StageScores,
    by_part,
    paired_difference,
    parts_dict,
    parts_table,
    pool_oracle,
    stage_table,
    summarise,
    summary_dict,
)
from rl.pages.charts import Chart, chart
from rl.pages.json_text import json_text
from rl.refiner.errors import AnsweredScenes, OutlineBudget, split_errors
from rl.refiner.judge import RefinerReport, refiner_charts
from rl.refiner.scenes import CoarseScenes
from rl.run.checkpoints import BestPolicy
from rl.run.folder import RunFolder
from rl.run.metrics import Curve, JobUsage, read_curves
from rl.run.parts import RunParts, run_parts, worker_settings
from rl.run.preflight import object_store_bytes, preflight
from rollout import cluster
from rollout.pool.pool import WorkerPool
from rollout.records import Group


@dataclass(frozen=True)
class StageAnswers:
    """What one stage answered on the held-out scenes."""

    groups: Sequence[Group]
    """One greedy answer each; for the refined stage, the answers that were refined."""
    scores: Sequence[SceneScore]
    masks: Sequence[NDArray[np.bool_]] | None = None
    """[S] refined masks [H, W], where the stage has them."""

    def drawn(self, k: int) -> Drawn:
        """The answer to scene `k` as rings."""
        answer = self.groups[k].rollouts[0].answer
        rings = answer.rings_px if self.masks is None else rings_from_mask(self.masks[k])
        return Drawn(rings, self.scores[k].iou, answer.status)


def evaluate(config: RunConfig, console: Console, usage: JobUsage) -> Path:
    """Evaluate a trained run that has its refiner, or whose answers need none; returns its folder, with report.html and
    summary.json in it.

    usage: seconds and memory of the job that this is the end of. Raises FileNotFoundError where the run has no best
    policy, or lacks the refiner that it needs.
    """
    run, parts = RunFolder(Path(config.run)), run_parts(config)
    folder, best = run.path, run.best_policy()
    if lacks_refiner(config):
        raise FileNotFoundError(f"{run.refiner} holds no finished refiner; make it first (polytrace refine {folder}).")
    preflight(config, parts, learns=False)
    _warn_of_changed_data(parts, folder, console)
    stages = evaluate_stages(config, parts, best, console)
    cluster.stop()
    answered = stages["rl"].groups
    refiner = None
    if run.has_refiner:
        masked = [group for group in answered if group.example.prompt.asked == "mask"]
        refiner = evaluate_refiner(config, parts, masked, console)
        stages["refined"] = _refined_stage(stages["rl"], masked, refiner.masks)
    scores = {name: summarise(stage.scores) for name, stage in stages.items()}
    paired = _paired({name: stage.scores for name, stage in stages.items()})
    missing = _missing(stages, OutlineBudget.of(parts.codec.build()))
    oracle = pool_oracle([group.example for group in answered])
    seconds, peak_gib, num_scenes = usage.seconds, usage.peak_gib, len(answered)
    summary = summary_dict(scores, paired, num_scenes, seconds, peak_gib, _extras(config, best, oracle))
    if refiner is not None:
        summary["refiner"] = refiner.as_dict()
    summary["missing"] = missing_dict(missing)
    of_parts = {
        name: {part: summarise(of) for part, of in by_part(stage.scores).items()} for name, stage in stages.items()
    }
    if of_parts["rl"]:
        summary["parts"] = parts_dict(of_parts)
    (folder / "summary.json").write_text(json_text(summary, indent=2) + "\n")
    facts = [("seconds", f"{seconds:.0f}"), ("peak memory", f"{peak_gib:.2f} GiB"), ("polytrace", version("polytrace"))]
    facts.append(("config", (folder / "config.yaml").read_text()))
    write_report(folder / "report.html", _report(config, parts, stages, (scores, paired, missing), facts))
    if refiner is not None:
        refiner.write(folder / "refiner.html", f"Refiner of {folder.name}", refiner_charts(run.refiner), facts)
    _show(console, (scores, paired, missing), of_parts, oracle)
    split = config.evaluation.final_split
    console.print(f"{num_scenes} scenes of split {split}, {seconds:.0f} s, peak memory {peak_gib:.2f} GiB")
    if refiner is not None:
        refiner.show(console)
    console.print(f"after RL: the best policy on validation, of step {best.step} of {config.steps}")
    for name in ("report.html", *(["refiner.html"] if refiner is not None else []), "summary.json", "archive"):
        console.print(f"wrote {folder / name}", markup=False)
    return folder


def lacks_refiner(config: RunConfig) -> bool:
    """Whether a run still needs a refiner to be evaluated: those whose answers are candidate masks, exact as they are,
    need none, and have one where somebody made it (`polytrace refine`)."""
    chooses = isinstance(codec_plugin(config.codec).build(), ChoosingCodec)
    return not chooses and not RunFolder(Path(config.run)).has_refiner


Numbers = tuple[Mapping[str, StageScores], Mapping[str, Interval], Mapping[str, Missing]]
"""Scores of the stages, differences between them, and where their missing IoU lies."""


def _show(
    console: Console,
    numbers: Numbers,
    of_parts: Mapping[str, Mapping[str, StageScores]],
    oracle: Interval | None,
) -> None:
    scores, paired, missing = numbers
    console.print(stage_table(scores))
    if oracle is not None:
        console.print(f"best choice from the candidates: gIoU {oracle}")
    if missing:
        console.print(missing_table(missing))
    if of_parts["rl"]:
        console.print(parts_table(of_parts))
    for name, interval in paired.items():
        console.print(f"{PAIR_TITLES[name]}: gIoU {interval.value:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]")


def _paired(scores: Mapping[str, Sequence[SceneScore]]) -> dict[str, Interval]:
    """Differences in gIoU between stages on the same scenes, by a key of PAIR_TITLES."""
    pairs = {name: name.split("_minus_") for name in PAIR_TITLES}
    return {
        name: paired_difference(scores[other], scores[one])
        for name, (one, other) in pairs.items()
        if {one, other} <= scores.keys()
    }


def _missing(stages: Mapping[str, StageAnswers], budget: OutlineBudget | None) -> dict[str, Missing]:
    """Where the missing IoU of each stage that draws lies; {} where the codec has no limits, or nothing is shown."""
    found = {}
    for name, stage in stages.items():
        masked = [group for group in stage.groups if group.example.prompt.asked == "mask"]
        shown = any(Target.from_truth(group.example.truth).area_px for group in masked)
        if stage.masks is None and budget is not None and shown:
            answers, truths = [g.rollouts[0].answer for g in masked], [g.example.truth for g in masked]
            found[name] = missing_iou(answers, truths, budget.max_vertices, budget.max_rings)
    return found


def _refined_stage(drawn: StageAnswers, masked: Sequence[Group], masks: Sequence[NDArray[np.bool_]]) -> StageAnswers:
    """The answers with refined masks [H, W], those groups that were asked for masks; boxes and points as they are."""
    ids, scores = [group.example.id for group in masked], score_masks(masks, masked)
    refined = {name: (score, mask) for name, score, mask in zip(ids, scores, masks, strict=True)}
    of_all = [
        refined.get(group.example.id, (score, mask_of(group)))
        for group, score in zip(drawn.groups, drawn.scores, strict=True)
    ]
    return StageAnswers(drawn.groups, [score for score, _ in of_all], [mask for _, mask in of_all])


def mask_of(group: Group) -> NDArray[np.bool_]:
    """The mask [H, W] that the first answer of a group draws."""
    image = group.example.image
    return mask_from_rings(group.rollouts[0].answer.rings_px, image.height, image.width)


def _warn_of_changed_data(parts: RunParts, folder: Path, console: Console) -> None:
    for split in parts.data.changed(folder):
        told = f"the data of split {split} has changed since this run began; numbers are those of the data as it is now"
        console.print(f"[yellow]warning:[/yellow] {told}", soft_wrap=True)


def evaluate_stages(config: RunConfig, parts: RunParts, best: BestPolicy, console: Console) -> dict[str, StageAnswers]:
    """Answers of the SFT checkpoint, of the control where there is one, and of the best policy of the run."""
    split = config.evaluation.final_split
    env: Env = parts.env.build(split=split)
    num_scenes = min(config.evaluation.final_scenes, len(env))
    num_cpus, store = config.pool.workers + config.learner.ranks, object_store_bytes(config, parts)
    cluster.start(config.ray.address, num_cpus, num_gpus(config), store)
    pool = WorkerPool(config.pool.without_ranks(), worker_settings(config, parts))
    stages = {}
    for name, checkpoint in _checkpoints(config, parts, best).items():
        with console.status(f"evaluating {name} on {num_scenes} scenes of split {split}"):
            groups = greedy_groups(pool, config, split, num_scenes, checkpoint)
        stages[name] = StageAnswers(groups, score_groups(groups))
    pool.close()
    return stages


def _checkpoints(config: RunConfig, parts: RunParts, best: BestPolicy) -> dict[str, Path]:
    """The Hugging Face folder of each stage that draws, in the order of the page."""
    control = config.evaluation.control
    return (
        {"sft": Path(parts.policy.settings["checkpoint"])}
        | ({} if control is None else {"control": checkpoint_folder(control).resolve()})
        | {"rl": best.folder.resolve()}
    )


def evaluate_refiner(config: RunConfig, parts: RunParts, groups: Sequence[Group], console: Console) -> RefinerReport:
    """What the refiner makes of greedy answers of the best policy, and where their errors come from."""
    run = RunFolder(Path(config.run))
    policy: Policy = parts.policy.with_settings(checkpoint=run.best_policy().folder).build()
    policy.eval()
    refiner = MaskRefiner.load(run.refiner, policy.vision_checksum())
    env: Env = parts.env.build(split=config.evaluation.final_split)
    scenes = CoarseScenes.of_groups(env, groups)
    answered = AnsweredScenes(scenes.images, [group.rollouts[0].answer for group in groups], scenes.truths)
    with console.status("looking where errors come from"):
        errors = split_errors(refiner, policy, answered, OutlineBudget.of(policy.processor.codec))
    name = f"greedy answers to scenes of the split {config.evaluation.final_split}"
    return RefinerReport.of(name, refiner, policy, scenes, errors)


def _extras(config: RunConfig, best: BestPolicy, oracle: Interval | None) -> dict[str, object]:
    return {
        "pool_oracle": None if oracle is None else oracle.numbers,
        "split": config.evaluation.final_split,
        "best_step": best.step,
        "steps": config.steps,
        "seed": config.seed,
        "version": version("polytrace"),
    }


def _report(
    config: RunConfig,
    parts: RunParts,
    stages: Mapping[str, StageAnswers],
    numbers: Numbers,
    facts: Sequence[tuple[str, str]],
) -> Report:
    scores, paired, missing = numbers
    env: Env = parts.env.build(split=config.evaluation.final_split)
    rows = []
    for choice, k in choose_scenes(stages.get("refined", stages["rl"]).scores):
        example = stages["rl"].groups[k].example
        truth_rings = [ring for mask in example.truth.masks for ring in rings_from_mask(mask)]
        drawn = {name: stage.drawn(k) for name, stage in stages.items()}
        rows.append(SceneRow(example.id, example.prompt.told, choice, env.image(example.image), truth_rings, drawn))
    return Report(
        title=f"Polytrace: {Path(config.run).name}",
        stages=scores,
        paired=paired,
        missing=missing,
        num_scenes=len(stages["rl"].scores),
        split=config.evaluation.final_split,
        scenes=rows,
        charts=_charts(read_curves(Path(config.run))),
        facts=facts,
    )


def _charts(curves: Mapping[str, Curve]) -> list[Chart]:
    related = "term_iou_correlation/"
    return [
        chart(
            "Reward of sampled answers", "reward", curves, {"mean": "reward/mean", "unshaped": "reward/unshaped_mean"}
        ),
        chart(
            "gIoU",
            "gIoU",
            curves,
            {"sampled": "sampled/giou", "best of group": "sampled/best_giou", "greedy, validation": "greedy/giou"},
        ),
        chart("Valid answers", "share", curves, {"sampled": "answer/valid", "greedy, validation": "greedy/valid"}),
        chart("Clipped sequences", "share", curves, {"clip fraction": "learner/clip_fraction"}),
        chart("Vertices an answer", "vertices", curves, {"sampled": "answer/vertices"}),
        chart("Area drawn over true area", "ratio", curves, {"sampled": "answer/area_ratio"}),
        chart(
            "Correlation of each reward with IoU",
            "Pearson's r",
            curves,
            {name.removeprefix(related): name for name in curves if name.startswith(related)},
        ),
    ]
