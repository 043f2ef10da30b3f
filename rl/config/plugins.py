"""The plugins that a config names: the folder of each kind, and what the program itself gives them."""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from envs.plugin import Plugin
from policies.checkpoint import Checkpoint
from policies.question import check_question
from rl.config.load import plugin_from_settings
from rl.config.rewards import reward_recipes
from rl.config.run import RunConfig

EMBEDDED = {"tiny": "tiny", "tiny_few": "tiny_few", "tiny_few_control": "tiny_few_control"}
"""What policy.checkpoint says for the checkpoints that come with Polytrace, and the folder of each in `policies`."""
_PARTS = {"selection.safetensors": ("mask_selection", "mask_numbers"), "mask_decoder.safetensors": ("box_decoder",)}
"""Files of a checkpoint that some policies need beside the model, and which."""
NAMED = " or ".join(EMBEDDED)
"""These names, for messages."""


def checkpoint_folder(checkpoint: str) -> Path:
    """The folder of a checkpoint that is named as policy.checkpoint names it."""
    return Path(str(files("policies") / EMBEDDED[checkpoint])) if checkpoint in EMBEDDED else Path(checkpoint)


def env_plugin(env: Mapping[str, Any], where: str = "env") -> Plugin:
    """The env that a config's `env` entry means; raises ValueError or FileNotFoundError for a wrong one.

    where: the entry's dotted path, for errors.
    """
    if env.get("name") == "tasks" and isinstance(env.get("of"), Mapping):
        env_plugin(env["of"], f"{where}.of")
    if env.get("name") == "mixture":
        for place, part in enumerate(env.get("parts") or ()):
            entry = {key: value for key, value in part.items() if key not in ("share", "called")}
            if "name" in entry or "module" in entry:
                env_plugin(entry, f"{where}.parts[{place}]")
    return plugin_from_settings("envs.datasets", "Env", env, where, ["split"])


def codec_plugin(codec: Mapping[str, Any]) -> Plugin:
    """The codec that a config's `codec` entry means; raises ValueError or FileNotFoundError for a wrong one."""
    return plugin_from_settings("envs.codecs", "Codec", codec, "codec")


def algorithm_plugin(algorithm: Mapping[str, Any]) -> Plugin:
    """The algorithm that a config's `algorithm` entry means; raises ValueError for a wrong one."""
    plugin = plugin_from_settings("rl.algorithms", "Algorithm", {"name": "gspo"} | dict(algorithm), "algorithm")
    plugin.build()
    return plugin


def policy_plugin(policy: Mapping[str, Any], codec: Plugin) -> Plugin:
    """The policy that a config's `policy` entry means, with its codec.

    Raises ValueError or FileNotFoundError for a wrong one.
    """
    entry = {"name": "vision_language"} | dict(policy)
    if entry.get("checkpoint") is None:
        raise ValueError(
            f"policy.checkpoint is not set; give a Hugging Face model folder, or {NAMED} for an embedded one."
        )
    checkpoint = str(entry["checkpoint"])
    folder = checkpoint_folder(checkpoint)
    if (folder / "adapter_config.json").is_file():  # told before the class and its libraries load
        Checkpoint(folder).refuse_foreign()
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"policy.checkpoint is {checkpoint}, but {folder} holds no config.json; give a Hugging Face model folder, "
            f"or {NAMED} for an embedded one."
        )
    if entry.get("module") is None:
        _refuse_other_parts(folder, str(entry["name"]))
    given = ["codec", "weights", "lora"]
    plugin = plugin_from_settings("policies.families", "Policy", entry | {"checkpoint": checkpoint}, "policy", given)
    if "question" in plugin.settings:
        check_question(plugin.settings["question"])
    if plugin.settings.get("encoders") is not None:  # workers may run in another folder
        whole = [str(Path(each).expanduser().resolve()) for each in plugin.settings["encoders"]]
        plugin = plugin.with_settings(encoders=whole)
    return plugin.with_settings(checkpoint=folder.resolve(), codec=codec.build())


def _refuse_other_parts(folder: Path, name: str) -> None:
    """Raise ValueError for a checkpoint whose answers need a part that the policy `name` would leave out, and so begin
    anew or say something else in silence."""
    for file, owners in _PARTS.items():
        if (folder / file).is_file() and name not in owners:
            raise ValueError(
                f"policy.name is {name}, and {folder} holds {file}, without which its answers mean nothing; set "
                f"policy.name to {' or '.join(owners)} with the config that it was trained by (predict takes it by "
                "--config), or remove the file to leave that part out."
            )


def engine_plugin(config: RunConfig) -> Plugin:
    """The engine that `pool.engine` means; raises ValueError for one that cannot do what the run asks of it."""
    plugin = plugin_from_settings("rollout.engines", "Engine", {"name": "shared"} | config.pool.engine, "pool.engine")
    plugin.build().check(config.sampling, config.pool.gpus_per_worker)
    lora = config.learner.lora
    if plugin.name == "vllm" and lora is not None and lora.push == "adapters":
        raise ValueError(
            "learner.lora.push is adapters, and pool.engine vllm takes whole weights only; set learner.lora.push to "
            "merged, or pool.engine.name to shared."
        )
    return plugin


def check_entries(config: RunConfig) -> None:
    """Raise ValueError or FileNotFoundError for the first wrong entry of env, codec, rewards or algorithm.

    Nothing is built but the algorithm, and no data is read: a misspelt key of the first three is told without loading
    torch, one of the algorithm without transformers, which the classes of policies and engines need.
    """
    env_plugin(config.env)
    codec_plugin(config.codec)
    reward_recipes(config.rewards)
    algorithm_plugin(config.algorithm)
