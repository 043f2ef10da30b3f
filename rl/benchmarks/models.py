"""A model to be benchmarked: a run, a Hugging Face folder or the embedded checkpoint, and the config to ask it by."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from envs.codecs.base import ChoosingCodec
from rl.benchmarks.sets import BenchmarkSet, refuse_no_name
from rl.config.load import load_settings, override_of
from rl.config.plugins import EMBEDDED, NAMED, codec_plugin
from rl.config.run import RunConfig
from rl.run.folder import RunFolder


@dataclass(frozen=True)
class BenchmarkModel:
    """One checkpoint, with or without a refiner."""

    name: str
    """Name in tables and of files."""
    checkpoint: str
    """A Hugging Face folder, or the name of the embedded one."""
    config: RunConfig
    """How it is asked: codec, policy, sampling, workers."""
    refiner: Path | None
    """Folder of the refiner whose masks are scored; None scores outlines."""

    def asked_about(self, data: BenchmarkSet) -> RunConfig:
        """The config of a run whose every split is that of the data set; with its candidates for a policy that
        chooses."""
        names = dict.fromkeys(("train", "validation", "test"), data.split)
        folder = str(data.folder.resolve())
        chooses = isinstance(codec_plugin(self.config.codec).build(), ChoosingCodec)
        env: dict[str, Any] = {"name": "shards", "folder": folder, "names": names, "candidates": chooses}
        return replace(self.config, env=env, policy=self.config.policy | {"checkpoint": self.checkpoint})


def benchmark_model(
    given: str, config: Path | None, raw: bool, workers: int | None, max_tokens: int | None
) -> BenchmarkModel:
    """The model of "PATH" or "NAME=PATH"; a run has its own config, best policy and refiner.

    config: how any other checkpoint is asked (a YAML file of a run, or a preset); raw: without a refiner. workers,
    max_tokens: in place of the config's. Raises FileNotFoundError or ValueError for what cannot be used.
    """
    called, path = _name_and_path(given)
    overrides = ["rewards={mask_iou: {weight: 1.0}}", "shaping={}", "max_left_out=1.0", "run=benchmark"]
    overrides += [] if workers is None else [override_of("pool.workers", workers)]
    overrides += [] if max_tokens is None else [override_of("sampling.max_tokens", max_tokens)]
    if (path / "config.yaml").is_file():
        run = RunFolder(path)
        settings = load_settings(RunConfig, path / "config.yaml", overrides)
        best = run.best_policy("let it train until its first evaluation")
        refiner = run.refiner if not raw and run.has_refiner else None
        return BenchmarkModel(called, str(best.folder.resolve()), _without_learner(settings), refiner)
    if str(path) not in EMBEDDED and not (path / "config.json").is_file():
        raise FileNotFoundError(
            f"{path} holds neither config.yaml nor config.json; give the folder of a run, a Hugging Face folder, or "
            f"{NAMED} for an embedded checkpoint."
        )
    if config is None and str(path) not in EMBEDDED:
        raise ValueError(
            f"{path} is no run, so nothing says how it is asked; give --config, such as presets/qwen3_vl or "
            "presets/simpleseg_qwen2_5_vl."
        )
    settings = load_settings(RunConfig, config or Path("demo"), overrides)
    return BenchmarkModel(
        called, str(path if str(path) in EMBEDDED else path.resolve()), _without_learner(settings), None
    )


def _name_and_path(given: str) -> tuple[str, Path]:
    """The name that answers are kept under, and the checkpoint; a path that is there may have "=" in it."""
    name, equals, rest = given.partition("=")
    if Path(given).exists() or not equals:
        return Path(given).resolve().name, Path(given)
    refuse_no_name(name, given)
    return name, Path(rest)


def _without_learner(config: RunConfig) -> RunConfig:
    """The config as it is without a learner, adapters and a refiner that rewards are measured on."""
    learner = replace(config.learner, gpus_per_rank=0.0, offload_at_rest=False, lora=None)
    return replace(config, learner=learner, pool=config.pool.without_ranks(), refined=None)
