"""The files of a large data set prepared: time and memory of reading a made-up file as large as LVIS, and of drawing.

Reading goes over every annotation without opening a photo. Drawing opens photos, fills masks and writes shards, of as
many photos as are asked for. Both have a process of their own (`python -m rl.bench.prepare KIND FOLDER ...`, which
prints a line of JSON), so that the memory is theirs: the peak of what is resident, in which the pages of the file count
that the system keeps and would give back, and what is unique to the process at its end, which leaves them out.
"""

import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil
from PIL import Image
from rich.console import Console
from rich.table import Table

from envs.datasets.shards import Env as Shards
from envs.images import View
from envs.readers.base import Findings
from envs.readers.lvis import Reader
from rl.pages.progress import bar
from rl.run.metrics import JobUsage
from rl.sources.leaks import HeldOut
from rl.sources.prepare import Preparation, prepare_source
from rl.sources.source import source_of

PHOTOS, QUICK_PHOTOS = 100_170, 5_000
"""Photos of LVIS v1 train, and of a quick measurement."""
DRAWN = 5_000
"""Photos that are opened and drawn."""
BAR_GB = 2.0
"""Most memory of a preparation."""
_ANNOTATIONS_A_PHOTO, _CLASSES, _VERTICES, _DISTINCT = 12.7, 1203, 24, 16
_HEIGHT, _WIDTH = 480, 640


@dataclass(frozen=True)
class PrepareBench:
    """What was measured."""

    photos: int
    annotations: int
    file_mb: float
    """Size of the file of annotations."""
    read_seconds: float
    """Time to go over all annotations."""
    read_peak_gb: float
    """Peak of resident memory meanwhile, pages of the file included."""
    read_unique_gb: float
    """Memory of its own at the end."""
    drawn: int
    """Photos that were prepared."""
    prepare_seconds: float
    """Time of preparing these, in two processes."""
    prepare_peak_gb: float
    """Peak of resident memory of all its processes together."""
    examples: int
    """Examples in the shards."""
    open_seconds: float
    """Time of opening them."""


