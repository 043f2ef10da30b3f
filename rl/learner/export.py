"""A checkpoint of a run as an ordinary Hugging Face folder, from the files of its ranks: no Ray, no engine, no GPU."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from policies.lora import pushed
from rl.config.plugins import codec_plugin, policy_plugin
from rl.config.run import RunConfig
from rl.learner.files import AVERAGE, whole_weights
from rl.run.checkpoints import Checkpoints
from rl.run.folder import RunFolder
from rollout.disk import refuse_unwritable

_PREFIX = "model."
"""A rank's module is the policy, and its network is `model` there."""


def export_checkpoint(config: RunConfig, out: Path, step: int | None = None, best: bool = False) -> int:
    """Write the policy of a checkpoint into `out`, a new or empty folder; returns the checkpoint's step.

    step: which checkpoint; None for the last one, or with `best` the best policy so far. It is what a run hands out:
    the running average where there is one, adapters merged. Raises FileExistsError where `out` holds something,
    FileNotFoundError where there is no such checkpoint, ValueError where it is damaged or does not fit its config.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} holds something already; give a folder that is new or empty.")
    refuse_unwritable(out / "config.json")
    run = RunFolder(Path(config.run))
    if best:
        source = run.best_policy("leave --best out for its last checkpoint").folder.parent
    else:
        source = _checkpoint(run.checkpoints(), run.path, step)
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        if best:
            shutil.copytree(source / "policy", partial)
        else:
            partial.mkdir(parents=True)
            _write_policy(config, source / "learner", partial)
        if out.exists():
            out.rmdir()
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return int(source.name.split("-")[-1])


def _checkpoint(checkpoints: Checkpoints, run: Path, step: int | None) -> Path:
    steps = checkpoints.steps
    if not steps:
        raise FileNotFoundError(f"{run} holds no checkpoint; give the folder of a run that has written one.")
    if step is not None and step not in steps:
        raise FileNotFoundError(f"{run} holds no checkpoint of step {step}; there are {', '.join(map(str, steps))}.")
    chosen = steps[-1] if step is None else step
    checkpoints.position_of(chosen)  # refuses one with files missing
    return checkpoints.folder_of(chosen)


def _write_policy(config: RunConfig, learner: Path, folder: Path) -> None:
    recipe = policy_plugin(config.policy, codec_plugin(config.codec))
    lora = config.learner.lora
    policy = (recipe if lora is None else recipe.with_settings(lora=lora)).build()
    _fill(policy.model, whole_weights(learner), learner)
    average = load_file(learner / AVERAGE) if (learner / AVERAGE).is_file() else {}
    weights = {
        each.name: average[each.name].to(each.parameter.dtype) if average else each.value().detach()
        for part in pushed(policy.model, merged=True)
        for each in part
    }
    policy.save(folder, weights)


@torch.no_grad()
def _fill(model: nn.Module, weights: Mapping[str, Tensor], learner: Path) -> None:
    """Give every parameter of `model` what its rank saved; float32 masters are rounded as DeepSpeed rounds them."""
    for name, parameter in model.named_parameters():
        saved = weights.get(_PREFIX + name)
        if saved is None or saved.shape != parameter.shape:
            found = "not there" if saved is None else f"of shape {list(saved.shape)}"
            raise ValueError(
                f"{learner}: {name} is {found}, the policy of the run's config has {list(parameter.shape)}; "
                "config.yaml or policy.checkpoint has changed since, so put the old one back."
            )
        parameter.copy_(saved)
