"""Policy that writes boxes and has a decoder draw the mask in each, after Qwen3-VL-Seg (arXiv 2605.07141).

The language model writes a box and a token for a mask; what it makes of that token, of the image's tokens and of the
box becomes a mask (policies/decoders/box_guided.py). Tokens are sampled and learned as those of any other policy; the
decoder is learned by supervision, and in RL by its own loss in whatever boxes are sampled, or stays as it is.

Letters: B rows, G answers, M masks an answer, A answers of a batch that ask for masks, T places of an answer, P prompt
tokens, L tokens of a packed row, D width of the language model.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from envs.codecs.base import AnswerCodec
from policies.checkpoint import Checkpoint
from policies.decoders.box_guided import FILE, SIZES, Asked, BoxGuidedDecoder, DecoderSizes, Seen
from policies.decoders.losses import MaskLosses
from policies.decoders.processor import BoxMaskProcessor
from policies.decoders.slots import DrawnMasks, MaskSlots
from policies.families import vision_language
from policies.families._loading import family_of
from policies.families._qwen import Qwen3VL, Qwen3VLMoe
from policies.families.base import PromptRows, Response
from policies.settings import AS_IT_IS, Asking, LoraSettings
from policies.sharing import attention as shared_attention
from policies.sharing.packing import PackedRows
from policies.sharing.token_rows import learn_rows

_SEED = 0
"""Of the first weights where a folder has none."""
DRAWN_AT_ONCE = 16
"""Prompts whose answers are drawn in one pass, so that memory stays bounded."""


class Policy(vision_language.Policy):
    """A vision-language model, a BoxGuidedDecoder and their Processor."""

    parts = ("projector", "decoder")

    def __init__(
        self,
        checkpoint: Path,
        codec: AnswerCodec,
        question: str = "{phrase}",
        dtype: str = "float32",
        logit_bytes: int = 2**28,
        weights: bool = True,
        lora: LoraSettings | None = None,
        questions: list[str] | None = None,
        system: str | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        template_arguments: dict[str, Any] | None = None,
        decoder: DecoderSizes | None = None,
        losses: MaskLosses | None = None,
        mask_cells: int = 256,
        freeze_decoder: bool = False,
    ) -> None:
        """Load a Hugging Face folder of Qwen3-VL, with the decoder of mask_decoder.safetensors, or a new one.

        decoder: sizes of a new decoder; None: those of the folder, or DecoderSizes. losses: what it is taught by.
        mask_cells: cells of a side of the grid over an image on which true masks are compared with what is drawn.
        freeze_decoder: whether it stays as it is. lora: adapters, beside which the decoder learns whole
        and so do the embeddings of the tokens that ask for masks. The others as the policy `vision_language` has them.
        Raises as that does, and ValueError for another family, and for sizes that the folder's decoder does not have.
        """
        super().__init__(
            checkpoint,
            codec,
            question,
            dtype,
            logit_bytes,
            weights,
            lora,
            questions,
            system,
            min_pixels,
            max_pixels,
            template_arguments,
        )
        assert isinstance(self.processor, BoxMaskProcessor)
        self.processor.mask_cells = mask_cells
        self._losses = losses or MaskLosses()
        self._sizes = sizes_of(Path(checkpoint), decoder)
        if lora is not None:
            learn_rows(self.model, self.processor.mask_words)
        self.model.mask_decoder = self._decoder(Path(checkpoint), weights)
        self.model.mask_decoder.requires_grad_(not freeze_decoder)

    def _decoder(self, checkpoint: Path, weights: bool) -> BoxGuidedDecoder:
        held = self.model.get_input_embeddings().weight
        with torch.device("cpu" if weights else "meta"), torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            made = decoder_for(self.model.config, self._sizes)
        if weights and (checkpoint / FILE).is_file():
            made.load_state_dict(load_file(checkpoint / FILE))
        return made.to(held.dtype)

    @property
    def decoder(self) -> BoxGuidedDecoder:
        """The part that draws, which alone learns by its own loss in RL."""
        decoder: BoxGuidedDecoder = self.model.mask_decoder
        return decoder

    @classmethod
    def make_processor(cls, checkpoint: Path, codec: AnswerCodec, asking: Asking = AS_IT_IS) -> BoxMaskProcessor:
        """The processor of a folder, without its weights; raises as that of `vision_language`, and for families other
        than Qwen3-VL."""
        held = Checkpoint(checkpoint)
        family = family_of(held)
        if not isinstance(family, Qwen3VL) or isinstance(family, Qwen3VLMoe):
            raise ValueError(
                f"policy.name is box_decoder, which is known over Qwen3-VL, and {held.folder} is a {family.title}; "
                "give a checkpoint of that, or choose policy vision_language."
            )
        return BoxMaskProcessor(held, family, codec, asking)

    def part(self, name: str) -> Sequence[nn.Module]:
        """As `vision_language` has it, and the decoder."""
        return [self.model.mask_decoder] if name == "decoder" else super().part(name)

    # Learning.

    def forward(
        self,
        rows: PromptRows,
        temperature: float = 1.0,
        grammar_tokens: int | None = None,
        number_spread: float = 0.0,
        losses_apart: bool = False,
    ) -> Tensor:
        """[B, G, T] float32 log-probabilities as `vision_language` gives them; in rows that say which masks are true,
        less the decoder's loss at each token that asks for a mask, so that their sum is what supervision minimises.

        losses_apart: give [2, B, G, T], the log-probabilities and, apart from them, the decoder's losses at these
        tokens, of which nothing flows back into the language model or the tower: the decoder alone learns by them.
        """
        if rows.slots is None or rows.slots.truths is None:
            return super().forward(rows, temperature, grammar_tokens, number_spread)
        told = self._told(rows)
        scored = self._scored(rows, told.packed, told.states, temperature, grammar_tokens, number_spread)
        if losses_apart:
            parts = self._parts_by_row(rows, rows.slots, told.detached())
        else:
            parts = self._parts(rows, rows.slots, told, rows.slots.taught)
        losses = self._mask_losses(rows.slots, list(parts))
        at_tokens = torch.zeros_like(scored).scatter_add(2, rows.slots.places.clamp(min=0), losses)
        return torch.stack([scored, at_tokens]) if losses_apart else scored - at_tokens

    def _mask_losses(self, slots: MaskSlots, parts: Sequence["_Part"]) -> Tensor:
        """[B, G, M] the decoder's loss for each mask, 0 where there is none or none is true."""
        assert slots.truths is not None and slots.partners is not None
        total, flat, g = torch.zeros_like(slots.boxes[..., 0]), slots.partners.flatten(0, 1), slots.places.shape[1]
        found = self.model.mask_decoder([part.asked for part in parts])
        for part, (logits, foretold) in zip(parts, found, strict=True):
            truths = slots.truths[(part.answers // g)[:, None], flat[part.answers].clamp(min=0)]
            cells = tuple(truths.shape[-2:])
            passes = functional.interpolate(logits.flatten(0, 1), cells, mode="bilinear", align_corners=False)
            passes = passes.unflatten(0, logits.shape[:2]).flatten(1, 2)
            each = self._losses.of(passes, foretold.flatten(), truths.flatten(0, 1)).view_as(foretold)
            # Where nothing asks for a mask, a whole answer of none keeps ranks in step that share out weights.
            each = torch.where(slots.taught.flatten(0, 1)[part.answers], each, each * 0.0)
            total = total.flatten(0, 1).index_put((part.answers,), each).view_as(total)
        return total

    def _told(self, rows: PromptRows) -> "_Told":
        """One pass over rows: what the tower and the language model make of them."""
        packed, positions = self._packed(rows)
        images = self.model.model.get_image_features(rows.pixel_values, rows.image_grid, return_dict=True)
        states = self.processor.family.outputs(
            self.model,
            input_ids=packed.tokens,
            **shared_attention.inputs(packed, self._heads),
            position_ids=positions,
            mm_encoder_outputs={"image": images},
            use_cache=False,
        ).last_hidden_state
        levels = [*images.deepstack_features, images.pooler_output]
        return _Told(packed, states, [[level[b] for level in levels] for b in range(len(rows.image_grid))])

    def _parts(self, rows: PromptRows, slots: MaskSlots, told: "_Told", asking: Tensor) -> Iterator["_Part"]:
        """The answers of which a mask is `asking` [B, G, M] to be drawn, those about images of one size together; one
        answer that asks for none where none does."""
        g = slots.places.shape[1]
        answers = asking.any(2).flatten().nonzero()[:, 0] if asking.any() else torch.zeros(1, dtype=torch.int64)
        sizes = rows.image_grid[:, 1:].tolist()
        for size in sorted({tuple(sizes[int(k) // g]) for k in answers}):
            own = [int(k) for k in answers if tuple(sizes[int(k) // g]) == size]
            yield self._part(rows, slots, told, torch.tensor(own, device=slots.places.device))

    def _parts_by_row(self, rows: PromptRows, slots: MaskSlots, told: "_Told") -> Iterator["_Part"]:
        """Of each row the answers that are taught a mask, or one that is taught none: as many parts as rows, whatever
        these hold, so that ranks that share out weights stay in step, and memory is that of one row."""
        g, taught = slots.places.shape[1], slots.taught.any(2)
        for b in range(len(taught)):
            own = taught[b].nonzero()[:, 0] if taught[b].any() else torch.zeros_like(slots.places[b, :1, 0])
            yield self._part(rows, slots, told, b * g + own)

    def _part(self, rows: PromptRows, slots: MaskSlots, told: "_Told", answers: Tensor) -> "_Part":
        g, merge = slots.places.shape[1], int(self.model.config.vision_config.spatial_merge_size)
        images, of = (answers // g).unique(return_inverse=True)
        grid = rows.image_grid[images[0]]
        height, width = (int(side) // merge for side in grid[1:])
        each = images.tolist()
        shown = rows.prompt_tokens == self.processor.image_token
        embeddings = [told.states[b, : shown.shape[1]][shown[b]] for b in each]
        levels = [torch.stack(list(level)) for level in zip(*[told.levels[b] for b in each], strict=True)]
        pixels = rows.pixel_values.split(rows.pixel_rows)
        seen = Seen(
            [_map(level, height, width) for level in levels],
            _map(torch.stack(embeddings), height, width),
            torch.stack([self._image(pixels[b], rows.image_grid[b].tolist()) for b in each]),
            of,
        )
        columns = told.columns(slots.places.flatten(1))
        states = told.states[torch.arange(len(columns), device=columns.device)[:, None], columns]
        tokens = states.unflatten(1, slots.places.shape[1:]).flatten(0, 1)[answers]
        asked = Asked(seen, slots.boxes.flatten(0, 1)[answers], tokens, slots.exists.flatten(0, 1)[answers])
        return _Part(answers, asked)

    def _image(self, patches: Tensor, grid: Sequence[int]) -> Tensor:
        """[3, H, W] pixels as the tower is shown them, of its patches in the order of merged blocks."""
        vision = self.model.config.vision_config
        return image_of(patches, grid, int(vision.patch_size), int(vision.spatial_merge_size))

    # Drawing.

    @torch.no_grad()
    def drawn(self, rows: PromptRows, responses: Sequence[Sequence[Response]]) -> list[list[Response]]:
        """Responses [B][G] to B prompts, on the CPU, with the masks that they ask for; rows' own are not looked at."""
        assert isinstance(self.processor, BoxMaskProcessor)
        found: list[list[Response]] = []
        for first in range(0, len(responses), DRAWN_AT_ONCE):
            end = min(first + DRAWN_AT_ONCE, len(responses))
            given = self.processor.answered(rows.groups(first, end), responses[first:end])
            found += self._drawn(given.to(self.device), responses[first:end])
        return found

    def _drawn(self, rows: PromptRows, responses: Sequence[Sequence[Response]]) -> list[list[Response]]:
        assert rows.slots is not None
        flat, g = [response for row in responses for response in row], rows.slots.places.shape[1]
        if rows.slots.exists.any():
            for part in self._parts(rows, rows.slots, self._told(rows), rows.slots.exists):
                [(logits, scores)] = self.model.mask_decoder([part.asked])
                for k, (answer, counts) in enumerate(zip(part.answers.tolist(), part.asked.exists.sum(1), strict=True)):
                    drawn = _drawn(logits[:, k, : int(counts)], scores[k, : int(counts)])
                    flat[answer] = replace(flat[answer], masks=drawn)
        return [flat[first : first + g] for first in range(0, len(flat), g)]

    def save(self, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write an ordinary Hugging Face folder, and beside it the decoder."""
        held = dict(self.model.named_parameters()) if weights is None else dict(weights)
        own = {name: held.pop(name) for name in list(held) if name.startswith("mask_decoder.")}
        super().save(folder, {name: weight.detach() for name, weight in held.items()})
        named = {name.removeprefix("mask_decoder."): weight.detach().cpu().contiguous() for name, weight in own.items()}
        save_file(named, folder / FILE, {"format": "pt"})
        (folder / SIZES).write_text(json.dumps(asdict(self._sizes), indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class _Told:
    """What one pass over rows gives."""

    packed: PackedRows
    """The rows as they went through the language model."""
    states: Tensor
    """[B, L, D] last hidden states."""
    levels: Sequence[Sequence[Tensor]]
    """[B][levels] features [cells, C] of each image."""

    def detached(self) -> "_Told":
        """The same states and features, through which no gradient flows."""
        levels = [[level.detach() for level in each] for each in self.levels]
        return replace(self, states=self.states.detach(), levels=levels)

    def columns(self, places: Tensor) -> Tensor:
        """[B, N] where in packed rows the places [B, N] of the flat [G * T] stand; anywhere for places below 0."""
        b, g, t = self.packed.shape
        answers = places.view(b, g, -1) + t * torch.arange(g, device=places.device)[:, None]
        flat = answers.masked_fill(places.view(b, g, -1) < 0, 0).flatten(1)
        p, order = self.packed.prompt_mask.shape[1], self.packed.order
        where = torch.zeros(b, g * t, dtype=torch.int64, device=places.device)
        where.scatter_(1, order, torch.arange(order.shape[1], device=places.device).expand_as(order).contiguous())
        return p + where.gather(1, flat)


@dataclass(frozen=True)
class _Part:
    """Answers about images of one size that are drawn together."""

    answers: Tensor
    """[A] int64: which of B * G answers."""
    asked: Asked
    """The masks that they ask for, as the decoder takes them."""


def decoder_for(config: Any, sizes: DecoderSizes) -> BoxGuidedDecoder:
    """A decoder for a model of Qwen3-VL by its config, with weights as they are drawn."""
    vision = config.vision_config
    return BoxGuidedDecoder(
        levels=1 + len(vision.deepstack_visual_indexes),
        channels=int(vision.out_hidden_size),
        language=int(config.get_text_config().hidden_size),
        cell_px=int(vision.patch_size * vision.spatial_merge_size),
        sizes=sizes,
    )


def sizes_of(checkpoint: Path, asked: DecoderSizes | None) -> DecoderSizes:
    """Sizes of a folder's decoder, or of a new one; ValueError where the folder's are others than were asked for."""
    if not (checkpoint / SIZES).is_file():
        return asked or DecoderSizes()
    try:
        held = DecoderSizes(**json.loads((checkpoint / SIZES).read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{checkpoint / SIZES} does not say the sizes of a decoder ({error}); copy it anew."
        ) from error
    if asked is not None and asked != held:
        raise ValueError(
            f"policy.decoder is {asked}, and the decoder of {checkpoint} has {held}; leave policy.decoder out."
        )
    return held


def image_of(patches: Tensor, grid: Sequence[int], patch: int, merge: int) -> Tensor:
    """[3, H, W] of patches [rows * columns, 3 * frames * patch * patch] in the order of merged blocks; grid: (1, rows,
    columns). Of frames that are all one image, the first."""
    _, rows, columns = grid
    each = patches.view(rows // merge, columns // merge, merge, merge, 3, -1, patch, patch)[:, :, :, :, :, 0]
    return each.permute(4, 0, 2, 5, 1, 3, 6).reshape(3, rows * patch, columns * patch)


def _map(cells: Tensor, height: int, width: int) -> Tensor:
    """[N, C, height, width] of cells [N, height * width, C]."""
    return cells.unflatten(1, (height, width)).permute(0, 3, 1, 2)


def _drawn(logits: Tensor, scores: Tensor) -> DrawnMasks:
    """Of one answer: logits [passes, K, h, w], scores [K]."""
    held = logits.clamp(-60, 60).to(torch.float16).cpu().numpy()
    return DrawnMasks(held[-1], scores.clamp(0, 1).cpu().numpy().astype(np.float32), held[:-1])
