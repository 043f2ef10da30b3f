"""Two families by the same file: a tiny Qwen3-VL and a tiny Qwen2.5-VL (grouped queries, windows, merged patches)."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from asking import ask, ask_all
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    Kimi_K25ForConditionalGeneration,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
    SiglipImageProcessorPil,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from envs.codecs.path_tokens import Codec
from envs.example import BoxPart, PointPart, Prompt, Question, TextPart
from envs.polygons import AnswerStatus
from policies.checkpoint import Checkpoint
from policies.families._kimi_vl import KimiVL
from policies.families._qwen import Qwen3VLMoe
from policies.families.base import PromptRows, Response, TaughtAnswer
from policies.families.vision_language import Policy
from policies.settings import Asking, TinySizes
from policies.sharing.prompt_cache import PromptCache
from policies.tiny_model import word_tokenizer, write_untrained
from rollout.engines.shared import sample
from rollout.settings import Sampling

MOE_SIZES = TinySizes(
    image_size=32, text_width=32, text_layers=2, text_heads=2, vision_width=16, vision_layers=2, vision_heads=2
)
PHRASES = ["dog", "the upper left banana"]
ANSWERS = [["1 2 30 40 0 0 5 5 0 5", "none", "3 4"], ["7 8 9", "none ; none ; M", "64 0 0 0 0 0 0"]]


def write_qwen2_5_vl(folder: Path, width: int = 32) -> None:
    tokenizer = word_tokenizer([*Codec().words, "the", "upper", "left", "banana", "dog"])
    token, sections = tokenizer.convert_tokens_to_ids, [width // 8, width // 16, width // 16]
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": sections},
    }
    vision = {
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_heads": 2,
        "patch_size": 4,
        "window_size": 16,
        "fullatt_block_indexes": [1],
        "out_hidden_size": width,
    }
    names = {"image": "image_pad", "video": "video_pad", "vision_start": "vision_start", "vision_end": "vision_end"}
    ids = {f"{key}_token_id": token(f"<|{name}|>") for key, name in names.items()}
    torch.manual_seed(1)
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids))
    with torch.no_grad():
        for parameter in model.parameters():
            # transformers' 0.02 would make every answer equally likely whatever the prompt.
            parameter.normal_(std=parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"shortest_edge": 16 * 16, "longest_edge": 96 * 96}
    Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, temporal_patch_size=2, size=size).save_pretrained(folder)


def write_qwen3_vl_moe(folder: Path) -> None:
    """A Qwen3-VL of two layers of four experts, two a token; its experts lie as in published files."""
    write_untrained(folder, [*Codec().words, "the", "upper", "left", "banana", "dog"], MOE_SIZES, seed=0)
    plain = Qwen3VLConfig.from_pretrained(folder)
    text = plain.text_config.to_dict() | {"model_type": "qwen3_vl_moe_text", "num_experts": 4, "num_experts_per_tok": 2}
    text |= {"moe_intermediate_size": 24, "decoder_sparse_step": 1, "mlp_only_layers": []}
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    ids = {name: vars(plain)[name] for name in names}
    vision = plain.vision_config.to_dict() | {"model_type": "qwen3_vl_moe_vision"}
    torch.manual_seed(1)
    config = Qwen3VLMoeConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **ids)
    model = Qwen3VLMoeForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.5)
    config.save_pretrained(folder)
    Qwen3VLMoe().save_weights(model, folder, None)


def write_llava(folder: Path, words: Sequence[str] = ("the", "upper", "left", "banana", "dog")) -> None:
    """A CLIP tower of 32 px in patches of 8 and a Llama, three queries a key head; prompts begin with a token."""
    tokenizer = word_tokenizer([*Codec().words, *words])
    tokenizer.bos_token = "<|vision_start|>"
    tokenizer.chat_template = (
        "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<|image_pad|>"
        "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}<|answer|>"
    )
    text = {"vocab_size": len(tokenizer), "hidden_size": 48, "intermediate_size": 48, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 1024}
    text |= {"bos_token_id": 3, "eos_token_id": 1, "pad_token_id": 0}
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
    vision |= {"patch_size": 8, "image_size": 32}
    torch.manual_seed(1)
    token = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**vision),
        text_config=LlamaConfig(**text),
        image_token_index=token,
        image_seq_length=16,
    )
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    side = {"height": 32, "width": 32}
    LlavaImageProcessorPil(crop_size=side, size={"shortest_edge": 32}).save_pretrained(folder)


def write_internvl(folder: Path, text_type: str = "qwen2", **vision: object) -> None:
    """A ViT of tiles of 32 px in patches of 4, and a Qwen2; marks around an image that its template leaves out."""
    tokenizer = word_tokenizer([*Codec().words, "the", "upper", "left", "banana", "dog"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<img>", "</img>"]}, replace_extra_special_tokens=False)
    tokenizer.chat_template = (
        "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<|image_pad|>"
        "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}<|answer|>"
    )
    text = {"model_type": text_type, "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48}
    text |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    text |= {"max_position_embeddings": 1024, "bos_token_id": 3, "eos_token_id": 1, "pad_token_id": 0}
    tower = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    tower |= {"patch_size": [4, 4], "image_size": [32, 32]} | vision
    torch.manual_seed(1)
    config = InternVLConfig(
        vision_config=tower,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        image_seq_length=16,
        tie_word_embeddings=False,
    )
    model = InternVLForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    GotOcr2ImageProcessorPil(size={"height": 32, "width": 32}, max_patches=6).save_pretrained(folder)
    values = json.loads((folder / "config.json").read_text())
    del values["tie_word_embeddings"]  # as a folder may have it, and the class then ties
    (folder / "config.json").write_text(json.dumps(values))


def write_smolvlm(folder: Path, longest_edge: int = 32) -> None:
    """A SigLIP tower of tiles of 32 px in patches of 4, two by two a token, and a Llama; tokens between its tiles."""
    rows = [f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4)]
    special = ["<fake_token_around_image>", "<global-img>", *rows]
    tokenizer = word_tokenizer([*Codec().words, "the", "upper", "left", "banana", "dog"], special=special)
    tokenizer.chat_template = (
        "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<|image_pad|>"
        "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}<|answer|>"
    )
    text = {"model_type": "llama", "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48}
    text |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    text |= {"max_position_embeddings": 1024, "bos_token_id": 3, "eos_token_id": 1, "pad_token_id": 0}
    tower = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    tower |= {"patch_size": 4, "image_size": 32}
    torch.manual_seed(1)
    token = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    config = SmolVLMConfig(vision_config=tower, text_config=text, image_token_id=token, scale_factor=2, pad_token_id=0)
    model = SmolVLMForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    sizes = {"size": {"longest_edge": longest_edge}, "max_image_size": {"longest_edge": 32}}
    SmolVLMImageProcessorPil(**sizes).save_pretrained(folder)


def write_kimi_vl(folder: Path) -> None:
    """A tower of patches of 4 px, two by two a token, and layers of latent attention, two of three with experts; by the
    released names, with a tokenizer of words."""
    tokenizer = word_tokenizer([*Codec().words, "the", "upper", "left", "banana", "dog"])
    text = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 16}
    text |= {"num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 2, "n_shared_experts": 1}
    text |= {"n_routed_experts": 4, "num_experts_per_tok": 2, "first_k_dense_replace": 1, "q_lora_rank": None}
    text |= {"kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6, "rope_theta": 1e4}
    text |= {"n_group": 1, "topk_group": 1, "norm_topk_prob": True, "routed_scaling_factor": 2.446}
    text |= {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "max_position_embeddings": 1024}
    text |= {"eos_token_id": 1, "pad_token_id": 0, "bos_token_id": 3}
    tower = {"model_type": "moonvit", "patch_size": 4, "num_attention_heads": 2, "num_hidden_layers": 2}
    tower |= {"hidden_size": 16, "intermediate_size": 24, "init_pos_emb_height": 8, "init_pos_emb_width": 8}
    tower |= {"merge_kernel_size": [2, 2]}
    config = {"model_type": "kimi_vl", "architectures": ["KimiVLForConditionalGeneration"], "text_config": text}
    config |= {"vision_config": tower, "auto_map": {"AutoConfig": "configuration_kimi_vl.KimiVLConfig"}}
    config |= {"media_placeholder_token_id": tokenizer.convert_tokens_to_ids("<|image_pad|>")}
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(1)
    model = Kimi_K25ForConditionalGeneration(KimiVL().config(Checkpoint(folder)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.5)
        for layer in model.model.language_model.layers[1:]:
            layer.mlp.gate.e_score_correction_bias.normal_(std=0.2)
    KimiVL().save_weights(model, folder, None)
    tokenizer.chat_template = (
        "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<|image_pad|>"
        "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}<|answer|>"
    )
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"patch_size": 4, "in_token_limit": 4096}))


def write_gemma3(folder: Path) -> None:
    """A SigLIP tower of 32 px in patches of 4, pooled two by two, and four layers of which three see 9 tokens."""
    tokenizer = word_tokenizer([*Codec().words, "the", "upper", "left", "banana", "dog"])
    tokenizer.chat_template = (
        "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<|image_pad|>"
        "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}<|answer|>"
    )
    text = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "query_pre_attn_scalar": 8}
    text |= {"sliding_window": 9, "layer_types": ["sliding_attention"] * 2 + ["full_attention", "sliding_attention"]}
    text |= {"max_position_embeddings": 1024, "bos_token_id": 3, "eos_token_id": 1, "pad_token_id": 0}
    tower = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    tower |= {"patch_size": 4, "image_size": 32, "vision_use_head": False}
    torch.manual_seed(1)
    token = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    config = Gemma3Config(text_config=text, vision_config=tower, image_token_index=token, mm_tokens_per_image=16)
    model = Gemma3ForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Gemma3ImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)


def write_paligemma(folder: Path) -> None:
    """A SigLIP tower of 32 px in patches of 8, and four layers of which two see 9 tokens, with caps that bite."""
    tokenizer = word_tokenizer([*Codec().words, "the", "upper", "left", "banana", "dog"])
    tokenizer.chat_template = (
        "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<|image_pad|>"
        "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}<|answer|>"
    )
    text = {"model_type": "gemma2", "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48}
    text |= {"num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    text |= {"query_pre_attn_scalar": 8, "sliding_window": 9, "attn_logit_softcapping": 1.5}
    text |= {"final_logit_softcapping": 3.0, "max_position_embeddings": 1024}
    text |= {"bos_token_id": 3, "eos_token_id": 1, "pad_token_id": 0}
    tower = {"model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    tower |= {"num_attention_heads": 2, "patch_size": 8, "image_size": 32, "vision_use_head": False}
    torch.manual_seed(1)
    token = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    config = PaliGemmaConfig(text_config=text, vision_config=tower, image_token_index=token, projection_dim=32)
    model = PaliGemmaForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)


def write_qwen3_5(folder: Path) -> None:
    """Four layers of which every second attends, over a tower of 32 px and more in patches of 4."""
    tokenizer = word_tokenizer([*Codec().words, "the", "upper", "left", "banana", "dog"])
    tokenizer.chat_template = (
        "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<|vision_start|><|image_pad|>"
        "<|vision_end|>{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}<|answer|>"
    )
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "vision_start", "vision_end")}
    text = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 1024}
    text |= {"linear_key_head_dim": 8, "linear_value_head_dim": 12, "linear_num_key_heads": 2}
    text |= {"linear_num_value_heads": 4, "layer_types": ["linear_attention", "full_attention"] * 2}
    text |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}
    text["rope_parameters"] |= {"mrope_section": [2, 1, 1], "mrope_interleaved": True}
    vision = {"depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": 4}
    vision |= {"spatial_merge_size": 2, "out_hidden_size": 32, "num_position_embeddings": 64}
    torch.manual_seed(1)
    config = Qwen3_5Config(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["image_pad"],
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
    )
    model = Qwen3_5ForConditionalGeneration(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith("A_log"):
                parameter.normal_(std=parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, temporal_patch_size=2, size={"shortest_edge": 64, "longest_edge": 4096}
    ).save_pretrained(folder)


WRITTEN = {
    "gemma3": write_gemma3,
    "kimi_vl": write_kimi_vl,
    "qwen2_5_vl": write_qwen2_5_vl,
    "qwen3_vl_moe": write_qwen3_vl_moe,
    "llava": write_llava,
    "paligemma": write_paligemma,
    "qwen3_5": write_qwen3_5,
    "internvl": write_internvl,
    "smolvlm": write_smolvlm,
}


@pytest.fixture(scope="module", params=["qwen3_vl", *WRITTEN])
def policy(request: pytest.FixtureRequest, tiny_untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Policy:
    if request.param == "qwen3_vl":
        return Policy(tiny_untrained, Codec(), question="find {phrase}")
    folder = tmp_path_factory.mktemp(request.param)
    WRITTEN[request.param](folder)
    return Policy(folder, Codec(), question="find {phrase}")


def images(num: int, seed: int = 0, height: int = 32, width: int = 32) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, (num, height, width, 3), dtype=np.uint8))


def tokens_of(policy: Policy, texts: Sequence[Sequence[str]]) -> list[list[np.ndarray]]:
    return [[policy.processor.answer_tokens(text) for text in row] for row in texts]


def shared_rows(policy: Policy) -> PromptRows:
    """Two groups of three answers, every length different."""
    return policy.rows(ask_all(images(2), PHRASES), tokens_of(policy, ANSWERS))


def questions(policy: Policy, pictures: list[np.ndarray], phrases: Sequence[str]) -> PromptRows:
    """Rows to sample from; their one response is a placeholder."""
    return policy.rows(ask_all(pictures, phrases), [[np.array([policy.processor.end_token])]] * len(phrases))


def two_caches(policy: Policy, rows: PromptRows) -> list[PromptCache]:
    """Equal caches of the rows' prompts, with three answers each of up to eight tokens."""
    return [PromptCache(policy.encode(rows), 3, 8) for _ in range(2)]


