"""What must hold before Ray starts, in one call: parts that fit together, and GPUs, memory and disk for them."""

import math
import re
import shutil
from importlib.metadata import version
from pathlib import Path

import torch

from envs.codecs import loc_tokens
from envs.codecs.base import LocatingCodec
from envs.datasets.base import Env
from envs.geometry.vector import simplified_rings
from policies.checkpoint import Checkpoint
from policies.decoders.box_guided import FILE
from policies.decoders.losses import MaskLosses
from policies.decoders.processor import BoxMaskProcessor, MaskCodec
from policies.families._engines import NO_CUDA_GRAPH, NO_VLLM
from policies.families._loading import refuse_unfilled
from policies.families._sizes import experts_of_token
from policies.families.base import PolicyContract
from policies.processor import Processor
from policies.refiner.mask_refiner import MaskRefiner
from policies.weights import stored_sha256
from rl.config.learner import LearnerSettings
from rl.config.plugins import checkpoint_folder
from rl.config.run import RunConfig, most_answer_tokens, num_gpus
from rl.run.machine import largest_card_bytes, refuse_small_cards, refuse_small_shared_memory
from rl.run.parts import RunParts, processor_of
from rl.run.pools import refuse_unfit_pools
from rl.run.tasks import refuse_unfit_tasks
from rl.run.thinking import block_tokens, refuse_unfit_thinking, refuse_unread_drafts
from rl.run.writable import refuse_unfit_grammar, refuse_unwritable_codec
from rollout.settings import LEAST_OBJECT_STORE_GB

_VERSIONS_IN_FLIGHT = {"object_store": 3, "broadcast": 2}
"""By transport. Weights that are being delivered, those before them, which are let go of only then, and those of a step
asked before; where weights are broadcast, only whoever missed a delivery gets them so.
"""
_BESIDE_WEIGHTS_BYTES = 256 * 2**20
"""Object store for answers and batches: a step of 512 groups of 16 answers with 400 tokens takes some 100 MB."""
_PROMPT_TOKENS = 4096
"""Tokens of a prompt, for the memory of routes; no prompt is measured for it."""
_GIB = 2**30
_MEASURED = 16
"""Training examples whose prompts are measured; others may have longer ones."""


def preflight(config: RunConfig, parts: RunParts, learns: bool = True) -> None:
    """Raise ValueError, FileNotFoundError or OSError for what would stop a run later, the cheapest check first.

    learns: whether there is a learner; sampling and evaluation, which have none, write no checkpoints.
    """
    if learns:
        refuse_unfit_learner(config, parts)
    refuse_unfit_rewards(config, parts)
    refuse_missing_gpus(config, torch.cuda.device_count())
    refuse_small_shared_memory(config, object_store_bytes(config, parts))
    if config.ray.address is None and (card := largest_card_bytes()) is not None:
        refuse_small_cards(config, weight_bytes(parts), card, learns)
    if learns:
        refuse_full_disk(config, parts)
    refuse_unfit_policy(config, parts, processor_of(parts.policy), learns)
    refuse_unfit_control(config, parts)
    refuse_unfit_refiner(config, parts, policy_without_weights(config, parts))


def refuse_unfit_learner(config: RunConfig, parts: RunParts) -> None:
    """Raise ValueError where the learner's settings do not fit the policy or the installed DeepSpeed."""
    refuse_wrong_gradients(version("deepspeed"), config.learner.zero_stage)
    dtype = config.policy.get("dtype", "float32")
    if dtype != config.learner.dtype:
        raise ValueError(
            f"policy.dtype is {dtype!r} and learner.dtype {config.learner.dtype!r}; workers hold the very bytes that "
            "the learner sends, so set both to the same."
        )
    if config.learner.lora is not None and not parts.policy.takes("lora"):
        raise ValueError(
            f"learner.lora is set, but the policy {parts.policy.name} takes no `lora`; leave it out, or give the class "
            "that parameter and let it call policies.lora.add_adapters."
        )


