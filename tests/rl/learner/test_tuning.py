"""What is passed through to DeepSpeed, what of it is refused, and the optimizer that it steps."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import LEARNER, Session, batch, run

from rl.config.learner import LearnerSettings
from rl.learner.engine import engine_config
from rl.learner.tuning import refuse_wrong_tuning


def test_what_is_passed_through_stands_beside_our_own_settings() -> None:
    tuning = {
        "zero_optimization": {"zero_hpz_partition_size": 8, "overlap_comm": True},
        "data_types": {"grad_accum_dtype": "fp32"},
    }
    learner = LearnerSettings(zero_stage=3, offload_optimizer=True, deepspeed=tuning)
    refuse_wrong_tuning(learner)
    found = engine_config(learner)
    assert found["zero_optimization"] == {
        "stage": 3,
        "offload_optimizer": {"device": "cpu"},
        "zero_hpz_partition_size": 8,
        "overlap_comm": True,
    }
    assert found["data_types"] == {"grad_accum_dtype": "fp32"} and found["gradient_clipping"] == 1.0
    assert "data_types" not in engine_config(LearnerSettings())
    assert "deepspeed" not in learner.identity


@pytest.mark.parametrize(
    ("tuning", "message"),
    [
        (
            {"zero_optimization": {"stage": 2}},
            r"^learner.deepspeed.zero_optimization.stage is set by learner.zero",
        ),
        ({"gradient_clipping": 2}, r"^learner.deepspeed.gradient_clipping is set by learner.grad_clip; leave it out"),
        ({"bf16": {"enabled": True}}, r"^learner.deepspeed.bf16 is set by learner.dtype"),
        (
            {"zero_optimisation": {}},
            r"^learner.deepspeed.zero_optimisation is not passed through; what is, are zero",
        ),
    ],
)
def test_keys_that_are_settings_here_or_unknown_are_refused_when_the_config_is_read(
    tuning: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        LearnerSettings(deepspeed=tuning)


@pytest.mark.parametrize(
    ("tuning", "message"),
    [
        (
            {"zero_optimization": {"zero_hpz_size": 8}},
            r"zero_optimization.zero_hpz_size is 8, .* Extra",
        ),
        ({"zero_optimization": {"reduce_bucket_size": -1}}, r"reduce_bucket_size is -1, .* greater than 0"),
        ({"zero_optimization": 3}, r"zero_optimization is 3, .* it must be a mapping"),
        ({"comms_logger": {"enabled": "perhaps"}}, r"comms_logger.enabled is 'perhaps', .* valid boolean"),
        ({"communication_data_type": "fp8"}, r"communication_data_type is 'fp8'; it is fp32 or bf16 or fp16"),
        ({"data_types": {"grad_dtype": "fp32"}}, r"data_types is .* it has one key, grad_accum_dtype"),
        ({"data_types": {"grad_accum_dtype": "fp32"}}, r"data_types is set at learner.zero_stage 0"),
    ],
)
def test_values_that_deepspeed_does_not_take_are_refused_in_one_line_before_a_rank_starts(
    tuning: dict[str, Any], message: str
) -> None:
    learner = LearnerSettings(deepspeed=tuning)
    with pytest.raises(ValueError, match=message) as refused:
        refuse_wrong_tuning(learner)
    assert "\n" not in str(refused.value)


def test_the_fused_optimizer_takes_the_steps_of_the_plain_one_to_a_few_roundings() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(20_000, generator=generator)
    weights = [torch.nn.Parameter(start.clone()) for _ in range(2)]
    fused, plain = (
        torch.optim.AdamW([w], lr=1e-3, betas=(0.9, 0.95), weight_decay=0.01, fused=one)
        for w, one in zip(weights, (True, False), strict=True)
    )
    for _ in range(50):
        gradient = torch.randn(20_000, generator=generator)
        for weight, optimizer in zip(weights, (fused, plain), strict=True):
            weight.grad = gradient.clone()
            optimizer.step()
    one, other = (w.detach() for w in weights)
    assert (one - start).abs().max() > 5e-3
    # A rounding of numbers below 4 is 2.4e-7 at most; each step rounds anew.
    assert (one - other).abs().max() <= 4 * 2.4e-7
    state = fused.state_dict()
    resumed = torch.optim.AdamW([weights[0]], lr=1e-3, fused=True)
    resumed.load_state_dict(state)
    assert resumed.param_groups[0]["fused"] and resumed.state[weights[0]]["step"].item() == 50


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "tuning"), [(2, {"reduce_bucket_size": 1000}), (3, {"stage3_prefetch_bucket_size": 10_000})]
)
def test_two_ranks_under_tuned_deepspeed_take_the_steps_of_untuned_ones(
    tiny_untrained: Path, stage: int, tuning: dict[str, int]
) -> None:
    batches = [batch(tiny_untrained, seed) for seed in (0, 1)]
    plain = replace(LEARNER, zero_stage=stage)
    tuned = replace(plain, deepspeed={"zero_optimization": tuning})
    expected, found = run(tiny_untrained, [Session(plain, batches), Session(tuned, batches)], ranks=2)
    assert not np.array_equal(found[0], found[-1])
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
