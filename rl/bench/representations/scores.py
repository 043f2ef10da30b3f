"""What the stages are worth on the same held-out questions, and how long an answer takes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from envs.datasets.base import Env
from envs.example import Example
from envs.geometry.contours import mask_from_rings, rings_from_mask
from envs.geometry.pools import oracle
from envs.polygons import Answer, Ring
from policies.families.base import Response
from policies.refiner.mask_refiner import MaskRefiner
from rl.bench.representations.trainings import RL, RL_REFINED, Stage
from rl.bench.side_by_side import seconds_of
from rl.evaluation.scores import SceneScore, score_answer, score_mask
from rl.refiner.scenes import CoarseScenes, refine_scenes
from rl.run.parts import run_parts
from rollout.engines.base import Sampler
from rollout.settings import Sampling

_AT_ONCE = 32
"""Questions that are answered together where nothing is timed."""
SHOWN = 12
"""Questions whose answers are shown."""
TIMED = 100
"""Questions that are timed, one at a time."""


@dataclass(frozen=True)
class Scored:
    """A stage on S held-out questions."""

    stage: Stage
    scores: Sequence[SceneScore]
    """By question, in one order for all."""
    tokens: float
    """Mean tokens of an answer, its end included; of a policy that chooses, candidates that it judged."""
    oracle: float | None
    """Mean IoU of the best choice from the candidates; None where there are none."""
    drawn: Sequence[Sequence[Ring]] = ()
    """What was drawn for the first questions, as rings."""


@dataclass(frozen=True)
class Timed:
    """Seconds of single questions, asked of all in turn."""

    stage: Stage
    seconds: list[float] = field(default_factory=list)
    """From image and phrase to a mask, by question; the first call of all is not among them."""


class _Answering:
    """A stage that answers questions."""

    def __init__(self, stage: Stage) -> None:
        parts = run_parts(stage.config)
        self.env: Env = parts.env.build(split=stage.config.evaluation.final_split)
        self._sampler: Sampler[Any] = parts.engine.build().open(parts.policy, "cpu")
        self._sampling = Sampling(0.0, stage.config.sampling.max_tokens)
        policy = self._sampler.policy
        # Weights were compared when the refiner was made.
        self._refiner = None if stage.refiner is None else MaskRefiner.load(stage.refiner, None)
        self._policy = policy

    def responses(self, examples: Sequence[Example], images: Sequence[NDArray[np.uint8]]) -> list[Response]:
        """Greedy responses."""
        questions = [example.question(image) for example, image in zip(examples, images, strict=True)]
        prepared = self._sampler.prepare(questions, self._sampling)
        return [row[0] for row in self._sampler.sample_prepared(prepared, self._sampling, [[0]] * len(examples))]

    def answers(self, responses: Sequence[Response], examples: Sequence[Example]) -> list[Answer]:
        """The responses, read."""
        pairs = zip(responses, examples, strict=True)
        return [self._policy.processor.read_answer(response, example) for response, example in pairs]

    def refined(
        self, answers: Sequence[Answer], examples: Sequence[Example], images: Sequence[NDArray[np.uint8]]
    ) -> list[NDArray[np.bool_]] | None:
        """Masks [H, W] that the refiner makes of answers; None without one."""
        if self._refiner is None:
            return None
        refs = [example.image for example in examples]
        coarse = [mask_from_rings(a.rings_px, ref.height, ref.width) for a, ref in zip(answers, refs, strict=True)]
        scenes = CoarseScenes(
            images,
            coarse,
            [example.truth for example in examples],
            [answer.status for answer in answers],
            [example.prompt.told for example in examples],
            [example.id for example in examples],
        )
        return refine_scenes(self._refiner, self._policy, scenes)[0]


def score(stage: Stage, console: Console) -> Scored:
    """Greedy answers of a stage to the final questions of its config."""
    answering, evaluation = _Answering(stage), stage.config.evaluation
    num = min(evaluation.final_scenes, len(answering.env))
    scores, tokens, best, drawn = list[SceneScore](), list[int](), list[float](), list[Sequence[Ring]]()
    title = f"{stage.representation.name}, seed {stage.seed}"
    for first in track(range(0, num, _AT_ONCE), title, console=console, transient=True):
        examples = [answering.env[index] for index in range(first, min(first + _AT_ONCE, num))]
        images = [answering.env.image(example.image) for example in examples]
        responses = answering.responses(examples, images)
        answers = answering.answers(responses, examples)
        masks = answering.refined(answers, examples, images)
        for k, (example, answer) in enumerate(zip(examples, answers, strict=True)):
            truth = example.truth
            scores.append(
                score_answer(answer, truth, example.id, example.prompt.asked)
                if masks is None
                else score_mask(masks[k], truth, answer.status, example.id)
            )
            if example.candidates is not None:
                best.append(oracle(example.candidates, truth.union))
        tokens += [len(response.tokens) for response in responses]
        drawn += [answer.rings_px for answer in answers] if masks is None else map(rings_from_mask, masks)
    found = float(np.mean(best)) if best else None
    return Scored(stage, scores, float(np.mean(tokens)), found, drawn[:SHOWN])


def refuse_other_answers(scored: Sequence[Scored]) -> None:
    """Raise ValueError where two stages were not asked the same questions."""
    first = scored[0]
    for other in scored:
        for one, two in zip(first.scores, other.scores, strict=True):
            if one.example_id != two.example_id:
                names = first.stage.representation.name, other.stage.representation.name
                raise ValueError(
                    f"{names[0]} was asked about {one.example_id} where {names[1]} was asked about {two.example_id}; "
                    "give both the same env but for its candidates."
                )


def time_in_turn(stages: Sequence[Stage], num: int = TIMED) -> list[Timed]:
    """Seconds of single questions, of one seed and after RL, each question asked of every stage before the next."""
    chosen = [stage for stage in stages if stage.seed == 0 and stage.stage in (RL, RL_REFINED)]
    asked = [(Timed(stage), _Answering(stage)) for stage in chosen]
    for index in range(num + 1):
        for timed, answering in asked:
            example = answering.env[index % len(answering.env)]
            image = answering.env.image(example.image)

            def ask(one: _Answering = answering, of: Example = example, shown: NDArray[np.uint8] = image) -> None:
                [read] = one.answers(one.responses([of], [shown]), [of])
                if one.refined([read], [of], [shown]) is None:
                    mask_from_rings(read.rings_px, of.image.height, of.image.width)

            seconds = seconds_of(ask)
            if index:
                timed.seconds.append(seconds)
    return [timed for timed, _ in asked]
