"""What a rollout worker asks of whatever samples for it, and how answers are drawn.

An engine is a file `NAME.py` here with a class `Engine`: its settings, which travel. Opened, it is a sampler
that holds a model. A sampler is a plain object in the worker's process; nothing in it knows of Ray.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from envs.example import Question
from envs.plugin import Plugin
from policies.families.base import PolicyContract, Response
from policies.weights import Bucket
from rollout.settings import Sampling

Prepared = TypeVar("Prepared")
"""What a sampler makes of questions before it samples."""


def uniforms(key: tuple[int, ...], max_tokens: int, heads: int = 0) -> NDArray[np.float64]:
    """[max_tokens, 1 + heads] numbers in [0, 1) for one answer, a function of its key alone.

    Those of the tokens, in the first column, are the same whatever further heads the policy has.
    """
    streams = [list(key), *([*key, head] for head in range(1, 1 + heads))]
    return np.stack([np.random.default_rng(stream).random(max_tokens) for stream in streams], axis=1)


class Sampler(Protocol[Prepared]):
    """A model that answers, in this process."""

    policy: PolicyContract
    """Model family of the checkpoint; with another engine's model it need not hold the weights."""

    def load_bucket(self, bucket: Bucket) -> None:
        """Take over some weights. Raises ValueError or KeyError where they do not fit the model."""
        ...

    def held_checksum(self) -> str:
        """Checksum of the weights taken over, comparable to the sender's; docs of an engine say what it proves."""
        ...

    def load_checkpoint(self, checkpoint: Path) -> None:
        """Replace the weights by those of a Hugging Face folder."""
        ...

    def buckets(self) -> Iterator[Bucket]:
        """The weights that are held, cut into buckets, under the names that a learner gives them."""
        ...

    def prepare(self, questions: Sequence[Question], sampling: Sampling) -> Prepared:
        """All of sampling that needs no weights: prompts, and images as the model is shown them.

        Any thread may ask for the next questions while another samples. ValueError for a question that the policy
        cannot be asked.
        """
        ...

    def sample_prepared(
        self, prepared: Prepared, sampling: Sampling, seeds: Sequence[Sequence[int]]
    ) -> list[list[Response]]:
        """[B][G] responses to B questions that were prepared; seeds: [B][G] keys of the answers' random streams."""
        ...

    def sleep(self, weights: bool) -> None:
        """Let go of the memory that sampling needs, and of that of the weights that a learner sends where `weights`.

        Until `wake_weights`, new weights and `wake_caches` nothing may be asked of it but another `sleep`.
        """
        ...

    def wake_weights(self) -> None:
        """Make room again for the weights, which have no value until they are loaded; nothing where it is awake."""
        ...

    def wake_caches(self) -> None:
        """Make room again for all else that sampling needs, once the weights are there; nothing where it is awake."""
        ...


class Engine(Protocol):
    """Settings of an engine: a dataclass in a file of its own, checked when it is made."""

    def check(self, sampling: Sampling, gpus_per_worker: float) -> None:
        """Raises ValueError where this engine cannot draw answers so, or not with so many GPUs."""
        ...

    def open(self, policy: Plugin, device: str, sleeps: bool = False) -> Sampler[Any]:
        """A sampler that holds the policy's checkpoint, awake.

        device: cuda or cpu. sleeps: whether `sleep` is ever called, which some engines must know from the start.
        """
        ...
