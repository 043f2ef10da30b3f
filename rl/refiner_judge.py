"""A refiner judged by what it has not seen: pairs of images kept apart, and damaged true masks of another split."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from policies.base import VisionTower
from policies.mask_refiner import MaskRefiner
from rl.json_text import json_text
from rl.metrics import read_curves
from rl.refined_scenes import CoarseScenes
from rl.refiner_data import RefinerPairs, shares, truth_of_pair
from rl.refiner_rank import RefinerRankSettings
from rl.refiner_report import RefinerReport
from rl.refiner_settings import RefineConfig
from rl.report import Chart, chart
from rl.smoothing import fit_radius_share, smoothed_by_size
from rollout.disk import replace_text

SUMMARY = "summary.json"
_SMOOTHED_ON = 500
"""Training pairs that the radius of smoothing is chosen on."""


def judge(
    config: RefineConfig, settings: RefinerRankSettings, policy: VisionTower, refiner: MaskRefiner, console: Console
) -> None:
    """Score the refiner on what it has not seen: tables, refiner*.html, and summary.json, which ends the making."""
    out, pairs = Path(config.out), settings.pairs()
    parts = shares(pairs.image_hashes(), settings.calibration_share, settings.evaluation_share)
    judges: dict[str, RefinerReport] = {}
    if len(parts["evaluation"]):
        scenes = CoarseScenes.of_pairs(pairs, parts["evaluation"].tolist())
        smooth = {"smoothing": smoothed_like(pairs, parts["train"], scenes.coarse)}
        judges["pairs"] = RefinerReport.of("pairs of images kept apart", refiner, policy, scenes, baselines=smooth)
    if config.damaged_scenes:
        env = next(iter(settings.envs.values())).build(split="validation")
        scenes = CoarseScenes.of_damage(env, config.damaged_scenes, config.training.seed)
        smooth = {"smoothing": smoothed_like(pairs, parts["train"], scenes.coarse)}
        name = "damaged true masks of the split validation"
        judges["damaged"] = RefinerReport.of(name, refiner, policy, scenes, baselines=smooth)
    facts = [("steps", f"{settings.training.steps}"), ("config", (out / "config.yaml").read_text())]
    facts[:0] = [(f"pairs, {name}", f"{len(part):,}") for name, part in parts.items()]
    pages = [out / f"refiner{'' if k == 0 else '_' + name}.html" for k, name in enumerate(judges)]
    for path, report in zip(pages, judges.values(), strict=True):
        report.show(console)
        report.write(path, f"Refiner: {out.absolute().name}", refiner_charts(out), facts)
        console.print(f"wrote {path}", markup=False)
    counts = {"pairs": {name: len(part) for name, part in parts.items()}, "steps": settings.training.steps}
    numbers = {f"on_{name}": report.as_dict() for name, report in judges.items()}
    replace_text(out / SUMMARY, json_text(counts | numbers, indent=2) + "\n")


def refiner_charts(out: Path) -> list[Chart]:
    """How the training of the refiner in `out` went."""
    curves = read_curves(out)
    names = {"loss": "loss", "mask": "mask_loss", "Dice": "dice_loss", "error of predicted IoU": "iou_error"}
    return [
        chart("Losses", "loss", curves, {shown: f"refiner/{name}" for shown, name in names.items()}),
        chart("IoU in the crop", "IoU", curves, {"coarse": "refiner/coarse_iou", "last pass": "refiner/iou"}),
    ]


def smoothed_like(
    pairs: RefinerPairs, training: NDArray[np.int64], coarse: Sequence[NDArray[np.bool_]]
) -> list[NDArray[np.bool_]]:
    """Coarse masks [H, W], smoothed with the radius that serves the training pairs best."""
    fitted = [pairs.masks(int(number)) for number in training[:_SMOOTHED_ON]]
    share = fit_radius_share([one[0] for one in fitted], [truth_of_pair(one[1], one[2]) for one in fitted])
    return [smoothed_by_size(mask, share) for mask in coarse]
