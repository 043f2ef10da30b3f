"""Pairs of a run written for others: one Parquet file, images by reference, beside a data card."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa

from envs.rle import rle_from_mask
from rl.pair_rule import DEFAULT_RULE, PairRule
from rl.pairs import LEFT_OUT, PLACE_COLUMNS, Pair, Selection, SelectionReport, select
from rollout.archive import RolloutArchive
from rollout.shards import write_shard

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
        ("box_px", pa.list_(pa.float64())),
        ("run", pa.string()),
        *((name, pa.int64()) for name in (*PLACE_COLUMNS, "policy_version")),
        ("source", pa.string()),
        ("licence", pa.string()),
    ]
)
"""Columns of pairs.parquet: the fields of Pair, its coarse mask as COCO RLE, and its box."""


def export_pairs(run_folder: Path, out: Path, rule: PairRule = DEFAULT_RULE) -> SelectionReport:
    """Write the chosen pairs of a run to out/pairs.parquet, with a data card in out/README.md.

    Raises ValueError, before anything is written, where `out` is not empty or the rule keeps no answer.
    """
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; give a new folder for the pairs, or empty this one.")
    selection = select(RolloutArchive(run_folder / "archive"), rule)
    if not selection.pairs:
        raise ValueError(
            f"{rule} keeps none of the {selection.report.answers} answers in {run_folder} "
            f"({selection.report.left_out}); widen the rule, or train for longer."
        )
    out.mkdir(parents=True, exist_ok=True)
    (out / "README.md").write_text(_data_card(selection, rule), encoding="utf-8")
    write_shard(out / "pairs.parquet", pa.Table.from_pylist(list(map(_row, selection.pairs)), schema=PAIR_SCHEMA))
    return selection.report


def _row(pair: Pair) -> dict[str, object]:
    made = {"coarse_rle": rle_from_mask(pair.coarse_mask), "box_px": pair.box_px}
    fields = vars(pair)
    return {name: made[name] if name in made else fields[name] for name in PAIR_SCHEMA.names}


def _data_card(selection: Selection, rule: PairRule) -> str:
    pairs, report = selection.pairs, selection.report
    sources = Counter((pair.licence, pair.source) for pair in pairs)
    tenths = Counter(min(int(pair.iou * 10), 9) for pair in pairs)
    return f"""# Coarse and true masks

{len(pairs)} pairs from {len({pair.example_id for pair in pairs})} training examples over \
{len({pair.image_sha256 for pair in pairs})} images, chosen from {report.answers} answers of the run \
{", ".join(sorted({pair.run for pair in pairs}))} by `{rule}`.

A row of `pairs.parquet` is an outline that a policy drew (`coarse_rle`) beside the true mask (`true_rle`), both COCO
compressed RLE of height x width pixels; `ignore_rle` are pixels that count neither way. Images are given by key and by
the SHA-256 of their pixels, not copied. `box_px` is (x0, y0, x1, y1) around the outline. Run, step, position and index
find the answer in its archive.

## Licences of the images

| licence | source | pairs |
| --- | --- | ---: |
{_table(sorted((*key, count) for key, count in sources.items()))}

## IoU of coarse and true mask

| IoU | pairs |
| --- | ---: |
{_table((f"{k / 10:.1f} to {(k + 1) / 10:.1f}", tenths[k]) for k in range(10))}

## Answers left out

| reason | answers |
| --- | ---: |
{_table((meaning, report.left_out[reason]) for reason, meaning in LEFT_OUT.items())}
"""


def _table(rows: Iterable[Sequence[object]]) -> str:
    return "\n".join("| " + " | ".join(str(cell).replace("|", "/") for cell in row) + " |" for row in rows)
