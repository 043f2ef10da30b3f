"""Photos that a model will be judged by are not labelled, and labels are checked for them."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from commands import polytrace
from made_labels import QUIET, config, photos, with_boxes
from PIL import Image

from rl import label as verb
from rl.labels.report import LabelReport
from rl.sources.check import Report
from rl.sources.leaks import LEAK, HeldOut
from rl.sources.prepared import EMBEDDED, GONE, check_prepared, refuse_reader_options
from rl.sources.source import recognised

BOX = [12.0, 12.0, 36.0, 36.0]


def benchmark(folder: Path, photo: Path) -> Path:
    """A data set whose photos of `val` are a copy of one under another name, and one that nobody else has."""
    (folder / "val").mkdir(parents=True)
    (folder / "val" / "copy.png").write_bytes(photo.read_bytes())
    Image.new("RGB", (40, 30), (9, 200, 9)).save(folder / "val" / "own.png")
    boxes = [{"id": k, "image_id": k, "category_id": 1, "bbox": [4, 4, 9, 9], "iscrowd": 0} for k in range(2)]
    for one in boxes:
        one |= {"segmentation": [[4, 4, 13, 4, 13, 13, 4, 13]], "area": 81}
    images = [
        {"id": k, "file_name": name, "width": w, "height": h}
        for k, (name, (w, h)) in enumerate({"copy.png": Image.open(photo).size, "own.png": (40, 30)}.items())
    ]
    held = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "box"}]}
    (folder / "annotations").mkdir()
    (folder / "annotations" / "instances_val.json").write_text(json.dumps(held))
    return folder


def job(tmp_path: Path, **changes: Any) -> Any:
    folder = tmp_path / "photos"
    return with_boxes(folder, tmp_path / "out", {"0.png": BOX, "1.png": BOX}, **changes)


def checked(tmp_path: Path, against: Path) -> Report:
    return check_prepared(tmp_path / "out", (), HeldOut.of([against]))


def test_labels_of_a_photo_of_a_benchmark_are_told(tmp_path: Path) -> None:
    judged = benchmark(tmp_path / "judged", photos(tmp_path / "photos") / "1.png")
    verb.label(job(tmp_path), QUIET)
    report = checked(tmp_path, judged)
    assert report.exit_status == 1 and report.questions == 2 and report.findings.left_out[LEAK].count == 1
    assert "1.png" in report.findings.left_out[LEAK].which[0] and "split val" in report.findings.left_out[LEAK].which[0]
    command = polytrace("data", "check", f"{tmp_path / 'out'}", "--against", f"{judged}", "--json")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    [told] = json.loads(done.stdout)
    assert done.returncode == told["exit_status"] == 1 and told["format"] == "prepared"


def test_a_photo_of_a_benchmark_is_not_labelled_where_the_config_says_so(tmp_path: Path) -> None:
    judged = benchmark(tmp_path / "judged", photos(tmp_path / "photos") / "1.png")
    verb.label(job(tmp_path, against=[str(judged)]), QUIET)
    report = checked(tmp_path, judged)
    assert report.exit_status == 0 and report.questions == 1
    refused = LabelReport(tmp_path / "out").refused_images
    assert refused == {("held_out", "a photo that is held out elsewhere"): 1}
    with pytest.raises(ValueError, match="holds examples of other data or settings"):
        verb.label(job(tmp_path), QUIET)


def test_a_photo_that_has_gone_is_told(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos")
    verb.label(job(tmp_path), QUIET)
    assert check_prepared(tmp_path / "out", ("train",), HeldOut()).exit_status == 0
    (folder / "0.png").unlink()
    report = check_prepared(tmp_path / "out", (), HeldOut())
    assert report.exit_status == 1 and report.findings.left_out[GONE].which == [str(folder / "0.png")]
    with pytest.raises(ValueError, match="has no split 'trian'; did you mean 'train'"):
        check_prepared(tmp_path / "out", ("trian",), HeldOut())


def test_of_images_without_files_only_names_can_tell(tmp_path: Path) -> None:
    judged = benchmark(tmp_path / "judged", photos(tmp_path / "photos") / "1.png")
    verb.label(config(tmp_path / "out", num=8), QUIET)
    report = checked(tmp_path, judged)
    assert report.exit_status == 0 and report.findings.noted[EMBEDDED].count == report.splits["train"].photos > 0
    with pytest.raises(ValueError, match="the images are no files, by which held-out photos are known"):
        verb.label(config(tmp_path / "other", num=8, against=[str(judged)]), QUIET)


def test_options_of_readers_are_refused_and_labels_that_are_not_finished_are_no_data_set(tmp_path: Path) -> None:
    for images, settings, named in (("elsewhere", [], "--images elsewhere"), (None, ["ask=name"], "--set ask=name")):
        with pytest.raises(ValueError, match=f"holds prepared examples.*{named} is for files of a data set"):
            refuse_reader_options(tmp_path, images, settings)
    verb.label(config(tmp_path / "out", num=8), QUIET)
    (tmp_path / "out" / "train" / "split.json").unlink()
    assert (tmp_path / "out" / "progress-00000.json").exists() and recognised(tmp_path / "out") == []
