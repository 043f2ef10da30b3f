"""`polytrace sft`: outlines as a coarse annotator draws them, in the codec's words, taught stage by stage.

From a checkpoint, or from a new tiny model that is made for the words of env and codec. Whether the answers can be
taught at all (limits of the codec, words of the tokenizer, tokens of an answer) is found before the first step, from a
bounded number of examples; a later one that cannot be stops the training by its name.
"""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from scipy.ndimage import distance_transform_edt

from envs.codecs.base import AnswerCodec
from envs.datasets.base import Env
from envs.example import Example
from envs.geometry.contours import outline
from envs.plugin import Plugin
from envs.polygons import Ring
from policies.families.base import PromptRows
from policies.families.vision_language import Policy
from policies.processor import Processor
from policies.question import PHRASE, check_question
from policies.tiny_model import TinySizes, write_untrained
from rl.config.load import load_settings, save_settings
from rl.config.plugins import codec_plugin, env_plugin, policy_plugin
from rl.config.sft import SftConfig, SftSettings, SftStage
from rl.evaluation.scores import SceneScore, score_answer
from rl.pages.progress import StepProgress
from rl.run.data import RunData
from rl.run.parts import processor_of
from rl.run.writable import refuse_unwritable
from rollout.disk import whole_file
from rollout.engines.shared import sample
from rollout.settings import Sampling

_CHECKED = 64
"""Training scenes whose answers are looked at before the first step."""


def annotate(mask: NDArray[np.bool_], settings: SftSettings) -> list[Ring]:
    """The outline that a coarse annotator would draw around `mask` [H, W], in pixels."""
    margin = settings.outline_margin * math.sqrt(mask.sum())
    loose = distance_transform_edt(~mask) <= margin if margin > 0 else mask
    return outline(loose, settings.max_vertices, settings.max_rings, min_share=0.05)


def answer_text(example: Example, codec: AnswerCodec, settings: SftSettings) -> str:
    """The supervised answer to an example: one instance a true mask; the empty answer where nothing fits.

    Raises ValueError, naming the example, where it exceeds a limit of the codec.
    """
    outlines = [annotate(mask, settings) for mask in example.truth.masks]
    try:
        return codec.encode(outlines, example.image.height, example.image.width)
    except ValueError as error:
        raise ValueError(
            f"the answer to {example.id} has {len(outlines)} outlines of up to sft.max_rings {settings.max_rings} and "
            f"sft.max_vertices {settings.max_vertices}, which the codec does not write: {error}"
        ) from error


def answer_tokens(example: Example, processor: Processor, text: str) -> NDArray[np.int64]:
    """[T] tokens of the answer `text` to an example, end token included.

    Raises ValueError, naming the example, where the policy could not sample them.
    """
    refuse_unwritable(processor, text, f"answer to {example.id}")
    return processor.answer_tokens(text)


def refuse_unfit_answers(processor: Processor, codec: AnswerCodec, splits: tuple[Env, Env], config: SftConfig) -> None:
    """Raise ValueError for the first answer that the codec or the policy cannot write, or that evaluations cut off.

    splits: train, of which the first scenes are looked at, and validation, of which the examples that evaluations ask.
    """
    train, validation = splits
    for index in range(min(_CHECKED, len(train))):
        for example in train.scene(index):
            answer_tokens(example, processor, answer_text(example, codec, config.sft))
    longest, its_id = 0, ""
    for index in range(min(config.sft.evaluate_scenes, len(validation))):
        example = validation[index]
        tokens = len(answer_tokens(example, processor, answer_text(example, codec, config.sft)))
        longest, its_id = max((longest, its_id), (tokens, example.id))
    if longest > config.max_tokens:
        raise ValueError(
            f"max_tokens is {config.max_tokens}, but the answer to {its_id} takes {longest} tokens, so evaluations cut "
            f"it off and count it as wrong; set max_tokens to {longest} or more, or lower sft.max_vertices (now "
            f"{config.sft.max_vertices})."
        )


