"""COCO files as an Env: what is asked, what counts, and every mistake named before anything starts."""

import hashlib
import json
import pickle
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_coco import annotation, entry, rectangle, small_set
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from envs.datasets.coco import Env
from envs.geometry.rle import rle_from_mask
from envs.images import PADDING_GREY

DATA = Path(__file__).parents[2] / ".." / "shared" / "data" / "coco28"
needs_photos = pytest.mark.skipif(not DATA.is_dir(), reason=f"the photos are not here: {DATA} is missing")


def photos(split="train", **settings):
    files = {"annotations": DATA / "instances.json", "images": DATA / "images", "phrases": DATA / "phrases.json"}
    return Env(split, **{"train_share": 1.0, **{key: str(path) for key, path in files.items()}, **settings})


def test_an_example_holds_phrase_mask_licence_and_the_photo_itself(tmp_path):
    env = Env("train", **small_set(tmp_path, phrases=[entry()]))
    example = env[0]
    assert example.id == "coco/1/11/" + hashlib.sha256(b"the cup").hexdigest()[:8]
    assert (example.prompt.text, example.split, example.licence) == ("the cup", "train", "CC-BY-2.0")
    expected = np.zeros((1, 8, 10), bool)
    expected[0, 1:4, 1:4] = True
    np.testing.assert_array_equal(example.truth.masks, expected)
    assert example.truth.ignore is None
    np.testing.assert_array_equal(env.image(example.image), np.array(Image.open(tmp_path / "images" / "1.png")))


def test_overlapping_parts_unite_in_any_direction(tmp_path):
    backwards = np.reshape(rectangle(3, 1, 6, 4), (-1, 2))[::-1].ravel().tolist()
    settings = small_set(tmp_path, [annotation(11, 1, [rectangle(1, 1, 4, 4), backwards])])
    assert Env("train", **settings)[0].truth.masks.sum() == 5 * 3


def test_run_lengths_as_numbers_and_as_text_give_their_very_pixels(tmp_path):
    mask = np.random.default_rng(0).random((8, 10)) < 0.4
    runs = [len(list(run)) for run in np.split(mask.T.ravel(), np.flatnonzero(np.diff(mask.T.ravel())) + 1)]
    numbers = [0, *runs] if mask[0, 0] else runs
    for counts in (numbers, rle_from_mask(mask)):
        settings = small_set(tmp_path, [annotation(11, 1, {"size": [8, 10], "counts": counts})])
        np.testing.assert_array_equal(Env("train", **settings)[0].truth.masks[0], mask)


def test_several_targets_are_several_masks_and_none_is_an_empty_truth(tmp_path):
    annotations = [annotation(11, 1, [rectangle(0, 0, 2, 2)]), annotation(13, 1, [rectangle(4, 4, 8, 8)])]
    phrases = [entry(ann_ids=(11, 13), phrases=["both cups"]), entry(ann_ids=(), phrases=["a whale", "a harp"])]
    env = Env("train", **small_set(tmp_path, annotations, phrases))
    assert [example.truth.masks.shape for example in env.scene(1)] == [(2, 8, 10), (0, 8, 10), (0, 8, 10)]
    assert [mask.sum() for mask in env[0].truth.masks] == [4, 16]
    assert [example.id.rsplit("/", 1)[0] for example in env.scene(0)] == ["coco/1/11+13", "coco/1/none", "coco/1/none"]
    assert len({example.id for example in env.scene(0)}) == 3


