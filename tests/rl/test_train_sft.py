import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from rich.console import Console

from envs.codecs.path_tokens import Codec
from envs.datasets.cutout_scenes import Env
from envs.example import Example, ImageRef
from envs.geometry.contours import mask_from_rings
from envs.polygons import Answer, AnswerStatus, answer_from_rings
from policies.families.vision_language import Policy
from policies.tiny_model import TinySizes
from rewards.score import Target, compare
from rl.config.sft import SftConfig, SftSettings, SftStage
from rl.sft import SftTrainer, annotate, answer_text, greedy_scores, run_sft, scene_rows

BOXES, OUTLINES = SftStage("boxes", 2, answer="box", lr=0.02, last_lr=0.01), SftStage("outlines", 3, number_spread=1.0)
SETTINGS = SftSettings([BOXES, OUTLINES], scenes_per_step=2, warmup_steps=2)
CODEC = Codec(max_rings=4, max_vertices=16)
QUIET = Console(quiet=True)


def scenes(num: int = 4, **settings: float) -> Env:
    return Env("train", image_size=32, num_scenes=num, **settings)


def trainer(checkpoint: Path, settings: SftSettings = SETTINGS, env: Env | None = None) -> SftTrainer:
    return SftTrainer(Policy(checkpoint, CODEC), env or scenes(), settings)


def disc(radius: float, size: int = 64) -> NDArray[np.bool_]:
    y, x = np.mgrid[:size, :size] + 0.5 - size / 2
    return x**2 + y**2 <= radius**2


def drawn(mask: NDArray[np.bool_], **settings: float) -> NDArray[np.bool_]:
    return mask_from_rings(annotate(mask, replace(SETTINGS, **settings)), *mask.shape)


def scored_texts(policy: Policy, env: Env, stage: SftStage) -> list[str]:
    """What each question of scene 0 is scored on, as text."""
    rows = scene_rows(policy, env, [0], SETTINGS, stage)
    scored = zip(rows.response_tokens[0], rows.scored_mask[0], strict=True)
    return [policy.processor.tokenizer.decode(tokens[mask]) for tokens, mask in scored]


def test_an_outline_without_margin_covers_a_disc_at_iou_0_95_with_12_vertices() -> None:
    mask = disc(20)
    (ring,) = annotate(mask, SETTINGS)
    filled = drawn(mask)
    assert len(ring) == 12
    assert (filled & mask).sum() / (filled | mask).sum() > 0.95


def test_a_rectangle_is_annotated_exactly() -> None:
    mask = np.zeros((20, 30), np.bool_)
    mask[3:11, 5:25] = True
    assert annotate(mask, SETTINGS)[0].tolist() == [[5, 3], [25, 3], [25, 11], [5, 11]]


def test_a_margin_is_drawn_outside_as_a_share_of_the_square_root_of_the_area() -> None:
    mask = disc(20)
    for margin in (0.06, 0.12):
        grown = drawn(mask, outline_margin=margin)
        # A disc of radius r grows by margin * sqrt(pi) * r.
        assert grown.sum() / mask.sum() == pytest.approx((1 + margin * math.sqrt(math.pi)) ** 2, rel=0.05)
        assert (grown & mask).sum() > 0.99 * mask.sum()


def test_a_hole_is_outlined_and_a_speck_is_not() -> None:
    mask = disc(20) & ~disc(9)
    mask[0, 0] = True
    rings = annotate(mask, replace(SETTINGS, max_vertices=24))
    assert len(rings) == 2
    assert not mask_from_rings(rings, 64, 64)[31, 31]


def test_outlines_of_scenes_stay_near_their_masks() -> None:
    examples = [example for index in range(8) for example in scenes(8).scene(index)]
    ious = []
    for example in examples:
        mask = example.truth.union
        filled = CODEC.read(answer_text(example, CODEC, SETTINGS), 32, 32).rings_px
        overlap = mask_from_rings(filled, 32, 32)
        ious.append((overlap & mask).sum() / (overlap | mask).sum())
    assert np.mean(ious) > 0.85


