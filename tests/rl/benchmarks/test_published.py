"""Published numbers: every file loads, and names data sets, protocols and scores that there are."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from envs.geometry.rle import rle_from_mask
from envs.polygons import AnswerStatus
from rl.benchmarks.published import Published, published, published_rows
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
