"""Memory of a learner rank, of a rollout worker and of a host, by part, at the moment at which each is fullest.

Estimates: what layers keep is measured (activations.py), what DeepSpeed holds follows from its defaults, and the rest
are the assumptions named here.
"""

from policies.families.box_decoder import DRAWN_AT_ONCE
from rl.planning.activations import activations, text_layer_bytes, vision_block_bytes
from rl.planning.job import Job
from rl.planning.part import Memory, Part, fullest, gb
from rl.planning.states import States, optimizer_bytes, rank_states, shares

MARGIN = 0.95
"""Share of a card that may be planned for: the rest is lost between blocks of torch's allocator."""
CONTEXT_BYTES = 1.5e9
"""A process on a card: CUDA's context, kernels, work spaces of matrix products, NCCL. An assumption."""
ENGINE_BYTES = 3e9
"""vLLM beside weights and cache: its largest prefill, CUDA graphs. An assumption."""
ASLEEP_BYTES = 1.0e9
"""What a sleeping worker leaves on its card beside weights: context and graphs. An assumption."""
LIVE_PARAMETERS, BUCKET_NUMBERS, STEPPED_AT_ONCE = 1e9, 5e8, 1e9
"""DeepSpeed 0.19.8's defaults: stage3_max_live_parameters, reduce_bucket_size, sub_group_size."""
_LOGIT_COPIES = 2.0
"""Copies of a chunk of float32 logits at once: themselves, and in the weights' format before and after."""
_SAMPLED_LOGIT_BYTES = 24
"""Bytes of a logit in sampling: bfloat16, float32 three times, its exponential, a float64 sum."""
_LEAVING = 1.75
"""Keys and values that our own engine holds at most while answers leave: all, and a copy of three quarters."""
_PROCESS_BYTES = 2e9
"""Host memory of one process with torch and CUDA. An assumption."""


def states_of(job: Job) -> States:
    """Weights, gradients and optimizer states of a rank."""
    counts = job.sizes.parameters
    return rank_states(counts.all + counts.adapters, job.trained, job.number, job.config.learner)


def rank_memory(job: Job) -> Memory:
    """A learner rank while it learns; with pool.colocate beside a sleeping worker."""
    held = [*_held(job), *_asleep(job)]
    room = MARGIN * job.machines.card.memory
    return fullest(
        [
            Memory("learner rank", held + _of_pass(job), room, "a backward pass"),
            Memory("learner rank", held + _of_tower(job), room, "the vision tower's forward pass"),
            Memory("learner rank", held + _of_update(job), room, "an update"),
        ]
    )


def _held(job: Job) -> list[Part]:
    """What a rank holds all the time."""
    learner, counts, number = job.config.learner, job.sizes.parameters, job.number
    held = states_of(job)
    of_weights, of_gradients, of_states = (f" / {learner.ranks} ranks" if part < 1 else "" for part in shares(learner))
    each = optimizer_bytes(number)
    of_model, share = counts.all + counts.adapters - counts.decoder, shares(learner)[0]
    parts = [
        Part("weights", of_model * number * share, f"{_count(of_model)} x {number} B{of_weights}"),
        *_parts_beside(job, share),
        Part("gradients", held.gradients, f"{_count(job.trained)} trained x {number} B{of_gradients}"),
        Part("optimizer states", held.optimizer, f"{_count(job.trained)} trained x {each} B{of_states}"),
        Part("buffers of gradients", _bucket_bytes(job), "DeepSpeed's reduce_bucket_size, or all that is trained"),
        Part("process", CONTEXT_BYTES, "CUDA context, work spaces, NCCL; assumed"),
    ]
    if learner.offload_optimizer:
        place = [each.name for each in parts].index("optimizer states")
        parts[place] = Part("optimizer states", 0.0, "in the host's memory")
    beside = learner.lora is not None and (counts.selection or counts.decoder or learner.lora.train_vision)
    if job.divergence and (learner.lora is None or beside):
        parts.append(Part("first policy", job.weight_bytes, "algorithm.kl: whole on every rank"))
    if learner.average:
        parts.append(Part("running average", 4.0 * counts.all, "learner.average: float32, whole on every rank"))
    return parts


def _parts_beside(job: Job, share: float = 1.0) -> list[Part]:
    """What a process holds beside the model: a decoder of masks, and frozen encoders, whole whatever the ZeRO stage.

    share: part of a decoder's weights that it holds.
    """
    counts, number = job.sizes.parameters, job.number
    learns = "learns" if counts.learning_decoder else "frozen"
    parts = [
        Part("mask decoder", counts.decoder * number * share, f"{_count(counts.decoder)} x {number} B, {learns}"),
        Part("frozen encoders", float(counts.encoders * number), f"{_count(counts.encoders)} x {number} B"),
    ]
    return [each for each in parts if each.amount]


