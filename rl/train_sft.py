"""Supervised fine-tuning: phrases to outlines, all objects of a scene asked about in one row.

Stages, because a polygon's loss hardly rewards finding the right object (one number in thirty says which it is): first boxes
alone, then whole answers. Matrices are trained by Muon, the rest by AdamW. Resumes from its last checkpoint by itself.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from scipy.ndimage import distance_transform_edt

from envs.contours import mask_from_rings, outline
from envs.example import Env, Example
from envs.polygons import AnswerCodec, Ring
from policies.base import PromptRows
from policies.vision_language import Policy
from rollout.engine_shared import Sampling, sample


@dataclass
class SftStage:
    """One stretch of training."""

    name: str
    steps: int
    answer: str = "outline"
    """"box" scores the first four words of an answer, "outline" all of it."""
    lr: float = 3e-3
    """Muon's rate at the start, falling to last_lr along a cosine; AdamW takes a third of it."""
    last_lr: float = 3e-4
    number_spread: float = 0.0
    """Width of a number's target over its neighbours; 0 is the usual cross-entropy."""

    def __post_init__(self) -> None:
        if self.answer not in ("box", "outline"):
            raise ValueError(f"stage {self.name}: answer is {self.answer!r}; it must be box or outline.")


@dataclass
class SftSettings:
    """How the supervised outlines are made and learned."""

    stages: list[SftStage] = field(default_factory=list)
    scenes_per_step: int = 32
    max_vertices: int = 12
    """Vertices of an annotated outline."""
    max_rings: int = 3
    outline_margin: float = 0.0
    """How far annotators draw outside the object, as a share of the square root of its area; 0 is an exact outline."""
    warmup_steps: int = 50
    weight_decay: float = 0.01
    evaluate_every: int = 250
    evaluate_scenes: int = 256


@dataclass(frozen=True)
class SftPoint:
    """One point of the learning curve."""

    step: int
    stage: str
    loss: float
    """Nats a scored token, mean since the last point."""
    greedy_giou: float
    """Mean IoU of greedy answers on validation scenes, invalid ones counted as 0."""
    valid: float
    """Share of valid answers."""


def annotate(mask: NDArray[np.bool_], settings: SftSettings) -> list[Ring]:
    """The outline that a coarse annotator would draw around `mask` [H, W], in pixels."""
    margin = settings.outline_margin * math.sqrt(mask.sum())
    loose = distance_transform_edt(~mask) <= margin if margin > 0 else mask
    return outline(loose, settings.max_vertices, settings.max_rings, min_share=0.05)


def answer_text(example: Example, codec: AnswerCodec, settings: SftSettings) -> str:
    """The supervised answer to an example: one instance a true mask; the empty answer where nothing fits."""
    outlines = [annotate(mask, settings) for mask in example.truth.masks]
    return codec.encode(outlines, example.image.height, example.image.width)


def scene_rows(policy: Policy, env: Env, indices: list[int], settings: SftSettings, answer: str) -> PromptRows:
    """Supervised rows of the scenes at `indices`."""
    scenes = [env.scene(index) for index in indices]
    pairs = []
    for scene in scenes:
        texts = [answer_text(example, policy.codec, settings) for example in scene]
        if answer == "box":
            texts = [" ".join(text.split()[:4]) for text in texts]
        tokens = [policy.answer_tokens(text) for text in texts]
        # A box is only the beginning of an answer: its end is not to be learned.
        tokens = [t[:-1] for t in tokens] if answer == "box" else tokens
        pairs.append([(example.prompt.text, t) for example, t in zip(scene, tokens, strict=True)])
    return policy.supervised_rows([env.image(scene[0].image) for scene in scenes], pairs)


