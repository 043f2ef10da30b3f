"""The page of model families, docs/reference/families.md: every cell is what a check of a tiny model just found.

`WRITE_PAGES=1 python -m pytest tests/policies/test_families_page.py` writes it anew.
"""

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from asking import ask, ask_all
from jinja2 import Environment
from moondream_toy import codec as centre_codec
from moondream_toy import write_toy
from released_sizes import config_of, kimi_vl_config
from test_experts import moe_config
from test_paligemma import paligemma_3b
from test_qwen3_5 import qwen3_5_9b
from test_vision_language import (
    PHRASES,
    images,
    write_gemma3,
    write_internvl,
    write_kimi_vl,
    write_llava,
    write_paligemma,
    write_qwen2_5_vl,
    write_qwen3_5,
    write_qwen3_vl_moe,
    write_smolvlm,
)
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    Kimi_K25ForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PaliGemmaForConditionalGeneration,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3_5ForConditionalGeneration,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

from envs.codecs.path_tokens import Codec
from envs.example import BoxPart, PointPart, Prompt, Question, TextPart
from policies.checkpoint import Checkpoint
from policies.families._engines import NO_CUDA_GRAPH, NO_VLLM
from policies.families._gemma3 import Gemma3
from policies.families._internvl import InternVL
from policies.families._kimi_vl import KimiVL
from policies.families._llava import Llava
from policies.families._moondream import Moondream
from policies.families._paligemma import PaliGemma
from policies.families._qwen import Qwen2_5VL, Qwen3VL, Qwen3VLMoe
from policies.families._qwen3_5 import Qwen3_5
from policies.families._smolvlm import SmolVLM
from policies.families.vision_language import Policy
from policies.moondream.config import MoondreamConfig
from policies.moondream.model import MoondreamForSegmentation
from policies.settings import LoraSettings, TinySizes
from policies.tiny_model import write_untrained
from rollout.engines.base import uniforms
from rollout.engines.shared import sample
from rollout.settings import Sampling

PAGE = Path(__file__).parents[2] / "docs/reference/families.md"
WORDS = ["the", "upper", "left", "banana", "dog"]
ANSWERS = [["1 2 30 40 0 0 5 5 0 5", "none"], ["7 8 9", "64 0 0 0 0 0 0"]]
SVG_ANSWERS = [["20 30 40 50 M 0 0 32 0 32 32 Z", "none"], ["63 0 0 63 M 1 2 3 4 9 0 Z", "M 3"]]


def write_qwen3_vl(folder: Path) -> None:
    sizes = TinySizes(32, 8, 32, 2, 2, 16, 2, 2)
    write_untrained(folder, [*Codec().words, *WORDS], sizes, seed=0)


TOYS: dict[str, Callable[[Path], None]] = {
    "Qwen2.5-VL": write_qwen2_5_vl,
    "Qwen3-VL": write_qwen3_vl,
    "InternVL": write_internvl,
    "LLaVA-1.5": write_llava,
    "SmolVLM2": write_smolvlm,
    "Kimi-VL": write_kimi_vl,
    "Qwen3-VL-MoE": write_qwen3_vl_moe,
    "Qwen3.5": write_qwen3_5,
    "Gemma 3": write_gemma3,
    "PaliGemma 2": write_paligemma,
    "Moondream 3": write_toy,
}


def build(name: str, folder: Path, **settings: Any) -> Policy:
    """The toy of a family."""
    if name == "Moondream 3":
        from policies.families import moondream

        return moondream.Policy(folder, centre_codec(), question="the {phrase}", **settings).eval()
    return Policy(folder, Codec(), question="the {phrase}", **settings).eval()


def answers_of(policy: Policy) -> list[list[np.ndarray]]:
    texts = SVG_ANSWERS if policy.processor.heads else ANSWERS
    return [[policy.processor.answer_tokens(text) for text in row] for row in texts]


