"""What a run's config names, built: plugins, rewards and data, each checked here once."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from envs.plugin import Plugin
from policies.question import check_question
from rl.config.learner import RankSettings
from rl.config.load import plugin_from_settings
from rl.config.rewards import RewardParts, reward_parts
from rl.config.run import RunConfig, most_answer_tokens
from rl.run.data import RunData
from rollout.settings import RefinedSettings
from rollout.worker import WorkerSettings

EMBEDDED = "tiny"
"""What policy.checkpoint says for the checkpoint that comes with Polytrace."""


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
        "policies.families",
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
    """The parts of a run, each built here once, so that a mistake in one shows before anything expensive starts.

    Whether they fit together, and this machine, is for `preflight`. Raises ValueError or FileNotFoundError that names
    the setting.
    """
    env = plugin_from_settings("envs.datasets", "Env", config.env, "env", ["split"])
    data = RunData.of(env, ("train", "validation", config.evaluation.final_split))
    codec = plugin_from_settings("envs.codecs", "Codec", config.codec, "codec")
    rewards = reward_parts(config.rewards, config.shaping)
    algorithm = algorithm_plugin(config.algorithm)
    policy = policy_plugin(config.policy, codec)
    return RunParts(env, codec, policy, rewards, algorithm, engine_plugin(config), data, _absolute(config.refined))


def _absolute(refined: RefinedSettings | None) -> RefinedSettings | None:
    """The settings as they travel to workers, which may run in another folder."""
    return refined and replace(refined, refiner=str(Path(refined.refiner).expanduser().resolve()))


def algorithm_plugin(algorithm: Mapping[str, Any]) -> Plugin:
    """The algorithm that a config's `algorithm` entry means; raises ValueError for a wrong one."""
    plugin = plugin_from_settings("rl.algorithms", "Algorithm", {"name": "gspo"} | dict(algorithm), "algorithm")
    plugin.build()
    return plugin


def engine_plugin(config: RunConfig) -> Plugin:
    """The engine that `pool.engine` means; raises ValueError for one that cannot do what the run asks of it."""
    plugin = plugin_from_settings("rollout.engines", "Engine", {"name": "shared"} | config.pool.engine, "pool.engine")
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
