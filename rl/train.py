"""The main loop: weights to the workers, answers from them, totals, archive, one learner step. Start reading here.

One driver process with no rank in it: all that is distributed is behind WorkerPool and Learner. A run is a folder;
stopped after any step, it goes on from its last checkpoint as if nothing had happened, to the last bit on the CPU. With
pool.staleness above 0 the answers of coming steps are asked for before the learner begins; the loop is the same, as it
is where ranks and workers share their cards by turns (rl/learner/turns.py).
"""

from pathlib import Path
from typing import Protocol

import torch
from rich.console import Console
from rich.markup import escape

from envs.datasets.base import Env
from policies.checkpoint import Checkpoint
from rl.algorithms.base import PolicyGradient
from rl.check import notes_of
from rl.config.run import RunConfig, num_gpus
from rl.evaluation.answers import greedy_units, record_evaluation, score_groups
from rl.evaluation.early_signs import EarlySigns
from rl.learner.batches.batch import Batch, pack
from rl.learner.batches.stats import sampler_warning, signal_warning
from rl.learner.dropped import DroppedSteps
from rl.learner.learner import Learner
from rl.learner.turns import Turns
from rl.pages.progress import StepProgress
from rl.plan import small_cards_note
from rl.run.checkpoints import Position
from rl.run.folder import RunFolder
from rl.run.machine import idle_gpus_note, largest_card_bytes, shared_memory_note
from rl.run.metrics import MetricsWriter, Timings
from rl.run.parts import RunParts, processor_of, rank_settings, run_parts, worker_settings
from rl.run.preflight import object_store_bytes, preflight, short_answers_note
from rl.run.step_numbers import step_numbers
from rl.run.steps import Refilling, ScoredStep, group_terms, past_terms, scored_step, step_units
from rl.run.writable import unread_words_note
from rl.supervised.teacher import refuse_unfit_teaching, teacher_of
from rollout import cluster
from rollout.archive.writer import ArchiveWriter
from rollout.pool.pool import WorkerPool
from rollout.records import Group


def loop(run: "Run", console: Console) -> None:
    """Take every step that is left, with the evaluations and checkpoints that are due between them."""
    config = run.config
    with StepProgress(console, "RL", config.steps, run.first_step) as progress:
        for step in range(run.first_step, config.steps + 1):
            if step % config.evaluation.every == 0 or step == config.steps:
                giou = run.evaluate(step)
                progress.print(f"step {step:>5}  greedy gIoU on validation {giou:.3f}")
                warn(progress, step, run.signs.evaluated(giou))
            if step % config.save_every == 0 or step == config.steps:
                run.save(step)
            if step < config.steps:
                numbers = take_step(run, step)
                warn(progress, step, [*run.new_warnings(numbers), *run.signs.stepped(numbers)])
                reward = numbers.get("reward/unshaped_mean", numbers["reward/mean"])
                progress.update(step + 1, f"reward {reward:.3f}")


def warn(progress: StepProgress, step: int, warnings: list[str]) -> None:
    """Print what deserves to be looked at."""
    for text in warnings:
        progress.print(f"step {step:>5}  [yellow]warning:[/yellow] {escape(text)}", markup=True)


def take_step(run: "Steps", step: int) -> dict[str, float]:
    """One step of the loop; returns what is logged of it."""
    run.set_weights(step)
    groups = run.collect(step)
    scored = run.total(step, groups)
    run.archive(scored)
    batch = run.pack(scored)
    stats = run.learn(batch)
    return run.record(scored, batch, stats)


class Steps(Protocol):
    """What `take_step` asks of a run; Run says what each does."""

    def set_weights(self, step: int) -> None:
        """Give the workers the weights that step `step` begins with."""

    def collect(self, step: int) -> list[Group]:
        """Ask for what is due at the step; wait for the step's own answers, and complete them by refills."""

    def total(self, step: int, groups: list[Group]) -> ScoredStep:
        """Shape the terms, make totals and advantages of them, and choose what is learned from."""

    def archive(self, scored: ScoredStep) -> None:
        """Write all groups of the step, those included that nothing is learned from."""

    def pack(self, scored: ScoredStep) -> Batch:
        """The chosen groups as the learner's batch."""

    def learn(self, batch: Batch) -> dict[str, float]:
        """Make the updates of the step; returns the learner's statistics."""

    def record(self, scored: ScoredStep, batch: Batch, stats: dict[str, float]) -> dict[str, float]:
        """Log the step; returns its numbers."""


