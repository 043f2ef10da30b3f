"""What a forward pass keeps for its backward pass, as formulas of a model's widths.

The numbers of tensors below were read off what autograd saves on layers of the true widths of Qwen2.5-VL 3B and 7B and
Qwen3-VL 4B and 8B in bfloat16 (tests/saved_tensors.py measures again, tests/rl/planning/test_activations.py holds the
formulas against it). Attention by torch's fused kernels keeps no square of the tokens.
"""

from dataclasses import dataclass

from policies.families._sizes import ModelSizes, TextSizes, VisionSizes

_TEXT_INNER = 4
"""Tensors of the inner width that a text layer keeps: gate, its SiLU, up, and their product."""
_TEXT_WIDTH = 4
"""Tensors of the width: in either half the normed states before and after they are multiplied by the norm's weight."""
_TEXT_WIDTH_F32 = 2
"""Tensors of the width in float32: what the norms of either half take."""
_TEXT_QUERY = 5
"""Tensors of the queries' width: queries, attended values, and of the prompt its result, and keys and values repeated
for its queries; of answers, which have one less, queries and results in places of their own."""
_TEXT_KEYS = 2
"""Tensors of the keys' width: keys and values."""
_TEXT_NORMED = 3
"""Tensors of the queries' and keys' width where they are normed, counted in bfloat16: one in float32, one after."""
_VISION_WIDTH = 10
"""Tensors of the width that a vision block keeps: norms, queries, keys, values, attended values."""
_VISION_GATED_WIDTH = 4
"""Tensors of the width that a block with a gate keeps besides: what its two norms take, in float32."""
_VISION_WINDOW_WIDTH = 1
"""Tensors of the width that a block with windows keeps besides: attended values in the order of windows."""
_VISION_INNER = 2
_VISION_GATED_INNER = 4
"""Tensors of the inner width, without and with a gate."""
_BACKWARD_INNER = 3
"""Gradients of the inner width that the backward pass of a layer holds at once."""
_OUTSIDE_WIDTH = 6
"""Tensors of the width beside the layers: embeddings, image features put in, last norm, scored states."""
_OUTSIDE_PATCH_WIDTH = 8
"""Tensors of a patch beside the blocks: pixels, embedding, positions, and its share of the mergers."""


@dataclass(frozen=True)
class Pass:
    """What one forward pass goes over."""

    tokens: int
    """Tokens of its rows, padding included."""
    patches: int
    """Patches of its images."""


@dataclass(frozen=True)
class Activations:
    """Bytes of one pass while it goes back."""

    text: float
    """Kept in the language model."""
    vision: float
    """Kept in the vision tower; 0 where it is frozen."""
    vision_alone: float
    """What the tower takes for a moment while it runs, before the language model begins."""
    working: float
    """What the layer that is computed again and gone back through takes besides."""


def text_layer_bytes(text: TextSizes, width: int) -> float:
    """Bytes of a token in a text layer; width: of a number, bytes."""
    attended = _TEXT_QUERY * text.query_width + _TEXT_KEYS * text.key_width
    normed = _TEXT_NORMED * (text.query_width + text.key_width) * text.normed_heads
    numbers = _TEXT_INNER * text.inner + _TEXT_WIDTH * text.width + attended + normed
    return width * numbers + 4 * _TEXT_WIDTH_F32 * text.width


def vision_block_bytes(vision: VisionSizes, width: int) -> float:
    """Bytes of a patch in a vision block; width: of a number, bytes."""
    if not vision.gated:
        return width * (_VISION_INNER * vision.inner + _VISION_WIDTH * vision.width)
    numbers = _VISION_GATED_INNER * vision.inner + (_VISION_WIDTH + _VISION_WINDOW_WIDTH) * vision.width
    return width * numbers + width * _VISION_GATED_WIDTH * vision.width


def activations(sizes: ModelSizes, one: Pass, width: int, recomputed: bool, frozen_vision: bool) -> Activations:
    """Bytes that a pass keeps.

    width: of a number, bytes. recomputed: whether layers keep their inputs alone and are computed again
    (learner.gradient_checkpointing). frozen_vision: whether the vision tower learns nothing.
    """
    text, vision = sizes.text, sizes.vision
    layer = one.tokens * text_layer_bytes(text, width)
    block = one.patches * vision_block_bytes(vision, width)
    outside = one.tokens * width * _OUTSIDE_WIDTH * text.width
    around = one.patches * width * _OUTSIDE_PATCH_WIDTH * vision.width
    back = float(one.tokens * width * _BACKWARD_INNER * text.inner)
    of_text, of_vision = float(text.layers * layer), float(vision.blocks * block)
    if recomputed:
        of_text = float(text.layers * one.tokens * width * text.width)
        of_vision = float(vision.blocks * one.patches * width * vision.width)
        back += layer
    return Activations(
        text=of_text + outside,
        vision=0.0 if frozen_vision else of_vision + around,
        vision_alone=block + around,
        working=back,
    )