def plain_logits(policy: Policy, image: np.ndarray, phrase: str, answer: np.ndarray) -> Tensor:
    """[T, V] by transformers' own forward pass over prompt and answer, nothing of ours but the prompt's tokens."""
    prompt = policy.processor.prompt_tokens(ask(image, phrase))
    ids = torch.from_numpy(np.concatenate([prompt, answer]))[None]
    image_tokens = (ids == policy.processor.image_token).int()
    kinds = {"mm_token_type_ids": image_tokens} if "Qwen" in policy.processor.family.title else {}
    if policy.processor.family.title == "Gemma 3":
        kinds = {"token_type_ids": image_tokens}
    if policy.processor.family.title == "PaliGemma 2":
        return paligemma_logits(policy, ids, len(prompt), image)[len(prompt) - 1 : -1]
    inputs = policy.processor.family.image_inputs(policy.rows([ask(image, phrase)], [[answer]]))
    logits = policy.model(input_ids=ids, **kinds, **inputs).logits[0]
    return logits[len(prompt) - 1 : -1]


def paligemma_logits(policy: Policy, ids: Tensor, prompt: int, image: np.ndarray) -> Tensor:
    """[L, V] by transformers' own class with its own attention, of the same weights."""
    config = policy.processor.config
    config._attn_implementation = "eager"
    plain = PaliGemmaForConditionalGeneration(config).eval()
    plain.load_state_dict(policy.model.state_dict())
    pixels, _ = policy.processor.patches([image])
    suffix = (torch.arange(ids.shape[1]) >= prompt).long()[None]
    return plain(input_ids=ids, pixel_values=pixels, token_type_ids=suffix).logits[0]


