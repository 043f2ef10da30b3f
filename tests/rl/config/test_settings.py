"""Settings: what a right file gives, and what every wrong one says."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from rl.config.load import find_config, load_settings, override_of, plugin_from_settings, save_settings, shipped_configs
from rl.config.run import RunConfig
from rl.config.yaml_core import read_yaml


@dataclass(frozen=True)
class Optimiser:
    learning_rate: float = 1e-4
    betas: list[float] = field(default_factory=lambda: [0.9, 0.99])
    kind: Literal["adamw", "sgd"] = "adamw"
    clip: float | None = None


@dataclass(frozen=True)
class Run:
    name: str
    group_size: int = 8
    resume: bool = False
    out: Path = Path("runs/demo")
    model: str | Path = "policies/tiny"
    rl: Optimiser = field(default_factory=Optimiser)
    refiner: Optimiser | None = None
    stages: dict[str, Optimiser] = field(default_factory=dict)
    env: dict[str, Any] = field(default_factory=dict)
    rewards: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.group_size < 2:
            raise ValueError(f"group_size is {self.group_size}; set it to 2 or more.")


def load(tmp_path: Path, text: str, *overrides: str) -> Run:
    file = tmp_path / "run.yaml"
    file.write_text(text, encoding="utf-8")
    return load_settings(Run, file, overrides)


def refusal(tmp_path: Path, text: str, *overrides: str) -> str:
    with pytest.raises(ValueError) as caught:
        load(tmp_path, text, *overrides)
    return str(caught.value)


def external_env(tmp_path: Path) -> str:
    file = tmp_path / "maps.py"
    file.write_text(
        "from dataclasses import dataclass\n\n\n@dataclass\nclass Env:\n"
        "    split: str\n    folder: str\n    image_size: int = 64\n    scale: tuple[float, float] = (0.5, 1.0)\n"
    )
    return str(file)


def test_a_file_and_overrides_give_the_nested_dataclass_with_the_right_types(tmp_path):
    text = "name: a\nout: x/y\nrl: {learning_rate: 1, betas: [0, 1e-3]}\nenv: {name: coco, folder: d}\n"
    text += "stages: {b: {clip: 2}}"
    run = load(tmp_path, text, "rl.clip=0.5", "group_size=4", "env.size=[1, 2]", "refiner.kind=sgd", "resume=true")
    assert run == Run(
        name="a",
        group_size=4,
        resume=True,
        out=Path("x/y"),
        rl=Optimiser(learning_rate=1.0, betas=[0.0, 0.001], clip=0.5),
        refiner=Optimiser(kind="sgd"),
        stages={"b": Optimiser(clip=2.0)},
        env={"name": "coco", "folder": "d", "size": [1, 2]},
    )
    assert isinstance(run.rl.learning_rate, float) and isinstance(run.out, Path)


def test_an_override_replaces_a_whole_mapping(tmp_path):
    run = load(tmp_path, "name: a\nenv: {name: cutout_scenes, image_size: 64}", "env={name: coco}")
    assert run.env == {"name": "coco"}


def test_an_interpolation_reads_other_settings_and_defaults(tmp_path):
    run = load(tmp_path, "name: ${group_size} answers\nrl: {clip: '${rl.learning_rate}'}")
    assert run.name == "8 answers" and run.rl.clip == 1e-4


@pytest.mark.parametrize(
    ("text", "overrides", "parts"),
    [
        ("nam: a", (), ["nam is not a setting", "did you mean name?", "Settings at the top: name, group_size, resume"]),
        (
            "name: a\nrl: {lerning_rate: 1}",
            (),
            ["rl.lerning_rate", "mean rl.learning_rate?", "Settings of rl: learning_rate, betas"],
        ),
        ("name: a", ("learning_rate=1",), ["learning_rate is not", "did you mean rl.learning_rate?"]),
        ("name: a\nzzz: 1", (), ["zzz is not a setting. Settings at the top: name"]),
        ("name: a\nrefiner: {kin: sgd}", (), ["refiner.kin is", "mean refiner.kind?"]),
        ("name: a\nstages: {b: {x: 1}}", (), ["stages.b.x is not a setting"]),
        ("name: a\n1: 2", (), ["1 is not a setting"]),
    ],
)
def test_an_unknown_key_is_refused_with_its_path_the_nearest_name_and_all_keys(tmp_path, text, overrides, parts):
    message = refusal(tmp_path, text, *overrides)
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("group_size: many", "group_size is 'many', expected int."),
        ("group_size: 2.5", "group_size is 2.5, expected int."),
        ("group_size: true", "group_size is True, expected int."),
        ("group_size: '4'", "group_size is '4', expected int. Write it in plain digits, without quotes."),
        ("group_size: 12:30", "group_size is '12:30', expected int. Write it in plain digits, without quotes."),
        ("group_size: 1_000", "group_size is '1_000', expected int. Write it in plain digits, without quotes."),
        ("group_size: 0b11", "group_size is '0b11', expected int. Write it in plain digits, without quotes."),
        ("group_size: ١٢", "group_size is '١٢', expected int."),
        ("resume: yes", "resume is 'yes', expected bool. Write true or false."),
        ("resume: Off", "resume is 'Off', expected bool. Write true or false."),
        (
            "rl: {clip: 12:30:45.5}",
            "rl.clip is '12:30:45.5', expected float. Write it in plain digits, without quotes.",
        ),
        ("group_size: [4]", "group_size is [4], expected int."),
        ("group_size:", "group_size is None, expected int."),
        ("resume: 1", "resume is 1, expected bool."),
        ("name: 7", "name is 7, expected str. Put it in quotes."),
        ("out: 7", "out is 7, expected Path."),
        ("model: 7", "model is 7, expected str | pathlib.Path."),
        ("rl: fast", "rl is 'fast', expected a mapping of `key: value`."),
        ("rl:", "rl is None, expected a mapping of `key: value`."),
        ("rl: {learning_rate: fast}", "rl.learning_rate is 'fast', expected float."),
        (f"rl: {{learning_rate: {'9' * 400}}}", f"rl.learning_rate is {'9' * 400}, expected float."),
        ("rl: {betas: 0.9}", "rl.betas is 0.9, expected list[float]."),
        ("rl: {betas: {a: 1}}", "rl.betas is {'a': 1}, expected list[float]."),
        ("rl: {betas: [0.9, x]}", "rl.betas[1] is 'x', expected float."),
        ("rl: {clip: x}", "rl.clip is 'x', expected float."),
        ("rl: {kind: adam}", "rl.kind: Invalid value 'adam', expected one of ['adamw', 'sgd']; correct that value."),
        (
            "env: coco",
            "env is 'coco', expected a mapping of `key: value`. Write {name: coco}, or set its key `name` alone.",
        ),
        (
            "group_size: ${name}",
            "group_size: While dereferencing interpolation '${name}': Value 'a' of type 'str' could not be "
            "converted to Integer; correct that value.",
        ),
        ("group_size: ${nam}", "group_size: Interpolation key 'nam' not found; correct that value."),
        ("group_size: 1", "group_size is 1; set it to 2 or more."),
    ],
)
def test_a_wrong_value_is_refused_with_its_path_and_the_type_expected(tmp_path, line, message):
    assert refusal(tmp_path, line if line.startswith("name") else f"name: a\n{line}") == message


def test_a_setting_without_default_must_be_given(tmp_path):
    assert refusal(tmp_path, "") == "name has no value and no default; set it in the file, or by name=VALUE."


@pytest.mark.parametrize(
    ("text", "value"),
    [("010", 10), ("08", 8), ("-010", -10), ("+12", 12), ("0o10", 8), ("0x1F", 31), ("1e3", 1000.0), ("1e-5", 1e-5)]
    + [("1.0e-5", 1e-5), (".5", 0.5), ("+.5", 0.5), (".5e3", 500.0), ("5.", 5.0), ("-.inf", float("-inf"))]
    + [("true", True), ("FALSE", False), ("null", None), ("~", None), ("", None), ("'010'", "010"), ('"yes"', "yes")]
    + [(text, text) for text in ("12:30", "12:30:45.5", "1_000", "1_0.5", "0b1", "0x_1", "yes", "NO", "on", "y", "nan")]
    + [(text, text) for text in ("2026-01-01", "2026-01-01 12:00:00", "١٢", "1.2.3", "=", "-0x1F")]
    + [("[010, no, {a: 1_0}]", [10, "no", {"a": "1_0"}]), ("{010: on}", {10: "on"}), ("${group_size}", 8)],
)
def test_a_value_is_read_by_the_core_schema_of_yaml_1_2_in_a_file_and_in_an_override(tmp_path, text, value):
    for run in (load(tmp_path, f"name: a\nenv:\n  x: {text}"), load(tmp_path, "name: a", f"env.x={text}")):
        assert run.env == {"x": value} and type(run.env["x"]) is type(value)


def test_the_shipped_files_mean_the_same_by_yaml_1_1_and_1_2():
    files = sorted(Path(__file__).parents[3].glob("configs/**/*.yaml"))
    assert len(files) >= 10
    for file in files:
        assert read_yaml(file.read_bytes()) == OmegaConf.to_container(OmegaConf.load(file), resolve=False)


@pytest.mark.parametrize(
    "run", ["010", "2026", "1e5", "0o10", "yes", "a: b", "[x]", "é 😀", "a\nb", "${x}", "step=100"]
)
def test_an_override_made_of_a_path_sets_that_path_whatever_yaml_would_read(tmp_path, run):
    assert load(tmp_path, "name: a", override_of("out", Path(run))).out == Path(run)


@pytest.mark.parametrize("override", ["group_size", "=3", "rl..clip=1", "--steps", ".=1"])
def test_an_override_that_is_not_key_equals_value_is_shown(tmp_path, override):
    assert refusal(tmp_path, "name: a", override).startswith(f"override {override!r} is not of the form key=value")


@pytest.mark.parametrize(
    "override",
    ["env={a", "rl.betas.x=1", "rl.betas[7]=1", "name=\x07", "env=&a [*a]", "env=!!int 1_0", "env={a: 1, a: 2}"],
)
def test_an_override_that_cannot_be_read_or_applied_is_shown(tmp_path, override):
    assert refusal(tmp_path, "name: a\nrl: {betas: [1, 2]}", override).startswith(f"override {override!r}")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("name: a\nrl: {clip: 1\nout: b", "run.yaml, line 3, column 4"),
        ("name: a\nname: b", "run.yaml, line 2, column 1"),
        ("name: a\n\trl: 1", "run.yaml, line 2, column 1"),
        ("a: !!python/object/apply:os.getcwd []", "run.yaml, line 1, column 4"),
        ("a: !!int 12:30", "run.yaml, line 1, column 4: '12:30' is no int of YAML 1.2"),
        ("a: &b\n  c: *b", "run.yaml, line 1, column 4: found unconstructable recursive node"),
    ],
)
def test_malformed_yaml_shows_line_and_column(tmp_path, text, place):
    assert place in refusal(tmp_path, text)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00\x01\x02", b"\x00\x01", b"5", b"- a\n- b"])
def test_a_file_that_is_no_yaml_mapping_is_named(tmp_path, content):
    file = tmp_path / "run.yaml"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(file))):
        load_settings(Run, file)


def test_a_missing_file_is_named_with_the_files_beside_it_and_the_nearest(tmp_path):
    (tmp_path / "gspo.yaml").write_text("")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(FileNotFoundError) as caught:
        load_settings(Run, tmp_path / "gsop.yaml")
    message = str(caught.value)
    assert f"there is no file {tmp_path / 'gsop.yaml'}; did you mean 'gspo'?" in message
    assert f"in {tmp_path}/: gspo.yaml. Shipped: " in message
    with pytest.raises(FileNotFoundError, match="is a folder"):
        load_settings(Run, tmp_path)


def test_a_shipped_file_is_found_by_its_name_from_any_folder_but_a_file_on_disk_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "demo" in shipped_configs()
    shipped = [find_config(Path(name)).read_text() for name in ("demo", "demo.yaml", "configs/demo.yaml")]
    assert len(set(shipped)) == 1 and shipped[0]
    names = ("rewards/iou", "rewards/iou.yaml", "configs/rewards/iou.yaml")
    assert len({find_config(Path(name)).read_text() for name in names}) == 1
    with pytest.raises(FileNotFoundError, match=r"did you mean 'demo'\?"):
        find_config(Path("demoo"))
    with pytest.raises(FileNotFoundError):
        find_config(Path("elsewhere/demo.yaml"))
    (tmp_path / "demo.yaml").write_text("name: mine")
    assert find_config(Path("demo.yaml")).read_text() == "name: mine"


ANY_TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"])) | st.sampled_from(
    [
        "1e-4",
        "yes",
        "null",
        "08",
        "0o10",
        "1_0",
        "12:30",
        "2020-01-01",
        "${name}",
        r"\${x}",
        r"a\\${x} ${",
        "a: b",
        " ",
        "#",
    ]
)
ANY_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None, max_examples=60)
@given(name=ANY_TEXT, rate=st.floats(allow_nan=False), env=st.dictionaries(ANY_TEXT, ANY_VALUE, max_size=4))
def test_saved_settings_load_as_an_equal_object(tmp_path_factory, name, rate, env):
    run = Run(name, 4, True, Path("a/b"), "m", Optimiser(rate, [], "sgd"), None, {"x": Optimiser(clip=3.0)}, env)
    file = tmp_path_factory.getbasetemp() / "saved.yaml"
    save_settings(run, file)
    assert load_settings(Run, file) == run
    assert yaml.safe_load(file.read_bytes()) == read_yaml(file.read_bytes())  # by YAML 1.1 as by 1.2


def test_saved_settings_hold_no_python_tags_and_nothing_to_resolve(tmp_path):
    save_settings(load(tmp_path, "name: n\nenv: {name: '${group_size}'}"), tmp_path / "saved.yaml")
    text = (tmp_path / "saved.yaml").read_text()
    assert "out: runs/demo\n" in text and "  name: 8\n" in text and "!!" not in text and "$" not in text


def test_a_plugin_entry_becomes_a_recipe_with_checked_and_converted_settings(tmp_path):
    entry = {"module": external_env(tmp_path), "folder": "data", "scale": [1, 2]}
    plugin = plugin_from_settings("envs.datasets", "Env", entry, "env", supplied=["split"])
    assert (plugin.package, plugin.class_name, plugin.name) == ("envs.datasets", "Env", "maps")
    assert plugin.settings == {"folder": "data", "scale": (1.0, 2.0)}
    env = plugin.build(split="train")
    assert (env.split, env.folder, env.image_size, env.scale) == ("train", "data", 64, (1.0, 2.0))


def test_a_relative_module_path_is_made_absolute_for_workers_in_other_folders(tmp_path, monkeypatch):
    file = external_env(tmp_path)
    monkeypatch.chdir(tmp_path)
    plugin = plugin_from_settings("envs.datasets", "Env", {"module": "maps.py", "folder": "d"}, "env", ["split"])
    assert plugin.module == file


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        (
            {"folder": "d", "imge_size": 32},
            ["env.imge_size is not a setting", "mean env.image_size?", "Settings of env: folder, image_size"],
        ),
        ({"folder": "d", "image_size": "big"}, ["env.image_size is 'big', expected int."]),
        ({"folder": "d", "scale": [1]}, ["env.scale is [1], expected tuple[float, float]."]),
        ({"folder": "d", "split": "train"}, ["env.split is 'train', but the run itself gives split; remove the line."]),
        ({}, ["env.folder has no value and no default"]),
    ],
)
def test_a_wrong_plugin_setting_is_refused_like_any_other(tmp_path, settings, parts):
    with pytest.raises(ValueError) as caught:
        plugin_from_settings("envs.datasets", "Env", {"module": external_env(tmp_path), **settings}, "env", ["split"])
    assert all(part in str(caught.value) for part in parts), caught.value


def test_an_entry_without_name_or_of_a_wrong_kind_says_what_to_set(tmp_path):
    with pytest.raises(ValueError, match=r"reward has no name; set reward.name to one of .*mask_iou"):
        plugin_from_settings("rewards.terms", "Reward", {"weight": 1.0}, "reward")
    with pytest.raises(ValueError, match=r"reward\.name is 5, expected str\."):
        plugin_from_settings("rewards.terms", "Reward", {"name": 5}, "reward")
    with pytest.raises(ValueError, match=r"^reward: no Reward in rewards/terms/ is called 'mask_iuo'; did you mean"):
        plugin_from_settings("rewards.terms", "Reward", {"name": "mask_iuo"}, "reward")
    with pytest.raises(FileNotFoundError, match=r"^reward: module: /nowhere/r.py is not a file"):
        plugin_from_settings("rewards.terms", "Reward", {"module": "/nowhere/r.py"}, "reward")
    plain = tmp_path / "plain.py"
    plain.write_text("class Reward:\n    pass\n")
    with pytest.raises(ValueError, match=r"^reward: .*plain.* is not a dataclass; make it one"):
        plugin_from_settings("rewards.terms", "Reward", {"module": str(plain)}, "reward")


def test_a_class_with_its_own_constructor_has_the_parameters_as_settings(tmp_path):
    file = tmp_path / "family.py"
    file.write_text(
        "from pathlib import Path\n\n\nclass Policy:\n"
        "    def __init__(self, checkpoint: Path, codec: object, dtype: str = 'float32') -> None:\n"
        "        self.said = (checkpoint, codec, dtype)\n"
    )
    entry = {"module": str(file), "checkpoint": "policies/tiny"}
    assert plugin_from_settings("policies.families", "Policy", entry, "policy", ["codec"]).build(codec=1).said == (
        Path("policies/tiny"),
        1,
        "float32",
    )
    with pytest.raises(ValueError, match=r"policy.dtipe is not a setting; did you mean policy.dtype\?"):
        plugin_from_settings("policies.families", "Policy", {**entry, "dtipe": "x"}, "policy", ["codec"])


def test_settings_that_stand_beside_those_of_the_class_are_checked_and_left_to_the_caller(tmp_path):
    @dataclass
    class Beside:
        plugin: str
        size: int = 0

    entry = {"module": external_env(tmp_path), "folder": "d", "size": 3}
    assert plugin_from_settings("envs.datasets", "Env", entry, "env", ["split"], Beside).settings == {"folder": "d"}
    with pytest.raises(ValueError, match=r"env.size is 'x', expected int"):
        plugin_from_settings("envs.datasets", "Env", entry | {"size": "x"}, "env", ["split"], Beside)
    with pytest.raises(ValueError, match=r"env.plugin is not a setting.* Settings of env: folder, .*, size\."):
        plugin_from_settings("envs.datasets", "Env", entry | {"plugin": "x"}, "env", ["split"], Beside)


def test_a_class_with_a_field_that_has_a_meaning_in_every_such_entry_is_refused(tmp_path):
    @dataclass
    class Beside:
        folder: str = ""

    with pytest.raises(
        ValueError, match=r"^env: Env of .* has a field folder, but .*\(folder\); give the field another name"
    ):
        plugin_from_settings("envs.datasets", "Env", {"module": external_env(tmp_path)}, "env", ["split"], Beside)


def test_a_run_is_a_config_by_its_folder(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("run: runs/a\n")
    assert find_config(tmp_path).read_text() == "run: runs/a\n"


def test_a_name_in_place_of_an_entry_is_told_how_an_entry_is_written() -> None:
    with pytest.raises(ValueError, match=r"algorithm is 'gpso', .* Write \{name: gpso\}, or set its key `name` alone"):
        load_settings(RunConfig, Path("demo"), ["algorithm=gpso"])


def test_a_class_that_builds_on_another_has_its_settings(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from policies.families import vision_language\n\n\nclass Policy(vision_language.Policy):\n    pass\n"
    )
    entry = {"module": str(file), "question": "Outline {phrase}."}
    built = plugin_from_settings("policies.families", "Policy", entry | {"checkpoint": "x"}, "policy", ["codec"])
    assert built.settings == {"question": "Outline {phrase}.", "checkpoint": Path("x")}
