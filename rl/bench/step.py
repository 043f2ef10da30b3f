"""`polytrace bench step`: a whole GSPO step (sample, score, update), by us and by TRL's GRPOTrainer, in one process.

Ours is RolloutWorker and LearnerRank as plain classes, without Ray, with the push of the new weights from one to the
other. Both take the same number of updates a step, and a clipped ratio that is not 1 from the second one on.
"""

import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from envs.datasets.base import Env
from envs.plugin import Plugin
from rewards.scorer import Scorer
from rl.algorithms.base import PolicyGradient
from rl.bench import trl_step
from rl.bench.random_qwen import ModelChoice, Policy
from rl.bench.side_by_side import ROUNDS, THREADS, SideBySide, Work, Workload, count, scaled, seconds_of
from rl.config.learner import LearnerSettings, RankPlace, RankSettings
from rl.config.rewards import load_rewards
from rl.learner.batch import pack
from rl.learner.rank import LearnerRank
from rl.run.steps import with_totals
from rollout.engines.shared import Sampling
from rollout.worker import RolloutWorker, Unit, WorkerSettings

BAR = 3.0
"""How many times as fast as TRL we mean to be at the workload below, on two cores."""
WORKLOAD = Workload(groups=4, answers=8, image_tokens=256, tokens=64)
OTHER = "trl"
UPDATES = 2
"""Of a step, by both."""
_ALGORITHM = Plugin("rl.algorithms", "Algorithm", "gspo", {"clip_low": 3e-4, "clip_high": 4e-4})


class OwnSteps:
    """A worker and a learner in this process, ready to take steps."""

    def __init__(self, policy: Plugin, env: Plugin, workload: Workload) -> None:
        rewards = load_rewards(Path("demo")).recipes
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
        self._version = 0
        self._worker.set_weights(0, self._rank.buckets())

    def step(self) -> None:
        """Sample, score, learn, and push the weights."""
        work = self._workload
        places = tuple(range(work.groups))
        unit = Unit("train", self._version, places, places, work.answers, Sampling(max_tokens=work.tokens))
        groups = self._worker.answer(unit, self._version)
        groups = with_totals(groups, trl_step.made_up_totals(work.groups, work.answers))
        self._rank.step(pack(groups, self._algorithm))
        self._version += 1
        self._worker.set_weights(self._version, self._rank.buckets())


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
    return trl_step.BenchScene(folder, policy, Scorer(load_rewards(Path("demo")).recipes), workload, examples, images)


def _prompt_lengths(scene: trl_step.BenchScene) -> list[int]:
    """[B] tokens."""
    return [
        len(scene.policy.prompt_tokens(image, example.prompt.text))
        for image, example in zip(scene.images, scene.examples, strict=True)
    ]


def _own_tokens(scene: trl_step.BenchScene) -> int:
    """Of our passes: prompts once, then token by token; and rows a group, twice for all but the first update."""
    work, prompts = scene.workload, sum(_prompt_lengths(scene))
    decoded = work.groups * work.answers * (work.tokens - 1)
    learned = prompts + work.groups * work.answers * work.tokens
    return prompts + decoded + learned * (2 * UPDATES - 1) // UPDATES


def _trl_tokens(scene: trl_step.BenchScene) -> int:
    """Of TRL's passes: prompts once an answer, and rows an answer, twice: old log-probabilities are taken of all."""
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
