"""Policy that writes the numbers of candidate masks one after the other: the rival of mask_selection.

After the ablation of RAS (arXiv 2506.05342), in which the same backbone, given the same mask tokens, writes the indices
of those that belong to the answer as text. Here

    image, words, prefix, 0 <mask> 1 <mask> ..., what opens an answer | 0 3 <end>

in order, each mask behind its number, in one prompt (policies/selection/numbers.py). To a mask's token is added the
embedding of the token before it, the last of its number: a small model learns to copy from there what it is to write.
What is written is free: any token that the checkpoint can sample, so that an answer may be unreadable, say a number
twice, or one that no candidate has.
Sampling, learning and shared prompts are those of the policy `vision_language`. Letters: B rows, P prompt tokens, N
candidates.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from envs.codecs.base import AnswerCodec
from policies.checkpoint import Checkpoint
from policies.families import _mask_tokens
from policies.families._mask_tokens import embedded, family_with_places
from policies.families.base import PromptRows
from policies.selection.numbers import NumbersProcessor
from policies.settings import AS_IT_IS, Asking, LoraSettings


class Policy(_mask_tokens.Policy):
    """A vision-language model, MaskTokens and their Processor."""

    def __init__(
        self,
        checkpoint: Path,
        codec: AnswerCodec,
        question: str = "{phrase}",
        dtype: str = "float32",
        logit_bytes: int = 2**28,
        weights: bool = True,
        lora: LoraSettings | None = None,
        system: str | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        template_arguments: dict[str, Any] | None = None,
        encoders: list[str] | None = None,
    ) -> None:
        """Load a Hugging Face folder of LLaVA-1.5 or the Qwen families, with what makes mask tokens from
        selection.safetensors, or new.

        encoders, lora: as mask_selection has them; the other settings are those of the policy `vision_language`. Raises
        as that does, ValueError for another family, and FileNotFoundError or ValueError for what is no encoder.
        """
        super().__init__(
            checkpoint,
            codec,
            encoders,
            question=question,
            dtype=dtype,
            logit_bytes=logit_bytes,
            weights=weights,
            lora=lora,
            system=system,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
            template_arguments=template_arguments,
        )

    @classmethod
    def make_processor(cls, checkpoint: Path, codec: AnswerCodec, asking: Asking = AS_IT_IS) -> NumbersProcessor:
        """The processor of a folder, without its weights; raises as that of `vision_language`, and for families whose
        features are not known here to lie where their pixels are."""
        held = Checkpoint(checkpoint)
        return NumbersProcessor(held, family_with_places(held, "mask_numbers"), codec, asking)

    @contextmanager
    def _shown(self, rows: PromptRows) -> Iterator[dict[str, Any]]:
        """What the model is called with; meanwhile prefix and mask tokens stand at their places of the prompt."""
        assert rows.regions is not None and rows.regions.behind is not None, "rows of NumbersProcessor have regions"
        images, features = self.seen_images(rows)
        tokens = self.mask_tokens(rows, features, rows.regions.shares)
        prefix = self.model.selection.opening().expand(len(tokens), 1, -1)
        there = functional.pad(rows.regions.mask, (1, 0), value=True)
        row = torch.arange(len(tokens), device=there.device)[:, None].expand_as(there)
        place: Tensor = rows.prompt_tokens.shape[1] - 1 - rows.regions.behind
        embedding = self.model.get_input_embeddings()
        numbers = embedding(rows.prompt_tokens.gather(1, (place[:, 1:] - 1).clamp(min=0)))
        listed = torch.cat([prefix, tokens + numbers], dim=1)
        with embedded(embedding, listed[there], row[there], place[there]):
            yield {"mm_encoder_outputs": {"image": images}}
