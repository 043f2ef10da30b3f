"""`polytrace data check`: the format found, questions counted, what cannot be used told by reason, and a status."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Told, here
from made_coco import annotation, rectangle
from made_field_sets import SQUARE, TRAIN, ref, refcoco
from made_field_sets import annotation as of_set
from made_user_files import coco_data, two_photos, write_coco, write_folder, write_json, write_labelme, write_panoptic
from PIL import Image
from rich.console import Console

from envs.readers import coco as coco_reader
from envs.readers import panoptic
from envs.shards.from_photos import SOFT, UNREADABLE
from rl.sources.check import CROSSES, OUTSIDE, SAID_TWICE, TWO_TRUTHS, Report, report_tables

ALONE = ("--processes", "1")


def coco(folder: Path, *more: dict[str, Any]) -> Path:
    """Two photos, three questions, four masks; `more`: annotations beside these."""
    photos = two_photos()
    write_coco(folder, photos)
    data = coco_data(photos)
    data["annotations"] += more
    write_json(folder / "annotations/instances_train2017.json", data)
    return folder


def broken(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:60])
    return path


def check(*arguments: object) -> Told:
    return here("data", "check", *arguments, *ALONE)


def numbers(*arguments: object) -> list[dict[str, Any]]:
    """The reports of --json."""
    found: list[dict[str, Any]] = json.loads(check(*arguments, "--json").stdout)
    return found


def noted(path: Path) -> dict[str, list[str]]:
    """What is worth a look, by reason."""
    [report] = numbers(path)
    assert report["exit_status"] == 0
    return {reason: one["which"] for reason, one in report["findings"]["noted"].items()}


def test_a_clean_data_set_is_named_counted_and_its_status_is_0(tmp_path: Path) -> None:
    told = check(coco(tmp_path))
    assert told.status == 0 and "COCO instances: instances_train2017.json" in told.stdout
    cells = [cell.strip() for cell in next(line for line in told.stdout.splitlines() if "│ train" in line).split("│")]
    assert cells[1:-1] == ["train", "2", "3", "0", "4", "0 (0.0%)"]


def test_a_photo_that_cannot_be_opened_makes_the_status_1_and_2_where_it_is_strict(tmp_path: Path) -> None:
    path = broken(coco(tmp_path) / "train2017/b.png")
    told = check(tmp_path)
    assert told.status == 1 and "1 (33.3%)" in told.stdout and UNREADABLE in " ".join(told.stdout.split())
    assert check(tmp_path, "--strict").status == 2
    # Without a photo opened, nothing is found.
    assert check(tmp_path, "--quick", "--strict").status == 0
    [report] = numbers(tmp_path)
    assert report["findings"]["left_out"][UNREADABLE]["which"][0].startswith(str(path))
    assert report["findings"]["lost"][f"questions about {UNREADABLE}"]["count"] == 1
    assert report["share_lost"] == 1 / 3 and report["exit_status"] == 1


def test_a_data_set_of_which_nothing_can_be_used_makes_the_status_2(tmp_path: Path) -> None:
    coco(tmp_path)
    for name in ("a.png", "b.png"):
        broken(tmp_path / "train2017" / name)
    [report] = numbers(tmp_path)
    assert (report["exit_status"], report["share_lost"]) == (2, 1.0)
    assert check(tmp_path).status == 2


def test_two_data_sets_are_two_reports_and_the_worse_status(tmp_path: Path) -> None:
    write_labelme(tmp_path / "labelme", two_photos())
    broken(coco(tmp_path / "coco") / "train2017/b.png")
    told = check(tmp_path / "labelme", tmp_path / "coco", "--json")
    first, second = json.loads(told.stdout)
    assert (first["format"], second["format"], told.status) == ("labelme", "coco", 1)
    assert (first["exit_status"], first["splits"]["train"]["questions"]) == (0, 3)
    assert set(first) == {
        "path",
        "format",
        "what",
        "splits",
        "share_lost",
        "findings",
        "photos_of_train_that_are_held_out",
        "problem",
        "exit_status",
    }


def test_no_folder_an_unknown_one_and_one_of_several_formats_are_refused_with_what_to_do(tmp_path: Path) -> None:
    told = check(tmp_path / "nowhere")
    assert told.status == 2 and "nowhere: no such file or folder; give the folder of a data set" in told.stderr
    for k in range(10):
        (tmp_path / f"{k}.txt").write_text("x")
    told = check(tmp_path)
    assert told.status == 2 and "no format is known by what is there (0.txt, 1.txt," in told.stderr
    assert "7.txt and 2 more). Formats: coco, cris, cvat," in told.stderr
    coco(tmp_path / "coco")
    write_labelme(tmp_path / "own", two_photos())
    told = check(tmp_path)
    assert "and 4 more), but there is coco (coco), own (labelme); give one of these, or" in told.stderr
    told = check(tmp_path / "coco", "--format", "cocoo")
    assert told.status == 2 and "did you mean 'coco'" in told.stderr
    told = check(tmp_path / "coco", "--split", "val")
    assert told.status == 2 and "has no split 'val'" in told.stderr and "There are: train." in told.stderr
    told = check(tmp_path / "coco", "--set", "phrase=x")
    assert told.status == 2 and "phrase" in told.stderr


def test_where_two_readers_are_equally_sure_neither_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_coco(tmp_path, two_photos())
    write_panoptic(tmp_path, two_photos())
    assert numbers(tmp_path)[0]["format"] == "coco"
    monkeypatch.setattr(panoptic.Reader, "recognise", coco_reader.Reader.recognise)
    told = check(tmp_path)
    assert told.status == 2 and "coco and panoptic all know such files" in told.stderr and "--format" in told.stderr


def test_each_split_is_counted_alone_and_only_those_that_are_asked_for(tmp_path: Path) -> None:
    [report] = numbers(refcoco(tmp_path / "refcoco"))
    assert {name: (one["photos"], one["questions"]) for name, one in report["splits"].items()} == {
        "train": (1, 3),
        "val": (1, 1),
        "testA": (1, 1),
        "testB": (2, 2),
    }
    [report] = numbers(tmp_path / "refcoco", "--split", "testB", "--split", "val")
    assert sorted(report["splits"]) == ["testB", "val"]


def test_photos_of_train_that_a_held_out_split_asks_about_are_listed(tmp_path: Path) -> None:
    [report] = numbers(refcoco(tmp_path / "refcoco"))
    first = [str(tmp_path / "refcoco/images" / TRAIN.format(1))]
    assert report["photos_of_train_that_are_held_out"] == {"testA": first, "testB": first}
    told = " ".join(check(tmp_path / "refcoco").stdout.split())
    assert "Held out and trained on" in told and "photos of train that testA asks" in told
    assert numbers(tmp_path / "refcoco", "--split", "train")[0]["photos_of_train_that_are_held_out"] == {}


def test_rings_that_cross_or_lie_outside_are_worth_a_look(tmp_path: Path) -> None:
    bow_tie = annotation(91, 2, [[0, 0, 8, 4, 8, 0, 0, 4]], 1)
    outside = annotation(92, 2, [rectangle(6, 2, 11.5, 7)], 1)
    just_inside = annotation(93, 2, [rectangle(6, 2, 11, 7)], 1)
    found = noted(coco(tmp_path, bow_tie, outside, just_inside))
    assert found.keys() == {CROSSES, OUTSIDE}
    assert len(found[OUTSIDE]) == 1
    [crossing] = found[CROSSES]
    assert "(Self-intersection[4 2]; 0 px otherwise by winding, 0 px once mended)" in crossing


def test_a_question_asked_twice_is_told_with_whether_its_truth_is_the_same(tmp_path: Path) -> None:
    texts = ["the cup", "The Cup", "left"]
    refs = [ref(1, 11, 1, texts), ref(2, 12, 1, ["left"]), ref(3, 11, 2, ["other photo"])]
    kept = [of_set(11, 1, SQUARE), of_set(12, 1, [[1, 1, 9, 1, 9, 9]])]
    refcoco(tmp_path / "refcoco", refs[:2], annotations=kept)
    assert noted(tmp_path / "refcoco") == {SAID_TWICE: ["1/101 and 1/100"], TWO_TRUTHS: ["2/200 and 1/102"]}


def test_names_in_brackets_are_told_as_they_are() -> None:
    report = Report("here", "coco", "COCO instances: [red].json")
    report.findings.lose("photos", "cup [red] [/bold].png")
    console = Console(file=io.StringIO(), width=120)
    console.print(*report_tables(report))
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "cup [red] [/bold].png" in said and "COCO instances: [red].json" in said


def test_a_data_set_that_cannot_be_read_hides_no_other_and_is_told_in_json_too(tmp_path: Path) -> None:
    first, empty, last = coco(tmp_path / "first"), tmp_path / "empty", coco(tmp_path / "last")
    empty.mkdir()
    told = check(first, empty, last, "--json")
    good, bad, other = json.loads(told.stdout)
    assert told.status == 2 and told.stderr.count("polytrace:") == 1
    assert (good["path"], good["problem"], good["exit_status"]) == (str(first), None, 0)
    assert (other["path"], other["splits"]) == (str(last), good["splits"])
    assert bad.keys() == {"path", "problem", "exit_status"} and bad["exit_status"] == 2
    assert bad["path"] == str(empty) and "no format is known" in bad["problem"]
    told = check(first, empty, last)
    assert told.status == 2 and told.stdout.count("COCO instances") == 2 and "no format is known" in told.stderr


def test_mask_pictures_with_soft_edges_are_counted_once_each(tmp_path: Path) -> None:
    write_folder(tmp_path, two_photos())
    assert noted(tmp_path) == {}
    path = tmp_path / "masks/a_0.png"
    pixels = np.array(Image.open(path))
    pixels[2, 2] = 120
    Image.fromarray(pixels).save(path)
    (tmp_path / "phrases.csv").write_text((tmp_path / "phrases.csv").read_text() + "a.png,a_0.png,the cup,train\n")
    assert noted(tmp_path) == {SOFT: [str(path)]}
