"""Two small photos with annotations in COCO's form, written where a test wants them."""

import json

import numpy as np
from PIL import Image


def rectangle(x0, y0, x1, y1):
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def annotation(ann_id, image_id, segmentation, category_id=1, iscrowd=0):
    return {
        "id": ann_id,
        "image_id": image_id,
        "category_id": category_id,
        "segmentation": segmentation,
        "iscrowd": iscrowd,
    }


def small_set(folder, annotations=None, phrases=None, **changes):
    """Settings of an Env over two photos of 10 x 8 pixels (ids 1 and 2) made in `folder`."""
    (folder / "images").mkdir(exist_ok=True)
    for k in (1, 2):
        pixels = np.random.default_rng(k).integers(0, 256, (8, 10, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{k}.png")
    data = {
        "licenses": [{"id": 4, "name": "Attribution License", "url": "http://creativecommons.org/licenses/by/2.0/"}],
        "categories": [{"id": 1, "name": "cup"}, {"id": 2, "name": "dog"}],
        "images": [{"id": k, "file_name": f"{k}.png", "height": 8, "width": 10, "license": 4} for k in (1, 2)],
        "annotations": annotations
        or [annotation(11, 1, [rectangle(1, 1, 4, 4)]), annotation(12, 2, [rectangle(0, 0, 5, 2)], 2)],
        **changes,
    }
    (folder / "instances.json").write_text(json.dumps(data))
    settings = {"annotations": str(folder / "instances.json"), "images": str(folder / "images"), "train_share": 1.0}
    if phrases is not None:
        (folder / "phrases.json").write_text(json.dumps(phrases))
        settings["phrases"] = str(folder / "phrases.json")
    return settings


def entry(image_id=1, ann_ids=(11,), phrases=("the cup",), **more):
    return {"image_id": image_id, "ann_ids": list(ann_ids), "phrases": list(phrases), **more}
