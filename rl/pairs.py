"""Pairs for a refiner out of archives: a coarse mask that a policy drew, beside the true one.

Kept are valid outlines of training examples with min_iou <= IoU <= max_iou, of these as rl/pair_rule.py says. Below
min_iou the answer is about another object: a grounding error that a refiner must not learn to paper over.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from envs.polygons import Box, Ring, bounding_box_px, flatten_rings
from envs.raster import fill
from rl.bars import bar
from rl.pair_candidates import LEFT_OUT, PLACE_COLUMNS, candidates_of
from rl.pair_choice import spread_out, within_limit
from rl.pair_examples import NOTHING_HELD_OUT, HeldOut, index_examples
from rl.pair_outlines import ExampleRows, Outlines, read_examples, read_outlines
from rl.pair_rule import DEFAULT_RULE, PairRule
from rl.pair_shortlist import Shortlist
from rollout.archive import RolloutArchive


@dataclass(frozen=True, eq=False)
class Pair:
    """A coarse answer beside the true mask of its example."""

    example_id: str
    image_key: str
    """Where its Env finds the image."""
    image_sha256: str
    """See `envs.example.image_sha256`."""
    height: int
    """H, pixels."""
    width: int
    """W, pixels."""
    prompt: str
    """Text of the question."""
    coarse_rings: tuple[Ring, ...]
    """Rings of the answer, each [N, 2] float64 px; filled together they are the coarse mask."""
    true_rle: str
    """COCO RLE of all true instances together, [H, W]."""
    ignore_rle: str | None
    """COCO RLE of pixels that count neither way, [H, W], or None."""
    iou: float
    """Of coarse and true mask, 0..1, ignored pixels left out."""
    boundary_iou: float
    """Of their boundary bands, 0..1, likewise (Cheng et al. 2021)."""
    run: str
    """Name of the run's folder."""
    step: int
    position: int
    index: int
    """With run, step and position: where the answer is in the archive."""
    policy_version: int
    """Version of the weights that drew it."""
    source: str
    """Where image and annotation came from."""
    licence: str
    """Licence of the image."""
    damage: str | None = None
    """How the coarse mask was made from the true one (envs/damage.py); None where a policy drew it."""

    @property
    def coarse_mask(self) -> NDArray[np.bool_]:
        """[H, W] pixels of the answer."""
        return fill(*flatten_rings(self.coarse_rings), self.height, self.width)

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


@dataclass(frozen=True)
class Selection:
    """Chosen pairs in archive order, and why the others were not."""

    pairs: list[Pair]
    report: SelectionReport


def select(archive: RolloutArchive, rule: PairRule = DEFAULT_RULE) -> Selection:
    """Choose pairs from one archive by `rule`; as `choose`, all pairs in memory."""
    choice = choose([archive], rule)
    pairs = sorted(choice.pairs(), key=lambda pair: (pair.step, pair.position, pair.index))
    return Selection(pairs, choice.report)


def select_pairs(
    archive: RolloutArchive,
    min_iou: float = 0.3,
    max_iou: float = 1.0,
    per_example: int = 4,
    limit: int | None = None,
    seed: int = 0,
) -> list[Pair]:
    """The pairs that `select` chooses by these settings (see PairRule)."""
    return select(archive, PairRule(min_iou, max_iou, per_example, limit, seed=seed)).pairs


def choose(
    archives: Sequence[RolloutArchive],
    rule: PairRule = DEFAULT_RULE,
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
    """Those of the shortlist that become pairs, by their masks, with their Boundary IoU."""
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
