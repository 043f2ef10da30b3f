"""`polytrace bench boxes`: what a decoder behind boxes is worth with true, moved and predicted boxes.

true        the answer with the boxes of the true masks, written for it
moved s     the same, each side moved by a normal error of s of the box's own side
predicted   the policy's greedy answer
first pass  the same answer's masks before the decoder revised them
rectangles  its boxes, filled
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table

from envs.codecs.base import AnswerCodec
from envs.datasets.base import Env
from envs.datasets.tasks import box_px
from envs.example import Example
from envs.polygons import Answer, Box
from policies.families.base import DrawingPolicy, PolicyContract, PromptRows, Response
from policies.processor import Processor
from rl.config.plugins import policy_plugin
from rl.config.run import RunConfig
from rl.evaluation.scores import Interval, SceneScore, mean_interval, score_answer
from rl.run.parts import run_parts
from rollout.engines.shared import sample, with_masks
from rollout.settings import Sampling

MOVES = (0.05, 0.1, 0.2, 0.3)
"""Errors of sides, of a box's own side."""
_AT_ONCE = 32
"""Questions that are answered together."""
_BINS = 10
"""Of foretold IoU, for its calibration."""


@dataclass(frozen=True)
class Drawn:
    """What was drawn for the questions of a split that show something."""

    scores: dict[str, list[SceneScore]]
    """By the rows above: [S] each."""
    foretold: NDArray[np.float64]
    """[N] IoU that the decoder foretold of answers with one mask and one true one."""
    found: NDArray[np.float64]
    """[N] the IoU that these have."""

    @property
    def giou(self) -> dict[str, Interval]:
        """Mean IoU with intervals over questions."""
        return {name: mean_interval(np.array([each.iou for each in row])) for name, row in self.scores.items()}

    @property
    def boundary_iou(self) -> dict[str, Interval]:
        """Mean Boundary IoU likewise."""
        return {name: mean_interval(np.array([each.boundary_iou for each in row])) for name, row in self.scores.items()}

    @property
    def valid(self) -> float:
        """Share of greedy answers that read."""
        return float(np.mean([each.valid for each in self.scores["predicted"]]))

    @property
    def calibration_error(self) -> float:
        """Expected calibration error of the foretold IoU: over bins of it, the distance of both means, by number."""
        if not len(self.found):
            return float("nan")
        bins = np.minimum((self.foretold * _BINS).astype(int), _BINS - 1)
        gaps = [abs(self.foretold[bins == k].sum() - self.found[bins == k].sum()) for k in range(_BINS)]
        return float(sum(gaps) / len(self.found))


def measure(config: RunConfig, checkpoint: Path, split: str, num: int, console: Console) -> Drawn:
    """Masks for the first `num` questions of a split that show something.

    Raises ValueError or FileNotFoundError for what is wrong with the config, or a policy that draws no masks.
    """
    parts = run_parts(config)
    policy: PolicyContract = policy_plugin(config.policy | {"checkpoint": str(checkpoint)}, parts.codec).build().eval()
    if not isinstance(policy, DrawingPolicy):
        raise ValueError(f"policy.name is {config.policy.get('name')}, which draws no masks behind boxes.")
    env: Env = parts.env.build(split=split)
    examples = _shown(env, num)
    judge = _Judge(policy, parts.codec.build(), config.sampling.max_tokens)
    rows: dict[str, list[SceneScore]] = {}
    foretold, found = [], []
    for first in track(range(0, len(examples), _AT_ONCE), str(checkpoint), console=console, transient=True):
        part = examples[first : first + _AT_ONCE]
        for name, answers in judge.answers(env, part).items():
            scored = [score_answer(a, e.truth, e.id) for a, e in zip(answers, part, strict=True)]
            rows.setdefault(name, []).extend(scored)
            if name == "predicted":
                alone = [k for k, a in enumerate(answers) if len(a.instances) == 1 == len(part[k].truth.masks)]
                foretold += [answers[k].instances[0].score or 0.0 for k in alone]
                found += [scored[k].iou for k in alone]
    return Drawn(rows, np.array(foretold), np.array(found))


def _shown(env: Env, num: int) -> list[Example]:
    """The first `num` examples in which something is true, or all there are."""
    held: list[Example] = []
    for index in range(len(env)):
        example = env[index]
        if example.truth.masks.any():
            held.append(example)
        if len(held) == num:
            break
    return held


