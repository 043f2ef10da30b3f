"""Every ZeRO stage, dtype and number of ranks against plain torch; what moves, what is gathered, what is compiled."""

from collections.abc import Sequence
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import ALGORITHM, ENV, LEARNER, TEMPERATURE, Session, Weights, batch, of_dtype, run, together
from test_vision_language import write_qwen2_5_vl

from envs.codecs.path_tokens import Codec
from policies.families.vision_language import Policy
from policies.settings import LoraSettings
from policies.weights import is_adapter
from rl.config.learner import LearnerSettings, RankPlace
from rl.learner.batches.batch import Batch

FINE = replace(LEARNER, lr=1e-5)
COARSE = replace(LEARNER, dtype="bfloat16")
"""At 1e-3, since smaller steps are lost in the rounding of bfloat16 weights."""


def by_plain_torch(checkpoint: Path, batches: Sequence[Batch], learner: LearnerSettings) -> list[Weights]:
    """Weights before and after each step: AdamW on float32 masters, the model itself in the learner's dtype."""
    policy, env = Policy(checkpoint, Codec(), dtype=learner.dtype), ENV.build(split="train")
    parameters = list(policy.model.parameters())
    masters = [parameter.detach().to(torch.float32, copy=True) for parameter in parameters]
    optimizer = torch.optim.AdamW(masters, lr=learner.lr, betas=(0.9, 0.95), weight_decay=0.0)
    weights = [torch.cat([parameter.detach().float().flatten() for parameter in parameters]).numpy()]
    for whole in batches:
        parts = [whole.part([0, 1]), whole.part([2, 3])]
        rows = [policy.rows(part.questions(env), part.choices) for part in parts]
        old = [policy(row, TEMPERATURE).detach() for row in rows]
        for part, row, before in zip(parts, rows, old, strict=True):
            advantages = torch.from_numpy(part.padded_advantages(row.response_mask.shape[-1]))
            terms = ALGORITHM.terms(policy(row, TEMPERATURE), before, row.response_mask, advantages)
            policy.zero_grad()
            (-terms.objective[torch.from_numpy(part.counts)].mean()).backward()
            for master, parameter in zip(masters, parameters, strict=True):
                master.grad = None if parameter.grad is None else parameter.grad.float()
            torch.nn.utils.clip_grad_norm_(masters, learner.grad_clip)
            optimizer.step()
            with torch.no_grad():
                for master, parameter in zip(masters, parameters, strict=True):
                    parameter.copy_(master)
        weights.append(torch.cat([parameter.detach().float().flatten() for parameter in parameters]).numpy())
    return weights


def kinds(base: LearnerSettings) -> list[LearnerSettings]:
    """Each ZeRO stage, and those that can offload their optimizer also with it."""
    plain = [replace(base, zero_stage=stage) for stage in (0, 1, 2, 3)]
    return plain + [replace(each, offload_optimizer=True) for each in plain[1:]]


@pytest.mark.long
@pytest.mark.parametrize("ranks", [1, 2])
def test_every_stage_in_float32_takes_the_steps_of_plain_torch(tiny_untrained: Path, ranks: int) -> None:
    batches = [batch(tiny_untrained, seed) for seed in (0, 1)]
    expected = by_plain_torch(tiny_untrained, batches, FINE)
    found = run(tiny_untrained, [Session(each, batches) for each in kinds(FINE)], ranks)
    assert np.abs(expected[2] - expected[1]).max() > 5e-6
    for learner, weights in zip(kinds(FINE), found, strict=True):
        for one, right in zip(weights, expected, strict=True):
            np.testing.assert_allclose(one, right, rtol=0, atol=1e-6, err_msg=f"{ranks} ranks, {learner}")


@pytest.mark.long
@pytest.mark.parametrize("ranks", [1, 2])
def test_every_stage_in_bfloat16_moves_as_plain_torch_with_float32_masters(tiny_untrained: Path, ranks: int) -> None:
    """A gradient in bfloat16 has 8 bits, and AdamW makes a whole step of its sign: where a gradient is rounding noise,
    two orders of summation step apart. So no weight may be further off than two full steps of each of the four updates
    and the rounding of the weight itself, and the movement as a whole must be the same but for a small angle."""
    batches = [batch(tiny_untrained, seed) for seed in (0, 1)]
    expected = by_plain_torch(tiny_untrained, batches, COARSE)
    found = run(tiny_untrained, [Session(each, batches) for each in kinds(COARSE)], ranks)
    moved = expected[2] - expected[0]
    for learner, weights in zip(kinds(COARSE), found, strict=True):
        assert np.array_equal(weights[0], expected[0])
        far = np.abs(weights[2] - expected[2]) - 2**-8 * np.abs(expected[2])
        assert far.max() <= 8 * COARSE.lr, (ranks, learner)
        move = weights[2] - weights[0]
        cosine = float(move @ moved / np.linalg.norm(move) / np.linalg.norm(moved))
        assert cosine > 0.95, (ranks, learner, cosine)


