"""Seconds of a step, by part: operations over what a card reaches, bytes over what it moves.

Estimates: nothing here was timed on a GPU. Rates are data sheets' (cards.py), shares of them and what a call costs are
the assumptions named here; speeds of the CPU were measured (docs/plan.md says where).
"""

from policies.families._sizes import TextSizes
from rl.planning.job import Job
from rl.planning.memory import cache_bytes, groups_at_once, state_bytes, vllm_cache_bytes
from rl.planning.part import Part, gb
from rl.planning.states import optimizer_bytes, shares

BANDWIDTH_SHARE = 0.7
"""Share of a card's bandwidth that decoding reaches. An assumption."""
LAUNCH_SECONDS = 7e-6
"""Between two operations that Python starts. An assumption; 6 to 8 microseconds are usual."""
LAUNCHES_OF_LAYER, LAUNCHES_OF_NORMED_HEADS, LAUNCHES_OF_TOKEN = 49, 8, 50
"""Operations that our own engine starts for one token of all answers in bfloat16: by layer, more where queries and keys
are normed, and besides, drawing included. Counted (tests/rl/planning/test_launches.py)."""
ENGINE_STEP_SECONDS = 1.5e-3
"""vLLM's own work at a token of all sequences. An assumption."""
HOST_BANDWIDTH = 25e9
"""Bytes a second between a card and page-locked memory of its host: PCIe 4.0 x16, less what is usual. An assumption."""
COPY_BANDWIDTH = 5e9
"""Bytes a second of a copy in the host's memory by one thread. An assumption."""
HASHED_BANDWIDTH = 1.59e9
"""Bytes a second of SHA-256 on one core, measured."""
SUMMED_BANDWIDTH = 10 * HASHED_BANDWIDTH
"""Bytes a second of the checksum that every push takes (policies/checksums.py), on one core."""
IMAGE_TOKEN_SECONDS = 60e-6
"""Preparing a photo on one core, by its tokens, measured: 53 to 80 us of CPU time, by family and size."""
ANSWER_SECONDS = 19e-6
"""Scoring one answer on one core at 480 x 640, measured: 53,000 a second."""
_ADAM_BYTES = 30
"""Bytes that an update moves for a weight on the card: reads and writes weight, gradient and both moments."""
_HOST_ADAM_SECONDS = 1e-9
"""An update of one offloaded weight by torch's fused AdamW on two cores, measured: 0.036 s for 40 M."""
_HOST_ADAM_BYTES = 6
"""Bytes of a gradient down and a weight up."""


def learning_seconds(job: Job) -> list[Part]:
    """Seconds of the learner's part of a step."""
    learner, machines = job.config.learner, job.machines
    reached = machines.mfu * machines.card.flops * learner.ranks
    text, vision = text_operations(job) * _text_passes(job), vision_operations(job) * _vision_passes(job)
    compute = (text + vision) / reached
    moved = traffic_bytes(job) / machines.link(learner.ranks)
    # Under ZeRO-3 DeepSpeed fetches the next layers while it computes.
    shown = max(0.0, moved - compute) if learner.zero_stage == 3 else moved
    images = job.config.groups_per_step / learner.ranks * job.asked.image * IMAGE_TOKEN_SECONDS
    rate = f"{machines.mfu:g} x {machines.card.flops / 1e12:g} TFLOP/s x {learner.ranks}"
    return [
        Part("learning: language model", text / reached, f"{text / 1e15:.2f} PFLOP / ({rate})"),
        Part("learning: vision tower", vision / reached, f"{vision / 1e15:.2f} PFLOP / ({rate})"),
        *_learning_to_draw(job, reached, rate),
        Part(
            "learning: traffic not hidden",
            shown,
            f"{gb(traffic_bytes(job))} GB a rank take {moved:.1f} s"
            + (", beside the computing" if learner.zero_stage == 3 else ""),
        ),
        Part(
            "learning: updates", _update_seconds(job), "offloaded" if learner.offload_optimizer else "AdamW on the card"
        ),
        Part("learning: photos prepared", images, f"{IMAGE_TOKEN_SECONDS * 1e6:g} us a token of an image"),
    ]


def text_operations(job: Job) -> float:
    """Operations of one forward pass of the language model over all groups of a step.

    Two for each weight that a token meets; the head only where answers are scored; attention by pairs of tokens that
    see each other, P^2 / 2 + G T (P + T / 2) in a group.
    """
    text, asked, config = job.sizes.text, job.asked, job.config
    scored = config.group_size * asked.answer
    pairs = asked.prompt**2 / 2 + scored * (asked.prompt + asked.answer / 2)
    of_layers = 2 * _met(job) * job.group_tokens
    of_head = 2 * text.vocabulary * text.width * scored
    return config.groups_per_step * (of_layers + of_head + 4 * text.attending * text.query_width * pairs)


