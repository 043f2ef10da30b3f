"""Example shards written of an Env, scene by scene: what envs/datasets/shards.py opens."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from envs.datasets.base import Env, FromFiles, TellsLost
from envs.example import Example, ImageRef
from envs.images import ShownFile
from envs.shards.files import Card
from envs.shards.rows import Scene, example_row, png_of
from rollout.shard_writer import About, ShardWriter


class SplitWriter:
    """One split of an Env, written scene by scene."""

    def __init__(self, folder: Path, env: Env, provenance: Mapping[str, Any], embed: bool) -> None:
        """Begin in `folder`, that of the split, or go on there.

        provenance: where the examples come from, in terms of JSON. embed: write pixels into the shards, also of an Env
        that has files. Raises ValueError where the folder holds something else.
        """
        self._env = env
        self._files = env if isinstance(env, FromFiles) and not embed else None
        embedded = embed or not _has_files(env)
        self._shards = ShardWriter(folder, {**provenance, "embedded": embedded}, env.fingerprint)

    @property
    def is_whole(self) -> bool:
        """Whether the split is prepared already."""
        return self._shards.is_whole

    @property
    def next_index(self) -> int:
        """The first example that is not written yet."""
        return len(self._shards.order)

    def add(self, index: int) -> None:
        """Write the example at `index`, which must be `next_index`, and its scene where its image is a new one."""
        example, shards = self._env[index], self._shards
        if example.image.key not in shards.scenes:
            self._add_scene(self._env.scene(index), example)
        if example.id not in shards.row_of:
            self._add_row(example, shards.scenes[example.image.key], None)
        shards.order.append(shards.row_of[example.id])
        if shards.is_full:
            shards.write_shard()

    def _add_scene(self, scene: list[Example], asked: Example) -> None:
        place = Scene(self._shards.num_rows, len(scene))
        png = None if self._file_of(asked.image) else png_of(self._env.image(asked.image))
        for example in scene or [asked]:
            self._add_row(example, place, png)
            png = None

    def _add_row(self, example: Example, scene: Scene, png: bytes | None) -> None:
        self._shards.add_row(example_row(example, scene, self._file_of(example.image), png))

    def _file_of(self, image: ImageRef) -> ShownFile | None:
        return self._files.image_file(image) if self._files else None

    def finish(self) -> Card:
        """Write what is left and, last, the card; every example must have been added."""
        env = self._env
        num_lost = env.num_lost if isinstance(env, TellsLost) else 0
        return self._shards.finish(About(env.fingerprint, env.notes, env.phrase_words(), num_lost))


def _has_files(env: Env) -> bool:
    """Whether the first image of an Env is a file."""
    return isinstance(env, FromFiles) and len(env) > 0 and env.image_file(env[0].image) is not None
