"""Routes of experts: what the sampler tells is what the learner's routers would choose, and where they would not, in
half precision, it is taken all the same."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from moondream_toy import codec, write_toy
from test_vision_language import write_kimi_vl, write_llava, write_qwen3_vl_moe
from torch import Tensor
from transformers import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter
from transformers.models.qwen3_vl_moe.configuration_qwen3_vl_moe import Qwen3VLMoeTextConfig
from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import Qwen3VLMoeTextTopKRouter

from envs.codecs.path_tokens import Codec
from envs.example import Prompt, Question
from policies.families import moondream
from policies.families.base import PromptRows, Response, Routes
from policies.families.vision_language import Policy
from policies.sharing.packing import pack_rows
from policies.sharing.routes import FREE, Choice, replace_routers, routed
from rollout.engines.base import uniforms
from rollout.engines.shared import sample
from rollout.settings import Sampling

WRITERS = (write_qwen3_vl_moe, write_kimi_vl, write_toy)
GROUPS, ANSWERS, TOKENS = 4, 8, 40
MANY = 24
"""Answers a group where it takes 3,000 tokens for some choices to fall otherwise."""


def policy_of(write: object, folder: Path, dtype: str = "float32", loud: float = 1.0) -> Policy:
    """loud: what the experts' weights are multiplied by, so that it counts which are chosen."""
    write(folder)
    family = (moondream.Policy, codec()) if write is write_toy else (Policy, Codec())
    policy = family[0](folder, family[1], dtype=dtype).eval()
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.ndim == 3:
                parameter.mul_(loud)
    return policy


def asked() -> list[Question]:
    rng = np.random.default_rng(0)
    phrases = ("the red disc", "the disc", "the red disc left of the disc", "disc")
    return [Question(rng.integers(0, 256, (40, 56, 3), dtype=np.uint8), Prompt.of_text(phrase)) for phrase in phrases]


def answers_of(
    policy: Policy, at_once: int | None = None, replay: bool = True, each: int = ANSWERS
) -> list[list[Response]]:
    rows = policy.rows(asked(), [[np.array([policy.processor.end_token])]] * GROUPS)
    heads = len(policy.processor.heads)
    draws = np.array([[uniforms((b, g), TOKENS, heads) for g in range(each)] for b in range(GROUPS)])
    flat = sample(policy, rows, Sampling(1.0, TOKENS, routing_replay=replay), draws, at_once)
    return [flat[b * each : (b + 1) * each] for b in range(GROUPS)]


def rows_of(policy: Policy, answers: list[list[Response]]) -> PromptRows:
    rows = policy.rows(asked(), [[each.choices for each in row] for row in answers])
    return routed(rows, [[each.routes for each in row] for row in answers])


def freed(rows: PromptRows) -> PromptRows:
    """The rows, in which every router chooses by itself."""
    return replace(rows, prompt_routes=None, response_routes=None)


def differences(policy: Policy, rows: PromptRows, answers: list[list[Response]]) -> Tensor:
    """[tokens] how far the learner's log-probabilities are from those that the sampler gave."""
    told = torch.from_numpy(np.concatenate([each.logprobs for row in answers for each in row]))
    with torch.no_grad():
        return (policy(rows)[rows.response_mask] - told).abs()


def own_choices(policy: Policy, rows: PromptRows) -> Tensor:
    """[B * L, M, k] experts that the learner's routers choose by themselves."""
    choices = [module for module in policy.model.modules() if isinstance(module, Choice)]
    taken: list[Tensor] = []
    hooks = [module.register_forward_hook(lambda _, __, experts: taken.append(experts)) for module in choices]
    with torch.no_grad():
        policy(freed(rows))
    for hook in hooks:
        hook.remove()
    return torch.stack(taken, dim=1)


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("at_once", [None, 2 * ANSWERS])
def test_the_sampler_tells_just_what_the_learners_routers_choose_at_every_token(
    write: object, at_once: int | None, tmp_path: Path
) -> None:
    policy = policy_of(write, tmp_path, loud=12.0)
    answers = answers_of(policy, at_once)
    rows = rows_of(policy, answers)
    given = pack_rows(rows).routes.flatten(0, 1)
    known = (given != FREE).all(-1).all(-1)
    # All tokens but padding and each answer's last, which predicts nothing.
    real = int(rows.prompt_mask.sum()) + int(rows.response_mask.sum()) - GROUPS * ANSWERS
    assert int(known.sum()) == real and (given != FREE).flatten(1).any(1).equal(known)
    assert given[known].sort(-1).values.equal(own_choices(policy, rows)[known].sort(-1).values.to(torch.int16))
    assert differences(policy, rows, answers).max() < 3e-5
    assert answers[0][0].routes.prompt is answers[0][1].routes.prompt  # once a group, however many answers


@pytest.mark.parametrize("write", WRITERS)
def test_in_half_precision_near_ties_fall_otherwise_and_routes_put_that_right(write: object, tmp_path: Path) -> None:
    policy = policy_of(write, tmp_path, "bfloat16", loud=12.0)
    answers = answers_of(policy, each=MANY)
    rows = rows_of(policy, answers)
    # Measured 0.52, 0.60 and 2.7 (Moondream); 0.031 to 0.052 is what rounding leaves.
    assert differences(policy, freed(rows), answers).max() > 0.25
    assert differences(policy, rows, answers).max() < 0.1


