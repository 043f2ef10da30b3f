"""`polytrace plan`: whether a run fits its cards, how long a step takes, what limits it, and what to change.

All of it is reckoned from a config and the folder of its checkpoint, of which config.json, tokenizer and image
processor suffice; no weight and no data is read, no GPU is asked. What layers keep is a formula that was measured on
layers of the true widths; seconds are estimates. Formulas and assumptions: docs/plan.md.
"""

from dataclasses import asdict, dataclass, replace
from math import ceil, isqrt
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from envs.example import Prompt, Question
from envs.plugin import Plugin
from policies.families._sizes import Beside, model_sizes
from policies.families.box_decoder import sizes_of
from policies.families.vision_language import Policy as VisionLanguage
from policies.processor import Processor
from policies.selection.encoders import Encoder
from policies.selection.numbers import NumbersProcessor
from policies.selection.processor import SelectionProcessor
from rl.config.load import plugin_from_settings
from rl.config.plugins import algorithm_plugin, codec_plugin, policy_plugin
from rl.config.run import RunConfig, num_gpus
from rl.planning.advice import Change, to_fit, to_save_time
from rl.planning.cards import Card, Machines, card_named
from rl.planning.job import Asked, Job
from rl.planning.outlook import Outlook, outlook
from rl.planning.part import Memory, gb
from rl.run.parts import processor_of
from rl.run.preflight import needed_store_bytes

_PHRASE = "the second cup from the left"
"""Words that a prompt is measured with."""
_MANY_TOKENS = 4096
"""Tokens of a photo from which it is said how to have fewer."""
_OF_MOST = 0.6
"""Tokens of an answer on average, as a part of the longest, where nothing else is said."""


@dataclass(frozen=True)
class Look:
    """What the data is like, where the config does not say."""

    image: tuple[int, int] | None = None
    """Height and width of the largest photos, pixels; None for the largest that the model is shown."""
    answer_tokens: float | None = None
    """Tokens of an answer on average; None for a part of sampling.max_tokens."""


@dataclass(frozen=True)
class Plan:
    """A plan."""

    job: Job
    now: Outlook
    """The config as it is."""
    to_fit: Change | None
    """Settings by which it fits; None where it does, or none are known."""
    to_save_time: list[Change]
    """Settings by which a step takes less time."""
    notes: list[str]
    """What else to know."""
    problems: list[str]
    """What keeps the run from its cards, with the arithmetic; [] where it fits."""


def machines_for(
    config: RunConfig, card: Card, num: int | None, node_cards: int, network_gbit: float, mfu: float
) -> Machines:
    """The cards of a plan; num: None for as many as the config reserves. Raises ValueError for values out of range."""
    if num is None:
        num = max(1, ceil(num_gpus(config)))
    return Machines(card, num, node_cards, network_gbit, mfu)


def plan(config: RunConfig, machines: Machines, look: Look = Look()) -> Plan:  # frozen
    """Reckon a run on some cards.

    Raises ValueError or FileNotFoundError for a config or a checkpoint that cannot be planned with.
    """
    _refuse_cpu(config)
    plugin_from_settings("rollout.engines", "Engine", {"name": "shared"} | config.pool.engine, "pool.engine")
    codec = codec_plugin(config.codec)
    policy = policy_plugin(config.policy, codec)
    if not issubclass(policy.load(), VisionLanguage):
        raise ValueError(
            f"policy.name is {policy.name}, whose layers are not known; a plan can be made of vision_language alone."
        )
    processor = processor_of(policy)
    job = Job(
        config=config,
        sizes=model_sizes(processor, config.learner.lora, parts_beside(policy)),
        asked=asked_of(processor, config, look),
        machines=machines,
        divergence=algorithm_plugin(config.algorithm).build().kl > 0,
        logit_bytes=int(policy.settings.get("logit_bytes", 2**28)),
    )
    store = _store_bytes(config, round(job.weight_bytes))
    now = outlook(job, store)
    problems = _problems(job, now)
    enough = job.cards_used <= machines.num
    # With too few cards every number is that of cards which are not there, and so would be advice.
    fits, faster = (to_fit(job, now, store), to_save_time(job, now, store)) if enough else (None, [])
    return Plan(job, now, fits, faster, _notes(job), problems)


def parts_beside(policy: Plugin) -> Beside:
    """What a policy has beside its model: further encoders of masks, and a decoder, by its settings and its folder.

    Raises FileNotFoundError or ValueError for what is no encoder, and sizes that the folder's decoder has not.
    """
    encoders = [Encoder(Path(each)) for each in policy.settings.get("encoders") or ()]
    return Beside(
        [(each.width, each.parameters) for each in encoders],
        sizes_of(Path(policy.settings["checkpoint"]), policy.settings.get("decoder")),
        not policy.settings.get("freeze_decoder", False),
    )


