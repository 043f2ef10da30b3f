"""Steps of which an update was dropped, because a loss or a gradient was not finite: their batches, kept and replayed.

RUN/dropped/step-000012.npz   plain arrays, nothing pickled; images by reference, as everywhere

`polytrace train --replay FILE` takes such a batch through the policy of the run's last checkpoint, a group at a time,
and says which of log-probabilities, loss and gradients is not finite.
"""

import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor

from envs.datasets.base import Env
from envs.example import ImageRef, Prompt
from envs.shards.rows import prompt_of, prompt_rows
from policies.families.base import PolicyContract, Routes
from policies.sharing.routes import routed
from policies.weights import load_bucket
from rl.algorithms.base import PolicyGradient
from rl.config.run import num_gpus
from rl.learner.batches.batch import Batch
from rl.run.folder import RunFolder
from rl.run.parts import rank_settings, run_parts, worker_settings
from rl.run.preflight import object_store_bytes
from rollout import cluster, disk
from rollout.disk import whole_file
from rollout.settings import Sampling

MOST_IN_A_ROW = 3
"""So many dropped steps after each other are no accident: the run stops."""


class DroppedSteps:
    """Keeps the batches of a run's dropped steps, and stops it where they do not end."""

    def __init__(self, run: Path) -> None:
        self._folder = run / "dropped"
        self._in_a_row = 0

    def forget_from(self, step: int) -> None:
        """Delete the batches of `step` and later; go on counting from the dropped steps that lead up to it."""
        found = {int(path.stem.removeprefix("step-")): path for path in self._folder.glob("step-*.npz")}
        for late in (path for number, path in found.items() if number >= step):
            late.unlink()
        for partial in self._folder.glob("*.partial"):
            partial.unlink()
        self._in_a_row = next(count for count in range(step + 1) if step - 1 - count not in found)

    def record(self, step: int, batch: Batch, updates_dropped: float) -> None:
        """Take in a step; writes its batch where an update of it was dropped.

        Raises FloatingPointError at the third such step in a row.
        """
        self._in_a_row = self._in_a_row + 1 if updates_dropped else 0
        if updates_dropped:
            self._folder.mkdir(exist_ok=True)
            write_batch(batch, self._folder / f"step-{step:06d}.npz")
        if self._in_a_row >= MOST_IN_A_ROW:
            raise FloatingPointError(
                f"a loss or gradient was not finite in {self._in_a_row} steps in a row, the last of them {step}; these "
                f"updates were dropped, and their batches lie in {self._folder}. Look at learner/ratio_max and "
                "learner/grad_norm of the steps before; start another run with a lower learner.lr or learner.grad_clip."
            )


