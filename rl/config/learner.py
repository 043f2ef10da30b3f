"""Settings of a training on DeepSpeed ranks and of the learner, and what one of its ranks is built from.

Apart from the rank itself, so that a config is checked without loading DeepSpeed.
"""

import math
from dataclasses import dataclass, field
from typing import Annotated, Any

from envs.plugin import Plugin
from envs.ranges import above, at_least, between, check_ranges, one_of
from policies.settings import ALL_LINEAR, LoraSettings

ALL, ALL_BUT_ENCODERS = "all", "all_but_encoders"
"""What a stage may train beside the parts of a policy (SftStage.trains)."""
ZERO = "zero_optimization"
PASSED_THROUGH = (ZERO, "comms_logger", "communication_data_type", "data_types")
"""Parts of DeepSpeed's configuration that are the user's, but for what is set here."""
FORMATS = ("fp32", "bf16", "fp16")
_OURS = {
    "stage": "learner.zero_stage",
    "offload_optimizer": "learner.offload_optimizer",
    "train_batch_size": "groups_per_step and sampling.group_size",
    "train_micro_batch_size_per_gpu": "learner.micro_groups or learner.token_budget",
    "gradient_accumulation_steps": "learner.micro_groups or learner.token_budget",
    "gradient_clipping": "learner.grad_clip",
    "bf16": "learner.dtype",
    "fp16": "learner.dtype",
    "optimizer": "learner.lr, learner.weight_decay",
    "scheduler": "learner.warmup_steps, learner.decay_steps",
}
"""Keys of DeepSpeed's that are settings of the learner, by what they are called there."""


