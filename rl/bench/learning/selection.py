"""`polytrace bench selection`: what choosing among candidates is worth, beside what pools allow and simple rules reach,
and beside a model that writes the numbers of the chosen, as in RAS's ablation (arXiv 2506.05342).

oracle    the best choice that adding and leaving candidates finds by the truth (envs/geometry/pools.py)
meant     the candidates that supervision teaches: of each true mask the one of highest IoU
all, none, largest    rules that look at no image

Every policy answers the same questions in turn, and who begins changes from call to call, so that what else the machine
does meets all of them alike.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table

from envs.codecs import mask_group
from envs.codecs.base import ChoosingCodec
from envs.datasets.base import Env
from envs.example import Example, Question
from envs.geometry.pools import meant, oracle
from envs.plugin import Plugin
from policies.families.base import DirectPolicy, PolicyContract, Response
from policies.processor import Processor
from policies.selection.numbers import NumbersProcessor
from rl.bench.side_by_side import seconds_of
from rl.config.plugins import policy_plugin
from rl.config.run import RunConfig
from rl.evaluation.scores import (
    CONFIDENCE,
    Interval,
    SceneScore,
    mean_interval,
    paired_difference,
    resample_indices,
    score_answer,
    summarise,
)
from rl.run.parts import run_parts
from rollout.engines import direct
from rollout.engines.shared import sample
from rollout.settings import Sampling

WRITTEN = "autoregressive"
"""What the policy that writes numbers is called in tables."""
ONE_PASS = "one_pass"
"""What --json calls the first checkpoint, the one that others are compared with, beside its folder."""
_WRITTEN_CODEC = Plugin("envs.codecs", "Codec", "mask_numbers", {})
Choice = NDArray[np.bool_]
RULES: Mapping[str, Callable[[Example, Choice], Choice]] = {
    "all": lambda _, pool: np.ones(len(pool), np.bool_),
    "none": lambda _, pool: np.zeros(len(pool), np.bool_),
    "largest": lambda _, pool: np.arange(len(pool)) == pool.sum(axis=(1, 2)).argmax(),
    "meant": lambda example, pool: meant(pool, example.truth.masks),
}
"""Choices that take no model."""


@dataclass(frozen=True)
class Chooser:
    """A policy that answers questions with candidates."""

    processor: Processor
    answers: Callable[[Sequence[Question]], list[Response]]
    """Its greedy answers to some questions."""
    seconds: list[float] = field(default_factory=list)
    """Of each call of `answers`, from images and masks to choices."""
    scores: list[SceneScore] = field(default_factory=list)
    """Of each question."""
    places: list[int] = field(default_factory=list)
    """Of each answer: tokens that it took, its end included, or candidates that were judged."""


@dataclass(frozen=True)
class Selected:
    """Choices for S questions."""

    oracle: NDArray[np.float64]
    """[S] IoU of the best choice."""
    rules: dict[str, list[SceneScore]]
    """[S] of each of RULES."""
    choosers: dict[str, Chooser]
    """Checkpoints by their folders, the first being what others are compared with, and WRITTEN where there is one."""

    @property
    def giou(self) -> dict[str, Interval]:
        """Means with intervals over questions."""
        return {"oracle": mean_interval(self.oracle)} | {
            name: mean_interval([score.iou for score in scores]) for name, scores in self._scores.items()
        }

    @property
    def ciou(self) -> dict[str, Interval]:
        """Summed intersections over summed unions, of all but the oracle."""
        return {name: summarise(scores).ciou for name, scores in self._scores.items()}

    @property
    def _scores(self) -> dict[str, list[SceneScore]]:
        return self.rules | {name: each.scores for name, each in self.choosers.items()}

    @property
    def gains(self) -> dict[str, Interval]:
        """gIoU of each checkpoint less that of the first, paired by question."""
        first, *others = self.choosers
        return {name: paired_difference(self.choosers[first].scores, self.choosers[name].scores) for name in others}

    @property
    def milliseconds(self) -> dict[str, float]:
        """Of a question, by checkpoint."""
        return {name: 1e3 * sum(each.seconds) / len(self.oracle) for name, each in self.choosers.items()}

    @property
    def ratio(self) -> Interval | None:
        """Seconds of writing numbers over those of the first checkpoint's one pass, with an interval over calls."""
        if WRITTEN not in self.choosers:
            return None
        first = np.array(next(iter(self.choosers.values())).seconds)
        rival = np.array(self.choosers[WRITTEN].seconds)
        drawn = resample_indices(len(first), seed=0)
        tail = (1 - CONFIDENCE) / 2
        low, high = np.quantile(rival[drawn].sum(1) / first[drawn].sum(1), [tail, 1 - tail])
        return Interval(float(rival.sum() / first.sum()), float(low), float(high))


