"""What a protocol must be: how answers to a benchmark are judged one by one, and what their scores are.

A protocol is a file of this folder with a dataclass `Protocol`; its fields are what published scripts differ in, and
`variants` names the settings of some of them: `res/lavt` is `Protocol` of res.py with `variants["lavt"]`. What holds
for all: pixels are those of the raster rule (envs/geometry/spans.py), an answer that cannot be read counts as an empty
mask and is never passed over, and no example counts twice. Scores are fractions, not percent.

Letters: A answers. Frames: pixels.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from envs.example import Example
from envs.plugin import did_you_mean, plugin_names
from envs.polygons import Answer, AnswerStatus
from envs.ranges import above, at_least, between, check_ranges, one_of
from rewards.kernels.overlap import BOUNDARY_SHARE
from rl.config.load import plugin_from_settings
from rl.evaluation.protocols._counts import Counter, Counts
from rl.evaluation.protocols._ratios import Ratio, differences_of, intervals_of, mean_where, values_of
from rl.evaluation.protocols._truth import CodedTruth, coded, refuse_duplicates
from rl.evaluation.scores import Interval

PACKAGE = "rl.evaluation.protocols"
BOUNDARY_TITLE = "Boundary IoU"
UNREADABLE_TITLE = "unreadable"

Variants = Mapping[str, Mapping[str, Any]]
"""Settings by the name of a variant."""


@dataclass(frozen=True)
class Judged:
    """One answer, judged under one protocol."""

    example_id: str
    status: AnswerStatus
    """How the answer read."""
    is_none: bool
    """Whether nothing is true."""
    says_none: bool
    """Whether the answer says so, as this protocol decides it."""
    true_px: int
    """True pixels at the size scored, ignored ones left out."""
    drawn_px: int
    """Pixels of the answer, the same way."""
    shared_px: int
    """Pixels of both that the pooled IoU counts above the line."""
    union_px: int
    """Pixels that the pooled IoU counts below the line."""
    iou: float
    """This protocol's term of the mean, in [0, 1]."""
    boundary_iou: float
    """IoU of the boundary bands, in [0, 1]; `iou` where no pixel is true."""
    box_iou: float | None = None
    """What the boxes are worth, their IoU or F1, in [0, 1]; None where the protocol does not ask for boxes."""
    tags: tuple[str, ...] = ()
    """What scores are split by."""


@dataclass(frozen=True)
class Terms:
    """What A answers contribute to the scores; arrays [A]."""

    iou: NDArray[np.float64]
    shared_px: NDArray[np.int64]
    union_px: NDArray[np.int64]
    says_none: NDArray[np.bool_]
    box_iou: Sequence[float | None] | None = None
    """None where the protocol does not ask for boxes."""


@dataclass(frozen=True)
class Columns:
    """A judged answers as arrays [A]."""

    iou: NDArray[np.float64]
    shared_px: NDArray[np.float64]
    union_px: NDArray[np.float64]
    boundary_iou: NDArray[np.float64]
    is_none: NDArray[np.bool_]
    says_none: NDArray[np.bool_]
    readable: NDArray[np.bool_]
    tags: Sequence[tuple[str, ...]]

    @classmethod
    def of(cls, judged: Sequence[Judged]) -> "Columns":
        """From rows; raises ValueError without any, or where an example comes twice."""
        if not judged:
            raise ValueError("no answer was judged, so there are no scores; judge at least one.")
        refuse_duplicates([row.example_id for row in judged])
        return cls(
            np.array([row.iou for row in judged]),
            np.array([row.shared_px for row in judged], np.float64),
            np.array([row.union_px for row in judged], np.float64),
            np.array([row.boundary_iou for row in judged]),
            np.array([row.is_none for row in judged]),
            np.array([row.says_none for row in judged]),
            np.array([row.status.valid for row in judged]),
            [row.tags for row in judged],
        )

    def tagged(self, tag: str) -> NDArray[np.bool_]:
        """[A] which answers have a tag."""
        return np.array([tag in tags for tags in self.tags])


