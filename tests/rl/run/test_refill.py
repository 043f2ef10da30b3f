"""Groups without signal give their places to others: cases worked by hand, and runs in which it happens."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from in_process import apart, run_here, settings
from test_totals import groups

from rewards.settings import TermShaping
from rewards.shaping import Shaper
from rl.algorithms.gspo import Algorithm
from rl.run.step_numbers import refill_metrics
from rl.run.steps import group_terms, learned, num_missing, refill_indices, refill_units, scored_step, with_signal

REWARD = """
from dataclasses import dataclass


@dataclass
class Reward:
    weight: float = 1.0

    def __call__(self, comparison):
        constant = {condition}
        return 0.5 if constant else comparison.iou
"""


def flags(text: str) -> np.ndarray:
    return np.array([letter == "s" for letter in text])


@pytest.mark.parametrize(
    ("signal", "num", "places", "missing"),
    [
        ("ssss", 4, [0, 1, 2, 3], 0),
        ("s.s.", 4, [0, 1, 2, 3], 2),  # nothing was asked: the places stay with those without signal
        ("s.s." + "s.s", 4, [0, 4, 2, 6], 0),  # the first with a signal goes to the first place without one
        ("s..." + "..s" + "s.", 4, [0, 6, 7, 3], 1),  # two rounds were not enough
        ("...." + "....", 4, [0, 1, 2, 3], 4),
        (".s" + "ss", 2, [2, 1], 0),  # what is one too many is archived, but not learned from
    ],
)
def test_groups_without_signal_give_their_places_to_later_ones_that_have_one(
    signal: str, num: int, places: list[int], missing: int
) -> None:
    assert learned(flags(signal), num) == places
    assert num_missing(flags(signal), num) == missing


def test_what_was_refilled_is_counted() -> None:
    assert refill_metrics([0, 6, 7, 3], asked=5) == {"refill/groups": 2.0, "refill/asked": 5.0}


def test_advantages_are_those_of_the_groups_that_are_learned_from() -> None:
    # The second of three groups is without signal; the third, of a refill, takes its place.
    totals = np.array([[0.0, 1.0], [0.3, 0.3], [0.2, 0.4]])
    algorithm = Algorithm(normalise_by="batch", std_floor=0.0)
    shaped = Shaper({"a": 1.0}).shape(0, {"a": totals})
    scored = scored_step(0, groups(0), {"a": totals}, shaped, algorithm, num=2)
    assert scored.chosen == [0, 2] and scored.num_asked_again == 1 and scored.signal.tolist() == [True, False, True]
    assert [group.position for group in scored.to_learn] == [0, 2]
    # Rewards 0, 1, 0.2, 0.4 have the mean 0.4 and the variance (0.16 + 0.36 + 0.04 + 0) / 4 = 0.14.
    expected = np.array([[-0.5, 0.5], [-0.1, 0.1]]) / np.sqrt(0.14)
    np.testing.assert_allclose(scored.advantages.values, expected)


def test_the_examples_of_a_round_depend_on_seed_step_and_round_alone() -> None:
    asked = refill_indices(3, 50, step=2, turn=1, num=6)
    assert asked == refill_indices(3, 50, step=2, turn=1, num=20)[:6] and len(set(asked)) == 6
    others = [(4, 2, 1), (3, 1, 1), (3, 2, 2)]
    assert all(asked != refill_indices(seed, 50, step, turn, 6) for seed, step, turn in others)
    assert sorted(refill_indices(0, 3, 0, 1, 6)) == [0, 0, 1, 1, 2, 2]


def test_a_round_asks_exactly_what_is_missing_at_positions_of_its_own() -> None:
    config = settings(Path("unused"), "refills=2", "groups_per_step=4", "groups_per_unit=2")
    asked = list(refill_units(config, step=7, turn=2, num=3, num_examples=50))
    assert [unit.positions for unit in asked] == [(8, 9), (10,)]
    assert [index for unit in asked for index in unit.indices] == refill_indices(0, 50, 7, 2, 3)
    assert {(unit.step, unit.split, unit.group_size) for unit in asked} == {(7, "train", 3)}


def test_looking_for_signal_leaves_the_quantiles_what_they_are() -> None:
    shapers = [Shaper({"a": 1.0, "b": 1.0}, {"total": TermShaping("quantile", history=9)}) for _ in range(2)]
    for step in range(3):
        assert with_signal(shapers[0], Algorithm(), step, groups(step)).tolist() == [True, True, True]
        totals = [shaper.totals(step, group_terms(groups(step))) for shaper in shapers]
        assert np.array_equal(*totals)


def runs(*calls: tuple[Path, Sequence[str]]) -> None:
    """The runs one after the other, each in a process of its own."""
    for k, (folder, overrides) in enumerate(calls):
        assert apart(run_here, folder, 29650 + k, overrides) == 0


def numbers(folder: Path, name: str) -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row[name] for row in rows if name in row]


def positions(folder: Path, step: int) -> list[int]:
    table = pq.read_table(folder / f"archive/rollouts/step-{step:08d}.parquet", columns=["position"])
    return sorted(set(table["position"].to_pylist()))


@pytest.mark.long
def test_where_no_group_has_a_signal_the_rounds_end_and_the_batch_keeps_its_shape(tmp_path: Path) -> None:
    (tmp_path / "constant.py").write_text(REWARD.format(condition="True"))
    reward = f"rewards={{constant: {{module: {tmp_path / 'constant.py'}}}}}"
    folder = tmp_path / "run"
    # Nearly greedy: what cannot be read earns 0 after all, but then a whole group does.
    runs((folder, ["steps=2", "refills=2", "evaluation.every=9", "sampling.temperature=1.0e-4", reward]))
    assert numbers(folder, "refill/groups") == [0.0, 0.0] and numbers(folder, "refill/asked") == [4.0, 4.0]
    assert numbers(folder, "learner/updates_dropped") == [0.0, 0.0] and numbers(folder, "learner/loss") == [0.0, 0.0]
    assert positions(folder, 1) == list(range(6))


@pytest.mark.long
def test_a_run_with_refills_resumed_in_a_new_process_is_the_uninterrupted_run(tmp_path: Path) -> None:
    (tmp_path / "some.py").write_text(REWARD.format(condition="sum(map(ord, comparison.example_id)) % 2"))
    same = [f"rewards={{some: {{module: {tmp_path / 'some.py'}}}}}", "refills=3"]
    whole, parts = tmp_path / "whole", tmp_path / "parts" / "whole"
    runs((whole, ["steps=4", *same]), (parts, ["steps=2", *same]), (parts, ["steps=4", *same]))
    for name in ("archive/rollouts", "archive/examples"):
        shards = {path.name: path.read_bytes() for path in (whole / name).iterdir()}
        assert shards == {path.name: path.read_bytes() for path in (parts / name).iterdir()}
    for name in ("refill/groups", "refill/asked", "learner/loss", "learner/grad_norm"):
        assert numbers(parts, name)[-2:] == numbers(whole, name)[-2:]
    assert sum(numbers(whole, "refill/groups")) > 0
    assert any(later >= 2 for step in range(4) for later in positions(whole, step))
