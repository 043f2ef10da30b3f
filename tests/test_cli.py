"""The command as a user meets it: every --help reads, and every mistake is one line that says what to do."""

import subprocess
import sys
from pathlib import Path

import pytest


def polytrace(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from rl.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


COMMANDS = ["demo", "sft", "train", "refine", "evaluate", "archive", "export", "rewards", "bench"]
BELOW = [f"archive {name}" for name in ("ls", "show", "verify", "query", "compact")]
BELOW += ["export pairs", *(f"rewards {name}" for name in ("score", "compare", "ablate", "test")), "bench archive"]


def test_the_top_help_names_every_command() -> None:
    done = polytrace("--help")
    assert done.returncode == 0
    assert all(command in done.stdout for command in COMMANDS)


@pytest.mark.parametrize(
    "command", [[name] for name in COMMANDS] + [name.split() for name in [*BELOW, "bench rewards", "bench rescore"]]
)
def test_every_command_has_help_without_loading_torch(command: list[str]) -> None:
    check = "import sys; from rl.cli import main\ntry:\n  main()\nfinally:\n  assert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", check, *command, "--help"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout and len(done.stdout.splitlines()) > 5


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", "no_such.yaml"], "there is no file no_such.yaml"),
        (["train"], "train has no config; give a YAML file or the name of a shipped one"),
        (["train", "--replay", "no_such.npz"], "there is no file no_such.npz; give one of RUN/dropped/"),
        (["train", "demo", "group_size=1"], "group_size is 1"),
        (["train", "demo", "steps"], "'steps' is not of the form key=value"),
        (["evaluate", "no/such/run"], "no/such/run is not a folder"),
        (["archive", "verify", "no/such/run"], "no/such/run is not a folder"),
        (["archive", "ls", "no/such/run"], "no/such/run is not a folder"),
        (["archive", "show", "no/such/run"], "no/such/run is not a folder"),
        (["archive", "show", "tests", "--out", "page.pdf"], "page.pdf ends in neither .html nor .png"),
        (["archive", "show", "tests", "--worst", "1", "--best", "1"], "both worst and best are asked for"),
        (["archive", "query", "tests", "SELECT 1"], "tests holds no archive"),
        (["archive", "query", "tests", "SELECT 1", "--parquet", "x.csv"], "x.csv does not end in .parquet"),
        (["archive", "compact", "tests"], "No archive in tests/archive"),
        (["export", "pairs", "no/such/run", "--out", "x"], "no/such/run is not a folder"),
        (["rewards", "test", "mask_iuo"], "did you mean 'mask_iou'?"),
        (["rewards", "score", "no/such/run"], "no/such/run holds no archived answers"),
        (["rewards", "compare", "no/such/run", "mask_iou"], "No archive in no/such/run/archive"),
        (["rewards", "ablate", "rewards/iuo"], "there is no file rewards/iuo; did you mean 'iou'?"),
    ],
)
def test_a_mistake_is_one_message_and_status_2(arguments: list[str], says: str) -> None:
    done = polytrace(*arguments)
    assert done.returncode == 2
    assert (
        says in " ".join(done.stderr.split())
        and not done.stdout.strip()
        and "Traceback" not in done.stdout + done.stderr
    )


def test_a_run_that_is_there_is_not_mixed_with_a_new_one(tmp_path: Path) -> None:
    (tmp_path / "run" / "archive").mkdir(parents=True)
    done = polytrace("train", "demo", f"run={tmp_path / 'run'}")
    assert done.returncode == 2
    assert "holds a run already" in " ".join(done.stderr.split())