def test_a_crowd_of_the_targets_class_counts_neither_way_and_never_covers_the_target(tmp_path):
    crowd = np.zeros((8, 10), bool)
    crowd[2:8, 0:5] = True
    region = {"size": [8, 10], "counts": rle_from_mask(crowd)}
    annotations = [
        annotation(11, 1, [rectangle(1, 1, 4, 4)]),
        annotation(13, 1, [rectangle(6, 0, 9, 3)], 2),
        annotation(14, 1, region, iscrowd=1),
    ]
    phrases = [entry(), entry(1, (13,), ["a dog"]), entry(1, (), ["a whale"]), entry(1, (14,), ["the cups"])]
    cup, dog, nothing, everyone = Env("train", **small_set(tmp_path, annotations, phrases)).scene(0)
    np.testing.assert_array_equal(cup.truth.ignore, crowd & ~cup.truth.union)
    assert cup.truth.ignore.sum() == 30 - 6
    assert dog.truth.ignore is nothing.truth.ignore is everyone.truth.ignore is None
    np.testing.assert_array_equal(everyone.truth.union, crowd)


def test_without_phrases_the_class_is_asked_where_the_photo_has_one_of_it_and_no_crowd(tmp_path):
    region = {"size": [8, 10], "counts": [10, 20, 50]}
    annotations = [
        annotation(11, 1, [rectangle(0, 0, 2, 2)]),
        annotation(12, 1, [rectangle(4, 4, 8, 8)]),
        annotation(13, 1, [rectangle(6, 0, 9, 3)], 2),
        annotation(14, 2, [rectangle(0, 0, 2, 2)]),
        annotation(15, 2, [rectangle(6, 0, 9, 3)], 2),
        annotation(16, 2, region, 2, iscrowd=1),
    ]
    env = Env("train", **small_set(tmp_path, annotations))
    assert [(example.id.split("/")[1:3], example.prompt.text) for example in env] == [
        (["1", "13"], "dog"),
        (["2", "14"], "cup"),
    ]


def test_halving_a_photo_halves_outlines_and_samples_run_lengths_under_the_new_centres(tmp_path):
    mask = np.random.default_rng(1).random((8, 10)) < 0.5
    annotations = [
        annotation(11, 1, [rectangle(2, 2, 8, 6)]),
        annotation(12, 2, {"size": [8, 10], "counts": rle_from_mask(mask)}),
    ]
    polygon, runs = Env("train", **small_set(tmp_path, annotations), image_side=5)
    expected = np.zeros((4, 5), bool)
    expected[1:3, 1:4] = True
    np.testing.assert_array_equal(polygon.truth.union, expected)
    np.testing.assert_array_equal(runs.truth.union, mask[1::2, 1::2])


def test_a_square_image_is_grey_below_the_photo_and_its_masks_are_off_there(tmp_path):
    settings = small_set(tmp_path, [annotation(11, 1, [rectangle(0, 0, 12, 12)])])
    env = Env("train", **settings, image_side=20, square=True)
    image = env.image(env[0].image)
    assert image.shape == (20, 20, 3) and (env[0].image.height, env[0].image.width) == (20, 20)
    assert (image[16:] == PADDING_GREY).all() and not (image[:16] == PADDING_GREY).all()
    assert env[0].truth.union[:16].all() and not env[0].truth.union[16:].any()


def test_what_has_no_pixel_at_the_chosen_size_is_left_out_and_listed(tmp_path):
    annotations = [annotation(11, 1, [rectangle(0, 0, 1, 1)]), annotation(12, 2, [rectangle(0, 0, 9, 8)])]
    settings = small_set(tmp_path, annotations)
    assert len(Env("train", **settings)) == 2
    env = Env("train", **settings, image_side=3)
    assert [example.image.key[-5:] for example in env] == ["2.png"]
    assert [left.split("/")[:3] for left in env.left_out] == [["coco", "1", "11"]]


