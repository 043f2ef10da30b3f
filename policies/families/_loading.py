"""Which family a folder is of, and its model loaded: whatever stands against it is told before a tensor is read."""

from collections.abc import Mapping
from typing import Any

from policies.checkpoint import Checkpoint
from policies.families._gemma3 import Gemma3
from policies.families._internvl import InternVL
from policies.families._kimi_vl import KimiVL
from policies.families._llava import Llava
from policies.families._paligemma import PaliGemma
from policies.families._qwen import Qwen2_5VL, Qwen3VL, Qwen3VLMoe
from policies.families._qwen3_5 import Qwen3_5
from policies.families._smolvlm import SmolVLM
from policies.family import Family
from policies.folder import read
from policies.sharing import attention as shared_attention

FAMILIES: Mapping[str, Family] = {
    "gemma3": Gemma3(),
    "internvl": InternVL(),
    "kimi_vl": KimiVL(),
    "llava": Llava(),
    "paligemma": PaliGemma(),
    "qwen2_5_vl": Qwen2_5VL(),
    "qwen3_5": Qwen3_5(),
    "qwen3_vl": Qwen3VL(),
    "qwen3_vl_moe": Qwen3VLMoe(),
    "smolvlm": SmolVLM(),
}
"""Descriptions by the model_type of config.json."""
_HOLLOW: Mapping[str, Any] = {
    "dtype": "float32",
    "device_map": "meta",
    "output_loading_info": True,
    "ignore_mismatched_sizes": True,
}
"""How a model is made whose parameters have no values."""
_DTYPES = ("float32", "bfloat16", "float16")


def family_of(checkpoint: Checkpoint) -> Family:
    """The description of a folder's family, its files checked first.

    Raises FileNotFoundError or ValueError for a folder that cannot be loaded, or is a model of another family.
    """
    if checkpoint.model_type == "moondream3":
        raise ValueError(
            f"{checkpoint.folder} is a Moondream 3, which has heads of its own; set policy.name to moondream, in a "
            "config such as gspo_moondream_tiny (--config)."
        )
    known = (checkpoint.folder / "config.json").is_file() and checkpoint.model_type in FAMILIES
    checkpoint.refuse_foreign(written_here=known and FAMILIES[checkpoint.model_type].takes_code)
    if not known:
        raise ValueError(
            f"{checkpoint.folder} is a {checkpoint.model_type or 'nameless'} model, and the families here are "
            f"{', '.join(FAMILIES)}; give one of these, or write the description of another "
            "(policies/family.py)."
        )
    checkpoint.refuse_incomplete()
    return FAMILIES[checkpoint.model_type]


def refuse_unfilled(checkpoint: Checkpoint, family: Family) -> None:
    """Raise FileNotFoundError or ValueError where a folder's weights do not fill its model; none of them is read."""
    checkpoint.refuse_missing_weights()
    checkpoint.stored_shapes()  # tells a file that was cut off
    _, found = read(checkpoint, "config.json", lambda held: family.network(held, **_HOLLOW))
    _refuse_gaps(checkpoint, family, found)


def _refuse_gaps(checkpoint: Checkpoint, family: Family, found: Mapping[str, Any]) -> None:
    """found: what transformers says of a loading."""
    other = sorted(str(each[0]) for each in found["mismatched_keys"])
    if other:
        raise ValueError(
            f"{len(other)} weights of {checkpoint.folder} have other shapes than its config.json says, such as "
            f"{other[0]}; give the config.json and the weights of one model."
        )
    missing = sorted(found["missing_keys"])
    if missing:
        raise ValueError(
            f"the weights of {checkpoint.folder} lack {len(missing)} parameters of a {family.title} model, such as "
            f"{missing[0]}, which would be random numbers; copy its files anew, or give the checkpoint that it was "
            "trained from."
        )
    # Buffers of older releases may be left over; blocks are not, unless the model is cut short.
    left = sorted(name for name in found["unexpected_keys"] if ".layers." in name or ".blocks." in name)
    if left:
        raise ValueError(
            f"{len(left)} weights of {checkpoint.folder} have no place in the model of its config.json, such as "
            f"{left[0]}; give the config.json and the weights of one model."
        )


def loaded(checkpoint: Checkpoint, family: Family, dtype: str, weights: bool) -> Any:
    """The model of a folder; without weights its parameters are on the meta device."""
    if dtype not in _DTYPES:
        raise ValueError(f"policy.dtype is {dtype!r}; it must be one of {', '.join(_DTYPES)}.")
    attention = {"": "sdpa", "text_config": shared_attention.NAME}
    if not weights:
        return family.network(checkpoint, dtype=dtype, attn_implementation=attention, device_map="meta")
    checkpoint.refuse_missing_weights()
    model, found = family.network(
        checkpoint,
        dtype=dtype,
        attn_implementation=attention,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    _refuse_gaps(checkpoint, family, found)
    return model
