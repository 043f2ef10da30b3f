"""`polytrace rewards compare`: what an archive says of several reward configs, kept as running sums.

Values, spread within a group, agreement, and what one would reinforce and another punish, by the advantages of the
run's own algorithm. Everything takes one step at a time, [B, G] arrays of B groups of G answers, and needs no more
memory for more steps.
"""

import math
import re
import sys
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from rewards.scorer import Scorer
from rewards.settings import RewardRecipe
from rewards.shaping import Shaper, Terms, Values
from rl.algorithms.base import PolicyGradient
from rl.config.load import read_mapping
from rl.config.plugins import algorithm_plugin
from rl.config.rewards import RewardParts, load_rewards, reward_parts
from rl.pages.progress import bar
from rollout.archive.archive import RolloutArchive
from rollout.archive.rescore import rescore

NUM_BINS = 20


def kendall(a: Values, b: Values) -> Values:
    """Kendall's tau-b of a and b within each group, [B, G] each -> [B], in [-1, 1].

    Of all pairs of answers: ordered alike less ordered the other way, over the geometric mean of the pairs that a and b
    tell apart. A pair with a NaN is left out; NaN where a or b tells no pair apart.
    """
    sign_a, sign_b = (np.sign(values[:, :, None] - values[:, None, :]) for values in (a, b))
    known = ~(np.isnan(sign_a) | np.isnan(sign_b))
    sign_a, sign_b = np.where(known, sign_a, 0.0), np.where(known, sign_b, 0.0)
    alike = (sign_a * sign_b).sum(axis=(1, 2))
    apart = np.sqrt((sign_a**2).sum(axis=(1, 2)) * (sign_b**2).sum(axis=(1, 2)))
    return np.divide(alike, apart, out=np.full_like(apart, np.nan), where=apart > 0)


@dataclass
class Distribution:
    """Mean, spread and histogram of numbers in [0, 1] that were seen so far, NaN counted apart."""

    num: int = 0
    """Numbers that are not NaN."""
    num_absent: int = 0
    total: float = 0.0
    total_of_squares: float = 0.0
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(NUM_BINS, np.int64))
    """[NUM_BINS] of equal width over 0..1; what is outside goes to the nearest."""

    def add(self, values: Values) -> None:
        """Take in an array of any shape."""
        present = values[~np.isnan(values)]
        self.num += present.size
        self.num_absent += values.size - present.size
        self.total += float(present.sum())
        self.total_of_squares += float((present**2).sum())
        bins = np.clip((present * NUM_BINS).astype(np.int64), 0, NUM_BINS - 1)
        self.counts += np.bincount(bins, minlength=NUM_BINS)

    @property
    def mean(self) -> float:
        """Mean of all numbers; NaN before the first."""
        return self.total / self.num if self.num else math.nan

    @property
    def std(self) -> float:
        """Standard deviation of all numbers, not of a sample; NaN before the first."""
        return math.sqrt(max(0.0, self.total_of_squares / self.num - self.mean**2)) if self.num else math.nan

    @property
    def absent_share(self) -> float:
        """Share of NaN; 0 before the first value."""
        return self.num_absent / max(1, self.num + self.num_absent)


@dataclass(frozen=True)
class Judged:
    """What one reward config makes of the groups of a step, under the algorithm of the run."""

    totals: Values
    """[B, G]"""
    advantages: Values
    """[B, G], above 0 for an answer that is reinforced, below 0 for one that is punished."""
    counts: NDArray[np.bool_]
    """[B] False for a group that the learner leaves out."""

    @classmethod
    def by(cls, algorithm: PolicyGradient, totals: Values) -> "Judged":
        """The judgement on totals [B, G]."""
        return cls(totals, *algorithm.advantages(totals))


