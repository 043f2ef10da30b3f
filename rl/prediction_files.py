"""What `polytrace predict` hands out: an SVG path, a mask, numbers for programs, a table for people."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.table import Table

from rl.json_text import json_text
from rl.pictures import COLOURS, svg_overlay
from rl.predict import Prediction
from rl.vector import path_svg, visible_box_px
from rollout.disk import refuse_unwritable, whole_file

SUFFIXES = {"svg": ".svg", "png": ".png", "json": ".json"}


def check_outputs(outputs: Mapping[str, Path | None], image: Path) -> None:
    """Raise ValueError for a file that does not end as its kind should, is the image itself, or cannot be written."""
    for kind, path in outputs.items():
        if path is None:
            continue
        if path.suffix.lower() != SUFFIXES[kind]:
            raise ValueError(f"--{kind} is {path}, which does not end in {SUFFIXES[kind]}; give a name that does.")
        if path.exists() and image.exists() and path.samefile(image):
            raise ValueError(f"--{kind} is {path}, the image itself; give another name, so that it is kept.")
        refuse_unwritable(path)


def svg_of(prediction: Prediction, over: Image.Image | None = None) -> str:
    """The path as an SVG document in the image's pixels; `over`: the RGB image to lay under it, in colour then."""
    height, width = prediction.mask.shape
    title = "".join(c if c.isprintable() else " " for c in prediction.phrase)  # others cannot stand in XML
    if over is None:
        return path_svg(prediction.rings_px, height, width, title)
    colour = COLOURS["rl" if prediction.path_iou is None else "refined"]
    return svg_overlay(np.asarray(over), prediction.rings_px, colour, title) + "\n"


def png_of(prediction: Prediction) -> bytes:
    """The mask as an 8-bit grey PNG, 255 inside and 0 outside."""
    buffer = io.BytesIO()
    Image.fromarray(prediction.mask.astype(np.uint8) * 255).save(buffer, "png")
    return buffer.getvalue()


def numbers_of(prediction: Prediction) -> dict[str, Any]:
    """The answer for a program (docs/predict.md); every length in pixels of the image, None where nothing is known."""
    height, width = prediction.mask.shape
    refined = prediction.refined
    return {
        "phrase": prediction.phrase,
        "height": height,
        "width": width,
        "view": {"height": prediction.view[0], "width": prediction.view[1]},
        "status": prediction.status.value,
        "text": prediction.text,
        "box": visible_box_px(prediction.mask),
        "area": int(prediction.mask.sum()),
        "rings": [ring.tolist() for ring in prediction.rings_px],
        "predicted_iou": None if refined is None else refined.predicted_iou,
        "coarse_iou": None if refined is None else refined.coarse_iou,
        "passes": 0 if refined is None else refined.passes,
        "taken": 0 if refined is None else refined.taken,
        "path_iou": prediction.path_iou,
    }


def table_of(prediction: Prediction) -> Table:
    """The answer for a person."""
    numbers, refined = numbers_of(prediction), prediction.refined
    height, width = prediction.mask.shape
    table = Table("", "answer", title=None, show_header=False)
    table.add_row("status", prediction.status.value)
    table.add_row("rings, vertices", f"{len(prediction.rings_px)}, {prediction.num_vertices}")
    table.add_row("area", f"{numbers['area']:,} px of {height * width:,}")
    table.add_row("box", "-" if numbers["box"] is None else " ".join(map(str, numbers["box"])))
    table.add_row("predicted IoU", "-" if refined is None else f"{refined.predicted_iou:.3f}")
    table.add_row("of the policy's outline", "-" if refined is None else f"{refined.coarse_iou:.3f}")
    table.add_row("passes of the refiner", "-" if refined is None else f"{refined.passes}, taken {refined.taken}")
    table.add_row("image, shown as", f"{width} x {height}, {prediction.view[1]} x {prediction.view[0]}")
    return table


def write_prediction(
    prediction: Prediction, outputs: Mapping[str, Path | None], over: Image.Image | None = None
) -> list[Path]:
    """Write the files asked for by kind (svg, png, json), each whole or not at all; returns those written."""
    written = []
    for kind, path in outputs.items():
        if path is None:
            continue
        if kind == "png":
            content = png_of(prediction)
        elif kind == "svg":
            content = svg_of(prediction, over).encode()
        else:
            content = (json_text(numbers_of(prediction)) + "\n").encode()
        with whole_file(path) as partial:
            partial.write_bytes(content)
        written.append(path)
    return written