class SftTrainer:
    """A policy, its optimizers, and where training stands."""

    def __init__(self, policy: Policy, env: Env, settings: SftSettings, seed: int) -> None:
        self.policy, self.env, self.settings, self.seed = policy, env, settings, seed
        matrices = [p for n, p in policy.named_parameters() if p.ndim == 2 and "embed" not in n]
        others = [p for n, p in policy.named_parameters() if p.ndim != 2 or "embed" in n]
        self.muon = torch.optim.Muon(matrices, adjust_lr_fn="match_rms_adamw", weight_decay=settings.weight_decay)
        self.adamw = torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0)
        self.step_number = 0
        self.curve: list[SftPoint] = []

    @property
    def num_steps(self) -> int:
        """Steps of all stages."""
        return sum(stage.steps for stage in self.settings.stages)

    def stage_at(self, step: int) -> tuple[SftStage, float]:
        """The stage that `step` belongs to, and how far into it (0..1)."""
        for stage in self.settings.stages:
            if step < stage.steps:
                return stage, step / stage.steps
            step -= stage.steps
        return self.settings.stages[-1], 1.0

    def train_step(self) -> float:
        """One update on `scenes_per_step` scenes; returns the loss in nats a scored token."""
        stage, progress = self.stage_at(self.step_number)
        first = self.step_number * self.settings.scenes_per_step
        indices = [(first + k) % len(self.env) for k in range(self.settings.scenes_per_step)]
        rows = scene_rows(self.policy, self.env, indices, self.settings, stage.answer)
        loss = self.policy.sft_loss(rows, stage.number_spread)
        self.policy.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), 1.0)
        warmup = min(1.0, (self.step_number + 1) / self.settings.warmup_steps)
        lr = stage.last_lr + (stage.lr - stage.last_lr) * (1 + math.cos(math.pi * progress)) / 2
        for optimizer, share in ((self.muon, 1.0), (self.adamw, 1 / 3)):
            for group in optimizer.param_groups:
                group["lr"] = lr * warmup * share
            optimizer.step()
        self.step_number += 1
        return float(loss.detach())

    def save(self, folder: Path) -> None:
        """Write the policy and, beside it, what is needed to go on; the old state stays until the new one is whole."""
        self.policy.save(folder / "policy")
        state = {
            "step": self.step_number,
            "muon": self.muon.state_dict(),
            "adamw": self.adamw.state_dict(),
            "weights": self.policy.model.state_dict(),
            "curve": [vars(point) for point in self.curve],
        }
        torch.save(state, folder / "state.pt.partial")
        (folder / "state.pt.partial").rename(folder / "state.pt")

    def load(self, folder: Path) -> None:
        """Go on from what `save` wrote."""
        state = torch.load(folder / "state.pt", weights_only=True)
        self.step_number = state["step"]
        self.muon.load_state_dict(state["muon"])
        self.adamw.load_state_dict(state["adamw"])
        self.policy.model.load_state_dict(state["weights"])
        self.curve = [SftPoint(**point) for point in state["curve"]]


def greedy_scores(policy: Policy, env: Env, num_scenes: int, max_tokens: int) -> tuple[float, float]:
    """(mean IoU, share of valid answers) of greedy answers to the first `num_scenes` examples, in this process."""
    ious, valid = [], []
    for first in range(0, num_scenes, 64):
        examples = [env[index] for index in range(first, min(first + 64, num_scenes))]
        images = [env.image(example.image) for example in examples]
        placeholder = [[np.array([policy.end_token])]] * len(examples)
        rows = policy.rows(images, [example.prompt.text for example in examples], placeholder)
        draws = np.zeros((len(examples), 1, max_tokens))
        for example, response in zip(examples, sample(policy, rows, Sampling(0.0, max_tokens), draws), strict=True):
            answer = policy.read(response, example.image.height, example.image.width)
            mask = mask_from_rings(answer.rings_px, example.image.height, example.image.width)
            truth = example.truth.union
            union = (mask | truth).sum()
            ious.append(float(answer.status.valid) * ((mask & truth).sum() / union if union else 1.0))
            valid.append(answer.status.valid)
    return float(np.mean(ious)), float(np.mean(valid))


def train_sft(trainer: SftTrainer, validation: Env, folder: Path, max_tokens: int) -> list[SftPoint]:
    """Train to the end, with a bar and a checkpoint at every evaluation; returns the learning curve.

    Starts from folder/state.pt where there is one. `folder` receives policy/ (a Hugging Face folder) and state.pt.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "state.pt").is_file():
        trainer.load(folder)
    settings, losses = trainer.settings, []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("SFT", total=trainer.num_steps, completed=trainer.step_number)
        while trainer.step_number < trainer.num_steps:
            stage, _ = trainer.stage_at(trainer.step_number)
            losses.append(trainer.train_step())
            progress.update(task, completed=trainer.step_number, description=f"SFT {stage.name} loss {losses[-1]:.3f}")
            if trainer.step_number % settings.evaluate_every == 0 or trainer.step_number == trainer.num_steps:
                giou, valid = greedy_scores(trainer.policy, validation, settings.evaluate_scenes, max_tokens)
                point = SftPoint(trainer.step_number, stage.name, float(np.mean(losses)), giou, valid)
                trainer.curve.append(point)
                progress.console.print(
                    f"step {point.step:>5} {stage.name:>9}  loss {point.loss:.3f}  greedy gIoU {giou:.3f}  valid {valid:.1%}"
                )
                losses = []
                trainer.save(folder)
    return trainer.curve