def test_an_orientation_tag_does_not_turn_the_photo(tmp_path):
    settings = small_set(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(tmp_path / "images" / "1.png").save(tmp_path / "images" / "1.png", exif=exif)
    env = Env("train", **settings)
    assert env.image(env[0].image).shape == (8, 10, 3)


def test_a_photo_that_changed_after_the_start_is_refused(tmp_path):
    env = Env("train", **small_set(tmp_path))
    example = env[0]
    with pytest.raises(ValueError, match=r"1\.png: SHA-256 of the pixels is"):
        env.image(replace(example.image, sha256="0" * 64))
    Image.new("RGB", (10, 8)).save(tmp_path / "images" / "1.png")
    with pytest.raises(ValueError, match="restore the file"):
        env.image(example.image)


def test_a_repeated_phrase_is_asked_once_and_an_index_outside_is_an_index_error(tmp_path):
    env = Env("train", **small_set(tmp_path, phrases=[entry(phrases=["the cup", "the cup "]), entry()]))
    assert len(env) == 1
    for index in (-1, 1):
        with pytest.raises(IndexError, match=f"example {index} of 1"):
            env[index]


def annotated(segmentation, **more):
    return {"annotations": [{**annotation(77, 1, segmentation), **more}]}


BAD_SETS = {
    "a segmentation of text": (annotated("1 1 4 1"), "id 77.*segmentation '1 1 4 1' is neither polygons nor RLE"),
    "parts and numbers mixed": (annotated([[1, 1, 4, 1, 4, 4], 4]), "id 77.*polygon part 4 is not x, y"),
    "a vertex far away": (annotated([[1, 1, 4e6, 1, 4, 4]]), "id 77.*in pixels of less than 1e"),
    "short run lengths": (annotated({"size": [8, 10], "counts": [1, 2]}), "id 77.* of image 1: RLE covers 3 pixels"),
    "run lengths of text": (
        annotated({"size": [8, 10], "counts": "é"}),
        "id 77.* of image 1: RLE counts .* decode its bytes as ASCII",
    ),
    "negative run": (annotated({"size": [8, 10], "counts": [90, -10]}), "id 77.*are not run lengths"),
    "no run lengths": (annotated({"size": [8, 10]}), "id 77.*neither a list nor text"),
    "run lengths of another size": (annotated({"size": [10, 8], "counts": [0, 80]}), r"RLE size \[10, 8\] is not"),
    "odd coordinates": (annotated([[1, 1, 4, 1, 4]]), r"id 77.*polygon part \[1, 1, 4, 1, 4\] is not"),
    "NaN": (annotated([[1, 1, 4, 1, float("nan"), 4]]), "id 77.*polygon part"),
    "a number too long": (annotated([[1, 1, 4, 1, 10**400, 4]]), "id 77.*polygon part"),
    "unknown image": (annotated([rectangle(1, 1, 4, 4)], image_id=5), "id 77.*image_id 5 is not among the images"),
    "unknown class": (annotated([rectangle(1, 1, 4, 4)], category_id=5), "id 77.*category_id 5 is not among"),
    "no image id": (annotated([rectangle(1, 1, 4, 4)], image_id=None), "id 77.*`image_id` should be int, found None"),
    "id twice": ({"annotations": [annotation(7, 1, [rectangle(1, 1, 4, 4)])] * 2}, r"\[1\] has id 7 a second time"),
    "no images": ({"images": None}, "`images` should be list, found None"),
    "other size": (
        {"images": [{"id": k, "file_name": f"{k}.png", "height": 10, "width": 8} for k in (1, 2)]},
        r"1\.png has 10 x 8 pixels, but image 1 was annotated at 8 x 10",
    ),
}


@pytest.mark.parametrize("case", BAD_SETS)
def test_a_mistake_in_the_annotations_names_file_and_id(tmp_path, case):
    changes, message = BAD_SETS[case]
    with pytest.raises(ValueError, match=message):
        Env("validation", **small_set(tmp_path, **changes))


BAD_PHRASES = {
    "unknown key": (entry(ann_id=[11]), r"entry 0 \(image 1\): unknown key 'ann_id'; did you mean 'ann_ids'"),
    "missing key": ({"image_id": 1, "phrases": ["x"]}, r"entry 0 \(image 1\): `ann_ids` should be list, found None"),
    "no dict": ("the cup", "`image_id` should be int, found 'the cup'"),
    "unknown image": (entry(image_id=9), "image_id 9 is not among"),
    "unknown annotation": (entry(ann_ids=[99]), r"\(image 1\): ann_id 99 is not among"),
    "annotation as list": (entry(ann_ids=[[11]]), r"\(image 1\): ann_id \[11\] is not among"),
    "annotation of another image": (entry(ann_ids=[12]), r"\(image 1\): ann_id 12 belongs to image 2"),
    "annotation twice": (entry(ann_ids=[11, 11]), r"ann_ids \[11, 11\] name an annotation twice"),
    "no phrase": (entry(phrases=[]), r"\(image 1\): phrases \[\] should be one or more"),
    "blank phrase": (entry(phrases=[" "]), "should be one or more texts"),
}


@pytest.mark.parametrize("case", BAD_PHRASES)
def test_a_mistake_in_the_phrases_names_entry_and_image(tmp_path, case):
    wrong, message = BAD_PHRASES[case]
    with pytest.raises(ValueError, match=r"phrases\.json.*" + message):
        Env("train", **small_set(tmp_path, phrases=[wrong]))


def test_a_missing_file_or_folder_is_named(tmp_path):
    settings = small_set(tmp_path, phrases=[entry()])
    for key in ("annotations", "images", "phrases"):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            Env("train", **{**settings, key: str(tmp_path / "nowhere")})
    (tmp_path / "images" / "2.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"2\.png: no such file for image 2"):
        Env("train", **settings)


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "\x00"])
def test_a_file_that_is_no_json_is_named(tmp_path, text):
    settings = small_set(tmp_path, phrases=[entry()])
    for key in ("annotations", "phrases"):
        (tmp_path / "broken.json").write_text(text)
        with pytest.raises(ValueError, match=r"broken\.json is not JSON"):
            Env("train", **{**settings, key: str(tmp_path / "broken.json")})


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_a_truncated_photo_is_found_at_the_start_or_without_decoding_when_its_turn_comes(tmp_path, form):
    settings = small_set(tmp_path)
    file = tmp_path / "images" / "1.png"
    Image.open(file).save(file, form)
    file.write_bytes(file.read_bytes()[:-60])
    with pytest.raises(ValueError, match=r"image 1: .*1\.png is cut off"):
        Env("train", **settings)
    env = Env("train", **settings, decode_all=False)
    with pytest.raises(ValueError, match=r"image 1: .*1\.png is cut off"):
        env[0]
    assert env.image(env[1].image).shape == (8, 10, 3)


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>"])
@pytest.mark.parametrize("decode_all", [True, False])
def test_a_file_that_is_no_image_is_named_even_without_decoding(tmp_path, content, decode_all):
    settings = small_set(tmp_path)
    (tmp_path / "images" / "2.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"image 2: .*2\.png is .*no image"):
        Env("train", **settings, decode_all=decode_all)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "test"}, "split is 'test'"),
        ({"train_share": 1.5}, "train_share is 1.5"),
        ({"train_share": 0.0}, "has no question"),
        ({"image_side": 0}, "image_side is 0"),
        ({"square": True}, "set image_side"),
    ],
)
def test_settings_that_cannot_work_say_which(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        Env(**{"split": "train", **small_set(tmp_path), **changes})


@needs_photos
def test_the_real_set_has_135_phrases_8_entries_with_several_targets_and_9_with_none():
    env = photos()
    assert len(env) == 135
    num_targets = {tuple(example.id.split("/")[1:3]): len(example.truth.masks) for example in env}
    assert len(num_targets) == 83
    assert sum(num > 1 for num in num_targets.values()) == 8 and sum(num == 0 for num in num_targets.values()) == 9
    assert {example.licence for example in env} == {"CC-BY-2.0", "CC-BY-SA-2.0"}
    ignored = {example.id.split("/")[1] for example in env if example.truth.ignore is not None}
    assert ignored <= {"3124", "481222"}


@needs_photos
def test_the_masks_of_all_159_annotations_are_those_of_pycocotools_to_the_pixel(tmp_path):
    annotations = json.loads((DATA / "instances.json").read_text())["annotations"]
    phrases = [entry(one["image_id"], [one["id"]], [f"object {one['id']}"]) for one in annotations]
    (tmp_path / "phrases.json").write_text(json.dumps(phrases))
    env, oracle = photos(phrases=str(tmp_path / "phrases.json")), COCO(str(DATA / "instances.json"))
    num_pixels, shares = 0, []
    for example in env:
        one = oracle.anns[int(example.id.split("/")[2])]
        theirs = coco_mask.decode(oracle.annToRLE(one)).astype(bool)
        np.testing.assert_array_equal(example.truth.union, theirs)
        num_pixels += int(theirs.sum())
        shares.append(theirs.sum() / one["area"])
    assert len(env) == 159 and num_pixels == 2_318_519
    assert np.median(shares) == pytest.approx(1, abs=0.001)  # `area` is the polygon's own


@needs_photos
@pytest.mark.parametrize("settings", [{}, {"image_side": 64, "square": True}, {"phrases": None}])
def test_train_and_validation_share_no_photo_and_lose_none(settings):
    train, validation = (photos(split, train_share=0.7, **settings) for split in ("train", "validation"))
    keys = [{example.image.key for example in env} for env in (train, validation)]
    assert keys[0] and keys[1] and not keys[0] & keys[1]
    assert len(train) + len(validation) == len(photos(**settings))
    wider = photos(train_share=0.9, **settings)
    assert keys[0] <= {example.image.key for example in wider}


@needs_photos
def test_a_pickled_copy_gives_equal_examples_and_images_of_one_size():
    env = photos(image_side=64, square=True)
    copy = pickle.loads(pickle.dumps(env))
    for ours, theirs in zip(env, copy, strict=True):
        assert (ours.id, ours.image) == (theirs.id, theirs.image)
        np.testing.assert_array_equal(ours.truth.masks, theirs.truth.masks)
        assert ours.truth.masks.shape[1:] == (64, 64) == copy.image(theirs.image).shape[:2]


@needs_photos
def test_a_scene_holds_every_question_of_its_photo_and_the_same_from_each_of_them():
    env = photos()
    counts = Counter(example.image.key for example in env)
    ids = [example.id for example in env]
    assert len(set(ids)) == 135
    for k in (0, 50, 134):
        scene = [example.id for example in env.scene(k)]
        assert ids[k] in scene and len(scene) == counts[env[k].image.key]
        assert [example.id for example in env.scene(ids.index(scene[0]))] == scene


@needs_photos
@pytest.mark.parametrize("image_side", [64, 112])
def test_masks_resized_by_their_outlines_agree_with_masks_resized_as_pictures_to_one_percent(image_side):
    num_different = num_pixels = 0
    for large, small in zip(photos(), photos(image_side=image_side), strict=True):
        height, width = small.truth.masks.shape[1:]
        picture = Image.fromarray(large.truth.union.astype(np.float32)).resize((width, height), Image.Resampling.BOX)
        num_different += ((np.array(picture) > 0.5) ^ small.truth.union).sum()
        num_pixels += small.truth.union.sum()
    assert num_different < 0.01 * num_pixels


def test_a_fingerprint_is_that_of_the_runs_that_began_before(tmp_path):
    crowd = np.zeros((8, 10), bool)
    crowd[2:8, 0:5] = True
    run_lengths = {"size": [8, 10], "counts": rle_from_mask(crowd)}
    shapes = [annotation(11, 1, [rectangle(1, 1, 4, 4)]), annotation(12, 2, [rectangle(0, 0, 5, 2)], 2)]
    annotations = [*shapes, annotation(14, 1, run_lengths, iscrowd=1)]
    phrases = [entry(), entry(2, (12,), ["a dog"]), entry(2, (), ["nothing"])]
    env = Env("train", **small_set(tmp_path, annotations, phrases))
    assert env.fingerprint == "58f770b2e7512b11daaf1bbe71723efcb8c236fc2832c7ff41414a3096e3ce43"
