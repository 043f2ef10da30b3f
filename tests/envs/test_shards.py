"""Prepared shards: the examples of the original env, opened without it, and refused where they are not whole."""

import json
import pickle
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from made_coco import annotation, entry, rectangle, small_set
from PIL import Image
from rich.console import Console

from envs.datasets import coco, cutout_scenes, shards
from envs.geometry.rle import rle_from_mask
from envs.plugin import Plugin
from rl.data import DataConfig, prepare
from rollout.example_shards import SplitWriter

QUIET = Console(quiet=True)


def config_of(name, **settings):
    return DataConfig({"name": name, **settings}, {}, {}, ("train",), None)


def crowded(folder, **settings):
    """Settings of a coco env of two photos, with a crowd, several instances, and a phrase that nothing fits."""
    crowd = np.zeros((8, 10), bool)
    crowd[2:8, 0:5] = True
    annotations = [
        annotation(11, 1, [rectangle(1, 1, 4, 4)]),
        annotation(12, 2, [rectangle(0, 0, 5, 2)], 2),
        annotation(13, 1, [rectangle(6, 4, 9, 8)]),
        annotation(14, 1, {"size": [8, 10], "counts": rle_from_mask(crowd)}, iscrowd=1),
    ]
    phrases = [entry(), entry(2, (12,), ["a dog"]), entry(1, (11, 13), ["both"]), entry(2, (), ["a whale", "a harp"])]
    return small_set(folder, annotations, phrases) | settings


def assert_same(env, prepared):
    assert (len(env), env.fingerprint, env.notes) == (len(prepared), prepared.fingerprint, prepared.notes)
    assert env.phrase_words() == prepared.phrase_words()
    for index in range(len(env)):
        pairs = [(env[index], prepared[index]), *zip(env.scene(index), prepared.scene(index), strict=True)]
        for one, other in pairs:
            assert (one.id, one.prompt, one.image, one.split) == (other.id, other.prompt, other.image, other.split)
            assert (one.source, one.licence) == (other.source, other.licence)
            np.testing.assert_array_equal(one.truth.masks, other.truth.masks)
            assert (one.truth.ignore is None) == (other.truth.ignore is None)
            if one.truth.ignore is not None:
                np.testing.assert_array_equal(one.truth.ignore, other.truth.ignore)
        np.testing.assert_array_equal(env.image(env[index].image), prepared.image(prepared[index].image))


@pytest.mark.parametrize("embed", [False, True])
@pytest.mark.parametrize("view", [{}, {"image_side": 6, "square": True}])
def test_photos_come_back_as_the_env_gave_them(tmp_path, view, embed):
    settings = crowded(tmp_path, **view)
    prepare(config_of("coco", **settings), ["train"], tmp_path / "shards", embed, QUIET)
    prepared = shards.Env("train", str(tmp_path / "shards"))
    assert_same(coco.Env("train", **settings), prepared)
    assert prepared[0].truth.ignore is not None and len(prepared.scene(1)) == 3
    if embed:
        shutil.rmtree(tmp_path / "images")
        assert prepared.image(prepared[0].image).shape[2] == 3
        assert {row["image_file"] for row in rows_of(tmp_path / "shards")} == {None}


