"""`polytrace data candidates`: pools by SAM, of archives and of a policy's answers, and data prepared with them."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from commands import Told, here
from in_process import LocalPool
from made_coco import annotation, small_set
from made_run import group_of, make_run, scored
from made_sam import tiny_sam
from omegaconf import OmegaConf
from PIL import ExifTags, Image
from rich.console import Console

from envs.datasets.coco import Env as CocoEnv
from envs.datasets.shards import Env
from envs.geometry.contours import mask_from_rings, rings_from_mask
from envs.geometry.pools import PoolRule, oracle, pairwise_iou
from envs.geometry.rle import mask_from_rle
from envs.images import read_image
from envs.mask_files import masks_from_file
from envs.shown import ShownFiles
from policies.labellers.automatic_masks import AutomaticMasks
from rl.benchmarks.models import benchmark_model
from rl.run import workers
from rl.run.parts import run_parts
from rl.sources import candidates
from rl.sources.candidates import Answering, Drawing, draw
from rl.sources.pictures import EnvImages, EnvSplits
from rl.sources.pool_file import PoolFile
from rollout.archive.archive import RolloutArchive
from rollout.archive.schema import answer_from_row

LOOSE = ("--min-quality", -1e6, "--min-stability", 0.3, "--box-iou", 1, "--points", 4, "--min-share", 0)


@pytest.fixture(scope="module")
def sam(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sam(tmp_path_factory.mktemp("sam"))


def photos(folder: Path, number: int = 3) -> Path:
    folder.mkdir()
    for k in range(number):
        pixels = np.random.default_rng(k).integers(0, 256, (40 + k, 60, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.png")
    return folder


def by_sam(source: Path, sam: Path, out: Path, *more: object) -> Told:
    return here("data", "candidates", source, "--sam", sam, "--out", out, *LOOSE, *more)


def masks_of(pools: Path) -> dict[str, np.ndarray]:
    """[N, H, W] masks by image, read by the plainest means."""
    held = json.loads(pools.read_text())
    found: dict[str, list[np.ndarray]] = {one["file_name"]: [] for one in held["images"]}
    names = {one["id"]: one["file_name"] for one in held["images"]}
    for one in held["annotations"]:
        mask = mask_from_rle(one["segmentation"]["counts"], *one["segmentation"]["size"])
        x, y, w, h = one["bbox"]
        assert mask.sum() == one["area"] == mask[y : y + h, x : x + w].sum()
        found[names[one["image_id"]]].append(mask)
    return {name: np.array(masks) for name, masks in found.items()}


def test_a_folder_of_images_has_pools_without_copies_and_bad_images_are_named(sam: Path, tmp_path: Path) -> None:
    folder, out = photos(tmp_path / "photos"), tmp_path / "pools.json"
    (folder / "bad.jpg").write_text("no image")
    done = by_sam(folder, sam, out, "--json")
    assert done.status == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["images"], told["bad"], told["oracle"]) == (3, 1, None) and "bad.jpg" in told["bad_images"]
    found = masks_of(out)
    assert sorted(found) == ["0.png", "1.png", "2.png"] and told["masks"] == sum(map(len, found.values())) > 6
    for masks in found.values():
        assert (pairwise_iou(masks) - np.eye(len(masks)) < 0.9).all() and masks.any(axis=(1, 2)).all()
    assert told["copies"] > 0
    # What `predict --candidates` reads is the pool of that image.
    assert np.array_equal(masks_from_file(out, folder / "1.png", 41, 60), found["1.png"])
    with pytest.raises(ValueError, match=r"has a size of .*, and the image"):
        masks_from_file(out, folder / "1.png", 40, 60)
    # The limit keeps the surest, and says how many it left out.
    few = json.loads(by_sam(folder, sam, tmp_path / "few.json", "--json", "--most", 2).stdout)
    assert few["masks"] == 6 and few["over_limit"] == told["masks"] - 6
    for name, masks in masks_of(tmp_path / "few.json").items():
        assert np.array_equal(masks, found[name][:2])


def test_what_was_stopped_goes_on_where_it_was_and_other_settings_are_refused(
    sam: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, whole, stopped = photos(tmp_path / "photos"), tmp_path / "whole.json", tmp_path / "stopped.json"
    assert by_sam(folder, sam, whole).status == 0
    seen: list[int] = []

    def until_the_third(masks: AutomaticMasks, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        seen.append(len(image))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return found(masks, image)

    found = AutomaticMasks.of
    with monkeypatch.context() as patch:
        patch.setattr(AutomaticMasks, "of", until_the_third)
        told = by_sam(folder, sam, stopped)
    assert told.status == 130 and "stopped; to go on: polytrace data candidates" in told.stdout
    begun = stopped.with_name(".stopped.json.begun")
    with begun.open("a") as file:  # as a kill in the middle of a line leaves it
        file.write('{"file_name": "2.png", "hei')
    assert not stopped.exists()
    told = by_sam(folder, sam, stopped)
    assert told.status == 0 and "goes on: 2 images are done" in told.stdout
    assert json.loads(stopped.read_text()) == json.loads(whole.read_text()) and not begun.exists()
    # Whole, it is left as it is; made otherwise, it is refused by what differs.
    before = whole.read_bytes()
    assert by_sam(folder, sam, whole).status == 0 and whole.read_bytes() == before
    other = by_sam(folder, sam, whole, "--same-iou", 0.5)
    assert other.status == 2 and "same_iou there is 0.9, here 0.5; give another --out, or delete" in other.stderr
    (tmp_path / "mine.json").write_text("{}")
    assert "was not made by this command" in by_sam(folder, sam, tmp_path / "mine.json").stderr


def test_sources_that_do_not_fit_are_refused_in_a_line(sam: Path, tmp_path: Path) -> None:
    folder, out = photos(tmp_path / "photos", 1), tmp_path / "pools.json"
    said = {
        "which is no folder; give the folder of a SAM": (folder, "--sam", tmp_path / "none"),
        "two sources of masks": (folder, "--sam", sam, "--policy", "tiny"),
        "holds no archive of answers, so nothing says where masks come from; give --sam": (folder,),
        "prepare it first: polytrace data prepare": (folder, "--policy", "tiny"),
        "a folder of images, which has no splits": (folder, "--sam", sam, "--split", "val"),
        "--answers is 0": (folder, "--policy", "tiny", "--answers", 0),
        "a pool takes masks of IoU 2.0 for one": (folder, "--sam", sam, "--same-iou", 2),
    }
    for line, given in said.items():
        done = here("data", "candidates", *given, "--out", out)
        assert done.status == 2 and line in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert "does not end in .json" in here("data", "candidates", folder, "--sam", sam, "--out", folder).stderr
    assert not list(tmp_path.glob("*pools*"))


def coco(folder: Path) -> Path:
    """COCO's form: photo 1 with two cups and a dog, photo 2 with a cup."""
    (folder / "set").mkdir()
    boxes = [(1, 1, 5, 5), (6, 1, 9, 4)]
    rings = [[x0, y0, x1, y0, x1, y1, x0, y1] for x0, y0, x1, y1 in boxes]
    small_set(
        folder / "set", [annotation(11, 1, [rings[0]]), annotation(12, 1, [rings[1]], 2), annotation(13, 2, [rings[1]])]
    )
    return folder / "set"


