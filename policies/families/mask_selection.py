"""Policy that chooses among candidate masks in one pass: each is a token behind the question, and is in or out.

After RAS (arXiv 2506.05342), which comes in two orders here:

    free     image, words, prefix, candidates: these see what stands before and each other, and have one position, so
             that the answer does not depend on the order in which they are given
    causal   image, words, prefix, candidates, and the candidates again, all in order; RAS's own

A mask that a question refers to ("the same as <mask>") stands among the words, where it is named: a prefix of its own,
and a token that the candidates' projector makes.

The log-probability of an answer is the sum over its candidates, so that any number of answers comes from one pass.
Letters: B rows, G answers, P prompt tokens, N candidates, R references.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from envs.codecs.base import AnswerCodec
from envs.example import Question
from policies.checkpoint import Checkpoint
from policies.families import _mask_tokens
from policies.families._mask_tokens import family_with_places
from policies.families.base import PromptRows
from policies.selection.head import SelectionHead
from policies.selection.processor import SelectionProcessor
from policies.selection.regions import Regions
from policies.settings import AS_IT_IS, Asking, LoraSettings
from policies.sharing import attention as shared_attention

ORDERS = ("free", "causal")


class Policy(_mask_tokens.Policy):
    """A vision-language model, a SelectionHead and their Processor."""

    head = SelectionHead

    def __init__(
        self,
        checkpoint: Path,
        codec: AnswerCodec,
        question: str = "{phrase}",
        order: str = "free",
        dtype: str = "float32",
        weights: bool = True,
        lora: LoraSettings | None = None,
        system: str | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        template_arguments: dict[str, Any] | None = None,
        encoders: list[str] | None = None,
    ) -> None:
        """Load a Hugging Face folder of LLaVA-1.5 or the Qwen families, with what chooses from selection.safetensors,
        or new.

        order: `free` or `causal`, above; encoders: folders of further, frozen vision encoders whose features tell of a
        mask too, null for those that the folder was trained with; lora: adapters, beside which projector, prefixes and
        classifier learn whole; the others as the policy `vision_language` has them. Raises as that does, ValueError for
        another order or family, and FileNotFoundError or ValueError for what is no encoder.
        """
        if order not in ORDERS:
            raise ValueError(f"policy.order is {order!r}; it must be one of {', '.join(ORDERS)}.")
        super().__init__(
            checkpoint,
            codec,
            encoders,
            question=question,
            dtype=dtype,
            weights=weights,
            lora=lora,
            system=system,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
            template_arguments=template_arguments,
        )
        self._order = order

    @classmethod
    def make_processor(cls, checkpoint: Path, codec: AnswerCodec, asking: Asking = AS_IT_IS) -> SelectionProcessor:
        """The processor of a folder, without its weights; raises as that of `vision_language`, and for families whose
        features are not known here to lie where their pixels are."""
        held = Checkpoint(checkpoint)
        return SelectionProcessor(held, family_with_places(held, "mask_selection"), codec, asking)

    def forward(
        self,
        rows: PromptRows,
        temperature: float = 1.0,
        grammar_tokens: int | None = None,
        number_spread: float = 0.0,
    ) -> Tensor:
        """[B, G, N] float32 log-probabilities of choices, 0 outside scored_mask."""
        logits = self._logits(rows)[:, None] / temperature
        chosen = torch.where(rows.response_tokens == 1, logits, -logits)
        return functional.logsigmoid(chosen).masked_fill(~rows.scored_mask, 0.0)

    def unanswered(self, questions: Sequence[Question]) -> PromptRows:
        """Rows of B questions to be answered, on the CPU; ValueError for one without candidates."""
        assert isinstance(self.processor, SelectionProcessor)
        return self.processor.unanswered(questions)

    @torch.no_grad()
    def place_logprobs(self, rows: PromptRows, temperature: float) -> tuple[Tensor, Tensor]:
        """[B, N, 2] log-probabilities of out and in at each candidate, and [B] how many there are."""
        assert rows.regions is not None
        logits = self._logits(rows) / temperature
        both = functional.logsigmoid(torch.stack([-logits, logits], dim=-1))
        return both, rows.regions.mask.sum(1)

    def _logits(self, rows: PromptRows) -> Tensor:
        """[B, N] float32 of each candidate, how much likelier it is in than out."""
        assert rows.regions is not None, "rows of SelectionProcessor have regions"
        images, features = self.seen_images(rows)
        references, tokens = self._region_tokens(rows, features)
        layout = _Layout(rows.prompt_mask, rows.regions, self._order)
        positions, following = self.processor.family.positions(self.model, rows)
        prefix, of_references = self.model.selection.openings()
        behind = layout.embeddings(prefix, tokens)

        def told(prompts: Tensor) -> Tensor:
            placed = prompts
            if rows.references is not None:
                placed = rows.references.placed(prompts, of_references, references)
            return torch.cat([placed, behind.to(placed.dtype)], dim=1)

        with _told(self.model.get_input_embeddings(), layout.added, told):
            states = self.model.model(
                input_ids=functional.pad(rows.prompt_tokens, (0, layout.added), value=self.processor.end_token),
                attention_mask=shared_attention.bias(layout.attends(), self.model.dtype),
                position_ids=layout.positions(positions, following),
                mm_encoder_outputs={"image": images},
                use_cache=False,
            ).last_hidden_state
        logits: Tensor = self.model.selection.logits(states[:, -tokens.shape[1] :])
        return logits

    def _region_tokens(self, rows: PromptRows, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """[B, R, width] and [B, N, width] the tokens of references and candidates; features: [C, h, w] of each
        image."""
        assert rows.regions is not None
        shown, first = rows.regions.shares, 0
        if rows.references is not None:  # through the projector at once: it is called as often whatever rows hold
            first = rows.references.ends.shape[1]
            shown = torch.cat([rows.references.regions.shares, shown], dim=1)
        tokens = self.mask_tokens(rows, features, shown)
        return tokens[:, :first], tokens[:, first:]


class _Layout:
    """Where candidates stand behind their prompts, and who sees whom."""

    def __init__(self, prompt_mask: Tensor, regions: Regions, order: str) -> None:
        self._prompts, self._there, self._free = prompt_mask, regions.mask, order == "free"
        self._times = 1 if self._free else 2

    @property
    def added(self) -> int:
        """Tokens behind a prompt: a prefix, and the candidates once or twice."""
        return 1 + self._times * self._there.shape[1]

    def embeddings(self, prefix: Tensor, tokens: Tensor) -> Tensor:
        """[B, added, width] of a prefix [width] and candidates' tokens [B, N, width]."""
        return torch.cat([prefix.expand(len(tokens), 1, -1), *[tokens] * self._times], dim=1)

    def attends(self) -> Tensor:
        """[B, 1, L, L] bool: query may see key; everybody itself."""
        exists = functional.pad(torch.cat([self._there] * self._times, dim=1), (1, 0), value=True)
        exists = torch.cat([self._prompts, exists], dim=1)
        length, n = exists.shape[1], self._there.shape[1]
        order = torch.ones(length, length, dtype=torch.bool, device=exists.device).tril()
        if self._free:
            order[-n:, -n:] = True
        itself = torch.eye(length, dtype=torch.bool, device=exists.device)
        return ((order & exists[:, None, :]) | itself)[:, None]

    def positions(self, prompts: Tensor, following: Tensor) -> Tensor:
        """[..., B, L] of prompts [..., B, P] and of what follows at [B]: in order, or all candidates at one place."""
        steps = torch.arange(self.added, device=following.device).expand(len(following), -1)
        if self._free:
            steps = steps.clamp(max=1)
        else:  # what pads the first candidates takes no position
            n, counts = self._there.shape[1], self._there.sum(1, keepdim=True)
            steps = torch.where(steps > n, steps - n + counts, steps)
        behind = following[:, None] + steps
        return torch.cat([prompts, behind.expand(*prompts.shape[:-1], -1)], dim=-1)


@contextmanager
def _told(embedding: Any, added: int, told: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While it lasts, what an embedding gives is what `told` makes of it without its last `added` places."""

    def replaced(_module: Any, _inputs: Any, found: Tensor) -> Tensor:
        return told(found[:, :-added])

    hook = embedding.register_forward_hook(replaced)
    try:
        yield
    finally:
        hook.remove()
