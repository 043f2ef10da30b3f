"""A policy asked about images by stages: its greedy answer to a phrase, as a mask in the pixels of the image."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from envs.example import Example, ImageRef, Prompt, Question, Truth
from envs.geometry.contours import mask_from_rings
from envs.images import View
from envs.plugin import Plugin
from envs.polygons import Ring
from rollout.engines.shared import Engine, SharedSampler
from rollout.settings import Sampling

_UNKNOWN = Truth(np.zeros((0, 1, 1), np.bool_))


@dataclass(frozen=True)
class AskedPolicy:
    """A policy that writes outlines, and how it is asked; small, and sent to workers."""

    plugin: Plugin
    """Recipe of the policy, its checkpoint and codec in it."""
    sampling: Sampling
    """Longest answer and the like; the temperature is 0."""
    view: View
    """How images are shown to it."""

    @property
    def folder(self) -> Path:
        """Folder of its checkpoint."""
        return Path(self.plugin.settings["checkpoint"])


@dataclass(frozen=True)
class Drawn:
    """A greedy answer."""

    instances: NDArray[np.bool_]
    """[K, H, W] what the outlines of each object fill, in pixels of the image; none of an answer that cannot be read,
    or that draws nothing."""
    logprob: float
    """Mean log-probability of its tokens."""

    @property
    def mask(self) -> NDArray[np.bool_]:
        """[H, W] all that it draws."""
        return np.asarray(self.instances.any(axis=0))


class Asker:
    """A policy, loaded; on a GPU where there is one."""

    def __init__(self, asked: AskedPolicy, batch: int) -> None:
        self._view, self._batch = asked.view, batch
        self._sampling = replace(asked.sampling, temperature=0.0, routing_replay=False)
        sampler: SharedSampler = Engine().open(asked.plugin, "cuda" if torch.cuda.is_available() else "cpu")
        self._sampler = sampler

    def drawn(self, asked: Sequence[tuple[NDArray[np.uint8], str]]) -> list[Drawn]:
        """The answer to each (image [H, W, 3], phrase); the same whatever stands beside, but for rounding."""
        found: list[Drawn] = []
        for first in range(0, len(asked), self._batch):
            some = asked[first : first + self._batch]
            views = [self._view.pixels(Image.fromarray(pixels)) for pixels, _ in some]
            questions = [Question(view, Prompt.of_text(phrase)) for view, (_, phrase) in zip(views, some, strict=True)]
            responses = self._sampler.sample(questions, self._sampling, [[0]] * len(some))
            for (pixels, _), question, [response] in zip(some, questions, responses, strict=True):
                size = (pixels.shape[0], pixels.shape[1])
                about = Example("", ImageRef("", "", *question.image.shape[:2]), question.prompt, _UNKNOWN, "", "", "")
                answer = self._sampler.policy.processor.read_answer(response, about)
                masks = [self._filled(instance.rings_px, size) for instance in answer.instances]
                drawn = [mask for mask in masks if mask.any()]
                logprobs = np.asarray(response.logprobs, np.float64)
                certain = float(logprobs.mean()) if len(logprobs) else 0.0
                found.append(Drawn(np.array(drawn, np.bool_).reshape(-1, *size), certain))
        return found

    def _filled(self, rings: Sequence[Ring], size: tuple[int, int]) -> NDArray[np.bool_]:
        return mask_from_rings(self._view.rings_px(rings, *size), *size)
