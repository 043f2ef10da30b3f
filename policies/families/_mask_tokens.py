"""What policies over candidate masks have in common: a token of each mask by the model's own tower, and where the
weights that make it are kept."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from envs.codecs.base import AnswerCodec
from policies.checkpoint import Checkpoint
from policies.families import vision_language
from policies.families._llava import Llava
from policies.families._loading import family_of
from policies.families._qwen import Qwen2_5VL, Qwen3VL
from policies.families.base import PromptRows
from policies.family import Family, PlacedFamily
from policies.selection.encoders import Encoder
from policies.selection.head import MaskTokens, mask_features
from policies.selection.numbers import NumbersProcessor
from policies.selection.processor import SelectionProcessor
from policies.selection.regions import averaged, inside

FILE = "selection.safetensors"
"""Projector and prefix, and a classifier where there is one, in the folder of a checkpoint."""
_CLASSIFIER = {"classifier.weight", "classifier.bias"}
_LATER = {"reference_prefix.weight"}
"""What files of earlier versions lack, and who writes numbers has no use for."""
_OF_ENCODERS = ("norms.", "first.")
ENCODERS = "selection.json"
"""Names the folders of further encoders, beside FILE, where there are some."""
_SEED = 0
"""Of the first weights where a folder has none."""


class Policy(vision_language.Policy):
    """A vision-language model, and beside it what makes tokens of masks, `model.selection`."""

    head: ClassVar[type[MaskTokens]] = MaskTokens
    """What `model.selection` is."""

    def __init__(
        self, checkpoint: Path, codec: AnswerCodec, encoders: Sequence[str] | None = None, **settings: Any
    ) -> None:
        """Load a Hugging Face folder as the policy `vision_language` does, with `selection` from FILE, or new.

        encoders: folders of further vision encoders; None: those that the folder was trained with, by ENCODERS. Raises
        as that does, and FileNotFoundError or ValueError for what is no encoder, and weights that do not fill it.
        """
        super().__init__(checkpoint, codec, **settings)
        if encoders is None:
            encoders = Checkpoint(checkpoint).json(ENCODERS).get("encoders", [])
        self.encoders = [Encoder(Path(each), settings.get("dtype", "float32")) for each in encoders]
        """Frozen, and no part of `model`: what is trained, sent and saved."""
        assert isinstance(self.processor, SelectionProcessor | NumbersProcessor)
        self.processor.views = tuple(each.view for each in self.encoders)
        self.model.selection = self._selection(checkpoint, settings.get("weights", True))

    def _selection(self, checkpoint: Path, weights: bool) -> MaskTokens:
        embedding = self.model.get_input_embeddings().weight
        channels = mask_features(self.model.config)
        with torch.device("cpu" if weights else "meta"):
            head = self.head(channels, embedding.shape[1], [each.width for each in self.encoders]).to(embedding.dtype)
        if not weights:
            return head
        head.begin(_SEED, float(embedding.detach().float().std()))
        if (checkpoint / FILE).is_file():
            held, own = load_file(checkpoint / FILE), head.state_dict()
            _refuse_other(held, own, checkpoint / FILE)
            head.load_state_dict({name: held[name] for name in own if name in held}, strict=False)
        return head

    def part(self, name: str) -> Sequence[nn.Module]:
        """Of the projector: all that joins masks and language model, its prefixes and classifier included."""
        assert name in self.parts, name
        return [self.model.selection]

    def seen_images(self, rows: PromptRows) -> tuple[Any, list[Tensor]]:
        """What the tower makes of the images of rows, as the model takes it in place of pixels, and [C, h, w] of each
        what it tells of masks."""
        family = self.processor.family
        assert isinstance(family, PlacedFamily)
        return family.seen_images(self.model, rows)

    def mask_tokens(self, rows: PromptRows, features: Sequence[Tensor], masks: Tensor) -> Tensor:
        """[B, N, width] the token of each of masks [B, N, S, S]; features: [C, h, w] of each image."""
        family = self.processor.family
        assert isinstance(family, PlacedFamily)
        assert rows.regions is not None and rows.regions.sides is not None, "rows over candidates have regions"
        each = [
            inside(family.seen_shares(shares, (sides[0], sides[1]), (seen.shape[1], seen.shape[2])), seen)
            for shares, sides, seen in zip(masks, rows.regions.sides.tolist(), features, strict=True)
        ]
        maps = [one.features(view) for one, view in zip(self.encoders, rows.regions.views, strict=True)]
        others = [torch.stack([averaged(*pair)[0] for pair in zip(masks, found, strict=True)]) for found in maps]
        tokens: Tensor = self.model.selection.tokens(torch.stack(each), others)
        return tokens

    def save(self, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write an ordinary Hugging Face folder, and FILE beside it."""
        held = dict(self.model.named_parameters()) if weights is None else dict(weights)
        own = {name: held.pop(name) for name in list(held) if name.startswith("selection.")}
        super().save(folder, {name: weight.detach() for name, weight in held.items()})
        named = {name.removeprefix("selection."): weight.detach().cpu().contiguous() for name, weight in own.items()}
        save_file(named, folder / FILE, {"format": "pt"})
        if self.encoders:
            named_folders = {"encoders": [str(each.folder) for each in self.encoders]}
            (folder / ENCODERS).write_text(json.dumps(named_folders, indent=2) + "\n", encoding="utf-8")