def small_cards_note(config: RunConfig, card_bytes: int | None) -> str | None:
    """What to say before a run whose rank or worker is not expected to fit its card; None where both are, or on CPUs.

    card_bytes: memory of a card of this machine; None where it has none. An estimate for the largest pass, so that a
    run with small photos may fit nevertheless.
    """
    if card_bytes is None or not (config.learner.gpus_per_rank and config.pool.gpus_per_worker):
        return None
    if not issubclass(policy_plugin(config.policy, codec_plugin(config.codec)).load(), VisionLanguage):
        return None
    card = replace(card_named("h100"), title=f"a card of {gb(card_bytes)} GB", memory=float(card_bytes))
    found = plan(config, machines_for(config, card, None, 8, 400.0, 0.35))
    if found.now.fits:
        return None
    (first, *_) = [one for one in (found.now.rank, found.now.worker) if not one.fits]
    would = "" if found.to_fit is None else f"; it would with {found.to_fit.overrides}"
    said = f"by estimate a {first.who} does not fit {card.title} in {first.moment} (polytrace plan)"
    return f"{said}: {first.arithmetic}{would}"


def _store_bytes(config: RunConfig, weights: int) -> int:
    given = config.ray.object_store_gb
    return needed_store_bytes(weights, config.pool.transport) if given is None else int(given * 2**30)


def _refuse_cpu(config: RunConfig) -> None:
    learner, pool = config.learner, config.pool
    for name, value in (
        ("learner.gpus_per_rank", learner.gpus_per_rank),
        ("pool.gpus_per_worker", pool.gpus_per_worker),
    ):
        if not value:
            raise ValueError(
                f"{name} is 0, a run on CPUs, and only cards are planned; set learner.gpus_per_rank and "
                "pool.gpus_per_worker to 1, or both to 0.5 with pool.colocate=true."
            )
    if config.policy.get("dtype", "float32") != learner.dtype:
        raise ValueError(
            f"policy.dtype is {config.policy.get('dtype', 'float32')!r} and learner.dtype {learner.dtype!r}; workers "
            "hold the very bytes that the learner sends, so set both to the same."
        )


_MOST_RATIO = 200
"""Of the sides of an image, longer over shorter."""


def asked_of(processor: Processor, config: RunConfig, look: Look) -> Asked:
    """Tokens of a question and its answers by the model's own processor.

    Raises ValueError for a mean length of answers above sampling.max_tokens, or below one token.
    """
    most = config.sampling.max_tokens
    answer = _OF_MOST * most if look.answer_tokens is None else look.answer_tokens
    if not 1 <= answer <= most and look.answer_tokens is not None:
        raise ValueError(
            f"--answer-tokens is {answer:g} and sampling.max_tokens {most}; give the mean length of answers, 1 to "
            f"{most}."
        )
    if look.image is not None and max(look.image) > _MOST_RATIO * min(look.image):
        raise ValueError(
            f"--image is {look.image[0]}x{look.image[1]}, and one side is more than {_MOST_RATIO} times the other, "
            "which is stretched before a model sees it; give the size of an ordinary photo, such as 480x640."
        )
    image = _most_image_tokens(processor) if look.image is None else processor.image_tokens(*look.image)
    blank = Question(np.zeros((28, 28, 3), np.uint8), Prompt.of_text(_PHRASE))
    words = len(processor.engine_tokens(blank)) - 1
    if isinstance(processor, SelectionProcessor | NumbersProcessor):
        words += processor.listed_tokens(most)
    patches = image * processor.family.patches_each(processor.image_processor)
    return Asked(words + image, image, patches, answer)


