"""Examples of an archive with their images, for pages that show answers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from envs.datasets.base import Env
from envs.example import ImageRef, Truth
from envs.plugin import Plugin
from rl.config.load import read_mapping
from rl.config.plugins import env_plugin
from rollout.archive.archive import RolloutArchive
from rollout.archive.schema import truth_from_row

_GREY = 128


@dataclass(frozen=True)
class Asked:
    """An example of the archive, with its image."""

    phrase: str
    image: NDArray[np.uint8]
    """RGB image [H, W, 3]; plain grey where it is not to be had any more."""
    problem: str
    """Reason why the image is not to be had; "" where it is."""
    truth: Truth


def asked_examples(run: Path, ids: set[str]) -> dict[str, Asked]:
    """The examples of these ids, with their images from the data set that the run's config names."""
    images = _Images(run)
    return {
        row["example_id"]: images.asked(row)
        for batch in RolloutArchive(run / "archive").examples()
        for row in _rows_of(batch, ids)
    }


def _rows_of(batch: pa.RecordBatch, ids: set[str]) -> Iterator[dict[str, Any]]:
    """The rows of these examples; only they are turned into Python objects."""
    for place, example_id in enumerate(batch.column("example_id").to_pylist()):
        if example_id in ids:
            yield batch.slice(place, 1).to_pylist()[0]


class _Images:
    """Images of a run's examples, of each split by its own Env."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._envs: dict[str, Env | str] = {}  # by split; why there is none, where there is none

    def asked(self, row: Mapping[str, Any]) -> Asked:
        """The example of a row of the examples table."""
        ref = ImageRef(*(row[key] for key in ("image_key", "image_sha256", "height", "width")))
        env = self._env(row["split"])
        image, problem = np.full((ref.height, ref.width, 3), _GREY, np.uint8), ""
        if isinstance(env, str):
            problem = env
        else:
            try:
                image = env.image(ref)
            except (ValueError, OSError) as error:  # numbers and outlines are worth showing without it
                problem = str(error)
        return Asked(row["prompt"], image, problem, truth_from_row(row))

    def _env(self, split: str) -> Env | str:
        if split not in self._envs:
            try:
                self._envs[split] = _plugin(self._run / "config.yaml").build(split=split)
            except (ValueError, OSError) as error:
                self._envs[split] = f"the run's data set cannot be opened: {error}"
        return self._envs[split]


def _plugin(config: Path) -> Plugin:
    settings = read_mapping(config)
    if "env" not in settings:
        raise ValueError(f"{config} names no env")
    return env_plugin(settings["env"])