def _bucket_bytes(job: Job) -> float:
    return min(BUCKET_NUMBERS, job.trained) * job.number


def _asleep(job: Job) -> list[Part]:
    """What a sleeping worker leaves on the card of its rank."""
    pool = job.config.pool
    if not pool.colocate:
        return []
    kept = 0.0 if pool.sleep_without_weights or job.engine.name == "vllm" else job.weight_bytes
    return [
        Part("sleeping worker", ASLEEP_BYTES + kept, "its context, and its weights unless pool.sleep_without_weights")
    ]


def _of_pass(job: Job) -> list[Part]:
    learner, largest = job.config.learner, job.largest_pass
    kept = activations(job.sizes, largest, job.number, learner.gradient_checkpointing, job.frozen_vision)
    how = "layers computed again" if learner.gradient_checkpointing else "every layer kept"
    return [
        Part("activations, text", kept.text, f"{largest.tokens:,} tokens, {how}"),
        Part(
            "activations, vision",
            kept.vision,
            "frozen: none kept" if job.frozen_vision else f"{largest.patches:,} patches, {how}",
        ),
        Part("a layer gone back through", kept.working, "what it keeps where it is computed again, and gradients"),
        Part("logits", _logits(job), f"{_LOGIT_COPIES:g} copies of a chunk of policy.logit_bytes"),
        Part("gathered weights", _gathered(job), "stage 3: live parameters, and the head's gradient"),
    ]


def _of_tower(job: Job) -> list[Part]:
    learner, largest = job.config.learner, job.largest_pass
    kept = activations(job.sizes, largest, job.number, learner.gradient_checkpointing, job.frozen_vision)
    return [
        Part("activations, vision", kept.vision, f"{largest.patches:,} patches"),
        Part("a block of the tower", kept.vision_alone, f"{largest.patches:,} patches, for a moment"),
        Part("gathered weights", _gathered(job), "stage 3: live parameters"),
    ]


def _of_update(job: Job) -> list[Part]:
    learner, trained = job.config.learner, job.trained
    if learner.offload_optimizer:
        return []
    stepped = trained * shares(learner)[2]
    at_once = min(STEPPED_AT_ONCE, stepped) if learner.zero_stage == 3 else stepped
    return [Part("float32 gradients", 4.0 * at_once, f"{_count(int(at_once))} x 4 B, of what is stepped at once")]


def _logits(job: Job) -> float:
    scored = min(job.largest_pass.tokens, job.config.learner.micro_groups * 10**9)
    whole = 4.0 * scored * job.sizes.text.vocabulary
    return _LOGIT_COPIES * min(float(job.logit_bytes), whole)


def _gathered(job: Job) -> float:
    counts, number = job.sizes.parameters, job.number
    head = 0.0 if job.config.learner.lora is not None else float(counts.largest * number)
    if job.config.learner.zero_stage < 3 or job.config.learner.ranks == 1:
        return 0.0
    return min(LIVE_PARAMETERS, float(counts.all)) * number + head


def worker_memory(job: Job) -> Memory:
    """A rollout worker while it samples; with pool.colocate beside a resting rank."""
    card = job.machines.card.memory
    resting = _resting(job)
    if job.engine.name == "vllm":
        return _of_vllm(job, resting)
    counts = job.sizes.parameters
    of_model = counts.all - counts.decoder
    held = [
        Part("weights", float(of_model * job.number), f"{_count(of_model)} x {job.number} B"),
        *_parts_beside(job),
        Part("process", CONTEXT_BYTES, "CUDA context, work spaces; assumed"),
        *resting,
    ]
    moments = {"decoding, while answers leave": _decoding(job), "encoding prompts": _encoding(job)}
    if counts.decoder:
        moments["drawing masks"] = _drawing(job)
    return fullest(
        [Memory("rollout worker", [*held, *parts], MARGIN * card, moment) for moment, parts in moments.items()]
    )


def _decoding(job: Job) -> list[Part]:
    groups, size, most = groups_at_once(job), job.config.group_size, job.config.sampling.max_tokens
    tokens = groups * job.asked.prompt + groups * size * most
    how = f"{cache_bytes(job):,.0f} B x ({groups} prompts of {job.asked.prompt:,}, {groups * size} answers of {most:,})"
    logits = _SAMPLED_LOGIT_BYTES * groups * size * float(job.sizes.text.vocabulary)
    states = [Part("states", _LEAVING * groups * size * state_bytes(job), f"{groups * size} answers, {_LEAVING:g} x")]
    return [
        *(states if job.sizes.text.states else []),
        Part("keys and values", _LEAVING * tokens * cache_bytes(job), f"{_LEAVING:g} x {how}"),
        Part("logits", logits, f"{groups * size} answers x {job.sizes.text.vocabulary:,} x {_SAMPLED_LOGIT_BYTES} B"),
    ]


