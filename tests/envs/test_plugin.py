"""Plugins: a file is found by its name or its path, in this process and in another."""

import ast
import pickle
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from envs.plugin import Plugin, did_you_mean, plugin_names

CIRCLE = """
from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    radius: float
    colour: str = "red"
"""


def shapes_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    folder = tmp_path / package
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "circle.py").write_text(CIRCLE)
    (folder / "ellipse.py").write_text(CIRCLE)
    (folder / "_colours.py").write_text("RED = 1\n")
    (folder / "base.py").write_text("class Shape: ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))


def external(tmp_path: Path, text: str, name: str = "my_shape.py") -> Plugin:
    file = tmp_path / name
    file.write_text(text)
    return Plugin("shapes", "Shape", "my_shape", {"radius": 2.0}, str(file))


def test_a_name_reaches_the_class_in_the_file_of_that_name(tmp_path, monkeypatch):
    shapes_package(tmp_path, monkeypatch, "shapes_by_name")
    shape = Plugin("shapes_by_name", "Shape", "circle", {"radius": 2.0}).build(colour="blue")
    assert (type(shape).__module__, shape.radius, shape.colour) == ("shapes_by_name.circle", 2.0, "blue")


def test_names_are_the_files_of_a_folder_but_its_base_and_its_parts(tmp_path, monkeypatch):
    shapes_package(tmp_path, monkeypatch, "shapes_listed")
    assert plugin_names("shapes_listed") == ["circle", "ellipse"]
    assert "shapes_listed.circle" not in sys.modules


def test_an_engine_is_named_by_its_file():
    assert plugin_names("rollout.engines") == ["direct", "shared", "vllm"]
    assert Plugin("rollout.engines", "Engine", "shared", {}).load().__module__ == "rollout.engines.shared"
    with pytest.raises(ValueError, match=r"is called 'vlm'; did you mean 'vllm'\? There are: direct, shared, vllm\."):
        Plugin("rollout.engines", "Engine", "vlm", {}).load()


@pytest.mark.parametrize(
    "name", ["circel", "colours", "_colours", "base", "__init__", "circle.Shape", "../circle", "", "circle.py"]
)
def test_an_unknown_name_lists_the_files_there_are(tmp_path, monkeypatch, name):
    package = "shapes_unknown"
    shapes_package(tmp_path, monkeypatch, package)
    with pytest.raises(ValueError) as caught:
        Plugin(package, "Shape", name, {}).load()
    assert f"is called {name!r}" in str(caught.value) and "There are: circle, ellipse." in str(caught.value)
    assert ("did you mean 'circle'?" in str(caught.value)) == ("circ" in name)


def test_a_path_reaches_a_file_outside_even_with_postponed_annotations(tmp_path):
    plugin = external(tmp_path, CIRCLE)
    assert plugin.build().radius == 2.0
    assert plugin.load() is plugin.load()


def test_files_of_one_name_in_two_folders_stay_apart(tmp_path):
    (tmp_path / "other").mkdir()
    first, second = external(tmp_path, CIRCLE), external(tmp_path / "other", CIRCLE.replace("red", "blue"))
    assert (first.build().colour, second.build().colour) == ("red", "blue")
    assert first.load().__module__ != second.load().__module__


def test_another_process_in_another_folder_builds_the_same_from_the_pickled_recipe(tmp_path):
    plugin = external(tmp_path, CIRCLE)
    code = (
        "import pickle, sys; plugin = pickle.load(sys.stdin.buffer); shape = plugin.build(colour='green'); "
        "print(plugin.load().__module__, shape.radius, shape.colour)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(plugin), capture_output=True, cwd="/", check=True
    )
    assert run.stdout.decode().split() == [plugin.load().__module__, "2.0", "green"]


def test_a_path_that_leads_nowhere_or_to_no_python_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.py is not a file"):
        Plugin("shapes", "Shape", "x", {}, str(tmp_path / "nowhere.py")).load()
    with pytest.raises(FileNotFoundError, match="is not a file"):
        Plugin("shapes", "Shape", "x", {}, str(tmp_path)).load()
    with pytest.raises(ValueError, match=r"must end in \.py"):
        external(tmp_path, CIRCLE, "my_shape.txt").load()


def test_a_file_without_the_class_says_what_it_has(tmp_path):
    with pytest.raises(ValueError, match=r"my_shape\.py defines no class Shape \(it has Form\); name the class"):
        external(tmp_path, "class Form:\n    pass\n").load()
    with pytest.raises(ValueError, match="it has no class at all"):
        external(tmp_path, "Shape = 3\n", "numbers_only.py").load()


def test_an_error_in_the_file_passes_through_and_the_corrected_file_loads(tmp_path):
    broken = external(tmp_path, "raise RuntimeError('in the file')\n")
    with pytest.raises(RuntimeError, match="in the file"):
        broken.load()
    assert external(tmp_path, CIRCLE + "\n# corrected\n").build().radius == 2.0


def test_only_a_near_name_is_proposed():
    assert did_you_mean("mask_iuo", ["format", "mask_iou"]) == "; did you mean 'mask_iou'?"
    assert did_you_mean("zebra", ["format", "mask_iou"]) == "."


@pytest.mark.parametrize(
    ("package", "class_name"),
    [
        ("rewards.terms", "Reward"),
        ("envs.datasets", "Env"),
        ("envs.codecs", "Codec"),
        ("rl.algorithms", "Algorithm"),
        ("rollout.engines", "Engine"),
        ("rollout.label.images", "Images"),
        ("rollout.label.stages", "Labeller"),
    ],
)
def test_every_plugin_file_of_the_repository_defines_a_dataclass_with_a_docstring(package, class_name):
    names = plugin_names(package)
    assert names
    for name in names:
        found = Plugin(package, class_name, name, {}).load()
        assert is_dataclass(found), f"{package}.{name}"
        assert found.__doc__ and not found.__doc__.startswith(f"{class_name}("), f"{package}.{name}"
        assert not {field.name for field in fields(found)} & {"name", "module"}, (
            f"{package}/{name}.py: taken by the config"
        )


def test_envs_plugin_needs_nothing_but_the_standard_library():
    source = (Path(__file__).parents[2] / "envs" / "plugin.py").read_text(encoding="utf-8")
    nodes = list(ast.walk(ast.parse(source)))
    imported = {alias.name.split(".")[0] for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module).split(".")[0] for node in nodes if isinstance(node, ast.ImportFrom)}
    assert imported <= set(sys.stdlib_module_names)
