"""Several ranks that train a refiner, as Ray actors, behind steps, save and load."""

import os
from pathlib import Path

import psutil

from rl.rank_actor import Reply
from rl.rank_crew import RankCrew, writing
from rl.rank_settings import RankPlace
from rl.refiner_rank import Preview, RefinerRank, RefinerRankSettings
from rollout import cluster


class RefinerActor:
    """A RefinerRank as Ray calls it."""

    def __init__(self, settings: RefinerRankSettings, place: RankPlace) -> None:
        self._rank = RefinerRank(settings, place)

    def begin(self) -> Reply:
        """Where this rank runs, for people."""
        return _reply(f"process {os.getpid()} on {cluster.node_address()}")

    def steps(self, end: int) -> Reply:
        """RefinerRank.steps."""
        return _reply(self._rank.steps(end))

    def preview(self, num: int) -> Reply:
        """RefinerRank.preview."""
        return _reply(self._rank.preview(num))

    def save(self, folder: Path, tag: str) -> Reply:
        """RefinerRank.save."""
        return _reply(self._rank.save(folder, tag))

    def load(self, folder: Path, tag: str) -> Reply:
        """RefinerRank.load."""
        return _reply(self._rank.load(folder, tag))

    def save_policy(self, folder: Path) -> Reply:
        """RefinerRank.save_policy."""
        return _reply(self._rank.save_policy(folder))


def _reply(value: object) -> Reply:
    return Reply(value, psutil.Process().memory_info().rss / 2**30)


class RefinerCrew:
    """All ranks together; raises as RankCrew.ask does. Ray must run (rollout/cluster.py)."""

    def __init__(self, settings: RefinerRankSettings) -> None:
        self._crew = RankCrew(RefinerActor, settings, settings.training.ranks, settings.training.gpus_per_rank)

    def steps(self, end: int) -> list[dict[str, float]]:
        """Train up to step `end`; what rank 0 logs of each."""
        logs: list[dict[str, float]] = self._crew.ask("steps", [rank.steps.remote(end) for rank in self._crew.actors])[
            0
        ]
        return logs

    def preview(self, num: int) -> list[Preview]:
        """The first few held-out pairs, refined as the weights are now."""
        calls = [rank.preview.remote(num) for rank in self._crew.actors]
        previews: list[Preview] = self._crew.ask("preview", calls)[0]
        return previews

    def save(self, folder: Path, tag: str) -> None:
        """Write what is needed to go on, below folder/tag."""
        with writing("this checkpoint", folder / tag):
            self._crew.ask("save", [rank.save.remote(folder.absolute(), tag) for rank in self._crew.actors])

    def load(self, folder: Path, tag: str) -> None:
        """Go on from `save`."""
        self._crew.ask("load", [rank.load.remote(folder.absolute(), tag) for rank in self._crew.actors])

    def save_policy(self, folder: Path) -> None:
        """Write the refiner."""
        with writing("this refiner", folder):
            self._crew.ask("save_policy", [rank.save_policy.remote(folder.absolute()) for rank in self._crew.actors])

    def close(self) -> None:
        """End the ranks."""
        self._crew.close()
