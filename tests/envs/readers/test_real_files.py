"""Files that others made, as their packages ship them: labelme's examples beside what labelme itself made of them, and
brush masks by the encoder of Label Studio's own package."""

import importlib.util
import json
import subprocess
import sys
import tarfile
from importlib import import_module
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from made_label_studio import studio_region, studio_task
from made_user_files import Photo, counts, write_json
from PIL import Image
from pycocotools import mask as coco_masks

from envs.readers.base import Findings

pytestmark = pytest.mark.long

LABELME, LABEL_STUDIO = "labelme==6.3.1", "label-studio-sdk==2.1.2"


def unpacked(package, folder):
    """The source of a package, by pip; skips the test where pip cannot fetch it."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "-q", "-d", folder]
    done = subprocess.run([*command, package], capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        pytest.skip(f"pip cannot fetch {package}: {done.stderr[-200:]}")
    (packed,) = folder.glob("*.tar.gz")
    with tarfile.open(packed) as archive:
        archive.extractall(folder, filter="data")
    (inside,) = (each for each in folder.iterdir() if each.is_dir())
    return inside


@pytest.fixture(scope="module")
def labelme(tmp_path_factory):
    return unpacked(LABELME, tmp_path_factory.mktemp("labelme")) / "examples"


@pytest.fixture(scope="module")
def brush(tmp_path_factory):
    """Label Studio's module of brush masks, which stands alone."""
    source = unpacked(LABEL_STUDIO, tmp_path_factory.mktemp("label_studio"))
    spec = importlib.util.spec_from_file_location("ls_brush", source / "src/label_studio_sdk/converter/brush.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(name, path):
    """({photo: {label: masks}}, {photo: pixels to ignore}, findings) of the split train."""
    findings, masks, ignored = Findings(), {}, {}
    for given in import_module(f"envs.readers.{name}").Reader(str(path)).photos("train", findings):
        size = given.photo.height, given.photo.width
        for one in given.references:
            masks.setdefault(given.photo.id, {})[one.parts[0]] = [shape.mask(*size) for shape in one.masks]
            ignored[given.photo.id] = np.any([np.zeros(size, bool), *(each.mask(*size) for each in one.ignore)], axis=0)
    return masks, ignored, findings


def box_of(mask):
    """(left, top, width, height) as pycocotools has it."""
    return tuple(coco_masks.toBbox(coco_masks.encode(np.asfortranarray(mask, np.uint8))))


def nothing_left_out(findings):
    return not findings.lost and not findings.left_out


def lines(path):
    return path.read_text().split("\n")


@pytest.mark.parametrize(
    ("folder", "drawn", "asked", "num_masks"),
    [
        ("instance_segmentation", "SegmentationClassNpy", 7, 12),
        ("semantic_segmentation", "SegmentationClassNpy", 7, 16),
        ("video_annotation", "SegmentationClass", 10, 15),
    ],
)
def test_classes_cover_what_labelme_drew_less_what_it_drew_over_them(labelme, folder, drawn, asked, num_masks):
    masks, ignored, findings = read("labelme", labelme / folder / "data_annotated")
    assert nothing_left_out(findings) and not findings.noted
    assert sum(map(len, masks.values())) == asked
    assert sum(len(each) for of in masks.values() for each in of.values()) == num_masks
    sets, names, missing = labelme / folder / "data_dataset_voc", None, 0
    names = lines(sets / "class_names.txt")
    for photo, of_label in masks.items():
        classes = np.load(sets / drawn / f"{photo}.npy")
        assert np.array_equal(ignored[photo], classes == -1)
        for label, parts in of_label.items():
            theirs, ours = classes == names.index(label), np.any(parts, axis=0)
            missing += int((theirs & ~ours).sum())
            assert (classes[ours & ~theirs] != 0).all()  # later shapes lie over it, or a region to ignore
    assert missing <= 1  # an older Pillow drew one pixel of a sofa's edge more


def test_objects_have_the_pixels_and_the_box_that_labelme_counted(labelme):
    masks, _, _ = read("labelme", labelme / "instance_segmentation/data_annotated")
    made = json.loads((labelme / "instance_segmentation/data_dataset_coco/annotations.json").read_text())
    photos = {each["id"]: Path(each["file_name"]).stem for each in made["images"]}
    classes = {each["id"]: each["name"] for each in made["categories"]}
    theirs = sorted(
        (photos[one["image_id"]], classes[one["category_id"]], one["area"], tuple(one["bbox"]))
        for one in made["annotations"]
    )
    ours = sorted(
        (photo, label, float(mask.sum()), box_of(mask))
        for photo, of_label in masks.items()
        for label, parts in of_label.items()
        for mask in parts
    )
    assert len(ours) == 12 and ours == theirs


def test_the_coco_file_that_labelme_wrote_has_the_masks_of_pycocotools(labelme):
    path = labelme / "instance_segmentation/data_dataset_coco"
    masks, _, findings = read("coco", path)
    assert nothing_left_out(findings) and sum(map(len, masks.values())) == 7
    made = json.loads((path / "annotations.json").read_text())
    sizes = {each["id"]: (each["height"], each["width"]) for each in made["images"]}
    classes = {each["id"]: each["name"] for each in made["categories"]}
    for one in made["annotations"]:
        polygons = coco_masks.frPyObjects(one["segmentation"], *sizes[one["image_id"]])
        theirs = coco_masks.decode(coco_masks.merge(polygons)).astype(bool)
        ours = masks[str(one["image_id"])][classes[one["category_id"]]]
        assert sum(np.array_equal(mask, theirs) for mask in ours) == 1
    assert sum(len(each) for of in masks.values() for each in of.values()) == len(made["annotations"]) == 12


def test_the_voc_masks_that_labelme_wrote_are_read_to_the_last_pixel(labelme):
    path = labelme / "instance_segmentation/data_dataset_voc"
    masks, _, findings = read("voc_masks", path)
    assert nothing_left_out(findings)
    for photo, of_label in masks.items():
        numbers = np.load(path / f"SegmentationObjectNpy/{photo}.npy")
        theirs = [numbers == number for number in np.unique(numbers[numbers > 0])]
        ours = [mask for parts in of_label.values() for mask in parts]
        assert len(ours) == len(theirs)
        assert all(sum(np.array_equal(mask, each) for mask in ours) == 1 for each in theirs)
    assert {photo: {label: len(parts) for label, parts in of.items()} for photo, of in masks.items()} == {
        "2011_000003": {"person": 2, "bottle": 1},
        "2011_000006": {"person": 4, "chair": 1, "sofa": 1},
        "2011_000025": {"bus": 2, "car": 1},
    }


def test_rectangles_have_the_corners_of_the_boxes_that_labelme_wrote(labelme):
    masks, _, findings = read("labelme", labelme / "bbox_detection/data_annotated")
    assert nothing_left_out(findings)
    ours, theirs = [], []
    for photo, of_label in masks.items():
        tree = ElementTree.parse(labelme / f"bbox_detection/data_dataset_voc/Annotations/{photo}.xml")
        for box in tree.iter("bndbox"):
            theirs.append((photo, *(int(float(box.find(side).text)) for side in ("xmin", "ymin", "xmax", "ymax"))))
        for mask in (mask for parts in of_label.values() for mask in parts):
            ys, xs = np.nonzero(mask)
            ours.append((photo, xs.min(), ys.min(), xs.max(), ys.max()))
    wide = {"2011_000003": 500, "2011_000006": 500, "2011_000025": 500}
    cut = [(photo, x0, y0, min(x1, wide[photo] - 1), y1) for photo, x0, y0, x1, y1 in theirs]
    assert len(ours) == 9 and sorted(ours) == sorted(cut)  # a corner on the edge of the photo is cut off


def test_of_labelmes_primitives_lines_and_points_are_left_out_and_the_others_have_their_pixels(labelme):
    masks, _, findings = read("labelme", labelme / "primitives")
    assert counts(findings.left_out) == {"line shapes": 1, "point shapes": 1, "linestrip shapes": 1}
    (of_label,) = masks.values()
    pixels = {label: [int(mask.sum()) for mask in parts] for label, parts in of_label.items()}
    assert pixels.pop("rectangle") == [101 * 101, 152 * 103]
    assert pixels.pop("circle") == [pytest.approx(np.pi * (30**2 + 41**2), rel=0.01)]
    assert sorted(pixels) == ["octagon", "polygon"]


def test_a_photo_that_imagepath_does_not_name_is_found_by_the_name_of_its_label_file(labelme):
    masks, _, findings = read("labelme", labelme / "tutorial")
    assert nothing_left_out(findings) and [each.count for each in findings.noted.values()] == [1]
    drawn = np.array(Image.open(labelme / "tutorial/apc2016_obj3/label.png"))
    names, (of_label,) = lines(labelme / "tutorial/apc2016_obj3/label_names.txt"), masks.values()
    assert len(of_label) == 4
    for label, (mask,) in of_label.items():
        theirs = drawn == names.index(label)
        assert not (theirs & ~mask).any() and (drawn[mask & ~theirs] != 0).all()
    assert {label: int(mask.sum()) for label, (mask,) in of_label.items()}["shelf"] == 620641


def test_brush_masks_by_label_studios_own_encoder_are_read_to_the_last_pixel(labelme, brush, tmp_path):
    tasks, true = [], {}
    for number, name in enumerate(("2011_000003", "2011_000006", "2011_000025"), 1):
        indices = np.load(labelme / f"instance_segmentation/data_dataset_voc/SegmentationObjectNpy/{name}.npy")
        photo, regions = Photo(f"{name}.jpg", *indices.shape, ()), []
        Image.new("RGB", indices.shape[::-1]).save(tmp_path / photo.name)
        for index in np.unique(indices[indices > 0]).tolist():
            mask = indices == index
            rle = brush.mask2rle(mask.astype(np.uint8) * 255)
            value = {"format": "rle", "rle": rle, "brushlabels": [f"object {index}"]}
            regions.append(studio_region(photo, "brushlabels", value, f"r{index}"))
            true[f"{number}", f"object {index}"] = mask
        tasks.append(studio_task(number, photo, regions))
    write_json(tmp_path / "project.json", tasks)
    masks, _, findings = read("label_studio", tmp_path)
    assert nothing_left_out(findings)
    ours = {(photo, label): mask for photo, of in masks.items() for label, (mask,) in of.items()}
    assert len(ours) == len(true) == 12 and all(np.array_equal(ours[key], true[key]) for key in true)
