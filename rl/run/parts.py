"""What a run's config names, built: plugins, rewards and data, each checked here once."""

import re
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.resources import files
from inspect import signature
from pathlib import Path
from typing import Any

from envs.plugin import Plugin
from policies.families.base import PolicyContract
from policies.question import check_question
from policies.refiner.mask_refiner import MaskRefiner
from rl.config.learner import LearnerSettings, RankSettings
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
    """Build every part of a run once, here, so that a mistake shows before anything expensive starts.

    Raises ValueError or FileNotFoundError that names the setting.
    """
    refuse_wrong_gradients(version("deepspeed"), config.learner.zero_stage)
    dtype = config.policy.get("dtype", "float32")
    if dtype != config.learner.dtype:
        raise ValueError(
            f"policy.dtype is {dtype!r} and learner.dtype {config.learner.dtype!r}; workers hold the very bytes that "
            "the "
            "learner sends, so set both to the same."
        )
    env = plugin_from_settings("envs.datasets", "Env", config.env, "env", ["split"])
    data = RunData.of(env, ("train", "validation", config.evaluation.final_split))
    codec = plugin_from_settings("envs.codecs", "Codec", config.codec, "codec")
    rewards = reward_parts(config.rewards, config.shaping)
    algorithm = plugin_from_settings("rl.algorithms", "Algorithm", {"name": "gspo"} | config.algorithm, "algorithm")
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


def check_refined(
    refined: RefinedSettings | None, rewards: RewardParts, learner: LearnerSettings, engine: Plugin, policy: Plugin
) -> RefinedSettings | None:
    """`refined` as it travels to the workers, its folder absolute; None where the run has none.

    policy: with the checkpoint that the run begins with; it is built here, on the CPU, to know its vision tower. Raises
    ValueError where a reward needs what is not set, or where refiner and run do not fit; FileNotFoundError where the
    folder holds no refiner.
    """
    if refined is None:
        if rewards.on_refined:
            raise ValueError(
                f"rewards.{rewards.on_refined[0]} is measured on the refined mask, but `refined` is not set; set "
                "refined.refiner to the folder of a refiner (`polytrace refine` trains one), or leave that reward out."
            )
        return None
    if not learner.freeze_vision:
        raise ValueError(
            "refined is set and learner.freeze_vision false, but what the refiner was trained on are the features of "
            "this very vision tower, and a tower that learns drifts away from them; set learner.freeze_vision to true."
        )
    if engine.name == "vllm":
        raise ValueError(
            "refined is set and pool.engine is vllm, whose workers hold no policy that could give the refiner its "
            "features; set pool.engine.name to shared, or leave `refined` out."
        )
    folder = Path(refined.refiner).expanduser().resolve()
    if not folder.is_dir():
        raise FileNotFoundError(
            f"refined.refiner is {refined.refiner}, which is not a folder; give the folder of a refiner, such as "
            "runs/demo/refiner."
        )
    built: PolicyContract = policy.build()
    try:
        MaskRefiner.load(folder, built.vision_checksum())
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"refined.refiner is {refined.refiner}: {error}") from error
    return replace(refined, refiner=str(folder))


_FIRST_WRONG, _FIRST_RIGHT = (0, 17, 6), (0, 18, 3)


def refuse_wrong_gradients(version: str, zero_stage: int) -> None:
    """Raise ValueError where ZeRO-2 under this release of DeepSpeed gives wrong gradients.

    Releases from 0.17.6 on and before 0.18.3 did (github.com/deepspeedai/DeepSpeed, issue 7718): no error, no NaN,
    only a run that learns worse. version: such as "0.19.8", "0.18.3rc1" or "0.18.0+cu126".
    """
    found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?(.*)", version)
    if found is None:
        raise ValueError(f"the installed DeepSpeed calls itself {version!r}, which is no version; install it anew.")
    release = (int(found[1]), int(found[2]), int(found[3] or 0))
    before_release = bool(re.match(r"\.?(a|b|rc|dev)\d*", found[4]))
    wrong = _FIRST_WRONG <= release < _FIRST_RIGHT or (release == _FIRST_RIGHT and before_release)
    if zero_stage == 2 and wrong:
        raise ValueError(
            f"learner.zero_stage is 2 and DeepSpeed {version} is installed, but ZeRO-2 gradients are wrong in releases "
            "from 0.17.6 on and before 0.18.3 (deepspeed issue 7718); set learner.zero_stage to 1 or 3, or install "
            "deepspeed==0.19.8."
        )