@dataclass
class ConfigSums:
    """What one reward config makes of the answers."""

    terms: dict[str, Distribution] = field(default_factory=dict)
    """By reward name, as measured; NaN where it does not apply."""
    totals: Distribution = field(default_factory=Distribution)
    spread: Distribution = field(default_factory=Distribution)
    """Standard deviation of the totals of each group."""
    silent: Distribution = field(default_factory=Distribution)
    """1 for a group that the learner leaves out, because its answers earn too nearly the same, else 0."""
    agreement: dict[str, Distribution] = field(default_factory=dict)
    """Kendall's tau of each group's totals with a feature of its answers, by feature."""

    def add(self, terms: Mapping[str, Values], judged: Judged, features: Mapping[str, Values]) -> None:
        """Take in a step; terms and features [B, G]."""
        for name, values in terms.items():
            self.terms.setdefault(name, Distribution()).add(values)
        self.totals.add(judged.totals)
        self.spread.add(judged.totals.std(axis=1))
        self.silent.add((~judged.counts).astype(np.float64))
        for name, values in features.items():
            self.agreement.setdefault(name, Distribution()).add(kendall(judged.totals, values))


@dataclass(frozen=True)
class Disagreement:
    """An answer that one config reinforces and another punishes."""

    step: int
    position: int
    index: int
    """Step, position and index name the answer in the archive."""
    example_id: str
    totals: tuple[float, float]
    """Totals under the config that reinforces and under the one that punishes."""
    advantages: tuple[float, float]
    """Advantages under these configs; the first is above 0, the second below."""

    @property
    def size(self) -> float:
        """The weaker of the two opinions: large where both are strong."""
        return min(abs(advantage) for advantage in self.advantages)


@dataclass
class DirectionSums:
    """The answers that a first config reinforces and a second one punishes."""

    num_shown: int = 4
    share: Distribution = field(default_factory=Distribution)
    """1 for such an answer, 0 for any other."""
    deviations: dict[str, Distribution] = field(default_factory=dict)
    """By feature: how far these answers lie above the mean of their groups."""
    largest: list[Disagreement] = field(default_factory=list)
    """The `num_shown` largest of different examples, largest first."""

    def add(self, place: "StepPlace", sides: tuple[Judged, Judged], features: Mapping[str, Values]) -> None:
        """Take in a step; sides: by the config that reinforces, and by the one that punishes."""
        first, second = (side.advantages for side in sides)
        size = np.where((first > 0) & (second < 0), np.minimum(first, -second), 0.0)
        self.share.add((size > 0).astype(np.float64))
        for name, values in features.items():
            deviation = values - values.mean(axis=1, keepdims=True)
            self.deviations.setdefault(name, Distribution()).add(deviation[size > 0])
        for position in np.argsort(-size.max(axis=1), kind="stable")[: self.num_shown].tolist():
            index = int(size[position].argmax())
            if size[position, index] > 0:
                at = (position, index)
                totals = (float(sides[0].totals[at]), float(sides[1].totals[at]))
                advantages = (float(first[at]), float(second[at]))
                self._offer(Disagreement(place.step, *at, place.example_ids[position], totals, advantages))

    def _offer(self, new: Disagreement) -> None:
        kept = [old for old in self.largest if old.example_id != new.example_id or old.size >= new.size]
        if any(old.example_id == new.example_id for old in kept):
            return
        self.largest = sorted([*kept, new], key=lambda found: -found.size)[: self.num_shown]


@dataclass(frozen=True)
class StepPlace:
    """Which step a batch of groups is from."""

    step: int
    example_ids: Sequence[str]
    """[B] example of each group."""


@dataclass
class PairSums:
    """Two configs beside each other."""

    agreement: Distribution = field(default_factory=Distribution)
    """Kendall's tau of their totals within each group."""
    same_best: Distribution = field(default_factory=Distribution)
    """1 for a group in which some answer is the best, or one of several best, under both, else 0."""
    first_only: DirectionSums = field(default_factory=DirectionSums)
    """Reinforced by the first, punished by the second."""
    second_only: DirectionSums = field(default_factory=DirectionSums)

    def add(self, place: StepPlace, first: Judged, second: Judged, features: Mapping[str, Values]) -> None:
        """Take in a step, judged by either config."""
        self.agreement.add(kendall(first.totals, second.totals))
        best = [side.totals == side.totals.max(axis=1, keepdims=True) for side in (first, second)]
        self.same_best.add((best[0] & best[1]).any(axis=1).astype(np.float64))
        self.first_only.add(place, (first, second), features)
        self.second_only.add(place, (second, first), features)


