"""Sizes of Moondream 3, and the points in which its public sources differ, as a config of transformers.

The defaults are those of the released model (9 billion parameters, of which a token uses 2). A config.json may name
others under `config`, by part, as the released code takes them. Facts: m87-labs/kestrel, vikhyat/moondream, vLLM
(moondream3).
"""

from collections.abc import Iterator
from typing import Any

from transformers import AutoConfig, PretrainedConfig

MODEL_TYPE = "moondream3"
NORMS = ("before", "after")
GELUS = ("tanh", "none")


class MoondreamTextConfig(PretrainedConfig):
    """The language model."""

    model_type = "moondream3_text"

    def __init__(self, **values: Any) -> None:
        """Takes sizes by the names below."""
        self.dim: int = values.pop("dim", 2048)
        self.ff_dim: int = values.pop("ff_dim", 8192)
        """Inner width of layers without experts."""
        self.n_layers: int = values.pop("n_layers", 24)
        self.n_heads: int = values.pop("n_heads", 32)
        self.vocab_size: int = values.pop("vocab_size", 51200)
        self.max_position_embeddings: int = values.pop("max_context", values.pop("max_position_embeddings", 32768))
        self.rope_theta: float = values.pop("rope_theta", 1.5e6)
        self.prefix_attn: int = values.pop("prefix_attn", 730)
        """The first tokens of a prompt, which all see each other: that of the beginning, and the image's."""
        moe: dict[str, Any] = values.pop("moe", None) or {}
        self.moe = {"num_experts": 64, "start_layer": 4, "experts_per_token": 8, "expert_inner_dim": 1024} | moe
        self.tau_gelu: str = values.pop("tau_gelu", "tanh")
        """The GELU in the attention's temperature: kestrel's is the approximation by `tanh`, vLLM's is exact (none)."""
        # As other configs name them; of a layer with experts, those that a token uses.
        self.hidden_size, self.num_hidden_layers, self.num_attention_heads = self.dim, self.n_layers, self.n_heads
        self.intermediate_size = self.moe["experts_per_token"] * self.moe["expert_inner_dim"]
        super().__init__(**values)


class MoondreamVisionConfig(PretrainedConfig):
    """The vision tower, and how an image is cut for it."""

    model_type = "moondream3_vision"

    def __init__(self, **values: Any) -> None:
        """Takes sizes by the names below."""
        self.enc_dim: int = values.pop("enc_dim", 1152)
        self.enc_ff_dim: int = values.pop("enc_ff_dim", 4304)
        self.enc_n_layers: int = values.pop("enc_n_layers", 27)
        self.enc_n_heads: int = values.pop("enc_n_heads", 16)
        self.enc_patch_size: int = values.pop("enc_patch_size", 14)
        self.crop_size: int = values.pop("crop_size", 378)
        """Side of a crop, pixels."""
        self.max_crops: int = values.pop("max_crops", 12)
        """Most crops of an image, beside the whole of it in one."""
        self.overlap_margin: int = values.pop("overlap_margin", 4)
        """Patches at each side of a crop that its neighbours see too."""
        self.proj_inner_dim: int = values.pop("proj_inner_dim", 8192)
        # As other configs name them.
        self.hidden_size, self.intermediate_size = self.enc_dim, self.enc_ff_dim
        self.num_hidden_layers, self.num_attention_heads = self.enc_n_layers, self.enc_n_heads
        self.patch_size = self.enc_patch_size
        super().__init__(**values)

    @property
    def grid(self) -> int:
        """Patches of a side of a crop."""
        return self.crop_size // self.enc_patch_size


class MoondreamRegionConfig(PretrainedConfig):
    """The heads and encoders of coordinates and sizes."""

    model_type = "moondream3_region"

    def __init__(self, **values: Any) -> None:
        """Takes sizes by the names below."""
        self.coord_feat_dim: int = values.pop("coord_feat_dim", 256)
        self.coord_out_dim: int = values.pop("coord_out_dim", 1024)
        """Bins of a coordinate."""
        self.size_feat_dim: int = values.pop("size_feat_dim", 512)
        self.size_out_dim: int = values.pop("size_out_dim", 2048)
        """Bins of a width and of a height together."""
        self.state: str = values.pop("state", "before")
        """Whether the heads read the last layer's output `before` the final norm (kestrel) or `after` it (vLLM)."""
        self.last_bin_is_one: bool = values.pop("last_bin_is_one", True)
        """Whether bin k of K says k / (K - 1), as kestrel reads coordinates; False: k / K, as vLLM does."""
        super().__init__(**values)


_MADE = ("text", "vision", "region", "bos_id", "eos_id", "coord_id", "size_id", "segment")
"""Attributes that are made of `config`."""