def _encoding(job: Job) -> list[Part]:
    groups = groups_at_once(job)
    prompts, patches = groups * job.asked.prompt * cache_bytes(job), groups * job.asked.patches
    tower = patches * vision_block_bytes(job.sizes.vision, job.number)
    return [
        Part("keys and values", 2 * prompts, f"{groups} prompts, twice while they are put together"),
        Part("vision tower", tower, f"{patches:,} patches, one block"),
    ]


def _drawing(job: Job) -> list[Part]:
    """A pass over prompts and answers whose states the mask decoder is given; no layer keeps anything."""
    groups = min(job.config.unit_groups, job.config.groups_per_step, DRAWN_AT_ONCE)
    tokens = groups * (job.asked.prompt + job.config.group_size * job.config.sampling.max_tokens)
    layer = tokens * text_layer_bytes(job.sizes.text, job.number)
    block = groups * job.asked.patches * vision_block_bytes(job.sizes.vision, job.number)
    return [
        Part("a layer of the pass", layer, f"{tokens:,} tokens of {groups} groups"),
        Part("vision tower", block, f"{groups * job.asked.patches:,} patches, one block"),
    ]


def _of_vllm(job: Job, resting: list[Part]) -> Memory:
    """vLLM takes its share of the card whatever the run needs; what is left of it for the cache says how much runs at
    once."""
    card = job.machines.card.memory
    cache = vllm_cache_bytes(job)
    one = (job.asked.prompt + job.config.sampling.max_tokens) * cache_bytes(job)
    parts = [
        Part("weights", job.weight_bytes, f"{_count(job.sizes.parameters.all)} x {job.number} B"),
        Part("engine", ENGINE_BYTES, "largest prefill, CUDA graphs; assumed"),
        Part(
            "keys and values",
            max(cache, one),
            f"what is left of {job.engine.gpu_share:g} of the card, a sequence at least",
        ),
        *resting,
    ]
    return Memory("rollout worker", parts, card if not resting else MARGIN * card, "sampling")


def vllm_cache_bytes(job: Job) -> float:
    """What vLLM has for keys and values; 0 where weights leave nothing."""
    return max(0.0, job.engine.gpu_share * job.machines.card.memory - job.weight_bytes - ENGINE_BYTES)


def _resting(job: Job) -> list[Part]:
    """What a rank leaves on the card of its worker while that samples."""
    learner = job.config.learner
    if not job.config.pool.colocate:
        return []
    held = states_of(job)
    states = 0.0 if learner.offload_at_rest else held.optimizer
    return [
        Part("resting rank: weights", held.weights, "they stay on the card"),
        Part(
            "resting rank: optimizer",
            states,
            "on the host" if learner.offload_at_rest else "unless learner.offload_at_rest",
        ),
        Part("resting rank: process", CONTEXT_BYTES, "assumed"),
    ]


def groups_at_once(job: Job) -> int:
    """Groups that our own engine samples at once."""
    unit = min(job.config.unit_groups, job.config.groups_per_step)
    if job.engine.max_answers is None:
        return unit
    return min(unit, max(1, job.engine.max_answers // job.config.group_size))


def cache_bytes(job: Job) -> float:
    """Bytes of keys and values of a token, or of what stands for them."""
    return float(job.sizes.text.cached * job.number)


def state_bytes(job: Job) -> float:
    """Bytes that layers without keys hold of an answer, float32."""
    return 4.0 * job.sizes.text.states


def host_memory(job: Job, store_bytes: float) -> Memory:
    """A node's memory: the object store, what ranks offload, processes, and the one copy that rank 0 makes to save.

    store_bytes: what the run asks Ray's object store for. The room of a host is not known, so that it always fits.
    """
    config, machines = job.config, job.machines
    cards = min(machines.node_cards, job.cards_used)
    ranks = min(config.learner.ranks, machines.node_cards)
    held = states_of(job)
    resting = 0.0
    if config.learner.offload_at_rest and not config.learner.offload_optimizer:
        resting = job.trained * optimizer_bytes(job.number) * shares(config.learner)[2]
    processes = 1 + (2 * cards if config.pool.colocate else cards)
    parts = [
        Part("object store", store_bytes, "weights and answers on their way"),
        Part("offloaded optimizer", ranks * held.on_host, f"{ranks} ranks, with float32 gradients"),
        Part("resting optimizer", ranks * resting, f"{ranks} ranks, while workers sample"),
        Part("policy being saved", job.weight_bytes, "one copy on rank 0's node; also while it is read"),
        Part("processes", processes * _PROCESS_BYTES, f"{processes} x {gb(_PROCESS_BYTES)} GB; assumed"),
    ]
    return Memory("host of rank 0", parts, float("inf"), "saving a policy")


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.3f} B" if parameters >= 1e9 else f"{parameters / 1e6:.1f} M"