def test_a_data_set_in_coco_s_form_tells_the_oracle_and_is_prepared_with_its_pools(sam: Path, tmp_path: Path) -> None:
    source, out = coco(tmp_path), tmp_path / "pools.json"
    told = json.loads(by_sam(source, sam, out, "--json").stdout)
    pools = masks_of(out)
    assert sorted(pools) == ["images/1.png", "images/2.png"] and told["questions"] == 3
    done = here("data", "prepare", source, "--pools", out, "--out", tmp_path / "shards", "--processes", 1)
    assert done.status == 0, done.stderr
    env = Env("train", str(tmp_path / "shards"))
    examples = [env[k] for k in range(len(env))]
    assert len(examples) == 3
    for one in examples:
        assert np.array_equal(one.candidates, pools["/".join(Path(one.image.key).parts[-2:])])
    best = [oracle(one.candidates, one.truth.union) for one in examples]
    assert told["oracle"] == pytest.approx(np.mean(best)) and 0 < np.mean(best) < 1


def changed(pools: Path, change: Any) -> Path:
    held = json.loads(pools.read_text())
    change(held)
    pools.write_text(json.dumps(held))
    return pools


def test_photos_without_a_pool_or_with_another_s_are_left_out_and_told(sam: Path, tmp_path: Path) -> None:
    source = coco(tmp_path)
    assert by_sam(source, sam, tmp_path / "pools.json").status == 0
    text = (tmp_path / "pools.json").read_text()

    def prepared(name: str, change: Any) -> Told:
        path = tmp_path / f"{name}.json"
        path.write_text(text)
        out = tmp_path / name
        return here("data", "prepare", source, "--pools", changed(path, change), "--out", out, "--processes", 1)

    def no_second(held: dict[str, Any]) -> None:
        held["images"] = held["images"][:1]

    def empty(held: dict[str, Any]) -> None:
        held["annotations"] = [one for one in held["annotations"] if one["image_id"] == 1]

    def other_size(held: dict[str, Any]) -> None:
        held["images"][1]["height"] = 9

    def other_file(held: dict[str, Any]) -> None:
        held["images"][1]["file_bytes"] += 1

    for reason, change in {
        "photos that the pools do not have": no_second,
        "photos without a candidate": empty,
        "photos without a candidate ": empty,
        "photos that are another file than their candidates were made for": other_file,
    }.items():
        done = prepared(change.__name__ + str(len(reason)), change)
        assert done.status == 0 and f"questions about {reason.strip()} (1)" in done.stdout, done.stdout
    # Run lengths of another height are none of that photo, so that it is left without a candidate.
    done = prepared("other_size", other_size)
    assert done.status == 0 and "questions about photos of another size than their candidates (1)" in done.stdout

    def ambiguous(held: dict[str, Any]) -> None:
        held["images"][1]["file_name"] = "2.png"
        held["images"].append(held["images"][1] | {"id": 99, "file_name": "./2.png"})

    done = prepared("ambiguous", ambiguous)
    assert done.status == 0 and "photos whose name several images of the pools have" in done.stdout, done.stdout
    assert "has 2.png and ./2.png" in " ".join(done.stdout.split())

    def none(held: dict[str, Any]) -> None:
        held["images"] = []

    done = prepared("none", none)
    assert done.status == 2 and "has no example that can be used" in done.stderr and "pools do not have" in done.stderr


