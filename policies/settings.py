"""Settings of questions, of adapters, of a refiner's network and of a new tiny model; nothing here loads a network."""

from dataclasses import dataclass
from typing import Annotated, Any

from envs.ranges import above, at_least, between, check_ranges, one_of

ALL_LINEAR = "all-linear"
THINKING_QUESTION = (
    "First reason about what is meant and where it is, between {open} and {close}; behind that, write the answer alone."
)
"""How a block of reasoning is asked for, where nothing else is said."""


@dataclass
class LoraSettings:
    """Adapters in place of whole weights."""

    rank: Annotated[int, at_least(1)] = 16
    """Width of A and B."""
    alpha: Annotated[float, above(0)] = 32.0
    """Adapters count alpha / rank times."""
    dropout: Annotated[float, between(0, 1, open_high=True)] = 0.0
    """Share of an adapter's input that is dropped while learning; the ratio to the old policy is then noisy."""
    targets: Any = ALL_LINEAR
    """`all-linear`: each linear layer of the language model but the head. Or a list of layers by the end of their
    names, such as [q_proj, v_proj]; [visual.merger.linear_fc1] reaches into the vision tower."""
    push: Annotated[str, one_of("merged", "adapters")] = "merged"
    """merged: workers get whole weights and need nothing of adapters. adapters: only these travel, and what is learned
    whole beside them; a push is then smaller by the factor that the adapters are."""
    train_vision: bool = False
    """Whether the vision tower's own weights, projector included, learn beside the adapters of the language model, as
    in the first stage of Qwen3-VL-Seg. Needs push: merged."""

    def __post_init__(self) -> None:
        check_ranges(self, "learner.lora")
        targets = self.targets
        if self.train_vision and self.push == "adapters":
            raise ValueError(
                "learner.lora.train_vision is true with learner.lora.push adapters, by which workers would keep an old "
                "vision tower; set learner.lora.push to merged."
            )
        named = isinstance(targets, list) and targets and all(isinstance(each, str) for each in targets)
        if targets != ALL_LINEAR and not named:
            raise ValueError(
                f"learner.lora.targets is {targets!r}; give {ALL_LINEAR} or a list of names such as [q_proj, v_proj]."
            )


@dataclass(frozen=True)
class Asking:
    """How questions are put to a model: settings of a policy that need no weights."""

    question: str = "{phrase}"
    """The user's text, `{phrase}` standing for the words of the prompt; other braces are text."""
    questions: list[str] | None = None
    """Several such texts in place of `question`, of which the words decide; None for the one."""
    box_question: str | None = None
    """The user's text where a box is asked for, such as "Box {phrase}"; None where none is ever asked for."""
    point_question: str | None = None
    """The user's text where a point is asked for, such as "Point to {phrase}"; None where none is ever asked for."""
    part_vertices: Annotated[int, at_least(3)] = 12
    """Most vertices of a region that a question points at, which is written as its outline."""
    system: str | None = None
    """System message; None for what the chat template says without one."""
    template_arguments: dict[str, Any] | None = None
    """Values of variables that the chat template knows, such as {enable_thinking: false}; None for none."""
    min_pixels: Annotated[int | None, at_least(1, ", or to null for the checkpoint's own.")] = None
    """Least area of an image as the model sees it, pixels; None for the checkpoint's own."""
    max_pixels: Annotated[int | None, at_least(1, ", or to null for the checkpoint's own.")] = None
    """Largest area of an image as the model sees it, pixels; None for the checkpoint's own."""
    thinking: Annotated[str, one_of("none", "optional", "required")] = "none"
    """Whether a block of reasoning stands before the answer: `none`, it is part of the answer's text; `optional`, it
    may; `required`, an answer without one is unparsable."""
    thinking_marks: list[str] | None = None
    """What opens and what closes the block; None for those of the family, <think> and </think>."""
    thinking_question: str | None = THINKING_QUESTION
    """What is added to each question where a block may stand, {open} and {close} standing for its marks; None for
    nothing, such as for a model whose chat template asks by itself."""

    def __post_init__(self) -> None:
        check_ranges(self, "policy")
        if self.questions is not None and not self.questions:
            raise ValueError("policy.questions is []; give at least one question with {phrase} in it, or null.")
        if self.thinking_marks is not None:
            _refuse_wrong_marks(self.thinking_marks)


