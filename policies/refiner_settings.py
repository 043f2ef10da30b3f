"""What a refiner is made of, but for its head and for the channels of the vision features, which the policy gives."""

from dataclasses import dataclass

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