def refuse_spread_of_digits(processor: Processor, settings: SftSettings) -> None:
    """Raise ValueError where number_spread would blur digits: it is for tokenizers whose numbers are single tokens."""
    spread = [stage for stage in settings.stages if stage.number_spread > 0]
    if spread and len(processor.answer_tokens("10")) > 2:
        raise ValueError(
            f"number_spread of stage {spread[0].name} is {spread[0].number_spread}, but this tokenizer writes 10 as "
            f"{len(processor.answer_tokens('10')) - 1} tokens, so that neighbours of a digit would be taught in place "
            "of neighbours of a number; set it to 0."
        )


@runtime_checkable
class WordCodec(Protocol):
    """A codec whose texts are words with a space between, as a tokenizer of words writes them."""

    @property
    def words(self) -> list[str]:
        """Every word of its texts, numbers first and in order."""
        ...


def write_new_model(folder: Path, config: SftConfig, env: Env, codec: Plugin, console: Console) -> None:
    """Write an untrained model that can be asked every phrase of `env` and can write every answer of `codec`.

    Raises ValueError for a codec whose texts are not words, or a question without a phrase. Says where images will be
    shown to it smaller than they are.
    """
    built = codec.build()
    if not isinstance(built, WordCodec):
        raise ValueError(
            f"codec is {codec.name}, and the new model that is made without policy.checkpoint writes words of a list "
            "with spaces between, which this codec does not name as `words`; choose codec path_tokens, or give "
            "policy.checkpoint a model that writes any text."
        )
    question = str(config.policy.get("question", PHRASE))
    check_question(question)
    words = built.words + sorted(asked_words(question, env.phrase_words()))
    if smaller := shown_smaller(env, config.tiny):
        console.print(smaller, markup=False, soft_wrap=True)
    write_untrained(folder, words, config.tiny, config.seed)


def asked_words(question: str, words: Iterable[str]) -> set[str]:
    """All words of a question about phrases of `words`, those included that touch the question's own text."""
    # Two words together show what a first and a last one of a phrase touch, one alone what a phrase of one word does.
    phrases = (phrase for word in words for phrase in (word, f"{word} {word}"))
    return {word for phrase in phrases for word in question.replace(PHRASE, phrase).split()}


def shown_smaller(env: Env, sizes: TinySizes) -> str | None:
    """What to say where the first image of `env` has more pixels than the new model is shown; None where it has not."""
    image, side = env[0].image, sizes.image_size
    if image.height * image.width <= side**2:
        return None
    return (
        f"note: images such as {image.key} have {image.height} x {image.width} pixels, and the new model is shown "
        f"about {side**2} of them, as many as {side} x {side}; for finer outlines, raise tiny.image_size."
    )


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


