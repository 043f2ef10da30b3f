"""Candidates from a file of pools beside the questions of an env."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from rich.console import Console

from envs.datasets.base import Env, TellsLost
from envs.example import Example
from envs.pool_files import Pools
from envs.shards.from_photos import UNREADABLE
from rl.pages.progress import bar
from rl.sources.pictures import ImagePlace, image_places
from rl.sources.pooled import Pooled, pool_of
from rl.sources.select import Chosen


class PooledEnv(Chosen):
    """An Env of the examples of another one whose images have a pool, with its candidates."""

    def __init__(self, env: Env, pools: Pools, console: Console | None) -> None:
        """Raises ValueError where no image of the env has a pool."""
        examples = [env[index] for index in bar(range(len(env)), f"pools of {env.split}", console, len(env))]
        places = image_places((env, example.image) for example in examples)
        self.left_out: dict[str, list[str]] = {}
        """Images without a pool, by why."""
        self._pools = pools
        self._places = {key: place for key, place in places.items() if self._has_pool(key, place)}
        kept = [index for index, example in enumerate(examples) if example.image.key in self._places]
        if not kept:
            raise ValueError(
                f"{pools.path}: no image of the split {env.split} has candidates there "
                f"({'; '.join(f'{reason}: {which[0]}' for reason, which in self.left_out.items())}); give the pools "
                "that were made of this data."
            )
        super().__init__(env, kept, [examples[index].id for index in kept])
        self.num_lost = len(examples) - len(kept) + (env.num_lost if isinstance(env, TellsLost) else 0)
        """Questions whose image has no pool or cannot be opened, and those that the env could not ask."""

    def _has_pool(self, key: str, place: ImagePlace) -> bool:
        file = None if place.file is None else place.file.path
        name = key if file is None else str(file.absolute())
        try:
            asked = Pooled(name, file, place.own_size(), place.upright)
        except (ValueError, OSError) as error:
            self.left_out.setdefault(UNREADABLE, []).append(f"{name} ({error})")
            return False
        pool, reason, detail = pool_of(self._pools, asked)
        if pool is None:
            self.left_out.setdefault(reason, []).append(f"{name}{detail}")
        return pool is not None

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the chosen questions, and of the file of pools."""
        return hashlib.sha256(f"{super().fingerprint}:{self._pools.sha256}".encode()).hexdigest()

    @property
    def notes(self) -> Mapping[str, Sequence[str]]:
        """What the other Env was read with, and images without a pool."""
        return {**super().notes, **self.left_out}

    def __getitem__(self, index: int) -> Example:
        """The chosen example at `index`, with its candidates."""
        return self._with_pool(super().__getitem__(index))

    def scene(self, index: int) -> list[Example]:
        """The chosen questions about the image of example `index`, with their candidates."""
        return [one if one.candidates is not None else self._with_pool(one) for one in super().scene(index)]

    def _with_pool(self, example: Example) -> Example:
        place = self._places[example.image.key]
        file = None if place.file is None else place.file.path
        pool = self._pools.of(example.image.key if file is None else str(file.absolute()), file)
        assert pool is not None
        masks = [place.view.mask(shape.mask(pool.height, pool.width)) for shape in pool.shapes]
        return replace(example, candidates=np.stack(masks))