def turned(path: Path, height: int, width: int) -> Path:
    """A photo stored with height x width pixels, which its EXIF turns by a quarter."""
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(path, exif=exif)
    return path


def test_candidates_of_a_photo_that_exif_turns_lie_on_it_as_it_is_turned_or_are_refused_in_a_line(
    sam: Path, tmp_path: Path
) -> None:
    folder, viewed, stored = tmp_path / "photos", tmp_path / "viewed.json", tmp_path / "stored.json"
    flat, square = turned(folder / "flat.png", 40, 60), turned(folder / "square.png", 48, 48)
    assert by_sam(folder, sam, viewed).status == 0
    found = masks_of(viewed)
    assert found["flat.png"].shape[1:] == (60, 40)
    for photo in (flat, square):
        picture = read_image(photo)
        candidates = ShownFiles(viewed).read(photo, picture.height, picture.width).candidates
        assert np.array_equal(candidates, found[photo.name]) and len(candidates)
    # Outlines of a data set, and so its pools, may lie on photos as they are stored.
    sizes = {"flat.png": (40, 60), "square.png": (48, 48)}
    images = [
        {"id": k, "file_name": name, "height": h, "width": w} for k, (name, (h, w)) in enumerate(sizes.items(), 1)
    ]
    outlines = [annotation(k, k, [[2, 2, 30, 2, 30, 30, 2, 30]]) for k in (1, 2)]
    held = {"images": images, "annotations": outlines, "categories": [{"id": 1, "name": "cup"}]}
    source = tmp_path / "instances.json"
    source.write_text(json.dumps(held))
    beside = ("--images", folder)
    done = by_sam(source, sam, stored, *beside)
    assert done.status == 0, done.stderr
    assert {name: masks.shape[1:] for name, masks in masks_of(stored).items()} == {
        f"photos/{name}": size for name, size in sizes.items()
    }
    for photo in (flat, square):
        with pytest.raises(
            ValueError, match=r"\.png lie on the photo as it is stored, and here it is turned upright as"
        ):
            ShownFiles(stored).read(photo, *read_image(photo).size[::-1])

    def prepared(pools: Path, out: str) -> Told:
        given = (source, *beside, "--pools", pools, "--out", tmp_path / out, "--processes", 1)
        return here("data", "prepare", *given)

    done = prepared(stored, "right")
    assert done.status == 0, done.stderr
    env = Env("train", str(tmp_path / "right"))
    of_photo = {Path(env[k].image.key).name: env[k].candidates for k in range(2)}
    for name, masks in masks_of(stored).items():
        assert np.array_equal(of_photo[Path(name).name], masks)
    done = prepared(viewed, "wrong")
    assert done.status == 2 and "photos of another size than their candidates (1)" in done.stderr
    assert "EXIF turns, and their candidates not alike (1)" in done.stderr and done.stderr.count("\n") == 1


