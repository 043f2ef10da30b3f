"""What a step collects: groups of scored rollouts, one group per question asked."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from envs.example import Example
from envs.polygons import Answer
from policies.families.base import Response


@dataclass(frozen=True)
class Rollout:
    """One answer of a group, scored."""

    index: int
    """Place in its group, 0 .. G - 1."""
    response: Response
    """What was sampled: T tokens with their log-probabilities."""
    text: str
    """The tokens as text, end token left out."""
    answer: Answer
    """The text read: polygons in pixels, or the status that says why not."""
    intersection_px: int
    """Pixels of both answer and truth; ignored pixels count nowhere, here and below."""
    answer_area_px: int
    """Pixels of the answer."""
    iou: float
    """Intersection over union, 0..1; where nothing is true, 1 for the status `empty` and 0 for any other."""
    terms: dict[str, float | None]
    """Each reward before weighting, by file name; in [0, 1], None where it does not apply."""
    policy_version: int
    """Version of the weights that sampled it."""
    seed: int
    """Key of its random stream, 0 .. 2**64 - 1."""
    token_places: NDArray[np.int16] | None = None
    """[T, 2] the instance and the vertex that each token says (rollout/token_places.py); None where it is not known,
    as from an archive."""


@dataclass(frozen=True)
class Group:
    """G answers to one example; run, step and position name it (one example may be asked many times)."""

    run: str
    """Name of the run."""
    step: int
    """Step of the main loop that asked."""
    position: int
    """Place among the groups of its step, 0 .. B - 1."""
    example: Example
    """What was asked, with its truth."""
    prompt_tokens: NDArray[np.int64]
    """[P] token ids of the prompt, image placeholders included."""
    policy_checksum: str
    """SHA-256 of the weights that sampled it (64 hex digits)."""
    temperature: float
    """The logits were divided by it."""
    rollouts: tuple[Rollout, ...]
    """[G] answers, in order of index."""
    totals: tuple[float, ...] = ()
    """[G] one total reward a rollout, made on the driver; () until then."""
    max_tokens: int | None = None
    """Longest answer that was allowed, tokens; None where it is not known."""
    grammar: bool | None = None
    """Whether only tokens of the codec's grammar were sampled; None where it is not known."""
