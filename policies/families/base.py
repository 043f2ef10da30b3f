"""What flows into and out of a policy, and what a model family must do to be one.

Dimension letters: B groups in a batch, G answers a group, P prompt tokens, T places of a response, H W pixels; C heads
of a policy beside its vocabulary (policies/choices.py).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from envs.codecs.base import AnswerCodec
from envs.example import Question
from policies import choices
from policies.settings import AS_IT_IS, Asking

if TYPE_CHECKING:  # transformers, which what reads an archive can do without
    from policies.decoders.slots import DrawnMasks, MaskSlots
    from policies.processor import Processor
    from policies.selection.regions import References, Regions
    from policies.sharing.prompt_cache import EncodedPrompts, PromptCache
    from policies.vision.image_memory import ImageMemory


@dataclass(frozen=True)
class Routes:
    """Which experts the tokens behind an answer went to; M layers with experts, k experts a token."""

    prompt: NDArray[np.int16]
    """[P - 1, M, k] of the prompt's tokens but its last; one array for all answers of a group."""
    answer: NDArray[np.int16]
    """[T, M, k] of the state that chose at each place: of the prompt's last token, then of the answer's but its
    last."""


@dataclass(frozen=True)
class Response:
    """One sampled answer, as the model made it: at each of its places a token, and what further heads chose there."""

    tokens: NDArray[np.int64]
    """[T] token ids; the end token is the last one if the model stopped by itself."""
    logprobs: NDArray[np.float32]
    """[T] log-probability of what was chosen at each place under the sampler, at the sampling temperature: of the
    token, plus those of the bins that further heads chose there."""
    finish: str
    """"stop" at the end token, "length" where the limit cut it."""
    bins: NDArray[np.int16] | None = None
    """[T, C] the bin that each further head of the policy chose, -1 where it chose none; None where every choice is a
    token."""
    routes: Routes | None = None
    """Which experts its tokens went to, for the learner; None where nobody asked, or there are none."""
    masks: "DrawnMasks | None" = None
    """What a decoder drew for its boxes; None where the policy has no decoder, or nothing to draw."""

    @property
    def choices(self) -> NDArray[np.int64]:
        """[T], or [T, 1 + C]: all that was chosen, as policies/choices.py says."""
        return choices.joined(self.tokens, self.bins)


class TaughtAnswer(NamedTuple):
    """A question and the answer to it that is taught."""

    question: Question
    tokens: NDArray[np.int64]
    """[T] or [T, 1 + C] choices of the answer, end token included where it is to be learned."""
    masks: NDArray[np.bool_] | None = None
    """[K, H, W] the true masks, for policies with a decoder; None where nobody knows them."""