def rows_of(folder, split="train"):
    return [row for path in sorted((folder / split).glob("examples-*")) for row in pq.read_table(path).to_pylist()]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Drawn scenes, some of which are asked for what is absent, prepared for two splits."""
    folder = tmp_path_factory.mktemp("scenes")
    config = config_of("cutout_scenes", num_scenes=60, absent_share=0.3)
    prepare(config, ["train", "held_out_names"], folder, False, QUIET)
    return folder


@pytest.mark.parametrize("split", ["train", "held_out_names"])
def test_drawn_scenes_come_back_with_what_only_a_scene_asks_and_only_an_index_asks(scenes, split):
    env, prepared = cutout_scenes.Env(split, num_scenes=60, absent_share=0.3), shards.Env(split, str(scenes))
    assert_same(env, prepared)
    in_scene = {example.id for index in range(60) for example in env.scene(index)}
    assert 0 < sum(env[index].id not in in_scene for index in range(60)) < 60
    assert prepared.splits() == ("held_out_names", "train")
    with pytest.raises(IndexError):
        prepared[60]


def test_shards_travel_as_their_settings(scenes):
    prepared = shards.Env("train", str(scenes))
    prepared.image(prepared[0].image)
    parcel = pickle.dumps(prepared)
    assert len(parcel) < 300
    assert pickle.loads(parcel)[7].id == prepared[7].id
    assert (
        Plugin("envs.datasets", "Env", "shards", {"folder": str(scenes)}).build(split="train")[7].id == prepared[7].id
    )


def test_rows_are_read_by_anybody(scenes):
    (path,) = (scenes / "train").glob("examples-*")
    file = pq.ParquetFile(path)
    notes = file.schema_arrow.metadata
    assert notes[b"polytrace.schema_version"] == b"2"
    assert json.loads(notes[b"polytrace.provenance"])["env"]["num_scenes"] == 60
    row = file.read_row_group(0).to_pylist()[0]
    assert row["prompt"][0]["kind"] == "text" and row["asked"] == "mask" and row["image_png"][:4] == b"\x89PNG"


class Stopped(Exception):
    pass


class StopsAt:
    """An Env that ends like a killed process at an index."""

    def __init__(self, env, index):
        self._env, self._index = env, index
        self.fingerprint, self.notes = env.fingerprint, env.notes

    def phrase_words(self):
        return self._env.phrase_words()

    def __getitem__(self, index):
        if index == self._index:
            raise Stopped
        return self._env[index]

    def scene(self, index):
        return self._env.scene(index)

    def image(self, ref):
        return self._env.image(ref)


def test_a_preparation_that_was_stopped_goes_on_and_writes_the_same_files(tmp_path, monkeypatch):
    monkeypatch.setattr("rollout.shard_writer.SHARD_ROWS", 20)
    env = cutout_scenes.Env("train", num_scenes=40, absent_share=0.3)

    def write(folder, env, first=None):
        writer = SplitWriter(folder, env, {"env": "scenes"}, False)
        assert first is None or writer.next_index == first
        for index in range(writer.next_index, 40):
            writer.add(index)
        return writer.finish()

    whole = write(tmp_path / "whole" / "train", env)
    assert len(whole.shards) > 3
    with pytest.raises(Stopped):
        write(tmp_path / "stopped" / "train", StopsAt(env, 25))
    with pytest.raises(ValueError, match="not finished"):
        shards.Env("train", str(tmp_path / "stopped"))
    # Killed between the two files of a shard: the half of it is written again.
    parts = sorted((tmp_path / "stopped/train").glob("examples-*"))
    parts[-1].unlink()
    assert write(tmp_path / "stopped" / "train", env) == whole
    names = sorted(path.name for path in (tmp_path / "whole/train").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "stopped/train").iterdir())
    for name in names:
        assert (tmp_path / "whole/train" / name).read_bytes() == (tmp_path / "stopped/train" / name).read_bytes(), name
    assert_same(env, shards.Env("train", str(tmp_path / "stopped")))


def test_a_folder_of_other_data_is_refused_and_the_same_again_is_left_alone(tmp_path):
    settings = crowded(tmp_path)
    out = tmp_path / "s"

    def write(**changed):
        prepare(config_of("coco", **(settings | changed)), ["train"], out, False, QUIET)

    write()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "s/train").iterdir()}
    write()
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "s/train").iterdir()}
    with pytest.raises(ValueError, match="image_side"):
        write(image_side=5)
    data = json.loads((tmp_path / "instances.json").read_text())
    data["annotations"][0]["segmentation"] = [rectangle(1, 1, 5, 4)]
    (tmp_path / "instances.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match="fingerprint"):
        write()


def test_what_is_not_whole_is_refused_by_its_name(tmp_path, scenes):
    def copied(name):
        return shutil.copytree(scenes, tmp_path / name)

    with pytest.raises(FileNotFoundError, match="nowhere"):
        shards.Env("train", str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="did you mean 'train'"):
        shards.Env("trian", str(scenes))
    gone = copied("gone") / "train/examples-00000.parquet"
    gone.unlink()
    with pytest.raises(FileNotFoundError, match=r"examples-00000\.parquet is missing"):
        shards.Env("train", str(tmp_path / "gone"))
    torn = copied("torn") / "train/examples-00000.parquet"
    torn.write_bytes(torn.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"examples-00000\.parquet.*torn"):
        shards.Env("train", str(tmp_path / "torn"))
    altered = copied("altered") / "train/examples-00000.parquet"
    content = bytearray(altered.read_bytes())
    content[200:260] = bytes(60)
    altered.write_bytes(content)
    with pytest.raises(ValueError, match=r"examples-00000\.parquet is torn"):
        [shards.Env("train", str(tmp_path / "altered"))[index] for index in range(60)]
    card = copied("newer") / "train/split.json"
    card.write_text(card.read_text().replace('"schema_version": 2', '"schema_version": 7'))
    with pytest.raises(ValueError, match=r"version 7.*reads 2"):
        shards.Env("train", str(tmp_path / "newer"))


def test_photos_that_changed_or_moved_since_are_told(tmp_path):
    prepare(config_of("coco", **crowded(tmp_path)), ["train"], tmp_path / "shards", False, QUIET)
    prepared = shards.Env("train", str(tmp_path / "shards"))
    first, other = prepared[0].image, prepared[1].image
    (tmp_path / "images").rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match=r"env\.images"):
        prepared.image(first)
    moved = shards.Env("train", str(tmp_path / "shards"), images=str(tmp_path / "moved"))
    assert moved.image(first).shape == (8, 10, 3)
    Image.new("RGB", (10, 8)).save(other.key.replace("images", "moved"))
    with pytest.raises(ValueError, match=other.sha256[:12]):
        moved.image(other)
    with pytest.raises(FileNotFoundError, match="elsewhere"):
        shards.Env("train", str(tmp_path / "shards"), images=str(tmp_path / "elsewhere"))
    unknown = type(first)("never seen", first.sha256, 8, 10)
    with pytest.raises(ValueError, match="never seen"):
        moved.image(unknown)
