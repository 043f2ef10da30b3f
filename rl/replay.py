"""`polytrace train --replay FILE`: the loss of a dropped step's batch once more, and what in it is not finite.

Under the weights of the run's last checkpoint, in plain torch, each group alone. These are not the very weights of the
dropped update, so that something finite here points at the steps between, and not at the batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor

from envs.example import Env
from policies.base import PolicyContract
from policies.weights import load_bucket
from rl.batch import Batch
from rl.checkpoints import Checkpoints
from rl.config import RunConfig, num_gpus, rank_settings, run_parts, worker_settings
from rl.demand import object_store_bytes
from rl.dropped import read_batch
from rl.learner import Learner
from rl.policy_gradient import PolicyGradient
from rl.settings import load_settings, override_of
from rollout import cluster
from rollout.engine import Sampling


@dataclass(frozen=True)
class GroupLoss:
    """The loss of one group alone, the policy not having moved, and where something in it is not finite."""

    phrase: str
    counts: bool
    """False for a group without signal, which weighs nothing and yet spreads a NaN."""
    loss: float
    gradient_norm: float
    not_finite: tuple[str, ...]
    """Such as "2 of 40 log-probabilities"; the first is the likely cause of the others."""


def group_losses(
    policy: PolicyContract, env: Env, algorithm: PolicyGradient, batch: Batch, sampling: Sampling
) -> Iterator[GroupLoss]:
    """One GroupLoss a group; the policy keeps its weights, and no gradient stays."""
    parameters = [parameter for parameter in policy.model.parameters() if parameter.requires_grad]
    for k in range(len(batch)):
        part = batch.part([k])
        rows = policy.rows([env.image(ref) for ref in part.images], part.phrases, part.tokens)
        new, mask = policy.forward(rows, sampling.temperature, sampling.grammar_tokens), rows.scored_mask
        advantages = torch.from_numpy(part.padded_advantages(mask.shape[-1])).to(new.device)
        objective = algorithm.terms(new, new.detach(), mask, advantages).objective
        found = torch.autograd.grad(-objective.mean(), parameters, allow_unused=True)
        gradients = [gradient for gradient in found if gradient is not None]
        checked: dict[str, Sequence[Tensor]] = {
            "weights": parameters,
            "sampler's log-probabilities": [torch.from_numpy(values) for values in part.sampler_logprobs[0]],
            "advantages": [advantages],
            "log-probabilities": [new[mask]],
            "objectives": [objective],
            "gradients": gradients,
        }
        yield GroupLoss(
            phrase=part.phrases[0],
            counts=bool(part.counts[0]),
            loss=float(-objective.detach().mean()),
            gradient_norm=float(torch.nn.utils.get_total_norm(gradients)),
            not_finite=tuple(text for name, values in checked.items() if (text := _not_finite(name, values))),
        )


def _not_finite(name: str, tensors: Sequence[Tensor]) -> str:
    num = sum(int((~torch.isfinite(values.detach())).sum()) for values in tensors)
    return f"{num} of {sum(values.numel() for values in tensors)} {name}" if num else ""


def replay(path: Path, console: Console) -> list[GroupLoss]:
    """Replay a file of RUN/dropped/ under that run's last checkpoint and print what is not finite.

    Raises FileNotFoundError or ValueError where the file, its run or a checkpoint of it is missing or no such thing.
    """
    batch, run = read_batch(path), path.resolve().parent.parent
    config = load_settings(RunConfig, run / "config.yaml", [override_of("run", run)])
    parts = run_parts(config)
    checkpoints = Checkpoints(run, config.keep_checkpoints)
    if checkpoints.last_step is None:
        raise FileNotFoundError(f"{run}/checkpoints holds no checkpoint to replay {path.name} on.")
    cluster.start(config.ray.address, config.learner.ranks, num_gpus(config), object_store_bytes(config, parts))
    learner = Learner(rank_settings(config, parts))
    step = checkpoints.load_last(learner)
    policy = worker_settings(config, parts).policy.build()  # which has adapters where these travel alone
    for bucket in learner.buckets():
        load_bucket(policy.model, bucket)
    learner.close()
    env, algorithm = parts.env.build(split="train"), parts.algorithm.build()
    losses = list(group_losses(policy, env, algorithm, batch, config.sampling))
    console.print(_table(f"{path.name} under the weights of step {step}", losses))
    bad = sum(bool(one.not_finite) for one in losses)
    console.print(f"{bad} of {len(losses)} groups hold something that is not finite")
    return losses


def _table(title: str, losses: list[GroupLoss]) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False)
    for name in ("group", "phrase", "signal", "loss", "gradient norm", "not finite"):
        table.add_column(name)
    for k, one in enumerate(losses):
        numbers = (f"{one.loss:.4g}", f"{one.gradient_norm:.4g}")
        table.add_row(str(k), one.phrase, "yes" if one.counts else "no", *numbers, ", ".join(one.not_finite) or "-")
    return table
