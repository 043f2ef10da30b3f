"""The main loop: weights to the workers, answers from them, totals, archive, one learner step. Start reading here.

One driver process with no rank in it: all that is distributed is behind WorkerPool and Learner. A run is a folder;
stopped after any step, it goes on from its last checkpoint as if nothing had happened, to the last bit on the CPU. With
pool.staleness above 0 the answers of coming steps are asked for before the learner begins; the loop is the same.
"""

import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from envs.datasets.base import Env
from rl.algorithms.base import PolicyGradient
from rl.config.run import RunConfig, num_gpus
from rl.evaluation.answers import greedy_units, record_evaluation, score_groups
from rl.learner.batch import pack
from rl.learner.dropped import DroppedSteps
from rl.learner.learner import Learner
from rl.learner.stats import sampler_warning
from rl.run.checkpoints import Checkpoints, Position
from rl.run.folder import prepare_folder
from rl.run.metrics import MetricsWriter, Timings
from rl.run.parts import RunParts, rank_settings, run_parts, worker_settings
from rl.run.preflight import object_store_bytes, refuse_full_disk, refuse_missing_gpus, refuse_unfit_policy
from rl.run.step_numbers import group_histograms, group_metrics, shaping_metrics, staleness_metrics
from rl.run.steps import Refilling, group_terms, learned, past_terms, refill_metrics, step_units, with_totals
from rollout import cluster
from rollout.archive.archive import RolloutArchive
from rollout.archive.writer import ArchiveWriter
from rollout.pool.pool import WorkerPool


def start_actors(config: RunConfig, parts: RunParts) -> tuple[Learner, WorkerPool]:
    """Ray, the learner's ranks and the workers; raises ValueError where they don't fit on the cluster."""
    learner, pool = config.learner, config.pool
    store, num_cpus = object_store_bytes(config, parts), pool.workers + learner.ranks
    cluster.start(config.ray.address, num_cpus, num_gpus(config), store)
    ranks = cluster.Share("learner ranks", learner.ranks, learner.gpus_per_rank)
    workers = cluster.Share("rollout workers", pool.workers, pool.gpus_per_worker)
    places = cluster.place(config.ray.placement, ranks, workers)
    actors = Learner(rank_settings(config, parts), places.ranks)
    return actors, WorkerPool(pool, worker_settings(config, parts), places.workers)


