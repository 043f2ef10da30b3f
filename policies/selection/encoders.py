"""Further vision encoders whose features tell of a mask beside those of a policy's own tower: CLIP, SigLIP, DINOv2
(with or without registers) and ConvNeXt, from folders as transformers' own classes have them.

They are frozen: not trained, not sent to workers, not saved with a policy, and loaded by each process when it first
needs them. Each is shown the whole image, stretched to its own square and normalised as its image processor says, so
that its grid spans the image; nothing is cropped. Letters: B images, C channels, h w cells of an encoder's grid.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import CLIPVisionModel, ConvNextModel, Dinov2Model, Dinov2WithRegistersModel, SiglipVisionModel

from policies.checkpoint import Checkpoint

_CLASSES: Mapping[str, Any] = {
    "clip": CLIPVisionModel,
    "clip_vision_model": CLIPVisionModel,
    "siglip": SiglipVisionModel,
    "siglip_vision_model": SiglipVisionModel,
    "dinov2": Dinov2Model,
    "dinov2_with_registers": Dinov2WithRegistersModel,
    "convnext": ConvNextModel,
}
"""By the model_type of config.json; folders of CLIP and SigLIP may hold the text model too."""
_FIXED = (CLIPVisionModel, SiglipVisionModel)
"""Whose positions are learned for one size of image."""


@dataclass(frozen=True)
class View:
    """How an encoder is shown an image."""

    height: int
    """Pixels that the image is stretched to."""
    width: int
    """Pixels that the image is stretched to."""
    mean: tuple[float, ...]
    """[3] of red, green and blue, in shares of 255, that is taken off."""
    std: tuple[float, ...]
    """[3] that is divided by."""
    resample: int = 3
    """Filter, as PIL numbers them; 3 is bicubic."""

    def of(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        """[B, 3, height, width] float32 of images [H, W, 3]."""
        filter_ = Image.Resampling(self.resample)
        each = [np.array(Image.fromarray(image).resize((self.width, self.height), filter_)) for image in images]
        shares = torch.from_numpy(np.stack(each)).float() / 255
        return ((shares - torch.tensor(self.mean)) / torch.tensor(self.std)).permute(0, 3, 1, 2).contiguous()


class Encoder:
    """One frozen encoder of a folder; its files are checked at once, its weights read when it is first asked."""

    def __init__(self, folder: Path, dtype: str = "float32") -> None:
        """Raises FileNotFoundError or ValueError for a folder that is no such encoder, or lacks a file."""
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(
                f"policy.encoders names {folder}, which has no config.json; give Hugging Face folders of vision models."
            )
        held = Checkpoint(folder)
        held.refuse_foreign()
        if held.model_type not in _CLASSES:
            raise ValueError(
                f"policy.encoders names {folder}, which is a {held.model_type or 'nameless'} model; it may hold "
                f"{', '.join(_CLASSES)}."
            )
        held.refuse_missing_weights()
        self.folder = folder
        """Where its files are."""
        self._class, self._dtype = _CLASSES[held.model_type], dtype
        config = self._class.config_class.from_pretrained(folder)
        self.width = channels(config)
        """C."""
        self.view = view_of(held)
        """How it is shown an image."""
        if self._class in _FIXED and (self.view.height, self.view.width) != (config.image_size,) * 2:
            raise ValueError(
                f"the image processor of {folder} shows {self.view.height}x{self.view.width} pixels, and the encoder "
                f"sees {config.image_size}x{config.image_size}; copy preprocessor_config.json of this very model."
            )
        self._network: Any = None

    @property
    def parameters(self) -> int:
        """How many parameters it has; none of its weights is read."""
        with torch.device("meta"):
            network = self._class(self._class.config_class.from_pretrained(self.folder))
        return sum(each.numel() for each in network.parameters())

    @torch.no_grad()
    def features(self, pixels: Tensor) -> Tensor:
        """[B, C, h, w] float32 features of what `view` makes of images.

        Raises ValueError, when it is first asked, for a folder whose weights do not fill the model.
        """
        if self._network is None:
            self._network = self._loaded().to(pixels.device)
        return feature_map(self._network, pixels.to(self._network.dtype)).float()

    def _loaded(self) -> Any:
        network, found = self._class.from_pretrained(
            self.folder, dtype=self._dtype, output_loading_info=True, local_files_only=True
        )
        if missing := sorted(found["missing_keys"]):
            raise ValueError(
                f"the weights of {self.folder} lack {len(missing)} parameters of a {self._class.__name__}, such as "
                f"{missing[0]}; copy its files anew."
            )
        return network.eval().requires_grad_(False)


def channels(config: Any) -> int:
    """C of an encoder by its config."""
    return int(config.hidden_sizes[-1] if config.model_type == "convnext" else config.hidden_size)


def feature_map(network: Any, pixels: Tensor) -> Tensor:
    """[B, C, h, w] features of pixels [B, 3, H, W], class token and registers left out.

    Of CLIP the output of the last block but one, as LLaVA takes it: nothing asks the last one's patches for anything.
    """
    if isinstance(network, ConvNextModel):
        found: Tensor = network(pixel_values=pixels).last_hidden_state
        return found
    is_clip = isinstance(network, CLIPVisionModel)
    out = network(pixel_values=pixels, output_hidden_states=is_clip)
    tokens = out.hidden_states[-2] if is_clip else out.last_hidden_state
    size = network.config.patch_size
    grid = pixels.shape[2] // size, pixels.shape[3] // size
    # Whatever is no patch stands in front.
    patches: Tensor = tokens[:, tokens.shape[1] - grid[0] * grid[1] :]
    return patches.transpose(1, 2).unflatten(2, grid)


def view_of(held: Checkpoint) -> View:
    """What the image processor of a folder says; FileNotFoundError or ValueError where it does not."""
    values = held.json("preprocessor_config.json")
    if not values:
        raise FileNotFoundError(
            f"policy.encoders names {held.folder}, which has no preprocessor_config.json; copy it from where the model "
            "came from."
        )
    cropped = values.get("do_center_crop", "crop_size" in values)
    size = _sides(values.get("crop_size" if cropped else "size"))
    mean, std = _three(values.get("image_mean")), _three(values.get("image_std"))
    if not values.get("do_normalize", True):
        mean, std = (0.0,) * 3, (1.0,) * 3
    resample = values.get("resample", 3)
    if size is None or mean is None or std is None or min(std) <= 0 or resample not in range(6):
        raise ValueError(
            f"{held.folder}/preprocessor_config.json says no size, mean and std that can be shown (size, crop_size, "
            "image_mean, image_std, resample); copy it anew from where the model came from."
        )
    return View(size[0], size[1], mean, std, int(resample))


def _sides(size: Any) -> tuple[int, int] | None:
    """Height and width that a size of an image processor means; None where it means none."""
    if isinstance(size, dict):
        sides = size.get("height", size.get("shortest_edge")), size.get("width", size.get("shortest_edge"))
    else:
        sides = size, size
    height, width = sides
    if isinstance(height, int) and isinstance(width, int) and min(height, width) > 0:
        return height, width
    return None


def _three(numbers: Any) -> tuple[float, ...] | None:
    """Numbers of three colours; None where there are none."""
    if not isinstance(numbers, list) or len(numbers) != 3 or not all(isinstance(each, int | float) for each in numbers):
        return None
    return tuple(map(float, numbers))