def scene_rows(policy: Policy, env: Env, indices: list[int], settings: SftSettings, stage: SftStage) -> PromptRows:
    """Supervised rows of the scenes at `indices`, as a stage asks about them.

    Raises ValueError where nothing is asked of any of them, or an answer cannot be written (rl/sft.py).
    """
    drawn = settings if stage.outline_margin is None else replace(settings, outline_margin=stage.outline_margin)
    scenes = [[e for e in env.scene(index) if stage.with_absent or len(e.truth.masks)] for index in indices]
    scenes = [scene for scene in scenes if scene]
    if not scenes:
        raise ValueError(
            f"stage {stage.name}: none of the scenes {indices} shows anything that is asked about; set with_absent to "
            "true, or raise sft.scenes_per_step."
        )
    taught = []
    for scene in scenes:
        texts = [answer_text(example, policy.processor.codec, drawn) for example in scene]
        if stage.answer == "box":
            texts = [" ".join(text.split()[:4]) for text in texts]
        tokens = [answer_tokens(example, policy.processor, text) for example, text in zip(scene, texts, strict=True)]
        # A box is only the beginning of an answer: its end is not to be learned.
        tokens = [t[:-1] for t in tokens] if stage.answer == "box" else tokens
        image = env.image(scene[0].image)
        taught.append([(example.question(image), t) for example, t in zip(scene, tokens, strict=True)])
    return policy.supervised_rows(taught)


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
        """One update on `scenes_per_step` scenes; returns the loss in nats a scored token.

        Raises FloatingPointError, the weights as they were, where loss or gradient is not finite.
        """
        stage, progress = self.stage_at(self.step_number)
        first = self.step_number * self.settings.scenes_per_step
        indices = [(first + k) % len(self.env) for k in range(self.settings.scenes_per_step)]
        rows = scene_rows(self.policy, self.env, indices, self.settings, stage)
        loss = self.policy.sft_loss(rows, stage.number_spread)
        self.policy.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), 1.0)
        self._refuse_not_finite(stage, float(loss.detach()), float(norm))
        warmup = min(1.0, (self.step_number + 1) / max(1, self.settings.warmup_steps))
        lr = stage.last_lr + (stage.lr - stage.last_lr) * (1 + math.cos(math.pi * progress)) / 2
        for optimizer, share in ((self.muon, 1.0), (self.adamw, 1 / 3)):
            for group in optimizer.param_groups:
                group["lr"] = lr * warmup * share
            optimizer.step()
        self.step_number += 1
        return float(loss.detach())

    def _refuse_not_finite(self, stage: SftStage, loss: float, norm: float) -> None:
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise FloatingPointError(
                f"step {self.step_number + 1} of SFT, in stage {stage.name}, has a loss of {loss} and a gradient of "
                f"norm {norm}; nothing is learned from it and nothing saved. Lower the stage's lr ({stage.lr}), or see "
                "what its scenes are answered."
            )

    def save(self, folder: Path) -> None:
        """Write the policy and, beside it, what is needed to go on; the old state stays until the new one is whole.

        Raises FloatingPointError, with nothing written, where weights are not finite.
        """
        wrong = [name for name, value in self.policy.named_parameters() if not value.isfinite().all()]
        if wrong:
            raise FloatingPointError(
                f"after step {self.step_number} of SFT {len(wrong)} weights are not finite, {wrong[0]} among them, so "
                f"they are not saved; lower the lr of the stage, now {self.stage_at(self.step_number)[0].lr}."
            )
        self.policy.save(folder / "policy")
        state = {
            "step": self.step_number,
            "muon": self.muon.state_dict(),
            "adamw": self.adamw.state_dict(),
            "weights": self.policy.model.state_dict(),
            "curve": [asdict(point) for point in self.curve],
        }
        with whole_file(folder / "state.pt") as partial:
            torch.save(state, partial)

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

    Scored as `evaluate` does (rl/evaluation/scores.py). An env with fewer examples is asked all it has.
    """
    scores = list[SceneScore]()
    num_scenes = min(num_scenes, len(env))
    for first in range(0, num_scenes, 64):
        examples = [env[index] for index in range(first, min(first + 64, num_scenes))]
        placeholder = [[np.array([policy.processor.end_token])]] * len(examples)
        rows = policy.rows([example.question(env.image(example.image)) for example in examples], placeholder)
        draws = np.zeros((len(examples), 1, max_tokens))
        for example, response in zip(examples, sample(policy, rows, Sampling(0.0, max_tokens), draws), strict=True):
            answer = policy.processor.read(response, example.image.height, example.image.width)
            scores.append(score_answer(answer, example.truth, example.id))
    return float(np.mean([score.iou for score in scores])), float(np.mean([score.valid for score in scores]))


def train_sft(trainer: SftTrainer, validation: Env, folder: Path, max_tokens: int, console: Console) -> list[SftPoint]:
    """Train to the end, with a bar and a checkpoint at every evaluation; returns the learning curve.

    Starts from folder/state.pt where there is one. `folder` receives policy/ (a Hugging Face folder) and state.pt.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "state.pt").is_file():
        trainer.load(folder)
    settings, losses = trainer.settings, []
    with StepProgress(console, "SFT", trainer.num_steps, trainer.step_number) as progress:
        while trainer.step_number < trainer.num_steps:
            stage, _ = trainer.stage_at(trainer.step_number)
            losses.append(trainer.train_step())
            progress.update(trainer.step_number, f"{stage.name} loss {losses[-1]:.3f}")
            if trainer.step_number % settings.evaluate_every == 0 or trainer.step_number == trainer.num_steps:
                giou, valid = greedy_scores(trainer.policy, validation, settings.evaluate_scenes, max_tokens)
                point = SftPoint(trainer.step_number, stage.name, float(np.mean(losses)), giou, valid)
                trainer.curve.append(point)
                progress.print(
                    f"step {point.step:>5} {stage.name:>9}  loss {point.loss:.3f}  greedy gIoU {giou:.3f}  valid "
                    f"{valid:.1%}"
                )
                losses = []
                trainer.save(folder)
    return trainer.curve


