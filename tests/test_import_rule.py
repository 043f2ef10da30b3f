"""The house rules that a reader relies on, held over every file of the five packages by reading their syntax trees."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from envs.geometry.kernel_cache import KERNEL_FILES

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "envs": {"envs"},
    "rewards": {"rewards", "envs"},
    "policies": {"policies", "envs"},
    "rollout": {"rollout", "rewards", "policies", "envs"},
    "rl": {"rl", "rollout", "rewards", "policies", "envs"},
}
ONLY_IN = {
    "transformers": ("policies/", "rl/bench/"),
    "peft": ("policies/", "rl/bench/"),
    "numba": tuple(str(file.relative_to(ROOT)) for file in KERNEL_FILES),  # all that the kernels' cache is keyed by
    "ray": (
        "rollout/pool/",
        "rollout/cluster.py",
        "rollout/label/pipeline.py",
        "rl/learner/learner.py",
        "rl/learner/ranks.py",
        "rl/bench/push.py",
    ),
    "deepspeed": ("rl/learner/engine.py", "rl/learner/files.py"),
    "vllm": ("rollout/engines/vllm.py",),
    "omegaconf": ("rl/",),
    "duckdb": ("rl/browse/query.py",),
    "torch": ("policies/", "rollout/", "rl/"),
}
BUILT_ON = (  # what a plugin must be, and what it is given, which more than plugins build on
    "rewards.terms.base",
    "policies.families.base",
    "rollout.label.record",
    "rollout.label.asking",
    "rollout.label.images.base",
    "rollout.label.stages.base",
)
ROOMS = (  # of rl, from below: a room imports only from lines below its own, and verbs import each other
    ("rl.config", "rl.algorithms", "rl.pages"),
    ("rl.planning",),
    ("rl.run",),
    ("rl.learner.batches",),
    ("rl.learner", "rl.evaluation", "rl.pairs", "rl.browse", "rl.sources"),
    ("rl.refiner", "rl.lab", "rl.labels", "rl.supervised", "rl.evaluation.protocols"),
    ("rl.benchmarks",),
    ("rl",),
    ("rl.bench",),
    ("rl.bench.gpu", "rl.bench.learning", "rl.bench.scoring"),
    ("rl.bench.representations",),
    ("rl.cli",),
)
RESTRICTED = ("envs/readers/_plain_pickle.py",)  # asks for no class or function, and raises where a pickle does
UNPICKLERS = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
REFLECTION = {"getattr", "hasattr", "setattr"}
BROAD = {"Exception", "BaseException"}
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 60

SOURCES = {
    str(file.relative_to(ROOT)): file.read_text(encoding="utf-8")
    for package in MAY_IMPORT
    for file in sorted((ROOT / package).rglob("*.py"))
}


def called(node: ast.Call) -> str:
    function = node.func
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and full name of all imports, also those in functions or by a literal name; relative ones stay inside."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and called(node) in ("import_module", "__import__") and node.args:
            name = node.args[0]
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                yield node.lineno, name.value


def wrong_imports(path: str, source: str) -> list[str]:
    package, found = path.split("/")[0], []
    for line, name in imports(ast.parse(source)):
        root = name.split(".")[0]
        if root in MAY_IMPORT and root not in MAY_IMPORT[package]:
            found.append(f"{path}:{line} imports {name}, which is not below {package}")
        if root in ONLY_IN and not path.startswith(ONLY_IN[root]):
            found.append(f"{path}:{line} imports {name}, which only {', '.join(ONLY_IN[root])} may")
        if root in UNPICKLERS and path not in RESTRICTED:
            found.append(f"{path}:{line} imports {name}; nothing is ever unpickled")
    return found


def room_of(module: str) -> str:
    """The folder of a module; a file beside the folders of a package is a room, and so are the files of BUILT_ON."""
    package = module.rpartition(".")[0]
    return module if module in BUILT_ON or (package in MAY_IMPORT and package != "rl") else package


def rooms_imported(path: str, source: str) -> set[tuple[str, str]]:
    """(room, other room of the same package that it imports), imports that only type checkers follow left out."""
    module = path.removesuffix(".py").replace("/", ".")
    found, package = set(), module.split(".")[0]
    tree = ast.parse(source)
    for node in [node for node in tree.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)]:
        tree.body.remove(node)
    for _, name in imports(tree):
        below = name if f"{name.replace('.', '/')}.py" in SOURCES else name.rpartition(".")[0]
        if name.split(".")[0] == package and room_of(below) != room_of(module):
            found.add((room_of(module), room_of(below)))
    return found


def wrong_rooms(path: str, source: str) -> list[str]:
    """Imports of one of rl's rooms that do not point down."""
    line = {room: k for k, rooms in enumerate(ROOMS) for room in rooms}
    pairs = rooms_imported(path, source) if path.startswith("rl/") else set()
    return [f"{path} imports {below}, which is not below {room}" for room, below in pairs if line[below] >= line[room]]


