"""The settings of a run, and the checks that need several of them at once."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from envs.ranges import at_least, between, check_ranges
from rewards.settings import TermShaping
from rl.config.cards import num_cards, refuse_unfit_broadcast, refuse_unfit_cards
from rl.config.learner import LearnerSettings
from rl.config.outlines import OutlineSettings
from rl.config.refiner import RefinerRun
from rollout.settings import PoolSettings, RaySettings, RefinedSettings, Sampling

_GROUPS_PER_UNIT = 8
"""Groups that our own engine samples in one batch where the config leaves it open."""


@dataclass
class EvaluationSettings:
    """Greedy answers on scenes that are not trained on."""

    every: Annotated[int, at_least(1)] = 20
    """Steps between evaluations on the split `validation`, which also chooses the best checkpoint."""
    num_scenes: Annotated[int, at_least(1)] = 128
    """Scenes of each of these evaluations."""
    final_split: str = "test"
    """Split of the table at the end, one that chose nothing."""
    final_scenes: Annotated[int, at_least(1)] = 512
    """Scenes of the table at the end."""
    control: str | None = None
    """What else the same checkpoint became, such as by further supervised training as long as RL takes: a Hugging Face
    folder, or the name of an embedded one. The table has a column for it; null: none."""


@dataclass
class RunConfig:
    """Everything needed to repeat a run."""

    run: str
    """Folder of the run; its last part is the run's name."""
    steps: Annotated[int, at_least(1)]
    """Steps of the run, each with one batch of groups."""
    seed: Annotated[int, between(0, 2**63 - 1)] = 0
    """Key of every random number of the run."""
    groups_per_step: Annotated[int, at_least(1)] = 32
    """Examples that are asked per step."""
    group_size: Annotated[int, at_least(2, ", since every algorithm compares answers to the same example.")] = 8
    """Answers to one example that are compared with each other."""
    groups_per_unit: Annotated[int | None, at_least(1, ", or to null.")] = None
    """Groups sampled in one batch. null: 8, or under vLLM a worker's whole share of a step. Part of the result's
    identity to the last bit, unlike the number of workers."""
    save_every: Annotated[int, at_least(1)] = 20
    """Steps between checkpoints."""
    keep_checkpoints: Annotated[int, at_least(1)] = 2
    """Checkpoints that are kept, the best policy aside."""
    refills: Annotated[int, at_least(0)] = 0
    """Most rounds in which a step asks other examples in place of groups without signal; 0 learns from fewer groups."""
    max_left_out: Annotated[float, between(0, 1)] = 0.05
    """Largest share of a split's questions that its data set may have lost (`polytrace data check` says why)."""
    env: dict[str, Any] = field(default_factory=dict)
    codec: dict[str, Any] = field(default_factory=dict)
    policy: dict[str, Any] = field(default_factory=dict)
    rewards: dict[str, Any] = field(default_factory=dict)
    shaping: dict[str, TermShaping] = field(default_factory=dict)
    """Shaping by reward name, or under `total` of the weighted mean; what is left out stays raw."""
    algorithm: dict[str, Any] = field(default_factory=dict)
    sampling: Sampling = field(default_factory=Sampling)
    ray: RaySettings = field(default_factory=RaySettings)
    pool: PoolSettings = field(default_factory=PoolSettings)
    learner: LearnerSettings = field(default_factory=LearnerSettings)
    outlines: OutlineSettings = field(default_factory=OutlineSettings)
    """The outlines that learner.sft_weight teaches."""
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    refiner: RefinerRun = field(default_factory=RefinerRun)
    refined: RefinedSettings | None = None
    """A refiner trained before, whose masks rewards are measured on; `refiner` is the one trained after the run."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if not self.run or any(path.is_file() for path in (Path(self.run), *Path(self.run).parents)):
            raise ValueError(
                f"run is {self.run!r}, which cannot be a folder; give the folder of a run, such as runs/first."
            )
        if self.sampling.temperatures[0] == 0:
            raise ValueError(
                "sampling.temperature is 0, so that all answers of a group would be the same one and teach nothing; "
                "set it above 0, such as 1. Evaluation takes the likeliest answer by itself."
            )
        self._refuse_staleness_without_effect()
        refuse_unfit_cards(self.learner, self.pool, self.ray)
        refuse_unfit_broadcast(self.learner, self.pool)
        if self.learner.token_budget is None:
            _refuse_uneven_passes(self.groups_per_step, self.learner)
        else:
            _refuse_small_budget(self, self.learner.token_budget)

    @property
    def unit_groups(self) -> int:
        """Groups sampled in one batch: as set, or what suits the engine. vLLM mixes all requests and fills its batch
        anew with every token, so that it should get as many of them at once as there are."""
        if self.groups_per_unit is not None:
            return self.groups_per_unit
        share = -(-self.groups_per_step // self.pool.workers)
        return share if self.pool.engine.get("name") == "vllm" else _GROUPS_PER_UNIT

    def _refuse_staleness_without_effect(self) -> None:
        staleness, save_every = self.pool.staleness, self.save_every
        if staleness >= max(1, save_every):
            raise ValueError(
                f"pool.staleness is {staleness} and save_every {save_every}; a step at a checkpoint is sampled with "
                f"its own weights, so no answer is older than {save_every} - 1 = {save_every - 1} steps. Set "
                f"pool.staleness to {save_every - 1}, or save_every to {staleness + 1} or more."
            )


def _refuse_uneven_passes(groups_per_step: int, learner: LearnerSettings) -> None:
    pass_groups = learner.minibatches * learner.micro_groups * learner.ranks
    if groups_per_step % pass_groups:
        raise ValueError(
            f"groups_per_step is {groups_per_step}, but learner.minibatches {learner.minibatches} x "
            f"learner.micro_groups {learner.micro_groups} x learner.ranks {learner.ranks} = {pass_groups} must divide "
            f"it, so that every rank does the same passes; {_advice(groups_per_step, learner)}."
        )


def _refuse_small_budget(config: RunConfig, budget: int) -> None:
    answers = most_answer_tokens(config)
    if answers >= budget:
        raise ValueError(
            f"learner.token_budget is {budget}, but one group can take group_size {config.group_size} x "
            f"sampling.max_tokens {config.sampling.max_tokens} = {answers} answer tokens and its prompt besides, "
            f"all in one row; set it to {answers} and the longest prompt's tokens, or more, or lower the others."
        )
    if config.groups_per_step < config.learner.minibatches:
        raise ValueError(
            f"groups_per_step is {config.groups_per_step} and learner.minibatches {config.learner.minibatches}, which "
            "leaves mini-batches without a group; set learner.minibatches to that number or less."
        )


def most_answer_tokens(config: RunConfig) -> int:
    """Tokens that the answers of one group can have together, the one that is taught beside them included."""
    return (config.group_size + (config.learner.sft_weight > 0)) * config.sampling.max_tokens


def _advice(groups_per_step: int, learner: LearnerSettings) -> str:
    shares = learner.minibatches * learner.ranks
    if groups_per_step % shares:
        return f"set groups_per_step to a multiple of {shares}, such as {shares * max(1, groups_per_step // shares)}"
    return f"set learner.micro_groups to a divisor of {groups_per_step // shares}"


def num_gpus(config: RunConfig) -> float:
    """GPUs that all ranks and workers of a run reserve together."""
    return num_cards(config.learner, config.pool)
