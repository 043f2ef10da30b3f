"""Supervised steps by DeepSpeed ranks against plain torch, however the scenes are dealt out and cut into passes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from ranks import ENV, apart, together

from envs.codecs import mask_group
from envs.codecs.path_tokens import Codec
from envs.plugin import Plugin
from policies.families.mask_selection import Policy as Chooser
from policies.families.vision_language import Policy
from policies.settings import LoraSettings
from policies.weights import is_adapter
from rl.config.learner import RankPlace
from rl.config.sft import SftLearner, SftSettings, SftStage
from rl.supervised.answers import taught
from rl.supervised.greedy import greedy_sums
from rl.supervised.rank import SftRankSettings, SftScores

STAGE = SftStage("outlines", 4, lr=1e-3, last_lr=5e-4)
SETTINGS = SftSettings(
    [STAGE], scenes_per_step=3, shuffle=False, max_vertices=9, max_rings=2, warmup_steps=2, evaluate_scenes=3
)
LEARNER = SftLearner(threads=1)
Weights = NDArray[np.float32]
Found = tuple[list[dict[str, float]], Weights, SftScores]


def settings(checkpoint: Path, learner: SftLearner, sft: SftSettings = SETTINGS, env: Plugin = ENV) -> SftRankSettings:
    policy = Plugin("policies.families", "Policy", "vision_language", {"checkpoint": checkpoint, "codec": Codec()})
    return SftRankSettings(learner, sft, policy.with_settings(dtype=learner.dtype), env, max_tokens=24, seed=0)


def trained(
    place: RankPlace,
    each: SftRankSettings,
    steps: int = 2,
    load: Path | None = None,
    save: Path | None = None,
    policy: Path | None = None,
) -> Found:
    """Logs of the steps up to `steps`, all weights after them in float32, and an evaluation."""
    from rl.supervised.rank import SftRank

    rank = SftRank(each, place)
    if load is not None:
        rank.load(load.parent, load.name)
    logs = rank.steps(steps)
    parts = rank._policy.parts(merged=True)
    weights = np.concatenate([w.detach().flatten().numpy() for part in parts for _, w in part])
    scores = rank.evaluate()
    if save is not None:
        rank.save(save.parent, save.name)
    if policy is not None:
        rank.save_policy(policy)
    kind = {"float32": torch.float32, "bfloat16": torch.bfloat16}[each.learner.dtype]
    return logs, torch.from_numpy(weights).view(kind).float().numpy(), scores


def by_plain_torch(checkpoint: Path, steps: int = 2) -> tuple[list[float], Weights, tuple[float, float, float]]:
    """Losses, weights and evaluation by a loop of a few lines."""
    policy, env, validation = Policy(checkpoint, Codec()), ENV.build(split="train"), ENV.build(split="validation")
    optimizer = torch.optim.AdamW(policy.parameters(), betas=(0.9, 0.95), weight_decay=0.01)
    rates, losses = [0.5e-3, 5e-4 + 5e-4 * (1 + math.cos(math.pi / 4)) / 2], []

    def loss_of(scenes: list[Any], source: Any, stage: SftStage) -> torch.Tensor:
        rows = [taught(scene, source, policy.processor, SETTINGS, stage) for scene in scenes]
        made = policy.processor.supervised_rows([row for row in rows if row])
        return -policy(made).sum() / made.scored_mask.sum()

    for step in range(steps):
        loss = loss_of([env.scene((3 * step + k) % len(env)) for k in range(3)], env, STAGE)
        policy.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = rates[step]
        optimizer.step()
        losses.append(loss.item())
    examples = [validation[k] for k in range(3)]
    with torch.no_grad():
        nats = float(loss_of([[example] for example in examples], validation, replace(STAGE, with_absent=True)))
    iou, valid = greedy_sums(policy, validation, examples, 24, LEARNER)
    weights = torch.cat([parameter.detach().flatten() for parameter in policy.model.parameters()]).numpy()
    return losses, weights, (nats, iou / 3, valid / 3)


@pytest.mark.slow
def test_ranks_at_every_stage_and_with_any_passes_take_the_steps_of_plain_adamw(tiny_untrained: Path) -> None:
    losses, weights, scores = by_plain_torch(tiny_untrained)
    before = torch.cat([p.detach().flatten() for p in Policy(tiny_untrained, Codec()).model.parameters()]).numpy()
    assert np.abs(weights - before).max() > 1e-3  # it has moved by about both rates
    kinds = [
        (1, LEARNER),
        (1, replace(LEARNER, micro_scenes=1)),
        (2, replace(LEARNER, zero_stage=3)),
        (2, replace(LEARNER, zero_stage=3, token_budget=400, gradient_checkpointing=True)),
        (2, replace(LEARNER, zero_stage=2, micro_scenes=1, offload_optimizer=True)),
    ]
    for ranks, learner in kinds:
        learner = replace(learner, ranks=ranks)
        for logs, found, evaluated in together(trained, ranks, settings(tiny_untrained, learner)):
            assert [log["loss"] for log in logs] == pytest.approx(losses, rel=2e-5), learner
            # AdamW makes a whole step of a gradient's sign, be it rounding noise: the mean tells more than the largest.
            assert np.abs(found - weights).mean() < 1e-6, learner
            assert np.abs(found - weights).max() < 5e-5, learner
            assert (evaluated.loss, evaluated.greedy_giou, evaluated.valid) == pytest.approx(scores, abs=1e-5), learner


def moved(place: RankPlace, each: SftRankSettings) -> dict[str, bool]:
    from rl.supervised.rank import SftRank

    rank = SftRank(each, place)
    named = dict(rank._policy.network.model.named_parameters())
    before = {name: parameter.detach().clone() for name, parameter in named.items()}
    rank.steps(2)
    return {name: not torch.equal(parameter, before[name]) for name, parameter in named.items()}


@pytest.mark.slow
def test_a_frozen_tower_stays_and_of_an_adapted_policy_the_adapters_alone_move(tiny_untrained: Path) -> None:
    (frozen,) = together(moved, 1, settings(tiny_untrained, replace(LEARNER, freeze_vision=True)))
    assert {name for name, has_moved in frozen.items() if not has_moved} == {n for n in frozen if ".visual." in n}
    apart_from_projector = replace(LEARNER, freeze_vision=True, freeze_projector=False)
    (joined,) = together(moved, 1, settings(tiny_untrained, apart_from_projector))
    assert {n for n, has_moved in joined.items() if not has_moved} == {
        n for n in joined if ".visual." in n and "merger" not in n
    }
    (alone,) = together(moved, 1, settings(tiny_untrained, replace(LEARNER, freeze_projector=True)))
    assert {n for n, has_moved in alone.items() if not has_moved} == {n for n in alone if "merger" in n}
    (adapted,) = together(moved, 1, settings(tiny_untrained, replace(LEARNER, lora=LoraSettings(rank=2))))
    assert all(has_moved == is_adapter(name) for name, has_moved in adapted.items())


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, LoraSettings(rank=2, targets=["q_proj", "v_proj"])])
def test_two_ranks_under_zero_3_go_on_bit_for_bit_and_hand_out_what_they_evaluated(
    tiny_untrained: Path, tmp_path: Path, lora: LoraSettings | None
) -> None:
    each = settings(tiny_untrained, replace(LEARNER, ranks=2, zero_stage=3, lora=lora))
    whole = together(trained, 2, each, 4)
    together(trained, 2, each, 2, None, tmp_path / "saved" / "learner")
    resumed = together(trained, 2, each, 4, tmp_path / "saved" / "learner", None, tmp_path / "policy")
    assert [log["loss"] for log in resumed[0][0]] == [log["loss"] for log in whole[0][0][2:]]
    assert np.array_equal(resumed[0][1], whole[0][1])
    assert resumed[0][2] == whole[0][2] == whole[1][2]
    handed = Policy(tmp_path / "policy", Codec())
    flat = torch.cat([parameter.detach().flatten() for parameter in handed.model.parameters()]).numpy()
    assert np.array_equal(flat, whole[0][1])
    validation = ENV.build(split="validation")
    iou, valid = greedy_sums(handed, validation, [validation[k] for k in range(3)], 24, LEARNER)
    assert (whole[0][2].greedy_giou, whole[0][2].valid) == pytest.approx((iou / 3, valid / 3))


@pytest.mark.slow
def test_a_rank_whose_scene_shows_nothing_keeps_up_with_the_others_and_counts_for_nothing(tiny_untrained: Path) -> None:
    """Of scenes 0 and 1 the second is asked about what is absent alone; rank 1 has no other."""
    half = Plugin("envs", "Env", "half_empty", {}, str(Path(__file__).with_name("half_empty.py")))
    sft = replace(SETTINGS, scenes_per_step=2)
    learner = replace(LEARNER, ranks=2, zero_stage=3)
    (one, _), (alone,) = (
        together(trained, ranks, settings(tiny_untrained, replace(learner, ranks=ranks), sft, half)) for ranks in (2, 1)
    )
    assert [log["tokens"] for log in one[0]] == [log["tokens"] for log in alone[0]]
    assert [log["loss"] for log in one[0]] == pytest.approx([log["loss"] for log in alone[0]], rel=1e-5)
    np.testing.assert_allclose(one[1], alone[1], rtol=0, atol=5e-5)


@pytest.mark.slow
def test_evaluations_and_the_policy_that_is_kept_are_those_of_the_average(tiny_untrained: Path, tmp_path: Path) -> None:
    each = settings(tiny_untrained, replace(LEARNER, ranks=2, zero_stage=1, average=0.9))
    (found, _) = together(trained, 2, each, 3, None, None, tmp_path)
    plain = together(trained, 1, settings(tiny_untrained, LEARNER), 3)[0]
    assert found[2].loss != pytest.approx(plain[2].loss, abs=1e-4)
    kept, validation = Policy(tmp_path, Codec()), ENV.build(split="validation")
    scenes = [[validation[k]] for k in range(3)]
    everything = replace(STAGE, with_absent=True)
    rows = kept.processor.supervised_rows([taught(s, validation, kept.processor, SETTINGS, everything) for s in scenes])
    with torch.no_grad():
        assert found[2].loss == pytest.approx(float(-kept(rows).sum() / rows.scored_mask.sum()), rel=1e-5)


def raised(each: SftRankSettings, spoil: Callable[[Any], None], steps: int) -> tuple[str, int]:
    """What a rank raises in its last step once its policy is spoilt, and how many steps it has done then."""
    from rl.supervised.rank import SftRank

    rank = SftRank(each, RankPlace())
    rank.steps(steps - 1)
    spoil(rank._policy.network)
    try:
        rank.steps(steps)
    except (FloatingPointError, ValueError) as error:
        return str(error), rank._engine.steps_done
    return "", rank._engine.steps_done


def with_nan(network: Any) -> None:
    network.model.model.visual.patch_embed.proj.bias.data[0] = torch.nan


def as_it_is(_: Any) -> None:
    pass


@pytest.mark.slow
def test_a_step_that_is_not_finite_or_teaches_nothing_stops_and_says_which(tiny_untrained: Path) -> None:
    message, done = apart(raised, settings(tiny_untrained, LEARNER), with_nan, 2)
    assert done == 1
    assert message.startswith("step 2 of SFT, in stage outlines, has a loss of nan") and "lr (0.001)" in message
    nothing = Plugin("envs", "Env", "half_empty", {"shown": False}, str(Path(__file__).with_name("half_empty.py")))
    message, done = apart(raised, settings(tiny_untrained, LEARNER, env=nothing), as_it_is, 1)
    assert done == 0
    assert (
        message.startswith("stage outlines: none of the scenes [0, 1, 0] shows anything") and "with_absent" in message
    )


def refused_to_save(each: SftRankSettings, folder: Path) -> tuple[str, list[str]]:
    """What `save` raises where a weight is infinite, and the names of what it has written by then."""
    from rl.supervised.rank import SftRank

    rank = SftRank(each, RankPlace())
    name, parameter = next(iter(rank._policy.network.named_parameters()))
    vars(parameter).get("ds_tensor", parameter).data.fill_(torch.inf)
    try:
        rank.save(folder, "learner")
    except FloatingPointError as error:
        return str(error).replace(name, "NAME"), [path.name for path in folder.iterdir()]
    return "", []


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 3])
def test_weights_that_are_not_finite_are_not_saved(tiny_untrained: Path, tmp_path: Path, stage: int) -> None:
    message, written = apart(refused_to_save, settings(tiny_untrained, replace(LEARNER, zero_stage=stage)), tmp_path)
    assert message.startswith("after step 0 of SFT 1 weights are not finite, NAME among them, so they are not saved")
    assert written == []


def losses_of(each: SftRankSettings, steps: int) -> list[float]:
    from rl.supervised.rank import SftRank

    return [log["loss"] for log in SftRank(each, RankPlace()).steps(steps)]


@pytest.mark.slow
def test_thirty_steps_of_muon_on_two_scenes_take_two_thirds_of_the_loss_away(tiny_untrained: Path) -> None:
    stages: Sequence[SftStage] = [SftStage("outlines", 30, lr=0.02, last_lr=0.01)]
    sft = replace(SETTINGS, stages=list(stages), scenes_per_step=2)
    env = Plugin("envs.datasets", "Env", "cutout_scenes", {"image_size": 32, "num_scenes": 2})
    losses = apart(losses_of, settings(tiny_untrained, replace(LEARNER, optimizer="muon"), sft, env), 30)
    assert losses[0] > 4
    assert np.mean(losses[-3:]) < losses[0] / 3


@pytest.mark.slow
def test_chosen_candidates_weigh_in_the_loss_as_the_stage_says_and_evaluations_do_not_know_of_it(
    tiny_untrained: Path, tmp_path: Path
) -> None:
    """Against log-probabilities of the policy itself, added up here."""
    env = Plugin("envs.datasets", "Env", "cutout_scenes", {"image_size": 32, "num_scenes": 8, "candidates": 6})
    chooser = Chooser(tiny_untrained, mask_group.Codec())
    with torch.no_grad():
        chooser.model.selection.classifier.weight.normal_(std=0.5, generator=torch.Generator().manual_seed(5))
    chooser.save(tmp_path)
    chooser.processor.save(tmp_path)
    chooser.processor.save_config(tmp_path, "float32", tied=True)

    def nats_of(split: str) -> tuple[float, float, int]:
        """Nats of the first three examples' choices: of all candidates, of those that are in; how many there are."""
        source, processor = env.build(split=split), chooser.processor
        examples = [source[k] for k in range(3)]
        texts = [mask_group.Codec().chosen_text(each.candidates, each.truth.masks) for each in examples]
        questions = [each.question(source.image(each.image)) for each in examples]
        rows = processor.rows(questions, [[processor.answer_tokens(text)] for text in texts])
        nats = -chooser(rows).detach()
        return float(nats.sum()), float(nats[rows.response_tokens == 1].sum()), int(rows.scored_mask.sum())

    policy = Plugin(
        "policies.families", "Policy", "mask_selection", {"checkpoint": tmp_path, "codec": mask_group.Codec()}
    )

    def found(weight: float, steps: int) -> Found:
        stage = replace(STAGE, positive_weight=weight, with_absent=True)
        each = settings(tiny_untrained, LEARNER, replace(SETTINGS, stages=[stage], questions="one"), env)
        return together(trained, 1, replace(each, policy=policy.with_settings(dtype="float32")), steps)[0]

    total, positive, num = nats_of("train")
    plain, weighed = found(1.0, 1), found(3.0, 1)
    assert plain[0][0]["loss"] == pytest.approx(total / num, rel=1e-5)
    assert weighed[0][0]["loss"] == pytest.approx((total + 2 * positive) / num, rel=1e-5)
    assert not np.array_equal(plain[1], weighed[1])
    total, _, num = nats_of("validation")
    assert found(3.0, 0)[2].loss == pytest.approx(total / num, rel=1e-5)
