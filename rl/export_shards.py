"""Pairs of an index written shard by shard in one format: bounded files, bounded memory, and a place to go on from."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from envs.rle import spans_from_rle
from rewards.bands import span_sums
from rl.export_files import PairFiles, PairPictures
from rl.export_formats import CSV_COLUMNS, FORMATS, image_name, part_path
from rl.export_state import Shard
from rl.pair_index import INDEX, index_rows

_BLOCK = 512
"""A tar archive pads each file to blocks of this size and puts one before it."""
_TAR_END = 20 * _BLOCK


def write_shards(
    folder: Path, pictures: PairPictures, format_name: str, shard_mb: int, done: tuple[Shard, ...]
) -> Iterator[Shard]:
    """Write the pairs of folder/pairs.parquet that are not done, yielding each shard when it is whole.

    A shard holds as many pairs as fit into `shard_mb` MiB, and at least one.
    """
    first = sum(shard.pairs for shard in done)
    number, writer, num, size = len(done), None, 0, _TAR_END
    for place, row in enumerate(index_rows(folder / INDEX, first), first):
        pair = pictures.files(place, row)
        if writer is not None and size + _size(pair) > shard_mb << 20:
            writer.close()
            yield Shard(number, first, num)
            number, writer, first, num, size = number + 1, None, place, 0, _TAR_END
        if writer is None:
            writer = FORMATS[format_name](folder, number)
        writer.add(pair)
        num, size = num + 1, size + _size(pair)
    if writer is not None:
        writer.close()
        yield Shard(number, first, num)


def _size(pair: PairFiles) -> int:
    """Bytes that a pair takes in a tar archive, and at most elsewhere."""
    files = [pair.image, *pair.masks.values()]
    return sum(_BLOCK + -(-len(data) // _BLOCK) * _BLOCK for data in files) + 4 * _BLOCK


def finish(folder: Path, format_name: str, num_shards: int, licences: dict[str, int]) -> None:
    """Join the parts of a format that ends in one file; licences: COCO's licence ids by name."""
    parts = [part_path(folder, number) for number in range(num_shards)]
    if format_name == "png":
        header = io.StringIO()
        csv.DictWriter(header, CSV_COLUMNS, lineterminator="\n").writeheader()
        _join(folder / "pairs.csv", [header.getvalue()], (part.read_text(encoding="utf-8") for part in parts))
    elif format_name == "coco":
        _join(folder / "annotations.json", ["{"], _coco(parts, licences))


def clear_parts(folder: Path) -> None:
    """Delete the parts, once what they were joined to is whole and known to be."""
    for part in sorted(folder.glob(".parts/*")) + sorted(folder.rglob(".*.partial")):
        part.unlink()
    if (folder / ".parts").is_dir():
        (folder / ".parts").rmdir()


def _join(path: Path, head: list[str], rest: Iterator[str]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.writelines(head)
        file.writelines(rest)
    partial.replace(path)


def _coco(parts: list[Path], licences: dict[str, int]) -> Iterator[str]:
    """All of annotations.json after its first bracket, an entry a line."""
    yield '"info": {"description": "coarse and true masks, `segmentation` is the true one"},\n'
    yield f'"licenses": {json.dumps([{"id": k, "name": name, "url": ""} for name, k in licences.items()])},\n'
    yield '"categories": [{"id": 1, "name": "object"}],\n"images": [\n'
    numbers: dict[str, int] = {}
    for row in _rows(parts):
        if row["image_sha256"] in numbers:
            continue
        if numbers:
            yield ",\n"
        numbers[row["image_sha256"]] = len(numbers) + 1
        image = {"id": len(numbers), "file_name": image_name(row), "height": row["height"], "width": row["width"]}
        yield json.dumps(image | {"license": licences[row["licence"]], "sha256": row["image_sha256"]})
    yield '\n],\n"annotations": [\n'
    for k, row in enumerate(_rows(parts)):
        yield ",\n" * bool(k) + json.dumps(_annotation(k, row, numbers[row["image_sha256"]]), ensure_ascii=False)
    yield "\n]}\n"


def _rows(parts: list[Path]) -> Iterator[dict[str, Any]]:
    for part in parts:
        with part.open(encoding="utf-8") as lines:
            yield from map(json.loads, lines)


def _annotation(k: int, row: dict[str, Any], image_id: int) -> dict[str, Any]:
    size = [row["height"], row["width"]]
    spans = spans_from_rle(row["true_rle"], *size)
    x0, x1 = int(spans.bounds[::2].min()), int(spans.bounds[1::2].max())
    rows = [i for i in range(size[0]) if spans.starts[i + 1] > spans.starts[i]]
    made = {
        "id": k + 1,
        "image_id": image_id,
        "category_id": 1,
        "iscrowd": 0,
        "area": int(span_sums(spans)[0]),
        "bbox": [x0, rows[0], x1 - x0, rows[-1] + 1 - rows[0]],
        "segmentation": {"size": size, "counts": row["true_rle"]},
        "coarse_segmentation": {"size": size, "counts": row["coarse_rle"]},
    }
    if row["ignore_rle"] is not None:
        made["ignore_segmentation"] = {"size": size, "counts": row["ignore_rle"]}
    ours = ("example_id", "prompt", "iou", "boundary_iou", "damage", "run", "step", "position", "index")
    return made | {name: row[name] for name in (*ours, "policy_version", "source")}