def _refuse_other(held: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Path) -> None:
    """Raise ValueError where weights of a file do not fill those of a head; a classifier may be left over, so that who
    writes can begin with what choosing taught."""
    free = _CLASSIFIER | _LATER
    wrong = sorted((held.keys() ^ own.keys()) - free)
    wrong += [name for name in sorted(held.keys() & own.keys()) if held[name].shape != own[name].shape]
    if any(name.startswith(_OF_ENCODERS) for name in wrong):
        raise ValueError(
            f"{path} was trained with other encoders than policy.encoders names; give as many folders of the same "
            "widths, in the same order, or leave policy.encoders out to take those that it was trained with."
        )
    if wrong:
        raise ValueError(
            f"{path} has no {wrong[0]} as this model wants it; give the file that goes with the model, or remove it to "
            "begin with new weights."
        )
    if missing := own.keys() - held.keys() - _LATER:
        raise ValueError(
            f"{path} lacks {', '.join(sorted(missing))}: it is of policy mask_numbers, which writes; set policy.name "
            "to that, or begin with a folder without this file."
        )


def family_with_places(checkpoint: Checkpoint, name: str) -> Family:
    """The family of a checkpoint for the policy `name`.

    Raises ValueError for those whose features are not known here to lie where their pixels are.
    """
    family = family_of(checkpoint)
    if not isinstance(family, Llava | Qwen2_5VL | Qwen3VL) or family.layer_kinds != ("full_attention",):
        raise ValueError(
            f"policy.name is {name}, which is known over LLaVA-1.5, Qwen2.5-VL and Qwen3-VL, and {checkpoint.folder} "
            f"is a {family.title}; give a checkpoint of one of these."
        )
    layer = checkpoint.config.get("vision_feature_layer", -2)
    if not isinstance(layer, int):
        raise ValueError(
            f"{checkpoint.folder}/config.json has vision_feature_layer {layer!r}, and masks are told by one layer of "
            "the tower; give a checkpoint of LLaVA-1.5, which has -2."
        )
    return family


@contextmanager
def embedded(embedding: Any, tokens: Tensor, rows: Tensor, places: Tensor) -> Iterator[None]:
    """While it lasts, what an embedding gives at (rows [M], places [M]) is tokens [M, width]."""

    def replaced(_module: Any, _inputs: Any, found: Tensor) -> Tensor:
        return found.index_put((rows, places), tokens.to(found.dtype))

    hook = embedding.register_forward_hook(replaced)
    try:
        yield
    finally:
        hook.remove()
