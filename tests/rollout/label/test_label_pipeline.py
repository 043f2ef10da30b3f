"""Labelling as a whole: the same shards by Ray and without it, stopped or not; everything refused is kept beside."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_labels import QUIET, STAGES, config, photos, with_boxes
from PIL import Image

from envs.datasets.shards import Env
from envs.geometry.masks import iou
from rl import label as verb
from rl.labels.report import LabelReport, curve_of
from rollout.label import writer as label_writer
from rollout.label.judged import TRUE_IOU
from rollout.label.looks import NEAR_DUPLICATE, Looks, looks_path
from rollout.label.objects import read_objects


def hashes(out: Path) -> dict[str, str]:
    """Content of all Parquet files."""
    files = sorted(path for path in out.rglob("*.parquet"))
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def objects_of(out: Path) -> list[dict[str, Any]]:
    return [row for table in read_objects(out) for row in table.to_pylist()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("labels") / "whole"
    verb.label(config(out), QUIET)
    return out


def test_labels_open_as_examples_and_are_what_their_objects_say(whole: Path) -> None:
    env = Env("train", folder=str(whole))
    kept = {row["example_id"]: row for row in objects_of(whole) if row["stage"] is None and row["number"] is not None}
    assert len(env) == len({row["example_id"] for row in kept.values()}) > 3
    for k in range(len(env)):
        example = env[k]
        assert example.prompt.text == kept[example.id]["phrase"] and example.truth.masks.any()
        assert env.image(example.image).shape == (64, 64, 3)


def test_every_object_that_was_found_is_there_with_its_fate(whole: Path) -> None:
    rows = [row for row in objects_of(whole) if row["number"] is not None]
    by_image: dict[int, list[int]] = {}
    for row in rows:
        by_image.setdefault(row["image"], []).append(row["number"])
        assert (row["stage"] is None) == (row["example_id"] is not None) == (row["reason"] is None)
    assert all(sorted(numbers) == list(range(len(numbers))) for numbers in by_image.values())
    assert {row["image"] for row in objects_of(whole)} == set(range(24))


def test_verified_labels_are_better_than_those_before(whole: Path) -> None:
    report = LabelReport(whole)
    before, after = report.before_and_after()
    assert after > before + 0.05
    steps = report.funnel()
    assert steps[-1].left == len(report.kept) and 0 < report.kept_share < 1
    told = report.as_json()
    assert told["mean_iou"] == {"before": before, "after": after} and told["images"] == 24


def test_the_curve_by_hand() -> None:
    points = curve_of(np.array([0.0, 0.5, 0.9]), np.array([0.1, 0.4, 0.7]))
    assert [(one.objects, round(one.share, 3)) for one in points if one.least in (0.0, 0.5, 0.95)] == [
        (3, 1.0),
        (2, 0.667),
        (0, 0.0),
    ]
    assert points[0].mean_iou == pytest.approx(0.4) and points[10].mean_iou == pytest.approx(0.55)


def test_a_job_that_was_stopped_after_any_shard_ends_with_the_same_files(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_writer, "SHARD_IMAGES", 8)
    verb.label(config(tmp_path / "shards"), QUIET)
    real = verb.labelled_here
    for blocks in (1, 2):
        out = tmp_path / f"stopped-{blocks}"

        def stopping(*args: Any, most: int = blocks) -> Iterator[Any]:
            for k, block in enumerate(real(*args)):
                if k == most:
                    raise KeyboardInterrupt
                yield block

        monkeypatch.setattr(verb, "labelled_here", stopping)
        with pytest.raises(KeyboardInterrupt):
            verb.label(config(out), QUIET)
        assert not (out / "train" / "split.json").exists()
        monkeypatch.setattr(verb, "labelled_here", real)
        verb.label(config(out), QUIET)
        assert hashes(out) == hashes(tmp_path / "shards")
    monkeypatch.undo()
    merged = {name.split("/")[0] for name in hashes(whole)}
    assert merged == {"objects", "train"}


def test_labels_are_the_same_with_any_number_of_threads(whole: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3 - min(before, 2))
    verb.label(config(tmp_path / "out"), QUIET)
    after = torch.get_num_threads()
    torch.set_num_threads(before)
    assert hashes(tmp_path / "out") == hashes(whole) and after == 3 - min(before, 2)


def test_a_folder_of_other_labels_is_refused(whole: Path) -> None:
    with pytest.raises(ValueError, match="holds examples of other data or settings: stages"):
        verb.label(config(whole, stages=STAGES[:-1]), QUIET)
    with pytest.raises(ValueError, match="images there is"):
        verb.label(config(whole, num=25), QUIET)


def test_of_images_of_one_picture_the_first_is_labelled(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos")
    boxes = {name: [12.0, 12.0, 36.0, 36.0] for name in ("0.png", "1.png", "2.png")} | {"9.jpg": [9.0, 9.0, 27.0, 27.0]}
    verb.label(with_boxes(folder, tmp_path / "out", boxes, near_duplicates=6), QUIET)
    refused = [row for row in objects_of(tmp_path / "out") if row["stage"] == "near_duplicates"]
    assert {Path(row["image_key"]).name for row in refused} == {"9.jpg"}
    assert {row["reason"] for row in refused} == {NEAR_DUPLICATE}
    assert {Path(row["detail"]).name for row in refused} == {"1.png"}
    assert [row["number"] for row in refused] == [None]  # no stage saw it
    report = LabelReport(tmp_path / "out")
    assert report.refused_images == {("near_duplicates", NEAR_DUPLICATE): 1} and len(report.objects) == 3


def test_hashes_are_kept_and_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = with_boxes(photos(tmp_path / "photos"), tmp_path / "out", {"0.png": [12.0, 12.0, 36.0, 36.0]})
    job.near_duplicates = 6
    monkeypatch.setattr(verb, "LOOKS_IMAGES", 3)
    real, asked = verb.looked_here, list[tuple[int, int]]()

    def stopping(pipeline: Any, first: int, last: int) -> Iterator[Any]:
        asked.append((first, last))
        if len(asked) == 2:
            raise KeyboardInterrupt
        yield from real(pipeline, first, last)

    monkeypatch.setattr(verb, "looked_here", stopping)
    with pytest.raises(KeyboardInterrupt):
        verb.label(job, QUIET)
    assert looks_path(tmp_path / "out", 0).exists() and not looks_path(tmp_path / "out", 1).exists()
    verb.label(job, QUIET)
    assert asked == [(0, 3), (3, 4), (3, 4)]
    assert LabelReport(tmp_path / "out").refused_images == {("near_duplicates", NEAR_DUPLICATE): 1}


def test_copies_by_hand() -> None:
    seen = Looks(most_bits=2)
    seen.take([("a", "0" * 16), ("b", "f" * 16), ("closed", ""), ("c", "0" * 15 + "3")])
    seen.take([("d", "0" * 15 + "7"), ("e", "7" + "f" * 15), ("f", "0" * 15 + "7")])
    # 3 has two bits and 7 has three; what is a copy itself has no copies.
    assert seen.copies == {3: "a", 5: "b", 6: "d"} and seen.num_images == 7


def test_labels_of_files_refer_to_them_and_open_by_themselves(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos")
    verb.label(with_boxes(folder, tmp_path / "out", {"0.png": [12.0, 12.0, 36.0, 36.0]}, candidates=True), QUIET)
    env = Env("train", folder=str(tmp_path / "out"))
    [example] = [env[k] for k in range(len(env))]
    assert example.prompt.text == "box" and example.candidates is not None
    assert np.array_equal(env.image(example.image), np.asarray(Image.open(folder / "0.png")))
    assert iou(example.candidates[0], example.truth.union) == 1.0


def test_a_job_that_finds_nothing_ends_early_and_says_so(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos")
    with pytest.raises(ValueError, match="nothing was found in the first 2 images; look at the first stage"):
        verb.label(with_boxes(folder, tmp_path / "out", {}, empty_images=2, block_images=1), QUIET)
    with pytest.raises(ValueError, match="no stage found anything in 4 images"):
        verb.label(with_boxes(folder, tmp_path / "other", {}), QUIET)
    unsegmented = with_boxes(folder, tmp_path / "third", {"0.png": [12.0, 12.0, 36.0, 36.0]})
    unsegmented.stages = unsegmented.stages[:1]
    with pytest.raises(ValueError, match="1 lack a phrase or a mask: a stage that segments or captions is missing"):
        verb.label(unsegmented, QUIET)


def test_wrong_settings_are_told_before_anything_starts(tmp_path: Path) -> None:
    def told(message: str, **changes: Any) -> None:
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            verb.label(config(tmp_path / "out", **changes), QUIET)
        assert not (tmp_path / "out").exists()

    told(r"stages\[0\].*did you mean 'grabcut'", stages=[{"name": "grabcat"}])
    told(
        r"stages\[0\] is policy_boxes, which asks a policy; set stages\[0\].checkpoint",
        stages=[{"name": "policy_boxes"}],
    )
    told("asks no policy; leave checkpoint", stages=[{"name": "grabcut", "checkpoint": "tiny"}])
    told("no folder", images={"name": "folder", "path": str(tmp_path / "missing")})
    told("is not a folder|holds neither", stages=[{"name": "policy_boxes", "checkpoint": str(tmp_path / "none")}])
    told(r"stages\[0\].iterations is 0", stages=[{"name": "grabcut", "iterations": 0}])


@pytest.mark.slow
def test_ray_gives_the_same_files_killed_in_the_middle_or_not(tmp_path: Path) -> None:
    """A real process, killed by SIGKILL once a shard is there, and begun again."""
    verb.label(config(tmp_path / "whole", stages=STAGES[:4], near_duplicates=20), QUIET)
    assert LabelReport(tmp_path / "whole").refused_images  # so wide that some scenes count as copies
    out = tmp_path / "by_ray"
    script = (
        "import sys; from pathlib import Path; from rich.console import Console\n"
        "from rollout.label import writer; from rl.label import label\n"
        "from made_labels import STAGES, config\n"
        "writer.SHARD_IMAGES = 8\n"
        "label(config(Path(sys.argv[1]), in_process=False, stages=STAGES[:4], near_duplicates=20), Console())\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "RAY_ADDRESS": ""}
    command = [sys.executable, "-c", script, str(out)]
    running = subprocess.Popen(command, env=environment, start_new_session=True)
    deadline = time.monotonic() + 400
    while not (out / "train" / "examples-00000.parquet").exists() and running.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    subprocess.run(command, env=environment, check=True, timeout=500)
    rows = objects_of(out)
    assert rows == objects_of(tmp_path / "whole") and all(TRUE_IOU in one["numbers"] for one in rows if one["mask"])
    assert Env("train", folder=str(out)).fingerprint == Env("train", folder=str(tmp_path / "whole")).fingerprint