@dataclass(frozen=True)
class PromptRows:
    """A few groups, one row per group: the prompt once, then G responses that each see the prompt and themselves."""

    prompt_tokens: Tensor
    """[B, P] int64, padded on the left, image placeholders included."""
    prompt_mask: Tensor
    """[B, P] bool, True on real tokens."""
    pixel_values: Tensor
    """Float, as the family's image processor gives it: [patches, channels] of all images in row order (Qwen), or
    [B, 3, H, W], a row an image (LLaVA)."""
    image_grid: Tensor
    """[B, 3] int64: (1, rows, columns) of patches of each image, whose product is its rows of pixel_values."""
    response_tokens: Tensor
    """[B, G, T] int64, padded on the right. In supervised rows a response may begin with its own question."""
    response_mask: Tensor
    """[B, G, T] bool, True on real tokens."""
    scored_mask: Tensor
    """[B, G, T] bool, True where a log-probability or a loss is wanted; a subset of response_mask."""
    image_rows: Tensor | None = None
    """[B] int64: rows of pixel_values of each image; None where that is the product of its grid."""
    prompt_bins: Tensor | None = None
    """[B, P, C] int64: what further heads said in the prompt, -1 where none; None for policies without such heads."""
    response_bins: Tensor | None = None
    """[B, G, T, C] int64: what further heads chose, -1 where none; None for policies without such heads."""
    prompt_routes: Tensor | None = None
    """[B, P, M, k] int16: the experts that each token is to go to, -1 where its router chooses; None: all choose."""
    response_routes: Tensor | None = None
    """[B, G, T, M, k] int16: the same of responses."""
    regions: "Regions | None" = None
    """The masks that B questions let be chosen from; None where there are none."""
    slots: "MaskSlots | None" = None
    """Where answers ask a decoder for masks, and which would be true; None for policies without one, and wherever
    nothing is to be drawn."""
    references: "References | None" = None
    """The masks that B questions refer to; None where none does."""

    def to(self, device: torch.device) -> "PromptRows":
        """Equal rows, held by another device."""
        return self._with(lambda _, part: part.to(device))

    @property
    def pixel_rows(self) -> list[int]:
        """[B] rows of pixel_values of each image."""
        rows: list[int] = (self.image_grid.prod(-1) if self.image_rows is None else self.image_rows).tolist()
        return rows

    def groups(self, first: int, end: int) -> "PromptRows":
        """The rows `first` to `end - 1`, each with its own image."""
        pixels = self.pixel_rows
        own = slice(sum(pixels[:first]), sum(pixels[:end]))
        rows = slice(first, end)

        def of(name: str, part: Any) -> Any:
            if name in ("regions", "references", "slots"):
                return part.chosen(rows)
            return part[own if name == "pixel_values" else rows]

        return self._with(of)

    def chosen(self, places: Sequence[int]) -> "PromptRows":
        """The rows at `places`, each with its own image, without the padding that all their prompts have."""
        own = torch.tensor(places, device=self.prompt_mask.device)
        images = self.pixel_values.split(self.pixel_rows)
        first = self.prompt_mask.shape[1] - int(self.prompt_mask[own].sum(1).max())

        def of(name: str, part: Any) -> Any:
            if name in ("regions", "references", "slots"):
                return part.chosen(own)
            if name == "pixel_values":
                return torch.cat([images[place] for place in places])
            return part[own, first:] if name.startswith("prompt_") else part[own]

        return self._with(of)

    def _with(self, of: Callable[[str, Any], Any]) -> "PromptRows":
        """Rows of what `of` makes of each part, by its name; parts that are not there stay so."""
        parts: dict[str, Any] = {name: part if part is None else of(name, part) for name, part in vars(self).items()}
        return PromptRows(**parts)


@dataclass(frozen=True)
class VisionFeatures:
    """Frozen features of a few images of one size, for the refiner."""

    final: Tensor
    """[B, C, h, w] float: output of the vision tower (what the language model sees)."""
    early: Tensor
    """[B, E, h, w] float: patch embedding, or output of an early block, where edges still are."""


class VisionTower(Protocol):
    """What a refiner asks of a policy."""

    def vision_features(self, images: Sequence[NDArray[np.uint8]], early_block: int = 0) -> VisionFeatures:
        """Features of images [H, W, 3] of one size, without gradient.

        early_block: which early ones, 0 the patch embedding, k the output of the vision tower's block k, counted from
        1; ValueError where there is no such block.
        """
        ...