def circle_of_rooms(imported: set[tuple[str, str]]) -> set[str]:
    """Rooms that import each other in a circle."""
    rooms = {room for pair in imported for room in pair}
    while free := {room for room in rooms if not any(a == room and b in rooms for a, b in imported)}:
        rooms -= free
    return rooms


def names_broad(node: ast.expr | None) -> bool:
    if isinstance(node, ast.Tuple):
        return any(names_broad(element) for element in node.elts)
    return node is None or (isinstance(node, ast.Name) and node.id in BROAD)


def raises(handler: ast.ExceptHandler) -> bool:
    return any(isinstance(node, ast.Raise) for node in ast.walk(handler))


def wrong_habits(path: str, source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in REFLECTION:
            found.append(f"{path}:{node.lineno} calls {node.func.id}; name the attribute")
        if isinstance(node, ast.Call) and called(node) == "suppress" and any(map(names_broad, node.args)):
            found.append(f"{path}:{node.lineno} suppresses every exception; name the one")
        if isinstance(node, ast.ExceptHandler) and names_broad(node.type) and not raises(node):
            found.append(f"{path}:{node.lineno} catches every exception and goes on; name the one")
    return found


def wrong_sizes(path: str, source: str) -> list[str]:
    found, num_lines = [], len(source.splitlines())
    if path.endswith("__init__.py") and source.strip():
        found.append(f"{path} is not empty")
    if num_lines > MAX_FILE_LINES:
        found.append(f"{path} has {num_lines} lines, more than {MAX_FILE_LINES}")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                found.append(f"{path}:{node.lineno} {node.name} has {length} lines, more than {MAX_FUNCTION_LINES}")
    return found


def test_every_file_imports_only_from_below_and_each_heavy_library_only_where_it_belongs():
    assert [wrong for path, source in SOURCES.items() for wrong in wrong_imports(path, source)] == []


def test_rooms_of_rl_import_only_from_lines_below_and_no_rooms_import_each_other_in_a_circle():
    assert [wrong for path, source in SOURCES.items() for wrong in wrong_rooms(path, source)] == []
    for package in ("envs", "rewards", "policies", "rollout"):
        files = {path: source for path, source in SOURCES.items() if path.startswith(f"{package}/")}
        pairs = set[tuple[str, str]]().union(*(rooms_imported(path, source) for path, source in files.items()))
        assert circle_of_rooms({pair for pair in pairs if package not in pair}) == set()


def test_an_import_up_or_sideways_and_a_circle_are_caught():
    assert wrong_rooms("rl/config/load.py", "from rl.run.parts import RunParts") != []
    assert wrong_rooms("rl/pairs/index.py", "def late():\n    from rl.learner import batch") != []
    assert wrong_rooms("rl/refine.py", "from rl.cli.main import app") != []
    assert wrong_rooms("rl/demo.py", "from rl.train import train\nfrom rl.run.parts import RunParts") == []
    assert wrong_rooms("rl/algorithms/gspo.py", "from rl.algorithms.base import PolicyGradient") == []
    assert circle_of_rooms({("a", "b"), ("b", "c"), ("c", "b"), ("c", "d")}) >= {"b", "c"}
    assert circle_of_rooms({("a", "b"), ("b", "c"), ("a", "c")}) == set()


def test_no_file_reaches_attributes_by_name_or_swallows_every_exception():
    assert [wrong for path, source in SOURCES.items() for wrong in wrong_habits(path, source)] == []


def test_no_file_or_function_is_too_long_and_every_init_is_empty():
    assert [wrong for path, source in SOURCES.items() for wrong in wrong_sizes(path, source)] == []


def test_the_rule_is_held_over_all_five_packages():
    assert {path.split("/")[0] for path in SOURCES} == set(MAY_IMPORT)
    assert all(f"{package}/__init__.py" in SOURCES for package in MAY_IMPORT)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("envs/datasets/coco.py", "from rewards.score import Target"),
        ("rewards/terms/format.py", "import policies.base"),
        ("policies/families/base.py", "from rewards import score"),
        ("rollout/worker.py", "def late():\n    from rl.algorithms.gspo import Algorithm"),
        ("rl/train.py", "import ray"),
        ("rl/train.py", "from ray import cloudpickle"),
        ("rollout/worker.py", "import ray.cloudpickle as cp"),
        ("rollout/settings.py", "import ray"),
        ("rl/learner/learner.py", "import deepspeed"),
        ("rewards/terms/mask_iou.py", "from numba import njit"),
        ("rl/evaluate.py", "import transformers.models.qwen3_vl"),
        ("rl/train.py", "from peft import LoraConfig"),
        ("rollout/pool/pool.py", "import importlib\nimportlib.import_module('vllm')"),
        ("envs/example.py", "import torch"),
        ("rollout/records.py", "from omegaconf import OmegaConf"),
        ("rollout/archive/archive.py", "import pickle"),
        ("rollout/pool/pool.py", "from cloudpickle import dumps"),
    ],
)
def test_a_forbidden_import_is_caught(path, source):
    assert len(wrong_imports(path, source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "getattr(x, 'y')",
        "if hasattr(x, 'y'):\n    pass",
        "setattr(x, 'y', 1)",
        "try:\n    f()\nexcept:\n    pass",
        "try:\n    f()\nexcept Exception as error:\n    print(error)",
        "try:\n    f()\nexcept (ValueError, BaseException):\n    pass",
        "import contextlib\nwith contextlib.suppress(Exception):\n    f()",
    ],
)
def test_a_forbidden_habit_is_caught(source):
    assert len(wrong_habits("rl/train.py", source)) == 1


def test_what_is_too_long_or_not_empty_is_caught():
    function = "def f():\n" + "    x = 1\n" * 60
    assert wrong_sizes("rl/train.py", function) == ["rl/train.py:1 f has 61 lines, more than 60"]
    assert wrong_sizes("rl/train.py", "def f():\n" + "    x = 1\n" * 59) == []
    assert wrong_sizes("rl/train.py", "x = 1\n" * 401) == ["rl/train.py has 401 lines, more than 400"]
    assert wrong_sizes("rl/__init__.py", "from rl.train import train\n") == ["rl/__init__.py is not empty"]


def test_what_the_rule_allows_is_left_alone():
    assert (
        wrong_imports("rl/learner/learner.py", "import ray\nfrom rollout.records import Group\nimport torch, numpy")
        == []
    )
    assert (
        wrong_imports("policies/tiny/build.py", "from transformers import AutoModel\nfrom envs.example import Env")
        == []
    )
    assert wrong_habits("rl/train.py", "try:\n    f()\nexcept BaseException:\n    clean()\n    raise") == []
    assert wrong_habits("rl/train.py", "try:\n    f()\nexcept (OSError, ValueError):\n    pass") == []
