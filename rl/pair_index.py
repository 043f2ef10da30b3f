"""The index of chosen pairs: one Parquet file, images by reference, from which they are written or trained on."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.console import Console

from envs.example import Env, ImageRef
from envs.polygons import flatten_rings
from envs.rle import rle_from_rings
from rl.bars import bar
from rl.pair_candidates import PLACE_COLUMNS
from rl.pair_damage import DamageSettings, damage_alone, with_damage
from rl.pair_examples import HeldOut
from rl.pair_rule import PairRule
from rl.pair_runs import PairRun
from rl.pairs import Choice, Pair
from rollout.disk import publish

PAIR_SCHEMA = pa.schema(
    [
        ("example_id", pa.string()),
        ("prompt", pa.string()),
        ("image_key", pa.string()),
        ("image_sha256", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("coarse_rle", pa.string()),
        ("true_rle", pa.string()),
        ("ignore_rle", pa.string()),
        ("iou", pa.float64()),
        ("boundary_iou", pa.float64()),
        ("damage", pa.string()),
        ("box_px", pa.list_(pa.float64())),
        ("run", pa.string()),
        *((name, pa.int64()) for name in (*PLACE_COLUMNS, "policy_version")),
        ("source", pa.string()),
        ("licence", pa.string()),
    ]
)
"""Columns of pairs.parquet: the fields of Pair, its coarse mask as COCO RLE, and its box."""

INDEX = "pairs.parquet"
"""Every pair of an export, images by reference: chosen once, then written in the format asked for."""

_ROWS_AT_ONCE = 256
_ROWS_A_GROUP = 1024
_SHOWN_FAILURES = 3


def pair_row(pair: Pair) -> dict[str, object]:
    """The row of a pair in the index."""
    coarse = rle_from_rings(*flatten_rings(pair.coarse_rings), pair.height, pair.width)
    made = {"coarse_rle": coarse, "box_px": pair.box_px}
    fields = vars(pair)
    return {name: made[name] if name in made else fields[name] for name in PAIR_SCHEMA.names}


def index_rows(path: Path, first: int = 0) -> Iterator[dict[str, Any]]:
    """Rows of an index from number `first` on, in bounded memory; row groups before it are not read."""
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            num = file.metadata.row_group(group).num_rows
            rows = file.read_row_group(group).slice(first) if first < num else pa.table({})
            for batch in rows.to_batches(_ROWS_AT_ONCE):
                yield from batch.to_pylist()
            first = max(0, first - num)


def write_index(path: Path, pairs: Iterable[Pair]) -> int:
    """Write the index of some pairs, whole or not at all; how many there were."""
    partial, num = path.with_name(f".{path.name}.partial"), 0
    with pq.ParquetWriter(partial, PAIR_SCHEMA, compression="zstd") as writer:
        for rows in _groups(pairs):
            writer.write_table(pa.Table.from_pylist(rows, schema=PAIR_SCHEMA))
            num += len(rows)
    publish(partial, path)
    return num


def _groups(pairs: Iterable[Pair]) -> Iterator[list[dict[str, object]]]:
    rows: list[dict[str, object]] = []
    for pair in pairs:
        rows.append(pair_row(pair))
        if len(rows) == _ROWS_A_GROUP:
            yield rows
            rows = []
    if rows:
        yield rows


def training_envs(runs: Sequence[PairRun]) -> dict[str, Env]:
    """The Env of each run by its name; runs over the same data share one."""
    envs: dict[str, Env] = {}
    for k, run in enumerate(runs):
        same = [other for other in runs[:k] if other.env == run.env]
        envs[run.name] = envs[same[0].name] if same else run.training_env()
    return envs


def row_image(envs: Mapping[str, Env], row: Mapping[str, Any]) -> NDArray[np.uint8]:
    """Pixels [H, W, 3] of a row's image; raises ValueError or OSError where it is another one, or gone."""
    ref = ImageRef(row["image_key"], row["image_sha256"], row["height"], row["width"])
    return envs[row["run"]].image(ref)


def refuse_other_images(choice: Choice, envs: Mapping[str, Env], console: Console) -> None:
    """Raise ValueError where images of the pairs are missing or have changed, naming the first few."""
    failures, last = list[str](), ""
    for pair in bar(choice.pairs(), "images", console, len(choice)):
        if pair.image_sha256 == last:
            continue
        last = pair.image_sha256
        try:
            row_image(envs, vars(pair))
        except (ValueError, OSError) as error:
            failures.append(f"{pair.example_id}: {error}")
    if failures:
        shown = "; ".join(failures[:_SHOWN_FAILURES])
        raise ValueError(
            f"{len(failures)} images of the chosen pairs are gone or are not those of the archive ({shown}); restore "
            "them, then try again."
        )


def all_pairs(
    choice: Choice, runs: Sequence[PairRun], damage: DamageSettings, rule: PairRule, held_out: HeldOut, console: Console
) -> Iterator[Pair]:
    """The pairs of a choice, a share of them damaged, then those that are damage alone."""
    yield from bar(with_damage(choice, damage, rule), "pairs", console, len(choice))
    yield from bar(damage_alone([run.archive for run in runs], damage, rule, held_out), "damaged masks", console)


def refuse_none(choice: Choice, runs: Sequence[PairRun], damage: DamageSettings, rule: PairRule) -> None:
    """Raise ValueError where a rule keeps no answer, and nothing is made without one; with the counts of why."""
    if not len(choice) and not damage.per_example:
        report = choice.report
        counts = {reason: num for reason, num in report.left_out.items() if num}
        raise ValueError(
            f"{rule} keeps none of the {report.answers} answers in {', '.join(run.name for run in runs)} "
            f"({counts}); widen the rule, or train for longer."
        )
