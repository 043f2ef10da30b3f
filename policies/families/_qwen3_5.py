"""Qwen3.5, in whose language model three layers of four hold a state in place of keys and values.

Images, prompts and positions are those of Qwen3-VL, its tower without the early features. What follows a prompt forks
its states (policies/sharing/forked.py). Facts: transformers' classes (qwen3_5).
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3_5ForConditionalGeneration
from transformers.cache_utils import LinearAttentionLayer

from policies.checkpoint import Checkpoint
from policies.families._qwen import Qwen3VL
from policies.sharing.attention import Heads
from policies.sharing.forked import LINEAR, ForkedDecoder, replace_delta_nets, states_behind
from policies.sharing.prompt_cache import stacked


class Qwen3_5(Qwen3VL):
    """Qwen3.5 of one kind of feed-forward part; those of experts are another family."""

    title = "Qwen3.5"
    texts: tuple[str, ...] = ("qwen3_5_text",)
    layer_kinds: tuple[str, ...] = ("full_attention", LINEAR)

    def config(self, checkpoint: Checkpoint) -> Any:
        """Family.config; ValueError for a language model whose layers are all of one kind."""
        config = super().config(checkpoint)
        kinds = set(config.get_text_config().layer_types or ())
        if kinds < set(self.layer_kinds):
            raise ValueError(
                f"text_config.layer_types of {checkpoint.folder}/config.json has layers of {', '.join(kinds) or 'no'} "
                f"kind alone, and {self.title} has {' and '.join(self.layer_kinds)}; copy config.json of this very "
                "model."
            )
        return config

    def tokenizer(self, checkpoint: Checkpoint) -> Any:
        """Family.tokenizer: as tokenizer.json says it, which transformers' own class of the family writes anew."""
        if (checkpoint.folder / "tokenizer.json").is_file():
            return PreTrainedTokenizerFast.from_pretrained(checkpoint.folder)
        return super().tokenizer(checkpoint)

    def network(self, checkpoint: Checkpoint, **loading: Any) -> Any:
        """Family.network."""
        return Qwen3_5ForConditionalGeneration.from_pretrained(checkpoint.folder, **loading)

    def prepare(self, model: Any) -> None:
        """Family.prepare: its layers of states fork."""
        super().prepare(model)
        replace_delta_nets(self.language_model(model))

    def heads(self, model: Any) -> Heads:
        """Family.heads: of the layers that attend."""
        text = model.config.get_text_config()
        queries_per_key = int(text.num_attention_heads // text.num_key_value_heads)
        return Heads(queries_per_key, int(text.head_dim), model.dtype, forked=True)

    def lay_out(self, model: Any) -> None:
        """Family.lay_out: as the weights lie."""

    def cached(self, layers: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """Family.cached: of the layers that attend."""
        return stacked([layer for layer in layers if not isinstance(layer, LinearAttentionLayer)])

    def states(self, layers: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """Family.states: of the others."""
        return states_behind([layer for layer in layers if isinstance(layer, LinearAttentionLayer)])

    def decoder(self, model: Any) -> ForkedDecoder:
        """Family.decoder."""
        return ForkedDecoder(self.language_model(model))
