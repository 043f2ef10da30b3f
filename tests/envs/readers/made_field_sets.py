"""Files of the sets that the field uses, in their exact shape, over small photos that are made here."""

import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from pycocotools import mask as coco_mask

HEIGHT, WIDTH = 40, 60
TRAIN = "COCO_train2014_{:012d}.jpg"

SQUARE = [[5.0, 5.0, 25.5, 5.0, 25.5, 20.25, 5.0, 20.25]]
OVERLAPPING = [[10.0, 10.0, 30.0, 10.0, 30.0, 30.0, 10.0, 30.0], [20.0, 20.0, 45.0, 20.0, 45.0, 35.5, 20.0, 35.5]]
TRIANGLE = [[40.3, 3.2, 55.9, 18.4, 33.1, 27.7]]
CROWD = {"size": [HEIGHT, WIDTH], "counts": [10, 100, 300, 90, 1900]}


def photo(path, size=(HEIGHT, WIDTH), **saved):
    """A small photo of (H, W) pixels at `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = size
    ramp = np.linspace(0, 255, height * width * 3).astype(np.uint8).reshape(height, width, 3)
    Image.fromarray(ramp).save(path, **saved)
    return path


def encoded(path):
    """The bytes of a photo, as the hub keeps them beside a path."""
    return {"bytes": photo(path).read_bytes(), "path": path.name}


def run_lengths(mask):
    """RLE(s) of a mask, as pycocotools writes it."""
    found = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(map(int, found["size"])), "counts": found["counts"].decode("ascii")}


def block(top, left, bottom, right, size=(HEIGHT, WIDTH)):
    """A mask that is on in rows top..bottom - 1 and columns left..right - 1."""
    mask = np.zeros(size, bool)
    mask[top:bottom, left:right] = True
    return mask


def by_pycocotools(segmentation, height=HEIGHT, width=WIDTH):
    """The mask of a segmentation, made by pycocotools."""
    packed = isinstance(segmentation, dict) and isinstance(segmentation["counts"], str)
    found = segmentation if packed else coco_mask.frPyObjects(segmentation, height, width)
    return coco_mask.decode(coco_mask.merge(found) if isinstance(found, list) else found).astype(bool)


def saved(path, data, **settings):
    """Data as a JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, **settings), encoding="utf-8")
    return path


def image(image_id, name, **more):
    return {"id": image_id, "file_name": name, "height": HEIGHT, "width": WIDTH, "license": 1, **more}


def annotation(ann_id, image_id, segmentation, **more):
    return {
        "id": ann_id,
        "image_id": image_id,
        "category_id": 1,
        "segmentation": segmentation,
        "area": 100.0,
        "bbox": [1.0, 1.0, 2.0, 2.0],
        "iscrowd": 0,
        **more,
    }


def instances(folder, annotations, images):
    """The `instances.json` of a set."""
    licences = [{"id": 1, "name": "Attribution License", "url": "http://creativecommons.org/licenses/by/2.0/"}]
    categories = [{"id": 1, "name": "cup", "supercategory": "kitchen"}]
    data = {"info": {}, "licenses": licences, "images": images, "annotations": annotations, "categories": categories}
    return saved(folder / "instances.json", data)


def ref(ref_id, ann_id, image_id, texts, split="train"):
    """One reference as `refs(*).p` has it; its file name is not that of the photo."""
    sent_ids = [100 * ref_id + place for place in range(len(texts))]
    sentences = [
        {"sent_id": sent_id, "sent": text.lower(), "raw": text, "tokens": text.lower().split()}
        for sent_id, text in zip(sent_ids, texts, strict=True)
    ]
    return {
        "ref_id": ref_id,
        "ann_id": ann_id,
        "image_id": image_id,
        "category_id": 1,
        "file_name": TRAIN.format(image_id).replace(".jpg", f"_{ref_id}.jpg"),
        "split": split,
        "sent_ids": sent_ids,
        "sentences": sentences,
    }