def run_sft(config: SftConfig, console: Console) -> Path:
    """Train as `config` says; returns the folder of the policy. Goes on where an earlier call was stopped.

    Raises ValueError or FileNotFoundError for what is wrong with the config before training starts, FloatingPointError
    where loss, gradient or weights are not finite.
    """
    if not config.sft.stages:
        raise ValueError("sft.stages is empty; give at least one stage, such as {name: outlines, steps: 1000}.")
    folder = Path(config.run)
    torch.set_num_threads(config.threads)
    recipe = env_plugin(config.env)
    data = RunData.of(recipe, ("train", "validation"))
    env, validation = recipe.build(split="train"), recipe.build(split="validation")
    _refuse_other_run(config, data, folder)
    codec = codec_plugin(config.codec)
    policy = dict(config.policy)
    if policy.get("checkpoint") is None:
        policy["checkpoint"] = str(folder / "untrained")
        write_new_model(folder / "untrained", config, env, codec, console)
    plugin = policy_plugin(policy, codec)
    processor = processor_of(plugin)
    try:
        refuse_unfit_answers(processor, processor.codec, (env, validation), config)
        refuse_spread_of_digits(processor, config.sft)
    except ValueError as error:
        raise ValueError(f"codec is {codec.name}, policy.checkpoint {policy['checkpoint']}: {error}") from error
    trainer = SftTrainer(plugin.build(), env, config.sft)
    folder.mkdir(parents=True, exist_ok=True)
    save_settings(config, folder / "config.yaml")
    data.write(folder)
    data.tell(console, folder)
    curve = train_sft(trainer, validation, folder, config.max_tokens, console)
    lines = ["step\tstage\tloss\tgreedy_giou\tvalid"]
    lines += [f"{p.step}\t{p.stage}\t{p.loss:.4f}\t{p.greedy_giou:.4f}\t{p.valid:.4f}" for p in curve]
    (folder / "curve.tsv").write_text("\n".join(lines) + "\n")
    console.print(f"policy: {folder / 'policy'}   curve: {folder / 'curve.tsv'}", markup=False)
    return folder / "policy"


def _refuse_other_run(config: SftConfig, data: RunData, folder: Path) -> None:
    """Raise ValueError where `folder` holds the beginnings of a training that would not go on as the same."""
    if not (folder / "state.pt").is_file():
        return
    begun = load_settings(SftConfig, folder / "config.yaml")
    kept = {"seed": (config.seed, begun.seed), "env": (config.env, begun.env), "codec": (config.codec, begun.codec)}
    kept |= {"policy": (config.policy, begun.policy), "tiny": (config.tiny, begun.tiny)}
    for name, (now, before) in kept.items():
        if now != before:
            raise ValueError(
                f"{name} is {now}, but {folder} began with {before}; go on with the same settings, or give this "
                "training another folder by run=NAME."
            )
    for split in data.changed(folder):
        raise ValueError(
            f"the data of split {split} is not what {folder} began with; restore the files of that time, or give this "
            "training another folder by run=NAME."
        )
