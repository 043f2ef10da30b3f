"""What the policy asks about a model family: all that differs from family to family, as one description.

The policy itself (policies/families/vision_language.py) is common. A description is a class over `Family` in a file
beside it whose name begins with `_`; it lists them by the model_type that a checkpoint's config.json names.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from policies.checkpoint import Checkpoint
from policies.families.base import PromptRows, VisionFeatures
from policies.sharing.attention import Heads

Sides = tuple[int, int]
"""Height and width, pixels."""


class Family(Protocol):
    """What is special about the models of one family; it holds nothing of a checkpoint itself."""

    title: str
    """Name for people, such as Qwen2.5-VL."""
    takes_code: bool
    """Whether its folders hold code of their own, which is left alone: what it does is written here."""
    coordinates: str
    """Numbers in which its released models write places: one of COORDINATES of envs/codecs/_coordinates.py."""
    template: str
    """Chat template (Jinja) for a folder that has none, or one that shows no image: a system line where it has one, and
    one question about one image."""
    begins: bool
    """Whether a prompt begins with the tokenizer's own token for that, which templates may leave to the tokenizer."""
    turn_ends: tuple[str, ...]
    """Tokens by which its models end an answer, beside those that tokenizer and generation_config.json name."""

    thinking_marks: tuple[str, str]
    """What opens and what closes the reasoning that its models may write before an answer."""
    image_marks: tuple[str, ...]
    """Tokens that stand before and behind an image's, where templates leave them to the processor; () where they
    write all that there is."""
    image_text: tuple[str, str] | None
    """What templates write for an image where they leave the rest to the processor, and the whole that it stands for,
    one of an image's tokens in it; None where they write the token itself."""
    texts: tuple[str, ...]
    """model_type of the language models whose layers the policy knows: how they attend, turn and norm."""

    layer_kinds: tuple[str, ...]
    """Kinds of layers, as transformers calls them, that the policy knows of this family: full_attention and others."""

    caps: bool
    """Whether the policy knows the soft caps of this family's language models."""
    whole_prompts: bool
    """Whether all tokens of a prompt see each other, so that questions about an image cannot share its tokens."""

    def config(self, checkpoint: Checkpoint) -> Any:
        """The config of a folder's model, from transformers."""
        ...

    def tokenizer(self, checkpoint: Checkpoint) -> Any:
        """The tokenizer of a folder, from transformers."""
        ...

    def network(self, checkpoint: Checkpoint, **loading: Any) -> Any:
        """The transformers model of a folder; loading: keyword arguments of its from_pretrained."""
        ...

    def image_processor(self, checkpoint: Checkpoint, min_pixels: int | None, max_pixels: int | None) -> Any:
        """The image processor of a folder, with other limits of an image's area where they are given.

        Raises ValueError for limits that no image can meet, or a processor that does not resize.
        """
        ...

    def shown_size(self, image_processor: Any, height: int, width: int) -> tuple[int, int]:
        """Height and width of what the model sees of a height x width image, pixels after resizing."""
        ...

    def image_tokens(self, image_processor: Any, height: int, width: int) -> int:
        """How many tokens stand for a height x width image in the prompt."""
        ...

    def patches_each(self, image_processor: Any) -> int:
        """Patches that become one token of the prompt."""
        ...

    def handed_over(self, image_processor: Any, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The image [H, W, 3] as its processor can take it: another one only where it could not."""
        ...

    def patches(self, image_processor: Any, images: Sequence[NDArray[np.uint8]]) -> tuple[Tensor, Tensor]:
        """(pixel_values, image_grid) of B images [H, W, 3]: float32 and int64, as PromptRows holds them."""
        ...

    def engine_limits(self, image_processor: Any) -> dict[str, int]:
        """The limits of an image's area, as vLLM's `mm_processor_kwargs` names them for this family."""
        ...

    def stored_limits(self, image_processor: Any) -> dict[str, Any]:
        """The limits of an image's area, as the files of a folder's image processor say them."""
        ...

    def placeholder(self, config: Any) -> int:
        """Token that stands for a place of an image in the prompt."""
        ...

    def image_end(self, config: Any) -> int | None:
        """Token that closes an image in the prompt; None where none does."""
        ...

    def language_model(self, model: Any) -> Any:
        """The part that reads and writes text: its layers, embedding and last norm."""
        ...

    def heads(self, model: Any) -> Heads:
        """What the layers of the language model attend with."""
        ...

    def outputs(self, model: Any, **inputs: Any) -> Any:
        """What transformers' body of the model, without its head, gives for inputs: tokens, masks, positions, and an
        image as `image_inputs` names it."""
        ...

    def logit_cap(self, model: Any) -> float | None:
        """Soft cap of the logits (policies/sharing/capped.py); None for none."""
        ...

    def together(self, model: Any, rows: PromptRows) -> Tensor | None:
        """[B, P] bool: the tokens of each prompt that all see each other; None where each sees those before it."""
        ...

    def lay_out(self, model: Any) -> None:
        """Lay out the language model's weights as sampling wants them; neither values nor names change."""
        ...

    def cached(self, layers: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """Keys and values of prompts as PromptCache takes them, from the layers of transformers' cache, which are
        emptied on the way."""
        ...

    def states(self, layers: Sequence[Any]) -> tuple[Tensor, Tensor] | None:
        """What the layers of transformers' cache hold in place of keys and values, as EncodedPrompts has it; None where
        all hold those."""
        ...

    def decoder(self, model: Any) -> Any:
        """What takes an answer's tokens, one at a time, from a cache of such keys and values
        (policies/sharing/decoder.py)."""
        ...

    def save_weights(self, model: Any, folder: Path, weights: Mapping[str, Tensor] | None) -> None:
        """Write weights as a folder of the family holds them; weights: by the names of `model`, None for its own."""
        ...

    def tower(self, model: Any) -> nn.Module:
        """The part that turns patches into image tokens, what joins it to the language model included."""
        ...

    def projector(self, model: Any) -> Sequence[nn.Module]:
        """The modules of the tower that join it to the language model."""
        ...

    def prepare(self, model: Any) -> None:
        """Do to a loaded model what cannot be asked for while it is loaded."""
        ...

    def image_inputs(self, rows: PromptRows) -> dict[str, Tensor]:
        """The images of rows, as the model's forward pass names them."""
        ...

    def positions(self, model: Any, rows: PromptRows) -> tuple[Tensor, Tensor]:
        """Positions of the prompts' tokens, [B, P] or [3, B, P] for rows, columns and time apart, and [B] the position
        at which the text goes on behind each."""
        ...

    def features(
        self, model: Any, pixel_values: Tensor, image_grid: Tensor, sides: Sides, early: int
    ) -> VisionFeatures:
        """Frozen features of B images of one size on a grid that spans them, float32.

        pixel_values, image_grid: by `patches`; sides: (H, W) of the images; early: the early block, as
        VisionTower.vision_features has it.
        """
        ...


@runtime_checkable
class TiledFamily(Protocol):
    """A family whose prompts say between an image's tokens which tile follows."""

    def image_ids(self, tokenizer: Any, image_processor: Any, image_token: int, size: Sides) -> list[int]:
        """All that stands for an image of `size` in the prompt, one `image_token` for each of its tokens."""
        ...


@runtime_checkable
class PlacedFamily(Protocol):
    """A family of whose tower's features it is known where in the image they lie, so that masks can be told by them."""

    def seen_images(self, model: Any, rows: PromptRows) -> tuple[Any, list[Tensor]]:
        """What the tower makes of the images of B rows, as the model takes it in place of pixels, and of each image
        [C, h, w] what it tells of the masks in it."""
        ...

    def seen_shares(self, shares: Tensor, sides: Sides, cells: Sides) -> Tensor:
        """[N, ...] shares of the grid that the tower saw, of shares [N, S, S] of the image's; sides: of the image,
        pixels; cells: h and w of the features."""
        ...