class Run:
    """Everything that one training run holds open."""

    def __init__(self, config: RunConfig, parts: RunParts, actors: tuple[Learner, WorkerPool], first_step: int) -> None:
        """actors: the learner, which has taken `first_step` steps, and the workers."""
        self.config, self.parts, self.first_step = config, parts, first_step
        self.learner, self.pool = actors
        self.turns = Turns(*actors, config.pool.colocate)
        self.folder = RunFolder(Path(config.run))
        self.algorithm: PolicyGradient = parts.algorithm.build()
        self.train: Env = parts.env.build(split="train")
        self.validation: Env = parts.env.build(split="validation")
        self.checkpoints = self.folder.checkpoints(config.keep_checkpoints)
        self.rollouts = self.folder.archive()
        self.archiving = ArchiveWriter(self.rollouts)
        self.metrics = MetricsWriter(self.folder.path)
        self.shaper = parts.rewards.shaper()
        self.refilling = Refilling(config, self.pool, self.shaper, self.algorithm, len(self.train))
        self.dropped = DroppedSteps(self.folder.path)
        self.teacher = teacher_of(config, parts)
        self.timings = Timings()
        half = config.groups_per_step / config.learner.minibatches / 2
        self.signs = EarlySigns(
            config.sampling.at(0).temperature, half, config.learner.minibatches, over=first_step > 0
        )
        self._warned: set[int] = set()
        self._silent_steps = 0
        self._next_to_ask = first_step

    def set_weights(self, step: int) -> None:
        """Give the workers the learner's weights, as version `step`."""
        self.timings.begin_step()
        with self.timings.waiting_for("weights"):
            self.turns.of_workers()
            self.pool.set_weights(self.learner.weights(), version=step)

    def collect(self, step: int) -> list[Group]:
        """Ask for all steps that are due by now (last_step_to_ask), wait for the answers of this one, and refill."""
        last = last_step_to_ask(self.config, step)
        for due in range(self._next_to_ask, last + 1):
            self.pool.ask(step_units(self.config, due, len(self.train)))
        self._next_to_ask = last + 1
        with self.timings.waiting_for("answers"):
            return self.refilling.refilled(step, self.pool.collect())

    def total(self, step: int, groups: list[Group]) -> ScoredStep:
        """Shape the reward terms into totals; take advantages, and choose the groups that are learned from."""
        terms = group_terms(groups)
        shaped = self.shaper.shape(step, terms)
        return scored_step(step, groups, terms, shaped, self.algorithm, self.config.groups_per_step)

    def archive(self, scored: ScoredStep) -> None:
        """Hand all groups of the step to the thread that writes the archive."""
        self.archiving.append(scored.step, scored.groups)

    def pack(self, scored: ScoredStep) -> Batch:
        """The chosen groups as a batch, with the outlines and the true masks that are taught where the config asks for
        some."""
        groups = scored.to_learn
        taught = None if self.teacher is None else self.teacher.answers([group.example for group in groups])
        return pack(groups, scored.advantages, taught, truths=self.config.learner.decoder_weight > 0)

    def learn(self, batch: Batch) -> dict[str, float]:
        """Make the updates of the step; returns the statistics of the learner."""
        with self.timings.waiting_for("learner"):
            self.turns.of_ranks()
            return self.learner.step(batch)

    def record(self, scored: ScoredStep, batch: Batch, stats: dict[str, float]) -> dict[str, float]:
        """Log the step, and keep its batch where an update was dropped; returns its numbers."""
        thinks = self.config.policy.get("thinking", "none") != "none"
        numbers = step_numbers(scored, self.shaper, stats, self.config.refills, thinks)
        self.metrics.scalars(scored.step, numbers.scalars)
        self.metrics.histograms(scored.step, numbers.histograms)
        self.dropped.record(scored.step, batch, stats["updates_dropped"])
        self.metrics.timings(scored.step, self.timings.end_step())
        return numbers.scalars

    def new_warnings(self, numbers: dict[str, float]) -> list[str]:
        """What a step's numbers should be warned of, the first time that there is something of its kind."""
        self._silent_steps = self._silent_steps + 1 if numbers["group/without_signal"] == 1 else 0
        found = (
            sampler_warning(numbers, self.config.learner.warn_sampler_difference),
            signal_warning(numbers, self._silent_steps),
        )
        new = [(kind, text) for kind, text in enumerate(found) if text is not None and kind not in self._warned]
        self._warned |= {kind for kind, _ in new}
        return [text for _, text in new]

    def evaluate(self, step: int) -> float:
        """Greedy gIoU on validation of the policy as it would be handed out; keeps it if it is the best so far."""
        self.turns.of_workers()
        self.pool.set_weights(self.learner.weights(average=True), version=step)
        num_scenes = min(self.config.evaluation.num_scenes, len(self.validation))
        groups = self.pool.answer(greedy_units(self.config, "validation", num_scenes))
        giou = record_evaluation(self.metrics, step, groups, score_groups(groups), self.validation)
        self.checkpoints.save_best(self.learner, step, giou)
        return giou

    def save(self, step: int) -> None:
        """Write a checkpoint after `step` steps, once all of them are archived: none may be ahead of the archive."""
        self.archiving.flush()
        self.turns.of_ranks()
        learner, asked = self.config.learner, step * self.config.groups_per_step
        self.checkpoints.save(self.learner, Position(step, asked, step, learner.ranks, learner.zero_stage))

    def close(self) -> None:
        """End workers and ranks; Ray itself stays."""
        self.archiving.close()
        self.metrics.close()
        self.pool.close()
        self.learner.close()


