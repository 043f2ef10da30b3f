"""Under ZeRO-3 the head is gathered once in each direction of a pass, whatever ranks have to score."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ranks import LEARNER, of_dtype, together
from test_token_budget import batch

from rl.config.learner import LearnerSettings, RankPlace
from rl.learner.batches.batch import Batch


def collectives(place: RankPlace, checkpoint: Path, batches: list[Batch], logit_bytes: int) -> Counter[str]:
    """Of one step a batch: traces of modules that were thrown away, gathers of all parameters and of the head."""
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator as Coordinator

    from rl.learner import engine, one_copy
    from rl.learner.rank import LearnerRank

    plain, invalidate = engine.engine_config, Coordinator._invalidate_trace
    gather = Coordinator._PartitionedParameterCoordinator__all_gather_params_
    counts: Counter[str] = Counter()

    def without_small_exceptions(learner: LearnerSettings) -> dict[str, Any]:
        config = plain(learner)
        config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        return config

    def invalidating(self: Any) -> None:
        counts["invalidated"] += 1
        invalidate(self)

    def gathering(self: Any, parameters: Any, *others: Any, **named: Any) -> None:
        absent = [p for p in parameters if p.ds_status == ZeroParamStatus.NOT_AVAILABLE]
        counts["all"] += len(absent)
        counts["head"] += sum(p is head for p in absent)
        gather(self, parameters, *others, **named)

    engine.engine_config = one_copy.engine_config = without_small_exceptions
    Coordinator._invalidate_trace = invalidating
    Coordinator._PartitionedParameterCoordinator__all_gather_params_ = gathering
    whole = of_dtype(checkpoint, replace(LEARNER, zero_stage=3, micro_groups=1, minibatches=1))
    policy = whole.policy.with_settings(logit_bytes=logit_bytes)
    rank = LearnerRank(replace(whole, policy=policy), place)
    head = rank._engine.network.model.lm_head.weight
    for each in batches:
        rank.step(each)
    return counts


@pytest.mark.slow
def test_small_chunks_of_logits_cost_no_gather_and_no_trace(tiny_untrained: Path) -> None:
    batches = [batch(tiny_untrained, seed) for seed in (0, 1)]
    most = max(int(tokens) for each in batches for tokens in each.answer_tokens())
    eight_tokens = 8 * 4 * 300
    assert most > 4 * 8  # ranks with as many chunks as groups are long, so that no two passes are alike
    whole, other_rank = together(collectives, 2, tiny_untrained, batches, 2**28)
    in_chunks, _ = together(collectives, 2, tiny_untrained, batches, eight_tokens)
    assert in_chunks == whole == other_rank
    assert whole["invalidated"] == 0
    # Six passes, three a step; tied to the embedding, the head is gathered for that too.
    assert 6 <= whole["head"] <= 3 * 6
