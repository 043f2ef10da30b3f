"""Tasks of Label Studio as it exports them, with an encoder of its run lengths written from their description."""

from itertools import pairwise

import numpy as np
from made_user_files import write_json


def brush_rle(mask, colour=(255, 255, 255, 255), sizes=(3, 4, 8, 16)):
    """Label Studio's bytes of a mask: RGBA pixels, those that are on in `colour`, as runs and single values."""
    values = (np.asarray(mask)[..., None] * np.array(colour, np.uint8)).ravel()
    bits = [f"{len(values):032b}", f"{8 - 1:05b}", *(f"{size - 1:04b}" for size in sizes)]
    changes = np.flatnonzero(np.diff(values)) + 1
    starts = [0, *changes.tolist(), len(values)]
    single: list[int] = []
    for first, end in pairwise(starts):
        if end - first == 1 and len(single) < 2 ** sizes[0]:
            single.append(int(values[first]))
            continue
        bits.append(_record(single, 0, sizes))
        single = []
        for start in range(first, end, 2 ** sizes[3]):
            length = min(end - start, 2 ** sizes[3])
            bits.append(_record([int(values[first])] * length, 1, sizes))
    text = "".join([*bits, _record(single, 0, sizes)])
    return [int(text[k : k + 8].ljust(8, "0"), 2) for k in range(0, len(text), 8)]


def _record(values, repeated, sizes):
    if not values:
        return ""
    which = next(k for k, size in enumerate(sizes) if len(values) <= 2**size)
    head = f"{repeated}{which:02b}{len(values) - 1:0{sizes[which]}b}"
    return head + "".join(f"{value:08b}" for value in (values[:1] if repeated else values))


def studio_region(photo, kind, value, region_id="r1", **more):
    size = {"original_width": photo.width, "original_height": photo.height, "image_rotation": 0}
    return size | {"id": region_id, "type": kind, "value": value, "from_name": "label", "to_name": "image"} | more


def studio_task(task_id, photo, regions, image=None, **more):
    annotation = {"id": 100 + task_id, "result": regions, "was_cancelled": False, "ground_truth": False}
    image = image or f"/data/upload/1/1a2b3c4d-{photo.name}"
    return {"id": task_id, "annotations": [annotation | more], "data": {"image": image}}


def write_label_studio(folder, photos, brush=True):
    """Tasks; every object a brush mask, or a polygon where it has just one part."""
    tasks = []
    for task_id, photo in enumerate(photos, 1):
        photo.save(folder / "images")
        regions = []
        for place, each in enumerate(photo.objects):
            if brush or len(each.rings) != 1:
                value = {"format": "rle", "rle": brush_rle(each.mask), "brushlabels": [each.label]}
                regions.append(studio_region(photo, "brushlabels", value, f"r{place}"))
            else:
                points = (np.reshape(each.rings[0], (-1, 2)) * [100 / photo.width, 100 / photo.height]).tolist()
                value = {"points": points, "closed": True, "polygonlabels": [each.label]}
                regions.append(studio_region(photo, "polygonlabels", value, f"r{place}"))
        tasks.append(studio_task(task_id, photo, regions))
    write_json(folder / "project-1.json", tasks)