def moved(place: RankPlace, jobs: Sequence[tuple[Path, LearnerSettings, Batch]]) -> list[dict[str, bool]]:
    """Of each job: whether a step moved each parameter."""
    from rl.learner.rank import LearnerRank

    found = []
    for checkpoint, learner, each in jobs:
        rank = LearnerRank(of_dtype(checkpoint, learner), place)
        named = dict(rank._engine.network.model.named_parameters())
        before = {name: parameter.detach().clone() for name, parameter in named.items()}
        rank.step(each)
        found.append({name: not torch.equal(parameter, before[name]) for name, parameter in named.items()})
    return found


@pytest.fixture(scope="module")
def moves(tiny_untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, bool]], Path]:
    """What moved: both families with the tower frozen and not, and a policy with adapters; in a process whose folder of
    compiled ops is full of locks that a killed build left."""
    checkpoint, locks = tmp_path_factory.mktemp("qwen2_5_vl"), tmp_path_factory.mktemp("extensions")
    write_qwen2_5_vl(checkpoint)
    for op in ("deepspeed_shm_comm", "cpu_adam", "fused_adam", "utils"):
        (locks / op).mkdir()
        (locks / op / "lock").touch()
    jobs = [
        (each, replace(LEARNER, zero_stage=2, freeze_vision=frozen, offload_optimizer=frozen), batch(each, seed=0))
        for each in (tiny_untrained, checkpoint)
        for frozen in (True, False)
    ]
    jobs.append((tiny_untrained, replace(LEARNER, lora=LoraSettings(rank=2)), batch(tiny_untrained, seed=0)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_EXTENSIONS_DIR", str(locks))
        (found,) = together(moved, 1, jobs, context=get_context("spawn"))  # which hears of the folder
    return found, locks


@pytest.mark.slow
def test_a_frozen_tower_keeps_every_weight_mergers_included_and_all_others_move(
    moves: tuple[list[dict[str, bool]], Path],
) -> None:
    for found, frozen in zip(moves[0][:4], (True, False, True, False), strict=True):
        tower = {name for name in found if name.startswith("model.visual.")}
        assert {"merger" in name for name in tower} == {True, False}
        still = {name for name, has_moved in found.items() if not has_moved}
        assert still == (tower if frozen else set())
    assert any("deepstack_merger_list" in name for name in moves[0][0])


@pytest.mark.slow
def test_with_adapters_they_alone_move(moves: tuple[list[dict[str, bool]], Path]) -> None:
    """A waits for B to leave zero, which the first mini-batch sees to."""
    for name, has_moved in moves[0][4].items():
        assert has_moved == is_adapter(name), name


@pytest.mark.slow
def test_nothing_is_compiled_and_a_stale_lock_is_never_waited_for(moves: tuple[list[dict[str, bool]], Path]) -> None:
    files = sorted(str(path.relative_to(moves[1])) for path in moves[1].rglob("*") if path.is_file())
    assert files == ["cpu_adam/lock", "deepspeed_shm_comm/lock", "fused_adam/lock", "utils/lock"]


def held_at_once(place: RankPlace, checkpoint: Path, lora: LoraSettings | None) -> tuple[list[int], list[int], int]:
    """Of each bucket of 20 kB: the whole weights that this rank holds in its turn, and those it sends; then after."""
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

    from policies.lora import pushed
    from rl.learner import engine as deepspeed_engine
    from rl.learner.rank import LearnerRank

    plain = deepspeed_engine.engine_config

    def without_small_exceptions(learner: LearnerSettings) -> dict[str, Any]:
        config = plain(learner)
        config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        return config

    deepspeed_engine.engine_config = without_small_exceptions
    rank = LearnerRank(of_dtype(checkpoint, replace(LEARNER, zero_stage=3, lora=lora)), place)
    model = rank._engine.network.model

    def whole() -> int:
        return sum(p.ds_numel for p in model.parameters() if p.ds_status == ZeroParamStatus.AVAILABLE)

    held: list[int] = []

    def size(weights: list[tuple[str, torch.Tensor]]) -> int:
        held.append(whole())
        return sum(tensor.numel() for _, tensor in weights)

    sizes = []
    for sent in rank._policy._gathered(size, pushed(model, True, 20_000), average=False):
        sizes.append(sent)
        assert whole() == 0
    return held, sizes, whole()


@pytest.mark.long
@pytest.mark.parametrize("lora", [None, LoraSettings(rank=2)])
def test_under_zero_3_a_push_holds_one_bucket_of_whole_weights_at_a_time(
    tiny_untrained: Path, lora: LoraSettings | None
) -> None:
    for held, sizes, after in together(held_at_once, 2, tiny_untrained, lora):
        assert len(held) > 5 and after == 0
        for now, sent in zip(held, sizes, strict=True):
            # With adapters, A and B of the bucket's layers are whole beside them.
            assert sent <= now <= sent * (1.0 if lora is None else 1.5)
        assert max(held) < sum(sizes) / 3
