"""One rank of supervised training: a policy in a DeepSpeed engine, and the steps on it.

A plain class that runs without Ray, alone or as one of several ranks. All ranks call everything, in the same order; a
step's scenes are dealt to them in turn, and the loss is the mean over the tokens of all.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from envs.datasets.base import Env
from envs.example import Example
from envs.plugin import Plugin
from policies.families.base import PromptRows, TaughtAnswer
from policies.processor import Processor
from rl.config.learner import RankPlace
from rl.config.sft import ALL_STEPS, SftLearner, SftSettings, SftStage, Stretch
from rl.learner.engine import Watchdog, watched
from rl.learner.muon import MuonAdamW, SlowPart
from rl.learner.policy import TrainedPolicy
from rl.supervised.answers import Taught, questions_about, taught
from rl.supervised.greedy import greedy_sums
from rl.supervised.plan import Pass, Passes, agreed, stretches


@dataclass(frozen=True)
class SftRankSettings:
    """What a rank builds itself from; small, since it travels."""

    learner: SftLearner
    sft: SftSettings
    policy: Plugin
    env: Plugin
    max_tokens: int
    """Longest answer in evaluations, tokens."""
    seed: int
    stretch: Stretch = ALL_STEPS
    """Which steps it is for, and what they train."""


@dataclass(frozen=True)
class SftScores:
    """An evaluation on the split `validation`."""

    loss: float
    """Nats a token of the answers that would be taught."""
    greedy_giou: float
    """Mean IoU of greedy answers, invalid ones counted as 0."""
    valid: float
    """Share of valid answers."""


class SftRank:
    """A DeepSpeed engine around a policy, and the steps on it."""

    def __init__(self, settings: SftRankSettings, place: RankPlace) -> None:
        """Raises ValueError where nothing of the policy is trained."""
        torch.set_num_threads(settings.learner.threads)
        torch.manual_seed(settings.seed)
        self._settings, self._place = settings, place
        self._train: Env = settings.env.build(split="train")
        self._validation: Env = settings.env.build(split="validation")
        self.watchdog = Watchdog(f"sft rank {place.rank} of {place.world_size}")
        stretch = settings.stretch
        self._policy = TrainedPolicy(
            settings.policy, settings.learner, place, self.watchdog, self._optimizer, stretch.trains
        )
        self._engine = self._policy.engine
        self._engine.steps_done = stretch.first
        self._processor: Processor = self._policy.network.processor

    def _optimizer(self, network: nn.Module, slower: SlowPart) -> torch.optim.Optimizer | None:
        learner = self._settings.learner
        if learner.optimizer != "muon":
            return None
        return MuonAdamW(network.named_parameters(), learner.weight_decay, slower)

    def steps(self, end: int) -> list[dict[str, float]]:
        """Train up to step number `end`; what to log of each step, of all ranks together.

        Raises FloatingPointError, the weights as they were, where loss or gradient is not finite, and ValueError where
        none of a step's scenes shows what its stage asks about, or an answer cannot be written.
        """
        logs = []
        while self._engine.steps_done < end:
            logs.append(self._step())
        return logs

    @watched
    def _step(self) -> dict[str, float]:
        settings, step = self._settings.sft, self._engine.steps_done
        stage, lr = settings.stage_at(step)
        numbers = settings.scenes_at(step, len(self._train), self._settings.seed)
        numbers_here = numbers[self._place.rank :: self._place.world_size]
        mine = [questions_about(self._train, number, settings) for number in numbers_here]
        scenes, planned = self._planned(mine, self._train, stage)
        if not planned.scored:
            raise ValueError(
                f"stage {stage.name}: none of the scenes {numbers} shows anything that is asked about; set with_absent "
                "to true, or raise sft.scenes_per_step."
            )
        loss = torch.zeros((), device=self._engine.device)
        for one, rows in self._rows(scenes, planned):
            part = self._loss(rows, one, stage) / planned.scored
            # The engine takes the mean over ranks; this is the rank's part of a sum.
            self._engine.backward(part * self._place.world_size, last=one is planned.passes[-1])
            loss += part.detach()
        norm, applied = self._engine.update(lr)
        torch.distributed.all_reduce(loss)
        if not (applied and math.isfinite(norm) and math.isfinite(float(loss))):
            raise FloatingPointError(
                f"step {step + 1} of SFT, in stage {stage.name}, has a loss of {float(loss)} and a gradient of norm "
                f"{norm}; nothing is learned from it and nothing saved. Lower the stage's lr ({stage.lr}), or see what "
                "its scenes are answered."
            )
        self._engine.end_step()
        return {"loss": float(loss), "tokens": float(planned.scored), "lr": lr, "grad_norm": norm}

    def _planned(self, scenes: Sequence[list[Example]], env: Env, stage: SftStage) -> tuple[list[Taught], Passes]:
        """What this rank's scenes teach, and its passes over them; a scene that stands in where they teach nothing."""
        settings = self._settings.sft
        each = [taught(scene, env, self._processor, settings, stage) for scene in scenes]
        found = [scene for scene in each if scene]
        own = stretches(found, self._processor, self._settings.learner)
        weighs = bool(own)
        if not weighs:
            example = env[0]
            question, nothing = example.question(env.image(example.image)), self._processor.answer_tokens("")
            found, own = [[TaughtAnswer(question, nothing)]], [(0,)]
        scored = [sum(len(each.tokens) for k in part for each in found[k]) for part in own]
        return found, agreed(own, scored, weighs, self._engine.device)

    def _rows(self, scenes: Sequence[Taught], planned: Passes) -> Iterator[tuple[Pass, PromptRows]]:
        """Each pass with its rows, which are made when their turn comes."""
        for one in planned.passes:
            yield one, self._processor.supervised_rows([scenes[k] for k in one.scenes]).to(self._engine.device)

    def _loss(self, rows: PromptRows, one: Pass, stage: SftStage, policy: Any = None) -> Tensor:
        """Nats of all tokens that a pass scores, those of chosen candidates weighed as the stage says, a scalar; 0 for
        one that does not weigh. policy: None for the trained one."""
        scorer = self._policy if policy is None else policy
        scored: Tensor = scorer(rows, number_spread=stage.number_spread)
        if stage.positive_weight != 1.0:
            scored = torch.where(rows.response_tokens == 1, stage.positive_weight * scored, scored)
        return -scored.sum() * float(one.weighs)

    @watched
    @torch.no_grad()
    def evaluate(self) -> SftScores:
        """Loss and greedy answers on the first examples of the split `validation`, dealt to the ranks."""
        settings, env = self._settings.sft, self._validation
        num = min(settings.evaluate_scenes, len(env))
        examples = [env[number] for number in range(self._place.rank, num, self._place.world_size)]
        self._policy.network.eval()
        everything = SftStage("validation", 0, lr=1.0, with_absent=True)
        scenes, planned = self._planned([[example] for example in examples], env, everything)
        handed_out = self._policy.whole()
        averaged = handed_out if self._engine.average else None  # else the passes of sharded weights are collectives
        nats = sum(float(self._loss(rows, one, everything, averaged)) for one, rows in self._rows(scenes, planned))
        sums = greedy_sums(handed_out, env, examples, self._settings.max_tokens, self._settings.learner)
        self._policy.network.train()
        totals = torch.tensor([nats, *sums], dtype=torch.float64, device=self._engine.device)
        torch.distributed.all_reduce(totals)
        nats, iou, valid = totals.tolist()
        return SftScores(nats / planned.scored, iou / num, valid / num)

    @watched
    def save(self, folder: Path, tag: str) -> None:
        """TrainingEngine.save.

        Raises FloatingPointError, with nothing written, where weights are not finite.
        """
        self._refuse_not_finite()
        self._engine.save(folder, tag)

    def _refuse_not_finite(self) -> None:
        # Under ZeRO-3 a parameter is empty, and ds_tensor is this rank's share of it.
        held = {name: vars(value).get("ds_tensor", value) for name, value in self._policy.network.named_parameters()}
        wrong = [name for name, value in held.items() if not value.isfinite().all()]
        if wrong:
            step = self._engine.steps_done
            raise FloatingPointError(
                f"after step {step} of SFT {len(wrong)} weights are not finite, {wrong[0]} among them, so they are not "
                f"saved; lower the lr of the stage, now {self._settings.sft.stage_at(max(0, step - 1))[0].lr}."
            )

    @watched
    def load(self, folder: Path, tag: str) -> None:
        """TrainingEngine.load."""
        self._engine.load(folder, tag)

    @watched
    def save_policy(self, folder: Path) -> None:
        """TrainedPolicy.save."""
        self._policy.save(folder)

    def close(self) -> None:
        """Nothing to end: the process group lives as long as the process."""
