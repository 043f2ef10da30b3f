"""`polytrace label`: labels from unlabelled images, as example shards that `sft` and `train` open at once.

In order: the stages checked before anything starts; Ray; images through the stages by blocks; shards, with every object
that was found or refused beside them (rollout/label).
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from envs.codecs.base import ChoosingCodec
from envs.shards.files import Card, read_card
from rl.config.label import LabelConfig, StageEntry, StageSettings, images_plugin, stage_entry
from rl.config.plugins import codec_plugin, policy_plugin
from rl.pages.progress import StepProgress
from rl.predict import find_source
from rl.sources.leaks import HeldOut
from rollout import cluster
from rollout.archive.shards import polytrace_version
from rollout.label.asking import AskedPolicy
from rollout.label.images.base import Images
from rollout.label.looks import LOOKS_IMAGES, Look, Looks, looks_path, read_looks, write_looks
from rollout.label.objects import AT_THE_END
from rollout.label.pipeline import (
    LabelledBlock,
    Pipeline,
    Stage,
    StagePlace,
    labelled,
    labelled_here,
    looked,
    looked_here,
)
from rollout.label.stages.base import ChecksEarly, TellsWeights
from rollout.label.timings import Timings
from rollout.label.writer import LabelWriter, Progress, Written

_OBJECT_STORE = 2**30
"""Bytes for blocks on their way between stages, where Ray is started here and the config says nothing."""


@dataclass(frozen=True)
class _Plan:
    """What a config comes to."""

    pipeline: Pipeline
    num_images: int
    fingerprint: str
    """That of the images."""
    provenance: Mapping[str, Any]


def label(config: LabelConfig, console: Console) -> Card:
    """Label images; goes on where it was stopped. Returns the card of the split.

    Raises ValueError, FileNotFoundError or OSError, in a line, for what does not fit, before Ray starts where it can be
    known.
    """
    plan = _plan(config)
    written = Written(config.split, config.data_set, config.candidates)
    writer = LabelWriter(Path(config.out), written, plan.provenance, plan.fingerprint)
    if not writer.is_whole:
        first = writer.progress.images
        if first:
            console.print(f"goes on: {first:,} images are labelled", highlight=False)
        if first < plan.num_images:
            _run(config, plan, writer, console)
        if not writer.progress.kept:
            raise ValueError(f"{_none_kept(writer.progress)}; nothing was labelled.")
        writer.finish()
    return read_card(Path(config.out), config.split)


def _run(config: LabelConfig, plan: _Plan, writer: LabelWriter, console: Console) -> None:
    first, last, pipeline = writer.progress.images, plan.num_images, plan.pipeline
    if config.in_process:
        pipeline = _without_copies(config, pipeline, last, console)
        _write(labelled_here(pipeline, first, last), config, last, writer, console)
        return
    with console.status("starting Ray"):
        store = config.ray.object_store_gb
        num_bytes = _OBJECT_STORE if store is None else int(store * 2**30)
        cluster.start(config.ray.address, _places(pipeline), pipeline.gpus, num_bytes)
    try:
        pipeline = _without_copies(config, pipeline, last, console)
        _write(labelled(pipeline, first, last), config, last, writer, console)
    finally:
        cluster.stop()


def _without_copies(config: LabelConfig, pipeline: Pipeline, num: int, console: Console) -> Pipeline:
    """The pipeline, told which images are like earlier ones; hashes are kept, and found again where a job goes on."""
    if config.near_duplicates is None:
        return pipeline
    seen = Looks(config.near_duplicates)
    with StepProgress(console, "looking for near-duplicates", num) as progress:
        for part, first in enumerate(range(0, num, LOOKS_IMAGES)):
            path, last = looks_path(Path(config.out), part), min(first + LOOKS_IMAGES, num)
            if not path.exists():
                held: list[Look] = []
                for block in (looked_here if config.in_process else looked)(pipeline, first, last):
                    held += block
                    progress.update(first + len(held))
                write_looks(path, held)
            seen.take(read_looks(path))
            progress.update(last, f"{len(seen.copies):,} found")
    return replace(pipeline, copies=seen.copies)


def _write(
    blocks: Iterator[LabelledBlock], config: LabelConfig, last: int, writer: LabelWriter, console: Console
) -> None:
    with StepProgress(console, "images", last, writer.progress.images) as progress:
        for block in blocks:
            writer.add(block)
            _refuse_empty(writer.progress, config.empty_images)
            progress.update(writer.progress.images, _told(writer.progress, writer.timings))


def _places(pipeline: Pipeline) -> int:
    """Places of a Ray of our own: the workers of readers and models, and as many tasks beside as there are cores."""
    return int(pipeline.places) + max(1, torch.get_num_threads())


def _told(progress: Progress, timings: Timings) -> str:
    refused = ", ".join(f"{stage} {count:,}" for stage, count in progress.refused.items())
    told = f"found {progress.found:,}, kept {progress.kept:,}" + (f" (refused: {refused})" if refused else "")
    if slowest := timings.slowest():
        told += f", slowest {slowest[0]}: {slowest[1]:.3g} images a second and worker"
    return told


def _refuse_empty(progress: Progress, most: int) -> None:
    if not progress.found and progress.empty >= most:
        raise ValueError(
            f"nothing was found in the first {progress.empty:,} images; look at the first stage (its names, its "
            "threshold, its model), or raise empty_images where that is to be expected."
        )


def _none_kept(progress: Progress) -> str:
    if not progress.found:
        return f"no stage found anything in {progress.images:,} images"
    told = [f"{stage} refused {count:,}" for stage, count in progress.refused.items() if stage != AT_THE_END]
    if lacking := progress.refused.get(AT_THE_END):
        told.append(f"{lacking:,} lack a phrase or a mask: a stage that segments or captions is missing")
    return f"of {progress.found:,} objects none was kept ({', '.join(told)})"


def _plan(config: LabelConfig) -> _Plan:
    """The stages built once and checked, the images counted; no model is loaded."""
    images = images_plugin(config.images)
    entries = [stage_entry(entry, place) for place, entry in enumerate(config.stages)]
    stages = tuple(_stage(entry) for entry in entries)
    told = [_provenance(dict(entry), stage) for entry, stage in zip(config.stages, stages, strict=True)]
    source = cast(Images, images.build())
    held_out = _held_out(config, source)
    pipeline = Pipeline(images, stages, config.block_images, config.readers, held_out)
    if config.near_duplicates is not None:
        refuse_no_hashes()
    num = len(source) if config.limit is None else min(config.limit, len(source))
    against = {"against_sha256": held_out.fingerprint} if held_out else {}
    provenance = {
        "images": dict(config.images),
        **against,
        "stages": told,
        "block_images": config.block_images,
        "near_duplicates": config.near_duplicates,
        "num_images": num,
        "polytrace": polytrace_version(),
    }
    return _Plan(pipeline, num, source.fingerprint, provenance)


def _held_out(config: LabelConfig, source: Images) -> HeldOut | None:
    """The photos that are not labelled; raises ValueError or FileNotFoundError where they cannot be known."""
    if not config.against:
        return None
    if len(source) and source.read(0).image.origin.file is None:
        raise ValueError(
            f"against is {', '.join(config.against)}, but the images are no files, by which held-out photos are known; "
            "write them to a folder, or leave against out."
        )
    return HeldOut.of([Path(path) for path in config.against])


def _stage(entry: StageEntry) -> Stage:
    plugin = entry.plugin
    if entry.asks_policy:
        plugin = plugin.with_settings(policy=asked_policy(entry.settings))
    settings = entry.settings
    name = str(plugin.settings.get("called", plugin.name))
    stage = Stage(name, plugin, StagePlace(settings.workers, settings.gpus, settings.cpus))
    built = plugin.build()
    if isinstance(built, ChecksEarly):
        built.check()
    return stage


def asked_policy(settings: StageSettings) -> AskedPolicy:
    """The policy that a stage asks; raises ValueError or FileNotFoundError for one that cannot be asked."""
    assert settings.checkpoint is not None
    source = find_source(Path(settings.checkpoint), Path(settings.config) if settings.config else None, None, raw=True)
    codec = codec_plugin(source.recipe.codec)
    if isinstance(codec.build(), ChoosingCodec):
        raise ValueError(
            f"{settings.checkpoint} chooses among candidate masks, which unlabelled images do not have; give a policy "
            "that draws."
        )
    plugin = policy_plugin(source.recipe.policy | {"checkpoint": source.checkpoint}, codec)
    return AskedPolicy(plugin, source.recipe.sampling, source.view)


def _provenance(entry: dict[str, Any], stage: Stage) -> dict[str, Any]:
    """What is kept of a stage: its settings, its models' threads and checksums, not where it ran."""
    told = {key: value for key, value in entry.items() if key not in ("workers", "gpus")}
    built = stage.plugin.build()
    if isinstance(built, TellsWeights):
        told["weights_sha256"] = [weights_sha256(Path(folder)) for folder in built.model_folders]
    if "path" in stage.plugin.settings:
        told["path_sha256"] = _sha256([Path(stage.plugin.settings["path"])])
    return told


def weights_sha256(folder: Path) -> str:
    """SHA-256, 64 hex digits, of the weight files of a model folder in the order of their names."""
    return _sha256(sorted((*folder.glob("*.safetensors"), *folder.glob("*.bin"))))


def _sha256(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def refuse_no_hashes() -> None:
    """Raise ValueError where ImageHash is not installed, by which near-duplicates are found."""
    try:
        import imagehash  # noqa: F401
    except ImportError as error:
        raise ValueError(
            "near_duplicates needs ImageHash, which is not installed; install polytrace[label], or set it to null."
        ) from error


def table_of(progress: Progress) -> Table:
    """What became of the objects that were found."""
    table = Table("stage", "objects", title="Labels", title_justify="left")
    table.columns[1].justify = "right"
    table.add_row("found", f"{progress.found:,}")
    for stage, count in progress.refused.items():
        table.add_row(f"refused by {escape(stage)}", f"{count:,}")
    for stage, count in progress.refused_images.items():
        table.add_row(f"images refused by {escape(stage)}", f"{count:,}")
    table.add_row("kept", f"{progress.kept:,}")
    return table
