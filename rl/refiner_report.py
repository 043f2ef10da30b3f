"""What a refiner is worth on some scenes: tables, numbers for programs, and a page to look at."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from policies.base import VisionTower
from policies.mask_refiner import MaskRefiner
from rl.error_split import SplitRow, split_dict, split_table
from rl.object_traits import KINDS, gain_by_kind, traits
from rl.refined_scenes import CoarseScenes, refine_scenes
from rl.refiner_page import BeforeAfter, RefinerPage, choose_changes, write_refiner_page
from rl.refiner_scores import MaskScores, RefinerSummary, refiner_table, summarise_refined
from rl.report import Chart
from rl.scores import mean_interval, score_mask


@dataclass(frozen=True)
class RefinerReport:
    """A refiner on S scenes."""

    name: str
    """What the scenes are, for people."""
    scenes: CoarseScenes
    masks: Sequence[NDArray[np.bool_]]
    """[S] refined masks [H, W]."""
    scores: MaskScores
    summary: RefinerSummary
    errors: Mapping[str, SplitRow] = field(default_factory=dict)
    """Where errors come from (rl/error_split.py), where that was asked."""
    baselines: Sequence[tuple[str, SplitRow]] = ()
    """What was made of the same masks without the refiner."""

    @classmethod
    def of(
        cls,
        name: str,
        refiner: MaskRefiner,
        tower: VisionTower,
        scenes: CoarseScenes,
        errors: Mapping[str, SplitRow] | None = None,
        baselines: Mapping[str, Sequence[NDArray[np.bool_]]] | None = None,
    ) -> "RefinerReport":
        """Refine the coarse masks and score what comes of them; baselines: other masks [S] of the same scenes."""
        masks, scores = refine_scenes(refiner, tower, scenes)
        others = [(title, _row(others, scenes)) for title, others in (baselines or {}).items()]
        return cls(name, scenes, masks, scores, summarise_refined(scores), errors or {}, others)

    def show(self, console: Console) -> None:
        """Print the tables."""
        console.print(f"refiner on {self.name}:", markup=False)
        console.print(refiner_table(self.summary))
        for title, row in self.baselines:
            console.print(f"{title}: gIoU {row.giou}, boundary IoU {row.boundary_iou}", markup=False)
        if self.errors:
            console.print(split_table(dict(self.errors)))

    def as_dict(self) -> dict[str, object]:
        """JSON-ready."""
        found = self.summary.as_dict()
        if self.errors:
            found["errors"] = split_dict(dict(self.errors))
        return found | {"baselines": split_dict(dict(self.baselines))}

    def write(self, path: Path, title: str, charts: Sequence[Chart], facts: Sequence[tuple[str, str]]) -> None:
        """Write the page."""
        objects = [traits(truth.union) for truth in self.scenes.truths]
        by_kind = [gain_by_kind(self.scores, objects, kinds) for kinds in KINDS]
        pictures = [self._picture(choice, k) for choice, k in choose_changes(self.scores)]
        page = RefinerPage(
            title, self.summary, self.name, by_kind, self.errors, self.baselines, pictures, charts, facts
        )
        write_refiner_page(path, page)

    def _picture(self, choice: str, k: int) -> BeforeAfter:
        scenes, scores = self.scenes, self.scores
        return BeforeAfter(
            example_id=scenes.example_ids[k],
            phrase=scenes.prompts[k],
            choice=choice,
            image=scenes.images[k],
            coarse=scenes.coarse[k],
            refined=self.masks[k],
            true=scenes.truths[k].union,
            coarse_iou=float(scores.coarse_iou[k]),
            refined_iou=float(scores.refined_iou[k]),
            predicted_coarse_iou=float(scores.predicted_coarse_iou[k]),
            predicted_iou=float(scores.predicted_iou[k]),
            taken=int(scores.taken[k]),
        )


def _row(masks: Sequence[NDArray[np.bool_]], scenes: CoarseScenes) -> SplitRow:
    columns = zip(masks, scenes.truths, scenes.statuses, scenes.example_ids, strict=True)
    found = [score_mask(*each) for each in columns]
    iou, band = np.array([one.iou for one in found]), np.array([one.boundary_iou for one in found])
    return SplitRow(mean_interval(iou), mean_interval(band))
