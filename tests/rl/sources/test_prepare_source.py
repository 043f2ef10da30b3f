"""`polytrace data prepare` of the files of a data set, and a run that refuses data of which too much was lost."""

import json
from pathlib import Path

import pytest
from commands import here
from made_field_sets import refcoco
from made_user_files import two_photos, write_coco
from rich.console import Console

from envs.datasets.shards import Env
from envs.plugin import Plugin
from envs.shards.files import read_card
from envs.shards.from_photos import OTHER_SIZE, UNREADABLE
from rl.config.load import load_settings
from rl.config.run import RunConfig
from rl.config.sft import SftConfig
from rl.run.data import RunData
from rl.run.parts import run_parts
from rl.sft import run_sft
from rl.sources.source import source_of

ALONE = ("--processes", "1")


def prepare(source: Path, out: Path, *arguments: object) -> tuple[int, str, str]:
    """Exit status, output in one line, and error."""
    told = here("data", "prepare", source, "--out", out, *ALONE, *arguments)
    return told.status, " ".join(told.stdout.split()), told.stderr


def broken(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


def test_every_split_is_written_under_its_own_name_or_those_that_are_asked_for(tmp_path: Path) -> None:
    status, said, _ = prepare(refcoco(tmp_path / "refcoco"), tmp_path / "out")
    assert status == 0 and said.startswith("refcoco: RefCOCO family: refs(unc).p beside instances.json")
    entry = f"{{name: shards, folder: {tmp_path / 'out'}, names: {{validation: val, test: testA}}}}"
    assert f"in a config: env: {entry}" in said
    lengths = {split: len(Env(split, str(tmp_path / "out"))) for split in ("train", "val", "testA", "testB")}
    assert lengths == {"train": 3, "val": 1, "testA": 1, "testB": 2}
    assert prepare(tmp_path / "refcoco", tmp_path / "few", "--split", "val", "--split", "testA")[0] == 0
    assert sorted(path.name for path in (tmp_path / "few").iterdir()) == ["testA", "val"]
    status, _, error = prepare(tmp_path / "refcoco", tmp_path / "none", "--split", "tset")
    assert status == 2 and "has no split 'tset'" in error and "There are: train, val, testA, testB." in error


def test_splits_of_a_data_set_are_asked_for_by_the_names_of_a_config(tmp_path: Path) -> None:
    prepare(refcoco(tmp_path / "refcoco"), tmp_path / "out")
    names = {"validation": "val", "test": "testB"}
    env = Env("test", str(tmp_path / "out"), names=names)
    assert len(env) == 2 and {env[k].split for k in range(2)} == {"test"}
    assert {one.split for one in env.scene(1)} == {"test"} and env[0].id == "refcoco/2/200"
    assert sorted(env.splits()) == ["test", "testA", "train", "validation"]
    with pytest.raises(ValueError, match=r"the split 'validation' is not there"):
        Env("validation", str(tmp_path / "out"))


def test_ids_begin_with_the_name_of_the_folder_or_the_one_given_and_settings_reach_the_reader(tmp_path: Path) -> None:
    prepare(refcoco(tmp_path / "refcoco"), tmp_path / "one", "--split", "train")
    prepare(tmp_path / "refcoco", tmp_path / "two", "text=raw", "--split", "train", "--name", "mine")
    first, second = (Env("train", str(tmp_path / folder)) for folder in ("one", "two"))
    assert (first[0].id, first[0].prompt.text) == ("refcoco/1/100", "left cup")
    assert (second[0].id, second[0].prompt.text) == ("mine/1/100", "Left Cup")
    provenance = read_card(tmp_path / "two", "train").provenance
    assert (provenance["reader"], provenance["settings"]["text"], provenance["data_set"]) == ("refcoco", "raw", "mine")
    status, _, error = prepare(tmp_path / "refcoco", tmp_path / "one", "text=raw", "--split", "train")
    assert status == 2 and "settings there is" in error and "give another folder by --out" in error


def test_the_same_again_writes_nothing(tmp_path: Path) -> None:
    write_coco(tmp_path / "coco", two_photos())
    assert prepare(tmp_path / "coco", tmp_path / "out")[0] == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/train").iterdir()}
    assert prepare(tmp_path / "coco", tmp_path / "out")[0] == 0
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out/train").iterdir()}


def test_annotations_that_have_changed_are_not_taken_for_what_is_prepared(tmp_path: Path) -> None:
    source = tmp_path / "mine"
    write_coco(source, two_photos())
    assert prepare(source, tmp_path / "out")[0] == 0
    (file,) = source.rglob("*.json")
    data = json.loads(file.read_text())
    data["annotations"][0]["segmentation"] = [[1, 1, 9, 1, 9, 9, 1, 9]]
    file.write_text(json.dumps(data))
    status, _, told = prepare(source, tmp_path / "out")
    assert (status, "annotations_sha256 there is" in told) == (2, True)


def test_a_data_set_beside_another_is_told(tmp_path: Path) -> None:
    source = tmp_path / "mine"
    write_coco(source, two_photos())
    (source / "phrases.csv").write_text("image,mask,phrase\na.jpg,,nothing\n")
    with pytest.raises(ValueError, match=r"coco and folder all know such files .*; say which by --format"):
        source_of(source)


def test_a_reader_that_is_less_sure_of_files_there_is_named(tmp_path: Path) -> None:
    found = source_of(refcoco(tmp_path / "refcoco"))
    assert (found.format, found.others) == ("refcoco", ("coco",))


def test_photos_may_be_shown_smaller_and_padded_to_squares(tmp_path: Path) -> None:
    write_coco(tmp_path / "coco", two_photos())
    assert prepare(tmp_path / "coco", tmp_path / "out", "--image-side", "5", "--square")[0] == 0
    env = Env("train", str(tmp_path / "out"))
    assert env[0].truth.masks.shape == (2, 5, 5) and env.image(env[0].image).shape == (5, 5, 3)
    status, _, error = prepare(tmp_path / "coco", tmp_path / "other", "--square")
    assert status == 2 and "--square without --image-side would leave images of different sizes" in error


def test_options_of_files_are_refused_with_a_config_and_a_file_as_the_folder(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("run: x\nenv: {name: cutout_scenes}\n")
    status, _, error = prepare(tmp_path / "run.yaml", tmp_path / "out", "--name", "mine")
    assert status == 2 and "run.yaml is a config, whose env says how images are shown" in error
    write_coco(tmp_path / "coco", two_photos())
    status, _, error = prepare(tmp_path / "coco", tmp_path / "run.yaml")
    assert status == 2 and "run.yaml, which is a file; give a folder" in error
    # A file system on which nobody can write.
    status, _, error = prepare(tmp_path / "coco", Path("/proc/mine"))
    assert status == 2 and error.count("\n") == 1 and "--out is /proc/mine, where nothing can be written" in error


def test_what_is_lost_is_told_and_a_split_without_a_usable_example_is_refused(tmp_path: Path) -> None:
    write_coco(tmp_path / "set", two_photos())
    broken(tmp_path / "set/train2017/b.png")
    status, said, _ = prepare(tmp_path / "set", tmp_path / "out")
    assert status == 0 and f"train: lost questions about {UNREADABLE} (1): " in said and "1 (33.3%)" in said
    file = tmp_path / "set/annotations/instances_train2017.json"
    file.write_text(file.read_text().replace('"height": 8', '"height": 9'))
    status, _, error = prepare(tmp_path / "set", tmp_path / "none")
    assert status == 2 and "split train has no example that can be used (" in error
    assert f"questions about {OTHER_SIZE} (2): " in error
    file.write_text(file.read_text().replace('"height": 9', '"height": 8'))
    assert prepare(tmp_path / "set", tmp_path / "none")[0] == 0  # once the file is mended


def test_the_format_may_be_told(tmp_path: Path) -> None:
    write_coco(tmp_path, two_photos())
    assert source_of(tmp_path, "coco").what == "as told" and source_of(tmp_path).format == "coco"
    assert source_of(tmp_path, "coco", str(tmp_path / "train2017")).settings["images"] == str(tmp_path / "train2017")
    with pytest.raises(ValueError, match="Formats: coco,"):
        source_of(tmp_path / "train2017")


@pytest.fixture
def thinned(tmp_path: Path) -> Path:
    """Shards of two examples of three."""
    write_coco(tmp_path / "coco", two_photos())
    broken(tmp_path / "coco/train2017/b.png")
    assert prepare(tmp_path / "coco", tmp_path / "shards")[0] == 0
    return tmp_path / "shards"


SAYS = r"1 of the 3 questions of split \w+ \(33\.3%\) could not be used .*max_left_out to 0\.334 or more"


def asked(folder: Path) -> dict[str, object]:
    return {"name": "shards", "folder": str(folder), "names": dict.fromkeys(("validation", "test"), "train")}


def test_a_run_refuses_data_of_which_more_was_lost_than_it_allows(thinned: Path) -> None:
    env = asked(thinned)
    plugin = Plugin("envs.datasets", "Env", "shards", {key: value for key, value in env.items() if key != "name"})
    with pytest.raises(ValueError, match=SAYS):
        RunData.of(plugin, ["train"], 0.333)
    assert RunData.of(plugin, ["train"], 0.334).fingerprints.keys() == {"train"}  # what the message says is enough
    overrides = [f"env={json.dumps(env)}", f"run={thinned / 'run'}"]
    with pytest.raises(ValueError, match=SAYS):
        run_parts(load_settings(RunConfig, Path("tiny"), overrides))
    data = run_parts(load_settings(RunConfig, Path("tiny"), [*overrides, "max_left_out=0.5"])).data
    assert [note for note in data.notes if UNREADABLE in note] == [f"questions about {UNREADABLE}", UNREADABLE]


def test_a_supervised_training_refuses_it_too(thinned: Path) -> None:
    overrides = [f"env={json.dumps(asked(thinned))}", f"run={thinned / 'run'}"]
    with pytest.raises(ValueError, match=SAYS):
        run_sft(load_settings(SftConfig, Path("sft_tiny"), overrides), Console(quiet=True))
    assert not (thinned / "run").exists()
