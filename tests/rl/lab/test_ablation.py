"""The plan of an ablation, its intervals by hand, its page, and one run of it in real processes."""

import json
import math
import subprocess
import sys
import xml.etree.ElementTree as ET
from importlib.resources import files
from pathlib import Path

import pytest
from typer.testing import CliRunner

from envs.codecs.path_tokens import Codec
from envs.datasets._scene import SPATIAL_WORDS
from envs.datasets.cutout_scenes import Env
from policies.tiny_model import TinySizes, write_untrained
from rl.cli.rewards import rewards_app
from rl.config.load import shipped_configs
from rl.evaluation.scores import Interval
from rl.lab.ablate import locked
from rl.lab.ablation import Ablation, plan
from rl.lab.ablation_scores import RunScores, ablation_tables, cell, mean_curve, means, paired_differences, t_interval
from rl.lab.pages import render_ablation, write_ablation

IOU, DISTANCE = Path("rewards/iou"), Path("rewards/iou_distance")


def run_scores(name: str, seed: int, giou: float) -> RunScores:
    before = {"giou": 0.65, "boundary_iou": 0.23, "valid": 1.0, "vertices": 12.0}
    curves = {"sampled/giou": ([0, 1], [0.6, giou]), "answer/vertices": ([0, 1], [12.0, 11.0])}
    return RunScores(name, seed, before, before | {"giou": giou}, curves)


def test_a_reward_config_in_a_folder_called_key_value_is_a_config_and_no_setting(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "seed=3").mkdir()
    (tmp_path / "seed=3" / "mine.yaml").write_text("rewards: {mask_iou: {weigth: 1}}\n")
    with pytest.raises(ValueError, match=r"^seed=3/mine\.yaml: rewards\.mask_iou\.weigth is not a setting"):
        raise (
            CliRunner().invoke(rewards_app, ["ablate", "seed=3/mine.yaml", "learner.lr=1e-5", "--out", "out"]).exception
        )


SCORES = [
    run_scores("iou", 0, 0.70),
    run_scores("iou_distance", 0, 0.71),
    run_scores("iou", 1, 0.74),
    run_scores("iou_distance", 1, 0.77),
]


def test_t_interval_of_three_numbers_is_the_one_of_the_tables() -> None:
    # s = 1, t(2, 97.5 %) = 4.30265, so half = 4.30265 / sqrt(3).
    interval = t_interval([1.0, 2.0, 3.0])
    assert interval.value == 2
    assert interval.high - 2 == pytest.approx(4.30265 / math.sqrt(3), abs=1e-5)
    assert interval.low == pytest.approx(4 - interval.high)


def test_one_seed_gives_no_interval() -> None:
    assert math.isnan(t_interval([0.5]).low)
    assert cell("giou", t_interval([0.5])) == "0.500"


def test_pairing_by_seed_takes_out_what_the_seeds_have_in_common() -> None:
    # Differences 0.01 and 0.03: mean 0.02, s = 0.014142, t(1) = 12.7062, half = 12.7062 * 0.01.
    difference = paired_differences(SCORES, "iou_distance", "iou")["giou"]
    assert difference.value == pytest.approx(0.02)
    assert difference.high - difference.value == pytest.approx(0.127062, abs=1e-6)
    assert means(SCORES, "iou")["giou"].value == pytest.approx(0.72)


def test_a_pair_needs_a_common_seed() -> None:
    assert paired_differences([SCORES[0], SCORES[3]], "iou_distance", "iou") == {}


def test_mean_curve_keeps_the_steps_that_every_seed_recorded() -> None:
    short = RunScores("iou", 2, {}, {}, {"sampled/giou": ([1, 2], [0.78, 0.9])})
    assert mean_curve([*SCORES, short], "iou", "sampled/giou") == ([1], [pytest.approx((0.70 + 0.74 + 0.78) / 3)])


def test_cells_say_mean_and_half_width() -> None:
    assert cell("giou", Interval(0.02, -0.01, 0.05), signed=True) == "+0.020 ± 0.030"
    assert cell("vertices", Interval(11.96, 11.5, 12.42)) == "12.0 ± 0.5"


def test_the_tables_of_one_config_and_of_none() -> None:
    assert ablation_tables(["iou"], []) == []
    assert len(ablation_tables(["iou"], SCORES)) == 1
    assert ablation_tables(["iou", "iou_distance"], SCORES)[1].row_count == 1