def test_a_photo_that_cannot_be_opened_is_left_out_of_an_env_with_pools_and_told(sam: Path, tmp_path: Path) -> None:
    source, shards, pools = coco(tmp_path), tmp_path / "shards", tmp_path / "pools.json"
    assert here("data", "prepare", source, "--out", shards, "--processes", 1).status == 0
    assert by_sam(shards, sam, pools).status == 0

    def pooled(out: str) -> Told:
        env = f"env={{name: shards, folder: {shards}}}"
        return here("data", "prepare", "tiny", env, "--pools", pools, "--out", tmp_path / out, "--split", "train")

    (source / "images/2.png").write_bytes(b"no photo")
    done = pooled("one")
    assert done.status == 0, done.stderr
    kept = Env("train", str(tmp_path / "one"))
    assert len(Env("train", str(shards))) == 3 and len(kept) == 2 and kept.num_lost == 1
    assert all(kept[k].candidates is not None for k in range(2))
    assert "train: left out 1 photos that cannot be opened" in done.stdout and "2.png is cut off" in done.stdout
    (source / "images/1.png").write_bytes(b"no photo")
    done = pooled("none")
    assert done.status == 2 and done.stderr.count("\n") == 1 and "photos that cannot be opened" in done.stderr


def test_the_answers_of_an_archive_are_pools_of_what_most_agree_on(tmp_path: Path) -> None:
    run, out = make_run(tmp_path / "run"), tmp_path / "pools.json"
    done = here("data", "candidates", run, "--out", out, "--json", "--same-iou", 0.8)
    assert done.status == 0, done.stderr
    told, pools = json.loads(done.stdout), masks_of(out)
    archive = RolloutArchive(run / "archive")
    key_of = {row["example_id"]: row["image_key"] for batch in archive.examples() for row in batch.to_pylist()}
    drawn: dict[str, list[np.ndarray]] = {}
    for batch in archive.rollouts():
        for row in batch.to_pylist():
            for instance in answer_from_row(row).instances:
                mask = mask_from_rings(instance.rings_px, 32, 32)
                drawn.setdefault(key_of[row["example_id"]], []).append(mask)
    assert set(drawn) <= set(pools) and told["masks"] == sum(map(len, pools.values())) > 12
    for key, masks in drawn.items():
        kept = {mask.tobytes() for mask in pools[key]}
        assert kept <= {mask.tobytes() for mask in masks}
        # Whatever was drawn and has pixels enough is a kept mask, or nearly one.
        large = [mask for mask in masks if mask.sum() >= 1]
        near = pairwise_iou(np.concatenate([pools[key], large]))[len(pools[key]) :, : len(pools[key])]
        assert (near.max(axis=1) >= 0.8).all()
    # Prepared beside the questions of the run's own env: those of images that were asked.
    shards = tmp_path / "shards"
    done = here("data", "prepare", run, "--split", "train", "--pools", out, "--out", shards)
    assert done.status == 0, done.stderr
    env = Env("train", str(shards))
    examples = [env[k] for k in range(len(env))]
    assert {one.image.key for one in examples} == {key for key in pools if len(pools[key])}
    assert all(np.array_equal(one.candidates, pools[one.image.key]) for one in examples)
    best = [oracle(one.candidates, one.truth.union) for one in examples if one.truth.union.any()]
    assert told["oracle"] > 0.8 and np.mean(best) > 0.8