@pytest.mark.parametrize("write", WRITERS)
def test_given_routes_hold_while_layers_are_computed_again_and_change_gradients(write: object, tmp_path: Path) -> None:
    policy = policy_of(write, tmp_path, loud=12.0)
    answers = answers_of(policy)
    rows = rows_of(policy, answers)
    # Everybody one expert further: what nobody would choose.
    wrong = replace(rows, prompt_routes=further(rows.prompt_routes), response_routes=further(rows.response_routes))
    found = {}
    for name, given, again in (("own", rows, False), ("wrong", wrong, False), ("wrong again", wrong, True)):
        policy.train()
        if again:
            policy.checkpoint_gradients()
        policy.zero_grad()
        logprobs = policy(given)
        logprobs.sum().backward()
        found[name] = (
            logprobs.detach(),
            torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None]),
        )
    assert torch.equal(found["wrong"][0], found["wrong again"][0])
    assert torch.allclose(found["wrong"][1], found["wrong again"][1], rtol=1e-5, atol=1e-6)
    assert (found["own"][0] - found["wrong"][0]).abs().max() > 0.1
    assert (found["own"][1] - found["wrong"][1]).abs().max() > 0.1


def further(routes: Tensor) -> Tensor:
    """Experts of 4 or more, each one further on."""
    return torch.where(routes == FREE, routes, (routes + 1) % 4)


def test_a_model_without_experts_and_who_does_not_ask_get_no_routes(tmp_path: Path) -> None:
    for name, write, replay in (("dense", write_llava, True), ("unasked", write_qwen3_vl_moe, False)):
        (tmp_path / name).mkdir()
        policy = policy_of(write, tmp_path / name)
        answers = answers_of(policy, replay=replay)
        assert all(each.routes is None for row in answers for each in row)
        assert rows_of(policy, answers).prompt_routes is None


def by_hand() -> PromptRows:
    """A row of a prompt of 3 behind 1 of padding, with answers of 2 and 1 tokens; and one of 4 with one of 2."""
    mask = torch.tensor([[False, True, True, True], [True] * 4])
    tokens, none = torch.zeros(2, 4, dtype=torch.int64), torch.zeros(0)
    real = torch.tensor([[[True, True], [True, False]], [[True, True], [False, False]]])
    return PromptRows(tokens, mask, none, none, torch.zeros(2, 2, 2, dtype=torch.int64), real, real)


def test_a_state_has_the_routes_of_the_token_that_it_chose() -> None:
    prompt = np.array([5, 6], np.int16).reshape(2, 1, 1)
    first, second = (np.array(told, np.int16).reshape(-1, 1, 1) for told in ([7, 8], [7]))
    found = routed(by_hand(), [[Routes(prompt, first), Routes(prompt, second)], [None]])
    # 7 is where the prompt's last token went, and the first answer's first token went to 8.
    assert found.prompt_routes.flatten(1).tolist() == [[-1, 5, 6, 7], [-1] * 4]
    assert found.response_routes.flatten(1).tolist() == [[8, -1, -1, -1], [-1] * 4]
    assert routed(by_hand(), [[None, None], [None]]).prompt_routes is None


def test_a_prompt_that_the_learner_sees_otherwise_is_told() -> None:
    routes = Routes(np.zeros((5, 1, 1), np.int16), np.zeros((2, 1, 1), np.int16))
    with pytest.raises(ValueError, match=r"the experts of 5 tokens of a prompt, of which the learner sees 2"):
        routed(by_hand(), [[routes], [None]])


def test_routers_choose_and_weigh_as_those_of_transformers_do() -> None:
    torch.manual_seed(0)
    qwen = Qwen3VLMoeTextTopKRouter(Qwen3VLMoeTextConfig(hidden_size=16, num_experts=8, num_experts_per_tok=3))
    grouped = {"n_group": 4, "topk_group": 2, "num_experts_per_tok": 3, "routed_scaling_factor": 2.446}
    deepseek = DeepseekV3TopkRouter(DeepseekV3Config(hidden_size=16, n_routed_experts=16, **grouped))
    with torch.no_grad():
        for router in (qwen, deepseek):
            router.weight.normal_()
        deepseek.e_score_correction_bias.normal_()
        for router in (qwen, deepseek):
            for dtype in (torch.float32, torch.bfloat16):
                states = torch.randn(50, 16).to(dtype)
                held = torch.nn.Sequential(router.to(dtype))
                expected = held(states)
                replace_routers(held)
                assert not isinstance(held[0], type(router))
                found = held(states)
                order, wanted = found[2].argsort(1), expected[2].argsort(1)
                assert torch.equal(found[0], expected[0])
                assert torch.equal(found[2].gather(1, order), expected[2].gather(1, wanted))
                assert torch.allclose(found[1].gather(1, order), expected[1].gather(1, wanted), rtol=1e-6)
                assert found[1].dtype == expected[1].dtype
