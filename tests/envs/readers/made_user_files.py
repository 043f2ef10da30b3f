"""Annotated photos written in the exact shape in which the tools of users write them, for readers to read back.

What is drawn is the same in every format; one that cannot hold all of it loses what its own tool would lose. Encoders
are written from the descriptions of the formats.
"""

import base64
import io
import json
import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from envs.geometry.rle import rle_from_mask
from envs.readers.base import Findings


@dataclass(frozen=True)
class Drawn:
    """One object."""

    label: str
    mask: np.ndarray
    """[H, W] its pixels."""
    rings: tuple = ()
    """Polygon parts [x, y, x, y, ...]; () for what was painted with a brush."""


@dataclass(frozen=True)
class Photo:
    """One photo and its objects, in order."""

    name: str
    """Name of its file."""
    height: int
    width: int
    objects: tuple
    file: Path | None = None
    """A real photo; None makes one of noise."""

    def save(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        if self.file is not None:
            shutil.copyfile(self.file, folder / self.name)
            return
        seed = sum(self.name.encode())
        pixels = np.random.default_rng(seed).integers(0, 256, (self.height, self.width, 3), np.uint8)
        Image.fromarray(pixels).save(folder / self.name)

    @property
    def stem(self):
        return Path(self.name).stem


def save_phone_photo(folder):
    """phone.png, lying on its side with EXIF orientation 6: upright it is 8 wide, 10 high, with a white box.

    Returns the photo as tools that turn it upright see it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    box = drawn_box("box", 3, 3, 6, 7, size=(10, 8))
    pixels = np.repeat(np.rot90(box.mask)[..., None] * np.uint8(255), 3, axis=2)
    Image.fromarray(np.ascontiguousarray(pixels)).save(folder / "phone.png", exif=exif)
    return Photo("phone.png", 10, 8, (box,), folder / "phone.png")


def box_mask(height, width, *box):
    x0, y0, x1, y1 = box
    mask = np.zeros((height, width), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def rectangle(x0, y0, x1, y1):
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def drawn_box(label, *box, size=(8, 10)):
    """A rectangle x0, y0, x1, y1 that is drawn as a polygon."""
    return Drawn(label, box_mask(*size, *box), (rectangle(*box),))


def brush_blob(label, seed=0, height=8, width=10):
    """A mask of pixels here and there in the right half, painted with a brush."""
    mask = np.random.default_rng(seed).random((height, width)) < 0.4
    mask[:, : width // 2] = False
    return Drawn(label, mask)


def two_photos():
    """Photos of 10 x 8 pixels: a.png with two cups and a dog, b.png with a dog."""
    cups = drawn_box("cup", 1, 1, 4, 4), drawn_box("cup", 0, 5, 4, 8)
    return (
        Photo("a.png", 8, 10, (*cups, brush_blob("dog"))),
        Photo("b.png", 8, 10, (drawn_box("dog", 2, 2, 9, 7),)),
    )


def classes_of(photos):
    """Classes, in the order in which they come first."""
    return list(dict.fromkeys(each.label for photo in photos for each in photo.objects))


def column_runs(mask):
    """Runs of off, on, off, ... pixels, column by column, as a list."""
    return row_runs(mask.T)


def row_runs(mask):
    """Runs of off, on, off, ... pixels, row by row, as a list that begins with off."""
    values = np.asarray(mask).ravel()
    changes = np.flatnonzero(np.diff(values)) + 1
    runs = np.diff([0, *changes.tolist(), len(values)]).tolist()
    return [0, *runs] if values[0] else runs


def coco_data(photos, first_class=1, brush=lambda mask: {"size": list(mask.shape), "counts": rle_from_mask(mask)}):
    """`images`, `annotations` and `categories`; brush: how a mask without a polygon is written."""
    classes = classes_of(photos)
    images = [{"id": k, "file_name": p.name, "height": p.height, "width": p.width} for k, p in enumerate(photos, 1)]
    annotations = [
        {
            "id": 0,
            "image_id": k,
            "category_id": first_class + classes.index(each.label),
            "segmentation": list(each.rings) or brush(each.mask),
            "iscrowd": 0,
        }
        for k, photo in enumerate(photos, 1)
        for each in photo.objects
    ]
    for k, each in enumerate(annotations, 1):
        each["id"] = k
    categories = [{"id": k, "name": name, "supercategory": ""} for k, name in enumerate(classes, first_class)]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_json(file, data):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(data))


def write_coco(folder, photos, split="train2017"):
    """COCO's own layout."""
    for photo in photos:
        photo.save(folder / split)
    write_json(folder / "annotations" / f"instances_{split}.json", coco_data(photos))


def write_roboflow(folder, photos, split="train"):
    """Roboflow's COCO export: class 0 is the project."""
    for photo in photos:
        photo.save(folder / split)
    data = coco_data(photos)
    for each in data["categories"]:
        each["supercategory"] = "things"
    data["categories"].insert(0, {"id": 0, "name": "things", "supercategory": "none"})
    write_json(folder / split / "_annotations.coco.json", data)


def write_cvat_coco(folder, photos, subset="default"):
    """CVAT's COCO 1.0 export: a brush mask is a list of run lengths with iscrowd 1."""
    for photo in photos:
        photo.save(folder / "images" / subset)
    data = coco_data(photos, brush=lambda mask: {"counts": column_runs(mask), "size": list(mask.shape)})
    info = dict.fromkeys(("contributor", "date_created", "description", "url", "version", "year"), "")
    for each in data["annotations"]:
        each["iscrowd"] = int(isinstance(each["segmentation"], dict))
        each["attributes"] = {"occluded": False}
    for each in data["images"]:
        each |= {"license": 0, "flickr_url": "", "coco_url": "", "date_captured": 0}
    head = {"licenses": [{"name": "", "id": 0, "url": ""}], "info": info}
    write_json(folder / "annotations" / f"instances_{subset}.json", head | data)


def write_cvat_xml(folder, photos):
    """CVAT for images 1.1; several polygons of an object are joined by a group."""
    lines = ['<?xml version="1.0" encoding="utf-8"?>', "<annotations>", "  <version>1.1</version>"]
    group = 0
    for k, photo in enumerate(photos):
        photo.save(folder / "images")
        lines.append(f'  <image id="{k}" name="{photo.name}" width="{photo.width}" height="{photo.height}">')
        for each in photo.objects:
            group += len(each.rings) > 1
            said = f' group_id="{group}"' if len(each.rings) > 1 else ""
            lines += [_xml_polygon(each.label, ring, said) for ring in each.rings] or [_xml_mask(each)]
        lines.append("  </image>")
    (folder / "annotations.xml").write_text("\n".join([*lines, "</annotations>", ""]))


def _xml_polygon(label, ring, said):
    points = ";".join(f"{x},{y}" for x, y in zip(ring[::2], ring[1::2], strict=True))
    return f'    <polygon label="{label}" source="manual" occluded="0" points="{points}" z_order="0"{said}></polygon>'


def _xml_mask(each):
    rows, columns = np.flatnonzero(each.mask.any(1)), np.flatnonzero(each.mask.any(0))
    top, left = rows[0], columns[0]
    box = each.mask[top : rows[-1] + 1, left : columns[-1] + 1]
    place = f'left="{left}" top="{top}" width="{box.shape[1]}" height="{box.shape[0]}"'
    rle = ", ".join(map(str, row_runs(box)))
    return f'    <mask label="{each.label}" source="manual" occluded="0" rle="{rle}" {place} z_order="0"></mask>'


def colours_of_ids(ids):
    """[H, W, 3] of ids: R + 256 G + 65536 B."""
    return np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=2).astype(np.uint8)


