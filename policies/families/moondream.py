"""Policy over Moondream 3: answers of words, and of coordinates and sizes that heads of their own choose.

What differs from the other families: heads beside the vocabulary, whose log-probabilities add to that of the token that
calls them (policies/choices.py); a prompt whose beginning and image all see each other; experts. Rows, packing, shared
prompts and everything behind them are the same.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from envs.codecs.base import AnswerCodec
from policies import choices
from policies.checkpoint import Checkpoint
from policies.choices import NO_BIN
from policies.families import vision_language
from policies.families._moondream import Moondream
from policies.families.base import PromptRows
from policies.moondream.config import MODEL_TYPE
from policies.moondream.decode import MoondreamDecoder
from policies.moondream.processor import MoondreamProcessor
from policies.settings import AS_IT_IS, Asking
from policies.sharing import attention as shared_attention
from policies.sharing.packing import PackedRows
from policies.sharing.prompt_cache import PromptCache
from policies.sharing.scoring_head import Scoring, scores


class Policy(vision_language.Policy):
    """Moondream 3 and its Processor."""

    @classmethod
    def make_processor(cls, checkpoint: Path, codec: AnswerCodec, asking: Asking = AS_IT_IS) -> MoondreamProcessor:
        """The processor of a folder, without its weights.

        Raises FileNotFoundError or ValueError where the folder is none that can be loaded, is another model, or cannot
        be asked so.
        """
        held = Checkpoint(checkpoint)
        if held.model_type != MODEL_TYPE:
            raise ValueError(
                f"policy.name is moondream, and {held.folder} is a {held.model_type or 'nameless'} model; set "
                "policy.name to vision_language, or give a folder of Moondream 3."
            )
        held.refuse_foreign(written_here=Moondream.takes_code)
        held.refuse_incomplete(image_processor=False)
        return MoondreamProcessor(held, Moondream(), codec, asking)

    def _region_states(self, states: Tensor) -> Tensor:
        """What coordinate and size heads read of the last layer's states."""
        text, region = self.model.model.text, self.model.config.region
        return states if region.state == "before" else text.post_ln(states)

    # Learning.

    def _last_states(self, rows: PromptRows, packed: PackedRows, positions: Tensor) -> Tensor:
        states: Tensor = self.model.model(
            input_ids=packed.tokens,
            bins=packed.bins,
            position_ids=positions,
            **shared_attention.inputs(packed, self._heads),
            **self.processor.family.image_inputs(rows),
        ).last_hidden_state
        return states

    def _together(self, rows: PromptRows) -> Tensor:
        """[B, P] bool: the beginning and the image, which all see each other."""
        places = rows.prompt_mask.cumsum(1)
        return rows.prompt_mask & (places <= 1 + self.processor.image_processor.grid**2)

    def _scores(self, states: Tensor, packed: PackedRows, scoring: Scoring, number_spread: float) -> Tensor:
        text, bins = self.model.model.text, packed.target_bins
        assert bins is not None
        of_tokens = scores(text.lm_head, text.post_ln(states), scoring)
        chosen = [(bins[:, head] != NO_BIN).nonzero(as_tuple=True)[0] for head in range(bins.shape[1])]
        logits = self.model.model.region.logits(self._region_states(states), chosen)
        return choices.added(of_tokens, bins, logits, scoring.temperature, number_spread)

    # Sampling.

    def _prompt_layers(self, rows: PromptRows, positions: Tensor) -> Sequence[Any]:
        assert rows.prompt_bins is not None
        layers: Sequence[Any] = self.model.model(
            input_ids=rows.prompt_tokens[:, :-1],
            bins=rows.prompt_bins[:, :-1],
            position_ids=positions[:, :-1],
            **shared_attention.prompt_inputs(rows.prompt_mask[:, :-1], self._heads, self._together(rows)[:, :-1]),
            **self.processor.family.image_inputs(rows),
            use_cache=True,
        ).past_key_values
        return layers

    @torch.no_grad()
    def decode(
        self,
        cache: PromptCache,
        tokens: Tensor,
        temperature: float,
        allowed: Tensor | None = None,
        bins: Tensor | None = None,
    ) -> Tensor:
        """Log-probabilities [R*C, V] of the token after `tokens` [R, C] with their `bins`; the cache grows."""
        if bins is None:
            bins = tokens.new_full((*tokens.shape, len(self.processor.heads)), NO_BIN)
        self._routers.watch()
        states = self._decoder(cache).next_states(cache, tokens, bins)
        return self._token_logprobs(self.model.model.text.post_ln(states), temperature, allowed)

    @torch.no_grad()
    def bin_logprobs(self, cache: PromptCache, temperature: float) -> Sequence[Tensor]:
        """Log-probabilities [R*C, K] of each head's bins at the place that `decode` was just asked about."""
        states = self._decoder(cache).states
        assert states is not None, "decode comes first"
        logits = self.model.model.region.logits(self._region_states(states))
        return [torch.log_softmax(each.float() / temperature, dim=-1) for each in logits]

    def _decoder(self, cache: PromptCache) -> MoondreamDecoder:
        if cache.decoder is None:
            cache.decoder = self.processor.family.decoder(self.model)
        assert isinstance(cache.decoder, MoondreamDecoder)
        return cache.decoder
