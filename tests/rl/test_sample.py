"""What `polytrace sample` archives is what training would have, less the learning; and it goes on where it was."""

import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from in_process import LocalPool, apart, run_here, settings
from made_archive import write_steps
from rich.console import Console

from rl.config.pairs import PairExport, PairRule
from rl.config.run import RunConfig
from rl.pairs.export import export_pairs
from rl.run.data import RunData
from rl.run.folder import RunFolder
from rl.run.parts import run_parts
from rl.sample import _refuse_other_weights, draw, of_best_policy, without_learner
from rollout.archive.archive import RolloutArchive
from rollout.cluster import free_address

QUIET = Console(quiet=True)
REFILLED = "refills=1"


def sample_here(folder: Path, *overrides: str, resume: bool = False) -> RunConfig:
    config = settings(folder, REFILLED, *overrides)
    alone = without_learner(config)
    parts = run_parts(alone)
    RunFolder(folder).begin_sampling(config, parts.data, resume)
    draw(alone, parts, LocalPool(alone, parts), QUIET)  # type: ignore[arg-type]
    return config


def shards(folder: Path) -> dict[str, bytes]:
    return {f"{path.relative_to(folder)}": path.read_bytes() for path in folder.glob("archive/*/step-*.parquet")}


@pytest.mark.long
def test_step_0_is_that_of_training_and_its_best_policy_draws_what_training_drew_first(tmp_path: Path) -> None:
    trained, sampled = tmp_path / "trained/run", tmp_path / "sampled/run"
    assert apart(run_here, trained, free_address()[1], [REFILLED, "steps=1"]) == 0
    sample_here(sampled, "steps=1")
    assert shards(sampled) == shards(trained) and len(shards(trained)) == 2
    best = of_best_policy(settings(sampled), trained).policy["checkpoint"]
    assert best.startswith(f"{trained / 'checkpoints/best-'}") and (Path(best) / "config.json").is_file()


def test_a_stopped_run_goes_on_to_what_it_would_have_been_and_can_be_exported_once_it_is_done(tmp_path: Path) -> None:
    through, stopped = tmp_path / "through/run", tmp_path / "stopped/run"
    whole = "sampling.max_tokens=48"
    sample_here(through, "steps=3", whole)
    sample_here(stopped, "steps=2", whole)
    sample_here(stopped, "steps=3", whole, resume=True)
    assert shards(stopped) == shards(through) and RolloutArchive(through / "archive").num_steps == 3
    rule = PairRule(min_iou=0.0, per_example=2)
    assert export_pairs([through], tmp_path / "pairs", PairExport(rule, held_out_examples=8)).pairs > 3
    shutil.rmtree(through / "archive")
    with pytest.raises(FileNotFoundError, match="holds no archive to go on with; start without --resume"):
        sample_here(through, whole, resume=True)


def test_a_sample_is_mixed_with_no_other_run_and_resumed_by_no_other_settings(tmp_path: Path) -> None:
    run = tmp_path / "run"
    sample_here(run, "steps=1")
    with pytest.raises(FileExistsError, match=r"run holds a run already; go on with it by --resume"):
        RunFolder(run).begin_sampling(settings(run, REFILLED), RunData({}), resume=False)
    with pytest.raises(ValueError, match=r"^seed is 5, but .* began with 0; resume with the same settings"):
        RunFolder(run).begin_sampling(settings(run, REFILLED, "seed=5"), RunData({}), resume=True)
    (run / "checkpoints").mkdir()
    with pytest.raises(ValueError, match="run holds a training run; give what is sampled a folder of its own"):
        RunFolder(run).begin_sampling(settings(run, REFILLED), RunData({}), resume=True)
    with pytest.raises(FileNotFoundError, match="run holds no best policy; train it first"):
        of_best_policy(settings(run), run)


def test_an_archive_of_an_earlier_release_is_not_gone_on_with(tmp_path: Path) -> None:
    write_steps(tmp_path / "archive", range(1)).close()
    config = without_learner(settings(tmp_path, "steps=2", "shaping={}"))
    parts = run_parts(config)
    with pytest.raises(ValueError, match=r"begun by a release whose checksums of weights \(cdcdcdcdcdcd\.\.\.\)"):
        draw(config, parts, LocalPool(config, parts), QUIET)  # type: ignore[arg-type]
    assert RolloutArchive(tmp_path / "archive").num_steps == 1


def test_an_archive_that_other_weights_drew_is_told_as_such() -> None:
    class Others:
        folder, last_step = Path("archive"), 3

        def rollouts(self, columns: list[str], steps: set[int]) -> list[tuple[pa.RecordBatch]]:
            return [(pa.record_batch({"policy_checksum": ["ab" * 16]})[columns[0]],)]

    with pytest.raises(ValueError, match=r"has the weights cdcdcdcdcdcd, but archive was drawn by abababababab; bring"):
        _refuse_other_weights(Others(), "cd" * 16)  # type: ignore[arg-type]
