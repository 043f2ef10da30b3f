"""Root mean square layer norm (arXiv 1910.07467) whose derivative is written out.

    y = w x / r,  r = sqrt(mean(x^2) + eps)
    dL/dx = (w g - x mean(w g x) / r^2) / r,  dL/dw = sum over tokens of g x / r

transformers writes it as five operations, each of which autograd keeps something for: five arrays of the size of x are
written forwards and about ten backwards. Here x itself and one number a token are kept, one array is
written forwards and two backwards. A learner pass of the embedded model is limited by memory more than by arithmetic.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRMSNorm
from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import Qwen3VLMoeTextRMSNorm

SAME_NORMS = (
    LlamaRMSNorm,
    Qwen2RMSNorm,
    Qwen2_5_VLRMSNorm,
    Qwen3RMSNorm,
    Qwen3VLMoeTextRMSNorm,
    Qwen3VLTextRMSNorm,
)
"""Classes of transformers that compute just this."""


class RootMeanSquareNorm(nn.Module):
    """One of transformers' norms, under the same names."""

    def __init__(self, weight: nn.Parameter, eps: float) -> None:
        """weight: [width]; eps: added to the mean square."""
        super().__init__()
        self.weight = weight
        self.variance_epsilon = eps

    def forward(self, states: Tensor) -> Tensor:
        """States [..., width] divided by their root mean square, times the weight.

        In half precision operation by operation as transformers does, since where each rounds is part of a model.
        """
        if states.dtype == torch.float32:
            normed: Tensor = _Norm.apply(states, self.weight, self.variance_epsilon)
            return normed
        precise = states.to(torch.float32)
        square = precise.pow(2).mean(-1, keepdim=True)
        return self.weight * (precise * torch.rsqrt(square + self.variance_epsilon)).to(states.dtype)


def replace_norms(model: nn.Module) -> None:
    """Put a RootMeanSquareNorm in the place of every such norm of transformers, with the very parameter it had."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, SAME_NORMS):
                made = RootMeanSquareNorm(child.weight, child.variance_epsilon)
                parent.register_module(name, made.train(child.training))


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, eps: float) -> Tensor:
        length = torch.linalg.vector_norm(states, dim=-1, keepdim=True)
        inverse = length.square_().div_(states.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(states, weight, inverse)
        return (states * inverse).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # type: ignore[override]
        states, weight, inverse = ctx.saved_tensors
        width = states.shape[-1]
        product = torch.mul(slopes, states, out=states.new_empty(states.shape))  # slopes of heads come transposed
        flat = product.view(-1, width)
        of_weight = torch.mv(flat.t(), inverse.flatten()) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, of_weight, None
        mean = torch.mv(flat, weight).view(inverse.shape).mul_(inverse.pow(3)).div_(-width)
        of_states = torch.mul(states, mean, out=product)
        return of_states.add_((slopes * weight).mul_(inverse)), of_weight, None