@dataclass
class TrainingSettings:
    """How a policy is trained on DeepSpeed ranks, whatever it learns from."""

    ranks: Annotated[int, at_least(1)] = 1
    """Number of DeepSpeed processes. It may change when a run is resumed, and with it `threads`, `gpus_per_rank` and
    what a rank does in one pass."""
    zero_stage: Annotated[int, one_of(0, 1, 2, 3)] = 0
    """DeepSpeed ZeRO stage, 0 to 3."""
    offload_optimizer: bool = False
    """Whether the optimizer's state (and float32 copies of bfloat16 weights) stays in the host's memory and torch's
    AdamW works there: 8 to 16 bytes per weight less on the GPU, for a copy of gradients and weights per update. Needs
    stage 1, 2 or 3. On a CPU run it changes nothing but the order of some copies."""
    dtype: Annotated[str, one_of("float32", "bfloat16")] = "float32"
    """Number format of the weights: float32 or bfloat16."""
    average: Annotated[float, between(0, 1, open_high=True)] = 0.0
    """Decay per step of a running average of the weights (0: none).

    Evaluations and the policy that is kept take the average; sampling and learning go on with the weights themselves.
    The gradient of a few hundred answers is mostly noise; their average is less so.
    """
    freeze_vision: bool = False
    """Whether the vision tower keeps its weights: patch embedding, blocks and all mergers, so everything that a refiner
    reads its features from. Everything else learns."""
    freeze_projector: bool | None = None
    """Whether what joins tower and language model keeps its weights (Qwen's mergers, LLaVA's two layers); null: as
    freeze_vision says. true with freeze_vision false lets the blocks learn alone, false with true the projector."""
    lora: LoraSettings | None = None
    """Adapters that learn in place of the weights; null: the weights themselves learn. What a policy has beside its
    model learns whole in either case: what chooses among masks, or draws them."""
    vision_lr_share: Annotated[float, above(0)] = 1.0
    """Learning rate of the vision tower's blocks, as a share of the rate of all else: 0.01 in Qwen3-VL-Seg, and 0.1 is
    usual. What joins them to the language model has the whole rate."""
    weight_decay: Annotated[float, at_least(0)] = 0.0
    """Decoupled weight decay."""
    grad_clip: Annotated[float, at_least(0)] = 1.0
    """Largest norm of a gradient, beyond which it is scaled down; 0 for none."""
    gradient_checkpointing: bool = False
    """Whether layers are computed again in the backward pass: a third more time, and the memory of one layer at a time.
    """
    threads: Annotated[int, at_least(1)] = 2
    """Torch threads of one rank."""
    gpus_per_rank: Annotated[float, between(0, 1)] = 0.0
    """GPUs that one rank reserves: 1, or a part where a rollout worker shares the card (pool.colocate). 0: it works on
    the CPU, whatever GPUs there are."""
    offload_at_rest: bool = False
    """With pool.colocate, whether the optimizer's state (and float32 copies of bfloat16 weights) waits in the host's
    memory while workers sample: room on the card for a copy there and back per step. Needs stage 1, 2 or 3."""

    deepspeed: dict[str, Any] = field(default_factory=dict)
    """Further configuration of DeepSpeed, in its own words: zero_optimization (such as zero_hpz_partition_size,
    overlap_comm, stage3_prefetch_bucket_size), comms_logger, communication_data_type, data_types. Checked by its own
    schema; keys that are settings of the learner are refused."""

    @property
    def device(self) -> str:
        """What a rank learns on, in torch's words: cuda where it reserves a GPU, else cpu."""
        return "cuda" if self.gpus_per_rank else "cpu"

    @property
    def identity(self) -> dict[str, Any]:
        """What must stay as it is when a run is resumed: all but what says who does which part of the same sums."""
        free = {"ranks", "threads", "gpus_per_rank", "gradient_checkpointing", "offload_optimizer", "offload_at_rest"}
        free |= {"deepspeed"}
        return {name: value for name, value in vars(self).items() if name not in free}

    def __post_init__(self) -> None:
        check_ranges(self, "learner")
        _refuse_ours(self.deepspeed)
        if self.average > 0 and self.zero_stage == 3:
            raise ValueError(
                f"learner.average is {self.average} at learner.zero_stage 3, where no rank holds whole weights; set it "
                "to 0."
            )
        if self.lora is not None and self.freeze_projector is not None:
            raise ValueError(
                f"learner.freeze_projector is {self.freeze_projector} with learner.lora, whose targets alone learn; "
                "name layers of the projector there, and set learner.freeze_projector to null."
            )
        trains_vision = self.lora is not None and self.lora.train_vision
        if self.freeze_vision and (trains_vision or self.vision_lr_share != 1.0):
            other = "learner.lora.train_vision" if trains_vision else f"learner.vision_lr_share {self.vision_lr_share}"
            raise ValueError(
                f"learner.freeze_vision is true with {other}, which says that the vision tower learns; leave one of "
                "them out."
            )
        if (
            self.lora is not None
            and self.lora.targets == ALL_LINEAR
            and not trains_vision
            and self.vision_lr_share != 1.0
        ):
            raise ValueError(
                f"learner.vision_lr_share is {self.vision_lr_share} with learner.lora, whose adapters are of the "
                "language model alone, so that nothing of the vision tower learns; set learner.lora.train_vision to "
                "true, or learner.vision_lr_share to 1."
            )
        if self.lora is not None and self.average > 0:
            raise ValueError(
                f"learner.average is {self.average} with learner.lora, but the average of products is not the product "
                "of averages; set learner.average to 0."
            )
        for name in ("offload_optimizer", "offload_at_rest"):
            if self.zero_stage == 0 and vars(self)[name]:
                raise ValueError(
                    f"learner.{name} is on at learner.zero_stage 0, where DeepSpeed cannot offload; set "
                    "learner.zero_stage to 1, 2 or 3."
                )