def write_panoptic(folder, photos, split="train2017"):
    """COCO panoptic; what is painted later lies above."""
    pngs = folder / "annotations" / f"panoptic_{split}"
    pngs.mkdir(parents=True)
    classes, entries = classes_of(photos), []
    for k, photo in enumerate(photos, 1):
        photo.save(folder / split)
        ids, segments = np.zeros((photo.height, photo.width), np.int64), []
        for place, each in enumerate(photo.objects, 1):
            ids[each.mask] = 70_001 * place  # all three channels are used
            segments.append({"id": 70_001 * place, "category_id": 1 + classes.index(each.label), "iscrowd": 0})
        segments = [each for each in segments if (ids == each["id"]).any()]
        Image.fromarray(colours_of_ids(ids)).save(pngs / f"{photo.stem}.png")
        entries.append({"image_id": k, "file_name": f"{photo.stem}.png", "segments_info": segments})
    data = coco_data(photos) | {"annotations": entries}
    for each in data["categories"]:
        each["isthing"] = 1
    write_json(folder / "annotations" / f"panoptic_{split}.json", data)


def png_text(array):
    """A PNG in base64."""
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def labelme_shape(label, points, kind="polygon", group=None, mask=None):
    return {
        "label": label,
        "points": points,
        "group_id": group,
        "description": "",
        "shape_type": kind,
        "flags": {},
        "mask": mask,
    }


def labelme_file(photo, shapes, **more):
    head = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": photo.name, "imageData": None}
    return head | {"imageHeight": photo.height, "imageWidth": photo.width} | more


