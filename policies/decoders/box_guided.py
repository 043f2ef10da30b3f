"""A mask decoder behind boxes, after Qwen3-VL-Seg (arXiv 2605.07141): what of the image lies in a box becomes a mask.

Structure as published: features of several levels, each injected with a learned scale; a memory of visual embeddings,
fused features and positions; a query of the box and of the hidden state of a mask token; a soft window at the box;
pixel features of the fused map and of the image itself; two passes, the second with what lay under the first mask; a
linear head that foretells the IoU. Widths and depths are not public; those here come to its 17 M parameters at the size
of Qwen3-VL-4B.

Letters: B images of one size, A answers about them, M boxes an answer, L levels, C channels of a level, D width of the
language model, h w cells of its image tokens, s h and s w those of the masks (s = 2 a stage), W width of the decoder.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import gcd

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from policies.decoders.boxes import box_code, joint_window, window

FILE, SIZES = "mask_decoder.safetensors", "mask_decoder.json"
"""Weights of the decoder and its sizes, in the folder of a checkpoint."""


@dataclass(frozen=True)
class DecoderSizes:
    """Dimensions of a decoder that do not follow from its model."""

    width: int = 256
    """Channels of the decoder's maps and queries."""
    heads: int = 8
    """Heads of each attention among queries and from queries to the image."""
    mlp: int = 1024
    """Channels inside the perceptron of each block."""
    blocks: int = 2
    """Blocks in which queries look at each other and at the image."""
    frequencies: int = 32
    """Waves that each number of a box is coded in."""
    places: int = 64
    """Cells of a side of the learned map of positions, which is stretched over the image."""
    stages: int = 2
    """Doublings of the resolution from image tokens to masks."""


@dataclass(frozen=True)
class Seen:
    """What a policy saw of B images of one size, about which there are A answers."""

    levels: Sequence[Tensor]
    """L maps [B, C, h, w] of the vision tower, early ones first."""
    embeddings: Tensor
    """[B, D, h, w] hidden states of the language model at the image's tokens."""
    images: Tensor
    """[B, 3, H, W] pixels, as the tower is shown them."""
    of: Tensor
    """[A] int64: which image each answer is about."""


@dataclass(frozen=True)
class Asked:
    """A answers about images of one size, and the masks that they ask for."""

    seen: Seen
    """What the policy saw of the images that the answers are about."""
    boxes: Tensor
    """[A, M, 4] float32: the boxes that the answers say, 0..1 of the image."""
    tokens: Tensor
    """[A, M, D] hidden states of the tokens that ask for masks."""
    exists: Tensor
    """[A, M] bool: which masks there are."""


@dataclass(frozen=True)
class DrawingOperations:
    """Operations of a decoder's forward pass for each image token, two a multiplication; norms and queries left out."""

    image: float
    """Once for an image, however many answers there are."""
    answer: float
    """Of each answer with one mask."""


