"""Routes: which experts of a mixture each token goes to, told by a sampler and taken again by a learner.

A router chooses the experts with the highest scores. Sampler and learner compute the same scores in other orders of
summation, so in half precision near ties fall otherwise, and a token that goes to another expert has another
log-probability by far more than rounding. Routing replay (R3, arXiv 2510.11370) hands the sampler's choices to the
learner; what the chosen experts weigh is computed anew there, with gradients for the router.

Letters: B rows, L tokens of a row, N = B L, M layers with experts, E experts, k of them a token.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter
from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import Qwen3VLMoeTextTopKRouter

from policies.families.base import PromptRows, Routes

FREE = -1
"""Stands where the router chooses by itself."""


class Choice(nn.Module):
    """The choice of one layer's experts: the best by their scores, or those that are given."""

    def __init__(self, each: int) -> None:
        """each: k."""
        super().__init__()
        self.each = each
        self.given: Tensor | None = None
        """[N, k] int64, the experts of the tokens to come, FREE where their scores choose; None: nowhere."""
        self.keeps = False
        """Whether `taken` is kept."""
        self.taken: Tensor | None = None
        """[N, k] int16, the experts of the last tokens."""

    def forward(self, scores: Tensor) -> Tensor:
        """[N, k] int64 experts of tokens with scores [N, E]."""
        experts = scores.topk(self.each, dim=-1).indices
        if self.given is not None:
            experts = torch.where(self.given == FREE, experts, self.given)
        if self.keeps:
            self.taken = experts.to(torch.int16)
        return experts


class Routers:
    """All layers of a model that choose experts; none in most models."""

    def __init__(self, model: nn.Module) -> None:
        self._choices = [module for module in model.modules() if isinstance(module, Choice)]

    def give(self, routes: Tensor | None) -> None:
        """Send the tokens of the next passes to experts [B, L, M, k], FREE where their scores choose; None: nowhere.

        It holds for the backward pass too, which may compute layers again, and until the next call.
        """
        by_layer = [None] * len(self._choices) if routes is None else routes.long().flatten(0, 1).unbind(1)
        for choice, given in zip(self._choices, by_layer, strict=True):
            choice.given, choice.keeps, choice.taken = given, False, None

    def watch(self) -> None:
        """Let scores choose, and keep what they choose for `taken`."""
        for choice in self._choices:
            choice.given, choice.keeps = None, True

    def taken(self) -> Tensor | None:
        """[N, M, k] int16, the experts of the last pass's tokens; None without experts."""
        found = [choice.taken for choice in self._choices if choice.taken is not None]
        return torch.stack(found, dim=1) if found else None


def routed(rows: PromptRows, routes: Sequence[Sequence[Routes | None]]) -> PromptRows:
    """Rows whose tokens go where their answers [B][up to G] went before; as they are where no answer says it.

    A state that predicts a token has the routes of that token's row: those of a prompt's last token are its answers'
    first. The last token of an answer predicts nothing and is free.
    """
    known = next((each for row in routes for each in row if each is not None), None)
    if known is None:
        return rows
    shape = known.answer.shape[1:]
    prompts = torch.full((*rows.prompt_tokens.shape, *shape), FREE, dtype=torch.int16)
    answers = torch.full((*rows.response_tokens.shape, *shape), FREE, dtype=torch.int16)
    lengths = rows.prompt_mask.sum(1).tolist()
    for b, row in enumerate(routes):
        for g, each in enumerate(row):
            if each is None:
                continue
            if len(each.prompt) != lengths[b] - 1:
                raise ValueError(
                    f"a sampler told the experts of {len(each.prompt)} tokens of a prompt, of which the learner sees "
                    f"{lengths[b] - 1}: they do not show it the same; set sampling.routing_replay to false."
                )
            prompts[b, -lengths[b] : -1] = torch.from_numpy(each.prompt)
            prompts[b, -1] = torch.from_numpy(each.answer[0])
            answers[b, g, : len(each.answer) - 1] = torch.from_numpy(each.answer[1:])
    return replace(rows, prompt_routes=prompts, response_routes=answers)


class SoftmaxRouter(nn.Module):
    """Qwen's router: the best k by softmax over all experts, weighed by their share among themselves."""

    def __init__(self, held: Qwen3VLMoeTextTopKRouter) -> None:
        super().__init__()
        self.weight, self.choice = held.weight, Choice(held.top_k)

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [N, E], weights [N, k] and experts [N, k] of states [..., width], where transformers rounds."""
        logits = functional.linear(states.flatten(0, -2), self.weight)
        shares = logits.softmax(-1, dtype=torch.float32)
        experts = self.choice(shares)
        best = shares.gather(1, experts)
        return logits, (best / best.sum(-1, keepdim=True)).to(logits.dtype), experts


class SigmoidRouter(nn.Module):
    """DeepSeek-V3's router (arXiv 2412.19437, section 2.1.2): the best k of the best groups of experts by sigmoid and
    bias, weighed by the sigmoid alone."""

    def __init__(self, held: DeepseekV3TopkRouter) -> None:
        super().__init__()
        self.weight, self.e_score_correction_bias = held.weight, held.e_score_correction_bias
        self.choice = Choice(int(held.top_k or 0))
        self._groups, self._best_groups = held.num_group, held.topk_group
        self._shares, self._scale = held.norm_topk_prob, held.routed_scaling_factor

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [N, E], weights [N, k], float32 both, and experts [N, k] of states [..., width]."""
        logits = functional.linear(states.flatten(0, -2).float(), self.weight.float())
        scores = logits.sigmoid()
        experts = self.choice(self._in_best_groups(scores + self.e_score_correction_bias))
        weights = scores.gather(1, experts)
        if self._shares:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return logits, weights * self._scale, experts

    def _in_best_groups(self, scores: Tensor) -> Tensor:
        """Scores [N, E], minus infinity outside the groups whose two best add up to most."""
        by_group = scores.unflatten(1, (self._groups, -1))
        best = by_group.topk(2, dim=-1).values.sum(-1).topk(self._best_groups, dim=-1).indices
        closed = torch.ones(by_group.shape[:2], dtype=torch.bool, device=scores.device).scatter(1, best, False)
        return by_group.masked_fill(closed[..., None], -torch.inf).flatten(1)


def replace_routers(model: nn.Module) -> Routers:
    """Put routers that can be watched and given routes in the place of transformers', with the very parameters these
    had; all routers of the model."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Qwen3VLMoeTextTopKRouter):
                parent.register_module(name, SoftmaxRouter(child).train(child.training))
            elif isinstance(child, DeepseekV3TopkRouter):
                parent.register_module(name, SigmoidRouter(child).train(child.training))
    return Routers(model)
