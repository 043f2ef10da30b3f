"""Which cards actors get and see, asked of them: Ray is told of eight GPUs behind which there is nothing."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rl.config.load import load_settings
from rl.config.run import RunConfig
from rl.learner.learner import Learner
from rl.run.parts import rank_settings, run_parts, worker_settings
from rollout import cluster
from rollout.cluster import Places, Share
from rollout.worker import WorkerSettings

pytestmark = pytest.mark.slow

GPUS = 8


def seer(gpus: float) -> Any:
    """An actor that says what it knows of its card."""

    class Seer:  # in here, or Ray would look for this file in the actor's process
        def card(self) -> tuple[str, str | None]:
            """Its node, and the cards that it sees."""
            return ray.get_runtime_context().get_node_id(), os.environ.get("CUDA_VISIBLE_DEVICES")

    return ray.remote(num_cpus=1, num_gpus=gpus)(Seer)


@pytest.fixture(scope="module")
def eight_gpus() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(GPUS))))
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # as on a cluster that others have started
        patch.setenv("RAY_worker_niceness", "0")
        ray.init(address="local", num_cpus=20, num_gpus=GPUS, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


def bundles(group: PlacementGroup, num: int) -> list[Any]:
    return [PlacementGroupSchedulingStrategy(group, k) for k in range(num)]


def pairs(num: int, gpus_each: float) -> Places:
    return cluster.colocate(Share("learner ranks", num, gpus_each), Share("rollout workers", num, gpus_each))


def seen(places: Places, num: int, of_rank: float, of_worker: float) -> tuple[list[Any], list[Any]]:
    """Cards of ranks and of workers, all of which live at once."""
    rank, worker = seer(of_rank), seer(of_worker)
    found = cards(
        [rank.options(scheduling_strategy=where).remote() for where in bundles(places.ranks, num)]
        + [worker.options(scheduling_strategy=where).remote() for where in places.workers]
    )
    return found[:num], found[num:]


def cards(actors: list[Any]) -> list[tuple[str, str | None]]:
    found = ray.get([one.card.remote() for one in actors], timeout=300)
    for one in actors:
        ray.kill(one)
    return found


def test_a_worker_sees_the_card_of_its_rank_and_no_two_ranks_see_one(eight_gpus: None) -> None:
    places = pairs(GPUS, 0.5)
    ranks, workers = seen(places, GPUS, 0.6, 0.4)
    remove_placement_group(places.ranks)
    assert ranks == workers
    assert sorted(card for _, card in ranks if card is not None) == [str(k) for k in range(GPUS)]


def test_without_bundles_of_pairs_ray_puts_two_ranks_of_half_a_card_on_each(eight_gpus: None) -> None:
    group = cluster.together(GPUS, 0.5)
    half = seer(0.5)
    found = cards([half.options(scheduling_strategy=where).remote() for where in bundles(group, GPUS)])
    remove_placement_group(group)
    assert len({card for _, card in found}) == GPUS // 2


def test_more_pairs_than_cards_are_refused_with_the_arithmetic(eight_gpus: None) -> None:
    told = (
        r"^9 pairs of a rank and a worker need 2 CPUs and 1 GPU each, on one node, but the 1 nodes of the cluster have "
        r"room for 8; lower learner.ranks and pool.workers, or add nodes\.$"
    )
    with pytest.raises(ValueError, match=told):
        pairs(9, 0.5)
    places = pairs(10, 0.0)  # on CPUs there is room
    remove_placement_group(places.ranks)
    with pytest.raises(ValueError, match=r"^11 pairs .* need 2 CPUs each, on one node, but .* room for 10;"):
        pairs(11, 0.0)


def seeing() -> type:
    """A worker where the cards that Ray shows are there, which says what it sees and where its policy is."""
    from rollout.pool.actor import PoolActor

    class Seeing(PoolActor):
        def __init__(self, settings: WorkerSettings, name: str) -> None:
            torch.cuda.is_available = lambda: True
            super().__init__(settings, name)

        def card(self) -> tuple[str | None, str]:
            return os.environ.get("CUDA_VISIBLE_DEVICES"), str(self._sampler.policy.device)

    return Seeing


def test_a_worker_that_reserves_no_gpu_samples_on_the_cpu_though_ray_shows_it_all(eight_gpus: None) -> None:
    config = load_settings(RunConfig, Path("tiny"), ["run=unused"])
    actor = ray.remote(num_cpus=1)(seeing()).remote(worker_settings(config, run_parts(config)), "0")
    shown, device = ray.get(actor.card.remote(), timeout=300)
    ray.kill(actor)
    assert (shown, device) == ("0,1,2,3,4,5,6,7", "cpu")


def test_a_rank_whose_card_is_not_there_says_so_in_one_line(eight_gpus: None) -> None:
    config = load_settings(RunConfig, Path("tiny"), ["run=unused", "learner.gpus_per_rank=1"])
    learner = Learner(rank_settings(config, run_parts(config)))
    told = (
        r"^learner rank 0 reserves a GPU \(learner.gpus_per_rank\), but its process sees 0 \(CUDA_VISIBLE_DEVICES is "
        r"'[0-7]'\) where it needs exactly its own; .* or set learner.gpus_per_rank to 0\.$"
    )
    with pytest.raises(ValueError, match=told):
        learner.process_ids()


@pytest.mark.long
def test_pairs_on_two_nodes_share_their_nodes_cards() -> None:
    """Two nodes of two cards each, as processes of this machine."""
    from ray.cluster_utils import Cluster

    ray.shutdown()
    temporary = tempfile.mkdtemp(prefix="polytrace", dir="/tmp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", temporary)
        patch.setenv("RAY_worker_niceness", "0")
        node = {"num_cpus": 4, "num_gpus": 2}
        made = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
        try:
            made.add_node(**node)
            ray.init(address=made.address, log_to_driver=False)
            ranks, workers = seen(pairs(4, 0.5), 4, 0.5, 0.5)
            assert ranks == workers and len(set(ranks)) == 4
            assert len({node_id for node_id, _ in ranks}) == 2
            with pytest.raises(ValueError, match=r"^5 pairs .* but the 2 nodes of the cluster have room for 4;"):
                pairs(5, 0.5)
        finally:
            ray.shutdown()
            made.shutdown()
            shutil.rmtree(temporary, ignore_errors=True)
