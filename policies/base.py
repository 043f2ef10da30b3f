"""What flows into and out of a policy, and what a model family must do to be one.

Dimension letters: B groups in a batch, G answers a group, P prompt tokens, T choices of a response, H W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.polygons import Answer


@dataclass(frozen=True)
class Response:
    """One sampled answer, as the model made it. Every choice is a token of the vocabulary."""

    tokens: NDArray[np.int64]
    """[T] token ids; the end token is the last one if the model stopped by itself."""
    logprobs: NDArray[np.float32]
    """[T] log-probability of each token under the sampler, at the sampling temperature."""
    finish: str
    """"stop" at the end token, "length" where the limit cut it."""


@dataclass(frozen=True)
class PromptRows:
    """A few groups, one row a group: the prompt once, then G responses that each see the prompt and themselves."""

    prompt_tokens: Tensor
    """[B, P] int64, padded on the left, image placeholders included."""
    prompt_mask: Tensor
    """[B, P] bool, True on real tokens."""
    pixel_values: Tensor
    """[patches, channels] float: patches of all images, in row order, as the family's image processor cuts them."""
    image_grid: Tensor
    """[B, 3] int64: (1, rows, columns) of patches of each image."""
    response_tokens: Tensor
    """[B, G, T] int64, padded on the right. In supervised rows a response may begin with its own question."""
    response_mask: Tensor
    """[B, G, T] bool, True on real tokens."""
    scored_mask: Tensor
    """[B, G, T] bool, True where a log-probability or a loss is wanted; a subset of response_mask."""


@dataclass(frozen=True)
class VisionFeatures:
    """Frozen features of a few images of one size, for the refiner."""

    final: Tensor
    """[B, C, h, w] float: output of the vision tower (what the language model sees)."""
    early: Tensor
    """[B, E, h, w] float: output of an early block, where edges still are."""


class PolicyContract(Protocol):
    """What samplers, learner and refiner ask of a model family; a family is an nn.Module in one file of this folder."""

    def rows(
        self,
        images: Sequence[NDArray[np.uint8]],
        phrases: Sequence[str],
        responses: Sequence[Sequence[NDArray[np.int64]]],
    ) -> PromptRows:
        """Rows for B questions (image [H, W, 3], phrase) with the token ids of up to G responses each."""
        ...

    def forward(self, rows: PromptRows, temperature: float = 1.0) -> Tensor:
        """[B, G, T] float32 log-probabilities of the response tokens, logits divided by temperature.

        0 outside scored_mask.
        """
        ...

    def read(self, response: Response, height: int, width: int) -> Answer:
        """The response as polygons in pixels of a height x width image; never raises on model output."""
        ...

    def vision_features(self, images: Sequence[NDArray[np.uint8]]) -> VisionFeatures:
        """Features of images [H, W, 3] of one size, without gradient."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        ...
