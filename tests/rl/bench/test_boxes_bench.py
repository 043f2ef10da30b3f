"""The bench of a mask decoder: boxes that are true, moved and predicted, scored as answers are."""

from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from test_box_decoder import CODEC, ENV, SMALL, examples

from envs.example import Example
from envs.polygons import AnswerStatus
from policies.families.box_decoder import Policy
from policies.settings import TinySizes
from policies.tiny_model import write_untrained
from rl.bench.learning import boxes as bench
from rl.config.load import load_settings
from rl.config.run import RunConfig
from rl.evaluation.scores import SceneScore


def scored(iou: float) -> SceneScore:
    return SceneScore("a", iou, 0, 0, iou, True, AnswerStatus.OK)


def test_the_calibration_error_is_the_distance_of_means_in_bins() -> None:
    # One bin of two masks foretold 0.55 and 0.58 and found 0.5 and 0.7, another of one foretold 1.0 and found 0.4.
    foretold, found = np.array([0.55, 0.58, 1.0]), np.array([0.5, 0.7, 0.4])
    made = bench.Drawn({"true": [scored(0.5)], "predicted": [scored(0.5)]}, foretold, found)
    assert made.calibration_error == pytest.approx((abs(1.13 - 1.2) + 0.6) / 3)
    assert "calibration error 0.223, too high by 0.177" in bench.line(made)


def test_a_box_is_moved_by_its_own_sides_within_the_image_and_always_alike() -> None:
    [example] = examples(1)

    def others(k: int) -> Example:
        return Example(**{**vars(example), "id": f"example {k}"})

    moved = bench._moved_by(0.2)
    found = np.array([moved((8.0, 10.0, 18.0, 14.0), others(k)) for k in range(400)])
    assert (found >= 0).all() and (found <= 32).all() and (found[:, 2:] >= found[:, :2] + 1).all()
    errors = found - [8.0, 10.0, 18.0, 14.0]
    assert np.abs(errors.mean(0)).max() < 0.3
    assert errors.std(0) == pytest.approx([2.0, 0.8, 2.0, 0.8], rel=0.15)
    assert moved((8.0, 10.0, 18.0, 14.0), example) == moved((8.0, 10.0, 18.0, 14.0), example)


def test_true_boxes_are_written_for_the_decoder_and_every_row_is_judged(tmp_path: Path) -> None:
    words = sorted({word for name in ENV.phrase_words() for word in name.split()})
    sizes = TinySizes(
        image_size=32, text_width=32, text_layers=2, text_heads=2, vision_width=16, vision_layers=2, vision_heads=2
    )
    write_untrained(tmp_path / "new", [*CODEC.words, *words], sizes, seed=0)
    Policy(tmp_path / "new", CODEC, decoder=SMALL).save(tmp_path / "drawing")
    overrides = [
        "run=boxes",
        f"policy.checkpoint={tmp_path / 'drawing'}",
        "env.image_size=32",
        "codec.box_bins=32",
        "sampling.max_tokens=12",
    ]
    config = load_settings(RunConfig, Path("gspo_box_decoder"), overrides)
    found = bench.measure(config, tmp_path / "drawing", "test", 12, Console(quiet=True))
    assert [len(row) for row in found.scores.values()] == [12] * 8
    assert list(found.scores) == [
        "true",
        *(f"moved {m:g}" for m in bench.MOVES),
        "predicted",
        "first pass",
        "rectangles",
    ]
    # What is written reads, though an untrained decoder may draw no pixel; an untrained model's own answers do not.
    assert {score.status for score in found.scores["true"]} <= {AnswerStatus.OK, AnswerStatus.DEGENERATE}
    assert found.valid <= 0.5
    told = bench.as_json(found)
    assert set(told) == {"giou", "boundary_iou", "valid", "calibration_error"}
