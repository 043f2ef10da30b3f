"""The vision tower of Qwen2.5-VL on one photo, its attention by windows of a length, by a call a window, and by kernels
that take stretches of any length."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from policies.vision import attention as vision_attention
from rl.bench.gpu.clock import median_seconds
from rl.bench.gpu.part import Measured, Site

_VARLEN = "polytrace_flash_varlen"
"""With "flash" in its name transformers hands over all stretches at once."""
WAYS = {"as the policy does": vision_attention.NAME, "a call a window": "sdpa", "varlen": _VARLEN}
"""What transformers calls the attention of each way."""
_PHOTO, _SMALL_PHOTO = (700, 1260), (140, 280)
"""Height and width in pixels; whole patches, and windows that are cut off at the border."""
BAR = 0.05
"""Largest difference of an output of the tower between two ways, as a part of the largest output; for bfloat16."""


@dataclass(frozen=True)
class Way:
    """The tower with one kind of attention."""

    name: str
    forward_ms: float | None
    """Without gradient; None where the way is not to be had."""
    both_ms: float | None
    """Forward and backward."""
    difference: float | None
    """Largest difference of an output from that of a call a window, as a part of the largest."""
    reason: str | None = None
    """Why it is not to be had."""


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    cu_seq_lens_q: Tensor,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers asks for it, by torch's flash kernel for stretches of any length, without their sums.

    query, key, value: [1, H, L, d] in bfloat16 or float16 on a card; the result is [1, L, H, d].
    """
    queries, keys, values = (part[0].transpose(0, 1) for part in (query, key, value))
    ends, longest = cu_seq_lens_q.to(torch.int32), int(others["max_length_q"])
    attended = varlen_attn(queries, keys, values, ends, ends, longest, longest, scale=others.get("scaling"))
    assert isinstance(attended, Tensor)
    return attended.unsqueeze(0), None


AttentionInterface.register(_VARLEN, attend)


def tower_of(site: Site) -> Any:
    """A tower with random weights: of the 3B's shape in bfloat16 on a card, a small one elsewhere."""
    torch.manual_seed(0)
    config = Qwen2_5_VLVisionConfig(hidden_size=1280, out_hidden_size=2048)
    if not site.on_card:
        config = Qwen2_5_VLVisionConfig(
            depth=2, hidden_size=32, intermediate_size=64, num_heads=2, out_hidden_size=32, fullatt_block_indexes=[1]
        )
    with torch.device(site.device):
        tower = Qwen2_5_VisionTransformerPretrainedModel(config)
    if site.on_card:
        for parameter in tower.parameters():  # buffers stay in float32, as they do where weights are loaded
            parameter.data = parameter.data.to(torch.bfloat16)
    return tower


def photo(site: Site, tower: Any) -> tuple[Tensor, Tensor]:
    """Patches [N, 3 * 2 * patch^2] of a random photo, and their grid [1, 3]."""
    side, (height, width) = tower.config.patch_size, _PHOTO if site.on_card else _SMALL_PHOTO
    grid = torch.tensor([[1, height // side, width // side]], device=site.device)
    held = next(tower.parameters())
    numbers = 3 * tower.config.temporal_patch_size * side**2
    patches = torch.randn(int(grid.prod()), numbers, device=site.device, dtype=held.dtype)
    return patches, grid


def measure(site: Site) -> Measured:
    """All ways in turn."""
    tower = tower_of(site)
    patches, grid = photo(site, tower)
    expected = _output(tower, WAYS["a call a window"], patches, grid)
    ways = [_timed(tower, name, site, (patches, grid, expected)) for name in WAYS]
    plain = next(way for way in ways if way.name == "a call a window")
    rows = tuple(_row(way, plain) for way in ways)
    height, width = _PHOTO if site.on_card else _SMALL_PHOTO
    numbers = {"photo_px": [height, width], "patches": len(patches), "bar": BAR, "ways": [asdict(way) for way in ways]}
    told = tuple(
        f"{way.name}: outputs differ by up to {way.difference:.1%} of the largest; rounding explains {BAR:.0%}"
        for way in ways
        if way.difference is not None and not way.difference <= BAR
    )
    head = ("attention", "forward ms", "forward and backward ms", "times as fast", "largest difference")
    notes = (f"a photo of {width}x{height} px, {len(patches):,} patches, {tower.config.depth} blocks",)
    return Measured(head, rows, numbers, told, notes)


def _output(tower: Any, attention: str, patches: Tensor, grid: Tensor) -> Tensor:
    """The image tokens [N / 4, width] without gradient."""
    tower.config._attn_implementation = attention
    with torch.no_grad():
        found: Tensor = tower(patches, grid_thw=grid).pooler_output
    return found


def _timed(tower: Any, name: str, site: Site, shown: tuple[Tensor, Tensor, Tensor]) -> Way:
    """shown: patches, grid, and the image tokens that are expected."""
    patches, grid, expected = shown

    def both() -> None:
        tower.zero_grad(set_to_none=True)
        tower(patches, grid_thw=grid).pooler_output.float().mean().backward()

    try:
        found = _output(tower, WAYS[name], patches, grid)
        forward = median_seconds(lambda: _output(tower, WAYS[name], patches, grid), site.device)
        back = median_seconds(both, site.device, rounds=3)
    except RuntimeError as error:  # what torch raises where a card, a dtype or the CPU has no such kernel
        if name != "varlen":
            raise
        return Way(name, None, None, None, f"{error}".strip().partition("\n")[0][:200])
    return Way(name, 1e3 * forward, 1e3 * back, float((found - expected).abs().max() / expected.abs().max()))


def _row(way: Way, plain: Way) -> tuple[str, ...]:
    if way.forward_ms is None or way.both_ms is None or plain.both_ms is None:
        return (way.name, f"not to be had: {way.reason}", "-", "-", "-")
    speed = f"{plain.both_ms / way.both_ms:.2f}"
    return (way.name, f"{way.forward_ms:.2f}", f"{way.both_ms:.2f}", speed, f"{way.difference:.2e}")
