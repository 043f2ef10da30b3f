"""What to change in a config: settings by which it fits, and those by which a step takes less time.

Every piece of advice is reckoned: the changed config goes through the same formulas, and its own checks.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from policies.families._engines import NO_CUDA_GRAPH, NO_VLLM
from rl.config.run import RunConfig
from rl.planning.job import Job
from rl.planning.outlook import Outlook, outlook

WORTH = 0.95
"""A change is told where a step takes at most this part of the seconds."""
_ROUND = 256
"""Token budgets are multiples of this."""
_SHOWN = 5
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Change:
    """Settings to change, and what becomes of it."""

    settings: Settings
    """Values by dotted setting."""
    after: Outlook
    """What the job takes then."""

    @property
    def overrides(self) -> str:
        """The settings as the command line takes them."""
        return " ".join(f"{key}={_text(value)}" for key, value in self.settings.items())


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, dict):
        return "'{" + ", ".join(f"{key}: {_text(each)}" for key, each in value.items()) + "}'"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _section(key: str) -> str:
    return key.rpartition(".")[0]


def _name(key: str) -> str:
    return key.rpartition(".")[2]


def changed(config: RunConfig, settings: Settings) -> RunConfig:
    """The config with other values by dotted setting; raises ValueError where they do not go together."""
    top: dict[str, Any] = {}
    parts: dict[str, dict[str, Any]] = {"learner": {}, "pool": {}}
    engine = dict(config.pool.engine)
    for key, value in settings.items():
        section, _, name = key.rpartition(".")
        if key == "pool.engine":
            engine = value
        elif section == "pool.engine":
            engine[name] = value
        else:
            (parts[section] if section else top)[name] = value
    pool = replace(config.pool, engine=engine, **parts["pool"])
    return replace(config, learner=replace(config.learner, **parts["learner"]), pool=pool, **top)


def _change(job: Job, settings: Settings, store_bytes: float) -> Change | None:
    """What becomes of a change; None where the config refuses it, or has these values already."""
    config = job.config
    held: dict[str, dict[str, Any]] = {"": vars(config), "learner": vars(config.learner), "pool": vars(config.pool)}
    held["pool.engine"] = config.pool.engine
    settings = {key: new for key, new in settings.items() if held[_section(key)].get(_name(key)) != new}
    if not settings:
        return None
    try:
        config = changed(job.config, settings)
    except ValueError:
        return None
    return Change(settings, outlook(replace(job, config=config), store_bytes))


def to_fit(job: Job, now: Outlook, store_bytes: float) -> Change | None:
    """The cheapest settings by which rank and worker fit; None where none of those known here do, or both fit."""
    if now.fits:
        return None
    taken: dict[str, Any] = {}
    for settings in _for_room(job):
        more = _change(job, taken | dict(settings), store_bytes)
        if more is None:
            continue
        taken |= settings
        if more.after.fits:
            return _without_idle(job, more, store_bytes)
    return None


def _without_idle(job: Job, found: Change, store_bytes: float) -> Change:
    """The change without the settings that it fits without, those that cost most given up first."""
    for key in reversed(list(found.settings)):
        fewer = _change(job, {k: v for k, v in found.settings.items() if k != key}, store_bytes)
        if fewer is not None and fewer.after.fits:
            found = fewer
    return found


def _for_room(job: Job) -> Iterator[Settings]:
    """Settings that give room, the cheapest first; those that change what is learned come last."""
    learner, pool = job.config.learner, job.config.pool
    yield from _for_passes(job)
    yield from _for_sampling(job)
    if learner.zero_stage < 3 and learner.ranks > 1:
        yield {"learner.zero_stage": 3}
    if pool.colocate and not learner.offload_at_rest:
        yield {"learner.offload_at_rest": True} | ({} if learner.zero_stage else {"learner.zero_stage": 1})
    if not learner.offload_optimizer:
        yield {"learner.offload_optimizer": True} | ({} if learner.zero_stage else {"learner.zero_stage": 1})
    if not job.frozen_vision:
        yield {"learner.freeze_vision": True}


def _for_passes(job: Job) -> Iterator[Settings]:
    """Less for a pass of the learner to keep."""
    learner = job.config.learner
    least = -(-job.largest_group // _ROUND) * _ROUND
    if not learner.gradient_checkpointing:
        yield {"learner.gradient_checkpointing": True}
    if learner.token_budget is None or learner.token_budget > least:
        yield {"learner.token_budget": least}
    if not job.frozen_vision and learner.patch_budget != job.asked.patches:
        yield {"learner.token_budget": least, "learner.patch_budget": job.asked.patches}


def _for_sampling(job: Job) -> Iterator[Settings]:
    """Less for a worker to hold."""
    for share in (0.7, 0.6, 0.5, 0.4):
        if job.engine.name == "vllm" and share < job.engine.gpu_share:
            yield {"pool.engine.gpu_memory_utilization": share}
    for groups in (16, 8, 4, 2, 1):
        if job.engine.name != "vllm" and groups < job.config.unit_groups:
            yield {"groups_per_unit": groups}


def to_save_time(job: Job, now: Outlook, store_bytes: float) -> list[Change]:
    """Settings by which a step that fits takes less time and still fits: several together where that is better still,
    then by themselves, the best first."""
    if not now.fits:
        return []
    found = (_change(job, settings, store_bytes) for settings in _for_speed(job))
    better = [one for one in found if one and _better(one, now)]
    better = sorted(better, key=lambda one: one.after.seconds)[:_SHOWN]
    together: Change | None = None
    for one in better:
        both = one.settings if together is None else {**one.settings, **together.settings}
        more = _change(job, both, store_bytes)
        if more is not None and _better(more, now if together is None else together.after):
            together = more
    if together is None or together.settings == better[0].settings:
        return better
    return [together, *better[: _SHOWN - 1]]


def _better(change: Change, than: Outlook) -> bool:
    return change.after.fits and change.after.seconds <= WORTH * than.seconds


def _for_speed(job: Job) -> Iterator[Settings]:
    learner = job.config.learner
    if learner.offload_optimizer:
        yield {"learner.offload_optimizer": False}
    if learner.gradient_checkpointing:
        yield {"learner.gradient_checkpointing": False}
    if learner.zero_stage == 3:
        yield from ({"learner.zero_stage": stage} for stage in (1, 2))
    if learner.token_budget is not None:
        yield {"learner.token_budget": 2 * learner.token_budget}
    yield from _for_faster_answers(job)


def _for_faster_answers(job: Job) -> Iterator[Settings]:
    """Larger units, another engine, weights sent past the object store, and cards that both learn and sample."""
    pool, config = job.config.pool, job.config
    whole = -(-config.groups_per_step // pool.workers)
    if pool.transport == "object_store":
        yield {"pool.transport": "broadcast"}
    if config.unit_groups < whole:
        yield {"groups_per_unit": whole}
    if job.engine.name != "vllm":
        if job.sizes.title not in NO_CUDA_GRAPH:
            yield {"pool.engine.cuda_graph": True}
        if job.sizes.title not in NO_VLLM:
            yield {"pool.engine": {"name": "vllm"}, "groups_per_unit": None}
    if not pool.colocate and not pool.staleness:
        yield {"pool.staleness": 1}
    cards = min(job.machines.num, job.cards_used)
    if not pool.colocate and cards > 1:
        both: Settings = {"learner.gpus_per_rank": 0.5, "pool.gpus_per_worker": 0.5, "pool.colocate": True}
        share = {"pool.staleness": 0, "learner.ranks": cards, "pool.workers": cards}
        yield {**both, **share, "groups_per_unit": -(-config.groups_per_step // cards)}