def gradients(policy: Policy, objective: torch.Tensor) -> dict[str, torch.Tensor]:
    policy.zero_grad()
    objective.backward()
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Largest relative difference of gradients, those that are next to nothing left out."""
    largest = max(gradient.norm() for gradient in other.values())
    return max(float((one[n] - g).norm() / (g.norm() + 1e-3 * largest)) for n, g in other.items())


def alone(policy: Policy) -> torch.Tensor:
    """The sum of the log-probabilities of all answers, a row an answer."""
    pairs = [(b, answer) for b, row in enumerate(answers_of(policy)) for answer in row]
    return sum(policy(policy.rows([ask(images(2)[b], PHRASES[b])], [[answer]])).sum() for b, answer in pairs)  # type: ignore[return-value]


def shared(policy: Policy) -> torch.Tensor:
    return policy(policy.rows(ask_all(images(2), PHRASES), answers_of(policy)))


def share_of_rows(policy: Policy) -> float:
    rows = policy.rows(ask_all(images(2), PHRASES), answers_of(policy))
    found, worst = policy(rows).detach(), 0.0
    for b, row in enumerate(answers_of(policy)):
        for g, answer in enumerate(row):
            own = policy(policy.rows([ask(images(2)[b], PHRASES[b])], [[answer]])).detach()[0, 0]
            worst = max(worst, float((found[b, g, : len(answer)] - own).abs().max()))
    return worst


def sampled_and_scored(policy: Policy) -> np.ndarray:
    rows = policy.rows(ask_all(images(2), PHRASES), [[policy.processor.answer_tokens("none")]] * 2)
    draws = np.array([[uniforms((b, k), 16, len(policy.processor.heads)) for k in range(6)] for b in range(2)])
    responses = sample(policy, rows, Sampling(0.8, 16), draws)
    choices = [[one.choices for one in responses[6 * b : 6 * b + 6]] for b in range(2)]
    again = policy.rows(ask_all(images(2), PHRASES), choices)
    scored = policy(again, 0.8)[again.response_mask].detach().numpy()
    return np.abs(np.concatenate([r.logprobs for r in responses]) - scored)


def two_sizes(policy: Policy) -> float:
    mixed = [images(1)[0], images(1, height=48, width=24)[0]]
    found = policy(policy.rows(ask_all(mixed, PHRASES), answers_of(policy))).detach()
    worst = 0.0
    for b in range(2):
        own = policy(policy.rows(ask_all(mixed[b : b + 1], PHRASES[b : b + 1]), answers_of(policy)[b : b + 1])).detach()
        worst = max(worst, float((found[b : b + 1, :, : own.shape[2]] - own).abs().max()))
    return worst


def computed_again(policy: Policy) -> float:
    plain = gradients(policy, shared(policy).sum())
    policy.checkpoint_gradients()
    policy.train()
    return difference(gradients(policy, shared(policy).sum()), plain)


def within(value: float, bound: float) -> str:
    assert value <= bound, f"{value} is above {bound}"
    return f"{bound:.0e}"


def refused(action: Callable[[], Any]) -> str:
    """ "no" where the family refuses."""
    try:
        action()
    except ValueError:
        return "no"
    return "yes"


def features(policy: Policy) -> str:
    picture, changed = images(1)[0], images(1)[0].copy()
    changed[8:16, 16:24] ^= 255
    found, moved = policy.vision_features([picture]), policy.vision_features([changed])
    assert found.final.shape[2:] == found.early.shape[2:] == (4, 4)
    assert (found.early != moved.early).any(1).nonzero().tolist() == [[0, 1, 2]]
    return "yes"


def saved(name: str, policy: Policy, folder: Path) -> str:
    policy.save(folder)
    loaded = build(name, folder)
    held = loaded.model.state_dict()
    assert all(torch.equal(held[key], value) for key, value in policy.model.state_dict().items())
    return "to the bit"


def places(policy: Policy) -> str:
    parts = (TextPart("the banana"), PointPart((3.0, 4.0)), BoxPart((0.0, 0.0, 16.0, 32.0)))
    return refused(lambda: policy.processor.prompt_tokens(Question(images(1)[0], Prompt(parts))))


def adapted(name: str, folder: Path) -> str:
    policy = build(name, folder, lora=LoraSettings(rank=2))
    found = {n.split(".lora_A")[0].split(".")[-1] for n, p in policy.model.named_parameters() if "lora_A" in n}
    assert found and not any("vis" in n for n, p in policy.model.named_parameters() if p.requires_grad)
    return ", ".join(sorted(found))


def checks_of(name: str, folder: Path, scratch: Path) -> dict[str, str]:
    """The column of one family."""
    policy = build(name, folder)
    in_bf16 = sampled_and_scored(build(name, folder, dtype="bfloat16"))
    return {
        "log-probabilities: answers behind one prompt, as each in a row of its own": within(
            share_of_rows(policy), 1e-5
        ),
        "gradients likewise, relative": within(
            difference(gradients(policy, shared(policy).sum()), gradients(policy, alone(policy))), 1e-4
        ),
        "log-probabilities: sampler and learner": within(float(sampled_and_scored(policy).max()), 2e-5),
        "the same in bfloat16, on average": within(float(in_bf16.mean()), 2e-2),
        "photos of two sizes in one batch, as each alone": within(two_sizes(policy), 1e-5),
        "gradients with layers computed again, relative": within(computed_again(build(name, folder)), 1e-4),
        "features for a refiner lie where their pixels are": features(policy),
        "a folder saved is a folder loaded": saved(name, policy, scratch),
        "points and boxes in a question": places(policy),
        "`sampling.grammar`": refused(policy.processor.token_grammar),
        "linear layers that `learner.lora.targets: all-linear` adapts, never experts": adapted(name, folder),
        "vLLM": "no" if name in NO_VLLM else "yes",
        "`pool.engine.cuda_graph`": "no" if name in NO_CUDA_GRAPH else "yes",
    }


def gemma3_4b() -> Gemma3Config:
    """As the folder of the released 4B says it."""
    text = {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "sliding_window": 1024}
    vision = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
    vision |= {"image_size": 896, "patch_size": 14, "vision_use_head": False}
    return Gemma3Config(text_config=text, vision_config=vision)


def released_models() -> dict[str, tuple[Any, Any]]:
    """(family, model on the meta device) of one released size each."""
    qwen2 = {"model_type": "qwen2", "vocab_size": 151674, "hidden_size": 3584, "intermediate_size": 18944}
    qwen2 |= {"num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4}
    smol = {"model_type": "llama", "vocab_size": 49280, "hidden_size": 2048, "intermediate_size": 8192}
    smol |= {"num_hidden_layers": 24, "num_attention_heads": 32, "num_key_value_heads": 32}
    so400m = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
    so400m |= {"image_size": 384, "patch_size": 14}
    vicuna = LlavaConfig(tie_word_embeddings=False)
    vicuna.text_config.vocab_size = 32064
    internvl = InternVLConfig(text_config=qwen2, vision_config={"attention_bias": True}, tie_word_embeddings=False)
    smolvlm = SmolVLMConfig(text_config=smol, vision_config=so400m, scale_factor=3, tie_word_embeddings=False)
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "config.json").write_text(json.dumps(kimi_vl_config()))
        kimi = KimiVL().config(Checkpoint(Path(place)))
    with torch.device("meta"):
        return {
            "Qwen2.5-VL-7B": (Qwen2_5VL(), Qwen2_5_VLForConditionalGeneration(config_of("qwen2_5_vl_7b"))),
            "Qwen3-VL-8B": (Qwen3VL(), Qwen3VLForConditionalGeneration(config_of("qwen3_vl_8b"))),
            "InternVL3-8B": (InternVL(), InternVLForConditionalGeneration(internvl)),
            "LLaVA-1.5-7B": (Llava(), LlavaForConditionalGeneration(vicuna)),
            "SmolVLM2-2.2B": (SmolVLM(), SmolVLMForConditionalGeneration(smolvlm)),
            "Kimi-VL-A3B": (KimiVL(), Kimi_K25ForConditionalGeneration(kimi)),
            "Qwen3-VL-30B-A3B": (Qwen3VLMoe(), Qwen3VLMoeForConditionalGeneration(moe_config())),
            "Qwen3.5-9B": (Qwen3_5(), Qwen3_5ForConditionalGeneration(qwen3_5_9b())),
            "Gemma 3 4B": (Gemma3(), Gemma3ForConditionalGeneration(gemma3_4b())),
            "PaliGemma 2 3B, 224 px": (PaliGemma(), PaliGemmaForConditionalGeneration(paligemma_3b())),
            "Moondream 3": (Moondream(), MoondreamForSegmentation(MoondreamConfig())),
        }


def sizes_of(family: Any, model: Any) -> list[str]:
    """Millions of parameters: tower, projector, layers, embedding, head, all."""

    def count(parameters: Any) -> int:
        return sum(parameter.numel() for parameter in parameters)

    projector = sum(count(module.parameters()) for module in family.projector(model))
    tower, whole = count(family.tower(model).parameters()) - projector, count(model.parameters())
    embedding = model.get_input_embeddings().weight.numel()
    head = count(model.get_output_embeddings().parameters())
    head = 0 if model.get_output_embeddings().weight is model.get_input_embeddings().weight else head
    layers = whole - tower - projector - embedding - head
    return [f"{number / 1e6:,.1f}" for number in (tower, projector, layers, embedding, head, whole)]


def prompts() -> dict[str, str]:
    """How a question is asked where a folder has no template, by family."""
    content = [{"type": "image"}, {"type": "text", "text": "Outline the dog."}]
    asked = {"messages": [{"role": "user", "content": content}], "add_generation_prompt": True}
    found = {}
    qwen = (Qwen2_5VL(), Qwen3VL(), Qwen3VLMoe(), Qwen3_5())
    for family in (*qwen, InternVL(), Llava(), SmolVLM(), KimiVL(), Gemma3(), PaliGemma()):
        found[family.title] = Environment().from_string(family.template).render(**asked)
    segment = MoondreamConfig().segment
    prefix, suffix = (" ".join(map(str, segment[part])) for part in ("prefix", "suffix"))
    found["Moondream 3"] = f"0, 729 places of the image, {prefix}, the tokens of 'Outline the dog.', {suffix}"
    return found


def table(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def page(columns: dict[str, dict[str, str]]) -> str:
    """The whole page."""
    checks = list(next(iter(columns.values())))
    held = [["check of a tiny model with random weights, float32", *columns]]
    held += [[check, *(columns[name][check] for name in columns)] for check in checks]
    sizes = [["parameters, millions", "tower", "projector", "layers", "embedding", "head", "all"]]
    sizes += [[name, *sizes_of(*each)] for name, each in released_models().items()]
    asked = [["family", "`Outline the dog.` as text"]]
    asked += [[name, f"`{text!r}`".replace("|", "\\|")] for name, text in prompts().items()]
    return f"""# Families of models