class _Judge:
    """Answers of one policy in every way that is compared."""

    def __init__(self, policy: PolicyContract, codec: AnswerCodec, max_tokens: int) -> None:
        self._policy, self._codec, self._max_tokens = policy, codec, max_tokens

    def answers(self, env: Env, examples: Sequence[Example]) -> dict[str, list[Answer]]:
        """The answers to examples, by row."""
        processor = self._policy.processor
        questions = [example.question(env.image(example.image)) for example in examples]
        rows = processor.rows(questions, [[np.array([processor.end_token])]] * len(examples))
        draws = np.zeros((len(examples), 1, self._max_tokens, 1 + len(processor.heads)))
        greedy = sample(self._policy, rows.to(self._policy.device), Sampling(0.0, self._max_tokens), draws)
        drawn = self._drawn(rows, greedy)
        made = {"true": self._written(rows, examples, lambda box, _: box)}
        for error in MOVES:
            made[f"moved {error:g}"] = self._written(rows, examples, _moved_by(error))
        made["predicted"] = drawn
        return {name: self._read(row, examples) for name, row in made.items()} | {
            "first pass": self._read([_first_pass(response) for response in drawn], examples),
            "rectangles": self._read([replace(response, masks=None) for response in drawn], examples),
        }

    def _written(
        self, rows: PromptRows, examples: Sequence[Example], moved: Callable[[Box, Example], Box]
    ) -> list[Response]:
        """Answers with the boxes of the true masks, moved; drawn."""
        return self._drawn(rows, [_saying(self._policy.processor, self._codec, each, moved) for each in examples])

    def _drawn(self, rows: PromptRows, responses: Sequence[Response]) -> list[Response]:
        return [row[0] for row in with_masks(self._policy, rows, [[response] for response in responses])]

    def _read(self, responses: Sequence[Response], examples: Sequence[Example]) -> list[Answer]:
        pairs = zip(responses, examples, strict=True)
        return [self._policy.processor.read_answer(response, example) for response, example in pairs]


def _saying(
    processor: Processor, codec: AnswerCodec, example: Example, moved: Callable[[Box, Example], Box]
) -> Response:
    """The answer that says the boxes of an example's true masks, moved."""
    boxes = [moved(box_px(mask), example) for mask in example.truth.masks if mask.any()]
    rings = [[np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], np.float64)] for x0, y0, x1, y1 in boxes]
    tokens = processor.answer_tokens(codec.encode(rings, example.image.height, example.image.width))
    return Response(tokens, np.zeros(len(tokens), np.float32), "stop")


def _moved_by(error: float) -> Callable[[Box, Example], Box]:
    """What moves each side by a normal error of so much of the box's own side, within the image; a function of the
    example."""

    def moved(box: Box, example: Example) -> Box:
        draws = np.random.default_rng([*example.id.encode(), int(1e3 * error)]).normal(size=4)
        x0, y0, x1, y1 = box
        dx0, dy0, dx1, dy1 = (error * draws * np.array([x1 - x0, y1 - y0, x1 - x0, y1 - y0])).tolist()
        left, right = sorted((x0 + dx0, x1 + dx1))
        upper, lower = sorted((y0 + dy0, y1 + dy1))
        height, width = example.image.height, example.image.width
        left, upper = min(max(left, 0.0), width - 1.0), min(max(upper, 0.0), height - 1.0)
        return left, upper, min(max(right, left + 1.0), float(width)), min(max(lower, upper + 1.0), float(height))

    return moved


def _first_pass(response: Response) -> Response:
    """The response with the masks of the decoder's first pass."""
    drawn = response.masks
    if drawn is None or drawn.passes is None:
        return response
    return replace(response, masks=replace(drawn, logits=drawn.passes[0]))


def table(found: Drawn) -> Table:
    """A row for each way to get boxes."""
    made = Table(title=f"{len(found.scores['true'])} questions that show something", box=SIMPLE_HEAD, pad_edge=False)
    for name in ("boxes", "gIoU", "boundary IoU"):
        made.add_column(name, justify="left" if name == "boxes" else "right", no_wrap=True)
    boundary = found.boundary_iou
    for name, interval in found.giou.items():
        made.add_row(name, str(interval), str(boundary[name]))
    return made


def line(found: Drawn) -> str:
    """How many answers read, and how well the IoU was foretold."""
    bias = float((found.foretold - found.found).mean()) if len(found.found) else float("nan")
    return (
        f"valid answers {found.valid:.1%}; IoU foretold of {len(found.found)} masks alone in their answer: calibration "
        f"error {found.calibration_error:.3f}, too high by {bias:.3f} in the mean"
    )


def as_json(found: Drawn) -> dict[str, object]:
    """What --json prints: `giou` and `boundary_iou` with value, low and high by row, `valid`, `calibration_error`."""

    def told(each: Mapping[str, Interval]) -> dict[str, dict[str, float]]:
        return {name: dict(zip(("value", "low", "high"), one.numbers, strict=True)) for name, one in each.items()}

    scores = {"giou": told(found.giou), "boundary_iou": told(found.boundary_iou)}
    return {**scores, "valid": found.valid, "calibration_error": found.calibration_error}
