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
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from envs.example import Env
from policies.base import PromptRows
from policies.weights import Bucket, bucket_names, make_bucket
from rl.batch import Batch
from rl.learner_stats import PassStats, of_all_ranks, step_stats
from rl.pass_loss import MiniBatch, Work, pass_loss, work_of
from rl.passes import GroupTokens, Round, budget_passes, even_passes, refuse_small_budget
from rl.policy_gradient import PolicyGradient
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
        if settings.learner.gradient_checkpointing:
            policy.checkpoint_gradients()
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
            # The number of passes between two updates may change from step to step: `step` marks the last one itself.
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": learner.grad_clip,
            "zero_optimization": {"stage": learner.zero_stage},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "bf16": {"enabled": learner.dtype == "bfloat16"},
            "steps_per_print": 2**31,
            "wall_clock_breakdown": False,
        }

    def step(self, batch: Batch) -> dict[str, float]:
        """Learn from one rollout batch (all ranks get the same one and take their share); returns what to log of it.

        Mini-batches are stretches of the batch. Every rank does the same number of passes, with or without signal in
        its groups, and comes to the same numbers.
        """
        learner = self._settings.learner
        for group in self._optimizer.param_groups:
            group["lr"] = learner.lr_at(self._steps_done)
        shares = [self._share(batch, part) for part in np.array_split(np.arange(len(batch)), learner.minibatches)]
        # Before the first update the new log-probabilities are the old ones, so that pass needs no other.
        old = [[self._logprobs(work) if m else None for work in share] for m, share in enumerate(shares)]
        logs: list[PassStats] = []
        norms, dropped = [], 0.0
        for share, before in zip(shares, old, strict=True):
            for work, logprobs in zip(share, before, strict=True):
                logs.append(self._learn(work, logprobs, last=work is share[-1]))
            norm, applied = self._update()
            norms.append(norm)
            dropped += not applied
        self._steps_done += 1
        self._update_average()
        stats = step_stats(of_all_ranks(logs, self._engine.module.device)) | {
            "grad_norm": float(np.mean(norms)),
            "updates_dropped": dropped,
        }
        return stats | {"lr": self._optimizer.param_groups[0]["lr"]}

    def _share(self, batch: Batch, groups: NDArray[np.int64]) -> list[Work]:
        """This rank's passes over a mini-batch, some groups of the batch."""
        rounds = self._rounds(batch, groups.tolist())
        answers = batch.answer_tokens()
        num_passes = sum(one.weighs for at_once in rounds for one in at_once)
        responses = int(batch.counts[groups].sum()) * batch.advantages.shape[1]
        minibatch, share = MiniBatch(max(1, responses), num_passes), []
        for at_once in rounds:
            mine = at_once[self._place.rank]
            most_scored = max(int(answers[list(one.groups)].sum()) for one in at_once)
            share.append(work_of(batch, mine, self._rows(batch.part(mine.groups)), most_scored, minibatch))
        return share

    def _rounds(self, batch: Batch, groups: list[int]) -> list[Round]:
        learner, world = self._settings.learner, self._place.world_size
        if learner.token_budget is None:
            return even_passes(groups, learner.micro_groups, world)
        if batch.prompt_lengths is None:
            raise ValueError("learner.token_budget needs a batch that knows its prompt_lengths; make it by pack().")
        tokens = GroupTokens(np.array(batch.prompt_lengths), batch.answer_tokens())
        refuse_small_budget(learner.token_budget, tokens, self._settings.most_answer_tokens)
        return budget_passes(groups, tokens, learner.token_budget, world)

    def _rows(self, part: Batch) -> PromptRows:
        images = [self._env.image(ref) for ref in part.images]
        return self._engine.module.rows(images, part.phrases, part.tokens)

    def _forward(self, policy: torch.nn.Module, work: Work) -> Tensor:
        return policy(work.rows, self._settings.temperature, self._settings.grammar_tokens, work.most_scored)

    @torch.no_grad()
    def _logprobs(self, work: Work) -> Tensor:
        return self._forward(self._engine, work)

    def _learn(self, work: Work, old: Tensor | None, last: bool) -> PassStats:
        """One forward and backward pass, the last one of its mini-batch or not.

        old: [B, G, T] log-probabilities before the first update; None where this pass comes before it.
        """
        self._engine.set_gradient_accumulation_boundary(last)
        new = self._forward(self._engine, work)
        reference = None
        if self._reference is not None:
            with torch.no_grad():
                reference = self._forward(self._reference, work)
        loss, stats = pass_loss(self._algorithm, work, new, new.detach() if old is None else old, reference)
        if not math.isfinite(stats["loss"].value):
            loss = new.sum() * math.nan  # a clamp may answer NaN with a gradient of 0, and other ranks must know
        # DeepSpeed averages over ranks; the loss is this rank's part of a sum.
        self._engine.backward(loss * self._place.world_size)
        return stats

    def _update(self) -> tuple[float, bool]:
        """Change the weights, after the last pass of a mini-batch, on all ranks or, by a gradient that is not finite,
        on none; the gradient's norm, and whether it was done."""
        # Stage 0 in fp32 keeps no norm of its own, but its gradients are whole until the update.
        gradients = [p.grad for p in self._engine.module.parameters() if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients)) if gradients else 0.0
        learner = self._settings.learner
        if learner.zero_stage == 0 and learner.dtype == "float32" and not math.isfinite(norm):
            self._engine.zero_grad()  # elsewhere DeepSpeed drops such an update by itself
            return norm, False
        self._engine.step()
        return float(self._engine.get_global_grad_norm() or norm), self._engine.was_step_applied()

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