def _met(job: Job) -> int:
    """Weights of the layers that a token meets: all but those of other experts."""
    return job.sizes.parameters.layers - job.sizes.parameters.idle


def vision_operations(job: Job) -> float:
    """Operations of one forward pass of the vision tower over the images of a step."""
    vision, patches = job.sizes.vision, job.asked.patches
    seen = vision.whole_blocks * patches + (vision.blocks - vision.whole_blocks) * vision.window_patches
    return job.config.groups_per_step * patches * (2 * job.sizes.parameters.tower + 4 * vision.width * seen)


def drawing_operations(job: Job) -> float:
    """Operations of a decoder that draws one mask for each answer of a step, once; 0 without a decoder."""
    asked, drawing = job.asked, job.sizes.drawing
    if drawing is None:
        return 0.0
    return job.config.groups_per_step * asked.image * (drawing.image + job.config.group_size * drawing.answer)


def _learning_to_draw(job: Job, reached: float, rate: str) -> list[Part]:
    """A decoder that learns along: forward and back, once more where passes of several groups are drawn again one by
    one, and under ZeRO-3 in the passes of old log-probabilities too, where all ranks take one way."""
    learner = job.config.learner
    if not (learner.decoder_weight and job.sizes.parameters.learning_decoder):
        return []
    old = (learner.minibatches - 1) / learner.minibatches if learner.zero_stage == 3 else 0.0
    passes = 3 + (job.groups_of_pass > 1) + old
    drawn = drawing_operations(job) * passes
    return [Part("learning: mask decoder", drawn / reached, f"{drawn / 1e15:.2f} PFLOP / ({rate}), {passes:g} passes")]


def _other_passes(job: Job) -> float:
    """Forward passes beside that which learns: old log-probabilities, none in the first update, and the divergence."""
    minibatches = job.config.learner.minibatches
    return (minibatches - 1) / minibatches + job.divergence


def _text_passes(job: Job) -> float:
    learner = job.config.learner
    back = 1.0 if learner.lora is not None else 2.0  # weights that do not learn have no gradient
    return 1 + back + learner.gradient_checkpointing + _other_passes(job)


def _vision_passes(job: Job) -> float:
    if job.frozen_vision:
        return 1 + _other_passes(job)
    return 3 + job.config.learner.gradient_checkpointing + _other_passes(job)


def traffic_bytes(job: Job) -> float:
    """Bytes that a rank sends in a step, by ZeRO stage (arXiv 1910.02054, section 7).

    Stage 3 gathers all weights in each forward and each backward pass and sends on gradients in each; stage 2 sends
    gradients in each pass, stages 0 and 1 in each update; stages 1 and 2 gather the weights after each update.
    """
    learner = job.config.learner
    trained = float(job.trained * job.number)
    updates, passes = learner.minibatches, learner.minibatches * job.passes
    if learner.zero_stage == 3:
        old = (updates - 1) * job.passes
        whole = passes * (2 * job.weight_bytes + trained) + old * job.weight_bytes
    elif learner.zero_stage == 2:
        whole = (passes + updates) * trained
    else:
        whole = 2 * updates * trained
    return whole * (learner.ranks - 1) / learner.ranks


def _update_seconds(job: Job) -> float:
    learner = job.config.learner
    stepped = job.trained * shares(learner)[2]
    if not learner.offload_optimizer:
        return learner.minibatches * stepped * _ADAM_BYTES / job.machines.card.bandwidth
    return learner.minibatches * stepped * (_HOST_ADAM_SECONDS + _HOST_ADAM_BYTES / HOST_BANDWIDTH)


