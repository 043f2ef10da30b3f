"""What a learner rank is built from.

Apart from the rank itself, so that a config is checked without loading DeepSpeed.
"""

import math
from dataclasses import dataclass
from typing import Any

from envs.plugin import Plugin
from policies.settings import LoraSettings


@dataclass
class LearnerSettings:
    """How the policy is updated."""

    ranks: int = 1
    """May change when a run is resumed, and with it `micro_groups`, `threads` and `gpus_per_rank`."""
    zero_stage: int = 0
    """DeepSpeed ZeRO stage, 0 to 3."""
    offload_optimizer: bool = False
    """Whether the optimizer's state (and float32 copies of bfloat16 weights) stays in the host's memory and torch's
    AdamW works there: 8 to 16 bytes a weight less on the GPU, for a copy of gradients and weights an update. Needs
    stage 1, 2 or 3. On a CPU run it changes nothing but the order of some copies."""
    dtype: str = "float32"
    """float32 or bfloat16."""
    lr: float = 1e-5
    warmup_steps: int = 10
    """Steps over which the rate rises from 0; Adam's first steps have full size whatever the gradient says."""
    decay_steps: int | None = None
    """Steps over which the rate falls along a cosine to a tenth, warm-up included; null keeps it."""
    average: float = 0.0
    """Decay a step of a running average of the weights (0: none).

    Evaluations and the best checkpoint take the average; sampling and learning go on with the weights themselves. The
    gradient of a few hundred answers is mostly noise; their average is less so.
    """
    freeze_vision: bool = False
    """Whether the vision tower keeps its weights: patch embedding, blocks and all mergers, so everything that a refiner
    reads its features from. Everything else learns."""
    lora: LoraSettings | None = None
    """Adapters that learn in place of the weights; null: the weights themselves learn."""
    weight_decay: float = 0.0
    grad_clip: float = 1.0
    """Largest norm of a gradient, beyond which it is scaled down; 0 for none."""
    minibatches: int = 2
    """Updates a step; from the second one on the policy has moved and clipping acts."""
    micro_groups: int = 16
    """Groups in one forward and backward pass of one rank."""
    token_budget: int | None = None
    """Most tokens of one forward pass, padding included; where set, it takes the place of micro_groups.

    A pass of B groups runs on B * (longest prompt + most answer tokens of a group) tokens. Groups of like length go
    together, in as few passes as the budget allows; what a mini-batch learns stays the same.
    """
    gradient_checkpointing: bool = False
    """Whether layers are computed again in the backward pass: a third more time, and the memory of one layer at a time.
    """
    warn_sampler_difference: float = 0.02
    """Mean difference between the learner's and the sampler's log-probability of a token from which a run warns, once.

    In float32 it is near 1e-6, in bfloat16 near 1e-2; more speaks of other weights, temperatures or masks.
    """
    threads: int = 2
    """Torch threads of one rank."""
    gpus_per_rank: float = 0.0

    @property
    def identity(self) -> dict[str, Any]:
        """What must stay as it is when a run is resumed: all but what says who does which part of the same sums."""
        free = {"ranks", "threads", "gpus_per_rank", "micro_groups", "token_budget", "gradient_checkpointing"}
        free |= {"offload_optimizer", "warn_sampler_difference"}
        return {name: value for name, value in vars(self).items() if name not in free}

    def lr_at(self, step: int) -> float:
        """The learning rate of a step, 0 being the first; a function of settings and step alone."""
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        if self.decay_steps is None:
            return self.lr * warm
        progress = min(1.0, step / self.decay_steps)
        return self.lr * warm * (0.1 + 0.9 * (1 + math.cos(math.pi * progress)) / 2)

    def __post_init__(self) -> None:
        if self.zero_stage not in (0, 1, 2, 3) or self.dtype not in ("float32", "bfloat16"):
            raise ValueError(
                f"learner.zero_stage is {self.zero_stage} and learner.dtype {self.dtype!r}; they must be 0, 1, 2 or "
                "3, and float32 or bfloat16."
            )
        if not 0 <= self.average < 1 or (self.average > 0 and self.zero_stage == 3):
            raise ValueError(
                f"learner.average is {self.average} at learner.zero_stage {self.zero_stage}; it must lie in 0..1, 1 "
                "not included, and be 0 under stage 3, where no rank holds whole weights."
            )
        if self.lora is not None and self.average > 0:
            raise ValueError(
                f"learner.average is {self.average} with learner.lora, but the average of products is not the product "
                "of averages; set learner.average to 0."
            )
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError(
                "learner.offload_optimizer is on at learner.zero_stage 0, where DeepSpeed cannot offload; set "
                "learner.zero_stage to 1, 2 or 3."
            )
        if not self.warn_sampler_difference > 0:
            raise ValueError(
                f"learner.warn_sampler_difference is {self.warn_sampler_difference}; set it above 0, such as 0.02, or "
                "to .inf for no warning."
            )
        if self.token_budget is not None and self.token_budget < 1:
            raise ValueError(
                f"learner.token_budget is {self.token_budget}; set it to what one pass may hold, such as 8192, or to "
                "null for passes of learner.micro_groups groups."
            )
        if self.decay_steps is not None and self.decay_steps < 1:
            raise ValueError(f"learner.decay_steps is {self.decay_steps}; set it to 1 or more, or to null.")
        self._refuse_numbers()

    def _refuse_numbers(self) -> None:
        if min(self.ranks, self.minibatches, self.micro_groups, self.threads) < 1 or not 0 < self.lr < math.inf:
            raise ValueError(
                f"learner.ranks is {self.ranks}, minibatches {self.minibatches}, micro_groups {self.micro_groups}, "
                f"threads {self.threads}, lr {self.lr}; all must be positive, and lr finite."
            )
        for name in ("weight_decay", "grad_clip", "warmup_steps", "gpus_per_rank"):
            if not 0 <= vars(self)[name] < math.inf:
                raise ValueError(f"learner.{name} is {vars(self)[name]}; set it to 0 or more.")


@dataclass(frozen=True)
class RankPlace:
    """Where a rank stands among the others."""

    rank: int = 0
    world_size: int = 1
    host: str = "127.0.0.1"
    """Address of rank 0."""
    port: int = 29500


@dataclass(frozen=True)
class RankSettings:
    """What a rank builds itself from; small, since it travels."""

    learner: LearnerSettings
    policy: Plugin
    env: Plugin
    algorithm: Plugin
    temperature: float
    """Divides the logits, as in sampling."""
    groups_per_step: int
    seed: int
    grammar_tokens: int | None = None
    """The sampler's limit on tokens where it sampled under the codec's grammar: the masks follow from it."""
    most_answer_tokens: int = 0
    """Tokens that the answers of one group can have together; by these a token budget is judged at the first step."""
