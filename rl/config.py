"""The settings of a run, and the checks that need several of them at once."""

from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.resources import files
from inspect import signature
from pathlib import Path
from typing import Any

from envs.plugin import Plugin
from policies.question import check_question
from rewards.shaping import TermShaping
from rl.closed_loop import check_refined
from rl.deepspeed_version import refuse_wrong_gradients
from rl.rank_settings import LearnerSettings, RankSettings
from rl.refiner_settings import RefinerRun
from rl.reward_settings import RewardParts, reward_parts
from rl.run_data import RunData
from rl.settings import plugin_from_settings
from rollout.engine import Sampling
from rollout.pool_settings import PoolSettings
from rollout.ray_settings import RaySettings
from rollout.refined import RefinedSettings
from rollout.worker import WorkerSettings

EMBEDDED = "tiny"
"""What policy.checkpoint says for the checkpoint that comes with Polytrace."""


@dataclass
class EvaluationSettings:
    """Greedy answers on scenes that are not trained on."""

    every: int = 20
    """Steps between evaluations on the split `validation`, which also chooses the best checkpoint."""
    num_scenes: int = 128
    """Scenes of each of them."""
    final_split: str = "test"
    final_scenes: int = 512
    """Scenes of the table at the end, of a split that chose nothing."""

    def __post_init__(self) -> None:
        for name in ("every", "num_scenes", "final_scenes"):
            if vars(self)[name] < 1:
                raise ValueError(f"evaluation.{name} is {vars(self)[name]}; set it to 1 or more.")


@dataclass
class RunConfig:
    """Everything needed to repeat a run."""

    run: str
    """Folder of the run; its last part is the run's name."""
    steps: int
    seed: int = 0
    groups_per_step: int = 32
    group_size: int = 8
    """Answers to one example that are compared with each other."""
    groups_per_unit: int = 8
    """Groups sampled in one batch. Part of the result's identity to the last bit, unlike the number of workers."""
    save_every: int = 20
    keep_checkpoints: int = 2
    refills: int = 0
    """Most rounds in which a step asks other examples in place of groups without signal; 0 learns from fewer groups."""
    env: dict[str, Any] = field(default_factory=dict)
    codec: dict[str, Any] = field(default_factory=dict)
    policy: dict[str, Any] = field(default_factory=dict)
    rewards: dict[str, Any] = field(default_factory=dict)
    shaping: dict[str, TermShaping] = field(default_factory=dict)
    """By reward name, or `total` for the weighted mean; what is left out stays raw."""
    algorithm: dict[str, Any] = field(default_factory=dict)
    sampling: Sampling = field(default_factory=Sampling)
    ray: RaySettings = field(default_factory=RaySettings)
    pool: PoolSettings = field(default_factory=PoolSettings)
    learner: LearnerSettings = field(default_factory=LearnerSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    refiner: RefinerRun = field(default_factory=RefinerRun)
    refined: RefinedSettings | None = None
    """A refiner trained before, whose masks rewards are measured on; `refiner` is the one trained after the run."""

    def __post_init__(self) -> None:
        if self.group_size < 2:
            raise ValueError(
                f"group_size is {self.group_size}, but every algorithm compares answers to the same example; set it to "
                "2 or more."
            )
        if self.refills < 0:
            raise ValueError(f"refills is {self.refills}; set it to 0 or more.")
        counts = {"steps": self.steps, "groups_per_step": self.groups_per_step, "groups_per_unit": self.groups_per_unit}
        counts |= {"save_every": self.save_every, "keep_checkpoints": self.keep_checkpoints}
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f"{name} is {value}; set it to 1 or more.")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}; set it to a number from 0 to 2**63 - 1.")
        if not self.run or any(path.is_file() for path in (Path(self.run), *Path(self.run).parents)):
            raise ValueError(
                f"run is {self.run!r}, which cannot be a folder; give the folder of a run, such as runs/first."
            )
        if self.sampling.temperature == 0:
            raise ValueError(
                "sampling.temperature is 0, so that all answers of a group would be the same one and teach nothing; "
                "set it above 0, such as 1. Evaluation takes the likeliest answer by itself."
            )
        self._refuse_staleness_without_effect()
        if self.learner.token_budget is None:
            _refuse_uneven_passes(self.groups_per_step, self.learner)
        else:
            _refuse_small_budget(self, self.learner.token_budget)
        refuse_wrong_gradients(version("deepspeed"), self.learner.zero_stage)

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
    """Tokens that the answers of one group can have together."""
    return config.group_size * config.sampling.max_tokens


def _advice(groups_per_step: int, learner: LearnerSettings) -> str:
    shares = learner.minibatches * learner.ranks
    if groups_per_step % shares:
        return f"set groups_per_step to a multiple of {shares}, such as {shares * max(1, groups_per_step // shares)}"
    return f"set learner.micro_groups to a divisor of {groups_per_step // shares}"