def sampling_seconds(job: Job) -> list[Part]:
    """Seconds of the workers' part of a step: that of the worker with most units."""
    config, machines, asked = job.config, job.machines, job.asked
    units = -(-config.groups_per_step // (config.unit_groups * config.pool.workers))
    groups = min(units * config.unit_groups, config.groups_per_step)
    reached = machines.mfu * machines.card.flops
    prefill = 2 * _met(job) * asked.prompt * groups / reached
    vision = vision_operations(job) / config.groups_per_step * groups / reached
    decode, how = _decode(job)
    answers = groups * config.group_size
    return [
        Part("sampling: decoding", units * decode, f"{units} units, {how}"),
        Part("sampling: prompts", prefill, f"{groups} prompts of {asked.prompt:,} tokens"),
        Part("sampling: vision tower", vision, f"{groups} images of {asked.patches:,} patches"),
        *_drawing(job, groups, reached),
        Part("sampling: photos prepared", groups * asked.image * IMAGE_TOKEN_SECONDS, "on one core of each worker"),
        Part("scoring", answers * ANSWER_SECONDS, f"{answers} answers on one core of each worker"),
    ]


def _drawing(job: Job, groups: int, reached: float) -> list[Part]:
    """The pass over prompts and answers by which a decoder is told what to draw, and the drawing."""
    if not job.sizes.parameters.decoder:
        return []
    step = text_operations(job) + vision_operations(job) + drawing_operations(job)
    seconds = step / job.config.groups_per_step * groups / reached
    return [Part("sampling: a pass for masks", seconds, f"{groups} groups, prompts and answers once more")]


def _decode(job: Job) -> tuple[float, str]:
    """Seconds of one unit's tokens, and how they were reckoned: until its longest answer is done."""
    config, most = job.config, job.config.sampling.max_tokens
    unit = min(config.unit_groups, config.groups_per_step)
    if job.engine.name == "vllm":
        answers = _sequences(job)
        waves = -(-unit * config.group_size // answers)
        read = answers * (job.asked.prompt + job.asked.answer / 2)
        beside, started = ENGINE_STEP_SECONDS, 0.0
    else:
        groups = groups_at_once(job)
        answers, waves = groups * config.group_size, -(-unit // groups)
        read = groups * job.asked.prompt + answers * job.asked.answer / 2
        beside, started = 0.0, 0.0 if job.engine.graphed else launches(job.sizes.text) * LAUNCH_SECONDS
    states = 2 * answers * state_bytes(job)  # read and written
    moved = (decoded_bytes(job) + read * cache_bytes(job) + states) / (BANDWIDTH_SHARE * job.machines.card.bandwidth)
    computed = answers * decoded_bytes(job) / job.number * 2 / (job.machines.mfu * job.machines.card.flops)
    token = max(moved, computed, started) + beside
    slowest = "starting operations" if started > max(moved, computed) else "reading weights and cache"
    if computed > max(moved, started):
        slowest = "computing"
    return waves * most * token, f"{waves * most} tokens of {answers} answers at {token * 1e3:.1f} ms ({slowest})"


def launches(text: TextSizes) -> int:
    """Operations that our own engine starts for a token of all answers."""
    of_layer = LAUNCHES_OF_LAYER + LAUNCHES_OF_NORMED_HEADS * text.normed_heads
    return of_layer * text.layers + LAUNCHES_OF_TOKEN


def _sequences(job: Job) -> int:
    """Answers that vLLM's cache holds at once, prompts shared by their answers."""
    each = cache_bytes(job) * (job.asked.prompt / job.config.group_size + job.config.sampling.max_tokens)
    return max(1, min(job.config.unit_groups * job.config.group_size, int(vllm_cache_bytes(job) / each)))


def decoded_bytes(job: Job) -> float:
    """Bytes of weights that a token is made by: layers and head, not the tower."""
    counts = job.sizes.parameters
    return float((counts.layers + (counts.head or counts.embedding)) * job.number)


def handing_over_seconds(job: Job) -> list[Part]:
    """Seconds in which cards neither learn nor sample: weights on their way, and with pool.colocate sleep and wake."""
    counts, learner = job.sizes.parameters, job.config.learner
    alone = learner.lora is not None and learner.lora.push == "adapters"
    pushed = float((counts.adapters + counts.selection if alone else counts.all) * job.number)
    parts = [_push(job, pushed)]
    if job.config.pool.colocate and learner.offload_at_rest and not learner.offload_optimizer:
        moved = job.trained * optimizer_bytes(job.number) * shares(learner)[2]
        parts.append(Part("sleep and wake", 2 * moved / HOST_BANDWIDTH, f"{gb(moved)} GB of states, there and back"))
    return parts


def _push(job: Job, pushed: float) -> Part:
    """Gathered under ZeRO-3, sent, summed up on both sides, and now and then hashed."""
    pool, machines, learner = job.config.pool, job.machines, job.config.learner
    gathered = pushed / machines.link(learner.ranks) if learner.zero_stage == 3 else 0.0
    hashed = 2 * pushed / HASHED_BANDWIDTH / pool.sha256_every if pool.sha256_every else 0.0
    if pool.transport == "broadcast":
        sent = pushed / machines.link(job.cards_used) + 2 * pushed / (BANDWIDTH_SHARE * machines.card.bandwidth)
        how = "by a process group"
    else:
        # From the card, summed, two copies into the store; a copy out of it, to the card, summed there.
        sent = pushed * (2 / HOST_BANDWIDTH + 3 / COPY_BANDWIDTH + 1 / SUMMED_BANDWIDTH)
        how = "by Ray's object store"
    return Part(
        "push of weights", gathered + sent + hashed, f"{gb(pushed)} GB {how}, pool.sha256_every {pool.sha256_every}"
    )