_FIRST_WRONG, _FIRST_RIGHT = (0, 17, 6), (0, 18, 3)


def refuse_wrong_gradients(version: str, zero_stage: int) -> None:
    """Raise ValueError where ZeRO-2 under this release of DeepSpeed gives wrong gradients.

    Releases from 0.17.6 on and before 0.18.3 did (github.com/deepspeedai/DeepSpeed, issue 7718): no error, no NaN,
    only a run that learns worse. version: such as "0.19.8", "0.18.3rc1" or "0.18.0+cu126".
    """
    found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?(.*)", version)
    if found is None:
        raise ValueError(f"the installed DeepSpeed calls itself {version!r}, which is no version; install it anew.")
    release = (int(found[1]), int(found[2]), int(found[3] or 0))
    before_release = bool(re.match(r"\.?(a|b|rc|dev)\d*", found[4]))
    wrong = _FIRST_WRONG <= release < _FIRST_RIGHT or (release == _FIRST_RIGHT and before_release)
    if zero_stage == 2 and wrong:
        raise ValueError(
            f"learner.zero_stage is 2 and DeepSpeed {version} is installed, but ZeRO-2 gradients are wrong in releases "
            "from 0.17.6 on and before 0.18.3 (deepspeed issue 7718); set learner.zero_stage to 1 or 3, or install "
            "deepspeed==0.19.8."
        )


def refuse_unfit_rewards(config: RunConfig, parts: RunParts) -> None:
    """Raise ValueError where rewards need refined masks that the run cannot make."""
    if config.refined is None:
        if parts.rewards.on_refined:
            raise ValueError(
                f"rewards.{parts.rewards.on_refined[0]} is measured on the refined mask, but `refined` is not set; set "
                "refined.refiner to the folder of a refiner (`polytrace refine` trains one), or leave that reward out."
            )
        return
    if not config.learner.freeze_vision or config.learner.freeze_projector is False:
        name = "learner.freeze_projector" if config.learner.freeze_vision else "learner.freeze_vision"
        raise ValueError(
            f"refined is set and {name} false, but what the refiner was trained on are the features of this very "
            f"vision tower, and a tower that learns drifts away from them; set {name} to true."
        )
    if parts.engine.name == "vllm":
        raise ValueError(
            "refined is set and pool.engine is vllm, whose workers hold no policy that could give the refiner its "
            "features; set pool.engine.name to shared, or leave `refined` out."
        )


def refuse_missing_gpus(config: RunConfig, found: int) -> None:
    """Raise ValueError with the arithmetic where a run on this machine asks for more than the `found` GPUs."""
    learner, pool = config.learner, config.pool
    if config.ray.address is None and num_gpus(config) > found:
        sum_of = (
            f"learner.ranks {learner.ranks} x learner.gpus_per_rank {learner.gpus_per_rank:g} + pool.workers "
            f"{pool.workers} x pool.gpus_per_worker {pool.gpus_per_worker:g}"
        )
        if pool.colocate:
            sum_of = f"pool.colocate with {pool.workers} pairs of a rank and a worker"
        raise ValueError(
            f"{sum_of} = {num_gpus(config):g} GPUs, but this machine has {found}; lower them, or give a cluster by "
            "ray.address."
        )


def weight_bytes(parts: RunParts) -> int:
    """Size of the policy's weights in the run's own number format; raises OSError where its folder cannot be read."""
    shapes = Checkpoint(Path(parts.policy.settings["checkpoint"])).stored_shapes()
    width = 4 if parts.policy.settings.get("dtype", "float32") == "float32" else 2
    return width * sum(math.prod(shape) for shape in shapes.values())


def object_store_bytes(config: RunConfig, parts: RunParts) -> int:
    """Memory for Ray's object store: ray.object_store_gb, else what the weights need, with something for answers."""
    if config.ray.object_store_gb is not None:
        return int(config.ray.object_store_gb * _GIB)
    return needed_store_bytes(weight_bytes(parts), config.pool.transport) + route_bytes(config, parts)


