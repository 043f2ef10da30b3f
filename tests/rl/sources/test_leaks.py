"""Photos that are held out elsewhere: known by COCO's number under either spelling, or by the bytes of their file."""

import json
import shutil
from pathlib import Path

import pytest
from commands import here
from made_field_sets import TRAIN, lvis_v1, photo, ref, refcoco
from made_user_files import Photo as Drawn
from made_user_files import two_photos, write_coco, write_labelme, write_yolo

from envs.readers.base import Findings
from envs.shards.files import read_card
from rl.sources.leaks import LEAK, HeldOut, coco_number, is_held_out, shared_photos
from rl.sources.source import source_of

TRAIN2017 = "train2017/000000000007.jpg"


def kept(path: Path, held: HeldOut, split: str = "train") -> tuple[list[str], list[str]]:
    """Names of the photos of a split that are not held out, and what is told of the others."""
    findings = Findings()
    names = [one.photo.path.name for one in held.without(source_of(path).reader().photos(split, Findings()), findings)]
    assert not findings.lost and findings.left_out.keys() <= {LEAK}
    return names, findings.left_out[LEAK].which if findings.left_out else []


def test_the_number_of_a_photo_is_read_from_every_spelling_of_coco() -> None:
    spellings = [f"COCO_train2014_{7:012d}.jpg", f"COCO_val2014_{7:012d}.jpg", f"{7:012d}.jpg"]
    spellings.append(f"COCO_train2014_{7:012d}_3.jpg")  # as refs of the RefCOCO family name it
    assert {coco_number(Path("anywhere") / name) for name in spellings} == {"000000000007"}
    others = ["7.jpg", f"{7:012d}.png", f"{7:013d}.jpg", f"COCO_{7:012d}.jpg", "cat.jpg", ""]
    assert {coco_number(Path(name)) for name in others} == {""}


def test_every_split_but_those_called_train_is_held_out() -> None:
    splits = ("train", "Train", "TRAIN_2", "train2017", "val", "testA", "test", "default")
    assert [name for name in splits if is_held_out(name)] == ["val", "testA", "test", "default"]


def held_out_7(folder: Path) -> Path:
    """RefCOCO whose test split asks about COCO's photo 7, spelled as in 2014."""
    made = refcoco(folder, [ref(1, 11, 1, ["a cup"]), ref(2, 14, 2, ["tent"], "testA")])
    text = (made / "instances.json").read_text().replace(TRAIN.format(2), TRAIN.format(7))
    (made / "instances.json").write_text(text)
    photo(made / "images" / TRAIN.format(7), (40, 60), quality=30)
    return made


def test_a_photo_is_known_by_its_number_under_the_spelling_of_another_release(tmp_path: Path) -> None:
    against = held_out_7(tmp_path / "refcoco")
    lvis_v1(tmp_path / "lvis")
    other = tmp_path / "lvis" / TRAIN2017
    assert other.read_bytes() != (against / "images" / TRAIN.format(7)).read_bytes()
    names, told = kept(tmp_path / "lvis", HeldOut.of([against]))
    assert names == [] and told == [f"{other} ({against}, split testA, by its number)"]
    assert kept(tmp_path / "lvis", HeldOut()) == (["000000000007.jpg"], [])


def write_val(folder: Path, photos: tuple[Drawn, ...]) -> Path:
    write_coco(folder, photos, split="val2017")
    return folder


def test_a_photo_is_known_by_its_content_under_any_name(tmp_path: Path) -> None:
    a, b = two_photos()
    against = write_val(tmp_path / "val", (a,))
    write_labelme(tmp_path / "mine", (Drawn("renamed.png", 8, 10, a.objects, against / "val2017/a.png"), b))
    names, told = kept(tmp_path / "mine", HeldOut.of([against]))
    assert names == ["b.png"]
    assert told == [f"{tmp_path / 'mine/renamed.png'} ({against}, split val, by its content)"]
    # As large, yet with another last byte: another photo.
    changed = bytearray((tmp_path / "mine/renamed.png").read_bytes())
    changed[-1] ^= 1
    (tmp_path / "mine/renamed.png").write_bytes(changed)
    assert kept(tmp_path / "mine", HeldOut.of([against]))[0] == ["b.png", "renamed.png"]