def refcoco(folder, refs=None, photos="images", annotations=None):
    """A set of the RefCOCO family: three sentences of one object, a testAB ref, overlapping parts, a val ref."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = annotations or [
        annotation(11, 1, SQUARE),
        annotation(12, 1, OVERLAPPING),
        annotation(13, 2, CROWD, iscrowd=1),
        annotation(14, 2, TRIANGLE),
    ]
    instances(folder, kept, [image(image_id, TRAIN.format(image_id)) for image_id in (1, 2)])
    refs = refs or [
        ref(1, 11, 1, ["Left Cup", "the cup!", "cup on the left"]),
        ref(2, 12, 1, ["The odd one"], "testAB"),
        ref(3, 14, 2, ["Tent"], "val"),
        ref(4, 14, 2, ["triangle"], "testB"),
    ]
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    for image_id in (1, 2) if photos else ():
        photo(folder / photos / TRAIN.format(image_id))
    return folder


def refclef(folder):
    """RefCLEF: text ids, photos named by number, a mask as a list of one RLE(s)."""
    mask = block(3, 4, 20, 31)
    instances(folder, [annotation("8756_2", 8756, [run_lengths(mask)])], [image(8756, "8756.jpg")])
    refs = [ref(1, "8756_2", 8756, ["the sky"], "testA") | {"file_name": "8756_2.jpg"}]
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    photo(folder / "saiapr_tc-12" / "8756.jpg")
    return mask


def grefcoco(folder):
    """gRefCOCO: none, one, three and a crowd meant, and rows that say too little."""
    kept = [
        annotation(11, 1, SQUARE),
        annotation(12, 1, OVERLAPPING),
        annotation(15, 1, TRIANGLE),
        annotation(13, 2, CROWD, iscrowd=1),
    ]
    instances(folder, kept, [image(image_id, TRAIN.format(image_id)) for image_id in (1, 2)])
    grefs = [
        ref(1, [-1], 1, ["a whale"]) | {"category_id": [-1], "no_target": True},
        ref(2, [11], 1, ["left cup"]) | {"no_target": False},
        ref(3, [11, 12, 15], 1, ["all three"]) | {"no_target": False},
        ref(4, [13], 2, ["the people"], "val") | {"no_target": False},
        {"ref_id": 5, "image_id": 2, "file_name": "x.jpg", "ann_id": [13], "split": "train", "no_target": False},
        {key: value for key, value in ref(6, 0, 2, ["what"]).items() if key != "ann_id"},
        ref(7, [12], 1, ["both at once"]) | {"no_target": True},
    ]
    saved(folder / "grefs(unc).json", grefs)
    for image_id in (1, 2):
        photo(folder / "images" / TRAIN.format(image_id))
    return grefs


def lvis_v1(folder, split="train"):
    """LVIS v1: no file names, a photo in train2017, a class partly drawn, absent classes, senses in brackets."""
    categories = [
        {"id": 1, "name": "bat_(animal)", "synonyms": ["bat_(animal)"], "frequency": "r"},
        {"id": 2, "name": "trash_can", "synonyms": ["trash_can", "dust_bin", "bin"], "frequency": "f"},
        {"id": 3, "name": "bow_(weapon)", "synonyms": ["bow_(weapon)"], "frequency": "r"},
        {"id": 4, "name": "bow_(decorative_ribbons)", "synonyms": ["bow_(decorative_ribbons)"], "frequency": "c"},
        {"id": 5, "name": "cab_(taxi)", "synonyms": ["cab_(taxi)", "taxi"], "frequency": "c"},
    ]
    entry = {
        "id": 7,
        "height": HEIGHT,
        "width": WIDTH,
        "license": 1,
        "flickr_url": "",
        "coco_url": "http://images.cocodataset.org/train2017/000000000007.jpg",
        "not_exhaustive_category_ids": [3],
        "neg_category_ids": [1, 4, 5],
    }
    kept = [
        annotation(21, 7, SQUARE, category_id=2),
        annotation(22, 7, TRIANGLE, category_id=2),
        annotation(23, 7, TRIANGLE, category_id=3),
    ]
    for each in kept:
        del each["iscrowd"]
    data = {"info": {}, "licenses": [], "images": [entry], "annotations": kept, "categories": categories}
    saved(folder / f"lvis_v1_{split}.json", data)
    photo(folder / "train2017" / "000000000007.jpg")
    return data


def reasonseg(folder):
    """ReasonSeg: texts in cp1252, what is small above what is large, a flag, and a test file without shapes."""

    def shape(label, *points):
        return {"label": label, "points": [list(point) for point in points], "shape_type": "polygon"}

    shapes = [
        shape("target", (12.9, 12.9), (15.2, 12.0), (15.0, 15.7), (12.0, 15.0)),
        shape("ignore region", (10, 10), (29, 10), (29, 29), (10, 29)),
        shape("Flag", (0, 0), (59, 0), (59, 39), (0, 39)),
        shape("target", (35, 5), (55, 5), (55, 35), (35, 35)),
        shape("IGNORE", (40, 10), (44, 10), (44, 14), (40, 14)),
    ]
    entry = {"text": ["the café", "where one eats"], "is_sentence": False, "shapes": shapes}
    for split, texts in (("train", entry["text"]), ("val", ["first", "second"])):
        (folder / split).mkdir(parents=True, exist_ok=True)
        data = json.dumps(entry | {"text": texts}, ensure_ascii=False).encode("cp1252")
        (folder / split / "one.json").write_bytes(data)
        photo(folder / split / "one.jpg")
    saved(folder / "test" / "bare.json", {"text": ["nothing"], "is_sentence": True, "shapes": []})
    photo(folder / "test" / "bare.jpg")
    return shapes


def parquet(path, rows):
    """Rows as a Parquet file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def refcoco_m_rows(scratch):
    """RefCOCO-M: two photos, of which one has two samples."""

    def sample(number, mask, *sentences):
        return {
            "id": number,
            "image_id": 1,
            "category": "cup",
            "supercategory": "kitchen",
            "label": "cup",
            "sentences": list(sentences),
            "bbox": [1.0, 2.0, 3.0, 4.0],
            "mask": run_lengths(mask),
        }

    first = [sample(501, block(2, 3, 9, 30), "left cup", "the cup"), sample(502, block(20, 20, 30, 50), "plate")]
    return [
        {
            "image": encoded(Path(scratch) / TRAIN.format(number)),
            "image_id": number,
            "file_name": TRAIN.format(number),
            "samples": samples,
        }
        for number, samples in ((1, first), (2, [sample(503, block(0, 0, 40, 1), "edge")]))
    ]


def mask_groups():
    """MaskGroups: words alone, and words with a region between them."""
    truth = [run_lengths(block(2, 3, 9, 30)), run_lengths(block(20, 20, 30, 50)), run_lengths(block(0, 50, 9, 60))]
    pool = [run_lengths(block(2, 3, 9, 29)), run_lengths(block(20, 20, 31, 50))]
    asked = (("1", "all cups", [[0, 2]], []), ("2", "cups right of <mask-ref> on the table", [[2]], [1]))
    return [
        {
            "id": number,
            "image": "one.jpg",
            "conversations": [
                {"from": "human", "value": f"<image>\nCandidates: <mask_pool>\n{words}"},
                {"from": "gpt", "value": "<mask-group>"},
            ],
            "mask_pool": pool,
            "gt_mask_pool": truth,
            "gt_mask_group": group,
            "mask_ref": regions,
        }
        for number, words, group, regions in asked
    ]
