"""Qwen3.5: states against the recurrence written out and transformers' own layers, forks behind a prompt, and what is
refused; shared rows, caches and greedy answers are held with all families in test_vision_language.py."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from asking import ask, ask_all
from safetensors.torch import load_file
from test_vision_language import ANSWERS, PHRASES, images, tokens_of, write_qwen3_5
from torch import Tensor
from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5GatedDeltaNet

from envs.codecs.path_tokens import Codec
from policies.checkpoint import Checkpoint
from policies.families._loading import refuse_unfilled
from policies.families._qwen3_5 import Qwen3_5
from policies.families.vision_language import Policy
from policies.settings import LoraSettings
from policies.sharing.forked import ForkedDeltaNet, forks
from policies.sharing.packing import pack_rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("qwen3_5")
    write_qwen3_5(made)
    return made


def layer_of(folder: Path) -> ForkedDeltaNet:
    return Policy(folder, Codec()).model.model.language_model.layers[0].linear_attn


@torch.no_grad()
def test_a_state_forgets_corrects_and_is_read_token_by_token_as_the_recurrence_says(folder: Path) -> None:
    layer = layer_of(folder).double()
    torch.manual_seed(0)
    states = torch.randn(2, 11, 32, dtype=torch.float64)
    mixed = layer.in_proj_qkv(states)
    kernel = layer.conv1d.weight[:, 0]
    expected = torch.empty(2, 11, 4, 12, dtype=torch.float64)
    for row in range(2):
        held = torch.zeros(4, 8, 12, dtype=torch.float64)  # heads, key width, value width
        for t in range(11):
            near = sum(kernel[:, 3 - back] * mixed[row, t - back] for back in range(4) if t >= back)
            queries, keys, values = torch.nn.functional.silu(near).split([16, 16, 48])
            for head in range(4):
                query, key = (part.view(2, 8)[head // 2] for part in (queries, keys))  # two value heads share a key's
                query, key = (part / (part.square().sum() + 1e-6).sqrt() for part in (query, key))
                correcting = layer.in_proj_b(states[row, t])[head].sigmoid()
                forgetting = torch.nn.functional.softplus(layer.in_proj_a(states[row, t])[head] + layer.dt_bias[head])
                kept = (-layer.A_log[head].exp() * forgetting).exp() * held[head]
                held[head] = kept + correcting * torch.outer(key, values.view(4, 12)[head] - kept.t() @ key)
                expected[row, t, head] = held[head].t() @ query / 8**0.5
    found, tail, behind = layer._read(mixed, layer._rates(states))
    torch.testing.assert_close(found, expected, atol=3e-6, rtol=0)  # the rule itself is computed in float32
    torch.testing.assert_close(tail, mixed[:, -3:].transpose(1, 2))
    # In two stretches, the second from what the first left, and the last token alone.
    first, *left = layer._read(mixed[:, :4], layer._rates(states[:, :4]))
    middle, *left = layer._read(mixed[:, 4:10], layer._rates(states[:, 4:10]), left)
    last, *left = layer._read(mixed[:, 10:], layer._rates(states[:, 10:]), left)
    torch.testing.assert_close(torch.cat([first, middle, last], dim=1), expected, atol=3e-6, rtol=0)
    torch.testing.assert_close(left[1], behind, atol=3e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_whole_rows_are_those_of_transformers_own_layer_padding_and_all(folder: Path, dtype: torch.dtype) -> None:
    plain = Qwen3_5ForConditionalGeneration.from_pretrained(folder).eval()
    held = plain.model.language_model.layers[2].linear_attn.to(dtype)
    assert isinstance(held, Qwen3_5GatedDeltaNet)
    ours = ForkedDeltaNet(held)
    assert dict(ours.named_parameters()).keys() == dict(held.named_parameters()).keys()
    torch.manual_seed(0)
    states, mask = torch.randn(2, 70, 32).to(dtype), torch.ones(2, 70, dtype=torch.bool)
    mask[0, :13] = False
    for given in (None, mask):
        found, expected = ours(states, attention_mask=given), held(states, attention_mask=given)
        real = mask if given is not None else torch.ones_like(mask)
        near = 1e-6 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(found[real], expected[real], atol=near, rtol=0)


def test_answers_fork_behind_their_prompt_whatever_stands_before_them_in_the_row(folder: Path) -> None:
    policy = Policy(folder, Codec(), question="find {phrase}")
    rows = policy.rows(ask_all(images(2), PHRASES), tokens_of(policy, ANSWERS))
    packed = pack_rows(rows)
    layout, layer = forks(packed), policy.model.model.language_model.layers[0].linear_attn
    torch.manual_seed(0)
    (b, g, t), length = packed.shape, packed.tokens.shape[1]
    states = torch.randn(b, length, 32)
    p = rows.prompt_tokens.shape[1]
    found = layer(states, forks=layout)
    for row in range(b):
        prompt = states[row, :p][rows.prompt_mask[row]]
        for answer in range(g):
            own = [k for k in range(length - p) if packed.real[row, k] and int(packed.order[row, k]) // t == answer]
            alone = layer(torch.cat([prompt, states[row, [p + k for k in own]]])[None])[0]
            torch.testing.assert_close(found[row, [p + k for k in own]], alone[len(prompt) :], atol=1e-5, rtol=0)
    with torch.no_grad():  # and without forks the row is something else altogether
        assert (layer(states) - found)[:, p + 5 :].abs().max() > 0.05


def test_saved_names_are_those_that_were_read_and_a_missing_one_is_named(folder: Path, tmp_path: Path) -> None:
    policy = Policy(folder, Codec())
    policy.save(tmp_path)
    stored, saved = (load_file(place / "model.safetensors") for place in (folder, tmp_path))
    assert stored.keys() == saved.keys() and all(torch.equal(stored[name], saved[name]) for name in stored)
    assert {
        "model.language_model.layers.0.linear_attn.A_log",
        "model.language_model.layers.0.linear_attn.conv1d.weight",
        "model.language_model.layers.0.linear_attn.norm.weight",
        "model.language_model.layers.1.self_attn.q_norm.weight",
        "model.visual.merger.linear_fc2.bias",
    } <= stored.keys()
    held = json.loads((tmp_path / "config.json").read_text())
    held["text_config"]["layer_types"] = ["full_attention"] * 3 + ["linear_attention"]
    (tmp_path / "config.json").write_text(json.dumps(held))
    with pytest.raises(ValueError, match=r"lack \d+ parameters of a Qwen3\.5 model, such as .*layers\.0\.self_attn"):
        refuse_unfilled(Checkpoint(tmp_path), Qwen3_5())


def test_a_chat_template_that_opens_a_block_of_reasoning_is_told_not_to(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").write_text(
        "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<|vision_start|><|image_pad|>"
        "<|vision_end|>{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}<|answer|>"
        "{% if enable_thinking is defined and enable_thinking is false %}none{% else %}banana{% endif %}"
    )
    said = {}
    for name, arguments in (("as it is", None), ("told", {"enable_thinking": False})):
        policy = Policy(tmp_path, Codec(), template_arguments=arguments)
        tokens = policy.processor.prompt_tokens(ask(images(1)[0], "dog"))
        said[name] = policy.processor.tokenizer.convert_ids_to_tokens(tokens)[-2:]
    assert said == {"as it is": ["<|answer|>", "banana"], "told": ["<|answer|>", "none"]}


def qwen3_5_9b() -> Qwen3_5Config:
    """As transformers' own config of Qwen3.5-9B has it."""
    return Qwen3_5Config(vision_config={"out_hidden_size": 4096})