def route_bytes(config: RunConfig, parts: RunParts) -> int:
    """Memory for the routes of a step's answers (sampling.routing_replay), as groups and as a batch, and of the steps
    that are sampled ahead; 0 for a policy without experts."""
    if not config.sampling.routing_replay:
        return 0
    each = 2 * experts_of_token(processor_of(parts.policy).config)
    tokens = config.group_size * config.sampling.max_tokens + _PROMPT_TOKENS
    return (2 + config.pool.staleness) * config.groups_per_step * tokens * each


def needed_store_bytes(weights: int, transport: str) -> int:
    """Memory that Ray's object store needs for weights of so many bytes, with something for answers."""
    return max(_VERSIONS_IN_FLIGHT[transport] * weights + _BESIDE_WEIGHTS_BYTES, int(LEAST_OBJECT_STORE_GB * _GIB))


def checkpoint_bytes(config: RunConfig, parts: RunParts) -> int:
    """Size of one checkpoint: weights, Adam's two moments in float32, and under bfloat16 the float32 weights too."""
    if config.learner.lora is not None:
        return weight_bytes(parts)  # optimizer states of adapters weigh next to nothing
    width = 2 if config.learner.dtype == "bfloat16" else 4
    beside = 8 if width == 4 else 12
    return weight_bytes(parts) * (width + beside) // width


def refuse_full_disk(config: RunConfig, parts: RunParts) -> None:
    """Raise OSError with the arithmetic where the run's checkpoints don't fit on its disk, one more being written."""
    folder = Path(config.run)
    kept = sum(1 for _ in folder.glob("checkpoints/step-??????"))
    more = max(1, config.keep_checkpoints + 1 - kept)
    needed = more * checkpoint_bytes(config, parts) + 2 * weight_bytes(parts)
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise OSError(
            f"{more} checkpoints of {checkpoint_bytes(config, parts) / _GIB:.3f} GiB (learner.dtype "
            f"{config.learner.dtype}) and 2 policies of {weight_bytes(parts) / _GIB:.3f} GiB need {needed / _GIB:.3f} "
            f"GiB, but on the disk of {folder} are {free / _GIB:.3f} GiB free; make room, lower keep_checkpoints, or "
            "give another folder by run=NAME."
        )


def _refuse_unlocated_credit(parts: RunParts, processor: Processor) -> None:
    """Raise ValueError where single tokens are to get credit, and the codec does not say which token says what."""
    credits = [name for name in ("vertex_credit", "instance_credit") if parts.algorithm.settings.get(name)]
    bare = isinstance(processor.codec, loc_tokens.Codec) and not processor.codec.outlines
    if credits and (bare or not isinstance(processor.codec, LocatingCodec)):
        raise ValueError(
            f"algorithm.{credits[0]} is {parts.algorithm.settings[credits[0]]}, but the codec does not say which token "
            f"belongs to which vertex, so that no token would get any; set it to 0, or choose codec path_tokens."
        )


def refuse_unfit_policy(config: RunConfig, parts: RunParts, processor: Processor, learns: bool = True) -> None:
    """Raise ValueError where the policy cannot write the codec's answers, or a group can outgrow learner.token_budget.

    processor: of the run's policy. learns: whether there is a learner.
    """
    budget = config.learner.token_budget
    if parts.engine.name == "vllm" and processor.family.title in NO_VLLM:
        raise ValueError(
            f"policy.checkpoint is a {processor.family.title}, and {NO_VLLM[processor.family.title]}; set "
            "pool.engine.name to shared."
        )
    if parts.engine.settings.get("cuda_graph") and processor.family.title in NO_CUDA_GRAPH:
        raise ValueError(
            f"pool.engine.cuda_graph is true, and the experts of {processor.family.title} are dealt tokens by the CPU, "
            "which a graph cannot repeat; set it to false."
        )
    refuse_unfit_pools(config, parts, processor)
    _refuse_undrawn_masks(parts, processor)
    if learns:
        _refuse_unfit_decoder(config, parts, processor)
    refuse_unfit_grammar(processor, config.sampling.grammar)
    _refuse_unlocated_credit(parts, processor)
    refuse_unfit_tasks(config, parts, processor)
    refuse_unfit_thinking(processor, config.sampling, parts.rewards.on_thinking)
    refuse_unread_drafts(parts.rewards.recipes, config.codec)
    refuse_unfilled(Checkpoint(Path(parts.policy.settings["checkpoint"])), processor.family)
    refuse_unwritable_codec(processor, parts.policy, parts.codec)
    if budget is not None:
        _refuse_long_prompts(parts.env.build(split="train"), processor, config.learner, most_answer_tokens(config))