def tile_marks(policy: Policy) -> list[str]:
    """Tokens that say which tile of an image follows."""
    known = policy.processor.tokenizer.get_vocab()
    return [word for word in known if word.startswith(("<row_", "<fake_token", "<global-img"))]


def sampleable(policy: Policy, logits: Tensor) -> Tensor:
    """Logits with all special tokens but the end token at minus infinity, by a slow loop."""
    logits = logits.clone()
    for token in policy.processor.tokenizer.all_special_ids:
        if token != policy.processor.end_token:
            logits[..., token] = -torch.inf
    return logits


def gradients(policy: Policy, objective: Tensor) -> dict[str, Tensor]:
    policy.zero_grad()
    objective.backward()
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


def test_shared_row_equals_transformers_own_forward_an_answer_at_a_time(policy: Policy) -> None:
    rows = shared_rows(policy)
    logprobs = policy(rows)
    assert logprobs.shape == (2, 3, 11)
    assert logprobs.dtype == torch.float32
    assert (logprobs[~rows.response_mask] == 0).all()
    for b, image in enumerate(images(2)):
        for g, answer in enumerate(tokens_of(policy, ANSWERS)[b]):
            logits = sampleable(policy, plain_logits(policy, image, PHRASES[b], answer))
            expected = torch.log_softmax(logits, -1)[range(len(answer)), answer]
            torch.testing.assert_close(logprobs[b, g, : len(answer)], expected, atol=1e-5, rtol=0)


