"""The rewards of a run, or of a file to try on an archive: which, with what weight, run where, shaped how."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from envs.plugin import did_you_mean, plugin_names
from rewards.checked import told_error
from rewards.settings import RewardRecipe, TermShaping
from rewards.shaping import Shaper
from rl.config.load import plugin_from_settings, read_mapping, settings_from, shipped_configs


@dataclass(frozen=True)
class RewardParts:
    """Checked rewards, ready to travel."""

    recipes: dict[str, RewardRecipe]
    """By reward name, as the three below."""
    weights: dict[str, float]
    shaping: dict[str, TermShaping]
    """Or `total` for the weighted mean; what is left out stays raw."""

    def shaper(self) -> Shaper:
        """A new Shaper, which remembers no step."""
        return Shaper(self.weights, self.shaping)

    @property
    def on_refined(self) -> list[str]:
        """Names of the rewards that are measured on the refined mask."""
        return [name for name, recipe in self.recipes.items() if recipe.needs_refined]

    @property
    def on_thinking(self) -> list[str]:
        """Names of the rewards that pay for reasoning before an answer."""
        return [name for name, recipe in self.recipes.items() if recipe.needs_thinking]


@dataclass
class _RewardFile:
    """A file of rewards and nothing else."""

    rewards: dict[str, Any]
    shaping: dict[str, TermShaping] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)
    """Other settings that an ablation changes, which no reward looks at."""


@dataclass
class _Shaping:
    shaping: dict[str, TermShaping]


def reward_parts(
    rewards: Mapping[str, Any], shaping: Mapping[str, Any], codec: Mapping[str, Any] | None = None
) -> RewardParts:
    """The parts that the entries `rewards` and `shaping` of a config mean, shapings as mappings or as TermShaping.

    codec: the config's entry, which a reward with a field `codec` is given where its own entry leaves that out.

    A reward without processes of its own is built once, so that a mistake shows here. Raises ValueError or
    FileNotFoundError with the dotted path of what is wrong, and the nearest right name.
    """
    file = settings_from(_Shaping, {"shaping": shaping}, "")
    recipes = {name: _with_codec(recipe, codec) for name, recipe in reward_recipes(rewards).items()}
    parts = RewardParts(recipes, {name: _weight(name, recipe) for name, recipe in recipes.items()}, file.shaping)
    parts.shaper()
    return parts


def reward_recipes(rewards: Mapping[str, Any]) -> dict[str, RewardRecipe]:
    """The recipes that the entry `rewards` of a config means, by name; no reward is built.

    Raises ValueError or FileNotFoundError with the dotted path of what is wrong, and the nearest right name.
    """
    if not rewards:
        raise ValueError(f"rewards is {rewards}; give at least one reward: {', '.join(reward_names())}.")
    return {name: _recipe(name, entry) for name, entry in rewards.items()}


def load_rewards(path: Path) -> RewardParts:
    """Rewards from a YAML file of `rewards` and, if need be, `shaping`; or from whatever else names rewards.

    path: such a file on disk or a shipped one; a run's config, whose other keys are ignored; a run's folder, which
    means its config.yaml; a .py file with a class Reward, or the name of a built-in reward, alone with weight 1.
    Raises ValueError or FileNotFoundError for what does not fit, and for a reward on the refined mask: nothing refines
    the answers of an archive or of a suite.
    """
    if path.is_dir():
        return load_rewards(_config_of_run(path))
    parts = _read_rewards(path)
    if parts.on_refined:
        raise ValueError(
            f"{path}: rewards.{parts.on_refined[0]} is measured on the refined mask, and only a run with a refiner "
            "(`refined` in its config) has any; leave it out here, in a file of the other rewards. What it paid in a "
            f"run stands in that run's archive, as reward_{parts.on_refined[0]}."
        )
    return parts


def _read_rewards(path: Path) -> RewardParts:
    if path.suffix == ".py":
        return _alone(path.stem, {"module": str(path)})
    if not path.is_file() and str(path) in reward_names():
        return _alone(str(path), {})
    if not path.is_file() and path.suffix == "" and path.parent == Path("."):
        _refuse_unknown(path.name)
    values = read_mapping(path)
    # A run's config was, or will be, checked as a whole by the run; in any other file a wrong key is a mistake.
    chosen = {key: value for key, value in values.items() if key in ("rewards", "shaping") or "run" not in values}
    codec = values.get("codec") if "run" in values else None
    try:
        file = settings_from(_RewardFile, chosen, "")
        return reward_parts(file.rewards, file.shaping, codec)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def reward_names() -> list[str]:
    """Names of the built-in rewards, sorted."""
    return plugin_names("rewards.terms")


def _recipe(name: str, entry: Any) -> RewardRecipe:
    where, settings = f"rewards.{name}", entry
    if settings is None:
        raise ValueError(
            f"{where} is null, which switches nothing off; set {where}.weight to 0 or leave the reward out, or write "
            "{} for its defaults."
        )
    if not isinstance(settings, Mapping):
        raise ValueError(f"{where} is {entry!r}, expected a mapping of `key: value`.")
    try:
        plugin = plugin_from_settings("rewards.terms", "Reward", {"name": name, **settings}, where, beside=RewardRecipe)
    except (ValueError, FileNotFoundError):
        raise
    except Exception as error:  # whatever the user's own file does while it is imported
        told = told_error(error, str(settings.get("module", "")))
        raise ValueError(f"{where}: importing {settings.get('module', name)} {told}; correct that file.") from error
    hosting = {key: settings[key] for key in ("processes", "seconds", "on_error", "only") if key in settings}
    try:
        return RewardRecipe(plugin, **hosting)
    except ValueError as error:
        raise ValueError(f"{where}.{error}") from error


def _with_codec(recipe: RewardRecipe, codec: Mapping[str, Any] | None) -> RewardRecipe:
    if codec is None or "codec" in recipe.plugin.settings or not recipe.plugin.takes("codec"):
        return recipe
    return replace(recipe, plugin=recipe.plugin.with_settings(codec=dict(codec)))


def _weight(name: str, recipe: RewardRecipe) -> float:
    plugin, where = recipe.plugin, f"rewards.{name}"
    try:
        # What has processes of its own may load a model when it is built, which is no business of this process.
        found: Any = plugin.load() if recipe.processes else plugin.build()
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    except Exception as error:  # whatever the user's own class does while it is built
        raise ValueError(f"{where} cannot be built: it {told_error(error, plugin.module)}.") from error
    weight = plugin.settings.get("weight", found.weight if "weight" in dir(found) else None)
    if not isinstance(weight, int | float):
        raise ValueError(
            f"{where}: the class Reward of {plugin.module or plugin.name} has no weight; give it the field "
            "`weight: float = 1.0`."
        )
    return float(weight)


def _alone(name: str, entry: Mapping[str, Any]) -> RewardParts:
    recipe = _recipe(name, entry)
    if not _weight(name, recipe) >= 0:
        raise ValueError(f"rewards.{name}: its weight is {_weight(name, recipe)}; set it to 0 or more.")
    return RewardParts({name: recipe}, {name: 1.0}, {})


def _config_of_run(folder: Path) -> Path:
    path = folder / "config.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no config.yaml; give the folder of a run, or a file of rewards.")
    return path


def _refuse_unknown(name: str) -> None:
    """Refuse a bare name that is neither a shipped config nor a reward."""
    rewards, configs = reward_names(), [f"rewards/{config}" for config in shipped_configs("rewards")]
    if name not in shipped_configs():
        raise FileNotFoundError(
            f"{name} names no rewards{did_you_mean(name, rewards + configs)} Give a YAML file, the folder of a run, a "
            f".py file, a shipped config ({', '.join(configs)}) or a built-in reward ({', '.join(rewards)})."
        )
