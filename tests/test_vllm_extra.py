"""`pip install 'polytrace[vllm]'`, as far as it can be tried without installing anything: its requirements resolve."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rollout.engines.vllm import refuse_untested

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def resolved(*options: str, requirements: str = str(PYPROJECT)) -> subprocess.CompletedProcess[str]:
    """What uv finds; skips where there is no uv, or nothing that it could ask."""
    uv = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if uv is None:
        pytest.skip("uv is not installed, and resolves the requirements in this test")
    command = [uv, "pip", "compile", "--quiet", "--python-version", "3.11", *options, requirements]
    # A folder of wheels that stands in for the index here is not what a user has.
    environment = {name: value for name, value in os.environ.items() if name != "UV_FIND_LINKS"}
    found = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    if found.returncode and re.search(r"Failed to fetch|error sending request|dns error|timed out", found.stderr):
        pytest.skip(f"no package index can be reached: {found.stderr.strip().splitlines()[-1]}")
    return found


def test_the_vllm_extra_resolves_to_a_release_that_was_tested() -> None:
    found = resolved("--extra", "vllm")
    assert not found.returncode, found.stderr
    release = re.search(r"^vllm==(\S+)", found.stdout, re.MULTILINE)
    assert release is not None and "transformers==5.23." in found.stdout
    refuse_untested(release[1])


def test_numba_as_new_as_vllm_pins_away_would_be_noticed(tmp_path: Path) -> None:
    """With the lower bound that once stood here, so that the test above can fail."""
    changed = tmp_path / "pyproject.toml"
    changed.write_text(re.sub(r"numba>=[\d.]+", "numba>=0.68", PYPROJECT.read_text()))
    found = resolved("--extra", "vllm", requirements=str(changed))
    assert found.returncode and "unsatisfiable" in found.stderr and "numba" in found.stderr
