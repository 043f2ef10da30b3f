"""Operations that our own engine starts for a token, counted while it decodes."""

import tempfile
from pathlib import Path
from typing import Any

import pytest
from saved_tensors import Shape, rows_of, small_policy
from torch.utils._python_dispatch import TorchDispatchMode

from policies.sharing.prompt_cache import PromptCache
from rl.planning.seconds import LAUNCHES_OF_LAYER, LAUNCHES_OF_NORMED_HEADS, LAUNCHES_OF_TOKEN


class Launches(TorchDispatchMode):
    """Counts operations that compute; views do not."""

    num = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.num += not any(
            each.alias_info is not None and not each.alias_info.is_write for each in func._schema.returns
        )
        return func(*args, **(kwargs or {}))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "of_heads"), [("qwen2_5_vl_3b", 0), ("qwen3_vl_4b", LAUNCHES_OF_NORMED_HEADS)])
def test_a_token_starts_as_many_operations_a_layer_as_a_plan_reckons_with(name: str, of_heads: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        policy = small_policy(Path(folder), name, layers=2, blocks=1).eval()
    rows, found = rows_of(policy, Shape(side=112, answers=4, tokens=4)), []
    text = policy.model.model.language_model
    for layers in (2, 1):
        text.layers = text.layers[:layers]
        text.config.num_hidden_layers = layers
        cache = PromptCache(policy.encode(rows), 4, 8)
        tokens = cache.prompts.last_tokens[:, None].expand(1, 4)
        policy.decode(cache, tokens, 1.0)
        with Launches() as launches:
            policy.decode(cache, tokens, 1.0)
        found.append(launches.num)
    of_layer = LAUNCHES_OF_LAYER + of_heads
    assert found[0] - found[1] == pytest.approx(of_layer, rel=0.15)
    # Drawing from the log-probabilities comes on top.
    assert 0 < 2 * found[1] - found[0] < LAUNCHES_OF_TOKEN
