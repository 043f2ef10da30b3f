"""Settings are data: reading any shipped config loads nothing that does the work."""

import subprocess
import sys

import pytest

HEAVY = ("numba", "torch", "ray", "transformers", "deepspeed", "peft", "pyarrow", "duckdb", "scipy", "PIL", "rich")
READ_ALL = """
import sys
from pathlib import Path
from rl.config.load import load_settings, shipped_configs
from rl.config.pairs import PairExport
from rl.config.refiner import RefineConfig
from rl.config.run import RunConfig
from rl.config.sft import SftConfig
kinds = {"pairs": PairExport, "sft": SftConfig, "refiner": RefineConfig}
for name in shipped_configs():
    load_settings(kinds.get(name.split("_")[0], RunConfig), Path(name))
packages = ("envs", "rewards", "policies", "rollout", "rl")
print(*(name for name in sys.modules if name.split(".")[0] in packages and "." in name))
print(*(name for name in sys.argv[1:] if name in sys.modules))
"""


CHECK_ENTRIES = """
import sys
from pathlib import Path
from rl.cli.options import run_settings
try:
    run_settings(Path("tiny"), sys.argv[1:2])
except ValueError as error:
    print(error)
print(*(name for name in ("torch", "transformers", "ray") if name in sys.modules))
"""


@pytest.mark.parametrize(
    ("override", "loaded"),
    [
        ("learner.rnks=1", ""),
        ("env.max_object=1", ""),
        ("codec.path_bin=1", ""),
        ("rewards.mask_iou.weigth=1", ""),
        ("algorithm.clip_lw=1", "torch"),
    ],
)
def test_a_misspelt_key_is_told_before_what_the_rest_of_the_config_needs_is_loaded(override, loaded):
    done = subprocess.run([sys.executable, "-c", CHECK_ENTRIES, override], capture_output=True, text=True, check=True)
    told, found = done.stdout.splitlines()
    assert told.startswith(f"{override.split('=')[0]} is not a setting; did you mean ")
    assert found == loaded


def test_reading_every_shipped_config_loads_settings_and_nothing_else():
    done = subprocess.run([sys.executable, "-c", READ_ALL, *HEAVY], capture_output=True, text=True, check=True)
    ours, heavy = done.stdout.splitlines()
    assert heavy == ""
    # Rooms of settings, how plugins, ranges and schedules are said, and how a file is written whole.
    allowed = ("rl.config", "rewards.settings", "policies.settings", "rollout.settings", "rollout.disk")
    allowed += ("envs.plugin", "envs.ranges", "envs.schedule")
    assert [name for name in ours.split() if not name.startswith(allowed)] == []
