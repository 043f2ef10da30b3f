"""Labelling jobs over composed scenes and over a few photos with boxes from a file."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console

from rl.config.label import LabelConfig

QUIET = Console(quiet=True)
STAGES = [
    {"name": "policy_boxes", "checkpoint": "tiny_few", "most_names": 1},
    {"name": "grabcut", "iterations": 1},
    {"name": "clean", "least_share": 0.01},
    {"name": "templates"},
    {"name": "found_again", "checkpoint": "tiny", "least_mask_iou": 0.5},
]


def config(out: Path, num: int = 24, **changes: Any) -> LabelConfig:
    images = {"name": "composed", "num": num, "env": {"image_size": 64}}
    settings: dict[str, Any] = {"in_process": True, "block_images": 8, "images": images, "stages": STAGES}
    return LabelConfig(out=str(out), **{**settings, **changes})


def photos(folder: Path) -> Path:
    folder.mkdir()
    for k in range(3):
        scene = np.kron(np.random.default_rng(k).integers(0, 255, (6, 8, 3), np.uint8), np.ones((12, 12, 1), np.uint8))
        Image.fromarray(scene).save(folder / f"{k}.png")
    copy = Image.open(folder / "1.png").resize((72, 54))
    copy.save(folder / "9.jpg", quality=80)  # a smaller copy, recompressed
    return folder


BOXES = [{"name": "file_boxes", "path": "boxes.json"}, {"name": "grabcut", "least_share": 0.0}, {"name": "templates"}]


def with_boxes(folder: Path, out: Path, boxes: dict[str, list[float]], **changes: Any) -> LabelConfig:
    sizes = {path.name: Image.open(path).size for path in sorted(folder.iterdir())}
    held = {
        "images": [{"id": k, "file_name": n, "width": w, "height": h} for k, (n, (w, h)) in enumerate(sizes.items())],
        "categories": [{"id": 1, "name": "box"}],
        "annotations": [
            {"image_id": k, "category_id": 1, "bbox": boxes[name]} for k, name in enumerate(sizes) if name in boxes
        ],
    }
    path = folder.parent / "boxes.json"
    path.write_text(json.dumps(held))
    stages = [{**BOXES[0], "path": str(path)}, *BOXES[1:]]
    images = {"name": "folder", "path": str(folder)}
    return LabelConfig(**{"out": str(out), "images": images, "stages": stages, "in_process": True, **changes})