def write_labelme(folder, photos):
    """A label file beside each photo; parts of an object are joined by a group, a brush mask is a PNG of its box."""
    for photo in photos:
        photo.save(folder)
        shapes = []
        for place, each in enumerate(photo.objects):
            group = place if len(each.rings) > 1 else None
            points = [np.reshape(ring, (-1, 2)).tolist() for ring in each.rings]
            shapes += [labelme_shape(each.label, ring, group=group) for ring in points] or [labelme_brush(each)]
        write_json(folder / f"{photo.stem}.json", labelme_file(photo, shapes))


def labelme_brush(each):
    rows, columns = np.flatnonzero(each.mask.any(1)), np.flatnonzero(each.mask.any(0))
    corners = [[int(columns[0]), int(rows[0])], [int(columns[-1]), int(rows[-1])]]
    box = each.mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return labelme_shape(each.label, corners, "mask", mask=png_text(box.astype(np.uint8)))


def write_yolo(folder, photos, split="train", yaml="path: /somewhere/else\ntrain: images/train\n"):
    """YOLO segmentation with %g numbers; only objects of one polygon can be held."""
    classes = classes_of(photos)
    labels = folder / "labels" / split
    labels.mkdir(parents=True, exist_ok=True)
    for photo in photos:
        photo.save(folder / "images" / split)
        lines = []
        for each in (each for each in photo.objects if len(each.rings) == 1):
            points = np.reshape(each.rings[0], (-1, 2)) / [photo.width, photo.height]
            numbers = " ".join(f"{number:g}" for number in points.ravel())
            lines.append(f"{classes.index(each.label)} {numbers}")
        (labels / f"{photo.stem}.txt").write_text("\n".join(lines) + "\n")
    names = "".join(f"  {k}: {name}\n" for k, name in enumerate(classes))
    (folder / "data.yaml").write_text(f"{yaml}names:\n{names}")


def save_palette(file, indices):
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(indices.astype(np.uint8), "L").convert("P")
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768, np.uint8).tobytes())
    image.putdata(indices.astype(np.uint8).ravel().tolist())
    image.save(file)


def write_voc(folder, photos, numbers, split="train", border=None):
    """VOC masks; numbers: class index of each label. What is painted later lies above; border: [H, W] void pixels."""
    (folder / "ImageSets/Segmentation").mkdir(parents=True, exist_ok=True)
    (folder / f"ImageSets/Segmentation/{split}.txt").write_text("".join(f"{photo.stem}\n" for photo in photos))
    for photo in photos:
        photo.save(folder / "JPEGImages")
        objects, classes = np.zeros((2, photo.height, photo.width), np.int64)
        for place, each in enumerate(photo.objects, 1):
            objects[each.mask], classes[each.mask] = place, numbers[each.label]
        if border is not None:
            objects[border] = classes[border] = 255
        save_palette(folder / "SegmentationObject" / f"{photo.stem}.png", objects)
        save_palette(folder / "SegmentationClass" / f"{photo.stem}.png", classes)


def write_folder(folder, photos):
    """phrases.csv: each label of a photo is a phrase, each object a mask image of 0 and 255."""
    lines = ["image,mask,phrase,split"]
    (folder / "masks").mkdir(parents=True, exist_ok=True)
    for photo in photos:
        photo.save(folder / "images")
        of_label = {label: [] for label in classes_of([photo])}
        for place, each in enumerate(photo.objects):
            name = f"{photo.stem}_{place}.png"
            Image.fromarray((each.mask * 255).astype(np.uint8)).save(folder / "masks" / name)
            of_label[each.label].append(name)
        lines += [f"{photo.name},{';'.join(names)},{label},train" for label, names in of_label.items()]
    (folder / "phrases.csv").write_text("\n".join(lines) + "\n")


def read_back(reader, photos, split="train"):
    """([(photo, label, expected masks, masks read)], findings) over all questions of a split; photos match by name."""
    findings, of_stem, found = Findings(), {photo.stem: photo for photo in photos}, []
    for given in reader.photos(split, findings):
        photo = of_stem[given.photo.path.stem]
        for one in pickle.loads(pickle.dumps(given.references)):  # as they travel to workers
            expected = [each.mask for each in photo.objects if each.label == one.parts[0]]
            found.append(
                (photo, one.parts[0], expected, [shape.mask(photo.height, photo.width) for shape in one.masks])
            )
    return found, findings


def num_exact(found):
    """How many objects were read back; every one of them must be so to the last pixel."""
    for photo, label, expected, read in found:
        assert len(expected) == len(read), (photo.name, label)
        for one, other in zip(expected, read, strict=True):
            np.testing.assert_array_equal(one, other, f"{photo.name} {label}")
    return sum(len(read) for _, _, _, read in found)


def counts(kind):
    """By reason, how many entries."""
    return {reason: finding.count for reason, finding in kind.items()}


def lost_ids(findings):
    """Questions that are lost, over all reasons."""
    return [which for finding in findings.lost.values() for which in finding.which]
