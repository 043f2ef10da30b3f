"""What a run's config names, built: plugins, rewards and data, each checked here once."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from envs.datasets.base import Env
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

_LENGTH = "max_model_len"
"""What an engine calls the longest prompt and answer together, where it must know that when it is opened."""
_MEASURED = 256
"""Training examples whose prompts are measured for it."""


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
    rewards = reward_parts(config.rewards, config.shaping, config.codec)
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
        engine=opened_for(config, parts),
        rewards=parts.rewards.recipes,
        threads=config.pool.threads,
        refined=parts.refined,
        device=config.pool.device,
        sleeps=config.pool.colocate,
        sleeps_without_weights=config.pool.sleep_without_weights,
    )


def opened_for(config: RunConfig, parts: RunParts) -> Plugin:
    """The engine, told how long prompt and answer get together where it can be told so and the config leaves it open.

    Twice the longest of a few training prompts, since those that are not measured may be longer, and the longest
    answer; at most what the model takes.
    """
    if not parts.engine.takes(_LENGTH) or parts.engine.settings.get(_LENGTH) is not None:
        return parts.engine
    processor = processor_of(parts.policy)
    longest = 2 * longest_prompt(parts.env.build(split="train"), processor) + config.sampling.max_tokens
    limit = int(processor.config.get_text_config().max_position_embeddings)
    return parts.engine.with_settings(max_model_len=min(longest, limit))


def longest_prompt(env: Env, processor: Processor) -> int:
    """Tokens of the longest prompt of up to 256 examples, taken evenly; no image is opened."""
    lengths = []
    for index in np.linspace(0, len(env) - 1, min(len(env), _MEASURED)).astype(int).tolist():
        example = env[index]
        blank = np.broadcast_to(np.uint8(0), (example.image.height, example.image.width, 3))
        lengths.append(len(processor.prompt_tokens(example.question(blank))))
    return max(lengths)


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
