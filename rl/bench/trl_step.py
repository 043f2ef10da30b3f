"""A GSPO step of TRL's GRPOTrainer: the same weights, prompts, number of answers, tokens and updates as ours.

What is set against its defaults: importance_sampling_level and loss_type as GSPO has them, no reference model, no
gradient checkpointing (we do none either), no logging, no saving, no top-k. TRL is part of the extra `bench`.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import (
    AutoTokenizer,
    PrinterCallback,
    ProcessorMixin,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    TrainerCallback,
)

from envs.example import Example
from rewards.score import Target, compare
from rewards.scorer import Scorer
from rl.bench.random_qwen import Policy
from rl.bench.side_by_side import Workload, flop_counter

WARM = 2
"""Steps before those that are timed; the operations of the second one are counted."""


def installed() -> bool:
    """Whether TRL and what it needs are there."""
    return find_spec("trl") is not None and find_spec("datasets") is not None


@dataclass(frozen=True)
class BenchScene:
    """What both sides answer and learn from."""

    folder: Path
    """The checkpoint that both begin with."""
    policy: Policy
    """The policy whose tokenizer and codec are used; its weights are not."""
    scorer: Scorer
    workload: Workload
    examples: tuple[Example, ...]
    """[B]"""
    images: tuple[NDArray[np.uint8], ...]
    """[B] arrays [H, W, 3]"""


class _Processor(Qwen3VLProcessor):
    """Qwen3VLProcessor without its video processor, which needs torchvision."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None) -> None:
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.vision_start_token, self.vision_end_token = "<|vision_start|>", "<|vision_end|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        self.vision_start_token_id = tokenizer.convert_tokens_to_ids(self.vision_start_token)
        self.vision_end_token_id = tokenizer.convert_tokens_to_ids(self.vision_end_token)
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


class _Clock(TrainerCallback):
    """Times whole steps of the trainer, and lets someone else work between two of them."""

    def __init__(self, updates: int) -> None:
        self._updates = updates
        self._counter, self._counting = flop_counter(), False
        self._started = 0.0
        self.between: Callable[[], object] = list
        """What is done between two steps, off the clock."""
        self.seconds: list[float] = []
        """Seconds of each step."""

    @property
    def flops(self) -> int:
        """Operations of the second step."""
        return self._counter.get_total_flops()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The first step starts."""
        self._started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After an update; every `updates` of them are a step."""
        if state.global_step % self._updates:
            return
        self.seconds.append(time.perf_counter() - self._started)
        if self._counting:
            self._counter.__exit__(None, None, None)
        self.between()
        self._counting = len(self.seconds) == 1
        if self._counting:
            self._counter.__enter__()
        self._started = time.perf_counter()


class TrlSteps:
    """A trainer, ready to take WARM + `rounds` steps."""

    def __init__(self, scene: BenchScene, updates: int, rounds: int) -> None:
        from trl import GRPOTrainer

        self._scene, self._updates = scene, updates
        self._targets = [Target.from_truth(example.truth) for example in scene.examples]
        self._clock = _Clock(updates)
        folder, policy = scene.folder, scene.policy
        # As TRL itself would load it.
        tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left", truncation_side="left")
        processor = _Processor(policy.processor.image_processor, tokenizer, tokenizer.chat_template)
        self._trainer = GRPOTrainer(
            model=Qwen3VLForConditionalGeneration.from_pretrained(folder, attn_implementation="sdpa"),
            reward_funcs=self._reward,
            args=self._settings(folder / "trl", rounds),
            train_dataset=self._dataset(),
            processing_class=processor,
            callbacks=[self._clock],
        )
        self._trainer.remove_callback(PrinterCallback)

    def run(self, between: Callable[[], object]) -> tuple[list[float], int]:
        """Seconds of each step after the first WARM, and the operations of one; `between` runs after each step."""
        self._clock.between = between
        self._trainer.train()
        return self._clock.seconds[WARM:], self._clock.flops

    def _settings(self, folder: Path, rounds: int) -> Any:
        from trl import GRPOConfig

        work = self._scene.workload
        return GRPOConfig(
            output_dir=str(folder),
            importance_sampling_level="sequence",
            loss_type="grpo",
            epsilon=3e-4,
            epsilon_high=4e-4,
            beta=0.0,
            num_generations=work.answers,
            max_completion_length=work.tokens,
            per_device_train_batch_size=work.groups * work.answers // self._updates,
            steps_per_generation=self._updates,
            gradient_accumulation_steps=1,
            max_steps=(WARM + rounds) * self._updates,
            learning_rate=1e-6,
            temperature=1.0,
            top_k=0,
            generation_kwargs={"suppress_tokens": self._scene.policy.processor.unsampled_tokens},
            gradient_checkpointing=False,
            use_cpu=not torch.cuda.is_available(),
            bf16=False,
            shuffle_dataset=False,
            report_to="none",
            logging_strategy="no",
            save_strategy="no",
            disable_tqdm=True,
        )

    def _dataset(self) -> Any:
        """The prompts; images come from memory, so that no file is decoded on the clock."""
        from datasets import Dataset

        examples = self._scene.examples
        images = [Image.fromarray(image) for image in self._scene.images]

        def rows(batch: dict[str, list[int]]) -> dict[str, list[Any]]:
            return {
                "place": batch["place"],
                "prompt": [[{"role": "user", "content": examples[place].prompt.text}] for place in batch["place"]],
                "image": [images[place] for place in batch["place"]],
            }

        return Dataset.from_dict({"place": list(range(len(examples)))}).with_transform(rows)

    def _reward(self, completions: Sequence[Any], place: Sequence[int], **_: Any) -> list[float]:
        """Every answer read and scored as ours are; what it earns is a random number, as ours do."""
        for group in sorted(set(place)):
            example = self._scene.examples[group]
            height, width = example.image.height, example.image.width
            texts = [one[0]["content"] for one, each in zip(completions, place, strict=True) if each == group]
            answers = [self._scene.policy.processor.codec.read(text, height, width, truncated=True) for text in texts]
            self._scene.scorer.columns(compare(answers, self._targets[group], example.id, example.prompt.text))
        return list(made_up_totals(len(place)))


def made_up_totals(*shape: int) -> NDArray[np.float64]:
    """Rewards to learn from: an untrained model's answers all earn 0, and groups without signal are left out."""
    return np.random.default_rng(0).random(shape)
