"""The main loop in real processes: equal runs are equal files, and a run that was stopped or killed goes on bit for
bit."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from commands import SMALL, numbers, polytrace, shards, train
from mask_policies import run_settings

from rl.config.load import load_settings
from rl.config.run import RunConfig
from rl.run.data import RunData
from rl.run.folder import RunFolder
from rl.run.steps import example_indices
from rl.train import last_step_to_ask

NO_DATA = RunData({})


def test_every_example_is_asked_once_an_epoch() -> None:
    asked = [index for step in range(5) for index in example_indices(3, 20, step, 4)]
    assert sorted(asked) == list(range(20))
    assert asked != list(range(20))
    assert example_indices(3, 20, 2, 4) == asked[8:12]


def test_a_step_may_span_two_epochs() -> None:
    assert sorted(example_indices(0, 3, 0, 6)) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("staleness", "versions"),
    [
        (0, [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        (1, [0, 0, 1, 2, 4, 4, 5, 6, 8]),
        (2, [0, 0, 0, 1, 4, 4, 4, 5, 8]),
        (3, [0, 0, 0, 0, 4, 4, 4, 4, 8]),
    ],
)
def test_a_step_is_asked_as_early_as_staleness_allows_but_never_across_a_checkpoint(
    staleness: int, versions: list[int]
) -> None:
    config = load_settings(
        RunConfig, Path("tiny"), ["run=unused", "steps=9", "save_every=4", f"pool.staleness={staleness}"]
    )
    asked_at: list[int] = []
    for step in range(9):
        asked_at += [step] * (last_step_to_ask(config, step) + 1 - len(asked_at))
    assert asked_at == versions
    for first in (4, 8):  # as in a run resumed there
        assert versions[first] == first and last_step_to_ask(config, first - 1) == first - 1


def test_a_run_does_not_go_on_under_another_staleness(tmp_path: Path) -> None:
    RunFolder(tmp_path).begin(load_settings(RunConfig, Path("tiny"), [f"run={tmp_path}"]), NO_DATA, resume=False)
    (tmp_path / "checkpoints/step-000001").mkdir(parents=True)
    stale = load_settings(RunConfig, Path("tiny"), [f"run={tmp_path}", "pool.staleness=1"])
    with pytest.raises(ValueError, match=r"^pool.staleness is 1, but .* began with 0; resume with the same settings"):
        RunFolder(tmp_path).begin(stale, NO_DATA, resume=True)


def test_a_run_does_not_go_on_under_another_shaping(tmp_path: Path) -> None:
    RunFolder(tmp_path).begin(load_settings(RunConfig, Path("tiny"), [f"run={tmp_path}"]), NO_DATA, resume=False)
    (tmp_path / "checkpoints/step-000001").mkdir(parents=True)
    shaped = load_settings(RunConfig, Path("tiny"), [f"run={tmp_path}", "shaping.total.kind=rank"])
    with pytest.raises(ValueError, match=r"^shaping is .*kind='rank'.* began with \{\}; resume with the same settings"):
        RunFolder(tmp_path).begin(shaped, NO_DATA, resume=True)


def test_a_run_does_not_go_on_with_the_grammar_where_it_began_without(tmp_path: Path) -> None:
    RunFolder(tmp_path).begin(load_settings(RunConfig, Path("tiny"), [f"run={tmp_path}"]), NO_DATA, resume=False)
    (tmp_path / "checkpoints/step-000001").mkdir(parents=True)
    masked = load_settings(RunConfig, Path("tiny"), [f"run={tmp_path}", "sampling.grammar=true"])
    with pytest.raises(ValueError, match=r"^sampling is .*grammar=True.* began with .*grammar=False"):
        RunFolder(tmp_path).begin(masked, NO_DATA, resume=True)


def test_a_run_may_go_on_with_another_number_of_ranks_but_not_at_another_zero_stage(tmp_path: Path) -> None:
    base = [f"run={tmp_path}", *SMALL]
    RunFolder(tmp_path).begin(load_settings(RunConfig, Path("tiny"), base), NO_DATA, resume=False)
    (tmp_path / "checkpoints/step-000001").mkdir(parents=True)
    more = load_settings(RunConfig, Path("tiny"), [*base, "learner.ranks=2", "learner.micro_groups=1"])
    RunFolder(tmp_path).begin(more, NO_DATA, resume=True)
    other = load_settings(RunConfig, Path("tiny"), [*base, "learner.zero_stage=1"])
    with pytest.raises(ValueError, match=r"^learner\.zero_stage is 1, but .* began with 0; resume with the same"):
        RunFolder(tmp_path).begin(other, NO_DATA, resume=True)


LONG_CHOOSES, LONG_DRAWS = (pytest.param(name, marks=pytest.mark.long) for name in ("chooses", "draws"))


@pytest.fixture(scope="module", params=["writes", LONG_CHOOSES, LONG_DRAWS])
def policy(request: pytest.FixtureRequest, tiny_untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Settings of a policy that writes outlines, chooses among masks, or draws them in boxes."""
    return run_settings(request.param, tiny_untrained, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def uninterrupted(policy: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    train(folder, *policy, "steps=4", "pool.workers=2")
    return folder


@pytest.mark.long
def test_a_run_stopped_after_step_2_and_resumed_in_a_new_process_is_the_uninterrupted_run(
    uninterrupted: Path, policy: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    train(folder, *policy, "steps=2", "pool.workers=1")
    train(folder, *policy, "steps=4", "pool.workers=1", "--resume")
    assert shards(folder) == shards(uninterrupted)
    resumed, expected = numbers(folder), numbers(uninterrupted)
    assert [row for row in resumed if row["step"] >= 2] == [row for row in expected if row["step"] >= 2]


@pytest.mark.slow
def test_a_run_whose_losses_are_not_finite_stops_after_three_steps_and_their_batches_can_be_replayed(
    tmp_path: Path,
) -> None:
    folder, algorithm = tmp_path / "run", tmp_path / "spoilt.py"
    algorithm.write_text(
        "from dataclasses import dataclass\nfrom rl.algorithms import gspo\n\n\n@dataclass(frozen=True)\n"
        "class Algorithm(gspo.Algorithm):\n    def advantages(self, totals):\n"
        "        advantages, counts = super().advantages(totals)\n"
        "        advantages[-1, 0] = advantages[0, 1] = float('nan')\n        return advantages, counts\n"
    )
    settings = [f"run={folder}", *SMALL, "steps=9", "pool.workers=1", f"algorithm={{module: {algorithm}}}"]
    done = subprocess.run(
        polytrace("train", "tiny", *settings), capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 2 and "Traceback" not in done.stdout + done.stderr
    said = " ".join(done.stderr.split())
    assert (
        f"in 3 steps in a row, the last of them 2; these updates were dropped, and their batches lie in {folder}"
        in said
    )
    assert [row["learner/updates_dropped"] for row in numbers(folder) if "learner/loss" in row] == [2.0] * 3
    files = sorted((folder / "dropped").iterdir())
    assert [path.name for path in files] == [f"step-{step:06d}.npz" for step in range(3)]
    replayed = polytrace("train", "--replay", str(files[2]))
    done = subprocess.run(replayed, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "step-000002.npz under the weights of step 2" in done.stdout
    assert "2 of 4 groups hold something that is not finite" in done.stdout


@pytest.mark.slow
def test_a_run_killed_after_its_last_checkpoint_sets_aside_what_came_later_and_goes_on(
    uninterrupted: Path, policy: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    # One worker where the uninterrupted run has two: their number changes nothing.
    command = polytrace("train", "tiny", f"run={folder}", *SMALL, *policy, "steps=1000", "pool.workers=1")
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 300
    while not (folder / "archive/rollouts/step-00000003.parquet").exists():
        assert driver.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    train(folder, *policy, "steps=4", "pool.workers=1", "--resume")
    assert shards(folder) == shards(uninterrupted)
    resumed, expected = numbers(folder), numbers(uninterrupted)
    assert [row for row in resumed if row["step"] >= 2] == [row for row in expected if row["step"] >= 2]
    assert any("learner/loss" in row and row["learner/grad_norm"] > 0 for row in resumed if row["step"] == 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["chooses", "draws"])
def test_a_run_of_masks_that_samples_ahead_is_the_same_with_any_number_of_workers(
    name: str, tiny_untrained: Path, tmp_path: Path
) -> None:
    policy = run_settings(name, tiny_untrained, tmp_path / "policy")
    ahead = ["pool.staleness=1", "save_every=3", "steps=3", "learner.lr=2.0e-4", "learner.warmup_steps=1"]
    one, two = tmp_path / "one/run", tmp_path / "two/run"
    for workers, folder in enumerate((one, two), 1):
        train(folder, *policy, *ahead, f"pool.workers={workers}")
    assert shards(one) == shards(two) and len(shards(one)) == 6 and numbers(one) == numbers(two)
    learned = [row for row in numbers(one) if "learner/loss" in row]
    assert [row["rollout/staleness"] for row in learned] == [0, 1, 1]
    assert learned[0]["learner/sampler_logprob_difference"] < 1e-4 < learned[2]["learner/sampler_logprob_difference"]
    assert all(row["learner/grad_norm"] > 0 for row in learned)


@pytest.mark.long
def test_a_run_that_samples_ahead_is_the_same_with_any_number_of_workers_and_when_stopped_and_resumed(
    policy: list[str], tmp_path: Path
) -> None:
    through, stopped = tmp_path / "through/run", tmp_path / "stopped/run"
    ahead = [*policy, "pool.staleness=1", "save_every=3", "sampling.temperature_schedule=[[1, 1.0], [5, 0.6]]"]
    train(through, *ahead, "steps=6", "pool.workers=3")
    train(stopped, *ahead, "steps=3", "pool.workers=1")
    train(stopped, *ahead, "steps=6", "pool.workers=2", "--resume")
    assert shards(stopped) == shards(through) and len(shards(through)) == 12
    ages = [row["rollout/staleness"] for row in numbers(through) if "rollout/staleness" in row]
    assert ages == [0, 1, 1, 0, 1, 1]
    # Each step samples, and is learned from, at its own temperature.
    rows = [row for rows in RunFolder(through).archive().rollouts(["step", "temperature"]) for row in rows.to_pylist()]
    sampled_at = {row["step"]: row["temperature"] for row in rows}
    assert sampled_at == pytest.approx({0: 1.0, 1: 1.0, 2: 0.9, 3: 0.8, 4: 0.7, 5: 0.6})
    differences = [row["learner/sampler_logprob_difference"] for row in numbers(through) if "learner/loss" in row]
    assert differences[0] < 1e-4 and differences[3] < 1e-4  # sampled with the weights that learned from them
    resumed, expected = numbers(stopped), numbers(through)
    assert [row for row in resumed if row["step"] >= 3] == [row for row in expected if row["step"] >= 3]
    assert any("learner/loss" in row and row["learner/grad_norm"] > 0 for row in resumed if row["step"] == 5)
    seconds = [json.loads(line) for line in (stopped / "timings.jsonl").read_text().splitlines()]
    assert [row["step"] for row in seconds] == [0, 1, 2, 3, 4, 5]
    assert all({"seconds/answers", "seconds/learner", "seconds/step"} <= row.keys() for row in seconds)