def test_masks_of_an_archive_are_in_the_photo_s_own_pixels_however_it_was_shown(tmp_path: Path) -> None:
    settings = small_set(tmp_path) | {"image_side": 40, "square": True, "train_share": 1.0}
    env = CocoEnv("train", **settings)
    run = tmp_path / "run"
    groups = [
        group_of("run", 0, k, env[k], scored(env[k], [rings_from_mask(env[k].truth.union)])) for k in range(len(env))
    ]
    RolloutArchive(run / "archive").append(0, groups)
    OmegaConf.save(OmegaConf.create({"run": str(run), "env": {"name": "coco", **settings}}), run / "config.yaml")
    done = here("data", "candidates", run, "--out", tmp_path / "pools.json", "--json")
    assert done.status == 0, done.stderr
    own = CocoEnv("train", **(settings | {"image_side": None, "square": False}))
    for k, masks in enumerate(masks_of(tmp_path / "pools.json").values()):
        assert masks.shape == (1, 8, 10) and np.array_equal(masks[0], own[k].truth.union)
    assert json.loads(done.stdout)["oracle"] == 1.0


def test_a_policy_is_asked_each_question_and_all_its_objects_are_in_the_pool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = {"name": "cutout_scenes", "image_size": 64, "num_scenes": 40}
    splits, rule = EnvSplits(entry, ("validation",)), PoolRule(same_iou=0.8, least_share=0.0)
    model = benchmark_model("tiny", None, True, 1, 160)
    config = replace(model.config, policy=model.config.policy | {"checkpoint": model.checkpoint})
    local: list[LocalPool] = []

    def one_here(*_: Any) -> LocalPool:
        asked, _ = candidates._asking(config, splits, "validation")
        local.append(LocalPool(asked, run_parts(asked)))
        return local[0]

    monkeypatch.setattr(workers, "WorkerPool", one_here)
    monkeypatch.setattr(workers, "cluster", SimpleNamespace(start=lambda *_: None, stop=lambda: None))
    file = PoolFile(tmp_path / "pools.json", {"a": 1})
    draw(Drawing(config, splits, Answering(3, 1.0), rule, limit=4), file, Console(quiet=True))
    report, pools = file.finish(), masks_of(tmp_path / "pools.json")
    images = EnvImages(splits, None)
    keys = list(images.asked)[:4]
    assert list(pools) == keys and report.counts.images == 4
    indices = [index for key in keys for index in images.asked[key][1]]
    asked = candidates._units(config, "validation", Answering(3, 1.0), images, keys)
    unreadable = 0
    for group in local[0].answer(asked):
        assert len(group.rollouts) == 3
        unreadable += sum(not rollout.answer.status.valid for rollout in group.rollouts)
        for rollout in group.rollouts:
            for instance in rollout.answer.instances:
                mask = mask_from_rings(instance.rings_px, 64, 64)
                held = pools[group.example.image.key]
                if mask.any():
                    assert pairwise_iou(np.concatenate([held, mask[None]]))[-1, :-1].max() >= 0.8
    assert len(indices) >= 4 and report.counts.masks > 3 and report.counts.unreadable == unreadable