def test_the_page_is_well_formed_with_runs_missing_or_failed(tmp_path: Path) -> None:
    ablation = Ablation((IOU, DISTANCE), tmp_path, seeds=2)
    for scores in (SCORES, SCORES[:1], SCORES[1:2], []):
        page = render_ablation(ablation, scores, plan(ablation)[:1])
        assert ET.fromstring(page).tag == "html"
        assert "Failed, and not in these numbers" in page and "<script" not in page


def test_the_json_holds_means_differences_and_every_run(tmp_path: Path) -> None:
    write_ablation(Ablation((IOU, DISTANCE), tmp_path, seeds=2), SCORES, [])
    numbers = json.loads((tmp_path / "ablation.json").read_text())
    assert numbers["configs"]["iou"]["runs"]["1"]["giou"] == 0.74
    assert numbers["configs"]["iou_distance"]["minus_iou"]["giou"]["value"] == pytest.approx(0.02)
    assert numbers["before"]["boundary_iou"] == pytest.approx(0.23) and numbers["failed"] == []


def test_a_plan_goes_seed_by_seed_and_suits_the_rate_to_its_steps(tmp_path: Path) -> None:
    runs = plan(Ablation((IOU, DISTANCE), tmp_path, seeds=2, steps=40, overrides=("learner.lr=1e-5",)))
    assert [str(run.folder.relative_to(tmp_path)) for run in runs] == [
        "iou/seed-0",
        "iou_distance/seed-0",
        "iou/seed-1",
        "iou_distance/seed-1",
    ]
    learner = runs[0].config.learner
    assert (learner.decay_steps, learner.warmup_steps, learner.lr) == (40, 10, 1e-5)
    assert runs[1].config.rewards["centroid_distance"] == {"weight": 0.2} and runs[2].config.seed == 1


@pytest.mark.parametrize("name", shipped_configs("rewards"))
def test_every_shipped_reward_config_can_be_trained_under(name: str, tmp_path: Path) -> None:
    (run,) = plan(Ablation((Path("rewards") / name,), tmp_path, seeds=1))
    assert "mask_iou" in run.config.rewards


BASES = {
    ("several", "matched"): ("soft_matched", "union", "instance_credit"),
    ("draft", "two_turns_iou"): ("two_turns", "one_turn"),
    ("demo", "varied"): ("varied_length", "varied_economy"),
}
"""Configs of findings by their base and the one that they differ from; of those not named, `demo` and `plain`."""
AS_MANY_ANSWERS = {"group_size", "groups_per_step", "groups_per_unit", "learner"}
"""What groups_of_32 changes, so that a step has as many answers."""