@dataclass(frozen=True)
class MaskProtocol(ABC):
    """Settings and steps that all protocols share; each adds its own `own_ratios`, some their own `terms`."""

    variants: ClassVar[Variants] = {}
    """Settings of published scripts, by name."""

    side_px: Annotated[int | None, above(0)] = None
    """Side of the square that photos, truths (nearest pixel) and outlines are stretched to; null: the photo's size."""
    ignore: Annotated[str, one_of("left_out", "target")] = "left_out"
    """Pixels to ignore: taken out of truth and answer (`left_out`), or true like any other (`target`)."""
    counted: Annotated[str, one_of("all", "targeted")] = "all"
    """Which examples the mean and the pooled IoU are of: `all`, or those where something is true (`targeted`)."""
    zero_union: Annotated[float, one_of(0.0, 1.0)] = 0.0
    """Term of the mean where neither truth nor answer has a pixel."""
    unreadable_is_none: bool = False
    """Whether an answer that cannot be read may count as one that says "nothing", as where a script sees masks alone.

    It never earns anything where something is true.
    """
    epsilon_shared: Annotated[float, at_least(0)] = 0.0
    """Added to the shared pixels of a term of the mean."""
    epsilon_union: Annotated[float, at_least(0)] = 0.0
    """Added to the united pixels of a term of the mean."""
    epsilon_pooled: Annotated[float, at_least(0)] = 0.0
    """Added to the summed union of the pooled IoU."""
    epsilon_count: Annotated[float, at_least(0)] = 0.0
    """Added to the number of examples that the mean divides by."""
    thresholds: tuple[float, ...] = ()
    """IoU that answers are to reach, a score each."""
    reaches: Annotated[str, one_of(">=", ">")] = ">="
    """What reaching a threshold means."""
    thresholds_over: Annotated[str, one_of("all", "targeted")] = "all"
    """Which examples such a share is of: `all`, or those where something is true (`targeted`)."""
    band_share: Annotated[float, between(0, 1, open=True)] = BOUNDARY_SHARE
    """Width of the boundary band as a share of the diagonal of the image that is scored, at least 1 px."""

    def __post_init__(self) -> None:
        check_ranges(self, "protocol")
        for threshold in self.thresholds:
            if not 0 < threshold <= 1:
                raise ValueError(f"protocol.thresholds has {threshold}; an IoU to reach is above 0, and 1 or less.")

    def judge(self, answers: Sequence[Answer], examples: Sequence[Example | CodedTruth]) -> list[Judged]:
        """Each answer against its example, in order: its rings filled by the raster rule at the size scored.

        Quickest where the truth comes as CodedTruth: masks of an Example are first read pixel by pixel. Raises
        ValueError where examples are not one for each, or one comes twice.
        """
        return self._rows(self._counter.of_answers(answers, self._truths(examples)))

    def judge_masks(
        self, masks_rle: Sequence[str], statuses: Sequence[AnswerStatus], examples: Sequence[Example | CodedTruth]
    ) -> list[Judged]:
        """`judge` for masks that were made of answers, such as refined ones: COCO run-length texts at the photo's size.

        statuses: how each answer read; the mask of one that cannot be read counts as empty. Raises ValueError as
        `judge`, and for a text that does not fit its photo.
        """
        return self._rows(self._counter.of_masks(masks_rle, statuses, self._truths(examples)))

    def scores(self, judged: Sequence[Judged]) -> dict[str, float]:
        """The scores by title, in the order of a table; fractions. 0 where nothing counts, such as no example of none.

        Raises ValueError without an answer, or where an example comes twice.
        """
        return values_of(self.ratios(judged))

    def resampled(self, judged: Sequence[Judged], seed: int = 0) -> dict[str, Interval]:
        """The scores with their 95 % percentile bootstrap intervals over examples; raises as `scores`."""
        return intervals_of(self.ratios(judged), seed)

    def differences(self, before: Sequence[Judged], after: Sequence[Judged], seed: int = 0) -> dict[str, Interval]:
        """Scores of `after` less those of `before`, two policies on the same examples, bootstrapped in pairs.

        The order need not be the same. Raises ValueError where the examples are not, and as `scores`.
        """
        of_after = {row.example_id: row for row in after}
        missing = {row.example_id for row in before} ^ of_after.keys()
        if missing or len(before) != len(after):
            raise ValueError(
                f"a paired difference needs the same examples twice, but of {len(before)} and {len(after)} some are in "
                f"one alone, such as {sorted(missing)[:3]}; judge both on the same examples."
            )
        return differences_of(self.ratios(before), self.ratios([of_after[row.example_id] for row in before]), seed)

    def ratios(self, judged: Sequence[Judged]) -> dict[str, Ratio]:
        """What the scores are ratios of, by title; raises as `scores`."""
        columns = Columns.of(judged)
        own = self.own_ratios(columns)
        shared = {} if BOUNDARY_TITLE in own else {BOUNDARY_TITLE: self.mean(columns, columns.boundary_iou)}
        return own | shared | {UNREADABLE_TITLE: mean_where(~columns.readable, np.ones(len(columns.iou)))}

    @abstractmethod
    def own_ratios(self, columns: Columns) -> dict[str, Ratio]:
        """The scores of this protocol, but for those that all report."""
        ...

    def says_none(self, counts: Counts) -> NDArray[np.bool_]:
        """[A] whether each answer says that nothing fits."""
        return counts.says_empty

    def terms(self, counts: Counts) -> Terms:
        """What answers contribute, by their pixels alone."""
        shared, union = counts.shared_px, counts.union_px
        iou = (shared + self.epsilon_shared) / (np.maximum(union, 1) + self.epsilon_union)
        may_be_none = counts.readable | self.unreadable_is_none
        iou = np.where(union > 0, iou, np.where(may_be_none, self.zero_union, 0.0))
        return Terms(iou, shared, union, self.says_none(counts))

    def mean(self, columns: Columns, values: NDArray[np.float64], where: NDArray[np.bool_] | None = None) -> Ratio:
        """The mean of values [A] over the examples that are counted, or over those `where` alone."""
        return mean_where(values, self._counted(columns) if where is None else where, self.epsilon_count)

    def pooled(self, columns: Columns, where: NDArray[np.bool_] | None = None) -> Ratio:
        """Summed shared over summed united pixels of the examples that are counted, or of those `where` alone."""
        counted = self._counted(columns) if where is None else where
        return Ratio(columns.shared_px * counted, columns.union_px * counted, self.epsilon_pooled)

    def shares_that_reach(self, columns: Columns, prefix: str) -> dict[str, Ratio]:
        """The share of examples whose term reaches each threshold, by title: the prefix and the threshold."""
        over = np.ones(len(columns.iou), np.bool_) if self.thresholds_over == "all" else ~columns.is_none
        return {
            f"{prefix}{threshold:g}": mean_where(self.reached(columns.iou, threshold), over)
            for threshold in self.thresholds
        }

    def reached(self, values: NDArray[np.float64], threshold: float) -> NDArray[np.bool_]:
        """[A] which values reach a threshold."""
        return values >= threshold if self.reaches == ">=" else values > threshold

    @property
    def _counter(self) -> Counter:
        return Counter(self.side_px, self.band_share)

    def _counted(self, columns: Columns) -> NDArray[np.bool_]:
        return np.ones(len(columns.iou), np.bool_) if self.counted == "all" else ~columns.is_none

    def _truths(self, examples: Sequence[Example | CodedTruth]) -> list[CodedTruth]:
        truths = coded(examples)
        return [truth.with_ignore_as_target() for truth in truths] if self.ignore == "target" else truths

    def _rows(self, counts: Counts) -> list[Judged]:
        terms = self.terms(counts)
        # Bands lie in their masks, so where no pixel is shared none of theirs is.
        boundary = np.where(counts.true_px == 0, terms.iou, np.where(terms.shared_px == 0, 0.0, counts.band_iou))
        return list(
            map(
                Judged,
                [truth.example_id for truth in counts.truths],
                counts.statuses,
                counts.is_none.tolist(),
                terms.says_none.tolist(),
                counts.true_px.tolist(),
                counts.drawn_px.tolist(),
                terms.shared_px.tolist(),
                terms.union_px.tolist(),
                terms.iou.tolist(),
                boundary.tolist(),
                [None] * len(counts.truths) if terms.box_iou is None else terms.box_iou,
                [truth.tags for truth in counts.truths],
            )
        )


def protocol_named(name: str, overrides: Mapping[str, Any] | None = None) -> MaskProtocol:
    """The protocol of a name such as `res`, or of one with a variant, such as `res/lavt`; some settings changed.

    Raises ValueError for a name or a setting that there is not, and for a value that does not fit.
    """
    base, _, variant = name.partition("/")
    settings: Mapping[str, Any] = {}
    if variant:
        variants = _class_named(base).variants
        if variant not in variants:
            raise ValueError(
                f"protocol {base} has no variant {variant!r}{did_you_mean(variant, list(variants))} "
                f"There are: {', '.join(variants) or 'none'}."
            )
        settings = variants[variant]
    entry = {"name": base} | dict(settings) | dict(overrides or {})
    return plugin_from_settings(PACKAGE, "Protocol", entry, "protocol").build()


def protocol_names() -> list[str]:
    """All that may be named, each protocol followed by its variants."""
    names = []
    for base in plugin_names(PACKAGE):
        names += [base, *(f"{base}/{variant}" for variant in _class_named(base).variants)]
    return names


def _class_named(base: str) -> type[MaskProtocol]:
    return plugin_from_settings(PACKAGE, "Protocol", {"name": base}, "protocol").load()