def _refuse_undrawn_masks(parts: RunParts, processor: Processor) -> None:
    """Raise ValueError where answers ask for masks that nobody draws."""
    if not isinstance(processor.codec, MaskCodec):
        return
    if not isinstance(processor, BoxMaskProcessor):
        raise ValueError(
            f"codec {parts.codec.name} asks a decoder for masks, and policy.name {parts.policy.name} has none; set "
            "policy.name to box_decoder, or choose a codec that writes outlines."
        )
    if parts.engine.name != "shared":
        raise ValueError(
            f"pool.engine is {parts.engine.name}, which does not draw the masks of policy box_decoder; set pool.engine "
            "to {name: shared}."
        )


def _refuse_unfit_decoder(config: RunConfig, parts: RunParts, processor: Processor) -> None:
    """Raise ValueError where a decoder is new, or would learn by nothing, or is to learn and cannot."""
    weight, own = config.learner.decoder_weight, parts.policy.settings
    if not isinstance(processor, BoxMaskProcessor):
        if weight:
            raise ValueError(
                f"learner.decoder_weight is {weight:g}, and policy.name {parts.policy.name} has no mask decoder that "
                "could learn; set learner.decoder_weight to 0, or policy.name to box_decoder."
            )
        return
    if not (Path(own["checkpoint"]) / FILE).is_file():
        raise ValueError(
            f"policy.checkpoint is {own['checkpoint']}, which holds no {FILE}, so that its decoder would be a new one "
            "and rewards would judge what random weights draw; run `polytrace sft` first, as by sft_box_decoder, and "
            "give the policy that it leaves."
        )
    frozen = own.get("freeze_decoder", False)
    if weight and frozen:
        raise ValueError(
            f"learner.decoder_weight is {weight:g} and policy.freeze_decoder true, so that the decoder would learn "
            "nothing; set policy.freeze_decoder to false, or learner.decoder_weight to 0."
        )
    if not weight and not frozen:
        raise ValueError(
            "policy.freeze_decoder is false and learner.decoder_weight 0, so that nothing but weight decay would move "
            "the decoder; set policy.freeze_decoder to true, or learner.decoder_weight above 0 to have it learn along."
        )
    losses = own.get("losses") or MaskLosses()
    if weight and not losses.bce + losses.dice:
        raise ValueError(
            f"learner.decoder_weight is {weight:g}, but policy.losses has bce 0 and dice 0, so that no mask would be "
            "taught; set one of them above 0, or learner.decoder_weight to 0."
        )


def refuse_unfit_control(config: RunConfig, parts: RunParts) -> None:
    """Raise ValueError or FileNotFoundError where evaluation.control is no policy as the run's own."""
    if config.evaluation.control is None:
        return
    folder, own = checkpoint_folder(config.evaluation.control), Path(parts.policy.settings["checkpoint"])
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"evaluation.control is {config.evaluation.control}, but {folder} holds no config.json; give the policy "
            "folder of a supervised training from the same checkpoint, or null."
        )
    theirs, ours = Checkpoint(folder).stored_shapes(), Checkpoint(own).stored_shapes()
    if theirs != ours:
        other = next(name for name in sorted(theirs | ours) if theirs.get(name) != ours.get(name))
        raise ValueError(
            f"evaluation.control is {folder}, whose {other} has the shape {theirs.get(other)} where policy.checkpoint "
            f"has {ours.get(other)}; give what the same checkpoint became, or null."
        )


