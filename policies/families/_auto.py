"""What families have in common whose folders transformers reads by itself, and whose layers are those that the common
decoder knows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoConfig, AutoTokenizer

from policies.checkpoint import Checkpoint
from policies.families.base import PromptRows
from policies.sharing.attention import Heads
from policies.sharing.decoder import Decoder, lay_out
from policies.sharing.prompt_cache import stacked


class AutoFamily:
    """Part of a Family."""

    takes_code = False
    image_text: tuple[str, str] | None = None
    layer_kinds: tuple[str, ...] = ("full_attention",)
    caps = False
    whole_prompts = False

    def config(self, checkpoint: Checkpoint) -> Any:
        """Family.config."""
        return AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=False)

    def tokenizer(self, checkpoint: Checkpoint) -> Any:
        """Family.tokenizer."""
        return AutoTokenizer.from_pretrained(checkpoint.folder, trust_remote_code=False)

    def language_model(self, model: Any) -> Any:
        """Family.language_model."""
        return model.model.language_model

    def heads(self, model: Any) -> Heads:
        """Family.heads."""
        text, layer = model.config.get_text_config(), self.language_model(model).layers[0]
        queries_per_key = int(text.num_attention_heads // text.num_key_value_heads)
        return Heads(queries_per_key, int(layer.self_attn.head_dim), model.dtype)

    def outputs(self, model: Any, **inputs: Any) -> Any:
        """Family.outputs: as transformers calls it."""
        return model.model(**inputs)

    def logit_cap(self, model: Any) -> float | None:
        """Family.logit_cap: none."""
        return None

    def together(self, model: Any, rows: PromptRows) -> Tensor | None:
        """Family.together: each sees those before it."""
        return None

    def lay_out(self, model: Any) -> None:
        """Family.lay_out: maps of one input side by side."""
        lay_out(self.language_model(model))

    def cached(self, layers: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """Family.cached: keys and values as they are."""
        return stacked(layers)

    def states(self, layers: Sequence[Any]) -> tuple[Tensor, Tensor] | None:
        """Family.states: none."""
        return None

    def decoder(self, model: Any) -> Any:
        """Family.decoder."""
        return Decoder(self.language_model(model))

    def save_weights(self, model: Any, folder: Path, weights: Mapping[str, Tensor] | None) -> None:
        """Family.save_weights: under the names that they were read by."""
        model.save_pretrained(folder, state_dict=None if weights is None else dict(weights))
