"""Settings of labelling: where the images are, the stages in their order, and what becomes of the labels."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

from envs.plugin import Plugin
from envs.ranges import at_least, between, check_ranges
from rl.config.load import plugin_from_settings
from rollout.settings import RaySettings

_IMAGES, _STAGES = "rollout.label.images", "rollout.label.stages"


@dataclass
class StageSettings:
    """What may stand beside the settings of every stage."""

    workers: Annotated[int, at_least(1)] = 1
    """Workers of a stage with a model, each of which holds it."""
    gpus: Annotated[float, at_least(0)] = 0.0
    """GPUs of each of them, such as 0.5 where two stages share one."""
    cpus: Annotated[float, at_least(0)] = 1.0
    """Cores that Ray counts for each of them, and threads of its model, one at least."""
    checkpoint: str | None = None
    """Of stages that ask a policy: a run (its best policy), a Hugging Face folder, or the name of an embedded one."""
    config: str | None = None
    """YAML by which a policy that is no run is asked (codec, view, longest answer); null: the demo's."""


_BESIDE = tuple(part.name for part in fields(StageSettings))


@dataclass
class LabelConfig:
    """One labelling job."""

    out: str
    """Folder of the labels; a job that was stopped goes on there."""
    images: dict[str, Any]
    """Which images: `name` is folder, parquet, annotated or composed; the other keys are settings of that source."""
    stages: list[dict[str, Any]]
    """The stages in order, each with `name`, its settings, and where it runs (workers, gpus, cpus)."""
    split: str = "train"
    """Split that the examples are of."""
    data_set: str = "labels"
    """First part of the examples' ids."""
    limit: Annotated[int | None, at_least(1)] = None
    """Most images, the first ones; null takes all."""
    candidates: bool = False
    """Whether the objects of an image go with each question as masks to choose from."""
    near_duplicates: Annotated[int | None, between(0, 32)] = None
    """Bits of 64 in which the perceptual hashes of two images of the same picture may differ, such as 4; of such images
    the first is labelled. null keeps all."""
    against: list[str] = field(default_factory=list)
    """Data sets, as files or prepared, whose held-out photos are not labelled: those that the model will be judged by.
    Known by COCO's number in their name, or by their bytes. Of images that are files."""
    block_images: Annotated[int, at_least(1)] = 64
    """Images that go through a stage together: what bounds the memory, and what a stop costs."""
    readers: Annotated[int, at_least(1)] = 1
    """Workers that open images."""
    empty_images: Annotated[int, at_least(1)] = 1000
    """The job ends where nothing at all was found in so many images, since then something is wrong with it."""
    in_process: bool = False
    """Whether all stages run one after the other in this process, without Ray: for few images."""
    ray: RaySettings = field(default_factory=RaySettings)

    def __post_init__(self) -> None:
        check_ranges(self, "")
        if not self.stages:
            raise ValueError("stages is empty; give at least one, such as {name: policy_boxes, checkpoint: tiny}.")


@dataclass(frozen=True)
class StageEntry:
    """A stage as a config says it."""

    plugin: Plugin
    settings: StageSettings
    asks_policy: bool
    """Whether it asks a policy, which the program is to give it."""


def images_plugin(entry: dict[str, Any]) -> Plugin:
    """The source that `images` means, its paths made whole; raises ValueError or FileNotFoundError for a wrong one."""
    plugin = plugin_from_settings(_IMAGES, "Images", entry, "images")
    return plugin.with_settings(**_whole_paths(plugin.settings, ("path", "images")))


def stage_entry(entry: dict[str, Any], place: int) -> StageEntry:
    """The stage at a place; raises ValueError or FileNotFoundError for a wrong one."""
    where = f"stages[{place}]"
    plugin = plugin_from_settings(_STAGES, "Labeller", entry, where, ["policy"], StageSettings)
    beside = {key: entry[key] for key in entry if key in _BESIDE}
    settings, asks = StageSettings(**beside), plugin.takes("policy")
    if asks and settings.checkpoint is None:
        raise ValueError(f"{where} is {plugin.name}, which asks a policy; set {where}.checkpoint.")
    if not asks and (settings.checkpoint or settings.config):
        raise ValueError(f"{where} is {plugin.name}, which asks no policy; leave checkpoint and config out.")
    return StageEntry(plugin.with_settings(**_whole_paths(plugin.settings, ("path", "folder"))), settings, asks)


def _whole_paths(settings: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Paths among settings as absolute ones: workers may run in another folder."""
    given = {name: settings[name] for name in names if isinstance(settings.get(name), str)}
    return {name: str(Path(value).expanduser().resolve()) for name, value in given.items()}
