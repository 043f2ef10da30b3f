"""Labels to Label Studio and back: what people left, moved, deleted and added, with hand-made corrections."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_labels import photos, with_boxes
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from envs.geometry.masks import iou
from rl.cli.main import app
from rl.label import label
from rl.labels.review import labels_of, read_review, write_tasks

BOXES = {name: [12.0, 12.0, 36.0, 36.0] for name in ("0.png", "1.png", "2.png")}


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    out = tmp_path / "out"
    label(with_boxes(photos(tmp_path / "photos"), out, BOXES), Console(quiet=True))
    return out


def exported(out: Path) -> list[dict[str, Any]]:
    """The tasks as people get them, annotated by what was foretold."""
    tasks: list[dict[str, Any]] = json.loads((out / "review" / "tasks.json").read_text())
    return [{"id": k, "data": task["data"], "annotations": [task["predictions"][0]]} for k, task in enumerate(tasks)]


def test_tasks_are_photos_as_they_are_shown_with_the_labels_over_them(labels: Path) -> None:
    assert write_tasks(labels, 2, seed=0) == 2 and write_tasks(labels, 100, seed=0) == 3
    tasks = exported(labels)
    asked = {one.name: one for one in labels_of(labels, {0, 1, 2})}
    for task in tasks:
        name = task["data"]["image"].rpartition("/")[2]
        shown = np.asarray(Image.open(labels / "review" / "images" / name))
        assert shown.shape == (asked[name].height, asked[name].width, 3)
        points = np.array(task["annotations"][0]["result"][0]["value"]["points"])
        assert points.min() >= 0 and points.max() <= 100


def test_what_was_left_is_the_label_and_what_was_changed_is_counted(labels: Path, tmp_path: Path) -> None:
    write_tasks(labels, 100, seed=0)
    tasks, path = exported(labels), tmp_path / "export.json"
    path.write_text(json.dumps(tasks))
    left = read_review(labels, path)
    assert (left.images, left.unchanged, left.deleted, left.added) == (3, 1.0, 0.0, 0)
    tasks[0]["annotations"][0]["result"] = []  # deleted
    region = tasks[1]["annotations"][0]["result"][0]
    region["value"]["points"] = [[0, 0], [50, 0], [50, 100], [0, 100]]  # the left half of the photo
    tasks[1]["annotations"][0]["result"] = [region]
    more = json.loads(json.dumps(region)) | {"id": "new"}
    more["value"]["polygonlabels"] = ["a thing that was missed"]
    tasks[1]["annotations"][0]["result"].append(more)
    tasks[2] = {key: value for key, value in tasks[2].items() if key != "annotations"}  # not reviewed
    path.write_text(json.dumps(tasks))
    review = read_review(labels, path)
    asked = {one.image: one for one in labels_of(labels, {0, 1, 2})}
    [[ours]] = asked[1].masks.values()
    half = np.zeros_like(ours)
    half[:, : ours.shape[1] // 2] = True
    assert review.images == 2 and review.added == 1 and review.deleted == 0.5
    assert review.ious[1, "box"] == pytest.approx(iou(ours, half)) and review.ious[0, "box"] == 0.0
    assert review.mean_iou == pytest.approx(iou(ours, half) / 2)


def test_the_command_writes_and_reads_and_tells_a_foreign_export(labels: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    assert "3 images" in runner.invoke(app, ["label", "review", str(labels)]).output
    path = tmp_path / "export.json"
    path.write_text(json.dumps(exported(labels)))
    told = runner.invoke(app, ["label", "review", str(labels), "--corrected", str(path), "--json"]).output
    assert json.loads(told)["mean_iou"]["value"] == 1.0
    foreign = exported(labels)[:1]
    foreign[0]["data"]["image"] = "other.png"
    path.write_text(json.dumps(foreign))
    with pytest.raises(ValueError, match="no image of the review"):
        read_review(labels, path)
    report = runner.invoke(app, ["label", "report", str(labels)])
    assert report.exit_code == 0 and (labels / "labels.html").is_file()
