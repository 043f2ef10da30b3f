"""Supervised fine-tuning: phrases to outlines, all objects of a scene asked about in one row.

Stages, because a polygon's loss hardly rewards finding the right object (one number in thirty says which it is):
first boxes
alone, then whole answers. Matrices are trained by Muon, the rest by AdamW. Resumes from its last checkpoint by itself.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from scipy.ndimage import distance_transform_edt

from envs.contours import mask_from_rings, outline
from envs.example import Env, Example
from envs.plugin import Plugin
from envs.polygons import AnswerCodec, Ring
from envs.scene import SPATIAL_WORDS
from policies.base import PromptRows
from policies.tiny_model import write_untrained
from policies.vision_language import Policy
from rl.config import policy_plugin
from rl.settings import plugin_from_settings, save_settings
from rl.sft_settings import SftConfig, SftSettings, SftStage
from rollout.engine import Sampling
from rollout.engine_shared import sample


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


def scene_rows(policy: Policy, env: Env, indices: list[int], settings: SftSettings, stage: SftStage) -> PromptRows:
    """Supervised rows of the scenes at `indices`, as a stage asks about them."""
    drawn = settings if stage.outline_margin is None else replace(settings, outline_margin=stage.outline_margin)
    scenes = [[e for e in env.scene(index) if stage.with_absent or len(e.truth.masks)] for index in indices]
    scenes = [scene for scene in scenes if scene]
    pairs = []
    for scene in scenes:
        texts = [answer_text(example, policy.codec, drawn) for example in scene]
        if stage.answer == "box":
            texts = [" ".join(text.split()[:4]) for text in texts]
        tokens = [policy.answer_tokens(text) for text in texts]
        # A box is only the beginning of an answer: its end is not to be learned.
        tokens = [t[:-1] for t in tokens] if stage.answer == "box" else tokens
        pairs.append([(example.prompt.text, t) for example, t in zip(scene, tokens, strict=True)])
    return policy.supervised_rows([env.image(scene[0].image) for scene in scenes], pairs)


class SftTrainer:
    """A policy, its optimizers, and where training stands."""

    def __init__(self, policy: Policy, env: Env, settings: SftSettings) -> None:
        self.policy, self.env, self.settings = policy, env, settings
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
        rows = scene_rows(self.policy, self.env, indices, self.settings, stage)
        loss = self.policy.sft_loss(rows, stage.number_spread)
        self.policy.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), 1.0)
        warmup = min(1.0, (self.step_number + 1) / max(1, self.settings.warmup_steps))
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
    """(mean IoU, share of valid answers) of greedy answers to the first `num_scenes` examples, in this process.

    An env with fewer examples is asked all it has.
    """
    ious, valid = [], []
    num_scenes = min(num_scenes, len(env))
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


def train_sft(trainer: SftTrainer, validation: Env, folder: Path, max_tokens: int, console: Console) -> list[SftPoint]:
    """Train to the end, with a bar and a checkpoint at every evaluation; returns the learning curve.

    Starts from folder/state.pt where there is one. `folder` receives policy/ (a Hugging Face folder) and state.pt.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "state.pt").is_file():
        trainer.load(folder)
    settings, losses = trainer.settings, []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
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
                    f"step {point.step:>5} {stage.name:>9}  loss {point.loss:.3f}  greedy gIoU {giou:.3f}  valid "
                    f"{valid:.1%}"
                )
                losses = []
                trainer.save(folder)
    return trainer.curve


def run_sft(config: SftConfig, console: Console) -> Path:
    """Train as `config` says; returns the folder of the policy. Goes on where an earlier call was stopped.

    Raises ValueError or FileNotFoundError for what is wrong with the config before training starts.
    """
    if not config.sft.stages:
        raise ValueError("sft.stages is empty; give at least one stage, such as {name: outlines, steps: 1000}.")
    folder = Path(config.run)
    torch.set_num_threads(config.threads)
    env_plugin = plugin_from_settings("envs", "Env", config.env, "env", ["split"])
    env, validation = env_plugin.build(split="train"), env_plugin.build(split="validation")
    codec = plugin_from_settings("envs", "Codec", config.codec, "codec")
    policy = dict(config.policy)
    if "checkpoint" not in policy:
        policy["checkpoint"] = str(folder / "untrained")
        _write_untrained(folder / "untrained", config, env_plugin, codec)
    folder.mkdir(parents=True, exist_ok=True)
    save_settings(config, folder / "config.yaml")
    trainer = SftTrainer(policy_plugin(policy, codec).build(), env, config.sft)
    curve = train_sft(trainer, validation, folder, config.max_tokens, console)
    lines = ["step\tstage\tloss\tgreedy_giou\tvalid"]
    lines += [f"{p.step}\t{p.stage}\t{p.loss:.4f}\t{p.greedy_giou:.4f}\t{p.valid:.4f}" for p in curve]
    (folder / "curve.tsv").write_text("\n".join(lines) + "\n")
    console.print(f"policy: {folder / 'policy'}   curve: {folder / 'curve.tsv'}", markup=False)
    return folder / "policy"


def _write_untrained(folder: Path, config: SftConfig, env: Plugin, codec: Plugin) -> None:
    """A new tiny model whose words are the codec's and those of all phrases, of held-out names too."""
    words = codec.build().words
    phrase_words = {
        word for split in ("train", "held_out_names") for name in env.build(split=split).names for word in name.split()
    }
    write_untrained(folder, words + sorted(phrase_words | SPATIAL_WORDS), config.tiny, config.seed)
