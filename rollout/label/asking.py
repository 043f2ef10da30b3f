"""A policy asked about images by stages: its greedy answer to a phrase, or what its decoder draws in a box, as masks in
the pixels of the image.
"""

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
from envs.polygons import Answer, Box, Ring
from policies.decoders.processor import MaskCodec
from policies.families.base import Response
from rollout.engines.shared import Engine, SharedSampler, with_masks
from rollout.settings import Sampling

_UNKNOWN = Truth(np.zeros((0, 1, 1), np.bool_))


@dataclass(frozen=True)
class AskedPolicy:
    """A policy that draws what a phrase means, and how it is asked; small, and sent to workers."""

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

    @property
    def draws_in_boxes(self) -> bool:
        """Whether its answers are boxes in which a decoder draws masks."""
        return isinstance(self.plugin.settings["codec"], MaskCodec)


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
            questions = [self._question(pixels, phrase) for pixels, phrase in some]
            responses = self._sampler.sample(questions, self._sampling, [[0]] * len(some))
            for (pixels, _), question, [response] in zip(some, questions, responses, strict=True):
                size = (pixels.shape[0], pixels.shape[1])
                answer = self._read(response, question)
                masks = [self._filled(instance.rings_px, size) for instance in answer.instances]
                drawn = [mask for mask in masks if mask.any()]
                logprobs = np.asarray(response.logprobs, np.float64)
                certain = float(logprobs.mean()) if len(logprobs) else 0.0
                found.append(Drawn(np.array(drawn, np.bool_).reshape(-1, *size), certain))
        return found

    def drawn_in(self, asked: Sequence[tuple[NDArray[np.uint8], str, Box]]) -> list[tuple[NDArray[np.bool_], float]]:
        """What a policy with a decoder behind its boxes draws in each box of (image [H, W, 3], phrase, box px), as if
        it had said that box itself: a mask [H, W], and the IoU with the truth that the decoder foretells of it.
        """
        found: list[tuple[NDArray[np.bool_], float]] = []
        processor = self._sampler.policy.processor
        for first in range(0, len(asked), self._batch):
            some = asked[first : first + self._batch]
            questions = [self._question(pixels, phrase) for pixels, phrase, _ in some]
            rows = processor.rows(questions, [[np.array([processor.end_token])]] * len(some))
            said = [
                self._saying(box, pixels, question) for (pixels, _, box), question in zip(some, questions, strict=True)
            ]
            for (pixels, _, _), question, [response] in zip(
                some, questions, with_masks(self._sampler.policy, rows, [[one] for one in said]), strict=True
            ):
                size = (pixels.shape[0], pixels.shape[1])
                [instance, *_] = self._read(response, question).instances or [None]
                mask = np.zeros(size, np.bool_) if instance is None else self._filled(instance.rings_px, size)
                found.append((mask, 0.0 if instance is None else instance.score or 0.0))
        return found

    def _saying(self, box: Box, pixels: NDArray[np.uint8], question: Question) -> Response:
        """The answer that says a box, px of the image, about the view of it."""
        height, width = question.image.shape[:2]
        shown = self._view.size(pixels.shape[0], pixels.shape[1])
        x0, y0, x1, y1 = (np.array(box) * np.tile([shown[1] / pixels.shape[1], shown[0] / pixels.shape[0]], 2)).tolist()
        rings = [[np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], np.float64)]]
        processor = self._sampler.policy.processor
        tokens = processor.answer_tokens(processor.codec.encode(rings, height, width))
        return Response(tokens, np.zeros(len(tokens), np.float32), "stop")

    def _question(self, pixels: NDArray[np.uint8], phrase: str) -> Question:
        return Question(self._view.pixels(Image.fromarray(pixels)), Prompt.of_text(phrase))

    def _read(self, response: Response, question: Question) -> Answer:
        about = Example("", ImageRef("", "", *question.image.shape[:2]), question.prompt, _UNKNOWN, "", "", "")
        return self._sampler.policy.processor.read_answer(response, about)

    def _filled(self, rings: Sequence[Ring], size: tuple[int, int]) -> NDArray[np.bool_]:
        return mask_from_rings(self._view.rings_px(rings, *size), *size)
