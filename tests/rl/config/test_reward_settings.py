"""What a config's `rewards` and `shaping` mean, and the files, folders and names that stand for them."""

from pathlib import Path

import pytest

from rewards.settings import TermShaping
from rl.config.load import shipped_configs
from rl.config.rewards import load_rewards, reward_names, reward_parts

OWN_REWARD = """
from dataclasses import dataclass


@dataclass(frozen=True)
class Reward:
    weight: float = 0.3
    price: int = 2

    def __call__(self, comparison):
        return None
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "my_judge.py"
    path.write_text(OWN_REWARD)
    return path


def written(folder: Path, text: str) -> Path:
    path = folder / "tried.yaml"
    path.write_text(text)
    return path


def test_rewards_are_a_mapping_of_names_to_settings() -> None:
    parts = reward_parts({"mask_iou": {"weight": 1}, "format": {}, "again": {"name": "mask_iou", "weight": 0.5}}, {})
    assert [recipe.plugin.name for recipe in parts.recipes.values()] == ["mask_iou", "format", "mask_iou"]
    assert (parts.weights["mask_iou"], parts.weights["again"]) == (1.0, 0.5)
    assert parts.recipes["format"].plugin.settings == {}


def test_where_a_reward_runs_is_no_setting_of_the_reward(own: Path) -> None:
    entry = {"module": str(own), "weight": 0.2, "price": 3, "processes": 2, "seconds": 5, "on_error": "skip"}
    recipe = reward_parts({"my_judge": entry}, {}).recipes["my_judge"]
    assert recipe.plugin.settings == {"weight": 0.2, "price": 3}
    assert (recipe.processes, recipe.seconds, recipe.on_error) == (2, 5.0, "skip")


def test_a_reward_with_processes_of_its_own_is_not_built_here(own: Path) -> None:
    own.write_text(OWN_REWARD + "\n    def __post_init__(self):\n        raise ValueError('no GPU here')\n")
    assert reward_parts({"a": {"module": str(own), "processes": 1}}, {}).weights == {"a": 0.3}
    with pytest.raises(ValueError, match=r"rewards.a: no GPU here"):
        reward_parts({"a": {"module": str(own)}}, {})


def test_shapings_come_as_mappings_or_as_they_are() -> None:
    shaping = {"mask_iou": {"kind": "threshold", "threshold_schedule": [[0, 0.3], [200, 0.8]]}}
    parts = reward_parts({"mask_iou": {}}, shaping | {"total": TermShaping("rank")})
    assert parts.shaping["mask_iou"] == TermShaping("threshold", threshold_schedule=[[0.0, 0.3], [200.0, 0.8]])
    assert parts.shaping["total"].kind == "rank"
    assert parts.shaper().thresholds_at(100) == {"mask_iou": pytest.approx(0.55)}


@pytest.mark.parametrize(
    ("rewards", "shaping", "message"),
    [
        ({}, {}, "give at least one reward: .*centroid_distance, "),
        ({"mask_iuo": {}}, {}, r"rewards.mask_iuo: .*did you mean 'mask_iou'\?"),
        ({"format": 1}, {}, "rewards.format is 1, expected a mapping"),
        ({"format": None}, {}, r"rewards.format is null, .*set rewards.format.weight to 0 or leave the reward out"),
        ({"format": {"weigth": 1}}, {}, r"rewards.format.weigth is not a setting; did you mean rewards.format.weight"),
        ({"format": {"proceses": 1}}, {}, r"did you mean rewards.format.processes\?"),
        ({"format": {"processes": 1.5}}, {}, "rewards.format.processes is 1.5, expected int"),
        ({"format": {"seconds": 5}}, {}, "rewards.format.seconds is 5, but"),
        ({"format": {"on_error": "skp"}}, {}, r"rewards.format.on_error is 'skp'; did you mean 'skip'\?"),
        ({"format": {"weight": -1}}, {}, "rewards.format.weight is -1; set it to 0 or more"),
        ({"format": {"weight": 0}}, {}, "set at least one above 0"),
        ({"format": {}}, {"formt": {}}, r"shaping.formt names no reward; did you mean 'format'\?"),
        ({"format": {}}, {"format": {"knid": "rank"}}, r"shaping.format.knid is not a setting; did you mean .*kind\?"),
        ({"format": {}}, {"format": {"kind": "ranks"}}, r"shaping.format.kind is 'ranks'; did you mean 'rank'\?"),
        ({"format": {}}, {"format": {"history": "all"}}, "shaping.format.history is 'all', expected int"),
        ({"format": {}}, {"format": "rank"}, "shaping.format is 'rank', expected a mapping"),
        (
            {"format": {}},
            {"format": {"weight_schedule": [[0, "a"]]}},
            r"weight_schedule\[0\]\[1\] is 'a', expected float",
        ),
    ],
)
def test_a_wrong_reward_or_shaping_is_refused_by_its_path(
    rewards: dict[str, object], shaping: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        reward_parts(rewards, shaping)


def test_a_reward_without_a_weight_is_told_to_have_one(tmp_path: Path) -> None:
    path = tmp_path / "weightless.py"
    path.write_text(OWN_REWARD.replace("    weight: float = 0.3\n", ""))
    with pytest.raises(ValueError, match=r"rewards.a: the class Reward of .*weightless.py has no weight; give it"):
        reward_parts({"a": {"module": str(path)}}, {})


def test_a_file_of_rewards_is_read_with_its_shaping(tmp_path: Path) -> None:
    parts = load_rewards(written(tmp_path, "rewards:\n  mask_iou: {weight: 2}\nshaping:\n  total: {kind: rank}\n"))
    assert (parts.weights, parts.shaping) == ({"mask_iou": 2.0}, {"total": TermShaping("rank")})


def test_of_a_runs_config_and_folder_only_rewards_and_shaping_are_read(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("run: r\nsteps: 3\nnonsense: 1\nrewards:\n  mask_iou: {weight: '${steps}'}\n")
    assert load_rewards(tmp_path).weights == load_rewards(tmp_path / "config.yaml").weights == {"mask_iou": 3.0}
    assert load_rewards(Path("tiny")).weights == {"mask_iou": 0.8, "centroid_distance": 0.2}


def test_a_python_file_or_a_bare_name_is_one_reward_of_weight_1(own: Path) -> None:
    parts = load_rewards(own)
    assert (parts.weights, parts.recipes["my_judge"].plugin.module) == ({"my_judge": 1.0}, str(own))
    assert load_rewards(Path("centroid_distance")).weights == {"centroid_distance": 1.0}


@pytest.mark.parametrize("name", shipped_configs("rewards"))
def test_every_shipped_reward_config_reads(name: str) -> None:
    assert load_rewards(Path(f"rewards/{name}")).weights


def test_a_wrong_key_in_a_file_of_rewards_is_refused_with_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "rewards:\n  mask_iou:\nshapping:\n  total: {kind: rank}\n")
    with pytest.raises(ValueError, match=r"tried.yaml: shapping is not a setting; did you mean shaping\?"):
        load_rewards(path)
    with pytest.raises(ValueError, match=r"tried.yaml: rewards has no value"):
        load_rewards(written(tmp_path, "shaping: {}\n"))


def test_what_names_no_rewards_is_refused_with_what_is_near(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"mask_iuo names no rewards; did you mean 'mask_iou'\?"):
        load_rewards(Path("mask_iuo"))
    with pytest.raises(FileNotFoundError, match=r"holds no config.yaml; give the folder of a run"):
        load_rewards(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no file .*absent.yaml"):
        load_rewards(tmp_path / "absent.yaml")
    with pytest.raises(FileNotFoundError, match=r"rewards.absent: .*absent.py is not a file"):
        load_rewards(tmp_path / "absent.py")


def test_every_built_in_reward_is_known_by_its_file() -> None:
    assert {"mask_iou", "centroid_distance", "format"} <= set(reward_names())


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("def broken(:", r"raised SyntaxError"),
        (
            "import no_such_module",
            r"raised ModuleNotFoundError: No module named 'no_such_module' \(line 1 of .*mine.py",
        ),
    ],
)
def test_a_file_that_cannot_be_imported_is_one_line_with_its_place(tmp_path: Path, source: str, says: str) -> None:
    (tmp_path / "mine.py").write_text(source)
    with pytest.raises(ValueError, match=says):
        load_rewards(tmp_path / "mine.py")
