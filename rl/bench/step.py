"""`polytrace bench step`: a whole GSPO step (sample, score, update), by us and by TRL's GRPOTrainer, in one process.

Ours is RolloutWorker and LearnerRank as plain classes, without Ray, with the push of the new weights from one to the
other. Both make the same number of updates per step, with a clipped ratio that is not 1 from the second one on.
"""

import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from envs.datasets.base import Env
from envs.plugin import Plugin
from rewards.scorer import Scorer
from rewards.shaping import ShapedStep
from rl.algorithms.base import PolicyGradient
from rl.bench import trl_step
from rl.bench.random_qwen import ModelChoice, Policy
from rl.bench.side_by_side import ROUNDS, THREADS, SideBySide, Work, Workload, count, scaled, seconds_of
from rl.config.learner import LearnerSettings, RankPlace, RankSettings
from rl.config.rewards import load_rewards
from rl.learner.batches.batch import Batch, pack
from rl.learner.rank import LearnerRank
from rl.run.steps import ScoredStep, scored_step
from rl.train import take_step
from rollout.engines.shared import Sampling
from rollout.records import Group
from rollout.worker import RolloutWorker, Unit, WorkerSettings

BAR = 3.0
"""How many times as fast as TRL we mean to be at the workload below, on two cores."""
WORKLOAD = Workload(groups=4, answers=8, image_tokens=256, tokens=64)
OTHER = "trl"
UPDATES = 2
"""Updates per step, by both."""
_ALGORITHM = Plugin("rl.algorithms", "Algorithm", "gspo", {"clip_low": 3e-4, "clip_high": 4e-4})


class OwnSteps:
    """A worker and a learner in this process, ready to take steps."""

    def __init__(self, policy: Plugin, env: Plugin, workload: Workload) -> None:
        rewards = load_rewards(Path("tiny")).recipes
        self._algorithm: PolicyGradient = _ALGORITHM.build()
        self._worker = RolloutWorker(WorkerSettings("bench", 0, env, policy, rewards=rewards, threads=THREADS), "bench")
        self._rank = LearnerRank(
            RankSettings(
                learner=LearnerSettings(
                    lr=1e-6, minibatches=UPDATES, micro_groups=workload.groups // UPDATES, threads=THREADS
                ),
                policy=policy,
                env=env,
                algorithm=_ALGORITHM,
                temperature=1.0,
                groups_per_step=workload.groups,
                seed=0,
            ),
            RankPlace(port=_free_port()),
        )
        self._workload = workload
        self._steps_done = 0

    def step(self) -> None:
        """Take the next step: push the weights, sample, score, learn."""
        take_step(self, self._steps_done)
        self._steps_done += 1

    def set_weights(self, step: int) -> None:
        """Push the rank's weights to the worker."""
        self._worker.set_weights(step, self._rank.buckets())

    def collect(self, step: int) -> list[Group]:
        """Sample and score the same questions at every step."""
        work = self._workload
        places = tuple(range(work.groups))
        unit = Unit("train", step, places, places, work.answers, Sampling(max_tokens=work.tokens))
        return self._worker.answer(unit, step)

    def total(self, step: int, groups: list[Group]) -> ScoredStep:
        """Totals that are made up, as TRL's are."""
        totals = trl_step.made_up_totals(self._workload.groups, self._workload.answers)
        return scored_step(step, groups, {}, ShapedStep({}, {}, totals), self._algorithm, len(groups))

    def archive(self, scored: ScoredStep) -> None:
        """Nothing: TRL keeps no answers."""

    def pack(self, scored: ScoredStep) -> Batch:
        """The groups as a batch."""
        return pack(scored.to_learn, scored.advantages)

    def learn(self, batch: Batch) -> dict[str, float]:
        """Make the updates."""
        return self._rank.step(batch)

    def record(self, scored: ScoredStep, batch: Batch, stats: dict[str, float]) -> dict[str, float]:
        """Nothing is logged."""
        return stats


def measure(workload: Workload, rounds: int = ROUNDS) -> SideBySide:
    """Time both sides of one workload; ours alone where TRL is not installed."""
    if workload.groups % UPDATES:
        raise ValueError(
            f"the workload {workload.title} has {workload.groups} groups, which {UPDATES} updates share; give an even "
            "number."
        )
    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory(prefix="polytrace-bench-") as name:
        plugin, env = ModelChoice().write(Path(name), workload), ModelChoice().env(workload)
        scene = _scene(Path(name), plugin.build(), env.build(split="train"), workload)
        # The trainer first: it reads the environment that a learner rank sets for DeepSpeed.
        trl = trl_step.TrlSteps(scene, UPDATES, rounds) if trl_step.installed() else None
        ours = OwnSteps(plugin, env, workload)
        own_flops = count(ours.step)
        seconds: list[float] = []

        def step() -> None:
            seconds.append(seconds_of(ours.step))

        other_seconds: list[float] = []
        other = None
        if trl is not None:
            other_seconds, other_flops = trl.run(step)
            other = Work(other_flops, _trl_tokens(scene))
        while len(seconds) < trl_step.WARM + rounds:
            step()
    own = Work(own_flops, _own_tokens(scene))
    longest = max(_prompt_lengths(scene))
    return SideBySide(workload, longest, own, other, tuple(seconds[trl_step.WARM :]), tuple(other_seconds))


def _scene(folder: Path, policy: Policy, env: Env, workload: Workload) -> trl_step.BenchScene:
    examples = tuple(env[index] for index in range(workload.groups))
    images = tuple(env.image(example.image) for example in examples)
    return trl_step.BenchScene(folder, policy, Scorer(load_rewards(Path("tiny")).recipes), workload, examples, images)


def _prompt_lengths(scene: trl_step.BenchScene) -> list[int]:
    """[B] tokens."""
    return [
        len(scene.policy.processor.prompt_tokens(example.question(image)))
        for image, example in zip(scene.images, scene.examples, strict=True)
    ]


def _own_tokens(scene: trl_step.BenchScene) -> int:
    """Tokens of our passes: prompts once, then token by token; and rows per group, twice but for the first update."""
    work, prompts = scene.workload, sum(_prompt_lengths(scene))
    decoded = work.groups * work.answers * (work.tokens - 1)
    learned = prompts + work.groups * work.answers * work.tokens
    return prompts + decoded + learned * (2 * UPDATES - 1) // UPDATES


def _trl_tokens(scene: trl_step.BenchScene) -> int:
    """Tokens of TRL's passes: prompts once per answer; rows per answer, twice for all old log-probabilities."""
    work, prompts = scene.workload, sum(_prompt_lengths(scene)) * scene.workload.answers
    answers = work.groups * work.answers
    return prompts + answers * (work.tokens - 1) + 2 * (prompts + answers * work.tokens)


def bench(workload: Workload, quick: bool) -> Iterator[SideBySide]:
    """The workload, then, unless `quick`, those around it, as they are measured."""
    yield measure(workload)
    for one in [] if quick else scaled(workload):
        yield measure(one, rounds=3)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