def _refuse_wrong_marks(marks: list[str]) -> None:
    """Raise ValueError for marks by which no block could be told from what stands around it."""
    told = len(marks) == 2 and all(mark and mark == mark.strip() for mark in marks)
    if not told or marks[0] in marks[1] or marks[1] in marks[0]:
        raise ValueError(
            f"policy.thinking_marks is {marks}; give two marks, what opens and what closes the block, without white "
            "space at their ends and neither of them within the other, such as ['<think>', '</think>']."
        )


AS_IT_IS = Asking()
"""The bare phrase, in the checkpoint's own template and limits."""


@dataclass(frozen=True)
class RefinerSettings:
    """Sizes, passes and the stop rule of a MaskRefiner.

    Which crop_px suits a vision tower: with features "crop" the tower encodes crop_px x crop_px pixels, so give a
    multiple of its patch size times its merge size (Qwen3-VL 32, Qwen2.5-VL 28, the embedded policy 8) whose square
    lies within the size limits of its image processor (Qwen3-VL from 256 x 256 px on; the embedded policy 64 x 64 px
    only). At any other the processor resamples the crop before the tower sees it: it works, at another resolution. With
    "image" the tower never sees the crop. The head has its own say: it names the multiples that it can take.
    """

    crop_px: Annotated[int, at_least(1)] = 48
    """R, cells of a side of the crop."""
    box_growth: Annotated[float, at_least(0)] = 0.25
    """The box grows by this part of its side on every side."""
    min_box_px: Annotated[float, above(0)] = 8.0
    """The grown box is at least so wide and high, where the image is."""
    passes: Annotated[int, at_least(1)] = 3
    """K: how often at most the mask goes through the network, each time the best soft one that came out before."""
    features: Annotated[str, one_of("image", "crop")] = "image"
    """"image": features of the whole image, resampled to the box; "crop": of the box, cut out, resampled to crop_px x
    crop_px px and encoded by the tower."""
    early_block: Annotated[int, at_least(0, ", 0 for the patch embedding.")] = 0
    """Which early features: 0 the patch embedding, k the output of the vision tower's block k."""
    min_gain: Annotated[float, between(-1, 1, advice=", a difference of IoUs.")] = 0.005
    """It stops after a pass that is predicted to have gained less IoU; -1: it never stops early."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass
class TinySizes:
    """Sizes of the new model."""

    image_size: Annotated[int, at_least(1)] = 64
    """Side of the square images, pixels; a multiple of patch_size. Others are resampled to about as many pixels, their
    ratio of sides kept."""
    patch_size: Annotated[int, at_least(1)] = 8
    text_width: Annotated[int, at_least(1)] = 128
    text_layers: Annotated[int, at_least(1)] = 4
    text_heads: Annotated[int, at_least(1)] = 4
    vision_width: Annotated[int, at_least(1)] = 96
    vision_layers: Annotated[int, at_least(1)] = 3
    vision_heads: Annotated[int, at_least(1)] = 4
    begin_from: str | None = None
    """Hugging Face folder of a model of these sizes, or `tiny`, whose weights the new one begins with, those of the
    words that both have included; null: random ones."""

    def __post_init__(self) -> None:
        """Raises ValueError for sizes of which no model can be made."""
        check_ranges(self, "tiny")
        if self.image_size % self.patch_size:
            raise ValueError(
                f"tiny.image_size is {self.image_size}, which is no multiple of tiny.patch_size {self.patch_size}, so "
                f"that images would be resampled; set it to {-(-self.image_size // self.patch_size) * self.patch_size}."
            )
        if self.text_width // self.text_heads % 2 or self.vision_width % (4 * self.vision_heads):
            raise ValueError(
                f"tiny.text_width is {self.text_width} for {self.text_heads} heads, tiny.vision_width "
                f"{self.vision_width} for {self.vision_heads}; a head of text needs an even width, and vision_width "
                f"must be a multiple of 4 x {self.vision_heads}, for positions along two axes."
            )
