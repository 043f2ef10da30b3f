"""Reward configs over the same archived answers: what each pays for, and where they would teach different things.

One pass over the archive, a step at a time; no model. A reward that several configs share is computed once.
"""

import math
import re
import sys
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table

from rewards.scorer import RewardRecipe, Scorer
from rewards.shaping import Shaper, Terms, Values
from rl.agreement import ConfigSums, PairSums, StepPlace
from rl.reward_settings import RewardParts, load_rewards, reward_parts
from rollout.archive import RolloutArchive
from rollout.rescore import rescore

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
    names: list[str]
    """Of the configs."""
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
        for sums, mine, total in zip(self.configs, terms, totals, strict=True):
            sums.add(mine, total, features)
        for (i, k), pair in self.pairs.items():
            pair.add(place, totals[i], totals[k], features)
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

    Raises ValueError or FileNotFoundError for a wrong config, an archive that cannot be read, or no step in it.
    """
    parts = [load_rewards(path) for path in rewards]
    merged = merge_rewards([*parts, reward_parts({"boundary_iou": None}, {})])
    pairs = {pair: PairSums() for pair in combinations(range(len(parts)), 2)}
    found = ComparedRewards(run, config_names(rewards), [ConfigSums() for _ in parts], pairs)
    shapers = [config.shaper() for config in parts]
    archive, scorer = RolloutArchive(run / "archive"), Scorer(merged.recipes)
    try:
        stream = rescore(run, scorer, Shaper(dict.fromkeys(merged.recipes, 1.0)), steps)
        for step in track(stream, "rescoring", total=_num_steps(archive, steps), console=console, transient=True):
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