Written by `WRITE_PAGES=1 python -m pytest tests/policies/test_families_page.py`, and held by the same test: a cell is
what a check finds. A number is a bound that is kept. None of these models was met with its released weights; names and
shapes of the released sizes are proven without them.

{table(held)}

The last two rows say what a config may ask for, not what was tried on a card.

What a family refuses, it refuses in one line before a run starts. Moondream 3's own forward pass is held against its
formulas written again (`tests/policies/test_moondream.py`), the others' against transformers' classes
(`tests/policies/test_vision_language.py`).

## One released size each

{table(sizes)}

## How a question is asked

By the folder's own chat template; by these where it has none that shows an image:

{table(asked)}

## What a description says

::: policies.family.Family
"""


@pytest.mark.filterwarnings("ignore")
def test_the_page_is_what_the_checks_find(tmp_path: Path) -> None:
    columns = {}
    for number, (name, write) in enumerate(TOYS.items()):
        (tmp_path / f"{number}").mkdir()
        write(tmp_path / f"{number}")
        columns[name] = checks_of(name, tmp_path / f"{number}", tmp_path / f"{number}-saved")
    if os.environ.get("WRITE_PAGES"):
        PAGE.write_text(page(columns), encoding="utf-8")
    assert page(columns) == PAGE.read_text(encoding="utf-8"), "set WRITE_PAGES=1 to write it anew"


def test_prompts_are_those_that_the_families_are_documented_with() -> None:
    found = prompts()
    assert found["Qwen2.5-VL"] == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|><|image_pad|>"
        "<|vision_end|>Outline the dog.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert found["Qwen3-VL"] == found["Qwen2.5-VL"].split("<|im_end|>\n", 1)[1]
    assert found["LLaVA-1.5"] == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: <image>\nOutline the dog. ASSISTANT:"
    )