FEATURES = {"iou": "IoU", "boundary_iou": "boundary IoU", "vertices": "vertices"}
"""Titles of what totals are compared with."""
_SHORT = [title.removesuffix(" IoU") for title in FEATURES.values()]


@dataclass(frozen=True)
class MergedRewards:
    """The rewards of several configs, each computed once."""

    recipes: dict[str, RewardRecipe]
    """By a key of its own."""
    keys: list[dict[str, str]]
    """For each config, the key of each of its rewards by name."""


@dataclass
class ComparedRewards:
    """What the configs make of a run's answers."""

    run: Path
    algorithm: PolicyGradient
    """The algorithm of the run, which makes advantages of totals."""
    names: list[str]
    """Names of the configs."""
    configs: list[ConfigSums]
    pairs: dict[tuple[int, int], PairSums]
    """By the places of both configs, the smaller one first."""
    steps: list[int] = field(default_factory=list)
    num_groups: int = 0
    num_answers: int = 0

    def add(
        self, place: StepPlace, terms: Sequence[Terms], totals: Sequence[Values], features: Mapping[str, Values]
    ) -> None:
        """Take in a step: terms and totals of each config, features of the answers, all [B, G]."""
        judged = [Judged.by(self.algorithm, total) for total in totals]
        for sums, mine, one in zip(self.configs, terms, judged, strict=True):
            sums.add(mine, one, features)
        for (i, k), pair in self.pairs.items():
            pair.add(place, judged[i], judged[k], features)
        self.steps.append(place.step)
        self.num_groups += len(totals[0])
        self.num_answers += totals[0].size


def step_range(text: str) -> range:
    """The steps that "A:B" means, B not included; ":B" begins with step 0, and "A:" has no end.

    Raises ValueError for any other text.
    """
    match = re.fullmatch(r"(\d*):(\d*)", text)
    if match is None:
        raise ValueError(f"--steps is {text!r}; write A:B for the steps from A on and before B, such as 0:50 or 200:.")
    return range(int(match[1] or 0), int(match[2] or sys.maxsize))


def config_names(paths: Sequence[Path]) -> list[str]:
    """A name for each config: its file's, or its whole path where two files have the same name."""
    stems = [path.stem for path in paths]
    return [stem if stems.count(stem) == 1 else str(path) for stem, path in zip(stems, paths, strict=True)]


def merge_rewards(parts: Sequence[RewardParts]) -> MergedRewards:
    """One recipe for all that measure alike; they do where they differ in nothing but the weight."""
    recipes: dict[str, RewardRecipe] = {}
    keys = []
    for config in parts:
        mine = {}
        for name, recipe in config.recipes.items():
            settings = {key: value for key, value in recipe.plugin.settings.items() if key != "weight"}
            bare = replace(recipe, plugin=replace(recipe.plugin, settings=settings))
            same = [key for key, other in recipes.items() if other == bare]
            numbered = (name, *(f"{name} ({k})" for k in range(2, len(recipes) + 2)))
            mine[name] = same[0] if same else next(key for key in numbered if key not in recipes)
            recipes[mine[name]] = bare
        keys.append(mine)
    return MergedRewards(recipes, keys)


