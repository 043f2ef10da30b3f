"""Stages that train parts of a policy: what is frozen stays to the bit, whatever optimizer and ZeRO stage, and a
training goes on from the midst of a stage. Rates of the vision tower, against plain torch."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ranks import ENV, apart, together
from rich.console import Console
from safetensors.torch import load_file
from test_mask_decoder_ranks import settings as of_decoder
from test_sft_rank import LEARNER, SETTINGS, STAGE, settings, trained
from torch import Tensor

from policies.families.vision_language import Policy
from policies.settings import LoraSettings
from rl.config.learner import RankPlace
from rl.config.sft import SftConfig, SftLearner, SftSettings, SftStage, Stretch
from rl.learner.muon import LR_SHARE, MuonAdamW, SlowPart
from rl.learner.policy import encoder_of, keep_to
from rl.sft import run_sft
from rl.supervised.rank import SftRankSettings

STAGES = [
    SftStage("projector", 2, lr=0.01, trains="projector"),
    SftStage("more of it", 1, lr=0.01, trains="projector"),
    SftStage("groups", 3, lr=0.003, trains="all_but_encoders"),
    SftStage("tuned", 2, lr=0.003),
]
EVERY = [(0, 3, "projector"), (3, 6, "all_but_encoders"), (6, 8, "all")]


def choosing(folder: Path, checkpoint: Path, learner: SftLearner) -> SftConfig:
    return SftConfig(
        run=str(folder),
        max_tokens=8,
        env={"name": "cutout_scenes", "image_size": 32, "num_scenes": 6, "candidates": 8, "max_scale": 0.45},
        codec={"name": "mask_group"},
        policy={"name": "mask_selection", "checkpoint": str(checkpoint)},
        sft=SftSettings(STAGES, scenes_per_step=2, warmup_steps=2, evaluate_every=2, evaluate_scenes=2),
        learner=learner,
    )


def ran(config: SftConfig) -> int:
    run_sft(config, Console(quiet=True))
    return 0


def weights(folder: Path) -> dict[str, Tensor]:
    chosen = {f"selection.{name}": weight for name, weight in load_file(folder / "selection.safetensors").items()}
    return load_file(folder / "model.safetensors") | chosen


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name, weight in after.items() if not torch.equal(weight, before[name])}


def is_encoder(name: str) -> bool:
    return "visual" in name and "merger" not in name


def test_steps_are_cut_where_what_is_trained_changes_and_each_part_warms_up() -> None:
    sft = SftSettings(STAGES, warmup_steps=2)
    assert [(each.first, each.end, each.trains) for each in sft.stretches] == EVERY
    assert [sft.stretch_at(step).first for step in (0, 2, 3, 5, 6, 8, 99)] == [0, 0, 3, 3, 6, 6, 6]
    rates = [sft.stage_at(step)[1] for step in range(8)]
    for first in (0, 3, 6):
        stage, whole = sft.stage_at(first)[0], sft.stage_at(first)[0].lr
        assert rates[first] == pytest.approx(whole / 2) and rates[first + 1] == pytest.approx(stage.lr_at(1))
    assert rates[2] == pytest.approx(0.01)  # the second stage of the projector goes on with its optimizer
    with pytest.raises(ValueError, match=r"trains is 'encoders'"):
        SftSettings([SftStage("wrong", 1, lr=1e-3, trains="encoders")])


@pytest.mark.parametrize("learner", [SftLearner(threads=1), SftLearner(threads=1, optimizer="muon")])
def test_a_stage_moves_its_part_alone_and_one_stopped_within_ends_as_if_it_had_not_been(
    tiny_untrained: Path, tmp_path: Path, learner: SftLearner
) -> None:
    whole = choosing(tmp_path / "whole", tiny_untrained, learner)
    apart(ran, whole)
    began = load_file(tiny_untrained / "model.safetensors")
    after = [weights(tmp_path / f"whole/{each}") for each in ("stages/step-000003", "stages/step-000006", "policy")]
    words = {name for name in after[0] if name in began}
    assert not moved(began, {name: after[0][name] for name in words})  # projector, prefixes and classifier alone
    second, third = moved(after[0], after[1]), moved(after[1], after[2])
    assert second and not any(is_encoder(name) for name in second)
    assert any("merger" in name for name in second) and any("layers.0.mlp" in name for name in second)
    assert {"selection.first.weight", "selection.classifier.weight"} <= second
    assert any(is_encoder(name) for name in third) and any("layers.0.mlp" in name for name in third)
    # Ended behind step 4, in the midst of the second part, and gone on with.
    halves = replace(whole, run=str(tmp_path / "halves"))
    cut = [*STAGES[:2], replace(STAGES[2], steps=3)]
    apart(stopped_behind, replace(halves, sft=replace(whole.sft, stages=[*cut, STAGES[3]])), 4)
    assert not (tmp_path / "halves/stages/step-000006").exists() and (tmp_path / "halves/stages/step-000003").is_dir()
    apart(ran, halves)
    for name in ("curve.tsv", "policy/model.safetensors", "policy/selection.safetensors"):
        assert (tmp_path / "halves" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


class Stopped(Exception):
    pass


def stopped_behind(config: SftConfig, steps: int) -> int:
    """A training that ends with an error before step steps + 2."""
    from rl.supervised.rank import SftRank

    plain = SftRank.steps

    def steps_until(self: SftRank, end: int) -> list[dict[str, float]]:
        if end > steps + 1:
            raise Stopped
        return plain(self, end)

    SftRank.steps = steps_until  # type: ignore[method-assign]
    with pytest.raises(Stopped):
        run_sft(config, Console(quiet=True))
    return 0


def test_a_part_that_is_not_there_and_a_policy_that_is_gone_are_told_in_a_line(
    tiny_untrained: Path, tmp_path: Path
) -> None:
    config = choosing(tmp_path / "run", tiny_untrained, SftLearner(threads=1))
    decoder = replace(config.sft, stages=[SftStage("draws", 1, lr=1e-3, trains="decoder")])
    with pytest.raises(
        ValueError,
        match=r"^stage draws trains 'decoder', and policy mask_selection has no such part; .* all_but_encoders, proj",
    ):
        run_sft(replace(config, sft=decoder), Console(quiet=True))
    apart(stopped_behind, config, 4)
    (tmp_path / "run/stages/step-000003").rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"stages/step-000003 is gone, the policy that"):
        run_sft(config, Console(quiet=True))


def frozen_and_moved(place: RankPlace, each: SftRankSettings) -> tuple[list[str], list[str]]:
    """Names of what stayed to the bit and of what moved in three steps, of whole weights."""
    from rl.supervised.rank import SftRank

    rank = SftRank(each, place)

    def held() -> dict[str, Tensor]:
        return {name: value.clone() for part in rank._policy.parts(merged=True) for name, value in part}

    before = held()
    rank.steps(3)
    after = held()
    same = [name for name in before if torch.equal(before[name], after[name])]
    return same, [name for name in before if name not in same]


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "stage", "dtype"), [(1, 0, "bfloat16"), (2, 2, "float32"), (2, 3, "bfloat16")])
def test_at_every_zero_stage_a_decoder_alone_learns_where_that_is_asked(
    tiny_untrained: Path, ranks: int, stage: int, dtype: str
) -> None:
    learner = replace(LEARNER, ranks=ranks, zero_stage=stage, dtype=dtype, weight_decay=0.1)
    for trains, lora in (("decoder", None), ("all_but_encoders", LoraSettings(rank=2))):
        each = replace(of_decoder(tiny_untrained, replace(learner, lora=lora)), stretch=Stretch(0, 3, trains))
        for same, other in together(frozen_and_moved, ranks, each):
            assert {name for name in other if name.startswith("mask_decoder.")} and other
            if trains == "decoder":
                assert all(name.startswith("mask_decoder.") for name in other)
            else:
                assert {name for name in same if "visual" in name} == {n for n in [*same, *other] if "visual" in n}
                # With adapters: the layers that have some, and the row of the token that asks for masks.
                assert any("q_proj" in name for name in other) and any("embed_tokens" in name for name in other)


def steps_of_plain_torch(checkpoint: Path, share: float) -> np.ndarray:
    from envs.codecs.path_tokens import Codec
    from rl.supervised.answers import taught

    policy, env = Policy(checkpoint, Codec()), ENV.build(split="train")
    slow = {id(each) for each in encoder_of(policy)}
    groups = [
        {"params": [p for p in policy.parameters() if (id(p) in slow) == is_slow], "lr": rate}
        for is_slow, rate in ((False, 5e-4), (True, 5e-4 * share))
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.01)
    rows = [taught(env.scene(k), env, policy.processor, SETTINGS, STAGE) for k in range(3)]
    made = policy.processor.supervised_rows([row for row in rows if row])
    (-policy(made).sum() / made.scored_mask.sum()).backward()
    torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
    optimizer.step()
    return torch.cat([parameter.detach().flatten() for parameter in policy.model.parameters()]).numpy()


@pytest.mark.slow
def test_the_vision_tower_learns_at_its_share_of_the_rate_and_other_ranks_go_on_at_it(
    tiny_untrained: Path, tmp_path: Path
) -> None:
    expected = steps_of_plain_torch(tiny_untrained, 0.01)
    for ranks, stage in ((1, 0), (2, 1), (2, 2), (2, 3)):
        learner = replace(LEARNER, ranks=ranks, zero_stage=stage, vision_lr_share=0.01)
        saved = tmp_path / f"{ranks}-{stage}" / "learner"
        each = settings(tiny_untrained, learner)
        (found, *_) = together(trained, ranks, each, 1, None, saved)
        assert np.abs(found[1] - expected).mean() < 1e-6 and np.abs(found[1] - expected).max() < 5e-5, learner
        if stage == 0:
            (whole, *_), (one, *_) = together(trained, 1, each, 3), together(trained, 1, each, 3, saved)
            assert np.array_equal(one[1], whole[1])
            continue
        (two, *_) = together(trained, 2, each, 3, saved)
        (one,) = together(trained, 1, replace(each, learner=replace(learner, ranks=1)), 3, saved)
        # A rate or moments that were lost would be off by about a whole step in the mean.
        assert np.abs(one[1] - two[1]).mean() < 1e-6 and np.abs(one[1] - two[1]).max() < 1e-4, learner


def test_muon_too_gives_the_tower_its_share_and_keeps_it_over_a_checkpoint(tiny_untrained: Path) -> None:
    from envs.codecs.path_tokens import Codec

    policy = Policy(tiny_untrained, Codec())
    slow = encoder_of(policy)
    made = MuonAdamW(policy.named_parameters(), 0.01, SlowPart(slow, 0.1))
    of_tower = {id(each) for each in slow}
    shares = {}
    for group in made.param_groups:
        assert len({id(each) in of_tower for each in group["params"]}) == 1
        shares[id(group["params"][0]) in of_tower, group["params"][0].ndim == 2] = group[LR_SHARE]
    assert sorted(group[LR_SHARE] for group in made.param_groups) == pytest.approx([1 / 30, 0.1, 1 / 3, 1.0])
    assert sum(len(group["params"]) for group in made.param_groups) == len(list(policy.parameters()))
    again = MuonAdamW(policy.named_parameters(), 0.01, SlowPart(slow, 0.1))
    again.load_state_dict(made.state_dict())
    assert [g[LR_SHARE] for g in again.param_groups] == [g[LR_SHARE] for g in made.param_groups]
    merger = [each for module in policy.vision_projector for each in module.parameters()]
    assert merger and not {id(each) for each in merger} & of_tower  # the projector has the whole rate


def test_lora_leaves_the_tower_to_learn_whole_where_that_is_asked_and_refuses_what_contradicts_it() -> None:
    with pytest.raises(ValueError, match=r"train_vision is true with learner\.lora\.push adapters"):
        LoraSettings(train_vision=True, push="adapters")
    with pytest.raises(ValueError, match=r"freeze_vision is true with learner\.lora\.train_vision"):
        SftLearner(freeze_vision=True, lora=LoraSettings(train_vision=True))
    with pytest.raises(ValueError, match=r"freeze_vision is true with learner\.vision_lr_share 0\.01"):
        SftLearner(freeze_vision=True, vision_lr_share=0.01)


@pytest.mark.slow
def test_the_first_stage_of_qwen3_vl_seg_moves_adapters_tower_decoder_and_the_tokens_of_masks(
    tiny_untrained: Path,
) -> None:
    learner = replace(LEARNER, lora=LoraSettings(rank=2, train_vision=True), vision_lr_share=0.01)
    ((same, other),) = together(frozen_and_moved, 1, of_decoder(tiny_untrained, learner))
    assert any(is_encoder(name) for name in other) and any("merger" in name for name in other)
    assert any(name.startswith("mask_decoder.") for name in other) and any("q_proj" in name for name in other)
    assert all("norm" in name for name in same if "language_model" in name), same


def test_what_is_frozen_already_stays_so(tiny_untrained: Path) -> None:
    from envs.codecs.path_tokens import Codec

    policy = Policy(tiny_untrained, Codec(), lora=LoraSettings(rank=2))
    keep_to(policy, "projector")
    assert not [name for name, each in policy.named_parameters() if each.requires_grad]  # adapters alone would learn
    plain = Policy(tiny_untrained, Codec())
    keep_to(plain, "projector")
    assert all("merger" in name for name, each in plain.named_parameters() if each.requires_grad)
