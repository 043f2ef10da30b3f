"""A rank works where it was placed, whatever DeepSpeed found when it was loaded."""

from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from ranks import LEARNER, Session, Weights, all_weights, batch, of_dtype, run, together

from rl.config.learner import RankPlace
from rl.learner.batches.batch import Batch


def stepped(place: RankPlace, checkpoint: Path, each: Batch) -> tuple[str, str, str, Weights]:
    """(device, accelerator, backend, weights after a step) of a rank on a machine whose GPUs DeepSpeed chose."""
    import torch
    from deepspeed.accelerator import get_accelerator, set_accelerator
    from deepspeed.accelerator.cuda_accelerator import CUDA_Accelerator

    from rl.learner.rank import LearnerRank

    set_accelerator(CUDA_Accelerator())
    rank = LearnerRank(of_dtype(checkpoint, LEARNER), place)
    rank.step(each)
    kind = get_accelerator().device_name()
    return str(rank._engine.device.type), kind, torch.distributed.get_backend(), all_weights(rank)


@pytest.mark.slow
def test_a_rank_that_reserved_no_gpu_learns_on_the_cpu_though_deepspeed_chose_the_gpus(tiny_untrained: Path) -> None:
    each = batch(tiny_untrained, 0)
    (found,) = together(stepped, 1, tiny_untrained, each, context=get_context("spawn"))
    assert found[:3] == ("cpu", "cpu", "gloo")
    (plain,) = run(tiny_untrained, [Session(LEARNER, [each])])
    assert np.array_equal(found[3], plain[1])


def test_a_rank_refuses_a_card_that_its_process_does_not_see_or_shares_with_other_ranks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from rl.learner.engine import work_on

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    seen = {"none": 0, "two": 2, "one": 1}
    for found in seen.values():
        monkeypatch.setattr("torch.cuda.device_count", lambda found=found: found)
        place = RankPlace(1, 4, device="cuda")
        if found == 1:
            work_on(place)
            continue
        told = (
            rf"^learner rank 1 reserves a GPU .* sees {found} \(CUDA_VISIBLE_DEVICES is '2,3'\) where it needs exactly"
        )
        with pytest.raises(ValueError, match=told):
            work_on(place)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    work_on(RankPlace(device="cuda"))  # alone in this process, it takes the first
