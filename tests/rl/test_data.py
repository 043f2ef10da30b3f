"""What is said of data before training: the codec's bound, tokens, counts; and the command that prepares it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_coco import annotation, entry, rectangle, small_set
from rich.console import Console
from typer.testing import CliRunner

from envs.geometry.pools import oracle
from rl.cli.main import app
from rl.config.outlines import Annotator
from rl.config.sft import SftSettings
from rl.data import DataConfig, data_config, look_at, spread, summary_of, summary_rows

QUIET = Console(quiet=True)
CODEC = {"name": "path_tokens", "box_bins": 40, "path_bins": 36, "max_rings": 2, "max_vertices": 12}
TINY = {"checkpoint": "tiny"}


def frame_of_6_in_10(folder):
    """A square frame, 6 outside and 2 inside, and a phrase that nothing fits; settings of its env."""
    hole = np.zeros((8, 10), int)
    hole[1:7, 2:8] = 1
    hole[3:5, 4:6] = 0
    runs = [len(run) for run in np.split(hole.T.ravel(), np.flatnonzero(np.diff(hole.T.ravel())) + 1)]
    annotations = [annotation(11, 1, {"size": [8, 10], "counts": runs}), annotation(12, 1, [rectangle(0, 0, 1, 1)])]
    phrases = [entry(phrases=["the frame"]), entry(1, (), ["a whale"]), entry(1, (11, 12), ["both"])]
    return {"name": "coco", **small_set(folder, annotations, phrases)}


def test_the_bound_of_a_codec_takes_a_hole_where_its_rings_allow_it_and_tells_what_it_cannot_write(tmp_path):
    env = frame_of_6_in_10(tmp_path)
    for max_rings, bound, beyond in ((2, 1.0, 0), (1, 32 / 36, 1)):
        config = DataConfig(env, CODEC | {"max_rings": max_rings}, TINY, ("train",), None)
        seen, number = look_at(config, "train", 99, 0, QUIET)
        frame, nothing, both = seen
        assert number == 3 and frame.iou == pytest.approx(bound) and nothing.iou == 1.0
        assert bool(both.text) == (not beyond)
        found = summary_of(seen, number)
        assert (found.examples, found.looked_at, found.unwritable, found.images) == (3, 3, beyond, 1)
        assert found.instances == {"0": 1, "1": 1, "2": 1}
        assert found.codec_iou.most == pytest.approx(bound)  # the phrase that nothing fits is left out
        assert found.taught_iou is None and found.answer_tokens.most >= len(frame.text.split())


def test_supervised_answers_have_their_own_iou_and_no_tokens_without_a_policy(tmp_path):
    sft = SftSettings(max_vertices=8, max_rings=2, outline_margin=0.3)
    seen, number = look_at(DataConfig(frame_of_6_in_10(tmp_path), CODEC, {}, ("train",), sft), "train", 1, 0, QUIET)
    assert number == 3 and len(seen) == 1 and seen[0].tokens is None
    seen, _ = look_at(DataConfig(frame_of_6_in_10(tmp_path), CODEC, TINY, ("train",), sft), "train", 9, 0, QUIET)
    assert seen[0].taught_iou < seen[0].iou == 1.0
    tokens, text = seen[0].tokens, seen[1].text
    assert tokens[0] > 10 and text == "none"
    assert summary_of(seen, 3).taught_iou.median < 1


def test_the_bound_of_a_codec_that_fits_traced_outlines_is_that_of_traced_ones() -> None:
    env = {"name": "cutout_scenes", "image_size": 64}
    svg = {"name": "svg_path", "max_vertices": 12, "path_bins": 64}
    taught = SftSettings(simplify="traced")
    seen, _ = look_at(DataConfig(env, svg, {}, ("train",), taught), "train", 20, 0, QUIET)
    assert all(one.iou >= (one.taught_iou or 0) - 1e-9 for one in seen if one.example.truth.masks.any())


def test_of_answers_behind_drafts_the_answer_is_judged(tmp_path):
    sentence = "<think> {draft} </think> {answer}"
    settings = SftSettings(max_vertices=8, max_rings=2, answers=[sentence], draft=Annotator(max_vertices=6))
    policy = {"thinking": "required", "thinking_question": None}
    env = frame_of_6_in_10(tmp_path)
    bare = DataConfig(env, CODEC | {"max_rings": 3}, {}, ("train",), SftSettings(max_vertices=8, max_rings=2))
    drafted = replace(bare, policy=policy, sft=settings)
    ious = [[one.taught_iou for one in look_at(config, "train", 9, 0, QUIET)[0]] for config in (bare, drafted)]
    assert ious[0] == ious[1] and max(ious[0]) > 0.9


def test_a_spread_is_the_tenth_half_and_ninetieth_percentile():
    found = spread(range(11))
    assert (found.low, found.median, found.high, found.most) == (1, 5, 9, 10)


def test_both_kinds_of_config_say_what_they_train_on():
    assert data_config(Path("tiny"), []).splits == ("train", "validation", "test")
    assert data_config(Path("tiny"), ["evaluation.final_split=validation"]).splits == ("train", "validation")
    assert data_config(Path("sft_tiny"), []).sft.outline_margin == 0.06
    with pytest.raises(ValueError, match=r"sft\.max_vertexes.*did you mean sft\.max_vertices"):
        data_config(Path("sft_tiny"), ["sft.max_vertexes=3"])


def test_the_command_shows_and_prepares(tmp_path):
    def run(*words):
        return CliRunner().invoke(app, [*words], catch_exceptions=False)

    small = ["env.num_scenes=12", "--split", "train"]
    shown = run("data", "show", "tiny", *small, "--limit", "5", "--json", "--out", str(tmp_path / "page.html"))
    numbers = json.loads(shown.stdout[: shown.stdout.rindex("}") + 1])["splits"]["train"]
    assert (numbers["examples"], numbers["looked_at"]) == (12, 5)
    assert 0.6 < numbers["codec_iou"]["median"] <= 1 and numbers["prompt_tokens"]["median"] > 60
    page = (tmp_path / "page.html").read_text()
    assert page.count("<figure") == 5 and "best IoU of the codec" in page
    done = run("data", "prepare", "tiny", *small, "--out", str(tmp_path / "shards"))
    assert f"env: {{name: shards, folder: {tmp_path / 'shards'}}}" in done.stdout.replace("\n", "")
    env = f"env={{name: shards, folder: {tmp_path / 'shards'}}}"
    again = run("data", "show", "tiny", env, "--split", "train", "--limit", "5", "--json")
    assert json.loads(again.stdout)["splits"]["train"] == numbers
    with pytest.raises(ValueError, match="limit is 0"):
        run("data", "show", "tiny", "--limit", "0")
    with pytest.raises(ValueError, match=r"page\.png.*\.html"):
        run("data", "show", "tiny", "--out", "page.png")


def test_of_pools_the_best_choice_is_told_beside_what_supervision_teaches() -> None:
    pools = {"candidates": 8, "candidates_off_px": 2, "candidates_missing": 0.3, "max_scale": 0.45}
    config = DataConfig({"name": "cutout_scenes", **pools}, {"name": "mask_group"}, {}, ("train",), SftSettings())
    seen, num = look_at(config, "train", 24, 0, Console(quiet=True))
    found = summary_of(seen, num)
    unions = [(one.example.candidates, one.example.truth.union) for one in seen]
    assert [one.oracle for one in seen] == [oracle(pool, union) for pool, union in unions]
    assert found.candidates.most == max(len(pool) for pool, _ in unions) <= 8
    # What is taught, the candidates that stand for the truth, is never better than the best choice, and that is no 1.
    assert all(one.taught_iou <= one.oracle + 1e-9 for one in seen) and 0.3 < found.oracle.median < 0.95
    told = dict(summary_rows({"train": found}))
    assert told["best choice of candidates: median, p10"] == [f"{found.oracle.median:.3f}, {found.oracle.low:.3f}"]
    plain = look_at(replace(config, env={"name": "cutout_scenes"}, codec={"name": "path_tokens"}), "train", 2, 0, QUIET)
    assert "best choice of candidates: median, p10" not in dict(summary_rows({"train": summary_of(*plain)}))
