"""`polytrace rewards test`: what each trick of the hostile suite would earn, told before a GPU is spent."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import floor, inf, isnan

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from rewards.hostile_choices import choice_tricks
from rewards.scorer import Scorer
from rewards.trial import CAREFUL, HASTY, LEAST_WEIGHT, TRICK, Fitness, Trial, Verdict, try_tricks
from rl.config.rewards import RewardParts

_FROM_BEST = list(Fitness)
"""In the order of the class: of a schedule, the step with the worst is told."""


@dataclass(frozen=True)
class Outcome:
    """Rewards judged at one step of their schedule, that at which they are worst."""

    trial: Trial
    step: float
    weights: dict[str, float]
    """Weight of each reward at that step."""
    verdicts: list[Verdict]
    """One verdict per trick."""
    fitness: Fitness
    """What they are fit for as a whole."""

    @classmethod
    def at(cls, trial: Trial, step: float, weights: dict[str, float]) -> "Outcome":
        """The outcome under these weights."""
        return cls(trial, step, weights, trial.verdicts(weights), trial.fitness(weights))

    @property
    def passed(self) -> bool:
        """Whether the rewards can be trained on as they are, with nothing beside them."""
        return self.fitness is Fitness.PASSES

    @property
    def used(self) -> list[str]:
        """Names of the rewards that have a weight."""
        return [name for name, weight in self.weights.items() if weight > 0]

    @property
    def paid(self) -> list[Verdict]:
        """The tricks that pay, those that gain most first."""
        return sorted((v for v in self.verdicts if not v.passed), key=lambda v: (not v.earns_more, v.honest - v.total))

    @property
    def excess(self) -> float:
        """The most that a trick earns above what it may; below 0 where none does."""
        return max(verdict.total - verdict.honest for verdict in self.verdicts)


def test_rewards(parts: RewardParts, console: Console, as_json: bool = False, choices: bool = False) -> bool:
    """Put rewards through the hostile suite and print the outcome; whether they can be trained on by themselves.

    choices: through that of choices among candidate masks, in place of outlines.

    Weights that a schedule moves are judged at its every point, and the worst is told. Raises ValueError, naming the
    reward and the trick, where a reward fails on one; `on_error: skip` does not apply here.
    """
    scorer = Scorer({name: replace(recipe, on_error="stop") for name, recipe in parts.recipes.items()})
    try:
        trial = try_tricks(scorer, choice_tricks() if choices else None)
    finally:
        scorer.close()
    outcome = _worst(parts, trial)
    if as_json:
        console.print_json(json.dumps(_plain(outcome)))
    else:
        console.print(_table(trial, outcome.weights, outcome.verdicts))
        for line in _words(parts, outcome):
            console.print(line, soft_wrap=True)
    return outcome.passed


def _worst(parts: RewardParts, trial: Trial) -> Outcome:
    """The outcome at the step where rewards are least fit, then where a trick earns most above what it may.

    Only points of schedules are looked at: weights are linear between them.
    """
    shaper = parts.shaper()
    steps = {0.0} | {point[0] for term in parts.shaping.values() for point in term.weight_schedule}
    outcomes = [Outcome.at(trial, step, shaper.weights_at(step)) for step in sorted(steps)]
    return max(outcomes, key=lambda outcome: (_FROM_BEST.index(outcome.fitness), outcome.excess))


def _table(trial: Trial, weights: dict[str, float], verdicts: list[Verdict]) -> Table:
    """Scene by scene: the two honest answers, then the tricks."""
    names = list(weights)
    # Words rather than names, so that a narrow terminal can break them.
    titles = [name.replace("_", " ") for name in names] + (["total"] if len(names) > 1 else [])
    table = Table(title="hostile suite", box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("answer")
    for title in (*titles, "honest"):
        table.add_column(title, justify="right", overflow="fold")
    table.add_column("verdict")
    totals = trial.totals(weights)
    scene = ""
    for k, verdict in enumerate(verdicts):
        if verdict.trick.scene.name != scene:
            scene = verdict.trick.scene.name
            table.add_section()
            for told, who in (("careful", CAREFUL), ("hasty", HASTY)):
                cells = _cells(trial, names, k, who, float(totals[k, who]))
                table.add_row(f"{scene}: {told}", *cells, "", "", style="bold")
        cells = _cells(trial, names, k, TRICK, verdict.total)
        table.add_row(verdict.trick.name, *cells, f"{verdict.honest:.3f}", _told(verdict))
    return table


def _cells(trial: Trial, names: list[str], k: int, who: int, total: float) -> list[str]:
    values = [float(trial.terms[name][k, who]) for name in names]
    cells = ["-" if isnan(value) else f"{value:.3f}" for value in values]
    return [*cells, f"{total:.3f}"] if len(names) > 1 else cells


def _told(verdict: Verdict) -> str:
    if verdict.earns_more:
        return "[red]earns more[/red]"
    return "[yellow]earns as much[/yellow]" if verdict.earns_as_much else "[green]ok[/green]"


def _words(parts: RewardParts, outcome: Outcome) -> Iterator[str]:
    """The outcome in sentences; the last says what the rewards are fit for."""
    trial, weights = outcome.trial, outcome.weights
    if outcome.step:
        yield f"Weights are those of step {outcome.step:g} of their schedule, where the rewards do worst."
    if any(term.kind != "raw" for term in parts.shaping.values()):
        yield "Terms and totals are raw here: shaping is left out."
    more = [v for v in outcome.paid if v.earns_more]
    for v in more:
        yield (
            f"[red]{v.trick.name}[/red] ({v.trick.why}) earns {v.total:.3f}, a careful answer {v.careful:.3f}, a hasty "
            f"one {v.hasty:.3f}."
        )
    alike = [v.trick.name for v in outcome.paid if v.earns_as_much]
    if alike:
        yield "Cannot be told from an honest answer by what they earn: " + "; ".join(alike) + "."
    for name in trial.unsteady:
        yield f"[yellow]{name}[/yellow] paid the same answers differently when asked again; no run with it repeats."
    if trial.indifferent(weights) and outcome.fitness is not Fitness.TEACHES_NOTHING:
        yield "[yellow]A careful answer earns what a hasty one does in every scene[/yellow]: it teaches no care."
    for name in outcome.used:
        if not (trial.terms[name] > 0).any():
            yield (
                f"[yellow]{name}[/yellow] applied to no answer of the suite that can be read, so nothing is said of it "
                "here."
            )
    if outcome.fitness is not Fitness.UNSTEADY and (len(outcome.used) == 1 or not outcome.passed):
        yield from (_advice(name, trial.safe_weight(name)) for name in outcome.used if name != "mask_iou")
    yield _verdict(outcome)


def _advice(name: str, safe: float) -> str:
    """What weight a term may have beside a mask IoU."""
    if safe == inf:
        return f"Beside mask_iou, {name} lets no trick pay at any weight."
    if safe < LEAST_WEIGHT:
        return f"Even beside mask_iou, {name} makes a trick pay at any weight."
    return f"Beside mask_iou of weight 1, {name} lets no trick pay up to a weight of {floor(safe * 100) / 100:.2f}."


def _verdict(outcome: Outcome) -> str:
    """What the rewards are fit for, in a sentence."""
    paid = f"{len(outcome.paid)} of {len(outcome.verdicts)} tricks earn as much as an honest answer, or more"
    match outcome.fitness:
        case Fitness.PASSES:
            return f"[green]passes[/green]: none of {len(outcome.verdicts)} tricks pays; to be trained on as it is."
        case Fitness.BESIDE_MASK_IOU:
            return f"[yellow]only beside mask_iou[/yellow]: by itself it fails, since {paid}."
        case Fitness.FAILS:
            return f"[red]fails[/red]: {paid}."
        case Fitness.TEACHES_NOTHING:
            return "[red]teaches nothing[/red]: all answers to a scene that can be read earn the same, honest or not."
        case Fitness.UNSTEADY:
            return "[red]unsteady[/red]: what an answer earns here is partly chance, so no other verdict would hold."


def _plain(outcome: Outcome) -> dict[str, object]:
    """The outcome as JSON has it; null for a term that does not apply, and for a safe weight without bound."""
    trial = outcome.trial
    rows = [
        {
            "trick": verdict.trick.name,
            "why": verdict.trick.why,
            "scene": verdict.trick.scene.name,
            "status": verdict.trick.answer.status.value,
            "terms": {name: _finite(float(values[k, TRICK])) for name, values in trial.terms.items()},
            "total": verdict.total,
            "careful": verdict.careful,
            "hasty": verdict.hasty,
            "honest": verdict.honest,
            "earns_more": verdict.earns_more,
            "earns_as_much": verdict.earns_as_much,
            "passed": verdict.passed,
        }
        for k, verdict in enumerate(outcome.verdicts)
    ]
    return {
        "passed": outcome.passed,
        "verdict": outcome.fitness.value,
        "unsteady": list(trial.unsteady),
        "indifferent": trial.indifferent(outcome.weights),
        "step": outcome.step,
        "weights": outcome.weights,
        "safe_weight_beside_mask_iou": {name: _finite(trial.safe_weight(name)) for name in outcome.weights},
        "tricks": rows,
    }


def _finite(value: float) -> float | None:
    return None if isnan(value) or value == inf else value
