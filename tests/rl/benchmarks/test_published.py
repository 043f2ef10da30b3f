"""Published numbers: every file loads, and names data sets, protocols and scores that there are."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from envs.geometry.rle import rle_from_mask
from envs.polygons import AnswerStatus
from rl.benchmarks.published import Published, own_published, published, published_rows
from rl.evaluation.protocols.base import CodedTruth, protocol_named

NAMES = ("gres", "ores", "refcoco")
DOCS = Path(__file__).parents[3] / "docs/benchmark.md"


def titles(protocol: str) -> set[str]:
    """Titles of a protocol's scores."""
    mask = rle_from_mask(np.ones((4, 4), np.bool_))
    made = protocol_named(protocol)
    return set(made.scores(made.judge_masks([mask], [AnswerStatus.OK], [CodedTruth("one", 4, 4, (mask,))])))


def numbers(file: Published) -> Iterator[tuple[str, str, str, float]]:
    """(model, data set, score, percent) of a file."""
    for model in file.models:
        for data, scores in model.scores.items():
            yield from ((model.name, data, title, value) for title, value in scores.items())


def test_the_files_are_those_that_are_known() -> None:
    assert {Path(name).name for name in published()} >= set(NAMES)


@pytest.mark.parametrize("name", sorted(published()))
def test_every_score_is_one_of_its_protocol_and_every_number_percent(name: str) -> None:
    file = published()[name]
    known = titles(file.protocol)
    assert file.models and all(model.source and model.scores for model in file.models)
    for model, data, title, value in numbers(file):
        assert title in known, f"{model} on {data}: {title}"
        assert 1 < value < 100, f"{model} on {data}: {title} {value}"  # a fraction would be below 1


@pytest.mark.parametrize("name", sorted(published()))
def test_no_model_stands_twice_and_every_data_set_is_told_to_users(name: str) -> None:
    file = published()[name]
    models = [model.name for model in file.models]
    assert len(set(models)) == len(models)
    told = DOCS.read_text(encoding="utf-8")
    words = set(told.replace("`", " ").replace(",", " ").split())
    # All splits of a set may be named together, such as `refcocoplus_...`.
    missing = {data for _, data, _, _ in numbers(file) if not {data, f"{data.split('_')[0]}_..."} & words}
    assert not missing, f"docs/benchmark.md does not name {sorted(missing)}"


def test_rows_are_of_one_data_set_under_the_protocol_or_a_variant_of_it() -> None:
    rows = {name: scores for name, _, scores in published_rows("grefcoco_val", "gres/rela")}
    assert rows.keys() >= {"ReLA, Swin-B"} and math.isclose(rows["ReLA, Swin-B"]["cIoU"], 0.6242)
    assert list(published_rows("grefcoco_val", "res")) == [] == list(published_rows("my_val", "gres"))
    everybody = [name for name, _, _ in published_rows("refcoco_testA", "res/lavt")]
    assert "SimpleSeg-Qwen2.5-VL" in everybody and "Moondream Segmentation" not in everybody


OWN = """
title: Ours
protocol: res/lavt
models:
  - {name: earlier, source: report 7, scores: {mine_val: {cIoU: 71.25, mIoU: 73}}}
"""


def own(folder: Path, text: str = OWN) -> Published:
    path = folder / "ours.yaml"
    path.write_text(text, encoding="utf-8")
    return own_published(path)


def test_rows_of_ones_own_come_after_the_shipped_ones(tmp_path: Path) -> None:
    file = own(tmp_path)
    assert published_rows("mine_val", "res", [file]) == [("earlier", "report 7", {"cIoU": 0.7125, "mIoU": 0.73})]
    assert published_rows("mine_val", "gres", [file]) == []
    both = published_rows("refcoco_val", "res", [own(tmp_path, OWN.replace("mine_val", "refcoco_val"))])
    assert len(both) > 1 and both[-1][0] == "earlier"


@pytest.mark.parametrize(
    ("was", "now", "told"),
    [
        ("res/lavt", "rse", r"ours.yaml: .*did you mean 'res'"),
        ("res/lavt", "res/lav", r"ours.yaml: .*no variant 'lav'; did you mean 'lavt'"),
        ("mIoU: 73", "mIoU_: 73", r"ours.yaml: models\[0\].scores.mine_val.mIoU_ is no score .*did you mean 'mIoU'"),
        ("71.25", "171.25", r"models\[0\].scores.mine_val.cIoU is 171.25; write percent, from 0 to 100"),
        ("71.25, mIoU: 73", "0.71, mIoU: 0.73", r"models\[0\].scores.mine_val has no number above 1; write percent"),
        ("71.25", "many", r"ours.yaml: models\[0\].scores.mine_val.cIoU is 'many', expected float"),
        ("source: report 7, ", "", r"ours.yaml: models\[0\].source"),
        ("scores: {mine_val: {cIoU: 71.25, mIoU: 73}}", "scores: {}", r"models\[0\].scores is empty"),
        ("  - {name: earlier", "  - {nam: earlier", r"models\[0\].nam is not a setting; did you mean"),
        ("title: Ours", "title: [", r"ours.yaml, line \d, column \d"),
    ],
)
def test_a_file_of_ones_own_is_refused_by_place_and_value(tmp_path: Path, was: str, now: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        own(tmp_path, OWN.replace(was, now))


def test_a_file_that_is_not_there_or_has_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"--rows is .*gone.yaml, which is no file"):
        own_published(tmp_path / "gone.yaml")
    with pytest.raises(ValueError, match="models is empty"):
        own(tmp_path, "title: Ours\nprotocol: res\n")