def last_step_to_ask(config: RunConfig, step: int) -> int:
    """The last step whose answers are asked for at `step`: pool.staleness ahead, but never across a checkpoint.

    So the step at a checkpoint is sampled with that checkpoint's weights, and a resumed run needs no older answers.
    Only a run that ended between two multiples of save_every and is given more steps differs from one longer at once.
    """
    next_checkpoint = (step // config.save_every + 1) * config.save_every
    return min(step + config.pool.staleness, next_checkpoint - 1, config.steps - 1)


class Run:
    """Everything that one training run holds open."""

    def __init__(self, config: RunConfig, parts: RunParts, actors: tuple[Learner, WorkerPool], resume: bool) -> None:
        self.config, self.parts = config, parts
        self.learner, self.pool = actors
        self.folder = Path(config.run)
        self.algorithm: PolicyGradient = parts.algorithm.build()
        self.train: Env = parts.env.build(split="train")
        self.validation: Env = parts.env.build(split="validation")
        self.checkpoints = Checkpoints(self.folder, config.keep_checkpoints)
        self.archive = RolloutArchive(self.folder / "archive")
        self.archiving = ArchiveWriter(self.archive)
        self.metrics = MetricsWriter(self.folder)
        self.shaper = parts.rewards.shaper()
        self.refilling = Refilling(config, self.pool, self.shaper, self.algorithm, len(self.train))
        self.dropped = DroppedSteps(self.folder)
        self.timings = Timings()
        self._warned = False
        self.first_step = self.checkpoints.load_last(self.learner) if resume else 0
        self._next_to_ask = self.first_step
        # In a new run, too: one that ended before its first checkpoint has left an evaluation, perhaps a best policy.
        self.archive.set_aside_after(self.first_step - 1)
        # The archive holds every term already: a history kept in the checkpoint could only disagree with it.
        self.shaper.replay(past_terms(self.archive, list(parts.rewards.weights)))
        # The numbers of an evaluation at a checkpoint's step are written again when the run goes on from it.
        self.metrics.drop_after(self.first_step - 1)
        self.dropped.forget_from(self.first_step)
        self.checkpoints.forget_after(self.first_step)

    def step(self, step: int) -> dict[str, float]:
        """One step: sample, total, archive, learn, record."""
        begun, num_groups = time.perf_counter(), self.config.groups_per_step
        with self.timings.waiting_for("weights"):
            self.pool.set_weights(self.learner.weights(), version=step)
        self.ask(step)
        with self.timings.waiting_for("answers"):
            groups = self.refilling.refilled(step, self.pool.collect())
        terms = group_terms(groups)
        shaped = self.shaper.shape(step, terms)
        groups = with_totals(groups, shaped.totals)
        self.archiving.append(step, groups)
        chosen = learned(self.algorithm.advantages(shaped.totals)[1], num_groups)
        batch = pack([groups[k] for k in chosen], self.algorithm)
        with self.timings.waiting_for("learner"):
            stats = self.learner.step(batch)
        numbers = group_metrics(groups) | staleness_metrics(groups) | shaping_metrics(self.shaper, step, terms, shaped)
        numbers |= refill_metrics(chosen, len(groups), num_groups) if self.config.refills else {}
        numbers |= {f"learner/{name}": value for name, value in stats.items()}
        self.metrics.scalars(step, numbers)
        self.metrics.histograms(step, group_histograms(groups))
        self.dropped.record(step, batch, stats["updates_dropped"])
        self.metrics.timings(step, self.timings.end_step(time.perf_counter() - begun))
        return numbers

    def ask(self, step: int) -> None:
        """Ask for the answers of all steps due at `step` that were not asked for before."""
        last = last_step_to_ask(self.config, step)
        for due in range(self._next_to_ask, last + 1):
            self.pool.ask(step_units(self.config, due, len(self.train)))
        self._next_to_ask = last + 1

    def new_warning(self, numbers: dict[str, float]) -> str | None:
        """What a step's numbers should be warned of, the first time that there is something."""
        warning = None if self._warned else sampler_warning(numbers, self.config.learner.warn_sampler_difference)
        self._warned |= warning is not None
        return warning

    def evaluate(self, step: int) -> float:
        """Greedy gIoU on validation of the policy as it would be handed out; keeps it if it is the best so far."""
        self.pool.set_weights(self.learner.weights(average=True), version=step)
        num_scenes = min(self.config.evaluation.num_scenes, len(self.validation))
        groups = self.pool.answer(greedy_units(self.config, "validation", num_scenes))
        giou = record_evaluation(self.metrics, step, groups, score_groups(groups), self.validation)
        self.checkpoints.save_best(self.learner, step, giou)
        return giou

    def save(self, step: int) -> None:
        """Write a checkpoint after `step` steps, once all of them are archived: none may be ahead of the archive."""
        self.archiving.flush()
        learner, asked = self.config.learner, step * self.config.groups_per_step
        self.checkpoints.save(self.learner, Position(step, asked, step, learner.ranks, learner.zero_stage))

    def close(self) -> None:
        """End workers and ranks; Ray itself stays."""
        self.archiving.close()
        self.metrics.close()
        self.pool.close()
        self.learner.close()


def train(config: RunConfig, resume: bool, console: Console) -> Path:
    """Run the job that `config` describes; returns the folder of the run.

    Raises ValueError, FileNotFoundError or FileExistsError for what is wrong with the config before Ray starts, OSError
    where the disk or Ray's object store is full, ChildProcessError where a learner rank dies, FloatingPointError where
    updates have to be dropped step after step.
    """
    parts = run_parts(config)
    refuse_missing_gpus(config, torch.cuda.device_count())
    refuse_full_disk(config, parts)
    refuse_unfit_policy(config, parts)
    prepare_folder(config, parts.data, resume)
    parts.data.tell(console, Path(config.run))
    with console.status("starting Ray, workers and learner"):
        run = Run(config, parts, start_actors(config, parts), resume)
    loop(run, console)
    run.close()
    return run.folder


def loop(run: Run, console: Console) -> None:
    """Every step that is left, with what belongs between them."""
    config = run.config
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("RL", total=config.steps, completed=run.first_step)
        for step in range(run.first_step, config.steps):
            if step % config.evaluation.every == 0:
                progress.console.print(f"step {step:>5}  greedy gIoU on validation {run.evaluate(step):.3f}")
            if step % config.save_every == 0:
                run.save(step)
            numbers = run.step(step)
            if warning := run.new_warning(numbers):
                progress.console.print(f"step {step:>5}  [yellow]warning:[/yellow] {warning}", soft_wrap=True)
            reward = numbers.get("reward/unshaped_mean", numbers["reward/mean"])
            progress.update(bar, completed=step + 1, description=f"RL  reward {reward:.3f}")
        progress.console.print(f"step {config.steps:>5}  greedy gIoU on validation {run.evaluate(config.steps):.3f}")
        run.save(config.steps)
    shares = ", ".join(f"{share:.0%} for {what}" for what, share in run.timings.shares.items())
    console.print(f"time of the steps spent waiting: {shares}")
