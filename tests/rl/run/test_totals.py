"""Terms and totals between groups, archive and shaping."""

from pathlib import Path

import numpy as np
import pytest

from envs.example import Example, ImageRef, Prompt, Truth
from envs.polygons import Answer, AnswerStatus
from policies.families.base import Response
from rewards.settings import TermShaping
from rewards.shaping import Shaper
from rl.run.steps import archived_terms, group_terms, past_terms, with_totals
from rollout.archive.archive import RolloutArchive
from rollout.records import Group, Rollout


def rollout(index: int, terms: dict[str, float | None]) -> Rollout:
    response = Response(np.arange(2), np.zeros(2, np.float32), "stop")
    return Rollout(index, response, "", Answer(AnswerStatus.EMPTY), 0, 0, 0.0, terms, 0, index)


def groups(step: int) -> list[Group]:
    """Three groups of two answers, with terms a and b; b does not apply to some."""
    draw, made = np.random.default_rng(step), []
    for position in range(3):
        name = f"example {position}"
        image, truth = ImageRef(name, "0" * 64, 4, 4), Truth(np.zeros((0, 4, 4), np.bool_))
        example = Example(name, image, Prompt.of_text("a"), truth, "train", "made", "CC0-1.0")
        terms = [{"a": draw.random(), "b": draw.random() if draw.random() < 0.7 else None} for _ in range(2)]
        rollouts = tuple(rollout(index, row) for index, row in enumerate(terms))
        made.append(Group("run", step, position, example, np.arange(3), "0" * 64, 1.0, rollouts))
    return made


def archived(folder: Path, shaper: Shaper, num_steps: int) -> RolloutArchive:
    archive = RolloutArchive(folder)
    for step in range(num_steps):
        answered = groups(step)
        archive.append(step, with_totals(answered, shaper.totals(step, group_terms(answered))))
    return archive


def test_each_answer_gets_its_total() -> None:
    answered = groups(0)
    terms = group_terms(answered)
    totalled = with_totals(answered, Shaper({"a": 1.0}).totals(0, terms))
    assert [group.totals for group in totalled] == [tuple(r.terms["a"] for r in group.rollouts) for group in answered]
    assert [group.rollouts for group in totalled] == [group.rollouts for group in answered]


def test_archived_terms_are_those_of_the_groups_to_the_last_bit(tmp_path: Path) -> None:
    archive = archived(tmp_path, Shaper({"a": 1.0, "b": 1.0}), 3)
    for step in range(3):
        stored, expected = archived_terms(archive, step, ["b", "a"]), group_terms(groups(step))
        assert list(stored) == ["b", "a"]
        assert all(np.array_equal(stored[name], expected[name], equal_nan=True) for name in stored)
    assert any(np.isnan(archived_terms(archive, step, ["b"])["b"]).any() for step in range(3))


@pytest.mark.parametrize("on", ["a", "b", "total"])
def test_a_resumed_run_rebuilds_its_quantiles_from_the_archive_bit_for_bit(tmp_path: Path, on: str) -> None:
    weights, shaping = {"b": 0.3, "a": 1.0}, {on: TermShaping("quantile", history=11)}
    through = Shaper(weights, shaping)
    archive, resumed = archived(tmp_path, through, 8), Shaper(weights, shaping)
    resumed.replay(past_terms(archive, list(weights)))
    for step in range(8, 11):
        terms = group_terms(groups(step))
        assert np.array_equal(resumed.totals(step, terms), through.totals(step, terms))


def test_an_archive_without_a_step_has_no_past(tmp_path: Path) -> None:
    assert list(past_terms(RolloutArchive(tmp_path), ["a"])) == []


def test_a_lost_step_that_quantiles_need_is_named(tmp_path: Path) -> None:
    shaping = {"a": TermShaping("quantile", history=12)}
    archive = archived(tmp_path, Shaper({"a": 1.0}), 3)
    (tmp_path / "rollouts/step-00000001.parquet").unlink()
    with pytest.raises(ValueError, match=r"Step 1 is missing from .*put its shard back"):
        Shaper({"a": 1.0}, shaping).replay(past_terms(archive, ["a"]))
    Shaper({"a": 1.0}, {"a": TermShaping("quantile", history=6)}).replay(past_terms(archive, ["a"]))