@dataclass
class LearnerSettings(TrainingSettings):
    """How the policy is updated by its rewards."""

    lr: Annotated[float, above(0)] = 1e-5
    """Highest learning rate of AdamW."""
    warmup_steps: Annotated[int, at_least(0)] = 10
    """Steps over which the rate rises from 0; Adam's first steps have full size whatever the gradient says."""
    decay_steps: Annotated[int | None, at_least(1, ", or to null.")] = None
    """Steps over which the rate falls along a cosine to a tenth, warm-up included; null keeps it."""
    minibatches: Annotated[int, at_least(1)] = 2
    """Updates per step; from the second one on the policy has moved and clipping acts."""
    micro_groups: Annotated[int, at_least(1)] = 16
    """Groups in one forward and backward pass of one rank."""
    token_budget: Annotated[
        int | None,
        at_least(1, ", what one pass may hold, such as 8192, or to null for passes of learner.micro_groups groups."),
    ] = None
    """Most tokens of one forward pass, padding included; where set, it takes the place of micro_groups.

    A pass of B groups runs on B * (longest prompt + most answer tokens of a group) tokens. Groups of like length go
    together, in as few passes as the budget allows; what a mini-batch learns stays the same.
    """
    patch_budget: Annotated[int | None, at_least(1, ", or to null for as many as learner.token_budget allows.")] = None
    """Most patches of images in one forward pass, where learner.token_budget is set: the vision tower works on these,
    four for a token of the prompt in Qwen's families, and keeps as much for the backward pass unless it is frozen."""
    sft_weight: Annotated[float, at_least(0)] = 0.0
    """Weight of a supervised term beside the rewards: for each question that is learned from, the mean negative
    log-likelihood of a token of its annotated outline (`outlines`), at the temperature and under the grammar that
    answers are sampled with. 0: none. Needs masks of what is asked for."""
    decoder_weight: Annotated[float, at_least(0)] = 0.0
    """Weight of a mask decoder's own loss beside the rewards (policy box_decoder): the mean over the answers of a
    mini-batch of what its masks cost (`policy.losses`), drawn in the boxes that the answers themselves say and compared
    with the true masks that these are about. The decoder alone learns by it. 0: none, which needs policy.freeze_decoder
    true."""
    decoder_lr: Annotated[float | None, above(0, ", or to null for learner.lr.")] = None
    """Highest learning rate of a mask decoder that learns along; it rises and falls as lr does. null: lr. AdamW's steps
    are as long as its rate, whatever decoder_weight is: that says how much of grad_clip the decoder takes up."""
    warn_sampler_difference: Annotated[float, above(0, ", such as 0.02, or to .inf for no warning.", infinite=True)] = (
        0.02
    )
    """Mean difference between the learner's and the sampler's log-probability of a token from which a run warns, once.

    In float32 it is near 1e-6, in bfloat16 near 1e-2; more speaks of other weights, temperatures or masks.
    """

    @property
    def identity(self) -> dict[str, Any]:
        """What must stay as it is when a run is resumed; see TrainingSettings.identity."""
        free = {"micro_groups", "token_budget", "patch_budget", "warn_sampler_difference"}
        return {name: value for name, value in super().identity.items() if name not in free}

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_patches_alone(self.token_budget, self.patch_budget)
        if self.decoder_lr is not None and not self.decoder_weight:
            raise ValueError(
                f"learner.decoder_lr is {self.decoder_lr:g} and learner.decoder_weight 0, so that no decoder learns; "
                "set the latter above 0, or learner.decoder_lr to null."
            )
        if self.decoder_weight and self.zero_stage == 3 and self.token_budget is not None:
            raise ValueError(
                f"learner.decoder_weight is {self.decoder_weight:g} at learner.zero_stage 3 with learner.token_budget, "
                "by which ranks have passes of unlike many groups, and a decoder that is called once a group falls out "
                "of step; set learner.token_budget to null for passes of learner.micro_groups, or learner.zero_stage "
                "to 2."
            )
        if self.decoder_weight and self.lora is not None and self.lora.push == "adapters":
            raise ValueError(
                f"learner.decoder_weight is {self.decoder_weight:g} and learner.lora.push adapters, so that workers "
                "would go on drawing by the first decoder; set learner.lora.push to merged."
            )

    def lr_at(self, step: int) -> float:
        """The learning rate of a step, 0 being the first; a function of settings and step alone."""
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        if self.decay_steps is None:
            return self.lr * warm
        progress = min(1.0, step / self.decay_steps)
        return self.lr * warm * (0.1 + 0.9 * (1 + math.cos(math.pi * progress)) / 2)


def _refuse_ours(tuning: dict[str, Any]) -> None:
    """Raise ValueError for keys of DeepSpeed's configuration that are settings here, or not passed through."""
    zero = tuning.get(ZERO)
    inner = {f"{ZERO}.{key}": key for key in zero} if isinstance(zero, dict) else {}
    for path, key in inner.items():
        if key in ("stage", "offload_optimizer"):
            raise ValueError(f"learner.deepspeed.{path} is set by {_OURS[key]}; leave it out there.")
    for key in tuning:
        if key in _OURS:
            raise ValueError(f"learner.deepspeed.{key} is set by {_OURS[key]}; leave it out there.")
        if key not in PASSED_THROUGH:
            raise ValueError(
                f"learner.deepspeed.{key} is not passed through; what is, are {', '.join(PASSED_THROUGH)}."
            )


def refuse_patches_alone(token_budget: int | None, patch_budget: int | None) -> None:
    """Raise ValueError for a budget of patches without one of tokens."""
    if patch_budget is not None and token_budget is None:
        raise ValueError(
            f"learner.patch_budget is {patch_budget} without learner.token_budget, which decides what one pass holds; "
            "set both, or neither."
        )


@dataclass(frozen=True)
class RankPlace:
    """Where a rank stands among the others."""

    rank: int = 0
    world_size: int = 1
    host: str = "127.0.0.1"
    """Address of rank 0."""
    port: int = 29500
    device: str = "cpu"
    """What it works on: cuda, the only GPU that its process sees, or cpu."""


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
