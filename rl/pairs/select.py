"""Which answers become pairs: the choice over the archives of several runs, and the pairs that it makes.

The choice has two halves. rl/pairs/shortlist.py keeps, in one pass and bounded memory, the answers that may still be
chosen: in each stratum of IoU, of each example the first few in a seeded order. Here their outlines are looked at: at
most `per_example` per example, taken from its strata in turns, each time the one that differs most from those taken;
and where a limit cuts, every stratum of IoU and of boundary error gives the same number, as far as it has.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from envs.example import ImageRef
from envs.geometry.spans import Spans, spans_from_rings
from envs.polygons import Box, FlatAnswers, Ring, bounding_box_px
from rewards.target import Target
from rl.config.pairs import PairRule
from rl.pages.progress import bar
from rl.pairs.outlines import ExampleRows, Outlines, read_examples, read_outlines
from rl.pairs.shortlist import (
    LEFT_OUT,
    NOTHING_HELD_OUT,
    PLACE_COLUMNS,
    HeldOut,
    Shortlist,
    candidates_of,
    even_shares,
    index_examples,
)
from rollout.archive.archive import RolloutArchive


@dataclass(frozen=True, eq=False)
class Pair:
    """A coarse answer beside the true mask of its example."""

    example_id: str
    image_key: str
    """Key by which the Env finds the image."""
    image_sha256: str
    """Content hash of the image (`envs.example.image_sha256`)."""
    height: int
    """Height H of the image, in pixels."""
    width: int
    """Width W of the image, in pixels."""
    prompt: str
    """Text of the question."""
    coarse_rings: tuple[Ring, ...]
    """Rings of the answer, each [N, 2] float64 px; filled together they are the coarse mask."""
    true_rle: str
    """COCO RLE of all true instances together, [H, W]."""
    ignore_rle: str | None
    """COCO RLE of pixels that count neither way, [H, W], or None."""
    iou: float
    """IoU of coarse and true mask, 0..1, ignored pixels left out."""
    boundary_iou: float
    """IoU of the two masks' boundary bands, 0..1, ignored pixels left out (Cheng et al. 2021)."""
    run: str
    """Name of the run's folder."""
    step: int
    """Step of the run that drew the answer; -1 where no policy did."""
    position: int
    """Place of its group within the step; -1 where no policy drew it."""
    index: int
    """Place of the answer within its group."""
    policy_version: int
    """Version of the weights that drew the answer; -1 where no policy did."""
    source: str
    """Source of image and annotation."""
    licence: str
    """Licence of the image."""
    damage: str | None = None
    """Damage that made the coarse mask from the true one (envs/geometry/damage.py); None where a policy drew it."""

    @property
    def image(self) -> ImageRef:
        """The image, as its Env finds it."""
        return ImageRef(self.image_key, self.image_sha256, self.height, self.width)

    @property
    def box_px(self) -> Box:
        """Box (x0, y0, x1, y1) around the answer's vertices."""
        return bounding_box_px(np.concatenate(self.coarse_rings))


@dataclass(frozen=True)
class SelectionReport:
    """What became of the answers of an archive; kept and left out add up to answers."""

    answers: int
    """Answers read."""
    kept: int
    """Pairs made."""
    left_out: dict[str, int]
    """Answers left out, by reason (LEFT_OUT says what each means)."""


class Choice:
    """Chosen pairs, a few bytes each until they are asked for."""

    def __init__(self, outlines: Outlines, examples: ExampleRows, report: SelectionReport) -> None:
        self.outlines, self.examples, self.report = outlines, examples, report

    def __len__(self) -> int:
        return len(self.outlines.rows)

    def pairs(self) -> Iterator[Pair]:
        """All pairs: those of an example together, examples in the seeded order."""
        return (self._pair(k) for k in range(len(self)))

    def _pair(self, k: int) -> Pair:
        row, truth = self.outlines.rows[k], self.examples.truth(self.outlines.rows["example"][k])
        return Pair(
            **truth.fields,
            coarse_rings=self.outlines.rings(k),
            iou=float(row["iou"]),
            boundary_iou=float(self.outlines.boundary_iou[k]),
            run=self.outlines.runs[row["run"]],
            step=int(row["step"]),
            position=int(row["position"]),
            index=int(row["index"]),
            policy_version=self.outlines.policy_version(k),
        )


