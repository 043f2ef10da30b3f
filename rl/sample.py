"""`polytrace sample`: the main loop without its learner. One policy answers every step, scored and archived as a run's.

Examples, seeds, shaping and refills are those of training under the same config, so step 0 is the same to the last bit,
but for the checksum of weights where a run trains adapters and pushes them alone. The folder holds config.yaml and
archive/, which is all that `archive`, `export pairs` and `rewards` need.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console

from envs.datasets.base import Env
from rl.config.run import RunConfig, num_gpus
from rl.pages.progress import StepProgress
from rl.run.folder import RunFolder
from rl.run.parts import RunParts, run_parts, worker_settings
from rl.run.preflight import object_store_bytes, preflight
from rl.run.steps import Refilling, group_terms, past_terms, step_units, with_totals
from rollout import cluster
from rollout.archive.archive import RolloutArchive
from rollout.archive.writer import ArchiveWriter
from rollout.pool.pool import WorkerPool


def of_best_policy(config: RunConfig, run: Path) -> RunConfig:
    """The config with the best policy of `run` in place of policy.checkpoint.

    Raises FileNotFoundError where it has none.
    """
    best = RunFolder(run).best_policy("train it first (polytrace train), or leave out --run")
    return replace(config, policy=config.policy | {"checkpoint": f"{best.folder.resolve()}"})


def sample(config: RunConfig, resume: bool, console: Console) -> Path:
    """Sample every step that `config` asks for, or those that are left; returns the folder of the run.

    Raises ValueError, FileNotFoundError or FileExistsError for what is wrong with the config before Ray starts, OSError
    where the disk or Ray's object store is full.
    """
    alone, folder = without_learner(config), RunFolder(Path(config.run))
    parts = run_parts(alone)
    preflight(alone, parts, learns=False)
    folder.begin_sampling(config, parts.data, resume)
    parts.data.tell(console, folder.path)
    with console.status("starting Ray and workers"):
        store = object_store_bytes(alone, parts)
        cluster.start(config.ray.address, config.pool.workers, num_gpus(alone), store)
        pool = WorkerPool(alone.pool, worker_settings(alone, parts))
    draw(alone, parts, pool, console)
    pool.close()
    return folder.path


def without_learner(config: RunConfig) -> RunConfig:
    """The config as it is without a learner: no GPUs of its own, no adapters."""
    return replace(
        config,
        learner=replace(config.learner, gpus_per_rank=0.0, offload_at_rest=False, lora=None),
        pool=config.pool.without_ranks(),
    )


def draw(config: RunConfig, parts: RunParts, pool: WorkerPool, console: Console) -> None:
    """Have `pool` answer every step after the last archived one; a step is asked for while another is scored.

    Raises ValueError where the archive was drawn by other weights.
    """
    env: Env = parts.env.build(split="train")
    archive = RunFolder(Path(config.run)).archive()
    first = 0 if archive.last_step is None else archive.last_step + 1
    weights = pool.checkpoint_weights(Path(parts.policy.settings["checkpoint"]))
    archive.set_aside_after(first - 1)  # what an interrupted write has left
    shaper, ious = parts.rewards.shaper(), list[float]()
    shaper.replay(past_terms(archive, list(parts.rewards.weights)))
    refilling = Refilling(config, pool, shaper, parts.algorithm.build(), len(env))
    archiving = ArchiveWriter(archive)
    pool.set_weights(weights, version=0)
    with StepProgress(console, "sampling", config.steps, first) as progress:
        for step in range(first, config.steps):
            for due in range(step if step == first else step + 1, min(step + 2, config.steps)):
                pool.ask(step_units(config, due, len(env)))
            groups = refilling.refilled(step, pool.collect())
            if step == first:
                _refuse_other_weights(archive, groups[0].policy_checksum)
            groups = with_totals(groups, shaper.shape(step, group_terms(groups)).totals)
            archiving.append(step, groups)
            ious += [rollout.iou for group in groups for rollout in group.rollouts]
            progress.update(step + 1, f"mean IoU {np.mean(ious):.3f}")
    archiving.close()
    if ious:
        console.print(f"sampled {len(ious):,} answers, mean IoU {np.mean(ious):.3f}")


def _refuse_other_weights(archive: RolloutArchive, checksum: str) -> None:
    last = archive.last_step
    if last is None:
        return
    (stored,) = {name for batch in archive.rollouts(["policy_checksum"], {last}) for name in batch[0].to_pylist()}
    if len(stored) != len(checksum):
        raise ValueError(
            f"{archive.folder} was begun by a release whose checksums of weights ({stored[:12]}...) cannot be compared "
            "with today's; sample into another folder by run=NAME."
        )
    if stored != checksum:
        raise ValueError(
            f"the policy now has the weights {checksum[:12]}, but {archive.folder} was drawn by {stored[:12]}; bring "
            "them back, or sample into another folder by run=NAME."
        )
