"""Files as tools really write them: what is read, what is left out and told, and mistakes told all at once."""

import json

import numpy as np
import pytest
from made_coco import annotation, entry, rectangle, small_set
from PIL import Image

from envs.datasets._coco_files import NO_MASK, NO_PIXEL, SHORT_PART
from envs.datasets._coco_photos import UNKNOWN_TURN
from envs.datasets._coco_questions import NAMELESS
from envs.datasets.coco import AMBIGUOUS, CROWD, SAME_PHOTO, TOO_SMALL, Env
from envs.reading import told

CROWD_RUNS = {"size": [8, 10], "counts": [18, 4, 4, 4, 4, 4, 42]}


def asked(env):
    """Image and annotation ids of the questions, and their phrases."""
    return [(*example.id.split("/")[1:3], example.prompt.text) for example in env]


def resave(folder, name, orientation, size=None):
    """Photo `name` again as a ramp of 10 columns with an EXIF orientation, perhaps of another size (w, h)."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    ramp = Image.fromarray(np.tile(np.linspace(0, 255, 10).round().astype(np.uint8), (8, 1)))
    (ramp if size is None else ramp.resize(size)).save(folder / "images" / name, exif=exif)


# What has no pixel.


@pytest.mark.parametrize(
    ("segmentation", "why"),
    [
        ([[296.65, 388.33, 296.65, 388.33, 297.68, 388.33, 297.68, 388.33]], NO_PIXEL),  # 918 of COCO's train2017
        ([rectangle(1.6, 1.6, 2.4, 2.4)], NO_PIXEL),
        ([rectangle(20, 20, 30, 30)], NO_PIXEL),
        ({"size": [8, 10], "counts": [80]}, NO_PIXEL),
        ([[1, 1, 4, 4]], NO_PIXEL),
        ([], NO_MASK),
        ([[]], NO_MASK),
        (None, NO_MASK),
    ],
)
def test_an_annotation_without_a_pixel_is_left_out_and_told_and_the_others_are_asked_for(tmp_path, segmentation, why):
    annotations = [annotation(11, 1, [rectangle(1, 1, 4, 4)]), annotation(918, 1, segmentation, 2)]
    env = Env("train", **small_set(tmp_path, annotations))
    assert asked(env) == [("1", "11", "cup")]
    assert env.notes == {why: ["918"]}


def test_an_annotation_with_no_segmentation_at_all_is_a_box_alone(tmp_path):
    boxed = {"id": 918, "image_id": 1, "category_id": 2, "bbox": [1, 1, 2, 2]}
    env = Env("train", **small_set(tmp_path, [annotation(11, 1, [rectangle(1, 1, 4, 4)]), boxed]))
    assert (asked(env), env.notes) == ([("1", "11", "cup")], {NO_MASK: ["918"]})


def test_an_object_that_cannot_be_seen_still_makes_the_class_name_ambiguous(tmp_path):
    annotations = [annotation(11, 1, [rectangle(1, 1, 4, 4)]), annotation(12, 1, []), annotation(13, 2, CROWD_RUNS)]
    assert asked(Env("train", **small_set(tmp_path, annotations))) == [("2", "13", "cup")]


def test_a_phrase_about_an_annotation_without_a_pixel_is_a_mistake(tmp_path):
    settings = small_set(tmp_path, [annotation(11, 1, [])], [entry()])
    with pytest.raises(ValueError, match="ann_id 11 has no mask with a pixel in it; draw one, or remove it here"):
        Env("train", **settings)


def test_short_parts_are_dropped_and_told_and_the_rest_of_the_object_stays(tmp_path):
    annotations = [annotation(11, 1, [rectangle(1, 1, 4, 4), [5, 5, 8, 8]])]
    env = Env("train", **small_set(tmp_path, annotations))
    assert env[0].truth.masks.sum() == 9 and env.notes == {SHORT_PART: ["11"]}


# Crowds.


def crowds(folder, **changes):
    annotations = [
        annotation(1, 1, [rectangle(1, 1, 4, 4)]),
        {**annotation(3, 2, CROWD_RUNS, iscrowd=1), **changes},
    ]
    return small_set(folder, annotations)


def test_crowds_are_counted_and_named_and_can_be_taken_as_objects(tmp_path):
    env = Env("train", **crowds(tmp_path))
    assert asked(env) == [("1", "1", "cup")] and env.notes == {CROWD: ["3"]}
    objects = Env("train", **crowds(tmp_path), crowds="objects")
    assert asked(objects) == [("1", "1", "cup"), ("2", "3", "cup")] and objects.notes == {}
    assert objects[1].truth.masks.sum() == 12


def test_where_all_are_crowds_the_error_says_so(tmp_path):
    settings = small_set(tmp_path, [annotation(3, 1, CROWD_RUNS, iscrowd=1)])
    with pytest.raises(ValueError, match=r"has no question.*1 annotations are crowds.*set env\.crowds: objects: 3"):
        Env("train", **settings)


@pytest.mark.parametrize(("iscrowd", "crowd"), [(0, False), (1, True), (False, False), (True, True), (None, False)])
def test_the_usual_marks_of_crowds_are_read(tmp_path, iscrowd, crowd):
    assert (CROWD in Env("train", **crowds(tmp_path, iscrowd=iscrowd)).notes) == crowd


@pytest.mark.parametrize("iscrowd", ["0", "1", "", 2, -1, [], {"is": 1}])
def test_any_other_mark_is_refused_by_value(tmp_path, iscrowd):
    with pytest.raises(ValueError, match=r"id 3.* of image 2: iscrowd is .*; write 0 for an object, 1 for a crowd"):
        Env("train", **crowds(tmp_path, iscrowd=iscrowd))


# One phrase, several truths.


def test_a_phrase_with_several_truths_in_one_photo_is_not_asked_and_told(tmp_path):
    annotations = [annotation(1, 1, [rectangle(1, 1, 4, 4)]), annotation(2, 1, [rectangle(5, 5, 8, 8)])]
    phrases = [entry(ann_ids=(1,)), entry(ann_ids=(2,), phrases=["The  Cup", "the right cup"]), entry(ann_ids=())]
    env = Env("train", **small_set(tmp_path, annotations, phrases))
    assert asked(env) == [("1", "2", "the right cup")]
    assert [left.split("/")[2] for left in env.left_out] == ["1", "2", "none"] and len(env.notes[AMBIGUOUS]) == 3


def test_two_annotations_of_the_same_pixels_are_one_truth(tmp_path):
    annotations = [annotation(k, 1, [rectangle(1, 1, 4, 4)]) for k in (1, 2)]
    env = Env("train", **small_set(tmp_path, annotations, [entry(ann_ids=(1,)), entry(ann_ids=(2,))]))
    assert len(env) == 2 and not env.left_out


def test_two_classes_of_one_name_are_one_class(tmp_path):
    categories = [{"id": 1, "name": "cup"}, {"id": 2, "name": " Cup"}, {"id": 3, "name": "dog"}]
    annotations = [
        annotation(11, 1, [rectangle(1, 1, 4, 4)], 1),
        annotation(12, 1, [rectangle(5, 5, 8, 8)], 2),
        annotation(13, 2, [rectangle(1, 1, 4, 4)], 2),
        annotation(14, 2, {"size": [8, 10], "counts": [60, 20]}, 1, iscrowd=1),
    ]
    settings = small_set(tmp_path, annotations, [entry(2, (13,))], categories=categories)
    assert Env("train", **settings)[0].truth.ignore.sum() == 20
    del settings["phrases"]
    with pytest.raises(ValueError, match="has no question"):
        Env("train", **settings)


@pytest.mark.parametrize("name", ["", "  ", None])
def test_a_class_without_a_name_is_not_asked_for_and_told(tmp_path, name):
    categories = [{"id": 1, "name": "cup"}, {"id": 2, "name": name}]
    env = Env("train", **small_set(tmp_path, categories=categories))
    assert asked(env) == [("1", "11", "cup")] and env.notes == {NAMELESS: ["class 2"]}


# One photo in two splits.


def test_photos_of_equal_pixels_share_a_split_under_any_name_or_id_and_in_any_form(tmp_path):
    settings = small_set(tmp_path) | {"train_share": 0.5}
    photo = Image.open(tmp_path / "images" / "1.png")
    images, annotations = [], []
    for k in range(1, 41):
        photo.save(tmp_path / "images" / f"copy_{k}.png", compress_level=k % 10)
        # Two ids of one file, too.
        images += [{"id": n, "file_name": f"copy_{k}.png", "height": 8, "width": 10} for n in (k, 100 + k)]
        annotations += [annotation(n, n, [rectangle(1, 1, 4, 4)]) for n in (k, 100 + k)]
    data = json.loads((tmp_path / "instances.json").read_text()) | {"images": images, "annotations": annotations}
    (tmp_path / "instances.json").write_text(json.dumps(data))
    found = {}
    for split in ("train", "validation"):
        try:
            found[split] = Env(split, **settings)
        except ValueError as error:
            assert "79 photos that are another one" in str(error)
    (env,) = found.values()
    assert len(env) == 80 and len(env.notes[SAME_PHOTO]) == 79


@pytest.mark.parametrize("decode_all", [True, False])
def test_a_copy_moves_into_the_split_of_the_lower_id_and_no_other_photo_moves(tmp_path, decode_all):
    settings = small_set(tmp_path) | {"train_share": 0.5, "decode_all": decode_all}
    images, annotations = [], []
    for k in range(1, 31):
        pixels = np.random.default_rng(k).integers(0, 256, (8, 10, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{k}.png")
        images.append({"id": k, "file_name": f"{k}.png", "height": 8, "width": 10})
        annotations.append(annotation(k, k, [rectangle(1, 1, 4, 4)]))
    data = json.loads((tmp_path / "instances.json").read_text()) | {"images": images, "annotations": annotations}

    def splits():
        (tmp_path / "instances.json").write_text(json.dumps(data))
        return {split: {one.image.key for one in Env(split, **settings)} for split in ("train", "validation")}

    before = splits()
    (tmp_path / "images" / "30.png").write_bytes((tmp_path / "images" / "1.png").read_bytes())
    after = splits()
    one, copy = (str(tmp_path / "images" / f"{k}.png") for k in (1, 30))
    home = next(split for split in after if one in after[split])
    assert copy in after[home] and one in before[home]
    assert all(before[split] - {copy} == after[split] - {copy} for split in before)


# Photos.


def test_deep_grey_and_transparent_photos_are_what_a_viewer_shows(tmp_path):
    settings = small_set(tmp_path)
    ramp = np.linspace(0, 65535, 10).round().astype(np.uint16)
    Image.fromarray(np.tile(ramp, (8, 1))).save(tmp_path / "images" / "1.png")
    hidden = np.full((8, 10, 4), 90, np.uint8)
    hidden[:, 5:, 3] = 0
    hidden[:, :5, 3] = 255
    Image.fromarray(hidden).save(tmp_path / "images" / "2.png")
    deep, layer = (env.image(env[k].image)[0, :, 0].tolist() for env in [Env("train", **settings)] for k in (0, 1))
    assert deep == [0, 28, 57, 85, 113, 142, 170, 198, 227, 255]
    assert layer == [90] * 5 + [255] * 5


def test_a_turn_that_the_size_cannot_confirm_is_left_alone_told_and_settable(tmp_path):
    settings = small_set(tmp_path)
    resave(tmp_path, "1.png", 3)
    resave(tmp_path, "2.png", 2)
    rows = {}
    for exif in (None, "ignore", "apply"):
        env = Env("train", **settings, exif=exif)
        rows[exif] = [env.image(env[0].image)[0, 0, 0], env.image(env[1].image)[0, 0, 0]]
        told_of = [path[-5:] for path in env.notes.get(UNKNOWN_TURN, [])]
        assert told_of == (["1.png", "2.png"] if exif is None else [])
    assert rows == {None: [0, 0], "ignore": [0, 0], "apply": [255, 255]}


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_a_quarter_turn_goes_by_the_recorded_size(tmp_path, suffix):
    images = [
        {"id": 1, "file_name": f"1.{suffix}", "height": 8, "width": 10},
        {"id": 2, "file_name": f"2.{suffix}", "height": 10, "width": 8},
    ]
    settings = small_set(tmp_path, images=images)
    for name in ("1", "2"):
        resave(tmp_path, f"{name}.{suffix}", 6)
    env = Env("train", **settings)
    as_stored, upright = (env.image(env[k].image) for k in (0, 1))
    assert as_stored.shape == (8, 10, 3) and upright.shape == (10, 8, 3) and env.notes.keys() == {SAME_PHOTO}
    np.testing.assert_array_equal(np.rot90(as_stored, -1), upright)
    with pytest.raises(ValueError, match=r"has 8 x 10 pixels, but image 1 was annotated at 10 x 8.*set env\.exif, now"):
        Env("train", **settings, exif="apply")


def test_a_quarter_turn_of_a_square_photo_is_told(tmp_path):
    images = [{"id": k, "file_name": f"{k}.png", "height": 8, "width": 8} for k in (1, 2)]
    settings = small_set(tmp_path, images=images)
    for name in ("1.png", "2.png"):
        resave(tmp_path, name, 6, (8, 8))
    assert len(Env("train", **settings).notes[UNKNOWN_TURN]) == 2


# Forms of files.


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_files_with_a_byte_order_mark_are_read(tmp_path, encoding):
    settings = small_set(tmp_path, phrases=[entry(phrases=["die Äpfel"])])
    for name in ("instances.json", "phrases.json"):
        (tmp_path / name).write_bytes((tmp_path / name).read_text().encode(encoding))
    assert Env("train", **settings)[0].prompt.text == "die Äpfel"


def test_null_where_nothing_is_known_and_whole_numbers_with_a_point_are_read(tmp_path):
    for licence in ({"license": None, "coco_url": None}, {"license": "", "flickr_url": None}, {"license": 77}, {}):
        images = [{"id": 1.0, "file_name": "1.png", "height": 8.0, "width": 10, **licence}]
        annotations = [annotation(11.0, 1.0, [rectangle(1, 1, 4, 4)], 0.0)]
        categories = [{"id": 0, "name": "bird", "supercategory": None}]
        for licences in ([], None, [{"id": 4, "name": None}], [None]):
            changes = {"images": images, "categories": categories, "licenses": licences}
            example = Env("train", **small_set(tmp_path, annotations, **changes))[0]
            assert (example.licence, example.source) == ("unknown", "1.png (annotated in instances.json)")
            assert example.id.startswith("coco/1/11/")


def test_backslashes_part_folders(tmp_path):
    images = [{"id": k, "file_name": f"..\\images\\{k}.png", "height": 8, "width": 10} for k in (1, 2)]
    assert len(Env("train", **small_set(tmp_path, images=images))) == 2


@pytest.mark.parametrize("entries", [{"phrases": ["the cup \ud83d"]}, {"phrases": ["a cup", "\udcff"]}])
def test_half_a_character_in_a_phrase_names_file_and_entry(tmp_path, entries):
    settings = small_set(tmp_path, phrases=[entry(), entry(**entries)])
    with pytest.raises(
        ValueError, match=r"phrases\.json: entry 1 \(image 1\): the phrase .*\\ud.*half of a surrogate pair"
    ) as raised:
        Env("train", **settings)
    assert str(raised.value).isascii()


def test_half_a_character_in_a_name_of_a_class_or_file_names_the_entry(tmp_path):
    for key, entries in {
        "categories": [{"id": 1, "name": "cup \ud83d"}, {"id": 2, "name": "dog"}],
        "images": [{"id": k, "file_name": f"{k}\ud83d.png", "height": 8, "width": 10} for k in (1, 2)],
    }.items():
        with pytest.raises(ValueError, match=rf"{key}\[0\] \(id 1\): `.*` is .* no text|mistakes in the data"):
            Env("train", **small_set(tmp_path, **{key: entries}))


def test_all_mistakes_are_told_in_one_message(tmp_path):
    annotations = [
        annotation(1, 1, [[1, 1, 4, 1, 4]]),
        annotation(2, 9, [rectangle(1, 1, 4, 4)]),
        annotation(3, 2, [rectangle(1, 1, 4, 4)], iscrowd="1"),
    ]
    settings = small_set(tmp_path, annotations, [entry(9), entry(phrases=[""])])
    with pytest.raises(ValueError, match="5 mistakes in the data") as raised:
        Env("train", **settings)
    lines = str(raised.value).splitlines()[1:]
    for line, told_of in zip(lines, ["id 1)", "id 3)", "id 2)", "entry 0", "entry 1"], strict=True):
        assert told_of in line


def test_what_follows_from_a_mistake_is_not_told_beside_it(tmp_path):
    annotations = [annotation(k, 1, [rectangle(1, 1, 4, 4)], iscrowd="yes" if k == 9 else 0) for k in range(1, 10)]
    settings = small_set(tmp_path, annotations, [entry(1, (1,)), entry(1, (9,), ["a cup"]), entry(2, ())])
    (tmp_path / "images" / "1.png").write_bytes(b"")
    (tmp_path / "images" / "2.png").unlink()
    with pytest.raises(ValueError, match="3 mistakes in the data") as raised:
        Env("train", **settings)
    image, crowd, missing = str(raised.value).splitlines()[1:]
    assert "image 1:" in image and "iscrowd is 'yes'" in crowd and "2.png: no such file for image 2" in missing


def test_every_mistake_of_an_annotation_is_told(tmp_path):
    wrong = annotation(7, 1, [[1, 1, 4]], 9, iscrowd=5)
    with pytest.raises(ValueError, match="3 mistakes in the data") as raised:
        Env("train", **small_set(tmp_path, [wrong]))
    assert all(word in str(raised.value) for word in ("iscrowd is 5", "polygon part [1, 1, 4]", "category_id 9"))


def test_a_missing_file_of_phrases_hides_no_mistake_of_the_annotations(tmp_path):
    settings = small_set(tmp_path, [annotation(7, 1, "text")]) | {"phrases": str(tmp_path)}
    with pytest.raises(ValueError, match=r"2 mistakes in the data:\n.*segmentation 'text'.*\n.*: is a folder"):
        Env("train", **settings)


def test_of_many_mistakes_the_first_twenty_are_told(tmp_path):
    annotations = [annotation(k, 1, [rectangle(1, 1, 4, 4)], iscrowd=7) for k in range(1, 34)]
    with pytest.raises(ValueError, match="33 mistakes in the data") as raised:
        Env("train", **small_set(tmp_path, annotations))
    assert len(str(raised.value).splitlines()) == 22 and str(raised.value).endswith("and 13 more")


def test_notes_are_told_with_their_number_and_the_first_few():
    assert told({"photos turned": [f"{k}" for k in range(1, 10)]}) == ["9 photos turned: 1, 2, 3, 4, 5, 6 and 3 more"]


def test_an_image_that_many_annotations_name_in_vain_is_told_once(tmp_path):
    annotations = [annotation(k, 9, [rectangle(1, 1, 4, 4)]) for k in range(1, 34)]
    told_once = r"id 1\): image_id 9 is not among the images \(nor for 32 other annotations\)"
    with pytest.raises(ValueError, match=told_once) as raised:
        Env("train", **small_set(tmp_path, annotations))
    assert "\n" not in str(raised.value)


# Forms that tools write.


@pytest.mark.parametrize(
    "segmentation",
    [
        [1, 1, 4, 1, 4, 4, 1, 4],
        [[[1, 1], [4, 1], [4, 4], [1, 4]]],
        [{"size": [8, 10], "counts": [9.0, 3, 5, 3, 5, 3, 52]}],
        {"size": ["8", "10"], "counts": [9, 3, 5, 3, 5, 3, 52]},
    ],
)
def test_flat_polygons_points_and_run_lengths_in_a_list_are_read(tmp_path, segmentation):
    env = Env("train", **small_set(tmp_path, [annotation(11, 1, segmentation)]))
    expected = np.zeros((8, 10), bool)
    expected[1:4, 1:4] = True
    np.testing.assert_array_equal(env[0].truth.union, expected)


def test_ids_written_as_text_are_read(tmp_path):
    images = [{"id": "1", "file_name": "1.png", "height": "8", "width": "10"}]
    annotations = [annotation("11", "1", [rectangle(1, 1, 4, 4)], "1")]
    settings = small_set(tmp_path, annotations, [entry("1", ("11",)), entry(1, (11.0,), ["a cup"])], images=images)
    assert asked(Env("train", **settings)) == [("1", "11", "the cup"), ("1", "11", "a cup")]


@pytest.mark.parametrize("side", [None, 0, "missing"])
def test_a_size_that_was_not_recorded_is_that_of_the_photo(tmp_path, side):
    images = [{"id": k, "file_name": f"{k}.png", "height": side, "width": side} for k in (1, 2)]
    if side == "missing":
        images = [{"id": k, "file_name": f"{k}.png"} for k in (1, 2)]
    env = Env("train", **small_set(tmp_path, images=images))
    assert (env[0].image.height, env[0].image.width, env[0].truth.masks.sum()) == (8, 10, 9)


def test_written_phrases_need_no_classes(tmp_path):
    settings = small_set(tmp_path, phrases=[entry(), entry(2, (12,), ["a dog"])])
    data = json.loads((tmp_path / "instances.json").read_text())
    del data["categories"]
    for one in data["annotations"]:
        del one["category_id"]
    (tmp_path / "instances.json").write_text(json.dumps(data))
    assert len(Env("train", **settings)) == 2
    del settings["phrases"]
    with pytest.raises(ValueError, match="`categories` should be list, found None"):
        Env("train", **settings)


def test_what_nothing_depends_on_harms_nothing(tmp_path):
    images = [{"id": k, "file_name": f"{k}.png", "height": 8, "width": 10, "license": 1} for k in (1, 2)]
    images[0]["flickr_url"], images[1]["coco_url"] = "http://\ud800", {"a": 1}
    env = Env("train", **small_set(tmp_path, images=images, licenses=[{"id": 1, "name": "a \udc00"}]))
    assert [example.source for example in env] == [
        "http://? (annotated in instances.json)",
        "2.png (annotated in instances.json)",
    ]
    assert env[0].licence == "a ?"


def test_a_wrong_size_is_told_before_any_mask_of_that_size_is_made(tmp_path):
    images = [{"id": k, "file_name": f"{k}.png", "height": 10**7, "width": 10**7} for k in (1, 2)]
    with pytest.raises(ValueError, match="has 10 x 8 pixels, but image 1 was annotated at 10000000 x 10000000"):
        Env("train", **small_set(tmp_path, images=images))


def test_a_file_name_that_no_system_takes_names_its_entry(tmp_path):
    images = [{"id": k, "file_name": f"{k}" * 300, "height": 8, "width": 10} for k in (1, 2)]
    with pytest.raises((ValueError, OSError), match="2 mistakes in the data"):
        Env("train", **small_set(tmp_path, images=images))


# One photo under two ids.


def listed_twice(folder, annotations):
    images = [{"id": k, "file_name": "1.png", "height": 8, "width": 10} for k in (1, 2)]
    return small_set(folder, annotations, images=images)


def test_a_class_is_counted_over_all_entries_of_a_photo(tmp_path):
    same = [annotation(k, k, [rectangle(1, 1, 4, 4)]) for k in (1, 2)]
    assert asked(Env("train", **listed_twice(tmp_path, same))) == [("1", "1", "cup"), ("2", "2", "cup")]
    others = [annotation(1, 1, [rectangle(1, 1, 4, 4)]), annotation(2, 2, [rectangle(5, 5, 8, 8)])]
    with pytest.raises(ValueError, match="has no question"):
        Env("train", **listed_twice(tmp_path, others))


def test_a_crowd_of_one_entry_of_a_photo_is_ignored_for_the_other(tmp_path):
    crowd = {"size": [8, 10], "counts": [40, 40]}
    annotations = [annotation(1, 1, [rectangle(1, 1, 4, 4)]), annotation(2, 2, crowd, iscrowd=1)]
    settings = listed_twice(tmp_path, annotations)
    (tmp_path / "phrases.json").write_text(json.dumps([entry(1, (1,))]))
    env = Env("train", **settings, phrases=str(tmp_path / "phrases.json"))
    assert env[0].truth.ignore.sum() == 40


def test_one_file_annotated_both_as_stored_and_upright_is_a_mistake(tmp_path):
    images = [
        {"id": 1, "file_name": "1.png", "height": 8, "width": 10},
        {"id": 2, "file_name": "1.png", "height": 10, "width": 8},
    ]
    settings = small_set(tmp_path, images=images)
    resave(tmp_path, "1.png", 6)
    with pytest.raises(ValueError, match=r"was annotated as stored and upright, by the sizes of images 1 and 2"):
        Env("train", **settings)


@pytest.mark.parametrize("second", ["cafe\u0301", "CAFÉ", "caf\u00e9\u200b"])
def test_unicodes_forms_of_one_phrase_are_one_phrase(tmp_path, second):
    with pytest.raises(ValueError, match=r"has no question.*2 questions whose phrase means something else too"):
        Env("train", **small_set(tmp_path, phrases=[entry(phrases=["caf\u00e9"]), entry(1, (), [second])]))


def test_a_phrase_that_nobody_sees_is_a_mistake(tmp_path):
    with pytest.raises(ValueError, match="should be one or more texts"):
        Env("train", **small_set(tmp_path, phrases=[entry(phrases=["\u200b"])]))


# What a resume compares.


def test_the_fingerprint_is_that_of_masks_phrases_classes_and_photos(tmp_path):
    annotations = [
        annotation(11, 1, [rectangle(1, 1, 4, 4)]),
        annotation(12, 2, [rectangle(0, 0, 5, 2)]),
        annotation(13, 2, CROWD_RUNS, iscrowd=1),
    ]
    phrases = [entry(), entry(2, (12,), ["a cup"])]

    def fingerprint(annotations=annotations, phrases=phrases, photo=None, **settings):
        files = small_set(tmp_path, annotations, phrases)
        if photo is not None:
            Image.fromarray(photo).save(tmp_path / "images" / "1.png")
        return Env("train", **files, **settings).fingerprint

    corrected = [annotation(11, 1, [rectangle(1, 1, 5, 4)]), *annotations[1:]]
    other_class = [annotations[0], {**annotations[1], "category_id": 2}, annotations[2]]
    found = [
        fingerprint(),
        fingerprint(corrected),
        fingerprint(other_class),
        fingerprint(phrases=[entry(phrases=["that cup"]), phrases[1]]),
        fingerprint(phrases=phrases[::-1]),
        fingerprint(photo=np.zeros((8, 10, 3), np.uint8)),
    ]
    assert len(set(found)) == 6
    undecoded = Env("train", **small_set(tmp_path, annotations, phrases), decode_all=False)
    before = undecoded.fingerprint
    assert undecoded.image(undecoded[0].image).shape == (8, 10, 3)
    again = Env("train", **small_set(tmp_path, annotations, phrases), decode_all=False)
    assert again[0].id == undecoded[0].id and again.fingerprint == before != found[0]
    redrawn = [annotation(11, 1, [[*rectangle(1, 1, 4, 4)[2:], 1, 1]]), *annotations[1:]]
    assert fingerprint(redrawn) == fingerprint(decode_all=True) == found[0]


def test_the_words_of_both_splits_are_known_to_either(tmp_path):
    settings = small_set(tmp_path, phrases=[entry(phrases=["the cup"]), entry(2, (12,), ["a dog", "the dog there"])])
    for share in (0.0, 1.0):
        env = Env("train" if share else "validation", **{**settings, "train_share": share})
        assert env.phrase_words() == {"the", "cup", "a", "dog", "there"}


def test_what_is_too_small_is_told(tmp_path):
    annotations = [annotation(11, 1, [rectangle(0, 0, 1, 1)]), annotation(12, 2, [rectangle(0, 0, 9, 8)])]
    env = Env("train", **small_set(tmp_path, annotations), image_side=3)
    assert [which.startswith("'cup' (1/11/") for which in env.notes[TOO_SMALL]] == [True]
