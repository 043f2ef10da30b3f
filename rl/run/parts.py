"""What a run's config names, built: plugins, rewards and data, each checked here once."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from envs.plugin import Plugin
from policies.processor import Processor
from policies.settings import Asking
from rl.config.learner import RankSettings
from rl.config.plugins import algorithm_plugin, codec_plugin, engine_plugin, env_plugin, policy_plugin
from rl.config.rewards import RewardParts, reward_parts
from rl.config.run import RunConfig, most_answer_tokens
from rl.run.data import RunData
from rollout.settings import RefinedSettings
from rollout.worker import WorkerSettings


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
    """The refiner whose masks rewards are measured on, its folder absolute; None for a run without."""


def run_parts(config: RunConfig) -> RunParts:
    """The parts of a run, each built here once, so that a mistake in one shows before anything expensive starts.

    Whether they fit together, and this machine, is for `preflight`. Raises ValueError or FileNotFoundError that names
    the setting.
    """
    env = env_plugin(config.env)
    codec = codec_plugin(config.codec)
    rewards = reward_parts(config.rewards, config.shaping)
    algorithm = algorithm_plugin(config.algorithm)
    policy = policy_plugin(config.policy, codec)
    splits = ("train", "validation", config.evaluation.final_split)
    engine = engine_plugin(config)
    data = RunData.of(env, splits, config.max_left_out)  # last, since it may take minutes
    return RunParts(env, codec, policy, rewards, algorithm, engine, data, _absolute(config.refined))


def _absolute(refined: RefinedSettings | None) -> RefinedSettings | None:
    """The settings as they travel to workers, which may run in another folder."""
    return refined and replace(refined, refiner=str(Path(refined.refiner).expanduser().resolve()))


def processor_of(policy: Plugin) -> Processor:
    """The processor of a policy, made without the policy. Raises as `PolicyContract.make_processor` does."""
    family: Any = policy.load()
    names = [field.name for field in fields(Asking) if field.name in policy.settings]
    asking = Asking(**{name: policy.settings[name] for name in names})
    processor: Processor = family.make_processor(policy.settings["checkpoint"], policy.settings["codec"], asking)
    return processor


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