class BoxGuidedDecoder(nn.Module):
    """Masks for boxes of what a policy saw."""

    def __init__(self, levels: int, channels: int, language: int, cell_px: int, sizes: DecoderSizes) -> None:
        """levels: L; channels: C; language: D; cell_px: pixels of a side of an image token's cell.

        Raises ValueError for a cell that no number of halvings leads to the masks' resolution.
        """
        super().__init__()
        w = sizes.width
        self.sizes = sizes
        halvings = (cell_px // 2**sizes.stages).bit_length() - 1
        if halvings < 0 or 2 ** (halvings + sizes.stages) != cell_px:
            raise ValueError(
                f"an image token shows {cell_px} x {cell_px} pixels, which is no power of two from {2**sizes.stages} "
                "on; the box-guided decoder needs one."
            )
        self.injections = nn.ModuleList(_Injection(channels, w) for _ in range(levels))
        self.fuse = nn.Sequential(nn.Conv2d(levels * w, w, 3, padding=1), _norm(w), nn.GELU())
        self.from_language = nn.Linear(language, w)
        self.places = nn.Embedding(sizes.places**2, w)  # a module, by whose calls ZeRO-3 fetches its weight
        self.from_box = nn.Sequential(nn.Linear(8 * sizes.frequencies, w), nn.GELU(), nn.Linear(w, w))
        self.from_token = nn.Linear(language, w)
        self.query_norm = nn.LayerNorm(w)
        self.blocks = nn.ModuleList(_Block(w, sizes.heads, sizes.mlp) for _ in range(sizes.blocks))
        self.upsample = nn.Sequential(*[_Doubling(w) for _ in range(sizes.stages)])
        self.stem = _stem(halvings, w)
        self.join = nn.Conv2d(2 * w, w, 3, padding=1)
        self.kernel = nn.Sequential(nn.Linear(w, w), nn.GELU(), nn.Linear(w, w), nn.GELU(), nn.Linear(w, w))
        self.bias = nn.Linear(w, 1)
        self.revise = nn.Sequential(nn.Linear(w, w), nn.GELU(), nn.Linear(w, w))
        self.revised_norm = nn.LayerNorm(w)
        self.foretell = nn.Linear(w, 1)

    def forward(self, asked: Sequence[Asked]) -> list[tuple[Tensor, Tensor]]:
        """Of each of `asked`: (logits [2, A, M, s h, s w] of both passes, IoU [A, M] foretold for the last), float32.

        What boxes get that do not exist means nothing. Where several are given while learning, each is drawn again in
        the backward pass, so that what that needs is held of one at a time.
        """
        if len(asked) < 2 or not torch.is_grad_enabled():
            return [self._masks(one) for one in asked]
        return [checkpoint(self._masks, one, use_reentrant=False, preserve_rng_state=False) for one in asked]

    def operations(self) -> DrawingOperations:
        """What a forward pass takes, by the sizes of the weights alone."""
        w, cells = self.sizes.width, 4**self.sizes.stages
        once: list[Tensor | nn.Module] = [self.fuse[0], self.from_language]
        for each in self.injections:
            once += [each.project, each.near]
        image = sum(_weights(each) for each in once)
        image += sum(_weights(each.spread) * 4**k for k, each in enumerate(self.upsample))
        convolutions = [each for each in self.stem if isinstance(each, nn.Conv2d)]
        # The last one gives the masks' cells, each before it four times as many.
        image += sum(_weights(each) * cells * 4**k for k, each in enumerate(reversed(convolutions)))
        # Keys and values of the memory and its attention in each block; the cells' features, and two masks over them.
        answer = len(self.blocks) * (2 * w * w + 2 * w) + cells * (_weights(self.join) + 2 * w)
        return DrawingOperations(2.0 * image, 2.0 * answer)

    def _masks(self, asked: Asked) -> tuple[Tensor, Tensor]:
        seen, boxes, exists = asked.seen, asked.boxes, asked.exists
        fused = self._fused(seen)
        code = box_code(boxes, self.sizes.frequencies).to(self._dtype)
        queries = self.query_norm(self.from_box(code) + self.from_token(asked.tokens.to(self._dtype)))
        memory = self._memory(seen, fused)
        for block in self.blocks:
            queries = block(queries, memory, exists)
        pixels = self._pixels(seen, fused, boxes, exists)
        first = self._drawn(queries, pixels)
        shares = first.float().sigmoid()
        under = torch.einsum("bmyx,bcyx->bmc", shares, pixels.float()) / (shares.sum((2, 3))[..., None] + 1e-6)
        queries = self.revised_norm(queries + self.revise(under.to(self._dtype)))
        logits = torch.stack([first, self._drawn(queries, pixels)])
        return logits.float(), self.foretell(queries)[..., 0].float()

    @property
    def _dtype(self) -> torch.dtype:
        return self.foretell.weight.dtype

    def _fused(self, seen: Seen) -> Tensor:
        """[B, W, h, w] all levels together."""
        levels = zip(self.injections, seen.levels, strict=True)
        fused: Tensor = self.fuse(torch.cat([inject(level.to(self._dtype)) for inject, level in levels], dim=1))
        return fused

    def _memory(self, seen: Seen, fused: Tensor) -> Tensor:
        """[A, h w, W] what queries look at: visual embeddings, fused features and positions."""
        side, (height, width) = self.sizes.places, fused.shape[2:]
        every = torch.arange(side**2, device=fused.device)
        places = self.places(every).unflatten(0, (side, side)).permute(2, 0, 1)[None]
        places = functional.interpolate(places, (height, width), mode="bilinear", align_corners=False)
        embeddings = self.from_language(seen.embeddings.to(self._dtype).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return _at((embeddings + fused + places).flatten(2).transpose(1, 2), seen.of)

    def _pixels(self, seen: Seen, fused: Tensor, boxes: Tensor, exists: Tensor) -> Tensor:
        """[A, W, s h, s w] features of the masks' cells: the fused map, and the image within the joint window."""
        raised, near = _at(self.upsample(fused), seen.of), _at(self.stem(seen.images.to(self._dtype)), seen.of)
        height, width = raised.shape[2:]
        windows = window(boxes.flatten(0, 1), height, width).unflatten(0, boxes.shape[:2])
        inside = joint_window(windows, exists)[:, None].to(self._dtype)
        pixels: Tensor = self.join(torch.cat([raised, inside * near], dim=1))
        return pixels

    def _drawn(self, queries: Tensor, pixels: Tensor) -> Tensor:
        """[A, M, s h, s w] logits of masks: each query is a filter over the pixels' features."""
        scale = pixels.shape[1] ** -0.5
        logits: Tensor = torch.einsum("bmc,bcyx->bmyx", self.kernel(queries), pixels) * scale
        return logits + self.bias(queries)[..., None]


class _Injection(nn.Module):
    """A level of features at the decoder's width: x + s GELU(DepthwiseConv(GroupNorm(x))), s learned from 1e-3 on."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(channels, width, 1)
        self.norm = _norm(width)
        self.near = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.scale = nn.Parameter(torch.full((1,), 1e-3))

    def forward(self, level: Tensor) -> Tensor:
        """[B, W, h, w] of [B, C, h, w]."""
        found: Tensor = self.project(level)
        return found + self.scale * functional.gelu(self.near(self.norm(found)))


class _Block(nn.Module):
    """Queries look at each other, then at the memory, then through a perceptron; norms come first."""

    def __init__(self, width: int, heads: int, mlp: int) -> None:
        super().__init__()
        self.among = nn.MultiheadAttention(width, heads, batch_first=True)
        self.across = nn.MultiheadAttention(width, heads, batch_first=True)
        self.perceptron = nn.Sequential(nn.Linear(width, mlp), nn.GELU(), nn.Linear(mlp, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))

    def forward(self, queries: Tensor, memory: Tensor, exists: Tensor) -> Tensor:
        """[A, M, W] of queries [A, M, W] and memory [A, cells, W]; boxes that do not exist see themselves alone."""
        itself = torch.eye(exists.shape[1], dtype=torch.bool, device=exists.device)
        hidden = ~(exists[:, None, :] | itself).repeat_interleave(self.among.num_heads, 0)
        normed = self.norms[0](queries)
        queries = queries + self.among(normed, normed, normed, attn_mask=hidden, need_weights=False)[0]
        queries = queries + self.across(self.norms[1](queries), memory, memory, need_weights=False)[0]
        done: Tensor = queries + self.perceptron(self.norms[2](queries))
        return done


class _Doubling(nn.Module):
    """Twice the resolution by PixelShuffle."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.spread, self.norm = nn.Conv2d(width, 4 * width, 3, padding=1), _norm(width)

    def forward(self, maps: Tensor) -> Tensor:
        """[B, W, 2 h, 2 w] of [B, W, h, w]."""
        doubled: Tensor = functional.gelu(self.norm(functional.pixel_shuffle(self.spread(maps), 2)))
        return doubled


def _at(maps: Tensor, of: Tensor) -> Tensor:
    """[A, ...] the maps [B, ...] of answers; an embedding adds up gradients in order, as an index would not."""
    return functional.embedding(of, maps.flatten(1)).unflatten(1, maps.shape[1:])


def _stem(halvings: int, width: int) -> nn.Sequential:
    """Convolutions from pixels to the masks' cells, each of which halves the sides; the last has all channels."""
    channels = [3, *(max(8, width // 2 ** (halvings - k)) for k in range(1, halvings + 1))]
    layers: list[nn.Module] = []
    for before, after in pairwise(channels):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), _norm(after), nn.GELU()]
    if not layers:  # the masks have the resolution of the image
        layers = [nn.Conv2d(3, width, 3, padding=1), _norm(width), nn.GELU()]
    return nn.Sequential(*layers)


def _weights(layer: Tensor | nn.Module) -> int:
    """Numbers that a layer multiplies each place of its output's map by, its bias left out."""
    assert isinstance(layer, nn.Module)
    return max(each.numel() for each in layer.parameters())


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(gcd(width, 32) if width > 32 else 1, width)