def write_batch(batch: Batch, path: Path) -> None:
    """Write a batch as an .npz file, whole or not at all."""
    arrays = {
        "image_keys": np.array([image.key for image in batch.images], np.str_),
        "image_sha256": np.array([image.sha256 for image in batch.images], np.str_),
        "image_sizes": np.array([(image.height, image.width) for image in batch.images], np.int64).reshape(-1, 2),
        "prompts": np.array([_prompt_text(prompt) for prompt in batch.prompts], np.str_),
        "lengths": np.array([[len(chosen) for chosen in row] for row in batch.choices], np.int64),
        "choices": _joined(batch.choices),
        "sampler_logprobs": _joined(batch.sampler_logprobs),
        "advantages": batch.advantages,
        "counts": batch.counts,
    }
    if batch.token_advantages is not None:
        arrays["token_advantages"] = _joined(batch.token_advantages)
    if batch.prompt_lengths is not None:
        arrays["prompt_lengths"] = np.array(batch.prompt_lengths, np.int64)
    if batch.taught is not None:
        arrays["taught"] = np.concatenate(batch.taught)
        arrays["taught_lengths"] = np.array([len(tokens) for tokens in batch.taught], np.int64)
    if batch.routes is not None:
        arrays |= _route_arrays(batch.routes)
    if batch.candidates is not None:
        arrays["candidates"] = np.array([json.dumps(pool) for pool in batch.candidates], np.str_)
    if batch.truths is not None:
        arrays["truths"] = np.array([json.dumps(masks) for masks in batch.truths], np.str_)
    if batch.temperature is not None:
        arrays["temperature"] = np.array(batch.temperature, np.float64)
    with disk.writing("the batch of this dropped step", path), whole_file(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def read_batch(path: Path) -> Batch:
    """A batch that `write_batch` wrote. Raises FileNotFoundError without a file, ValueError where it is none."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; give one of RUN/dropped/.")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
    except (EOFError, ValueError, zipfile.BadZipFile, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no batch of a dropped step; give a file of RUN/dropped/.") from error
    missing = {"image_keys", "prompts", "lengths", "choices", "sampler_logprobs", "advantages", "counts"} - set(found)
    if missing:
        raise ValueError(f"{path} holds no {', '.join(sorted(missing))}; give a file of RUN/dropped/.")
    rows = zip(found["image_keys"], found["image_sha256"], found["image_sizes"], strict=True)
    lengths = found["lengths"]
    token_advantages, prompt_lengths = found.get("token_advantages"), found.get("prompt_lengths")
    return Batch(
        images=tuple(ImageRef(str(key), str(sha256), int(h), int(w)) for key, sha256, (h, w) in rows),
        prompts=tuple(map(_prompt_of, found["prompts"], found["image_sizes"])),
        choices=_split(found["choices"], lengths),
        sampler_logprobs=_split(found["sampler_logprobs"], lengths),
        advantages=found["advantages"],
        counts=found["counts"],
        token_advantages=None if token_advantages is None else _split(token_advantages, lengths),
        prompt_lengths=None if prompt_lengths is None else tuple(prompt_lengths.tolist()),
        taught=_taught(found),
        temperature=float(found["temperature"]) if "temperature" in found else None,
        routes=_routes(found, lengths) if "routed" in found else None,
        candidates=tuple(map(_pool, found["candidates"])) if "candidates" in found else None,
        truths=tuple(tuple(json.loads(text)) for text in found["truths"]) if "truths" in found else None,
    )


def _route_arrays(routes: Sequence[Sequence[Routes | None]]) -> dict[str, NDArray]:
    """routed: [B, G] bool, which answers have some; prompt_routes: of the first such answer of each group, one behind
    the other, of prompt_route_lengths [B]; answer_routes: of all such answers."""
    firsts = [next((each for each in row if each is not None), None) for row in routes]
    return {
        "routed": np.array([[each is not None for each in row] for row in routes]),
        "prompt_route_lengths": np.array([0 if each is None else len(each.prompt) for each in firsts], np.int64),
        "prompt_routes": np.concatenate([each.prompt for each in firsts if each is not None]),
        "answer_routes": np.concatenate([each.answer for row in routes for each in row if each is not None]),
    }


def _routes(found: Mapping[str, NDArray], lengths: NDArray[np.int64]) -> tuple[tuple[Routes | None, ...], ...]:
    """[B][G] routes from `_route_arrays`; lengths: [B, G] of the answers."""
    prompts = np.split(found["prompt_routes"], np.cumsum(found["prompt_route_lengths"])[:-1])
    answers = iter(np.split(found["answer_routes"], np.cumsum(lengths[found["routed"]])[:-1]))
    return tuple(
        tuple(Routes(prompt, next(answers)) if has else None for has in row)
        for prompt, row in zip(prompts, found["routed"], strict=True)
    )


def _pool(text: str) -> tuple[str, ...] | None:
    found = json.loads(text)
    return None if found is None else tuple(found)


def _taught(found: Mapping[str, NDArray]) -> tuple[NDArray[np.int64], ...] | None:
    if "taught" not in found:
        return None
    return tuple(np.split(found["taught"], np.cumsum(found["taught_lengths"])[:-1]))


def _prompt_text(prompt: Prompt) -> str:
    return json.dumps({"asked": prompt.asked, "parts": prompt_rows(prompt)})


def _prompt_of(text: str, size: NDArray[np.int64]) -> Prompt:
    held, (height, width) = json.loads(text), size.tolist()
    return prompt_of(held["parts"], held["asked"], height, width)


def _joined(rows: Sequence[Sequence[NDArray]]) -> NDArray:
    return np.concatenate([values for row in rows for values in row])


def _split(values: NDArray, lengths: NDArray[np.int64]) -> tuple[tuple[NDArray, ...], ...]:
    """[B][G] arrays of the given lengths [B, G]."""
    parts = np.split(values, np.cumsum(lengths.ravel())[:-1])
    width = lengths.shape[1]
    return tuple(tuple(parts[b * width : (b + 1) * width]) for b in range(len(lengths)))


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
        rows = policy.rows(part.questions(env), part.choices)
        rows = rows if part.routes is None else routed(rows, part.routes).to(policy.device)
        temperature = sampling.temperature if batch.temperature is None else batch.temperature
        new, mask = policy.forward(rows, temperature, sampling.grammar_tokens), rows.scored_mask
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
            phrase=part.prompts[0].told,
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
    batch, run = read_batch(path), RunFolder(path.resolve().parent.parent)
    config = run.config()
    # It loads DeepSpeed, which prints; what is wrong with the file is told before.
    from rl.learner.learner import Learner

    parts, checkpoints = run_parts(config), run.checkpoints()
    if checkpoints.last_step is None:
        raise FileNotFoundError(f"{run.path}/checkpoints holds no checkpoint to replay {path.name} on.")
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
