"""A run whose weights are broadcast is the run whose weights go through the object store, byte for byte."""

import json
from pathlib import Path

import pytest
from commands import shards, train

pytestmark = pytest.mark.slow

SHARDED = ["learner.ranks=2", "learner.micro_groups=1", "learner.zero_stage=3", "learner.average=0", "steps=3"]
AHEAD = ["pool.staleness=1", "save_every=3"]


# Ahead, weights of two versions are under way at once; in turn is the simpler case.
@pytest.mark.parametrize("also", [pytest.param([], marks=pytest.mark.long), AHEAD], ids=["in_turn", "a_step_ahead"])
def test_both_transports_give_the_same_archive_and_the_same_numbers(tmp_path: Path, also: list[str]) -> None:
    found = []
    for transport in ("object_store", "broadcast"):
        run = tmp_path / transport / "run"
        train(run, *SHARDED, *also, "pool.workers=2", f"pool.transport={transport}", "pool.sha256_every=1")
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        found.append((shards(run), rows))
    assert found[0] == found[1]
    assert len(found[0][0]) == 6 and len(found[0][1]) >= 3