def _most_image_tokens(processor: Processor) -> int:
    """Tokens of the largest image that the model is ever shown."""
    most = processor.engine_limits.get("max_pixels")
    side = 1024 if most is None else isqrt(most)
    tokens, (height, width) = processor.image_tokens(side, side), processor.shown_size(side, side)
    return tokens if most is None else max(tokens, most * tokens // (height * width))


def _notes(job: Job) -> list[str]:
    idle = job.machines.num - job.cards_used
    notes = []
    if idle > 0:
        notes.append(
            f"{idle} of {job.machines.num} cards have nothing to do; raise learner.ranks and pool.workers, now "
            f"{job.config.learner.ranks} and {job.config.pool.workers}."
        )
    if job.asked.image > _MANY_TOKENS:
        notes.append(
            f"a photo can take {job.asked.image:,} tokens; bound it by policy.max_pixels (1003520 is 1,280 tokens of "
            "28x28), or say by --image that yours are smaller."
        )
    if job.sizes.title not in _MEASURED:
        notes.append(f"layers of {job.sizes.title} were not measured; the formula of Qwen's kinds is taken for them.")
    if job.config.learner.token_budget is None:
        notes.append(
            f"without learner.token_budget a pass of {job.config.learner.micro_groups} groups can take "
            f"{job.largest_pass.tokens:,} tokens, ordinary ones "
            f"{round(job.config.learner.micro_groups * job.group_tokens):,}; set it to bound memory by what is usual."
        )
    return notes


_MEASURED = ("Qwen2.5-VL", "Qwen3-VL")


def _problems(job: Job, now: Outlook) -> list[str]:
    learner, pool, machines = job.config.learner, job.config.pool, job.machines
    found = []
    if job.cards_used > machines.num:
        sum_of = (
            f"{pool.workers} of a rank and a worker each"
            if pool.colocate
            else (
                f"learner.ranks {learner.ranks} x {learner.gpus_per_rank:g} + pool.workers {pool.workers} x "
                f"{pool.gpus_per_worker:g}"
            )
        )
        found.append(
            f"the run takes {sum_of} = {num_gpus(job.config):g} cards, and --gpus is {machines.num}; lower "
            "learner.ranks and pool.workers, or plan for more cards."
        )
    if learner.token_budget is not None and job.largest_group > learner.token_budget:
        found.append(
            f"a group can take {job.largest_group} tokens ({job.asked.prompt} of its prompt), more than "
            f"learner.token_budget {learner.token_budget}; raise it, or lower policy.max_pixels."
        )
    if learner.patch_budget is not None and job.asked.patches > learner.patch_budget:
        found.append(
            f"an image can have {job.asked.patches} patches, more than learner.patch_budget {learner.patch_budget}; "
            "raise it, or lower policy.max_pixels."
        )
    return found + [
        f"a {one.who} does not fit {machines.card.title} in {one.moment}: {one.arithmetic}"
        for one in (now.rank, now.worker)
        if not one.fits
    ]


def as_json(found: Plan) -> dict[str, Any]:
    """The plan for a program; bytes and seconds as numbers, all of them estimates."""
    now, machines = found.now, found.job.machines
    return {
        "fits": now.fits and not found.problems,
        "model": asdict(found.job.sizes) | {"parameters_all": found.job.sizes.parameters.all},
        "asked": asdict(found.job.asked),
        "cards": {"title": machines.card.title, "used": found.job.cards_used, "there": machines.num},
        "memory_bytes": {
            one.who: {
                "moment": one.moment,
                "parts": {part.name: part.amount for part in one.parts},
                "total": one.total,
                "room": one.room,
            }
            for one in (now.rank, now.worker, now.host)
        },
        "seconds": {part.name: part.amount for part in (*now.handing_over, *now.sampling, *now.learning)}
        | {"step": now.seconds},
        "limit": now.limit,
        "to_fit": None if found.to_fit is None else dict(found.to_fit.settings),
        "to_save_time": [dict(one.settings) | {"seconds": one.after.seconds} for one in found.to_save_time],
        "notes": found.notes,
        "problems": found.problems,
    }


def tables_of(found: Plan) -> list[Table]:
    """The plan for a person: memory by part, then seconds."""
    return [_memory_table(one) for one in (found.now.rank, found.now.worker, found.now.host)] + [_seconds_table(found)]


def _memory_table(one: Memory) -> Table:
    room = "" if one.room == float("inf") else f" of {gb(one.room)}"
    table = Table(f"{one.who}, GB", f"{gb(one.total)}{room}", f"at its fullest: {one.moment}; estimated")
    for part in one.parts:
        if part.amount:
            table.add_row(part.name, gb(part.amount), part.how)
    return table


def _seconds_table(found: Plan) -> Table:
    now = found.now
    table = Table("a step, seconds", f"{now.seconds:.1f}", "estimated")
    for parts in (now.handing_over, now.sampling, now.learning):
        for part in parts:
            if part.amount:
                table.add_row(part.name, f"{part.amount:.2f}", part.how)
    return table


def lines_of(found: Plan) -> list[str]:
    """What limits the run and what to change, a line each."""
    job, now = found.job, found.now
    lines = [
        f"{job.sizes.title}, {job.sizes.parameters.all / 1e9:.2f} B parameters, on {job.cards_used} of "
        f"{job.machines.num} cards: {job.machines.card.title}; prompts of {job.asked.prompt:,} tokens, "
        f"{job.asked.image:,} of them of an image, answers of {job.asked.answer:g} on average",
        f"what limits a step: {now.limit}" + ("; sampling and learning overlap" if now.overlapped else ""),
    ]
    lines += [f"note: {note}" for note in found.notes]
    lines += [f"PROBLEM: {problem}" for problem in found.problems]
    if found.to_fit is not None:
        lines.append(f"fits with: {found.to_fit.overrides} ({_after(found.to_fit)})")
    elif not now.fits:
        lines.append(
            "no setting known here makes it fit; take more or larger cards, learner.lora, or lower policy.max_pixels"
        )
    return lines + [f"faster: {one.overrides} ({_after(one)})" for one in found.to_save_time]


def _after(change: Change) -> str:
    after = change.after
    return f"a step {after.seconds:.1f} s, a rank {gb(after.rank.total)} GB, a worker {gb(after.worker.total)} GB"
