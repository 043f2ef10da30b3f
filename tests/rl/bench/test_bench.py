"""The benches measure what they say: contenders agree on the IoU, C and Numba on every pixel."""

import json
import shutil

import numpy as np
import pytest

from envs.polygons import flat_answers
from rewards.kernels.overlap import overlap
from rewards.score import Target
from rl.bench.outlines import OUTLINES, overlap_in_c
from rl.bench.scoring.rewards import Case, as_json, batch_milliseconds, cases, measure, table


def test_every_contender_gives_the_iou_that_we_give_within_its_own_rule_of_pixels() -> None:
    timed = measure(Case("smooth", 120, 160, 16, 4))
    assert {"polytrace", "pycocotools", "shapely"} <= set(timed.microseconds)
    assert timed.iou_difference["polytrace"] == 0.0
    assert all(difference < 0.03 for difference in timed.iou_difference.values())
    assert all(value > 0 for value in timed.microseconds.values())


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
@pytest.mark.parametrize("kind", OUTLINES)
def test_c_and_numba_count_the_same_pixels(kind: str) -> None:
    rng, in_c = np.random.default_rng(1), overlap_in_c()
    assert in_c is not None
    flat = flat_answers([[OUTLINES[kind](rng, num, 90, 120)] for num in (4, 8, 64, 256)])
    target = Target.from_rings([OUTLINES["concave"](rng, 40, 90, 120)], 90, 120)
    assert (in_c(flat, target) == overlap(*flat, target.spans, target.table, target.width)).all()


def test_the_cases_reach_from_224_to_1024_px_8_to_256_vertices_and_groups_of_8_to_64() -> None:
    found = cases(quick=False)
    assert {case.width for case in found} == {224, 640, 1024}
    assert {case.vertices for case in found} == {8, 64, 256} and {case.group for case in found} == {8, 64}


def test_the_numbers_come_as_json_too_and_the_table_has_a_row_a_case() -> None:
    timed = [measure(Case("smooth", 480, 640, 64, 64)), measure(Case("concave", 40, 40, 8, 2))]
    found = json.loads(json.dumps(as_json(timed)))
    assert found["ratio"]["pycocotools"] == {"smooth": timed[0].ratio_pycocotools}
    assert found["ratio"]["pycocotools_lowest"] == min(one.ratio_pycocotools for one in timed)
    assert table(timed).row_count == 2


def test_a_rollout_batch_is_scored_in_less_than_a_hundredth_of_a_demo_step() -> None:
    # A step of the demo takes about two seconds on two cores; a busy machine is given a factor of five.
    assert 0 < batch_milliseconds() < 100