def num_gpus(config: RunConfig) -> float:
    """GPUs that all ranks and workers of a run reserve together."""
    return config.learner.ranks * config.learner.gpus_per_rank + config.pool.workers * config.pool.gpus_per_worker


@dataclass(frozen=True)
class RunParts:
    """A checked config: the plugins it names, ready to travel."""

    env: Plugin
    codec: Plugin
    policy: Plugin
    rewards: RewardParts
    algorithm: Plugin
    engine: Plugin
    data: RunData
    """What the env reads now, by split."""
    refined: RefinedSettings | None = None


def policy_plugin(policy: dict[str, Any], codec: Plugin) -> Plugin:
    """The policy that a config's `policy` entry means, with its codec.

    Raises ValueError or FileNotFoundError for a wrong one.
    """
    entry = {"name": "vision_language"} | policy
    if entry.get("checkpoint") is None:
        raise ValueError(
            f"policy.checkpoint is not set; give a Hugging Face model folder, or {EMBEDDED} for the embedded one."
        )
    plugin = plugin_from_settings(
        "policies",
        "Policy",
        entry | {"checkpoint": str(entry["checkpoint"])},
        "policy",
        ["codec", "weights", "lora"],
    )
    if "question" in plugin.settings:
        check_question(plugin.settings["question"])
    folder = Path(str(files("policies") / "tiny")) if entry["checkpoint"] == EMBEDDED else Path(entry["checkpoint"])
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"policy.checkpoint is {entry['checkpoint']}, but {folder} holds no config.json; give a Hugging Face "
            f"model folder, or {EMBEDDED} for the embedded one."
        )
    settings = plugin.settings | {"checkpoint": folder.resolve(), "codec": codec.build()}
    return Plugin(plugin.package, plugin.class_name, plugin.name, settings, plugin.module)


def run_parts(config: RunConfig) -> RunParts:
    """Build every part of a run once, here, so that a mistake shows before anything expensive starts.

    Raises ValueError or FileNotFoundError that names the setting.
    """
    dtype = config.policy.get("dtype", "float32")
    if dtype != config.learner.dtype:
        raise ValueError(
            f"policy.dtype is {dtype!r} and learner.dtype {config.learner.dtype!r}; workers hold the very bytes that "
            "the "
            "learner sends, so set both to the same."
        )
    env = plugin_from_settings("envs", "Env", config.env, "env", ["split"])
    data = RunData.of(env, ("train", "validation", config.evaluation.final_split))
    codec = plugin_from_settings("envs", "Codec", config.codec, "codec")
    rewards = reward_parts(config.rewards, config.shaping)
    algorithm = plugin_from_settings("rl", "Algorithm", {"name": "gspo"} | config.algorithm, "algorithm")
    algorithm.build()
    policy = policy_plugin(config.policy, codec)
    if config.learner.lora is not None and "lora" not in signature(policy.load()).parameters:
        raise ValueError(
            f"learner.lora is set, but the policy {policy.name} takes no `lora`; leave it out, or give the class that "
            "parameter and let it call policies.lora.add_adapters."
        )
    engine = engine_plugin(config)
    refined = check_refined(config.refined, rewards, config.learner, engine, policy)
    return RunParts(env, codec, policy, rewards, algorithm, engine, data, refined)


def engine_plugin(config: RunConfig) -> Plugin:
    """The engine that `pool.engine` means; raises ValueError for one that cannot do what the run asks of it."""
    plugin = plugin_from_settings("rollout", "Engine", {"name": "shared"} | config.pool.engine, "pool.engine")
    plugin.build().check(config.sampling, config.pool.gpus_per_worker)
    return plugin


def worker_settings(config: RunConfig, parts: RunParts) -> WorkerSettings:
    """What the rollout workers build themselves from: with the learner's adapters, where these travel alone."""
    lora = config.learner.lora
    adapted = lora is not None and lora.push == "adapters"
    return WorkerSettings(
        run=Path(config.run).name,
        seed=config.seed,
        env=parts.env,
        policy=parts.policy.with_settings(lora=lora) if adapted else parts.policy,
        engine=parts.engine,
        rewards=parts.rewards.recipes,
        threads=config.pool.threads,
        refined=parts.refined,
    )


def rank_settings(config: RunConfig, parts: RunParts) -> RankSettings:
    """What the learner's ranks build themselves from."""
    return RankSettings(
        learner=config.learner,
        policy=parts.policy,
        env=parts.env,
        algorithm=parts.algorithm,
        temperature=config.sampling.temperature,
        groups_per_step=config.groups_per_step,
        seed=config.seed,
        grammar_tokens=config.sampling.grammar_tokens,
        most_answer_tokens=most_answer_tokens(config),
    )