def policy_without_weights(config: RunConfig, parts: RunParts) -> PolicyContract | None:
    """The policy, its adapters included, with names, shapes and dtypes of its parameters but no values.

    None where its class cannot be built so, or neither adapters nor a refiner ask for it. Raises ValueError where
    learner.lora names layers that there are not.
    """
    recipe, lora = parts.policy, config.learner.lora
    if not recipe.takes("weights") or (lora is None and config.refined is None):
        return None
    recipe = recipe.with_settings(weights=False)
    policy: PolicyContract = (recipe if lora is None else recipe.with_settings(lora=lora)).build()
    return policy


def refuse_unfit_refiner(config: RunConfig, parts: RunParts, policy: PolicyContract | None) -> None:
    """Raise FileNotFoundError or ValueError where `refined` names no refiner that goes with the policy's vision tower.

    The tower is not loaded: its checksum is taken from the files of the checkpoint. Where these do not tell it (a
    policy that is not built without weights, names that only its own code can read) the workers compare it.
    """
    if config.refined is None or parts.refined is None:
        return
    named, folder = config.refined.refiner, Path(parts.refined.refiner)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"refined.refiner is {named}, which is not a folder; give the folder of a refiner, such as "
            "runs/demo/refiner."
        )
    checkpoint = Path(parts.policy.settings["checkpoint"])
    tower = None if policy is None else stored_sha256(policy.vision_tower, checkpoint)
    try:
        MaskRefiner.load(folder, tower)
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"refined.refiner is {named}: {error}") from error


def _refuse_long_prompts(env: Env, processor: Processor, learner: LearnerSettings, answers: int) -> None:
    budget = learner.token_budget or 0
    for k in range(min(_MEASURED, len(env))):
        example = env[k]
        patches = processor.image_patches(example.image.height, example.image.width)
        if learner.patch_budget is not None and patches > learner.patch_budget:
            raise ValueError(
                f"the image of {example.id} has {patches} patches, more than learner.patch_budget "
                f"{learner.patch_budget}; set it to that number or more, or lower policy.max_pixels."
            )
        prompt = len(processor.prompt_tokens(example.question(env.image(example.image))))
        if prompt + answers > budget:
            raise ValueError(
                f"the prompt of {example.id} has {prompt} tokens and its answers can have {answers}, together "
                f"{prompt + answers}, more than learner.token_budget {budget}, and a group is one row: set the budget "
                f"to {prompt + answers} or more, or lower group_size, sampling.max_tokens or the size of images."
            )


_GOOD_IOU = 0.9
"""IoU of outlines with the truth by which an answer's length is judged."""


def short_answers_note(env: Env, processor: Processor, max_tokens: int) -> str | None:
    """What to say where answers are cut before they could be good; None where they are not.

    env: training examples, of which the first are outlined with as few vertices as an IoU of 0.9 takes. What the codec
    cannot write within its own limits is left out. Of reasoning before an answer only the marks are counted.
    """
    lengths = []
    for k in range(min(_MEASURED, len(env))):
        example = env[k]
        outlines = [simplified_rings(mask, _GOOD_IOU) for mask in example.truth.masks]
        try:
            text = processor.codec.encode(outlines, example.image.height, example.image.width)
        except ValueError:
            continue
        lengths.append(len(processor.answer_tokens(text)) + block_tokens(processor))
    longer = sum(length > max_tokens for length in lengths)
    if not longer:
        return None
    return (
        f"outlines of {longer} of the first {len(lengths)} training examples need more than sampling.max_tokens "
        f"{max_tokens} tokens for an IoU of {_GOOD_IOU}, up to {max(lengths)}: answers that are cut earn nothing, so "
        "careful ones are unlearned; raise sampling.max_tokens."
    )
