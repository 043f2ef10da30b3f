"""Labels reviewed by people: a sample as tasks of Label Studio, and the corrected export read back.

The photos are written as they are shown, so that outlines lie on them whatever tool shows them; labels are outlines to
be kept, moved or deleted. An export is read by the reader label_studio (envs/readers), so that it can be trained on
too: `polytrace data prepare EXPORT --images OUT/review/images`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.table import Table

from envs.geometry.contours import rings_from_mask
from envs.geometry.masks import iou
from envs.geometry.rle import mask_from_rle
from envs.readers.base import Findings
from envs.readers.label_studio import Reader
from rl.config.label import images_plugin
from rl.labels.report import LabelReport
from rollout.disk import replace_text, whole_file
from rollout.label.images.base import Images
from rollout.label.objects import read_objects

FOLDER, TASKS, INTERFACE = "review", "tasks.json", "interface.xml"
UNCHANGED = 0.98
"""IoU with the corrected mask from which a label was left as it was."""
_INTERFACE = """<View>
  <Image name="image" value="$image" zoom="true"/>
  <PolygonLabels name="label" toName="image" value="$labels" strokeWidth="2"/>
</View>
"""


@dataclass(frozen=True)
class Asked:
    """The labels of an image."""

    image: int
    height: int
    width: int
    masks: Mapping[str, list[NDArray[np.bool_]]]
    """Masks [H, W] of the objects of each phrase."""

    @property
    def name(self) -> str:
        """Name of the file that people see."""
        return f"image-{self.image:08d}.png"


def write_tasks(out: Path, num: int, seed: int) -> int:
    """Write a seeded sample of images with labels as OUT/review/tasks.json, with the photos and the interface beside;
    returns how many.

    Raises ValueError where there is no label, or a photo is not to be had any more.
    """
    report = LabelReport(out)
    labelled = sorted({row["image"] for row in report.kept})
    if not labelled:
        raise ValueError(f"{out} holds no label to review.")
    chosen = np.random.default_rng(seed).choice(len(labelled), min(num, len(labelled)), replace=False)
    images = cast(Images, images_plugin(report.provenance["images"]).build())
    tasks, folder = [], out / FOLDER
    for asked in labels_of(out, {labelled[k] for k in chosen}):
        shown = images.read(asked.image)
        if shown.pixels.shape[:2] != (asked.height, asked.width):
            raise ValueError(
                f"image {asked.image} of {report.provenance['images']} is not there as it was labelled; put it back."
            )
        path = folder / "images" / asked.name
        with whole_file(path) as partial:
            Image.fromarray(shown.pixels).save(partial, "png")
        tasks.append(_task(asked, f"{out.name}"))
    replace_text(folder / TASKS, json.dumps(tasks, indent=1))
    replace_text(folder / INTERFACE, _INTERFACE)
    return len(tasks)


def labels_of(out: Path, images: set[int]) -> Iterator[Asked]:
    """The labels of these images, in their order."""
    for table in read_objects(out, ("image", "height", "width", "phrase", "mask", "example_id")):
        rows: dict[int, list[dict[str, Any]]] = {}
        for row in table.to_pylist():
            if row["image"] in images and row["example_id"]:
                rows.setdefault(row["image"], []).append(row)
        for image, labels in rows.items():
            masks: dict[str, list[NDArray[np.bool_]]] = {}
            height, width = labels[0]["height"], labels[0]["width"]
            for row in labels:
                masks.setdefault(row["phrase"], []).append(mask_from_rle(row["mask"], height, width))
            yield Asked(image, height, width, masks)


def _task(asked: Asked, model: str) -> dict[str, Any]:
    """A task with the labels as predictions, an outline a ring, in percent of the photo."""
    scale = 100 / np.array([asked.width, asked.height])
    result = [
        {
            "id": f"{asked.image}-{place}-{k}",
            "type": "polygonlabels",
            "from_name": "label",
            "to_name": "image",
            "original_width": asked.width,
            "original_height": asked.height,
            "image_rotation": 0,
            "value": {"points": (ring * scale).tolist(), "polygonlabels": [phrase], "closed": True},
        }
        for place, (phrase, mask) in enumerate((phrase, mask) for phrase, held in asked.masks.items() for mask in held)
        for k, ring in enumerate(rings_from_mask(mask))
    ]
    data = {"image": f"/data/local-files/?d={FOLDER}/images/{asked.name}", "labels": _choices(asked)}
    return {"data": data, "predictions": [{"model_version": model, "result": result}]}


def _choices(asked: Asked) -> list[dict[str, str]]:
    return [{"value": phrase} for phrase in asked.masks]


@dataclass(frozen=True)
class Review:
    """What people made of the labels that they saw."""

    images: int
    """Images of the export that are images of the review."""
    ious: Mapping[tuple[int, str], float]
    """By image and phrase, IoU of a label with what people left there; 0 where they deleted it."""
    added: int
    """Phrases that people asked for and no label had."""

    @property
    def unchanged(self) -> float:
        """Share of the labels that were left as they were."""
        return float(np.mean([value >= UNCHANGED for value in self.ious.values()]))

    @property
    def deleted(self) -> float:
        """Share of the labels that were deleted."""
        return float(np.mean([value == 0 for value in self.ious.values()]))

    @property
    def mean_iou(self) -> float:
        """Mean IoU of the labels with what people made of them: their precision."""
        return float(np.mean(list(self.ious.values())))

    def interval(self) -> tuple[float, float]:
        """95 % of that mean, by bootstrap over labels."""
        values = np.array(list(self.ious.values()))
        drawn = np.random.default_rng(0).integers(0, len(values), (2000, len(values)))
        low, high = np.quantile(values[drawn].mean(axis=1), [0.025, 0.975])
        return float(low), float(high)

    def as_json(self) -> dict[str, Any]:
        """The numbers for a program."""
        low, high = self.interval()
        return {
            "images": self.images,
            "labels": len(self.ious),
            "mean_iou": {"value": self.mean_iou, "low": low, "high": high},
            "unchanged": self.unchanged,
            "deleted": self.deleted,
            "added": self.added,
        }


def read_review(out: Path, export: Path) -> Review:
    """Compare the labels of a folder with a corrected export of their review.

    Raises FileNotFoundError or ValueError where the export is none, or has no image of this review.
    """
    reader = Reader(str(export), images=str(out / FOLDER / "images"))
    corrected: dict[str, dict[str, NDArray[np.bool_]]] = {}
    reviewed = _reviewed(export)
    for photo in reader.photos("train", Findings()):
        with Image.open(photo.photo.path) as opened:
            size = (opened.height, opened.width)
        for one in photo.references:
            words = " ".join(part for part in one.parts if isinstance(part, str))
            union = np.zeros(size, np.bool_)
            for shape in one.masks:
                union |= shape.mask(*size)
            corrected.setdefault(photo.photo.path.name, {})[words] = union
    report = LabelReport(out)
    labelled = {row["image"] for row in report.kept}
    ious: dict[tuple[int, str], float] = {}
    images = added = 0
    for asked in labels_of(out, labelled):
        if asked.name not in reviewed:
            continue
        images += 1
        theirs = corrected.get(asked.name, {})
        added += len(theirs.keys() - asked.masks.keys())
        for phrase, masks in asked.masks.items():
            ours = np.asarray(np.array(masks).any(axis=0))
            ious[asked.image, phrase] = iou(ours, theirs[phrase]) if phrase in theirs else 0.0
    if not ious:
        raise ValueError(f"{export} has no image of the review of {out}; give an export of {out / FOLDER / TASKS}.")
    return Review(images, ious, added)


def _reviewed(export: Path) -> set[str]:
    """Names of the photos whose tasks somebody annotated; of a photo left without an outline, all was deleted."""
    tasks = json.loads(export.read_text(encoding="utf-8"))
    done = [task for task in tasks if _is_done(task)]
    return {str(task["data"]["image"]).rpartition("/")[2].partition("?")[0] for task in done}


def _is_done(task: Any) -> bool:
    annotations: Sequence[Any] = task.get("annotations") or () if isinstance(task, dict) else ()
    return any(isinstance(each, dict) and not each.get("was_cancelled") for each in annotations)


def table_of(review: Review) -> Table:
    """A review, for a person."""
    low, high = review.interval()
    table = Table("", "labels", title=f"Review of {review.images:,} images", title_justify="left", show_header=False)
    table.add_row("labels seen", f"{len(review.ious):,}")
    table.add_row("mean IoU with what people made of them", f"{review.mean_iou:.3f} [{low:.3f}, {high:.3f}]")
    table.add_row("left as they were", f"{review.unchanged:.1%}")
    table.add_row("deleted", f"{review.deleted:.1%}")
    table.add_row("phrases added", f"{review.added:,}")
    return table