def compare_rewards(
    run: Path, rewards: Sequence[Path], steps: Container[int] | None, console: Console
) -> ComparedRewards:
    """Score every archived answer of the run (of some steps, where these are given) under each reward config.

    Advantages are those of the run's own `algorithm`, by its config.yaml. Raises ValueError or FileNotFoundError for a
    wrong config, an archive that cannot be read, or no step in it.
    """
    parts = [load_rewards(path) for path in rewards]
    merged = merge_rewards([*parts, reward_parts({"boundary_iou": {}}, {})])
    pairs = {pair: PairSums() for pair in combinations(range(len(parts)), 2)}
    archive, scorer = RolloutArchive(run / "archive"), Scorer(merged.recipes)
    algorithm = _algorithm_of(run)
    found = ComparedRewards(run, algorithm, config_names(rewards), [ConfigSums() for _ in parts], pairs)
    shapers = [config.shaper() for config in parts]
    try:
        stream = rescore(run, scorer, Shaper(dict.fromkeys(merged.recipes, 1.0)), steps)
        for step in bar(stream, "rescoring", console, _num_steps(archive, steps)):
            *terms, measured = [{name: step.terms[key] for name, key in mine.items()} for mine in merged.keys]
            totals = [shaper.totals(step.step, mine) for shaper, mine in zip(shapers, terms, strict=True)]
            features = {"iou": step.iou, **measured, "vertices": step.num_vertices.astype(np.float64)}
            found.add(StepPlace(step.step, step.example_ids), terms, totals, features)
    finally:
        scorer.close()
    for name, num in scorer.skipped.items():
        console.print(f"{name} left {num} answers out, as its on_error asks")
    if not found.steps:
        raise ValueError(f"{archive.folder} holds no answer of these steps; it reaches step {archive.last_step}.")
    return found


def _algorithm_of(run: Path) -> PolicyGradient:
    if not (run / "archive").is_dir():
        raise FileNotFoundError(f"No archive in {run}/archive; give the folder of a run that has made a step.")
    algorithm: PolicyGradient = algorithm_plugin(read_mapping(run / "config.yaml").get("algorithm", {})).build()
    return algorithm


def _num_steps(archive: RolloutArchive, steps: Container[int] | None) -> int:
    last_step = archive.last_step
    return sum(steps is None or step in steps for step in range(0 if last_step is None else last_step + 1))


def comparison_tables(found: ComparedRewards) -> list[Table]:
    """A table of the configs, one of their terms, and, where there are several configs, one of their pairs."""
    tables = [_config_table(found), _term_table(found)]
    return [*tables, _pair_table(found)] if found.pairs else tables


def _config_table(found: ComparedRewards) -> Table:
    headings = ["total", "spread", "no signal", *_SHORT]
    table = _table(f"{found.num_answers} answers in {found.num_groups} groups", "rewards", headings)
    for name, sums in zip(found.names, found.configs, strict=True):
        agreement = [_number(sums.agreement[feature].mean, "+.2f") for feature in FEATURES]
        numbers = [_number(sums.totals.mean, ".3f"), _number(sums.spread.mean, ".4f"), _number(sums.silent.mean, ".1%")]
        table.add_row(name, *numbers, *agreement)
    table.caption = (
        f"spread: std in a group; {', '.join(_SHORT)}: Kendall's tau of totals with them, in groups that differ"
    )
    return table


def _term_table(found: ComparedRewards) -> Table:
    table = _table("Terms as measured", "rewards", ["term", "mean", "std", "does not apply"])
    for name, sums in zip(found.names, found.configs, strict=True):
        for place, (term, values) in enumerate(sums.terms.items()):
            numbers = [_number(values.mean, ".3f"), _number(values.std, ".3f"), f"{values.absent_share:.1%}"]
            table.add_row("" if place else name, term, *numbers)
    return table


def _pair_table(found: ComparedRewards) -> Table:
    headings = ["answers", *_SHORT, "tau", "same best"]
    table = _table("Reinforced by one, punished by the other", "by > by", headings)
    for (i, k), pair in found.pairs.items():
        for first, second, direction in ((i, k, pair.first_only), (k, i, pair.second_only)):
            deviations = [_number(direction.deviations[feature].mean, "+.3f") for feature in FEATURES]
            both = [_number(pair.agreement.mean, "+.2f"), f"{pair.same_best.mean:.1%}"] if first == i else ["", ""]
            pair_name = f"{found.names[first]} > {found.names[second]}"
            table.add_row(pair_name, _number(direction.share.mean, ".2%"), *deviations, *both)
    table.caption = f"{', '.join(_SHORT)}: of these answers, less the mean of their groups"
    return table


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)


def _table(title: str, first: str, headings: Sequence[str]) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, overflow="fold")
    for heading in headings:
        table.add_column(heading, justify="right")
    return table