class MoondreamConfig(PretrainedConfig):
    """All of it, and the tokens that steer it."""

    model_type = MODEL_TYPE
    sub_configs = {  # noqa: RUF012 - as transformers declares it
        "text": MoondreamTextConfig,
        "vision": MoondreamVisionConfig,
        "region": MoondreamRegionConfig,
    }

    def __init__(self, config: dict[str, Any] | None = None, **values: Any) -> None:
        """config: sizes by part (`text`, `vision`, `region`, `tokenizer`); what it leaves out is as released.

        Raises ValueError for settings that mean nothing.
        """
        parts = config or {}
        self.config = {name: part for name, part in parts.items() if part}
        """The parts as they were given, which is what a folder says again."""
        self.text = MoondreamTextConfig(**dict(parts.get("text") or {}))
        self.vision = MoondreamVisionConfig(**dict(parts.get("vision") or {}))
        self.region = MoondreamRegionConfig(**dict(parts.get("region") or {}))
        tokens = dict(parts.get("tokenizer") or {})
        self.bos_id: int = tokens.get("bos_id", 0)
        self.eos_id: int = tokens.get("eos_id", 0)
        self.coord_id: int = tokens.get("coord_id", 5)
        """Stands where the coordinate head chooses."""
        self.size_id: int = tokens.get("size_id", 6)
        """Stands where the two size heads choose."""
        segment = (tokens.get("templates") or {}).get("segment") or {"prefix": [1, 17374, 2], "suffix": [3]}
        self.segment: dict[str, list[int]] = segment
        """Tokens before and behind what is asked for."""
        values.setdefault("tie_word_embeddings", False)
        super().__init__(**{name: value for name, value in values.items() if name not in _MADE})
        self._refuse_unknown()

    def to_dict(self) -> dict[str, Any]:
        """What a folder's config.json holds: the parts as they were given, not what is made of them."""
        return {name: value for name, value in super().to_dict().items() if name not in _MADE}

    @property
    def vision_config(self) -> MoondreamVisionConfig:
        """The vision tower's part, as other configs name it."""
        return self.vision

    def get_text_config(self, *_: Any, **__: Any) -> MoondreamTextConfig:
        """The language model's part."""
        return self.text

    def _refuse_unknown(self) -> None:
        for name, given, known in (
            ("region.state", self.region.state, NORMS),
            ("text.tau_gelu", self.text.tau_gelu, GELUS),
        ):
            if given not in known:
                raise ValueError(f"config.{name} is {given!r}; it must be {' or '.join(known)}.")
        for name, number, least in self._sizes():
            if not isinstance(number, int) or isinstance(number, bool) or number < least:
                raise ValueError(f"config.{name} is {number!r}; it must be a whole number, {least} or more.")
        self._refuse_unfit()

    def _sizes(self) -> Iterator[tuple[str, Any, int]]:
        """Each whole number by its name, with the least that it may be."""
        for part, values, names in (
            ("text", self.text, ("dim", "ff_dim", "n_layers", "n_heads", "vocab_size", "max_position_embeddings")),
            ("vision", self.vision, ("enc_dim", "enc_ff_dim", "enc_n_layers", "enc_n_heads", "enc_patch_size")),
            ("vision", self.vision, ("crop_size", "max_crops", "proj_inner_dim")),
            ("region", self.region, ("coord_feat_dim", "coord_out_dim", "size_feat_dim", "size_out_dim")),
        ):
            yield from ((f"{part}.{name}", vars(values)[name], 1) for name in names)
        yield from (
            ("vision.overlap_margin", self.vision.overlap_margin, 0),
            ("text.prefix_attn", self.text.prefix_attn, 1),
        )
        for name, number in self.text.moe.items():
            yield f"text.moe.{name}", number, 0 if name == "start_layer" else 1
        yield from ((f"tokenizer.{n}", vars(self)[n], 0) for n in ("bos_id", "eos_id", "coord_id", "size_id"))

    def _refuse_unfit(self) -> None:
        """Raise ValueError for numbers that do not go together."""
        for fits, what in (*self._of_text(), *self._of_images()):
            if not fits:
                raise ValueError(f"config: {what}; copy config.json of this very model.")

    def _of_text(self) -> Iterator[tuple[bool, str]]:
        """Whether numbers of the language model and the heads go together, and what is wrong where not."""
        text, region, ids = self.text, self.region, (self.bos_id, self.eos_id, self.coord_id, self.size_id)
        each, experts = text.moe["experts_per_token"], text.moe["num_experts"]
        odd = any(size % 2 for size in (region.coord_feat_dim, region.size_feat_dim, region.size_out_dim))
        yield text.dim % (4 * text.n_heads) == 0, f"text.dim {text.dim} is no multiple of 4 x n_heads {text.n_heads}"
        yield each <= experts, f"text.moe has {each} experts a token, of {experts}"
        yield not odd, "region.coord_feat_dim, size_feat_dim or size_out_dim is odd"
        yield text.rope_theta > 0, f"text.rope_theta is {text.rope_theta}"
        yield max(ids) < text.vocab_size and len(set(ids[1:])) == 3, f"tokenizer has the ids {ids}"

    def _of_images(self) -> Iterator[tuple[bool, str]]:
        """Likewise of the vision tower."""
        vision, size = self.vision, self.vision.enc_patch_size
        yield vision.enc_dim % vision.enc_n_heads == 0, f"vision.enc_dim {vision.enc_dim} is no multiple of enc_n_heads"
        yield (
            vision.crop_size % size == 0 and vision.grid > 2 * vision.overlap_margin,
            f"vision.crop_size {vision.crop_size} is not whole patches of {size} pixels, more of them than two margins "
            f"of {vision.overlap_margin}",
        )
        seen = 1 + vision.grid**2
        yield (
            self.text.prefix_attn == seen,
            f"text.prefix_attn is {self.text.prefix_attn}, and beginning and image are {seen} tokens",
        )


AutoConfig.register(MODEL_TYPE, MoondreamConfig)
