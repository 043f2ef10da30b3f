"""A data set of every format, small and whole, with what a reader must find there."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from made_field_sets import (
    OVERLAPPING,
    SQUARE,
    TRAIN,
    annotation,
    block,
    grefcoco,
    image,
    lvis_v1,
    mask_groups,
    parquet,
    photo,
    reasonseg,
    ref,
    refcoco,
    refcoco_m_rows,
    saved,
)
from made_label_studio import write_label_studio
from made_user_files import (
    two_photos,
    write_coco,
    write_cvat_xml,
    write_folder,
    write_labelme,
    write_panoptic,
    write_roboflow,
    write_voc,
    write_yolo,
)
from PIL import Image


@dataclass(frozen=True)
class Whole:
    """A data set as `write` makes it in a folder."""

    write: Callable[[Path], object]
    split: str
    """A split of it."""
    questions: int
    """Questions of that split that can be asked."""
    masks: int
    """Masks that these mean together."""
    lost: int = 0
    """Questions of that split that cannot be asked."""


def _of_tool(write):
    return lambda folder: write(folder, two_photos())


def _voc(folder):
    write_voc(folder, two_photos(), {"cup": 5, "dog": 12})


def _cris(folder):
    photo(folder.parent.parent / "images/train2014" / TRAIN.format(1))
    masks = folder.parent.parent / "masks" / folder.name
    masks.mkdir(parents=True)
    Image.fromarray(np.where(block(3, 4, 20, 31), 255, 0).astype(np.uint8)).save(masks / "7.png")
    sentences = [{"idx": k, "sent_id": k, "sent": text} for k, text in enumerate(("left cup", "the cup"))]
    named = {"bbox": [1, 2, 3, 4], "cat": 7, "segment_id": 7, "img_name": TRAIN.format(1)}
    saved(folder / "train.json", [{**named, "sentences": sentences, "sentences_num": 2}])


def _seqtr(folder):
    photo(folder / "train2014" / TRAIN.format(1))
    head = {"bbox": [1, 2, 3, 4], "image_id": 1, "height": 40, "width": 60, "data_source": "refcoco_unc"}
    rows = [(SQUARE, ["left cup", "the cup"]), (OVERLAPPING, ["odd one"])]
    saved(folder / "instances.json", {"train": [{**head, "mask": mask, "expressions": texts} for mask, texts in rows]})


def _refcoco_m(folder):
    rows = refcoco_m_rows(folder / "train2014")
    parquet(folder / "data/validation-00000-of-00001.parquet", rows)


def _refcoco_rows(folder):
    photo(folder / "train2014" / TRAIN.format(1))
    row = ref(1, 11, 1, ["Left Cup", "it"])
    more = {
        "raw_anns": json.dumps(annotation(11, 1, OVERLAPPING)),
        "raw_image_info": json.dumps(image(1, TRAIN.format(1))),
        "raw_sentences": json.dumps(row["sentences"]),
        "image_path": f"coco/train2014/{TRAIN.format(1)}",
        "bbox": [1.0, 1.0, 3.0, 3.0],
        "captions": ["left cup", "it"],
        "global_image_id": "coco.1",
        "anns_id": "coco.11",
    }
    parquet(folder / "data/testB-00000-of-00001.parquet", [row | more])


def _maskgroups(folder):
    photo(folder / "images_resized/one.jpg")
    parquet(folder / "data/validation-00000-of-00001.parquet", mask_groups())


EVERY = {
    "coco": Whole(_of_tool(write_coco), "train", 3, 4),
    "cris": Whole(_cris, "train", 2, 2),
    "cvat": Whole(_of_tool(write_cvat_xml), "train", 3, 4),
    "folder": Whole(_of_tool(write_folder), "train", 3, 4),
    "grefcoco": Whole(grefcoco, "train", 3, 4, 3),
    "label_studio": Whole(_of_tool(write_label_studio), "train", 3, 4),
    "labelme": Whole(_of_tool(write_labelme), "train", 3, 4),
    "lvis": Whole(lvis_v1, "train", 2, 2),
    "maskgroups": Whole(_maskgroups, "validation", 2, 3),
    "panoptic": Whole(_of_tool(write_panoptic), "train", 3, 4),
    "reasonseg": Whole(reasonseg, "train", 2, 2),
    "refcoco": Whole(refcoco, "train", 3, 3),
    "refcoco_m": Whole(_refcoco_m, "validation", 4, 4),
    "refcoco_rows": Whole(_refcoco_rows, "testB", 2, 2),
    "roboflow": Whole(_of_tool(write_roboflow), "train", 3, 4),
    "seqtr": Whole(_seqtr, "train", 3, 3),
    "voc_masks": Whole(_voc, "train", 3, 4),
    "yolo_seg": Whole(_of_tool(write_yolo), "train", 2, 3),
}
"""By reader."""
