"""`polytrace rewards test`: what each trick of the hostile suite would earn, told before a GPU is spent."""

import json
from collections.abc import Iterator
from dataclasses import replace
from math import floor, inf, isnan

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from rewards.scorer import Scorer
from rewards.trial import CAREFUL, HASTY, TRICK, Trial, Verdict, try_tricks
from rl.reward_settings import RewardParts


def test_rewards(parts: RewardParts, console: Console, as_json: bool = False) -> bool:
    """Put rewards through the hostile suite and print the outcome; whether they pass.

    Weights that a schedule moves are judged at its every point, and the worst is told. Raises ValueError, naming the
    reward and the trick, where a reward fails on one; `on_error: skip` does not apply here.
    """
    scorer = Scorer({name: replace(recipe, on_error="stop") for name, recipe in parts.recipes.items()})
    try:
        trial = try_tricks(scorer)
    finally:
        scorer.close()
    step, weights = _worst_step(parts, trial)
    verdicts = trial.verdicts(weights)
    if as_json:
        console.print_json(json.dumps(_plain(trial, weights, verdicts, step)))
    else:
        console.print(_table(trial, weights, verdicts))
        for line in _words(parts, trial, weights, verdicts, step):
            console.print(line, soft_wrap=True)
    return all(verdict.passed for verdict in verdicts)


def _worst_step(parts: RewardParts, trial: Trial) -> tuple[float, dict[str, float]]:
    """(step, weights) at which a trick earns most above its honest answer; weights are linear between these steps."""
    shaper = parts.shaper()
    steps = {0.0} | {point[0] for term in parts.shaping.values() for point in term.weight_schedule}
    excess = {
        step: max(verdict.total - verdict.honest for verdict in trial.verdicts(shaper.weights_at(step)))
        for step in sorted(steps)
    }
    worst = max(excess, key=lambda step: excess[step])
    return worst, shaper.weights_at(worst)


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
    if not verdict.passed:
        return "[red]earns more[/red]"
    return "[yellow]earns as much[/yellow]" if verdict.undecided else "[green]ok[/green]"


def _words(
    parts: RewardParts, trial: Trial, weights: dict[str, float], verdicts: list[Verdict], step: float
) -> Iterator[str]:
    """The outcome in sentences."""
    failed = sorted((v for v in verdicts if not v.passed), key=lambda v: v.honest - v.total)
    if step:
        yield f"Weights are those of step {step:g} of their schedule, where tricks do best."
    if any(term.kind != "raw" for term in parts.shaping.values()):
        yield "Terms and totals are raw here: shaping is left out."
    for v in failed:
        yield (
            f"[red]{v.trick.name}[/red] ({v.trick.why}) earns {v.total:.3f}, the {v.honest_name} honest answer "
            f"{v.honest:.3f}."
        )
    alike = [v.trick.name for v in verdicts if v.undecided]
    if alike:
        yield "Cannot be told from an honest answer by what they earn: " + "; ".join(alike) + "."
    for name in trial.unsteady:
        yield f"[yellow]{name}[/yellow] paid the same answers differently when asked again; no run with it repeats."
    if trial.indifferent(weights):
        yield "[yellow]A careful answer earns what a hasty one does in every scene[/yellow]: that teaches nothing."
    used = [name for name, weight in weights.items() if weight > 0]
    if len(used) == 1 and used != ["mask_iou"]:
        yield _advice(used[0], trial.safe_weight(used[0]))
    if failed:
        yield f"[red]fails[/red]: {len(failed)} of {len(verdicts)} tricks out-earn an honest answer."
    else:
        yield f"[green]passes[/green]: none of {len(verdicts)} tricks out-earns an honest answer."


def _advice(name: str, safe: float) -> str:
    """What weight the one term may have beside a mask IoU."""
    if safe == inf:
        return f"Beside mask_iou, {name} lets no trick pay at any weight."
    if floor(safe * 100) == 0:
        return f"Even beside mask_iou, {name} makes a trick pay at any weight."
    return f"Beside mask_iou of weight 1, {name} lets no trick pay up to a weight of {floor(safe * 100) / 100:.2f}."


def _plain(trial: Trial, weights: dict[str, float], verdicts: list[Verdict], step: float) -> dict[str, object]:
    """The outcome as JSON has it; null for a term that does not apply."""
    rows = [
        {
            "trick": verdict.trick.name,
            "why": verdict.trick.why,
            "scene": verdict.trick.scene.name,
            "status": verdict.trick.answer.status.value,
            "terms": {name: _finite(float(values[k, TRICK])) for name, values in trial.terms.items()},
            "total": verdict.total,
            "honest": verdict.honest,
            "honest_answer": verdict.honest_name,
            "passed": verdict.passed,
        }
        for k, verdict in enumerate(verdicts)
    ]
    safe = {name: _finite(trial.safe_weight(name)) for name in weights}
    passed = all(verdict.passed for verdict in verdicts)
    doubts = {"unsteady": list(trial.unsteady), "indifferent": trial.indifferent(weights)}
    return {
        "passed": passed,
        **doubts,
        "step": step,
        "weights": weights,
        "safe_weight_beside_mask_iou": safe,
        "tricks": rows,
    }


def _finite(value: float) -> float | None:
    return None if isnan(value) or value == inf else value