def test_the_answer_to_an_absent_thing_is_the_empty_one() -> None:
    absent = scenes(absent_share=1.0).scene(0)[-1]
    assert answer_text(absent, CODEC, SETTINGS) == "none"


def test_the_box_stage_scores_four_numbers_of_each_answer_and_the_outline_stage_all_of_it(tiny_untrained: Path) -> None:
    policy, env = Policy(tiny_untrained, CODEC), scenes()
    answers = [answer_text(example, CODEC, SETTINGS) for example in env.scene(0)]
    assert scored_texts(policy, env, BOXES) == [" ".join(answer.split()[:4]) for answer in answers]
    assert scored_texts(policy, env, OUTLINES) == [f"{answer} <|end|>" for answer in answers]


def test_absent_things_are_asked_about_only_where_a_stage_says_so(tiny_untrained: Path) -> None:
    policy, env = Policy(tiny_untrained, CODEC), scenes(absent_share=1.0)
    without, with_absent = (scored_texts(policy, env, replace(OUTLINES, with_absent=asked)) for asked in (False, True))
    assert with_absent == [*without, "none <|end|>"]


def test_stages_follow_each_other_and_the_last_one_goes_on(tiny_untrained: Path) -> None:
    schedule = trainer(tiny_untrained)
    places = [schedule.stage_at(step) for step in (0, 1, 2, 4, 5, 9)]
    assert [stage.name for stage, _ in places] == ["boxes"] * 2 + ["outlines"] * 4
    assert [progress for _, progress in places] == [0.0, 0.5, 0.0, pytest.approx(2 / 3), 1.0, 1.0]
    assert schedule.num_steps == 5


def test_rates_warm_up_and_fall_along_a_cosine_and_adamw_takes_a_third(tiny_untrained: Path) -> None:
    one, rates = trainer(tiny_untrained), []
    for _ in range(2):
        one.train_step()
        rates.append(one.muon.param_groups[0]["lr"])
        assert one.adamw.param_groups[0]["lr"] == pytest.approx(rates[-1] / 3)
    assert rates == pytest.approx([0.02 / 2, 0.015])  # half warm, then half way between 0.02 and 0.01


def test_muon_takes_the_matrices_and_adamw_all_else_each_once(tiny_untrained: Path) -> None:
    one = trainer(tiny_untrained)
    matrices, others = (optimizer.param_groups[0]["params"] for optimizer in (one.muon, one.adamw))
    assert {id(p) for p in matrices} | {id(p) for p in others} == {id(p) for p in one.policy.parameters()}
    assert len(matrices) + len(others) == len(list(one.policy.parameters()))
    assert all(p.ndim == 2 for p in matrices)
    embeddings = one.policy.model.get_input_embeddings().weight, one.policy.model.model.visual.pos_embed.weight
    assert all(any(p is embedding for p in others) for embedding in embeddings)


def test_thirty_steps_on_two_scenes_take_two_thirds_of_the_loss_away(tiny_untrained: Path) -> None:
    stage = SftStage("outlines", 30, lr=0.02, last_lr=0.01)
    one = trainer(tiny_untrained, replace(SETTINGS, stages=[stage]), scenes(2))
    losses = [one.train_step() for _ in range(30)]
    assert losses[0] > 4
    assert np.mean(losses[-3:]) < losses[0] / 3


def test_a_trainer_goes_on_from_its_files_bit_for_bit(tiny_untrained: Path, tmp_path: Path) -> None:
    first, second = trainer(tiny_untrained), trainer(tiny_untrained)
    first.train_step()
    first.save(tmp_path)
    expected = [first.train_step() for _ in range(4)]
    second.load(tmp_path)
    assert second.step_number == 1
    assert [second.train_step() for _ in range(4)] == expected
    weights = second.policy.model.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in first.policy.model.state_dict().items())