def last_step_to_ask(config: RunConfig, step: int) -> int:
    """The last step whose answers are asked for at `step`: pool.staleness ahead, but never across a checkpoint.

    So the step at a checkpoint is sampled with that checkpoint's weights, and a resumed run needs no older answers.
    Only a run that ended between two multiples of save_every and is given more steps differs from one longer at once.
    """
    next_checkpoint = (step // config.save_every + 1) * config.save_every
    return min(step + config.pool.staleness, next_checkpoint - 1, config.steps - 1)


def begin(config: RunConfig, parts: RunParts, actors: tuple[Learner, WorkerPool], resume: bool) -> Run:
    """The run, ready for its first step; resume: from its last checkpoint, which the learner is brought to."""
    checkpoints = RunFolder(Path(config.run)).checkpoints(config.keep_checkpoints)
    run = Run(config, parts, actors, checkpoints.load_last(actors[0]) if resume else 0)
    go_back_to_first_step(run)
    return run


def go_back_to_first_step(run: Run) -> None:
    """Make the run's folder and shaping what they were before its first step; what came later is undone.

    In a new run, too: one that ended before its first checkpoint has left an evaluation, perhaps a best policy.
    """
    first = run.first_step
    run.rollouts.set_aside_after(first - 1)
    # The archive holds every term already: a history kept in the checkpoint could only disagree with it.
    run.shaper.replay(past_terms(run.rollouts, list(run.parts.rewards.weights)))
    # The numbers of an evaluation at a checkpoint's step are written again when the run goes on from it.
    run.metrics.drop_after(first - 1)
    run.dropped.forget_from(first)
    run.checkpoints.forget_after(first)


def start_actors(config: RunConfig, parts: RunParts) -> tuple[Learner, WorkerPool]:
    """Ray, the learner's ranks and the workers; raises ValueError where they don't fit on the cluster."""
    learner, pool = config.learner, config.pool
    store, num_cpus = object_store_bytes(config, parts), pool.workers + learner.ranks
    cluster.start(config.ray.address, num_cpus, num_gpus(config), store)
    ranks = cluster.Share("learner ranks", learner.ranks, learner.gpus_per_rank)
    workers = cluster.Share("rollout workers", pool.workers, pool.gpus_per_worker)
    if not pool.colocate:
        places = cluster.place(config.ray.placement, ranks, workers)
        actors = Learner(rank_settings(config, parts), places.ranks)
        return actors, WorkerPool(pool, worker_settings(config, parts), places.workers)
    places = cluster.colocate(ranks, workers)
    sampling = WorkerPool(pool, worker_settings(config, parts), places.workers)
    sampling.sleep()  # before the ranks begin: vLLM measures the card's memory as it starts
    return Learner(rank_settings(config, parts), places.ranks), sampling


def start_notes(config: RunConfig, parts: RunParts, env: Env) -> list[str]:
    """What to look at before the first step; env: the training examples."""
    processor = processor_of(parts.policy)
    stored = Checkpoint(Path(parts.policy.settings["checkpoint"])).dtype
    notes = notes_of(processor, stored, str(config.policy.get("dtype", "float32")))
    more = (
        unread_words_note(env, processor),
        short_answers_note(env, processor, config.sampling.max_tokens),
        shared_memory_note(config, object_store_bytes(config, parts)),
        idle_gpus_note(config, torch.cuda.device_count()),
    )
    return notes + [note for note in more if note is not None]


def train(config: RunConfig, resume: bool, console: Console) -> Path:
    """Run the job that `config` describes; returns the folder of the run.

    Raises ValueError, FileNotFoundError or FileExistsError for what is wrong with the config before Ray starts, OSError
    where the disk or Ray's object store is full, ChildProcessError where a learner rank dies, FloatingPointError where
    updates have to be dropped step after step.
    """
    parts, folder = run_parts(config), RunFolder(Path(config.run))
    preflight(config, parts)
    refuse_unfit_teaching(config, parts)
    card = largest_card_bytes()
    if card is not None and (note := small_cards_note(config, card)):
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    folder.begin(config, parts.data, resume)
    parts.data.tell(console, folder.path)
    with console.status("starting Ray, workers and learner"):
        run = begin(config, parts, start_actors(config, parts), resume)
    for note in start_notes(config, parts, run.train):
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    if resume:
        console.print(f"{folder.path} goes on after step {run.first_step} of {config.steps}", markup=False)
    loop(run, console)
    run.close()
    shares = ", ".join(f"{share:.0%} for {what}" for what, share in run.timings.shares.items())
    console.print(f"time of the steps spent waiting: {shares}")
    return folder.path
