"""Low-rank adapters (LoRA, arXiv 2106.09685) through peft: W x becomes W x + (alpha / rank) B A x, and only A and B
learn.

peft puts its layers in the place of the model's own, so the model keeps its class: `...q_proj.weight` is then called
`...q_proj.base_layer.weight`, beside `...q_proj.lora_A.default.weight` and `...lora_B...`. B begins at zero, so the
policy begins as what it was. What travels to the workers is either one ordinary model (`push: merged`: a worker knows
nothing of adapters) or the adapters alone (`push: adapters`: a worker builds the same ones).
"""

from dataclasses import dataclass
from typing import Any

ALL_LINEAR = "all-linear"


@dataclass
class LoraSettings:
    """Adapters in place of whole weights."""

    rank: int = 16
    """Width of A and B."""
    alpha: float = 32.0
    """Adapters count alpha / rank times."""
    dropout: float = 0.0
    """Share of an adapter's input that is dropped while learning; the ratio to the old policy is then noisy."""
    targets: Any = ALL_LINEAR
    """`all-linear`: each linear layer of the language model but the head. Or a list of layers by the end of their
    names, such as [q_proj, v_proj]; [visual.merger.linear_fc1] reaches into the vision tower."""
    push: str = "merged"
    """merged: workers get whole weights and need nothing of adapters. adapters: only these travel; a push is then
    smaller by the factor that the adapters are."""

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0 or not 0 <= self.dropout < 1:
            raise ValueError(
                f"learner.lora.rank is {self.rank}, alpha {self.alpha}, dropout {self.dropout}; set rank to 1 or "
                "more, alpha above 0, and dropout into 0..1, 1 not included."
            )
        if self.push not in ("merged", "adapters"):
            raise ValueError(f"learner.lora.push is {self.push!r}; it must be merged or adapters.")
        targets = self.targets
        named = isinstance(targets, list) and targets and all(isinstance(each, str) for each in targets)
        if targets != ALL_LINEAR and not named:
            raise ValueError(
                f"learner.lora.targets is {targets!r}; give {ALL_LINEAR} or a list of names such as [q_proj, v_proj]."
            )


FEATURES = ("image", "crop")


@dataclass(frozen=True)
class RefinerSettings:
    """Sizes, passes and the stop rule of a MaskRefiner.

    Which crop_px suits a vision tower: with features "crop" the tower encodes crop_px x crop_px pixels, so give a
    multiple of its patch size times its merge size (Qwen3-VL 32, Qwen2.5-VL 28, the embedded policy 8) whose square
    lies within the size limits of its image processor (Qwen3-VL from 256 x 256 px on; the embedded policy 64 x 64 px
    only). At any other the processor resamples the crop before the tower sees it: it works, at another resolution. With
    "image" the tower never sees the crop. The head has its own say: it names the multiples that it can take.
    """

    crop_px: int = 48
    """R, cells of a side of the crop."""
    box_growth: float = 0.25
    """The box grows by this part of its side on every side."""
    min_box_px: float = 8.0
    """The grown box is at least so wide and high, where the image is."""
    passes: int = 3
    """K: how often at most the mask goes through the network, each time the best soft one that came out before."""
    features: str = "image"
    """"image": features of the whole image, resampled to the box; "crop": of the box, cut out, resampled to crop_px x
    crop_px px and encoded by the tower."""
    early_block: int = 0
    """Which early features: 0 the patch embedding, k the output of the vision tower's block k."""
    min_gain: float = 0.005
    """It stops after a pass that is predicted to have gained less IoU; -1: it never stops early."""

    def __post_init__(self) -> None:
        if self.crop_px < 1:
            raise ValueError(f"crop_px is {self.crop_px}; give 1 or more.")
        if not self.box_growth >= 0 or not self.min_box_px > 0:
            raise ValueError(
                f"box_growth is {self.box_growth}, min_box_px {self.min_box_px}; give 0 or more, and a number above 0."
            )
        if self.passes < 1:
            raise ValueError(f"passes is {self.passes}; a mask goes through the network at least once.")
        if self.features not in FEATURES:
            raise ValueError(f"features is {self.features!r}; give {' or '.join(FEATURES)}.")
        if self.early_block < 0:
            raise ValueError(
                f"early_block is {self.early_block}; give 0 for the patch embedding, or a block from 1 on."
            )
        if not -1 <= self.min_gain <= 1:
            raise ValueError(f"min_gain is {self.min_gain}; it is a difference of IoUs, so give a number in -1..1.")
