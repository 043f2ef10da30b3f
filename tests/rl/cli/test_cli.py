"""The command as a user meets it: every --help reads, and every mistake is one line that says what to do."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from rl.cli.main import main
from rl.cli.start import CASES, measure


class Done(NamedTuple):
    status: int
    stdout: str
    stderr: str


Command = Callable[..., Done]


@pytest.fixture
def polytrace(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command in this process: one of its own needs seconds to import what it imports."""

    def run(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["polytrace", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return Done(int(end.value.code or 0), *capsys.readouterr())

    return run


COMMANDS = ["demo", "sft", "train", "sample", "refine", "evaluate", "predict", "archive", "export", "rewards", "bench"]
BELOW = [f"archive {name}" for name in ("ls", "show", "verify", "query", "compact")]
BELOW += ["export pairs", "export checkpoint", *(f"rewards {name}" for name in ("score", "compare", "ablate", "test"))]
BENCHES = ["rewards", "rescore", "archive", "learner", "rollout", "step", "refiner"]


HELP_OF_ALL = """
import contextlib, io, json, sys
from rl.cli.main import main

told = {}
for command in json.loads(sys.argv[1]):
    sys.argv = ["polytrace", *command.split(), "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
        main()
    told[command] = [text.getvalue(), "torch" in sys.modules]
print(json.dumps(told))
"""


def test_the_top_help_names_every_command(polytrace: Command) -> None:
    done = polytrace("--help")
    assert done.status == 0
    assert all(command in done.stdout for command in COMMANDS)


def test_every_command_has_help_without_loading_torch() -> None:
    commands = [*COMMANDS, *BELOW, *(f"bench {name}" for name in BENCHES)]
    code = [sys.executable, "-c", HELP_OF_ALL, json.dumps(commands)]
    done = subprocess.run(code, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    for command, (text, loaded_torch) in json.loads(done.stdout).items():
        assert "Usage" in text and len(text.splitlines()) > 5, command
        assert not loaded_torch, command


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", "no_such.yaml"], "there is no file no_such.yaml"),
        (["train"], "train has no config; give a YAML file or the name of a shipped one"),
        (["train", "--replay", "no_such.npz"], "there is no file no_such.npz; give one of RUN/dropped/"),
        (["train", "tiny", "group_size=1"], "group_size is 1"),
        (["train", "tiny", "run=README.md/x"], "run is 'README.md/x', which cannot be a folder; give the folder of"),
        (["sample", "no_such.yaml"], "there is no file no_such.yaml"),
        (["sample", "tiny", "group_size=1"], "group_size is 1"),
        (["sample", "tiny", "--run", "no/such/run"], "no/such/run is not a folder"),
        (["sample", "tiny", "--run", "tests"], "tests holds no best policy; train it first"),
        (["sample", "tiny", "run=no/such/run", "--resume"], "no/such/run holds no archive to go on with"),
        (["bench", "archive", "--answers", "0"], "answers is 0 and pairs None; set each to 1 or more"),
        (["train", "tiny", "steps"], "'steps' is not of the form key=value"),
        (["train", "tiny", "groups_per_step=30"], "groups_per_step is 30, but learner.minibatches 2 x learner.micro_g"),
        (["train", "tiny", "learner.lr=.nan"], "learner.lr is nan, expected float"),
        (["train", "tiny", "seed=-1"], "seed is -1; set it to 0..9223372036854775807"),
        (["train", "tiny", "learner.grad_clip=-1"], "learner.grad_clip is -1; set it to 0 or more"),
        (["train", "tiny", "policy.checkpoint=null"], "policy.checkpoint is not set; give a Hugging Face model folder"),
        (["train", "tiny", "evaluation.final_scenes=0"], "evaluation.final_scenes is 0; set it to 1 or more"),
        (["train", "tiny", "refiner.rule.min_iou=2"], "refiner.rule.min_iou is 2; set it to 0..1"),
        (
            ["train", "tiny", "refiner.min_iou=0.4"],
            "refiner.min_iou is not a setting; did you mean refiner.rule.min_iou",
        ),
        (["refine", "nowhere"], "nowhere is neither the folder of a run nor a YAML file"),
        (["refine", "demo"], "give one of them, or a shipped one: refiner, refiner_coco28, refiner_two_way."),
        (["refine", "refiner", "training.stepz=3"], "training.stepz is not a setting; did you mean training.steps?"),
        (["refine", "refiner", "runs=[no/such/run]"], "no/such/run is not a folder"),
        (["refine", "refiner", "head.name=pixel_hat"], "did you mean 'pixel_head'"),
        (["refine", "refiner", "network.passes=0"], "passes is 0"),
        (["train", "--replay", "tests/conftest.py"], "tests/conftest.py is no batch of a dropped step"),
        (["train", "tiny", "sampling.temperature=0"], "sampling.temperature is 0, so that all answers of a group"),
        (["train", "tiny", "learner.token_budget=300"], "can take group_size 8 x sampling.max_tokens 48 = 384 answer"),
        (
            ["train", "tiny", "algorithm.clip_low=0.5", "algorithm.clip_high=0.1"],
            "algorithm.clip_low is 0.5, above clip_high 0.1",
        ),
        (
            ["train", "tiny", "learner.ranks=99", "learner.gpus_per_rank=1", "learner.token_budget=999"],
            "learner.ranks 99 x learner.gpus_per_rank 1 + pool.workers 2 x",
        ),
        (["train", "tiny", "pool.engine.name=vllm"], "vllm"),
        (["train", "tiny", "pool.staleness=60"], "Set pool.staleness to 51, or save_every to 61 or more"),
        (["bench", "learner", "--work", "4x8"], "give groups, answers, image tokens and answer tokens"),
        (["export", "checkpoint", "no/such/run", "--out", "x"], "no/such/run is not a folder"),
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
def test_a_mistake_is_one_message_and_status_2(polytrace: Command, arguments: list[str], says: str) -> None:
    done = polytrace(*arguments)
    assert done.status == 2
    assert (
        says in " ".join(done.stderr.split())
        and not done.stdout.strip()
        and "Traceback" not in done.stdout + done.stderr
    )


def test_settings_of_a_runs_refiner_are_told_by_their_place_in_its_config(polytrace: Command, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("run: x\nsteps: 3\n")
    done = polytrace("refine", str(tmp_path), "training.stepz=3")
    assert done.status == 2 and "Traceback" not in done.stderr
    told = " ".join(done.stderr.split())
    assert "refiner.training.stepz is not a setting; did you mean refiner.training.steps?" in told


def test_a_run_that_is_there_is_not_mixed_with_a_new_one(polytrace: Command, tmp_path: Path) -> None:
    (tmp_path / "run" / "archive").mkdir(parents=True)
    done = polytrace("train", "tiny", f"run={tmp_path / 'run'}")
    assert done.status == 2
    assert "holds a run already" in " ".join(done.stderr.split())


def test_how_long_a_start_takes_is_measured_beside_python_alone() -> None:
    found = {start.name: start for start in measure(rounds=1)}
    assert set(found) == {case.name for case in CASES}
    assert 0 < found["python alone"].seconds < found["polytrace --help"].seconds
    assert found["polytrace --help"].bar == 0.5 and found["misspelt key refused"].bar == 1.5
