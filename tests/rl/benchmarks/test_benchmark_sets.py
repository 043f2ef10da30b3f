"""Data sets of `--data`: files prepared first or shards as they are, their splits, names and protocols."""

import io
from pathlib import Path

import pytest
from made_answers import prepared
from made_field_sets import grefcoco, refcoco
from made_user_files import two_photos, write_coco
from rich.console import Console

from rl.benchmark import Benchmark, benchmark, tell_unused_rows
from rl.benchmarks.published import Published, PublishedModel
from rl.benchmarks.sets import PROTOCOLS, BenchmarkSet, benchmark_sets
from rl.config.plugins import env_plugin
from rl.evaluation.protocols.base import protocol_named
from rollout.example_shards import SplitWriter

QUIET = Console(quiet=True)


def sets(out: Path, *given: str) -> list[BenchmarkSet]:
    return benchmark_sets(given, None, out, QUIET)


def test_files_are_prepared_and_every_split_that_is_not_for_training_is_asked(tmp_path: Path) -> None:
    refcoco(tmp_path / "refcoco")
    found = sets(tmp_path / "out", f"refcoco={tmp_path / 'refcoco'}")
    assert [(one.name, one.split, one.protocol, len(one.env())) for one in found] == [
        ("refcoco_testA", "testA", "res", 1),
        ("refcoco_testB", "testB", "res", 2),
        ("refcoco_val", "val", "res", 1),
    ]
    assert {one.folder for one in found} == {tmp_path / "out/prepared/refcoco"}
    assert not (tmp_path / "out/prepared/refcoco/train").exists()
    assert {one.shown_side for one in found} == {None}


def test_a_split_that_is_named_is_asked_alone_under_the_name_itself(tmp_path: Path) -> None:
    grefcoco(tmp_path / "grefcoco")
    path = tmp_path / "grefcoco"
    found = sets(tmp_path / "out", f"all={path}:train", f"mine={path}:val")
    assert [(one.name, one.split, one.protocol) for one in found] == [("all", "train", "gres"), ("mine", "val", "gres")]


def test_prepared_shards_are_taken_as_they_are_with_the_side_at_which_they_were_prepared(tmp_path: Path) -> None:
    shards = prepared(tmp_path, "--image-side", "6")
    [one] = sets(tmp_path / "out", f"mine={shards}:train")
    assert (one.folder, one.protocol, one.shown_side) == (shards, "gres", 6) and not (tmp_path / "out").exists()


def test_a_folder_with_a_colon_in_its_name_is_found(tmp_path: Path) -> None:
    prepared(tmp_path).rename(tmp_path / "a:train")
    [one] = sets(tmp_path / "out", f"mine={tmp_path / 'a:train'}:train")
    assert one.folder == tmp_path / "a:train"


def test_train_splits_alone_are_refused_before_anything_is_prepared(tmp_path: Path) -> None:
    write_coco(tmp_path / "coco", two_photos())
    for path in (tmp_path / "coco", prepared(tmp_path / "other")):
        with pytest.raises(ValueError, match=r"has train splits alone \(train\); name one by --data NAME=.*:SPLIT"):
            sets(tmp_path / "out", f"mine={path}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("given", ["mine", "=folder", "mine="])
def test_what_is_no_name_and_folder_is_refused(tmp_path: Path, given: str) -> None:
    with pytest.raises(ValueError, match="write NAME=FOLDER, or NAME=FOLDER:SPLIT"):
        sets(tmp_path, given)


def test_names_that_are_no_file_names_or_come_twice_and_splits_that_are_not_there_are_refused(tmp_path: Path) -> None:
    shards = prepared(tmp_path)
    for name in ("a/b", "..", "."):
        with pytest.raises(ValueError, match="give a name without a slash"):
            sets(tmp_path / "out", f"{name}={shards}:train")
    with pytest.raises(ValueError, match="a name of its own"):
        sets(tmp_path / "out", f"a={shards}:train", f"a={shards}:train")
    with pytest.raises(ValueError, match="'val' is not there"):
        sets(tmp_path / "out", f"a={shards}:val")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        sets(tmp_path / "out", f"a={tmp_path / 'nowhere'}:val")


def test_every_protocol_of_a_reader_is_there() -> None:
    assert {name: protocol_named(name).__class__.__module__.rpartition(".")[2] for name in PROTOCOLS.values()} == {
        name: name for name in PROTOCOLS.values()
    }


def test_a_protocol_of_masks_does_not_judge_boxes(tmp_path: Path) -> None:
    env = {"name": "tasks", "of": {"name": "cutout_scenes", "num_scenes": 4}, "tasks": {"text_to_box": 1.0}}
    writer = SplitWriter(tmp_path / "boxes" / "test", env_plugin(env).build(split="test"), {"env": env}, True)
    for index in range(4):
        writer.add(index)
    writer.finish()
    (data,) = benchmark_sets([f"boxes={tmp_path / 'boxes'}:test"], None, tmp_path, QUIET)
    assert data.protocol == "tasks"
    with pytest.raises(ValueError, match=r"boxes asks for box too, and the protocol res/lavt judges masks alone"):
        benchmark(Benchmark(tmp_path / "out", [], [data], ["res/lavt"]), QUIET)


def test_rows_of_ones_own_that_no_table_will_show_are_told(tmp_path: Path) -> None:
    rows = [PublishedModel("earlier", "report", {"mine": {"cIoU": 71.0}, "other_val": {"cIoU": 70.0}})]
    (data,) = benchmark_sets([f"mine={prepared(tmp_path)}:train"], None, tmp_path, QUIET)
    said = Console(file=io.StringIO(), width=300)
    tell_unused_rows(Benchmark(tmp_path / "out", [], [data], ["res/lavt"], own=[Published("Ours", "res", rows)]), said)
    tell_unused_rows(Benchmark(tmp_path / "out", [], [data], own=[Published("Mine", "gres", rows[:0])]), said)
    told = said.file.getvalue()  # type: ignore[attr-defined]
    assert told == "note: Ours: rows of other_val under res are not shown; tables are of mine under res.\n"
