"""The wheel holds every package and every file that code reads, and nothing else."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
TOP = ("envs", "rewards", "policies", "rollout", "rl", "configs")


def shipped() -> list[str]:
    """Every file of the packages, relative to the repository."""
    files = [path for name in TOP for path in (ROOT / name).rglob("*") if path.is_file() and path.suffix != ".pyc"]
    return sorted(str(path.relative_to(ROOT)) for path in files)


def is_data(file: str) -> bool:
    """Whether package-data of pyproject.toml covers it."""
    listed = SETUPTOOLS["package-data"].items()
    return any(Path(file).match(f"{name.replace('.', '/')}/{each}") for name, patterns in listed for each in patterns)


def test_every_folder_of_python_files_is_a_package_of_the_wheel() -> None:
    folders = {str(Path(file).parent).replace("/", ".") for file in shipped() if file.endswith(".py")}
    assert set(SETUPTOOLS["packages"]) == folders | {"configs"}
    assert len(SETUPTOOLS["packages"]) == len(set(SETUPTOOLS["packages"]))
    assert all((ROOT / folder.replace(".", "/") / "__init__.py").is_file() for folder in folders)


def test_every_other_file_of_the_packages_is_data_of_the_wheel() -> None:
    assert [file for file in shipped() if not file.endswith(".py") and not is_data(file)] == []


@pytest.mark.long
def test_a_built_wheel_holds_every_file_of_the_packages_and_no_other(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "tests", "docs", "runs", "build", "*.egg-info"))
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, copy]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("polytrace-*.whl")
    with zipfile.ZipFile(wheel) as files:
        assert sorted(name for name in files.namelist() if ".dist-info/" not in name) == shipped()