def measure(  # noqa: PLR0913  # the options of the command
    config: RunConfig,
    checkpoints: Sequence[Path],
    split: str,
    num: int,
    console: Console,
    written: Path | None = None,
    at_once: int = 1,
) -> Selected:
    """Greedy choices of each checkpoint, of one that writes numbers, and the rules', for the first `num` questions of a
    split.

    at_once: questions that are answered together. Raises ValueError or FileNotFoundError for what is wrong with the
    config, or a policy that does not choose.
    """
    parts = run_parts(config)
    env: Env = parts.env.build(split=split)
    examples = [env[index] for index in range(min(num, len(env)))]
    best = np.array([oracle(_pool(each), each.truth.union) for each in examples])
    rules = {name: [_chosen(each, rule(each, _pool(each))) for each in examples] for name, rule in RULES.items()}
    choosers = {str(each): _at_once(config, parts.codec, each) for each in checkpoints}
    if written is not None:
        choosers[WRITTEN] = _writing(config, written)
    batches = [examples[first : first + at_once] for first in range(0, len(examples), at_once)]
    shown = track(batches, "answering", console=console, transient=True)
    for k, part in enumerate(shown):
        questions = [each.question(env.image(each.image)) for each in part]
        if k == 0:  # what a first call takes longer is nobody's
            for chooser in choosers.values():
                chooser.answers(questions)
        order = [*choosers.values()]
        first = k % len(order)
        for chooser in (*order[first:], *order[:first]):
            _ask(chooser, part, questions)
    return Selected(best, rules, choosers)


def _ask(chooser: Chooser, examples: Sequence[Example], questions: Sequence[Question]) -> None:
    """Let a policy answer, and note how well and how long."""
    found = list[Response]()
    chooser.seconds.append(seconds_of(lambda: found.extend(chooser.answers(questions))))
    for example, response in zip(examples, found, strict=True):
        answer = chooser.processor.read_answer(response, example)
        chooser.scores.append(score_answer(answer, example.truth, example.id))
        chooser.places.append(len(response.tokens))


def _at_once(config: RunConfig, codec: Plugin, checkpoint: Path) -> Chooser:
    """A policy that chooses in one pass."""
    policy: PolicyContract = policy_plugin(config.policy | {"checkpoint": str(checkpoint)}, codec).build().eval()
    if not isinstance(policy, DirectPolicy) or not isinstance(policy.processor.codec, ChoosingCodec):
        raise ValueError(f"policy.name is {config.policy.get('name')}, which does not choose among candidates at once.")
    return Chooser(policy.processor, lambda questions: direct.greedy(policy, questions))


def _writing(config: RunConfig, checkpoint: Path) -> Chooser:
    """The rival, mask_numbers, with the settings that both kinds of policies have."""
    same = {name: value for name, value in config.policy.items() if name not in ("name", "order", "checkpoint")}
    recipe = policy_plugin(same | {"name": "mask_numbers", "checkpoint": str(checkpoint)}, _WRITTEN_CODEC)
    policy: PolicyContract = recipe.build().eval()
    policy.prepare_sampling()
    processor = policy.processor
    assert isinstance(processor, NumbersProcessor)

    def answers(questions: Sequence[Question]) -> list[Response]:
        most = processor.most_places(max(len(each.candidates) for each in questions if each.candidates is not None))
        rows = policy.rows(questions, [[np.array([processor.end_token])]] * len(questions))
        return sample(policy, rows, Sampling(0.0, most), np.zeros((len(questions), 1, most)))

    return Chooser(processor, answers)


def _pool(example: Example) -> NDArray[np.bool_]:
    if example.candidates is None:
        raise ValueError(f"{example.id} has no candidates to choose from; set env.candidates of composed scenes.")
    return example.candidates


def _chosen(example: Example, choice: Choice) -> SceneScore:
    """What a choice [N] is worth."""
    return score_answer(mask_group.answer_of(choice, _pool(example)), example.truth, example.id)


def table(found: Selected) -> Table:
    """A row for each way to choose."""
    made = Table(title=f"{len(found.oracle)} questions", box=SIMPLE_HEAD, pad_edge=False)
    for name in ("", "gIoU", "cIoU", "less the first checkpoint", "valid", "ms a question"):
        made.add_column(name, justify="left" if not name else "right", no_wrap=bool(name))
    for name, interval in found.giou.items():
        gain, took, pooled = found.gains.get(name), found.milliseconds.get(name), found.ciou.get(name)
        made.add_row(
            name,
            str(interval),
            "" if pooled is None else f"{pooled.value:.3f}",
            "" if gain is None else f"{gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]",
            f"{summarise(found.choosers[name].scores).valid.value:.3f}" if name in found.choosers else "",
            "" if took is None else f"{took:.1f}",
        )
    if found.ratio is not None:
        tokens = np.mean(found.choosers[WRITTEN].places)
        made.caption = f"writing takes {found.ratio} of the seconds of one pass, with {tokens:.2f} tokens an answer"
    return made


def as_json(found: Selected) -> dict[str, object]:
    """What --json prints: `giou`, `ciou`, `gains`, `ratio`, `milliseconds`, `valid` and `places` by name, plain
    numbers; under `intervals` low and high of the first four."""
    first = next(iter(found.choosers))
    giou, ciou = ({ONE_PASS: each[first], **each} for each in (found.giou, found.ciou))
    ratio = {} if found.ratio is None else {WRITTEN: found.ratio}
    told = {"giou": giou, "ciou": ciou, "gains": found.gains, "ratio": ratio}
    return {
        **{name: {key: one.value for key, one in each.items()} for name, each in told.items()},
        "milliseconds": found.milliseconds,
        "valid": {name: summarise(each.scores).valid.value for name, each in found.choosers.items()},
        "places": {name: float(np.mean(each.places)) for name, each in found.choosers.items()},
        "intervals": {
            name: {key: {"low": one.low, "high": one.high} for key, one in each.items()} for name, each in told.items()
        },
    }
