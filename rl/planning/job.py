"""What is planned: a config, the model that it names, what one question and answer take, and the cards."""

from dataclasses import dataclass

from policies.families._sizes import ModelSizes
from rl.config.run import RunConfig, most_answer_tokens
from rl.planning.activations import Pass
from rl.planning.cards import Machines
from rl.planning.states import NUMBER_BYTES
from rollout.engines.vllm import Engine as VllmEngine
from rollout.settings import PoolSettings


@dataclass(frozen=True)
class Asked:
    """One question and its answers, tokens."""

    prompt: int
    """Tokens of a prompt, those of its image included."""
    image: int
    """Tokens of its image."""
    patches: int
    """Patches of its image."""
    answer: float
    """Tokens of an answer on average."""


@dataclass(frozen=True)
class EngineChoice:
    """What samples."""

    name: str
    """shared or vllm."""
    max_answers: int | None = None
    """Answers that our own engine samples at once; None for all of a unit."""
    gpu_share: float = 1.0
    """Share of the card that vLLM takes."""
    graphed: bool = False
    """Whether our own engine repeats a token as a CUDA graph."""

    @classmethod
    def of(cls, pool: PoolSettings) -> "EngineChoice":
        """What `pool.engine` chooses, its settings checked already; vLLM need not be installed here."""
        name = str(pool.engine.get("name", "shared"))
        if name != "vllm":
            return cls(name, pool.engine.get("max_answers"), graphed=bool(pool.engine.get("cuda_graph", False)))
        return cls(name, gpu_share=float(pool.engine.get("gpu_memory_utilization", VllmEngine.gpu_memory_utilization)))


@dataclass(frozen=True)
class Job:
    """Everything that a plan is reckoned from."""

    config: RunConfig
    sizes: ModelSizes
    asked: Asked
    machines: Machines
    divergence: bool = False
    """Whether a divergence from the first policy counts (algorithm.kl above 0)."""
    logit_bytes: int = 2**28
    """Bytes of float32 logits that learning holds at once (policy.logit_bytes)."""

    @property
    def engine(self) -> EngineChoice:
        """What samples."""
        return EngineChoice.of(self.config.pool)

    @property
    def number(self) -> int:
        """Bytes of a weight."""
        return NUMBER_BYTES[self.config.learner.dtype]

    @property
    def trained(self) -> int:
        """Parameters that learn."""
        return self.sizes.parameters.trained(self.config.learner)

    @property
    def weight_bytes(self) -> float:
        """Bytes of all weights, once, without adapters."""
        return float(self.sizes.parameters.all * self.number)

    @property
    def group_tokens(self) -> float:
        """Tokens of a group in learning on average: its prompt once, its answers, and an outline that is taught."""
        answers = self.config.group_size + (self.config.learner.sft_weight > 0)
        return self.asked.prompt + answers * self.asked.answer

    @property
    def frozen_vision(self) -> bool:
        """Whether the vision tower's blocks learn nothing."""
        learner = self.config.learner
        return learner.freeze_vision or (learner.lora is not None and not learner.lora.train_vision)

    @property
    def largest_group(self) -> int:
        """Tokens of a group whose answers are all as long as they may be."""
        return self.asked.prompt + most_answer_tokens(self.config)

    @property
    def largest_pass(self) -> Pass:
        """The largest pass of a rank."""
        learner, one = self.config.learner, self.asked
        if learner.token_budget is None:
            groups = learner.micro_groups
            return Pass(groups * self.largest_group, groups * one.patches)
        # Most images go together where answers are short.
        share = -(-self.config.groups_per_step // (learner.minibatches * learner.ranks))
        groups = max(1, min(share, learner.token_budget // (one.prompt + self.config.group_size)))
        patches = groups * one.patches
        if learner.patch_budget is not None:
            patches = min(patches, learner.patch_budget)
        return Pass(learner.token_budget, patches)

    @property
    def groups_of_pass(self) -> int:
        """Groups of an ordinary pass."""
        learner = self.config.learner
        if learner.token_budget is None:
            return learner.micro_groups
        groups = int(learner.token_budget // self.group_tokens)
        if learner.patch_budget is not None:
            groups = min(groups, learner.patch_budget // self.asked.patches)
        share = -(-self.config.groups_per_step // (learner.minibatches * learner.ranks))
        return max(1, min(groups, share))

    @property
    def passes(self) -> int:
        """Passes of a rank in one update."""
        learner = self.config.learner
        return -(-self.config.groups_per_step // (learner.minibatches * learner.ranks * self.groups_of_pass))

    @property
    def cards_used(self) -> int:
        """Cards that ranks and workers take."""
        learner, pool = self.config.learner, self.config.pool
        if pool.colocate:
            return pool.workers
        workers = -(-pool.workers // max(1, int(1 / pool.gpus_per_worker))) if pool.gpus_per_worker <= 1 else None
        return learner.ranks + (workers if workers is not None else round(pool.workers * pool.gpus_per_worker))