@pytest.fixture(scope="module")
def drafts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of random weights whose words are those of the embedded model and the marks around a draft."""
    env, codec = Env("train"), Codec(box_bins=64, path_bins=32, max_rings=4, max_vertices=16)
    words = {word for name in env.names for word in name.split()} | SPATIAL_WORDS
    folder = tmp_path_factory.mktemp("drafts") / "policy"
    sizes = TinySizes(text_width=32, text_layers=2, text_heads=2, vision_width=16, vision_layers=2, vision_heads=2)
    write_untrained(folder, [*codec.words, "<think>", "</think>", *sorted(words)], sizes, seed=0)
    return folder


@pytest.mark.parametrize("name", sorted({*shipped_configs("findings")} - {"plain", "matched", "two_turns_iou"}))
def test_every_config_of_a_finding_can_be_trained_and_differs_from_the_first_one_in_one_section(
    name: str, drafts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    embedded = Path(str(files("policies")))
    # In place of the checkpoints that the commands in these files make.
    for made in {f"findings/{name}", "findings/varied", "sft_several", "sft_draft"}:
        (tmp_path / "runs" / made).mkdir(parents=True)
        (tmp_path / "runs" / made / "policy").symlink_to(drafts if made == "sft_draft" else embedded / "tiny")
    base, first = next((key for key, names in BASES.items() if name in names), ("demo", "plain"))
    asked = Ablation((Path("findings") / first, Path("findings") / name), tmp_path / "out", Path(base), seeds=1)
    plain, one = plan(asked)
    changed = {key for key, value in vars(one.config).items() if value != vars(plain.config)[key]} - {"run"}
    if name == "one_turn":  # the draft costs as many tokens as a second answer
        assert changed == {"policy", "group_size"}
    else:
        assert changed == AS_MANY_ANSWERS if name == "groups_of_32" else len(changed) == 1


def test_a_reward_config_may_change_other_settings_but_not_what_the_ablation_sets(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("rewards: {mask_iou: {weight: 1}}\noverrides: [learner.lr=1.0e-6, group_size=4]\n")
    plain, changed = plan(Ablation((IOU, own), tmp_path / "out", seeds=1))
    assert (changed.config.learner.lr, changed.config.group_size) == (1e-6, 4)
    assert plain.config.group_size == 8
    with pytest.raises(
        ValueError, match=r"own\.yaml: override 'learner.lr=1.0e-6': the command line sets 'learner.lr=2"
    ):
        plan(Ablation((IOU, own), tmp_path / "out", seeds=1, overrides=("learner.lr=2.0e-6",)))
    own.write_text("rewards: {mask_iou: {weight: 1}}\noverrides: [seed=3]\n")
    with pytest.raises(ValueError, match=r"own\.yaml: override 'seed=3': an ablation sets seed itself"):
        plan(Ablation((IOU, own), tmp_path / "out", seeds=1))


@pytest.mark.parametrize(
    ("rewards", "overrides", "message"),
    [
        ((IOU, Path("configs/rewards/iou.yaml")), (), "called iou, iou"),
        ((IOU,), ("seed=3",), "--seeds"),
        ((IOU,), ("rewards.mask_iou.weight=2",), "the reward configs"),
        ((), (), "0 reward configs"),
    ],
)
def test_what_cannot_be_planned_is_refused(
    rewards: tuple[Path, ...], overrides: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        plan(Ablation(rewards, tmp_path, overrides=overrides))


def test_a_mistake_in_the_last_config_names_its_file_before_any_run(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("rewards:\n  mask_iuo: {weight: 1}\n")
    with pytest.raises(ValueError, match=r"wrong\.yaml: .*did you mean 'mask_iou'"):
        plan(Ablation((IOU, wrong), tmp_path))


def test_a_folder_of_other_settings_or_another_reward_file_is_refused(tmp_path: Path) -> None:
    reward, config = tmp_path / "mine.py", tmp_path / "mine.yaml"
    text = (Path(__file__).parents[3] / "rewards/terms/mask_iou.py").read_text()
    reward.write_text(text)
    config.write_text(f"rewards:\n  mine: {{module: {reward}}}\n")
    ablation = Ablation((config,), tmp_path / "out", seeds=1)
    plan(ablation)[0].begin()
    assert plan(ablation)[0].seconds is None
    with pytest.raises(ValueError, match="steps 60, not 30"):
        plan(Ablation((config,), tmp_path / "out", seeds=1, steps=30))
    plan(Ablation((config,), tmp_path / "out", seeds=1, overrides=("pool.workers=3",)))
    with pytest.raises(ValueError, match=r"pool\.staleness 0, not 1"):
        plan(Ablation((config,), tmp_path / "out", seeds=1, overrides=("pool.staleness=1",)))
    reward.write_text(text + "\n# changed\n")
    with pytest.raises(ValueError, match="another state of the reward files"):
        plan(ablation)


def test_a_folder_is_held_by_one_command_at_a_time(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(ValueError, match="in use by another command"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def ablate(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    small = ["groups_per_step=4", "group_size=2", "groups_per_unit=2", "learner.micro_groups=2", "pool.workers=1"]
    command = [sys.executable, "-c", "from rl.cli.main import main; main()", "rewards", "ablate", *arguments, *small]
    command += ["evaluation.num_scenes=8", "--steps", "1", "--seeds", "1", "--out", str(out)]
    return subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)


@pytest.mark.slow
def test_a_failed_run_is_named_the_others_go_on_and_finished_ones_are_not_repeated(tmp_path: Path) -> None:
    """The reward fails at every valid answer, though its settings are right."""
    broken, config = tmp_path / "broken.py", tmp_path / "broken.yaml"
    text = (Path(__file__).parents[3] / "rewards/terms/mask_iou.py").read_text()
    broken.write_text(text.replace("return comparison.iou", "return 2.0"))
    config.write_text(f"rewards:\n  broken: {{module: {broken}}}\n")
    done = ablate(tmp_path / "out", str(config), "rewards/iou")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "broken seed 0 failed" in done.stdout and "Reward broken" in done.stdout
    numbers = json.loads((tmp_path / "out/ablation.json").read_text())
    assert numbers["configs"]["iou"]["runs"]["0"]["valid"] > 0.5
    assert numbers["failed"] == [str(tmp_path / "out/broken/seed-0")]
    log = tmp_path / "out/iou/seed-0/log.txt"
    written = log.read_bytes()
    again = ablate(tmp_path / "out", "rewards/iou")
    assert again.returncode == 0 and "1 finished before" in again.stdout
    assert log.read_bytes() == written
