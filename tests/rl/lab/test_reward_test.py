"""`polytrace rewards test`: what rewards are told to be fit for, in words, in JSON and by the exit status."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from envs.plugin import Plugin, plugin_names
from rewards.settings import RewardRecipe
from rl.config.load import shipped_configs
from rl.config.rewards import load_rewards
from rl.lab import hostile as reward_test

NAMES = [
    name
    for name in plugin_names("rewards.terms")
    if not RewardRecipe(Plugin("rewards.terms", "Reward", name, {})).needs_refined
]
FOLDER = Path(__file__).parents[3] / "configs"
TEXTS = {name: (FOLDER / f"{name}.yaml").read_text(encoding="utf-8") for name in shipped_configs()}
JOBS = [name for name, text in TEXTS.items() if "\nrewards:" in text and "\nrefined:" not in text]
CONFIGS = [*JOBS, *(f"rewards/{name}" for name in shipped_configs("rewards"))]
AREA_RATIO = """
from dataclasses import dataclass


@dataclass(frozen=True)
class Reward:
    weight: float = 1.0

    def __call__(self, comparison):
        drawn, true = comparison.answer_area_px, comparison.target.area_px
        return min(drawn, true) / max(drawn, true) if drawn and true else float(drawn == true)
"""


def printed(module: Path, as_json: bool = False) -> tuple[bool, str]:
    """Whether the rewards pass, and what is printed."""
    console = Console(file=io.StringIO(), width=120)
    passed = reward_test.test_rewards(load_rewards(module), console, as_json)
    assert isinstance(console.file, io.StringIO)
    return passed, console.file.getvalue()


def own_reward(folder: Path, text: str) -> Path:
    path = folder / "my_reward.py"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", NAMES)
def test_alone_the_command_passes_a_built_in_reward_only_where_that_says_passes(name: str) -> None:
    passed, told = printed(Path(name), as_json=True)
    outcome = json.loads(told)
    assert passed == outcome["passed"] == (outcome["verdict"] == "passes")


@pytest.mark.parametrize("config", CONFIGS)
def test_every_shipped_config_passes(config: str) -> None:
    passed, told = printed(Path(config))
    assert passed, told


def test_the_configs_that_are_tested_include_the_demo_and_a_price_on_vertices() -> None:
    assert {"demo", "coco28", "gspo_polygons", "rewards/iou_length"} <= set(CONFIGS)


@pytest.mark.parametrize("name", ["closed_loop", "refined_iou", "unmended"])
def test_rewards_on_the_refined_mask_are_refused_where_nothing_refines(name: str) -> None:
    with pytest.raises(ValueError, match=r"is measured on the refined mask, and only a run with a refiner .* leave it"):
        load_rewards(Path(name))


OWN = {
    "precision": ("return comparison.intersection_px / max(1, comparison.answer_area_px)", "beside_mask_iou"),
    "recall": ("return comparison.intersection_px / max(1, comparison.target.area_px)", "beside_mask_iou"),
    "more vertices": ("return min(1.0, comparison.num_vertices / 1000)", "fails"),
    "zero": ("return 0.0", "teaches_nothing"),
    "one": ("return 1.0", "teaches_nothing"),
    "half": ("return 0.5", "teaches_nothing"),
    "never": ("return None", "teaches_nothing"),
    "empty": ("return float(comparison.status == 'empty')", "beside_mask_iou"),
    "by chance": ("return random.random()", "unsteady"),
    "by chance where wrong": ("return comparison.iou if comparison.iou > 0.8 else random.random()", "unsteady"),
    "iou": ("return comparison.iou", "passes"),
    "half right": ("return float(comparison.iou > 0.8)", "passes"),
    "exact": ("return float(comparison.iou > 0.9)", "passes"),
    "f1": (
        "drawn, true = comparison.answer_area_px, comparison.target.area_px\n        "
        "return 2 * comparison.intersection_px / (drawn + true) if true else comparison.iou",
        "passes",
    ),
}


@pytest.mark.parametrize("name", OWN)
def test_a_reward_alone_is_passed_only_where_no_trick_pays(name: str, tmp_path: Path) -> None:
    body, expected = OWN[name]
    start = AREA_RATIO[: AREA_RATIO.index("        drawn")]
    passed, told = printed(own_reward(tmp_path, f"import random\n{start}        {body}"), as_json=True)
    outcome = json.loads(told)
    assert (outcome["verdict"], outcome["passed"], passed) == (expected, expected == "passes", expected == "passes")


def test_precision_is_harmless_beside_mask_iou_up_to_where_one_of_two_objects_pays(tmp_path: Path) -> None:
    start = AREA_RATIO[: AREA_RATIO.index("        drawn")]
    path = own_reward(tmp_path, f"{start}        {OWN['precision'][0]}")
    passed, told = printed(path)
    assert not passed
    for trick in ("speck in the middle", "hollow outline", "one of two"):
        assert f"{trick} (" in told
    assert "earns 1.000, a careful answer 1.000, a hasty one 0.984." in told
    assert "Beside mask_iou of weight 1, my_reward lets no trick pay up to a weight of 4.83." in told
    assert "only beside mask_iou: by itself it fails, since 5 of 37 tricks earn as much" in told
    # One of two objects: 1.0 of its pixels are right, and 976 of 1072 of the hasty ones; IoU 432 / 1072 and 976 / 1168.
    bound = (976 / 1168 - 432 / 1072) / (1 - 976 / 1072)
    assert bound == pytest.approx(4.8311, abs=1e-4)
    for weight, fit in ((bound - 0.01, True), (bound + 0.01, False)):
        both = f"rewards:\n  mask_iou: {{weight: 1}}\n  my_reward: {{module: {path}, weight: {weight}}}\n"
        (tmp_path / "both.yaml").write_text(both)
        passed, told = printed(tmp_path / "both.yaml")
        assert passed == fit
        assert ("passes: none of 37 tricks pays" in told) == fit
        assert ("fails: 1 of 37 tricks" in told and "one of two (draws the easy object only)" in told) != fit


def test_a_reward_that_is_unsteady_fails_a_config_only_where_it_has_a_weight(tmp_path: Path) -> None:
    start = AREA_RATIO[: AREA_RATIO.index("        drawn")]
    path = own_reward(tmp_path, f"import random\n{start}        return random.random()")
    for weight, fitness in ((0.0, "passes"), (0.1, "unsteady")):
        both = f"rewards:\n  mask_iou: {{weight: 1}}\n  my_reward: {{module: {path}, weight: {weight}}}\n"
        (tmp_path / "both.yaml").write_text(both)
        outcome = json.loads(printed(tmp_path / "both.yaml", as_json=True)[1])
        assert (outcome["verdict"], outcome["unsteady"]) == (fitness, ["my_reward"])


def test_a_reward_of_areas_is_told_what_it_pays_for(tmp_path: Path) -> None:
    passed, told = printed(own_reward(tmp_path, AREA_RATIO))
    assert not passed
    assert "right size, wrong place (as many pixels as the truth, none of them true) earns 1.000" in told
    assert "Beside mask_iou of weight 1, my_reward lets no trick pay up to a weight of" in told


def test_the_json_says_the_same(tmp_path: Path) -> None:
    passed, told = printed(own_reward(tmp_path, AREA_RATIO), as_json=True)
    outcome = json.loads(told)
    assert (outcome["unsteady"], outcome["indifferent"], outcome["verdict"]) == ([], False, "beside_mask_iou")
    [row] = [row for row in outcome["tricks"] if row["trick"] == "right size, wrong place"]
    assert (passed, outcome["passed"], row["passed"], row["total"], row["honest"]) == (
        False,
        False,
        False,
        1.0,
        620 / 720,
    )
    assert outcome["safe_weight_beside_mask_iou"]["my_reward"] == pytest.approx(610 / 730 / (100 / 720))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("return 0.5", "teaches nothing: all answers to a scene that can be read earn the same, honest or not."),
        ("return random.random()", "unsteady: what an answer earns here is partly chance"),
        ("return random.random()", "my_reward paid the same answers differently when asked again"),
        ("return float(comparison.iou > 0.8)", "A careful answer earns what a hasty one does in every scene"),
        ("return min(1.0, comparison.num_vertices / 1000)", "Even beside mask_iou, my_reward makes a trick pay at any"),
    ],
)
def test_what_a_reward_is_fit_for_is_said_in_words(tmp_path: Path, body: str, says: str) -> None:
    start = AREA_RATIO[: AREA_RATIO.index("        drawn")]
    _, told = printed(own_reward(tmp_path, f"import random\n{start}        {body}"))
    assert says in " ".join(told.split())


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("return float('nan')", "Reward my_reward returned nan"),
        ("return 1 / comparison.answer_area_px", "raised ZeroDivisionError: division by zero"),
        ("return 1.5", "Reward my_reward returned 1.5"),
    ],
)
def test_a_reward_that_breaks_on_a_trick_is_named_with_the_trick(tmp_path: Path, body: str, says: str) -> None:
    start = AREA_RATIO[: AREA_RATIO.index("        drawn")]
    skipping = f"rewards:\n  my_reward: {{module: {own_reward(tmp_path, start + '        ' + body)}, on_error: skip}}\n"
    (tmp_path / "tried.yaml").write_text(skipping)
    with pytest.raises(ValueError, match=says) as error:
        printed(tmp_path / "tried.yaml")
    assert "(hostile suite)" in str(error.value)


def test_weights_on_a_schedule_are_judged_where_tricks_do_best(tmp_path: Path) -> None:
    path = tmp_path / "tried.yaml"
    path.write_text(
        "rewards:\n  mask_iou: {}\n  length_penalty: {free_vertices: 6, max_vertices: 16, weight: 0.1}\n"
        "shaping:\n  length_penalty: {weight_schedule: [[0, 0.1], [50, 0.5], [99, 0.2]]}\n"
    )
    passed, told = printed(path)
    assert not passed
    assert "Weights are those of step 50" in told


def test_the_command_exits_with_1_where_a_trick_pays_and_never_loads_torch(tmp_path: Path) -> None:
    check = "import sys; from rl.cli.main import main\ntry:\n  main()\nfinally:\n  assert 'torch' not in sys.modules"
    command = [sys.executable, "-c", check, "rewards", "test", str(own_reward(tmp_path, AREA_RATIO))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1, done.stderr
    assert "only beside mask_iou: by itself it fails, since 2 of 37 tricks" in done.stdout