@pytest.mark.parametrize("embed", [False, True])
def test_prepared_shards_hold_out_what_the_files_do(tmp_path: Path, embed: bool) -> None:
    against = held_out_7(tmp_path / "refcoco")
    write = ["data", "prepare", against, "--out", tmp_path / "shards", "--processes", "1"]
    assert here(*write, *(["--embed"] if embed else [])).status == 0
    lvis_v1(tmp_path / "lvis")
    found = {len(kept(tmp_path / "lvis", HeldOut.of([each]))[1]) for each in (against, tmp_path / "shards")}
    assert found == {1}
    shutil.rmtree(against)
    assert len(kept(tmp_path / "lvis", HeldOut.of([tmp_path / "shards"]))[1]) == 1


def test_train_splits_alone_are_thinned_and_a_leak_is_no_lost_question(tmp_path: Path) -> None:
    a, b = two_photos()
    against = write_val(tmp_path / "val", (a,))
    write_yolo(tmp_path / "mine", (a, b), "train", "train: images/train\nval: images/val\n")
    write_yolo(tmp_path / "mine", (a, b), "val", "train: images/train\nval: images/val\n")
    arguments = ["--against", against, "--processes", "1"]
    told = here("data", "check", tmp_path / "mine", *arguments, "--json")
    [report] = json.loads(told.stdout)
    assert (told.status, report["share_lost"], report["findings"]["left_out"][LEAK]["count"]) == (1, 0.0, 1)
    assert here("data", "prepare", tmp_path / "mine", "--out", tmp_path / "out", *arguments).status == 0
    train, val = (read_card(tmp_path / "out", split) for split in ("train", "val"))
    assert (train.num_examples, val.num_examples, train.num_lost) == (1, 2, 0)


def test_shards_that_were_not_thinned_are_not_taken_for_thinned_ones(tmp_path: Path) -> None:
    a, b = two_photos()
    against = write_val(tmp_path / "val", (a,))
    write_labelme(tmp_path / "mine", (a, b))
    prepare = ["data", "prepare", tmp_path / "mine", "--out", tmp_path / "out", "--processes", "1"]
    assert here(*prepare).status == 0
    told = here(*prepare, "--against", against)
    assert told.status == 2 and "against there is None, here " in told.stderr
    shutil.rmtree(tmp_path / "out")
    assert here(*prepare, "--against", against).status == 0
    assert "here None" in here(*prepare).stderr  # nor are thinned ones for those that are whole
    assert here(*prepare, "--against", against.parent / "." / against.name).status == 0  # the same, spelled otherwise
    write_val(tmp_path / "val", (a, b))
    assert here(*prepare, "--against", against).status == 2  # it holds out more now


def test_what_can_hold_nothing_out_is_refused_by_its_name(tmp_path: Path) -> None:
    write_coco(tmp_path / "train", two_photos())
    with pytest.raises(ValueError, match=r"--against .*train has no held-out photo"):
        HeldOut.of([tmp_path / "train"])
    shutil.rmtree(write_val(tmp_path / "val", two_photos()) / "val2017")
    with pytest.raises((ValueError, FileNotFoundError)):
        HeldOut.of([tmp_path / "val"])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        HeldOut.of([tmp_path / "nowhere"])


def test_photos_shared_by_splits_of_one_set_are_those_of_train_and_each_held_out_split(tmp_path: Path) -> None:
    source = source_of(refcoco(tmp_path / "refcoco"))
    first = [str(tmp_path / "refcoco/images" / TRAIN.format(1))]
    assert shared_photos(source, ("train", "val", "testA")) == {"testA": first}
    assert shared_photos(source, ("val", "testB")) == {} == shared_photos(source, ("train",))