def test_at_the_size_of_9b_it_has_the_parameters_of_its_layers_added_up() -> None:
    with torch.device("meta"):
        model = Qwen3_5ForConditionalGeneration(qwen3_5_9b())
    width, inner = 4096, 12288
    feed = 3 * width * inner + 2 * width
    linear = width * (2 * 2048 + 4096) + 2 * width * 32 + width * 4096 + 4096 * width + 4 * 8192 + 2 * 32 + 128
    full = width * (2 * 4096) + 2 * width * 1024 + 4096 * width + 2 * 256
    text = 24 * (linear + feed) + 8 * (full + feed) + width + 248320 * width
    assert sum(p.numel() for p in model.model.language_model.parameters()) == text
    tower = sum(p.numel() for p in Qwen3_5().tower(model).parameters())
    whole = sum(p.numel() for p in model.parameters())
    assert whole == text + tower + 248320 * width and whole == pytest.approx(9.4e9, rel=0.01)


def test_a_layer_of_a_kind_that_nobody_knows_is_refused(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    held = json.loads((tmp_path / "config.json").read_text())
    held["text_config"]["layer_types"] = ["sliding_attention", "full_attention"] * 2
    held["text_config"]["sliding_window"] = 8
    (tmp_path / "config.json").write_text(json.dumps(held))
    with pytest.raises(ValueError, match=r"has sliding_attention in its config\.json"):
        Policy.make_processor(tmp_path, Codec())


def test_gradients_of_a_prompts_states_come_from_all_its_answers(folder: Path) -> None:
    layer = layer_of(folder)
    rows = Policy(folder, Codec()).rows(ask_all(images(1), PHRASES[:1]), [[torch.arange(9, 15).numpy()] * 3])
    layout, p = forks(pack_rows(rows)), rows.prompt_tokens.shape[1]
    torch.manual_seed(0)
    states = torch.randn(1, p + 18, 32, requires_grad=True)
    found = layer(states, forks=layout)

    def slope(answers: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(answers.square().sum(), states, retain_graph=True)
        return gradient[0, :p]

    each = [slope(found[:, p + 6 * g : p + 6 * g + 6]) for g in range(3)]
    assert all(gradient.abs().max() > 1e-4 for gradient in each)
    torch.testing.assert_close(slope(found[:, p:]), sum(each), atol=1e-5, rtol=1e-4)


def test_answers_are_read_by_length_so_that_a_long_one_does_not_pad_the_others(folder: Path) -> None:
    policy = Policy(folder, Codec())
    lengths = [3, 200, 60, 9, 130, 64, 65]
    answers = [torch.full((length,), 9).numpy() for length in lengths]
    rows = policy.rows(ask_all(images(1), PHRASES[:1]), [answers])
    layout = forks(pack_rows(rows))
    assert [tuple(part.slots.shape) for part in layout.parts] == [(4, 64), (1, 65), (2, 200)]
    assert sum(part.slots.numel() for part in layout.parts) < 2 * sum(lengths) + 64 * len(lengths)
    assert len(layout.order.unique()) == sum(lengths)
    with torch.no_grad():
        shared = policy(rows)[0]
        for g in (0, 1, 6):
            own = policy(policy.rows(ask_all(images(1), PHRASES[:1]), [[answers[g]]]))[0, 0]
            torch.testing.assert_close(shared[g, : lengths[g]], own, atol=3e-5, rtol=0)


def test_a_convolution_is_no_expert_and_one_kind_of_layer_alone_is_refused(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Policy(folder, Codec(), lora=LoraSettings(rank=2))
    assert "experts get no adapters" not in caplog.text
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    held = json.loads((tmp_path / "config.json").read_text())
    for kind in ("full_attention", "linear_attention"):
        held["text_config"]["layer_types"] = [kind] * 4
        (tmp_path / "config.json").write_text(json.dumps(held))
        with pytest.raises(ValueError, match=rf"has layers of {kind} kind alone, and Qwen3\.5 has full_attention and"):
            Policy.make_processor(tmp_path, Codec())


@pytest.mark.slow
def test_two_steps_of_rl_under_zero_3_with_workers_of_their_own(folder: Path, tmp_path: Path) -> None:
    # In processes of their own: DeepSpeed fetches weights by the calls that it has seen in the step before.
    small = ["groups_per_step=2", "group_size=3", "groups_per_unit=2", "steps=3", "save_every=3", "pool.workers=1"]
    small += ["sampling.max_tokens=24", "sampling.grammar=true", "evaluation.num_scenes=2", "evaluation.every=3"]
    small += ["learner.zero_stage=3", "learner.average=0", "learner.minibatches=1", "learner.micro_groups=1"]
    small += ["env.image_size=32", f"policy.checkpoint={folder}", f"run={tmp_path / 'run'}"]
    command = [sys.executable, "-c", "from rl.cli.main import main; main()", "train", "tiny", *small]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
    steps = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert sum("learner/grad_norm" in numbers for numbers in steps) == 3


def test_modules_are_called_as_often_whatever_the_lengths_of_answers(folder: Path) -> None:
    # Ranks that share out weights go through them in step, by their calls.
    policy = Policy(folder, Codec())
    calls: list[str] = []
    for name, module in policy.model.model.language_model.named_modules():
        if name and not list(module.children()):
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    found = []
    for lengths in ([3], [3, 200, 60], [1, 65, 130, 300]):
        calls.clear()
        policy(policy.rows(ask_all(images(1), PHRASES[:1]), [[torch.full((n,), 9).numpy() for n in lengths]]))
        found.append(list(calls))
    assert found[0] == found[1] == found[2] and found[0].count("layers.0.linear_attn.conv1d") == 1
