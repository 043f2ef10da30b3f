"""Ranks and workers that take turns leave the very files that they leave where each always works."""

from pathlib import Path

import pytest
from commands import SMALL, numbers, shards, train

pytestmark = pytest.mark.long

TWO_STEPS = ["steps=2", "learner.ranks=2", "learner.micro_groups=1", "learner.zero_stage=1", "refills=1"]


@pytest.mark.parametrize("keep", ["", "pool.sleep_without_weights=false"])
def test_a_colocated_run_archives_and_logs_what_a_plain_one_does_to_the_last_bit(tmp_path: Path, keep: str) -> None:
    assert "save_every=2" in SMALL and "evaluation.every=2" in SMALL
    plain, turns = tmp_path / "plain/run", tmp_path / "turns/run"
    train(plain, *TWO_STEPS)
    train(turns, *TWO_STEPS, "pool.colocate=true", "learner.offload_at_rest=true", *filter(None, [keep]))
    assert len(shards(plain)) == 4 and shards(turns) == shards(plain)
    assert len(numbers(plain)) >= 4 and numbers(turns) == numbers(plain)
    policies = [(next(run.glob("checkpoints/best-*")) / "policy/model.safetensors") for run in (plain, turns)]
    assert policies[0].read_bytes() == policies[1].read_bytes()
