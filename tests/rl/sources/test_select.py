"""Which examples are kept by the answers to them, what is written of them, and what is said where nothing fits."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from in_process import LocalPool, settings
from made_coco import annotation, entry, rectangle, small_set
from omegaconf import OmegaConf
from rich.console import Console
from typer.testing import CliRunner

from envs.datasets.cutout_scenes import Env
from envs.datasets.shards import Env as Shards
from envs.example import Example
from envs.geometry.contours import outline
from envs.polygons import Answer, AnswerStatus, answer_from_rings
from policies.families.base import Response
from rl.cli.main import app
from rl.config.plugins import env_plugin
from rl.pages.charts import Scatter
from rl.run.folder import RunFolder
from rl.run.parts import run_parts
from rl.run.steps import example_indices, refill_indices
from rl.sample import draw, without_learner
from rl.sources.difficulty import Thresholds, choose, difficulties, steps_range
from rl.sources.select import RunEnv, chosen_env, provenance, run_env, write_selection
from rollout import shard_writer
from rollout.archive.archive import RolloutArchive
from rollout.example_shards import SplitWriter
from rollout.records import Group, Rollout

QUIET = Console(quiet=True)
SCENES = {"name": "cutout_scenes", "image_size": 32, "num_scenes": 40}
ENV = Env("train", image_size=32, num_scenes=40)
HARD, EASY, SAME, WIDE, BROKEN, NARROW, ONCE = range(7)
# An unreadable answer, None, counts as 0. Mean and spread: 0, 0; 1, 0; 1/2, 0; 1/2, 1/4; 1/4, 1/4; 13/16, 1/16; 1/2, 0.
ANSWERS: dict[int, list[float | None]] = {
    HARD: [0, 0, 0, 0],
    EASY: [1, 1, 1, 1],
    SAME: [0.5, 0.5, 0.5, 0.5],
    WIDE: [0.25, 0.75, 0.75, 0.25],
    BROKEN: [None, 0.5, 0.5, None],
    NARROW: [0.75, 0.875, 0.75, 0.875],
    ONCE: [0.5],
}
RESPONSE = Response(np.arange(2), np.zeros(2, np.float32), "stop")


def answered(example: Example, index: int, iou: float | None) -> Rollout:
    """An answer that the archive says has this IoU, and half of it as a reward; None: one that could not be read."""
    answer = Answer(AnswerStatus.UNPARSABLE) if iou is None else answer_from_rings(outline(example.truth.union, 12))
    terms = {"mask_iou": None if iou is None else iou / 2}
    return Rollout(index, RESPONSE, "", answer, 0, 0, 0.125 if iou is None else iou, terms, 0, index)


def run_of(
    folder: Path,
    steps: Sequence[Mapping[int, Sequence[float | None]]],
    asked: Sequence[Example] | Env = ENV,
    config: Mapping[str, object] | None = None,
) -> Path:
    """A run whose steps asked examples by index, with answers of these IoUs; their totals are 1 minus the IoU."""
    archive = RolloutArchive(folder / "archive")
    for step, answers in enumerate(steps):
        groups = []
        for position, (index, ious) in enumerate(answers.items()):
            rollouts = tuple(answered(asked[index], k, iou) for k, iou in enumerate(ious))
            totals = tuple(1 - (iou or 0) for iou in ious)
            groups.append(Group("run", step, position, asked[index], np.arange(2), "cd" * 32, 1.0, rollouts, totals))
        archive.append(step, groups)
    archive.close()
    OmegaConf.save(
        OmegaConf.create({"run": str(folder), "steps": 1, "env": SCENES, **(config or {})}), folder / "config.yaml"
    )
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_of(tmp_path_factory.mktemp("select") / "run", [ANSWERS])


def kept(runs: Sequence[Path], steps: str | None = None, **thresholds: object) -> list[int]:
    """Indices of the examples that are kept."""
    asked = Thresholds(**{"min_mean": -9, "max_mean": 9, "min_spread": 0, "min_answers": 1, **thresholds})
    found = difficulties(runs, asked.by, None if steps is None else steps_range(steps), QUIET)
    ids = {ENV[index].id: index for index in range(len(ENV))}
    return sorted(ids[name] for name in choose(found, asked).kept_ids)


def select(*words: object) -> tuple[int, str, str]:
    """Exit status, output and error of the command."""
    done = CliRunner().invoke(app, ["data", "select", *map(str, words)])
    return done.exit_code, done.stdout, f"{done.exception or ''}"


def test_numbers_of_each_example_are_those_computed_by_hand(run: Path) -> None:
    found = difficulties([run], "iou", None, QUIET)
    assert found.ids == [ENV[index].id for index in range(7)]
    assert found.answers.tolist() == [4, 4, 4, 4, 4, 4, 1]
    assert found.mean.tolist() == [0, 1, 0.5, 0.5, 0.25, 0.8125, 0.5]
    assert found.spread.tolist() == [0, 0, 0, 0.25, 0.25, 0.0625, 0]
    assert found.best.tolist() == [0, 1, 0.5, 0.75, 0.5, 0.875, 0.5]
    assert found.unreadable.tolist() == [0, 0, 0, 0, 0.5, 0, 0]


def test_each_threshold_keeps_exactly_the_examples_that_meet_it_its_own_value_included(run: Path) -> None:
    everything = list(range(7))
    assert kept([run]) == everything
    assert kept([run], min_answers=2) == [HARD, EASY, SAME, WIDE, BROKEN, NARROW]
    assert kept([run], max_unreadable=0.5) == everything
    assert kept([run], max_unreadable=0.49) == [HARD, EASY, SAME, WIDE, NARROW, ONCE]
    assert kept([run], min_mean=0.25) == [EASY, SAME, WIDE, BROKEN, NARROW, ONCE]
    assert kept([run], min_mean=0.26, max_mean=0.8125) == [SAME, WIDE, NARROW, ONCE]
    assert kept([run], min_spread=0.0625) == [WIDE, BROKEN, NARROW]
    assert kept([run], min_spread=0.0626) == [WIDE, BROKEN]
    assert kept([run], min_best=0.75) == [EASY, WIDE, NARROW]
    found = difficulties([run], "iou", None, QUIET)
    assert choose(found, Thresholds()).kept_ids == [ENV[index].id for index in (WIDE, BROKEN, NARROW)]


def test_a_limit_takes_the_widest_spread_or_those_that_a_seed_draws(run: Path) -> None:
    assert kept([run], limit=2) == [WIDE, BROKEN]
    first = min((WIDE, BROKEN), key=lambda index: ENV[index].id)  # of equal spread: by id
    assert kept([run], limit=1) == [first]
    drawn = {tuple(kept([run], limit=3, seed=seed)) for seed in range(12)}
    assert all(len(each) == 3 for each in drawn) and len(drawn) > 4
    assert kept([run], limit=3, seed=5) == kept([run], limit=3, seed=5)
    assert kept([run], limit=99) == list(range(7))


def test_a_total_or_a_reward_may_take_the_place_of_iou(run: Path) -> None:
    # Totals are 1 minus the IoU, 1 where nothing was read; the reward is half of the IoU, 0 where nothing was read.
    assert kept([run], by="total", min_mean=0.75) == [HARD, BROKEN]
    assert kept([run], by="reward_mask_iou", min_mean=0.125, max_mean=0.25) == [SAME, WIDE, BROKEN, ONCE]
    with pytest.raises(ValueError, match="has no reward_mask_io; did you mean 'reward_mask_iou'"):
        kept([run], by="reward_mask_io")


def test_answers_to_which_a_reward_does_not_apply_do_not_count(tmp_path: Path) -> None:
    rollouts = tuple(answered(ENV[0], k, iou) for k, iou in enumerate((0.5, 1.0, 0.25)))
    rollouts = (*rollouts[:2], replace(rollouts[2], terms={"mask_iou": None}))
    group = Group("run", 0, 0, ENV[0], np.arange(2), "cd" * 32, 1.0, rollouts, (0.0,) * 3)
    RolloutArchive(tmp_path / "archive").append(0, [group])
    found = difficulties([tmp_path], "reward_mask_iou", None, QUIET)
    assert (found.answers.tolist(), found.mean.tolist(), found.spread.tolist()) == ([2], [0.375], [0.125])


def test_runs_and_steps_add_their_answers_up(tmp_path: Path) -> None:
    one = run_of(tmp_path / "one", [{0: [0.25, 0.25], 1: [1, 1]}, {0: [0.75], 2: [0.5]}])
    two = run_of(tmp_path / "two", [{0: [0.75], 3: [0, 1]}])
    found = difficulties([one, two], "iou", None, QUIET)
    assert (found.answers.tolist(), found.mean.tolist()) == ([4, 2, 1, 2], [0.5, 1, 0.5, 0.5])
    assert found.spread.tolist() == [0.25, 0, 0, 0.5]
    assert kept([one, two], min_spread=0.1) == [0, 3]
    assert kept([one], steps="1", max_mean=0.5) == [2] and kept([one, two], steps="..0", min_answers=3) == [0]


def test_steps_are_a_range_with_both_ends() -> None:
    assert steps_range("3..5") == range(3, 6) and steps_range("4") == range(4, 5) and steps_range("..2") == range(3)
    assert steps_range("7..").start == 7 and 10**9 in steps_range("7..")
    for wrong in ("", "..", "a..b", "5..3", "1-3"):
        with pytest.raises(ValueError, match="--steps is"):
            steps_range(wrong)


def assert_same(one: Example, other: Example) -> None:
    """Two examples are the same, to the pixel of their masks."""
    assert (one.id, one.prompt, one.image, one.source) == (other.id, other.prompt, other.image, other.source)
    assert one.split == other.split == "train" and one.licence == other.licence
    np.testing.assert_array_equal(one.truth.masks, other.truth.masks)


def test_the_shards_open_as_the_envs_examples_in_its_order_and_say_where_they_come_from(
    run: Path, tmp_path: Path
) -> None:
    status, out, _ = select(run, "--out", tmp_path / "out", "--json", "--page", tmp_path / "deep/page.html")
    told = json.loads(out)
    assert status == 0 and (told["kept"], told["by"], told["runs"]) == (3, "iou", [str(run)])
    assert [one["examples"] for one in told["funnel"]] == [7, 6, 5, 4, 3]
    assert told["funnel"][-1] == {"stage": "spread 0.02 or more", "examples": 3, "share": 3 / 7}
    assert told["quantiles"]["mean"]["100%"] == 1 and told["quantiles"]["spread"]["50%"] == 0
    shards = env_plugin({"name": "shards", "folder": str(tmp_path / "out")}).build(split="train")
    assert len(shards) == 3
    for k, index in enumerate((WIDE, BROKEN, NARROW)):
        assert_same(shards[k], ENV[index])
        np.testing.assert_array_equal(shards.image(shards[k].image), ENV.image(ENV[index].image))
        assert [one.id for one in shards.scene(k)] == [ENV[index].id]  # of its scene, only what was kept
    card = json.loads((tmp_path / "out/train/split.json").read_text())["provenance"]
    assert (card["env"], card["min_spread"], card["runs"]) == (SCENES, 0.02, [str(run)])
    assert card["funnel"] == told["funnel"] and card["embedded"] is True
    page = (tmp_path / "deep/page.html").read_text()
    # Kept 3, and of the dropped one each for answers, hard and spread, and one too easy: 6 x 4 answers and one of 1.
    assert page.count("data:image/png") == 6 * 4 + 1 and page.count("<article") == 7
    assert page.count("<circle") == 7 and "dropped <b>4</b>" in page and "kept <b>3</b>" in page
    assert "mean 0.250, spread 0.250, 4 answers, 50% unreadable" in page and "src=" not in page


def test_every_split_comes_along_where_that_is_asked_for(run: Path, tmp_path: Path) -> None:
    assert select(run, "--out", tmp_path / "out", "--all-splits")[0] == 0
    shards = Shards("validation", str(tmp_path / "out"))
    assert set(shards.splits()) == {"train", "validation", "test", "held_out_names"}
    assert len(shards) == 40 and shards[5].id == Env("validation", image_size=32, num_scenes=40)[5].id
    assert len(Shards("train", str(tmp_path / "out"))) == 3


def written(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_stopped_selection_goes_on_and_other_thresholds_are_refused_there(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_writer, "SHARD_ROWS", 1)
    data = run_env([run])
    choice = choose(difficulties([run], "iou", None, QUIET), Thresholds())
    chosen, come_from = chosen_env(data, choice, [run], QUIET), provenance(data, choice, [run], None)
    write_selection(chosen, tmp_path / "whole", come_from, False, QUIET)
    stopped = SplitWriter(tmp_path / "stopped/train", chosen, come_from, False)
    stopped.add(0)
    stopped.add(1)
    assert not stopped.is_whole
    assert select(run, "--out", tmp_path / "stopped")[0] == 0
    assert written(tmp_path / "stopped/train") == written(tmp_path / "whole/train")
    assert select(run, "--out", tmp_path / "stopped")[0] == 0  # whole already
    status, _, error = select(run, "--out", tmp_path / "stopped", "--min-spread", 0.01)
    assert status == 1 and "min_spread there is 0.02, here 0.01; give another folder" in error


def test_where_nothing_is_left_the_stage_that_left_none_and_the_distribution_are_told(
    run: Path, tmp_path: Path
) -> None:
    status, _, error = select(run, "--out", tmp_path / "out", "--min-spread", 0.3)
    assert status == 1 and not (tmp_path / "out").exists()
    assert "4 of 7 came as far as “spread 0.3 or more”, and none of them meets it" in error
    assert "by IoU: mean: 0% 0, " in error and "50% 0.5" in error and "spread: 0% 0, " in error and "100% 0.25" in error
    assert "3 of 7 came as far as “best 0.99 or more”" in select(run, "--out", tmp_path / "out", "--min-best", 0.99)[2]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--min-mean", "0.8", "--max-mean", "0.2"], "--min-mean is 0.8, above --max-mean 0.2"),
        (["--min-spread", "-1"], "--min-spread is -1; set it to 0 or more"),
        (["--limit", "0"], "--limit is 0; set it to 1 or more"),
        (["--seed", "3"], "--seed draws the examples of a limit; give --limit too"),
        (["--max-unreadable", "50"], "--max-unreadable is 50; give a share from 0 to 1"),
        (["--by", "reward"], "--by is reward; give iou, total, or reward_NAME"),
        (["--steps", "5.."], r"no answer of the steps asked for is in .*run \(up to step 0\)"),
        (["--page", "page.png"], "page.png does not end in .html; give --page the name of a page"),
    ],
)
def test_options_that_mean_nothing_are_refused(run: Path, tmp_path: Path, words: list[str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        raise CliRunner().invoke(app, ["data", "select", str(run), "--out", str(tmp_path / "out"), *words]).exception


def test_a_run_without_archive_config_or_answers_is_named(run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "empty holds no archive" in select(tmp_path / "empty", "--out", tmp_path / "out")[2]
    (tmp_path / "begun/archive").mkdir(parents=True)
    (tmp_path / "begun/config.yaml").write_text("env: {name: cutout_scenes}\n")
    assert "begun holds no archived answer; give" in select(tmp_path / "begun", "--out", tmp_path / "out")[2]
    (tmp_path / "begun/config.yaml").unlink()
    assert "config.yaml is missing" in select(tmp_path / "begun", "--out", tmp_path / "out")[2]
    other = run_of(tmp_path / "other", [ANSWERS], config={"env": SCENES | {"image_size": 48}})
    assert "ask different data" in select(run, other, "--out", tmp_path / "out")[2]


def test_examples_that_the_env_has_no_longer_or_has_otherwise_are_refused_by_name(tmp_path: Path) -> None:
    gone = run_of(tmp_path / "gone", [{30: [0, 1], 2: [0, 1]}], config={"env": SCENES | {"num_scenes": 20}})
    error = select(gone, "--out", tmp_path / "out")[2]
    assert f"does not have any more (1): {ENV[30].id}. Restore" in error
    image = [replace(ENV[0], image=replace(ENV[0].image, sha256="ab" * 32)), ENV[1]]
    repainted = run_of(tmp_path / "repainted", [{0: [0, 1], 1: [0, 1]}], image)
    error = select(repainted, "--out", tmp_path / "out")[2]
    assert f"whose image is another now (1): {ENV[0].id}. What" in error
    mask = [ENV[0], replace(ENV[1], truth=replace(ENV[1].truth, masks=~ENV[1].truth.masks))]
    redrawn = run_of(tmp_path / "redrawn", [{0: [0, 1], 1: [0, 1]}], mask)
    error = select(redrawn, "--out", tmp_path / "out")[2]
    assert f"whose phrase or mask is another now (1): {ENV[1].id}. What" in error
    dropped = run_of(tmp_path / "dropped", [{0: [0, 1], 1: [0, 0]}], mask)  # of which nothing is kept
    assert select(dropped, "--out", tmp_path / "out", "--page", tmp_path / "page.html")[0] == 0


class Counting(Env):
    """An Env that counts what it is asked for."""

    asked = 0

    def __getitem__(self, index: int) -> Example:
        Counting.asked += 1
        return super().__getitem__(index)


def test_examples_are_looked_for_where_the_run_asked_them_refills_too_and_only_then_everywhere(tmp_path: Path) -> None:
    config = {"seed": 5, "groups_per_step": 3}
    indices = [*example_indices(5, 40, 0, 3), *refill_indices(5, 40, 0, 1, 2)]
    assert len(set(indices)) == 5
    run = run_of(tmp_path / "run", [{index: [0, 1] for index in indices}], config=config)
    choice = choose(difficulties([run], "iou", None, QUIET), Thresholds())
    for asking, times in (((5, 3), 5), ((6, 3), 40)):
        Counting.asked = 0
        env = Counting("train", image_size=32, num_scenes=40)
        chosen = chosen_env(RunEnv(SCENES, env, (asking,)), choice, [run], QUIET)
        assert Counting.asked >= times and (Counting.asked == 5) == (times == 5)
        assert [chosen[k].id for k in range(5)] == [ENV[index].id for index in sorted(indices)]


def test_photos_stay_files_also_where_the_run_read_them_from_shards(tmp_path: Path) -> None:
    boxes = [rectangle(1, 1, 4, 4), rectangle(6, 4, 9, 8), rectangle(0, 0, 5, 2)]
    annotations = [annotation(11 + k, 1 + k // 2, [box]) for k, box in enumerate(boxes)]
    phrases = [entry(1 + k // 2, (11 + k,), [f"cup {k}"]) for k in range(3)]
    entry_of_coco = {"name": "coco", **small_set(tmp_path, annotations, phrases)}
    env = env_plugin(entry_of_coco).build(split="train")
    run = run_of(tmp_path / "run", [{0: [0, 1], 1: [1, 1], 2: [0, 1]}], env, {"env": entry_of_coco})
    assert select(run, "--out", tmp_path / "once")[0] == 0
    of_shards = {"name": "shards", "folder": str(tmp_path / "once")}
    again = run_of(
        tmp_path / "again", [{0: [0, 1], 1: [0, 0]}], Shards("train", of_shards["folder"]), {"env": of_shards}
    )
    assert select(again, "--out", tmp_path / "twice")[0] == 0
    assert select(again, "--out", tmp_path / "copied", "--embed")[0] == 0
    once, twice, copied = (Shards("train", str(tmp_path / name)) for name in ("once", "twice", "copied"))
    assert [once[k].id for k in range(2)] == [env[0].id, env[2].id] and len(twice) == len(copied) == 1
    file = twice.image_file(twice[0].image)
    assert file is not None and file.path.parent == (tmp_path / "images").absolute()
    assert copied.image_file(copied[0].image) is None
    for shards in (once, twice, copied):
        assert_same(shards[0], env[0])
        np.testing.assert_array_equal(shards.image(shards[0].image), env.image(env[0].image))


def test_dots_lie_by_their_numbers_and_lines_outside_of_the_axes_are_left_out() -> None:
    dots = {"all": [(0.0, 0.0, "corner"), (0.5, 0.2, "middle"), (1.0, 0.4, "far")]}
    placed = Scatter("", "", "", dots, x_lines=(0.5, 7.0), y_lines=(0.2,)).placed(200, 150)
    (curve,) = placed.frame.curves
    (x0, y0, _), (x1, y1, said), (x2, y2, _) = curve.points
    assert said == "middle" and curve.last == "3" and (x1, y1) == (pytest.approx((x0 + x2) / 2), (y0 + y2) / 2)
    assert placed.x_lines == (x1,) and placed.y_lines == (pytest.approx(y1),)
    assert y0 == placed.frame.bottom and y2 == placed.frame.top and x0 > placed.frame.left


@pytest.mark.slow
def test_what_the_embedded_policy_draws_in_two_steps_can_be_selected_from_and_trained_on(tmp_path: Path) -> None:
    config = without_learner(settings(tmp_path / "run", "steps=2", "sampling.max_tokens=48"))
    parts = run_parts(config)
    RunFolder(tmp_path / "run").begin_sampling(config, parts.data, False)
    draw(config, parts, LocalPool(config, parts), QUIET)  # type: ignore[arg-type]
    assert select(tmp_path / "run", "--out", tmp_path / "out", "--min-spread", 0.001, "--min-mean", 0.01)[0] == 0
    shards = Shards("train", str(tmp_path / "out"))
    assert 1 <= len(shards) <= 4
    asked = {
        row
        for batch in RolloutArchive(tmp_path / "run/archive").examples(["example_id"])
        for row in batch[0].to_pylist()
    }
    assert {shards[k].id for k in range(len(shards))} <= asked