def test_gradients_repeat_to_the_bit_with_two_threads(policy: Policy) -> None:
    rng = np.random.default_rng(0)
    numbers = [policy.processor.answer_tokens(str(rng.integers(65))) for _ in range(1200)]
    rows = policy.rows(ask_all(images(1), PHRASES[:1]), [numbers])  # one place of the prompt predicts all first tokens
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        first, *others = [gradients(policy, policy(rows).sum()) for _ in range(8)]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(other[name], gradient) for other in others for name, gradient in first.items())


def test_gradients_of_a_shared_row_equal_those_of_a_row_an_answer(policy: Policy) -> None:
    weights = torch.randn(2, 3, 11, generator=torch.Generator().manual_seed(0))
    shared = gradients(policy, (policy(shared_rows(policy)) * weights).sum())
    alone = 0
    for b, image in enumerate(images(2)):
        for g, answer in enumerate(tokens_of(policy, ANSWERS)[b]):
            row = policy(policy.rows([ask(image, PHRASES[b])], [[answer]]))
            alone = alone + (row[0, 0] * weights[b, g, : len(answer)]).sum()
    separate = gradients(policy, alone)
    # LLaVA takes the tower's output before its last block, which so has no gradient.
    unused = ("vision_tower.encoder.layers.2", "post_layernorm") if policy.processor.family.title == "LLaVA-1.5" else ()
    unused += ("e_score_correction_bias",)  # of a router, which does not learn
    used = {name for name, _ in policy.named_parameters() if not any(part in name for part in unused)}
    assert shared.keys() == separate.keys() == used
    largest = max(gradient.norm() for gradient in separate.values())
    for name, gradient in separate.items():
        assert (shared[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-7 * largest, name


def test_image_and_phrase_move_the_log_probabilities_far_more_than_those_tolerances(policy: Policy) -> None:
    rows, answers = shared_rows(policy), tokens_of(policy, ANSWERS)
    other_image = policy.rows(ask_all(images(2, seed=1), PHRASES), answers)
    other_phrase = policy.rows(ask_all(images(2), PHRASES[::-1]), answers)
    for other in (other_image, other_phrase):
        assert (policy(rows) - policy(other)).abs().max() > 0.01


def test_padding_a_prompt_on_the_left_changes_nothing(policy: Policy) -> None:
    rows = shared_rows(policy)
    assert not rows.prompt_mask[0].all()
    alone = policy(policy.rows(ask_all(images(2)[:1], PHRASES[:1]), tokens_of(policy, ANSWERS)[:1]))
    torch.testing.assert_close(policy(rows)[:1, :, : alone.shape[2]], alone, atol=1e-5, rtol=0)


def test_images_of_different_sizes_share_a_batch(policy: Policy) -> None:
    if policy.model.config.model_type.startswith("qwen3_vl"):
        pytest.skip("the tiny Qwen3-VL sees all images at one size")
    mixed = [images(1)[0], images(1, height=48, width=24)[0]]
    rows = policy.rows(ask_all(mixed, PHRASES), tokens_of(policy, ANSWERS))
    grids = {"qwen2_5_vl": [[1, 8, 8], [1, 12, 6]], "llava": [[1, 1, 1], [1, 1, 1]]}
    grids["internvl"] = [[1, 1, 1], [3, 1, 1]]  # one tile; two, and both in one
    grids["smolvlm"] = [[1, 1, 1], [1, 1, 1]]
    grids["qwen3_5"] = grids["qwen2_5_vl"]
    grids["kimi_k25"] = [[1, 8, 8], [1, 12, 6]]
    grids["gemma3"] = grids["paligemma"] = [[1, 1, 1], [1, 1, 1]]
    assert rows.image_grid.tolist() == grids[policy.model.config.model_type]
    for b in range(2):
        alone = policy(
            policy.rows(ask_all(mixed[b : b + 1], PHRASES[b : b + 1]), tokens_of(policy, ANSWERS)[b : b + 1])
        )
        torch.testing.assert_close(policy(rows)[b : b + 1, :, : alone.shape[2]], alone, atol=1e-5, rtol=0)


def test_groups_of_rows_come_with_their_own_images(policy: Policy) -> None:
    if policy.model.config.model_type.startswith("qwen3_vl"):
        pytest.skip("the tiny Qwen3-VL sees all images at one size")
    mixed = [images(1)[0], images(1, height=48, width=24)[0], images(1, seed=2)[0]]
    rows = policy.rows(
        ask_all(mixed, [*PHRASES, "dog"]), [*tokens_of(policy, ANSWERS), [policy.processor.answer_tokens("none")]]
    )
    torch.testing.assert_close(policy(rows.groups(1, 3)), policy(rows)[1:], atol=1e-5, rtol=0)


def test_a_policy_without_weights_asks_and_reads_like_one_with_them(policy: Policy, tmp_path: Path) -> None:
    policy.save(tmp_path)
    hollow = Policy(tmp_path, Codec(), question="find {phrase}", weights=False)
    alone = Policy.make_processor(tmp_path, Codec(), Asking("find {phrase}"))
    assert {parameter.device.type for parameter in hollow.parameters()} == {"meta"}
    shapes, hollow_shapes = ({n: p.shape for n, p in each.model.named_parameters()} for each in (policy, hollow))
    assert shapes == hollow_shapes
    question = ask(images(1)[0], "dog")
    prompt = policy.processor.prompt_tokens(question)
    marks = policy.processor.tokenizer.convert_tokens_to_ids(tile_marks(policy))
    placeholder = ~np.isin(prompt, [hollow.processor.image_token, *marks])
    placeholder[np.flatnonzero(prompt == hollow.processor.image_token)[0]] = True
    tokens = policy.processor.answer_tokens("none")
    response = Response(tokens, np.zeros(2, np.float32), "stop")
    for each in (hollow.processor, alone):
        assert each.prompt_tokens(question).tolist() == prompt.tolist()
        assert each.engine_tokens(question).tolist() == prompt[placeholder].tolist()
        assert each.read(response, 32, 32).status is AnswerStatus.EMPTY


def test_a_place_in_a_question_is_asked_in_the_words_of_the_codec(policy: Policy) -> None:
    image = images(1)[0]
    pointed = Prompt((TextPart("the cup left of"), PointPart((3.0, 4.0)), BoxPart((0.0, 0.0, 16.0, 32.0))))
    words = policy.processor.codec.encode_places([np.array([(3.0, 4.0)])], 32, 32)
    corners = policy.processor.codec.encode_places([np.array([(0.0, 0.0), (16.0, 32.0)])], 32, 32)
    said = policy.processor.prompt_tokens(ask(image, f"the cup left of {words} {corners}"))
    assert policy.processor.prompt_tokens(Question(image, pointed)).tolist() == said.tolist()


def test_a_question_that_the_family_cannot_be_asked_is_refused_by_what_it_has(policy: Policy) -> None:
    image, masks = images(1)[0], np.zeros((3, 32, 32), np.bool_)
    for wrong, message in (
        (Question(image, Prompt((TextPart("dog"),), asked="box")), "asks for a box, and policy.box_question is not"),
        (Question(image, Prompt.of_text("dog"), masks), "'dog' comes with 3 masks"),
    ):
        with pytest.raises(ValueError, match=message):
            policy.processor.prompt_tokens(wrong)
        with pytest.raises(ValueError, match=message):
            policy.rows([wrong], [[policy.processor.answer_tokens("none")]])
    with pytest.raises(ValueError, match="different images"):
        end = policy.processor.answer_tokens("none")
        policy.processor.supervised_rows(
            [[TaughtAnswer(ask(image, "dog"), end), TaughtAnswer(ask(images(2)[1], "dog"), end)]]
        )


def test_a_row_with_fewer_answers_has_zeros_in_their_place(policy: Policy) -> None:
    answers = tokens_of(policy, ANSWERS)
    rows = policy.rows(ask_all(images(2), PHRASES), [answers[0][:1], answers[1]])
    logprobs = policy(rows)
    torch.testing.assert_close(logprobs[0, 0], policy(shared_rows(policy))[0, 0], atol=1e-5, rtol=0)
    assert (logprobs[0, 1:] == 0).all()


def test_supervised_rows_score_the_same_answers_as_rows(policy: Policy) -> None:
    image, answers = images(1), tokens_of(policy, ANSWERS)[0][:2]
    supervised = policy.processor.supervised_rows([list(map(TaughtAnswer, ask_all(image * 2, PHRASES), answers))])
    assert supervised.scored_mask.sum() == sum(map(len, answers))
    logprobs = policy(supervised)
    assert (logprobs[~supervised.scored_mask] == 0).all()
    # One row, but where a prompt's tokens all see each other.
    assert len(logprobs) == (2 if policy.processor.family.title == "PaliGemma 2" else 1)
    own, scored = logprobs.flatten(0, 1), supervised.scored_mask.flatten(0, 1)
    for g, answer in enumerate(answers):
        asked = policy(policy.rows(ask_all(image, PHRASES[g : g + 1]), [[answer]]))[0, 0]
        torch.testing.assert_close(own[g][scored[g]], asked, atol=1e-5, rtol=0)


def test_a_spread_equals_a_slow_loop_over_neighbouring_numbers(policy: Policy) -> None:
    image, answer = images(1)[0], policy.processor.answer_tokens("5 64 none")
    logprobs = torch.log_softmax(sampleable(policy, plain_logits(policy, image, "dog", answer)), -1)
    numbers = [policy.processor.tokenizer.convert_tokens_to_ids(str(k)) for k in range(65)]
    expected = [logprobs[t, answer[t]].item() for t in (2, 3)]
    for t, value in enumerate((5, 64)):
        weights = [np.exp(-((k - value) ** 2) / (2 * 1.5**2)) for k in range(65)]
        near = sum(w * logprobs[t, n].item() for w, n in zip(weights, numbers, strict=True)) / sum(weights)
        expected.insert(t, near)
    spread = policy(policy.rows([ask(image, "dog")], [[answer]]), number_spread=1.5)
    assert spread[0, 0].tolist() == pytest.approx(expected, rel=1e-5)


def test_temperature_divides_the_logits(policy: Policy) -> None:
    image, answer = images(1)[0], policy.processor.answer_tokens("5 64 none")
    logits = sampleable(policy, plain_logits(policy, image, "dog", answer))
    for temperature in (0.5, 2.0):
        logprobs = policy(policy.rows([ask(image, "dog")], [[answer]]), temperature)[0, 0]
        expected = torch.log_softmax(logits / temperature, -1)[range(4), answer]
        torch.testing.assert_close(logprobs, expected, atol=2e-5, rtol=0)


@torch.no_grad()
def test_only_special_tokens_other_than_the_end_have_probability_zero(policy: Policy) -> None:
    cache = PromptCache(policy.encode(questions(policy, images(2), PHRASES)), 1, 1)
    logprobs = policy.decode(cache, cache.prompts.last_tokens[:, None], 1.0)
    tokenizer = policy.processor.tokenizer
    words = (
        "<|pad|>",
        "<|unknown|>",
        "<|image_pad|>",
        "<|video_pad|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|answer|>",
    )
    marks = [*policy.processor.family.image_marks, *tile_marks(policy)]
    impossible = set(tokenizer.convert_tokens_to_ids([*words, *marks]))
    assert (logprobs[0] == -torch.inf).nonzero()[:, 0].tolist() == sorted(impossible)
    assert torch.isfinite(logprobs[:, policy.processor.end_token]).all()
    torch.testing.assert_close(logprobs.exp().sum(-1), torch.ones(2))


def test_thousands_of_sampled_tokens_hold_no_special_one_and_every_answer_reads_as_a_status(policy: Policy) -> None:
    rows = questions(policy, images(4), ["dog"] * 4)
    draws = np.random.default_rng(0).random((4, 64, 40))
    # At temperature 3 all words are about equally likely.
    responses = sample(policy, rows, Sampling(temperature=3.0, max_tokens=40), draws)
    tokens = np.concatenate([response.tokens for response in responses])
    assert len(tokens) > 5000
    assert set(tokens.tolist()) & set(policy.processor.tokenizer.all_special_ids) <= {policy.processor.end_token}
    assert len(set(tokens.tolist())) > 60
    assert all(isinstance(policy.processor.read(response, 32, 32).status, AnswerStatus) for response in responses)


def test_encode_and_decode_report_the_log_probabilities_of_forward(policy: Policy) -> None:
    rows = questions(policy, images(2), PHRASES)
    responses = sample(
        policy, rows, Sampling(temperature=0.7, max_tokens=24), np.random.default_rng(3).random((2, 5, 24))
    )
    assert len({len(response.tokens) for response in responses}) > 1
    again = [[response.tokens for response in responses[5 * b : 5 * b + 5]] for b in range(2)]
    rows = policy.rows(ask_all(images(2), PHRASES), again)
    logprobs = policy(rows, temperature=0.7)[rows.response_mask].detach().numpy()
    np.testing.assert_allclose(np.concatenate([r.logprobs for r in responses]), logprobs, atol=2e-5)


@torch.no_grad()
def test_answers_that_stay_in_the_cache_do_not_notice_those_that_left(policy: Policy) -> None:
    whole, kept = two_caches(policy, questions(policy, images(3), [*PHRASES, "dog"]))
    tokens = torch.arange(20, 29).view(3, 3)
    for cache in (whole, kept):
        policy.decode(cache, tokens, 1.0)
    places, answers = torch.tensor([0, 2]), torch.tensor([[2, 0], [1, 2]])
    kept.keep(places, answers)
    for step in range(3):
        tokens = tokens + 1 + step
        expected = policy.decode(whole, tokens, 1.0).view(3, 3, -1)[places[:, None], answers]
        found = policy.decode(kept, tokens[places[:, None], answers], 1.0)
        torch.testing.assert_close(found, expected.flatten(0, 1), atol=1e-5, rtol=0)


@pytest.fixture
def exactness(policy: Policy) -> Iterator[float]:
    """By how much equal log-probabilities of the policy may differ, its weights held in 64 bits meanwhile, so that this
    is the rounding of the answers alone; torch multiplies those of experts in 32 bits at most."""
    if any("experts" in name for name, _ in policy.model.named_modules()):
        yield 1e-5
        return
    policy.model.double()
    yield 4e-6
    policy.model.float()


@torch.no_grad()
def test_a_prompt_that_enters_late_is_answered_as_if_it_had_been_alone(policy: Policy, exactness: float) -> None:
    first = questions(policy, images(2), PHRASES)
    cache = PromptCache(policy.encode(first.groups(0, 1)), 3, 4)
    together = PromptCache(policy.encode(first), 3, 4)
    together.replace(torch.tensor([1]), policy.encode(first.groups(0, 1)))
    tokens = torch.arange(20, 23)[None]
    for step in range(9):  # more than there are places, so that they are used again
        if step in (2, 5):
            together.replace(torch.tensor([0]), policy.encode(first.groups(0, 1)))
            cache = PromptCache(policy.encode(first.groups(0, 1)), 3, 4)
        found = policy.decode(together, tokens.expand(2, -1), 1.0)[:3]
        torch.testing.assert_close(found, policy.decode(cache, tokens, 1.0), atol=exactness, rtol=0)
        tokens = tokens + 2


def test_bfloat16_answers_have_the_log_probabilities_of_forward_to_its_precision(tiny_untrained: Path) -> None:
    policy = Policy(tiny_untrained, Codec(), dtype="bfloat16")
    draws = np.random.default_rng(3).random((2, 5, 24))
    responses = sample(policy, questions(policy, images(2), PHRASES), Sampling(max_tokens=24), draws)
    again = [[response.tokens for response in responses[5 * b : 5 * b + 5]] for b in range(2)]
    rows = policy.rows(ask_all(images(2), PHRASES), again)
    logprobs = policy(rows)[rows.response_mask].detach().numpy()
    difference = np.abs(np.concatenate([r.logprobs for r in responses]) - logprobs)
    assert difference.mean() < 0.02 and difference.max() < 0.2


def test_greedy_answers_are_those_of_transformers_own_generate(policy: Policy) -> None:
    rows = questions(policy, images(2), PHRASES)  # of which one is padded
    ours = sample(policy, rows, Sampling(0.0, 8), np.zeros((2, 1, 8)))
    kinds = (rows.prompt_tokens == policy.processor.image_token).int()
    found = policy.model.generate(
        input_ids=rows.prompt_tokens,
        attention_mask=rows.prompt_mask.long(),
        **policy.processor.family.image_inputs(rows),
        **({"mm_token_type_ids": kinds} if "Qwen" in policy.processor.family.title else {}),
        **({"token_type_ids": kinds} if policy.processor.family.title == "Gemma 3" else {}),
        **({"token_type_ids": 0 * kinds} if policy.processor.family.title == "PaliGemma 2" else {}),
        do_sample=False,
        max_new_tokens=8,
        suppress_tokens=policy.processor.unsampled_tokens,
    )
    for answer, whole in zip(ours, found[:, rows.prompt_tokens.shape[1] :].tolist(), strict=True):
        assert answer.tokens.tolist() == whole[: len(answer.tokens)]


def test_vision_features_stand_where_their_pixels_are(policy: Policy) -> None:
    pictures = images(2)
    features = policy.vision_features(pictures)
    changed = pictures[1].copy()
    # Patches of 8 px in one family, merged blocks of 2 x 2 patches of 4 px in the other.
    changed[8:16, 16:24] ^= 255
    moved = policy.vision_features([pictures[0], changed])
    assert features.final.shape[2:] == features.early.shape[2:] == (4, 4)
    assert features.final.shape[:2] == (2, policy.model.config.get_text_config().hidden_size)
    assert not features.final.requires_grad
    differs = (features.early != moved.early).any(1)
    assert differs.nonzero().tolist() == [[1, 1, 2]]
    assert torch.equal(features.final[0], moved.final[0])
    torch.testing.assert_close(policy.vision_features(pictures[1:]).final, features.final[1:], atol=1e-5, rtol=0)


def test_final_vision_features_are_the_image_tokens_in_reading_order(policy: Policy) -> None:
    rows = shared_rows(policy)
    inputs = policy.processor.family.image_inputs(rows)
    tokens = torch.cat([*policy.model.get_image_features(**inputs).pooler_output]).unflatten(0, (2, -1))
    final = policy.vision_features(images(2)).final
    for b in range(2):
        torch.testing.assert_close(final[b].flatten(1).T, tokens[b], atol=1e-5, rtol=0)


def test_early_features_of_the_last_block_merge_to_the_final_ones_so_they_stand_in_the_same_order(
    policy: Policy,
) -> None:
    if "Qwen" not in policy.processor.family.title:
        pytest.skip("its final features are not those of the last block, or its merger is no module of its tower")
    pictures = images(2, height=32, width=48)
    visual = policy.vision_tower
    features = policy.vision_features(pictures, early_block=2)
    tokens = features.early.permute(0, 2, 3, 1).reshape(-1, visual.config.hidden_size)
    merged = visual.merger(tokens).view(2, *features.final.shape[2:], -1).permute(0, 3, 1, 2)
    torch.testing.assert_close(merged, features.final, atol=1e-5, rtol=0)


def test_features_of_the_first_block_follow_the_pixels_of_their_place_most(policy: Policy) -> None:
    pictures = images(2)
    changed = pictures[1].copy()
    changed[8:16, 8:16] ^= 255
    early, moved = (policy.vision_features([pictures[0], p], early_block=1).early for p in (pictures[1], changed))
    assert early.shape[2:] == (4, 4)
    assert not torch.equal(early, policy.vision_features(pictures, early_block=2).early)
    assert torch.equal(early[0], moved[0])
    assert (early - moved)[1].square().sum(0).argmax() == 4 * 1 + 1


def test_asking_for_a_block_leaves_no_trace_and_one_that_is_not_there_is_refused_by_how_many_there_are(
    policy: Policy,
) -> None:
    before = policy.vision_features(images(1))
    hooks = [len(module._forward_hooks) for module in policy.vision_tower.modules()]
    policy.vision_features(images(1), early_block=1)
    assert hooks == [len(module._forward_hooks) for module in policy.vision_tower.modules()]
    after = policy.vision_features(images(1))
    assert torch.equal(before.early, after.early) and torch.equal(before.final, after.final)
    blocks = 3 if policy.processor.family.title == "LLaVA-1.5" else 2
    for block in (-1, blocks + 1):
        message = rf"early_block is {block}, and the vision tower has {blocks} blocks; .* 1 to {blocks}"
        with pytest.raises(ValueError, match=message):
            policy.vision_features(images(1), early_block=block)


def test_llava_sees_a_photo_in_a_square_of_the_mean_colour_and_its_features_lie_on_the_photo(tmp_path: Path) -> None:
    write_llava(tmp_path)
    policy = Policy(tmp_path, Codec())
    processor, mean = policy.processor, np.array([0.48145466, 0.4578275, 0.40821073])
    wide = images(1, height=16, width=64)[0]
    square = processor.shown_image(wide)
    assert square.shape == (64, 64, 3) and (square[24:40] == wide).all()
    assert (square[:24] == (mean * 255).astype(np.uint8)).all() and (square[40:] == square[0]).all()
    assert processor.shown_size(16, 64) == (8, 32) and processor.image_tokens(16, 64) == 16
    features = policy.vision_features([wide])
    assert features.final.shape[2:] == features.early.shape[2:] == (1, 4)
    # A row of four cells from the middle of four times four; what lies above it is padding.
    changed = wide.copy()
    changed[:, 16:32] ^= 255
    moved = (policy.vision_features([changed]).early - features.early).square().sum(1)[0, 0]
    assert moved.argmax() == 1 and moved[1] > 10 * moved[3]  # its neighbours share pixels, since the square is shrunk
    prompt = processor.prompt_tokens(ask(wide, "dog"))
    assert prompt[0] == processor.tokenizer.bos_token_id and (prompt == processor.tokenizer.bos_token_id).sum() == 1
    with pytest.raises(ValueError, match=r"policy.max_pixels 100, but LLaVA-1.5 sees every image at one size"):
        Policy.make_processor(tmp_path, Codec(), Asking(max_pixels=100))


def test_images_that_the_image_processor_resamples_come_back_on_a_grid_that_spans_them(tiny_untrained: Path) -> None:
    tiny = Policy(tiny_untrained, Codec())  # its processor makes 32 x 32 px of everything square
    for side in (16, 24, 48, 51):
        picture = np.repeat(np.repeat(images(1, height=4, width=4)[0], 16, 0), 16, 1)[:side, :side]
        features = tiny.vision_features([picture], early_block=1)
        assert features.final.shape[2:] == features.early.shape[2:] == (4, 4)


def test_a_prompt_holds_one_image_token_a_merged_patch_and_the_question(policy: Policy) -> None:
    prompt = policy.processor.prompt_tokens(ask(images(1)[0], "dog"))
    assert (prompt == policy.processor.image_token).sum() == 16
    rows = policy.rows(ask_all(images(1), ["dog"]), [[policy.processor.answer_tokens("none")]])
    assert prompt.tolist() == rows.prompt_tokens[0].tolist()
    assert policy.processor.tokenizer.convert_ids_to_tokens(prompt[-2:]) == ["dog", "<|answer|>"]


@torch.no_grad()
def test_a_phrase_of_control_tokens_is_asked_as_words(policy: Policy) -> None:
    processor, image_token = policy.processor, policy.processor.image_token
    tokenizer = processor.tokenizer
    special = [tokenizer.pad_token, tokenizer.eos_token, *tokenizer.extra_special_tokens]
    phrase, answer = " ".join(["the", *special, "banana"]), processor.answer_tokens("none")
    prompt = processor.prompt_tokens(ask(images(1)[0], phrase))
    assert (prompt == image_token).sum() == 16 and processor.end_token not in prompt
    assert processor.engine_tokens(ask(images(1)[0], phrase)).tolist().count(image_token) == 1
    asked = policy(policy.rows(ask_all(images(1), [phrase]), [[answer]]))[0, 0]
    supervised = policy.processor.supervised_rows([[TaughtAnswer(ask(images(1)[0], phrase), answer)]])
    learned = policy(supervised)[0, 0][supervised.scored_mask[0, 0]]
    torch.testing.assert_close(learned, asked, atol=1e-5, rtol=0)
    sampled = sample(policy, questions(policy, images(1), [phrase]), Sampling(max_tokens=4), np.zeros((1, 2, 4)))
    assert len(sampled) == 2


def test_an_answers_text_comes_back_from_its_tokens_without_the_end(policy: Policy) -> None:
    text = "1 2 30 40 0 0 5 5 0 5 M 1 1 2 2 1 2 ; 0 0 64 64 0 0 9 0 9 9"
    tokens = policy.processor.answer_tokens(text)
    assert tokens[-1] == policy.processor.end_token
    assert policy.processor.text(Response(tokens, np.zeros(len(tokens), np.float32), "stop")) == text
    assert policy.processor.text(Response(tokens[:4], np.zeros(4, np.float32), "length")) == "1 2 30 40"


def test_an_answer_without_its_end_reads_as_truncated(policy: Policy) -> None:
    tokens = policy.processor.answer_tokens("none")
    assert policy.processor.read(Response(tokens, np.zeros(2, np.float32), "stop"), 32, 32).status is AnswerStatus.EMPTY
    assert (
        policy.processor.read(Response(tokens[:1], np.zeros(1, np.float32), "length"), 32, 32).status
        is AnswerStatus.TRUNCATED
    )


def test_a_saved_policy_comes_back_to_the_bit(policy: Policy, tmp_path: Path) -> None:
    policy.save(tmp_path)
    loaded = Policy(tmp_path, Codec(), question="find {phrase}")
    weights = loaded.model.state_dict()
    assert weights.keys() == policy.model.state_dict().keys()
    assert all(torch.equal(weights[name], value) for name, value in policy.model.state_dict().items())
    assert torch.equal(loaded(shared_rows(loaded)), policy(shared_rows(policy)))


def test_a_folder_without_a_model_is_refused_by_its_path(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"nowhere, which has no config\.json; give a Hugging Face model folder"
    ):
        Policy(tmp_path / "nowhere", Codec())


def test_a_model_of_another_family_is_refused_by_its_type(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(
        ValueError, match="is a bert model, and the families here are gemma3, internvl, kimi_vl, llava, paligemma, qw"
    ):
        Policy(tmp_path, Codec())