class PolicyContract(Protocol):
    """What samplers, learner and refiner ask of a model family; a family is an nn.Module in one file of this folder.

    `model` is the network whose named parameters travel to the workers; the codec is given by the config.
    """

    model: nn.Module
    processor: "Processor"
    """Writes prompts and reads answers; needs no weights."""

    @classmethod
    def make_processor(cls, checkpoint: Path, codec: AnswerCodec, asking: Asking = AS_IT_IS) -> "Processor":
        """The processor alone, of a Hugging Face folder.

        Raises FileNotFoundError or ValueError for a folder that this family cannot read, or cannot ask so.
        """
        ...

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        ...

    @property
    def vision_tower(self) -> nn.Module:
        """The part that turns patches into image tokens, whatever the refiner's features pass through included; may be
        kept frozen."""
        ...

    @property
    def vision_projector(self) -> Sequence[nn.Module]:
        """The modules of the tower that join it to the language model."""
        ...

    def part(self, name: str) -> Sequence[nn.Module]:
        """The modules of a part that can be trained alone, such as its projector."""
        ...

    def rows(self, questions: Sequence[Question], responses: Sequence[Sequence[NDArray[np.int64]]]) -> PromptRows:
        """Rows of B questions with the choices of up to G responses each, where the parameters are.

        ValueError for a question that this family cannot be asked.
        """
        ...

    def checkpoint_gradients(self) -> None:
        """From now on compute layers again in the backward pass instead of keeping what they need for it."""
        ...

    def remember_images(self, memory: "ImageMemory") -> None:
        """From now on ask a memory for what the vision tower makes of images first; the tower is frozen."""
        ...

    def forward(
        self,
        rows: PromptRows,
        temperature: float = 1.0,
        grammar_tokens: int | None = None,
        number_spread: float = 0.0,
    ) -> Tensor:
        """[B, G, T] float32 log-probabilities of the response tokens, logits divided by temperature.

        0 outside scored_mask. grammar_tokens: the limit on tokens with which they were sampled under the grammar, so
        that other tokens are left out here too; None where no grammar was on. number_spread: where above 0, the
        log-probability of a number is a mean over its neighbours too, weighed by a Gaussian of that many numbers'
        width; only supervised training asks for it. Modules are called the same number of times whatever rows hold:
        ranks that share out weights (ZeRO-3) go through them in step.
        """
        ...

    def prepare_sampling(self) -> None:
        """Lay out the weights as sampling wants them, as a sampler asks for once they are where they stay; neither
        values nor names change."""
        ...

    def encode(self, rows: PromptRows) -> "EncodedPrompts":
        """Keys and values of B prompts, each encoded once."""
        ...

    def decode(
        self,
        cache: "PromptCache",
        tokens: Tensor,
        temperature: float,
        allowed: Tensor | None = None,
        bins: Tensor | None = None,
    ) -> Tensor:
        """Log-probabilities [R*C, V] of the token after `tokens` [R, C]; the cache grows by one.

        allowed: [R*C, V] bool, the tokens that can be sampled; None: all. bins: [R, C, heads] what further heads chose
        beside `tokens`; None for a policy without such heads.
        """
        ...

    def routes(self) -> Tensor | None:
        """[R*C, M, k] int16 experts of the tokens that `decode` was just asked about, as `encode` gives those of
        prompts; None for a policy without experts."""
        ...

    def bin_logprobs(self, cache: "PromptCache", temperature: float) -> Sequence[Tensor]:
        """Log-probabilities [R*C, K] of each further head's bins at the place that `decode` was just asked about; none
        for a policy without such heads (processor.heads)."""
        ...

    def vision_features(self, images: Sequence[NDArray[np.uint8]], early_block: int = 0) -> VisionFeatures:
        """Features of images for a refiner, as VisionTower says."""
        ...

    def vision_checksum(self) -> str:
        """Checksum of the vision tower alone: what a refiner was trained on."""
        ...

    def save(self, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write an ordinary Hugging Face folder.

        weights: what to write by the names of `model` before any adapter; None: what `model` holds.
        """
        ...


@runtime_checkable
class PartedPolicy(Protocol):
    """A policy, or its class, that names what of it can be trained alone."""

    parts: tuple[str, ...]
    """What `PolicyContract.part` takes."""


@runtime_checkable
class DrawingPolicy(Protocol):
    """A policy with a decoder that draws the masks which its answers ask for.

    Its `forward` takes `losses_apart`, with which rows that say what is true give [2, B, G, T]: the log-probabilities,
    and the decoder's own losses at the tokens that ask for masks, of which nothing flows back beyond the decoder. Its
    processor makes such rows of sampled answers (BoxMaskProcessor.sampled_rows).
    """

    @property
    def decoder(self) -> nn.Module:
        """The part that draws."""
        ...

    def drawn(self, rows: PromptRows, responses: Sequence[Sequence[Response]]) -> list[list[Response]]:
        """Responses [B][G] to B prompts with their masks; rows' own responses are not looked at."""
        ...


@runtime_checkable
class DirectPolicy(Protocol):
    """A policy that chooses at all places of an answer at once, for the engine `direct`."""

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        ...

    def unanswered(self, questions: Sequence[Question]) -> PromptRows:
        """Rows of B questions to be answered, on the CPU; ValueError for one that it cannot be asked."""
        ...

    def place_logprobs(self, rows: PromptRows, temperature: float) -> tuple[Tensor, Tensor]:
        """[B, T, V] log-probabilities of what can be chosen at each place of the answers, and [B] how many places each
        answer has."""
        ...
