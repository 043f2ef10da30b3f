"""What ranks and workers may ask of cards; refused while the config is read, with the arithmetic."""

from pathlib import Path

import pytest

from rl.config.cards import num_cards
from rl.config.load import load_settings
from rl.config.refiner import RefineConfig
from rl.config.run import RunConfig, num_gpus
from rl.config.sft import SftConfig
from rl.run.parts import rank_settings, run_parts, worker_settings
from rl.sample import without_learner

PAIRS = ["learner.ranks=8", "learner.micro_groups=2", "pool.workers=8"]
HALVES = ["learner.gpus_per_rank=0.5", "pool.gpus_per_worker=0.5"]


def run(*overrides: str) -> RunConfig:
    return load_settings(RunConfig, Path("tiny"), ["run=unused", *overrides])


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            [*PAIRS, *HALVES],
            r"^learner.gpus_per_rank is 0.5 with learner.ranks 8, 4 GPUs in all: Ray would put 2 ranks on one card, "
            r"which NCCL refuses; set learner.gpus_per_rank to 1 .* or pool.colocate to true",
        ),
        (["learner.gpus_per_rank=0.3"], r"with learner.ranks 1, 0.3 GPUs in all: a rank needs a card; set"),
        (["learner.gpus_per_rank=2"], r"^learner.gpus_per_rank is 2.*set it to 0..1"),
        (["pool.colocate=true", *PAIRS, "pool.workers=4"], r"ranks 8 and pool.workers 4, but each card has one"),
        (
            ["pool.colocate=true", *PAIRS, "learner.gpus_per_rank=1", "pool.gpus_per_worker=0.5"],
            r"gpus_per_rank 1 and pool.gpus_per_worker 0.5, together 1.5, but .* share one card; set both to 0.5",
        ),
        (["pool.colocate=true", *PAIRS, "pool.gpus_per_worker=0.5"], "only one of them on a card"),
        (
            ["pool.colocate=true", *PAIRS, "pool.staleness=1"],
            r"^pool.staleness is 1 with pool.colocate, whose cards either learn or sample.*set pool.staleness to 0",
        ),
        (
            ["pool.colocate=true", *PAIRS, "ray.placement=apart", "ray.address=auto"],
            r"^ray.placement is 'apart' with pool.colocate",
        ),
        (["learner.offload_at_rest=true", "learner.zero_stage=1"], r"offload_at_rest is true without pool.colocate"),
        (
            ["pool.transport=broadcast", "learner.gpus_per_rank=1"],
            r"^pool.transport is broadcast with one side on GPUs and the other on CPUs; .* set pool.transport to obj",
        ),
        (
            ["pool.transport=broadcast", "learner.gpus_per_rank=1", "pool.gpus_per_worker=0.5"],
            r"^pool.transport is broadcast with pool.gpus_per_worker 0.5, so that workers share a card",
        ),
        (["pool.transport=broadcast", "pool.colocate=true", *PAIRS, *HALVES], "rank 0 and a worker share one card"),
        (
            ["pool.colocate=true", *PAIRS, "learner.offload_at_rest=true"],
            r"^learner.offload_at_rest is on at learner.zero_stage 0, where DeepSpeed cannot offload",
        ),
    ],
)
def test_cards_that_cannot_be_shared_so_are_refused_in_one_line(overrides: list[str], told: str) -> None:
    with pytest.raises(ValueError, match=told) as error:
        run(*overrides)
    assert "\n" not in str(error.value)


def test_parts_of_cards_are_refused_where_a_training_has_no_workers() -> None:
    part = r"gpus_per_rank is 0.25 with .*ranks 4, 1 GPUs in all: Ray would put 4 ranks on one card"
    with pytest.raises(ValueError, match=f"learner.{part}"):
        load_settings(SftConfig, Path("sft_tiny"), ["run=unused", "learner.ranks=4", "learner.gpus_per_rank=0.25"])
    with pytest.raises(ValueError, match=f"training.{part}"):
        load_settings(RefineConfig, Path("refiner"), ["out=unused", "training.ranks=4", "training.gpus_per_rank=0.25"])


def test_a_pair_of_rank_and_worker_takes_a_whole_card_whatever_its_parts_are() -> None:
    together = run("pool.colocate=true", *PAIRS, "learner.gpus_per_rank=0.3", "pool.gpus_per_worker=0.3")
    assert num_gpus(together) == num_cards(together.learner, together.pool) == 8
    assert num_gpus(run("pool.colocate=true", *PAIRS)) == 0
    apart = run(*PAIRS, "learner.gpus_per_rank=1", "pool.gpus_per_worker=0.5")
    assert num_gpus(apart) == 8 + 4


def test_the_device_follows_from_what_is_reserved_and_not_from_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    for gpus, device in ((0, "cpu"), (1, "cuda")):
        config = run(f"pool.gpus_per_worker={gpus}", f"learner.gpus_per_rank={gpus}")
        parts = run_parts(config)
        assert worker_settings(config, parts).device == rank_settings(config, parts).learner.device == device


def test_without_a_learner_each_worker_of_a_shared_card_gets_one_of_its_own() -> None:
    alone = without_learner(run("pool.colocate=true", *PAIRS, *HALVES))
    assert (alone.pool.gpus_per_worker, alone.pool.colocate, num_gpus(alone)) == (1.0, False, 8)
    assert run("pool.gpus_per_worker=0.5").pool.without_ranks().gpus_per_worker == 0.5
