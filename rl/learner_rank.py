"""One learner rank: a policy in a DeepSpeed engine.

A plain class that runs without Ray, alone or as one of several ranks.
"""

import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from envs.example import Env
from policies.base import PromptRows
from policies.weights import Bucket, bucket_names, make_bucket
from rl.batch import Batch
from rl.learner_stats import loss_stats, pass_mean, sampler_stats, step_stats
from rl.policy_gradient import PolicyGradient, token_divergence
from rl.rank_settings import RankPlace, RankSettings

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns, in every process, that it found no GPU
import deepspeed


class LearnerRank:
    """A DeepSpeed engine around the policy, and the step on it that the algorithm asks for."""

    def __init__(self, settings: RankSettings, place: RankPlace) -> None:
        torch.set_num_threads(settings.learner.threads)
        torch.manual_seed(settings.seed)
        self._settings, self._place = settings, place
        self._algorithm: PolicyGradient = settings.algorithm.build()
        self._env: Env = settings.env.build(split="train")
        policy = settings.policy.build()
        policy.train()
        policy.vision_tower.requires_grad_(not settings.learner.freeze_vision)
        trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(
            trained, lr=settings.learner.lr, betas=(0.9, 0.95), weight_decay=settings.learner.weight_decay
        )
        _join(place)
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=policy, optimizer=optimizer, config=self._deepspeed_config()
        )
        self._steps_done = 0
        self._reference = self._build_reference() if self._algorithm.kl > 0 else None
        # Under ZeRO-3 a parameter is empty here; the settings refuse an average then.
        model = self._engine.module.model
        self._average = {n: p.detach().clone() for n, p in model.named_parameters()} if settings.learner.average else {}

    def _build_reference(self) -> torch.nn.Module:
        """The policy that the run began with, whole on this rank at every ZeRO stage; its checkpoint never changes."""
        return self._settings.policy.build().to(self._engine.module.device).requires_grad_(False).eval()

    def _deepspeed_config(self) -> dict[str, Any]:
        learner = self._settings.learner
        return {
            "train_micro_batch_size_per_gpu": learner.micro_groups,
            "gradient_accumulation_steps": self._micro_steps,
            "gradient_clipping": learner.grad_clip,
            "zero_optimization": {"stage": learner.zero_stage},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "bf16": {"enabled": learner.dtype == "bfloat16"},
            "steps_per_print": 2**31,
            "wall_clock_breakdown": False,
        }

    @property
    def _micro_steps(self) -> int:
        """Forward and backward passes of this rank between two updates."""
        learner = self._settings.learner
        return self._settings.groups_per_step // (learner.minibatches * learner.micro_groups * self._place.world_size)

    def step(self, batch: Batch) -> dict[str, float]:
        """Learn from one rollout batch (all ranks get the same one and take their share); returns what to log.

        Mini-batches are stretches of the batch. Every rank does the same number of passes, with or without signal in
        its groups.
        """
        learner, world = self._settings.learner, self._place.world_size
        for group in self._optimizer.param_groups:
            group["lr"] = learner.lr_at(self._steps_done)
        minibatches = np.array_split(np.arange(len(batch)), learner.minibatches)
        shares = [part[self._place.rank :: world].reshape(-1, learner.micro_groups) for part in minibatches]
        parts = [[batch.part(micro.tolist()) for micro in share] for share in shares]
        rows = [[self._rows(part) for part in share] for share in parts]
        # Before the first update the new log-probabilities are the old ones, so that pass needs no other.
        old = [[self._logprobs(row) if m else None for row in share] for m, share in enumerate(rows)]
        logs: list[dict[str, float]] = []
        for m, minibatch in enumerate(minibatches):
            sequences = int(batch.counts[minibatch].sum()) * batch.advantages.shape[1]
            for part, row, before in zip(parts[m], rows[m], old[m], strict=True):
                logs.append(self._micro_step(part, row, before, max(1, sequences)))
        self._steps_done += 1
        self._update_average()
        return step_stats(logs) | {"lr": self._optimizer.param_groups[0]["lr"]}

    def _rows(self, part: Batch) -> PromptRows:
        images = [self._env.image(ref) for ref in part.images]
        return self._engine.module.rows(images, part.phrases, part.tokens)

    @torch.no_grad()
    def _logprobs(self, rows: PromptRows) -> Tensor:
        return self._engine(rows, self._settings.temperature, self._settings.grammar_tokens)

    def _micro_step(self, part: Batch, rows: PromptRows, old: Tensor | None, sequences: int) -> dict[str, float]:
        """One forward and backward pass, and the update if it is the last one of its mini-batch.

        old: [B, G, T] log-probabilities before the first update; None where this pass comes before it.
        """
        device = self._engine.module.device
        advantages = torch.from_numpy(part.padded_advantages(rows.scored_mask.shape[-1])).to(device)
        counts = torch.from_numpy(part.counts).to(device)[:, None].expand(part.advantages.shape)
        weights = counts.float() / sequences
        new = self._engine(rows, self._settings.temperature, self._settings.grammar_tokens)
        old = new.detach() if old is None else old
        terms = self._algorithm.terms(new, old, rows.scored_mask, advantages)
        loss = self._algorithm.loss(terms, weights)
        stats = loss_stats(terms, counts) | sampler_stats(part, rows.scored_mask, old)
        if self._reference is not None:
            divergence = self._divergence(rows, new)
            loss = loss + self._algorithm.kl * (self._algorithm.pool(divergence, rows.scored_mask) * weights).sum()
            stats["kl"] = pass_mean(divergence, counts[..., None] & rows.scored_mask)
        stats["loss"] = float(loss.detach()) * self._micro_steps * self._place.world_size
        if not math.isfinite(stats["loss"]):
            loss = new.sum() * math.nan  # a clamp may answer NaN with a gradient of 0, and other ranks must know
        # DeepSpeed averages over passes and ranks; the weights above already make the mean over the mini-batch.
        self._engine.backward(loss * (self._micro_steps * self._place.world_size))
        return stats | self._update()

    def _update(self) -> dict[str, float]:
        """Change the weights after the last pass of a mini-batch, on all ranks or, by a gradient that is not finite,
        on none; nothing is logged of the other passes."""
        learner, last_pass = self._settings.learner, self._engine.is_gradient_accumulation_boundary()
        # Stage 0 in fp32 keeps no norm of its own, but its gradients are whole until the update.
        gradients = [p.grad for p in self._engine.module.parameters() if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients)) if gradients else 0.0
        kept = learner.zero_stage > 0 or learner.dtype != "float32" or math.isfinite(norm)
        if kept or not last_pass:
            self._engine.step()
        else:
            # Elsewhere DeepSpeed drops such an update by itself; here it is left to count the pass.
            self._engine.zero_grad()
            self._engine.micro_steps += 1
        if not last_pass:
            return {}
        norm = float(self._engine.get_global_grad_norm() or norm) if kept else norm
        return {"grad_norm": norm, "updates_dropped": float(not (kept and self._engine.was_step_applied()))}

    def _divergence(self, rows: PromptRows, new: Tensor) -> Tensor:
        """[B, G, T] from the policy that the run began with; the gradient goes through `new`."""
        assert self._reference is not None
        with torch.no_grad():
            reference = self._reference(rows, self._settings.temperature, self._settings.grammar_tokens)
        return token_divergence(new, reference, rows.scored_mask)

    @torch.no_grad()
    def _update_average(self) -> None:
        # A short memory at first, so that the average leaves the starting point as fast as the weights do.
        decay = min(self._settings.learner.average, self._steps_done / (self._steps_done + 10))
        parameters = dict(self._engine.module.model.named_parameters())
        for name, average in self._average.items():
            average.lerp_(parameters[name].to(average.dtype), 1 - decay)

    def buckets(self, average: bool = False) -> Iterator[Bucket]:
        """The weights, or their running average where there is one, gathered bucket by bucket.

        All ranks must walk through it: under ZeRO-3 each bucket is a collective.
        """
        for part in bucket_names(self._engine.module.model):
            parameters = [parameter for _, parameter in part]
            with deepspeed.zero.GatheredParameters(parameters, enabled=self._settings.learner.zero_stage == 3):
                yield make_bucket([(n, self._average.get(n, p) if average else p) for n, p in part])

    def save(self, folder: Path, tag: str) -> None:
        """Write engine and optimizer state below folder/tag. All ranks call it."""
        self._engine.save_checkpoint(
            str(folder), tag=tag, client_state={"steps_done": self._steps_done}, save_latest=False
        )
        if self._average and self._place.rank == 0:
            save_file(self._average, folder / tag / "average.safetensors")

    def load(self, folder: Path, tag: str) -> None:
        """Go on from `save`, with the same number of ranks.

        Reads DeepSpeed's own files: only from the run's own folder.
        """
        path, state = self._engine.load_checkpoint(str(folder), tag=tag)
        if path is None:
            raise FileNotFoundError(f"no DeepSpeed checkpoint {folder}/{tag}; start the run anew or name another one.")
        self._steps_done = state["steps_done"]
        if self._average:
            self._average = load_file(folder / tag / "average.safetensors", device=str(self._engine.module.device))

    def save_policy(self, folder: Path) -> None:
        """Write the policy (its running average, where there is one) as a Hugging Face folder.

        Rank 0 writes, all ranks call.
        """
        module = self._engine.module
        sharded = self._settings.learner.zero_stage == 3
        with deepspeed.zero.GatheredParameters(list(module.parameters()), enabled=sharded):
            if self._place.rank == 0:
                self._swap_average()
                module.save(folder)
                self._swap_average()

    def _swap_average(self) -> None:
        """Let parameters and their averages change places."""
        for name, parameter in self._engine.module.model.named_parameters():
            if name in self._average:
                parameter.data, self._average[name] = self._average[name], parameter.data


def _join(place: RankPlace) -> None:
    """Join the process group of the ranks."""
    os.environ |= {
        "RANK": str(place.rank),
        "LOCAL_RANK": "0",
        "WORLD_SIZE": str(place.world_size),
        "MASTER_ADDR": place.host,
        "MASTER_PORT": str(place.port),
    }
    # A lock left in the shared cache by a killed build makes every later run wait without a word; and this op takes
    # minutes to
    # compile for nothing that gloo does not do.
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", f"{tempfile.gettempdir()}/polytrace-torch-extensions")
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="nccl" if torch.cuda.is_available() else "gloo", verbose=False)
