"""From the files of every format to a score: checked, prepared, opened, judged; and, where that is asked for, trained
on and benchmarked."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from commands import here, polytrace
from made_every_set import EVERY

from envs.datasets.shards import Env
from envs.example import Truth
from envs.geometry.contours import rings_from_mask
from envs.plugin import plugin_names
from envs.polygons import Answer, AnswerStatus, answer_from_rings
from rl.benchmarks.sets import PROTOCOLS
from rl.evaluation.protocols.base import protocol_named

ALONE = ("--processes", "1")


def made(name: str, folder: Path) -> Path:
    """The files of a format, in a folder where they may lie beside others."""
    path = folder / "anns" / name
    path.mkdir(parents=True)
    EVERY[name].write(path)
    return path


def shards_of(name: str, folder: Path, *how: str) -> tuple[Path, str]:
    """Prepared shards of a format, and their split."""
    path, split = made(name, folder), EVERY[name].split
    done = here("data", "prepare", path, "--split", split, "--out", folder / "shards", *ALONE, *how)
    assert done.status == 0, done.stderr
    return folder / "shards", split


def true_answer(truth: Truth) -> Answer:
    """The outline of all that is true, or the answer that there is nothing."""
    return answer_from_rings(rings_from_mask(truth.union)) if truth.union.any() else Answer(AnswerStatus.EMPTY)


def test_every_reader_has_a_data_set_here() -> None:
    assert sorted(EVERY) == sorted(plugin_names("envs.readers"))


@pytest.mark.parametrize("name", sorted(EVERY))
def test_files_are_known_and_counted(name: str, tmp_path: Path) -> None:
    whole, path = EVERY[name], made(name, tmp_path)
    told = here("data", "check", path, "--split", whole.split, "--json", *ALONE)
    [report] = json.loads(told.stdout)
    count = report["splits"][whole.split]
    found = (report["format"], count["questions"], count["masks"], count["lost"])
    assert found == (name, whole.questions, whole.masks, whole.lost), report["findings"]
    assert told.status == report["exit_status"] < 2


@pytest.mark.parametrize("name", sorted(EVERY))
def test_the_true_outlines_of_the_prepared_examples_score_1_under_their_protocol(name: str, tmp_path: Path) -> None:
    folder, split = shards_of(name, tmp_path)
    env, protocol = Env(split, str(folder)), protocol_named(PROTOCOLS.get(name, "gres"))
    examples = [env[k] for k in range(len(env))]
    assert len(env) == EVERY[name].questions and env.num_lost == EVERY[name].lost
    assert sum(len(one.truth.masks) for one in examples) == EVERY[name].masks
    assert {env.image(one.image).shape[:2] == one.truth.union.shape for one in examples} == {True}
    judged = protocol.judge([true_answer(one.truth) for one in examples], examples)
    assert [one.iou for one in judged] == [1.0] * len(env)
    scores = protocol.scores(judged)
    assert scores["cIoU"] == 1 and scores["unreadable"] == 0


def run(*arguments: object) -> str:
    """What the command says, in a process of its own."""
    command = polytrace(*map(str, arguments))
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


SMALL = [
    "steps=5",
    "groups_per_step=2",
    "group_size=2",
    "groups_per_unit=1",
    "pool.workers=1",
    "save_every=5",
    "sampling.max_tokens=24",
    "learner.micro_groups=1",
    "learner.threads=1",
    "evaluation.every=5",
    "evaluation.num_scenes=2",
    "max_left_out=1.0",
]


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(EVERY))
def test_it_is_shown_trained_on_and_benchmarked(name: str, tmp_path: Path) -> None:
    folder, split = shards_of(name, tmp_path, "--image-side", "64", "--square")
    names = dict.fromkeys(("train", "validation", "test"), split)
    entry: dict[str, Any] = {"name": "shards", "folder": str(folder), "names": names, "candidates": False}
    env = f"env={json.dumps(entry)}"
    run("data", "show", "tiny", env, "max_left_out=1.0", "--split", "train", "--out", tmp_path / "data.html")
    assert (tmp_path / "data.html").read_text(encoding="utf-8").count("data:image/png") == EVERY[name].questions
    run("train", "tiny", env, f"run={tmp_path / 'run'}", *SMALL)
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert max(row["step"] for row in rows) >= 4
    run("benchmark", tmp_path / "run", "--data", f"mine={folder}:{split}", "--out", tmp_path / "bench", "--workers", 1)
    [scores] = json.loads((tmp_path / "bench/summary.json").read_text())["scores"]
    assert (scores["examples"], scores["protocol"]) == (EVERY[name].questions, PROTOCOLS.get(name, "gres"))