def small_run(folder: Path) -> SftConfig:
    return SftConfig(
        run=str(folder),
        threads=1,
        max_tokens=32,
        env={"name": "cutout_scenes", "image_size": 32, "num_scenes": 4},
        codec={"name": "path_tokens", "max_rings": 4, "max_vertices": 16},
        tiny=TinySizes(32, 8, 32, 1, 2, 16, 1, 2),
        sft=replace(SETTINGS, evaluate_every=2, evaluate_scenes=3),
    )


def test_a_run_stopped_after_its_first_stage_ends_as_if_it_had_not_been_stopped(tmp_path: Path) -> None:
    config = small_run(tmp_path / "whole")
    run_sft(config, QUIET)
    stopped = replace(config, run=str(tmp_path / "stopped"))
    run_sft(replace(stopped, sft=replace(config.sft, stages=[BOXES])), QUIET)
    assert len((tmp_path / "stopped" / "curve.tsv").read_text().splitlines()) == 2
    folder = run_sft(stopped, QUIET)
    assert folder == tmp_path / "stopped" / "policy"
    for name in ("curve.tsv", "policy/model.safetensors", "policy/tokenizer.json"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    curve = [line.split("\t")[:2] for line in (tmp_path / "whole" / "curve.tsv").read_text().splitlines()]
    assert curve == [["step", "stage"], ["2", "boxes"], ["4", "outlines"], ["5", "outlines"]]
    assert Policy(folder, CODEC).processor.tokenizer("the left").input_ids != [2, 2]  # words of phrases are known


@dataclass(frozen=True)
class NothingThere:
    """The scenes of `scenes`, asked about what they do not show."""

    scenes: Env

    def scene(self, index: int) -> list[Example]:
        return [replace(e, truth=replace(e.truth, masks=e.truth.masks[:0])) for e in self.scenes.scene(index)]

    def image(self, ref: ImageRef) -> NDArray[np.uint8]:
        return self.scenes.image(ref)


@dataclass(frozen=True)
class OneAnswer:
    """A codec that reads every text as the same answer."""

    answer: Answer

    def read(self, text: str, height: int, width: int, truncated: bool = False) -> Answer:
        return self.answer


def test_greedy_scores_of_an_answer_that_is_always_the_left_half_equal_those_by_hand(tiny_untrained: Path) -> None:
    left = answer_from_rings([np.array([[0.0, 0.0], [16.0, 0.0], [16.0, 32.0], [0.0, 32.0]])])
    env, half = scenes(3), np.arange(32) < 16
    truths = [env[index].truth.union for index in range(3)]
    expected = np.mean([(truth & half).sum() / (truth | half).sum() for truth in truths])
    assert 0 < expected < 1
    # Three scenes are all there are.
    giou, valid = greedy_scores(Policy(tiny_untrained, OneAnswer(left)), env, num_scenes=10, max_tokens=2)
    assert (giou, valid) == (pytest.approx(expected), 1.0)


@dataclass(frozen=True)
class Crowded:
    """The scenes of `scenes`, all that is not the object ignored."""

    scenes: Env

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> Example:
        example = self.scenes[index]
        return replace(example, truth=replace(example.truth, ignore=~example.truth.union))

    def image(self, ref: ImageRef) -> NDArray[np.uint8]:
        return self.scenes.image(ref)


def test_greedy_scores_leave_ignored_pixels_out_as_rewards_do(tiny_untrained: Path) -> None:
    whole = answer_from_rings([np.array([[0.0, 0.0], [32.0, 0.0], [32.0, 32.0], [0.0, 32.0]])])
    policy = Policy(tiny_untrained, OneAnswer(whole))
    areas = [scenes(3)[index].truth.union.sum() for index in range(3)]
    assert greedy_scores(policy, scenes(3), 3, 2) == (pytest.approx(np.mean(areas) / 1024), 1.0)
    assert greedy_scores(policy, Crowded(scenes(3)), 3, 2) == (1.0, 1.0)
    [rewarded] = compare([whole], Target.from_truth(Crowded(scenes(3))[0].truth)).iou
    assert rewarded == 1.0


def test_greedy_scores_of_an_outline_without_a_pixel_where_nothing_is_there_are_0(tiny_untrained: Path) -> None:
    thin = answer_from_rings([np.array([[2.6, 2.6], [2.9, 2.6], [2.9, 2.9]])])
    policy = Policy(tiny_untrained, OneAnswer(thin))
    assert greedy_scores(policy, scenes(3, absent_share=1.0), 3, 2) == (0.0, 1.0)


def test_greedy_scores_of_unreadable_and_of_empty_answers(tiny_untrained: Path) -> None:
    unreadable, empty = (
        Policy(tiny_untrained, OneAnswer(Answer(s))) for s in (AnswerStatus.UNPARSABLE, AnswerStatus.EMPTY)
    )
    nothing_there = scenes(3, absent_share=1.0)
    assert greedy_scores(unreadable, nothing_there, 3, 2) == (0.0, 0.0)
    assert greedy_scores(empty, nothing_there, 3, 2) == (1.0, 1.0)
    assert greedy_scores(empty, scenes(3), 3, 2) == (0.0, 1.0)


def test_a_loss_that_is_not_finite_stops_before_the_weights_change_and_names_step_and_stage(
    tiny_untrained: Path,
) -> None:
    one = trainer(tiny_untrained)
    one.train_step()
    with torch.no_grad():
        one.policy.model.model.visual.patch_embed.proj.bias[0] = torch.nan
    before = {name: value.clone() for name, value in one.policy.model.state_dict().items()}
    with pytest.raises(
        FloatingPointError, match=r"^step 2 of SFT, in stage boxes, has a loss of nan and .* lr \(0\.02\)"
    ):
        one.train_step()
    assert one.step_number == 1
    assert all(
        value.equal(before[name]) or "patch_embed" in name for name, value in one.policy.model.state_dict().items()
    )


def test_weights_that_are_not_finite_are_not_saved(tiny_untrained: Path, tmp_path: Path) -> None:
    one = trainer(tiny_untrained)
    with torch.no_grad():
        one.policy.model.model.visual.patch_embed.proj.bias[0] = torch.inf
    with pytest.raises(
        FloatingPointError, match=r"^after step 0 of SFT 1 weights are not finite, .*patch_embed\.proj\.b"
    ):
        one.save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_step_whose_scenes_show_nothing_that_is_asked_about_is_refused_by_the_scenes(tiny_untrained: Path) -> None:
    policy, env = Policy(tiny_untrained, CODEC), NothingThere(scenes())
    with pytest.raises(
        ValueError, match=r"^stage outlines: none of the scenes \[0, 1\] shows anything .* with_absent to"
    ):
        scene_rows(policy, env, [0, 1], SETTINGS, OUTLINES)
    rows = scene_rows(policy, env, [0, 1], SETTINGS, replace(OUTLINES, with_absent=True))
    assert len(rows.prompt_tokens) == 2


def test_a_run_is_not_gone_on_with_under_other_settings_or_with_other_data(tmp_path: Path) -> None:
    config = small_run(tmp_path)
    run_sft(config, QUIET)
    with pytest.raises(
        ValueError, match=r"^codec is .*'max_rings': 3.*, but .* began with .*'max_rings': 4.* run=NAME"
    ):
        run_sft(replace(config, codec={**config.codec, "max_rings": 3}), QUIET)
    data = tmp_path / "data.json"
    data.write_text(data.read_text().replace('"train": "', '"train": "0'))
    with pytest.raises(ValueError, match=r"^the data of split train is not what .* began with; restore"):
        run_sft(config, QUIET)


def test_mistakes_in_the_settings_are_refused_with_their_values(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"sft\.stages is empty"):
        run_sft(SftConfig(run=str(tmp_path)), QUIET)
    with pytest.raises(ValueError, match=r"sft.stages\[0\].answer is 'boxes'; did you mean 'box'"):
        SftSettings([SftStage("x", 1, answer="boxes")])
    with pytest.raises(ValueError, match=r"sft\.evaluate_every is 0"):
        SftSettings(evaluate_every=0)
    with pytest.raises(ValueError, match=r"max_vertices is 12, but max_rings is 5.*15 or more"):
        SftSettings(max_vertices=12, max_rings=5)