def choose(
    archives: Sequence[RolloutArchive],
    rule: PairRule,
    held_out: HeldOut = NOTHING_HELD_OUT,
    console: Console | None = None,
) -> Choice:
    """Choose pairs from the archives of several runs, reading each twice, a shard at a time.

    held_out: what is barred beside what the archives themselves say of other splits. A run goes by the name of its
    folder; an example that several asked counts once for `per_example`. Memory grows with what may be chosen, never
    with the answers read. Raises FileNotFoundError where there is no archive, ValueError where a shard cannot be read.
    """
    runs = [archive.folder.absolute().parent.name for archive in archives]
    index, shortlist, answers = index_examples(archives, rule, held_out), Shortlist(rule), 0
    columns = ["example_id", "status", "iou", *PLACE_COLUMNS]
    for number, archive in enumerate(archives):
        for batch in bar(archive.rollouts(columns), f"answers of {runs[number]}", console):
            candidates = candidates_of(batch, index, rule, shortlist.left_out)
            candidates["run"] = number
            candidates["order"] = rule.answer_orders(runs[number], *(candidates[name] for name in PLACE_COLUMNS))
            shortlist.offer(candidates)
            answers += batch.num_rows
    outlines = read_outlines(archives, runs, rule, shortlist.chosen())
    examples = read_examples(archives, rule, np.unique(outlines.rows["example"]))
    outlines = _taken(outlines, examples, rule, shortlist.left_out, console)
    left_out = {reason: shortlist.left_out[reason] for reason in LEFT_OUT}
    return Choice(outlines, examples, SelectionReport(answers, len(outlines.rows), left_out))


def _taken(
    outlines: Outlines, examples: ExampleRows, rule: PairRule, left_out: Counter[str], console: Console | None
) -> Outlines:
    """The part of the shortlist that becomes pairs, by their masks, with their Boundary IoU."""
    _, starts = np.unique(outlines.rows["example"], return_index=True)
    ends, kept = np.append(starts, len(outlines.rows))[1:], list[int]()
    boundary_iou = np.zeros(len(outlines.rows))
    for start, end in bar(zip(starts, ends, strict=True), "outlines", console, len(starts)):
        target = examples.truth(outlines.rows["example"][start]).target
        if not target.area_px:
            left_out["nothing_there"] += int(end - start)
            continue
        answers, strata = outlines.flat(range(start, end)), outlines.rows["stratum"][start:end]
        first = int(outlines.rows["example"][start] % np.uint64(rule.iou_strata))
        spread = spread_out(answers, strata, target.height, target.width, rule, first)
        taken = [int(start) + k for k in sorted(spread.taken)]
        boundary_iou[taken] = target.boundary_iou(outlines.flat(taken))
        kept += taken
        left_out["near_duplicate"] += spread.num_duplicates
        left_out["over_per_example"] += int(end - start) - len(taken) - spread.num_duplicates
    found = np.array(kept, np.int64)
    boundary_strata = rule.boundary_stratum(boundary_iou[found])
    within = within_limit(outlines.rows["stratum"][found], boundary_strata, rule.limit)
    left_out["over_limit"] += int((~within).sum())
    return outlines.part(found[within], boundary_iou[found[within]])


class Spread(NamedTuple):
    """Which of A answers to one example are taken."""

    taken: list[int]
    """Their places, in the order in which they were taken."""
    num_duplicates: int
    """Others whose mask is nearly that of one taken."""


def spread_out(
    answers: FlatAnswers, strata: NDArray[np.int8], height: int, width: int, rule: PairRule, start: int
) -> Spread:
    """Take at most `per_example` of A answers to one example, over an image of height x width.

    The strata of IoU [A] take turns from stratum `start` on; each gives the answer whose mask differs most from those
    taken, the first of equals.
    """
    nearest, live, taken = np.zeros(answers.num_answers), np.ones(answers.num_answers, np.bool_), list[int]()
    turn = start
    while live.any() and len(taken) < rule.per_example:
        mine = np.flatnonzero(live & (strata == turn % rule.iou_strata))
        turn += 1
        if not mine.size:
            continue
        taken.append(int(mine[np.argmin(nearest[mine])]))
        nearest = np.maximum(nearest, _iou_with(answers, taken[-1], height, width))
        live &= nearest < rule.near_duplicate_iou
        live[taken] = False
    others = np.ones(answers.num_answers, np.bool_)
    others[taken] = False
    return Spread(taken, int((others & (nearest >= rule.near_duplicate_iou)).sum()))


def _iou_with(answers: FlatAnswers, k: int, height: int, width: int) -> NDArray[np.float64]:
    """[A] IoU of each answer's mask with that of answer `k`."""
    one = answers.part(k, k + 1)
    spans = Spans(*spans_from_rings(one.vertices, one.ring_offsets, height, width))
    return Target.from_spans([spans], None, height, width).overlap_flat(answers).iou


def within_limit(
    iou_strata: NDArray[np.int8], boundary_strata: NDArray[np.int8], limit: int | None
) -> NDArray[np.bool_]:
    """[A] which of A pairs stay under a limit: of each stratum the first, equally many as far as it has.

    The strata of IoU share the limit, and the strata of boundary error the part of each of them.
    """
    kept = np.ones(len(iou_strata), np.bool_)
    if limit is None or len(kept) <= limit:
        return kept
    shares = even_shares(np.bincount(iou_strata), limit)
    for stratum, share in enumerate(shares):
        mine = np.flatnonzero(iou_strata == stratum)
        for cell, num in enumerate(even_shares(np.bincount(boundary_strata[mine]), int(share))):
            kept[mine[boundary_strata[mine] == cell][num:]] = False
    return kept