def write_files(folder: Path, photos: int, console: Console) -> int:
    """Write a made-up LVIS file and its photos, few of them different; returns the number of annotations."""
    rng, images = np.random.default_rng(0), folder / "coco" / "train2017"
    images.mkdir(parents=True, exist_ok=True)
    for k in range(_DISTINCT):
        coarse = rng.integers(0, 256, (_HEIGHT // 16, _WIDTH // 16, 3), np.uint8)
        Image.fromarray(coarse).resize((_WIDTH, _HEIGHT), Image.Resampling.BICUBIC).save(folder / f"{k}.jpg")
    counts = rng.poisson(_ANNOTATIONS_A_PHOTO, photos)
    number = 0
    with (folder / "lvis_v1_train.json").open("w") as file:
        categories = [{"id": k + 1, "name": f"thing_{k + 1}", "synonyms": [f"thing_{k + 1}"]} for k in range(_CLASSES)]
        file.write(f'{{"categories": {json.dumps(categories)}, "images": [')
        for k in range(photos):
            os.link(folder / f"{k % _DISTINCT}.jpg", images / f"{k + 1:012d}.jpg")
            file.write((", " if k else "") + json.dumps(_image(k + 1)))
        file.write('], "annotations": [')
        for k in bar(range(photos), "writing the file", console):
            for _ in range(counts[k]):
                number += 1
                file.write((", " if number > 1 else "") + json.dumps(_annotation(number, k + 1, rng)))
        file.write("]}")
    return number


def _image(image_id: int) -> dict[str, object]:
    address = f"http://images.cocodataset.org/train2017/{image_id:012d}.jpg"
    absent = {"neg_category_ids": [image_id % _CLASSES + 1], "not_exhaustive_category_ids": []}
    return {"id": image_id, "height": _HEIGHT, "width": _WIDTH, "license": 1, "coco_url": address} | absent


def _annotation(number: int, image_id: int, rng: np.random.Generator) -> dict[str, object]:
    angles = np.linspace(0, 2 * np.pi, _VERTICES, endpoint=False)
    radii = rng.uniform(0.6, 1.0, _VERTICES) * rng.uniform(8, 90)
    middle = rng.uniform((40, 40), (_WIDTH - 40, _HEIGHT - 40))
    ring = (middle + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)).clip(0, (_WIDTH, _HEIGHT))
    polygon = ring.round(2).ravel().tolist()
    category = int(rng.integers(1, _CLASSES + 1))
    return {"id": number, "image_id": image_id, "category_id": category, "segmentation": [polygon]}


def read_all(folder: Path) -> dict[str, float]:
    """Go over every annotation of the file, in this process, which should have done nothing else."""
    started = time.perf_counter()
    questions = sum(len(photo.references) for photo in Reader(str(folder)).photos("train", Findings()))
    seconds = time.perf_counter() - started
    unique = psutil.Process().memory_full_info().uss / 1e9
    return {"read_seconds": seconds, "read_unique_gb": unique, "questions": questions} | {"read_peak_gb": _peak_gb()}


def draw(folder: Path, out: Path) -> dict[str, float]:
    """Prepare the file of `folder`, in this process and two workers, and open the shards."""
    preparation = Preparation(out, View(), processes=2)
    with JobUsage() as usage:
        made = prepare_source(source_of(folder), ["train"], preparation, HeldOut(), Console(stderr=True))
        seconds = usage.seconds
    opened = time.perf_counter()
    examples = len(Shards("train", str(out)))
    return {
        "prepare_seconds": seconds,
        "open_seconds": time.perf_counter() - opened,
        "prepare_peak_gb": usage.peak_gib * 2**30 / 1e9,
        "examples": examples if made else 0,
    }


def _peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def bench(folder: Path, photos: int, drawn: int, console: Console) -> PrepareBench:
    """Measure in `folder`, which should be new: a file of `photos`, and one of `drawn` photos that are opened."""
    annotations = write_files(folder / "all", photos, console)
    write_files(folder / "drawn", drawn, console)
    read = _in_process("read", folder / "all")
    found = _in_process("draw", folder / "drawn", folder / "shards")
    return PrepareBench(
        photos=photos,
        annotations=annotations,
        file_mb=(folder / "all" / "lvis_v1_train.json").stat().st_size / 1e6,
        read_seconds=read["read_seconds"],
        read_peak_gb=read["read_peak_gb"],
        read_unique_gb=read["read_unique_gb"],
        drawn=drawn,
        prepare_seconds=found["prepare_seconds"],
        prepare_peak_gb=found["prepare_peak_gb"],
        examples=int(found["examples"]),
        open_seconds=found["open_seconds"],
    )


def _in_process(*arguments: object) -> dict[str, float]:
    command = [sys.executable, "-m", "rl.bench.prepare", *map(str, arguments)]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return dict(json.loads(told.splitlines()[-1]))


def as_json(found: PrepareBench) -> dict[str, float]:
    """The numbers by name."""
    return asdict(found)


def table(found: PrepareBench) -> Table:
    """The numbers for people."""
    made = Table("", "", title="A data set of LVIS's size prepared")
    made.columns[1].justify = "right"
    rows = {
        f"{found.annotations:,} annotations of {found.photos:,} photos, MB": f"{found.file_mb:,.0f}",
        "read, s": f"{found.read_seconds:,.1f}",
        "peak while reading, pages of the file included, GB": f"{found.read_peak_gb:.2f}",
        "its own at the end, GB": f"{found.read_unique_gb:.2f}",
        f"{found.drawn:,} photos prepared in two processes, s": f"{found.prepare_seconds:,.1f}",
        "photos a second": f"{found.drawn / found.prepare_seconds:,.0f}",
        "peak of its processes together, GB": f"{found.prepare_peak_gb:.2f}",
        f"{found.examples:,} examples opened, s": f"{found.open_seconds:.3f}",
    }
    for title, cell in rows.items():
        made.add_row(title, cell)
    return made


if __name__ == "__main__":
    kind, *folders = sys.argv[1:]
    print(json.dumps(read_all(Path(folders[0])) if kind == "read" else draw(*map(Path, folders))))
