"""Answers that reason, from the engine to the archive and back: read once, kept, rewarded, rescored alike."""

from pathlib import Path

import numpy as np
import pytest

from envs.codecs.path_tokens import Codec
from envs.plugin import Plugin
from policies.tiny_model import TinySizes, write_untrained
from rewards.scorer import Scorer
from rl.config.rewards import reward_parts
from rl.run.steps import group_terms, with_totals
from rollout.archive.archive import RolloutArchive
from rollout.archive.rescore import rescore
from rollout.records import Group
from rollout.settings import Sampling
from rollout.worker import RolloutWorker, Unit, WorkerSettings

ENGINE = """
from dataclasses import dataclass

import numpy as np

from policies.families.base import Response
from rollout.engines.shared import SharedSampler


@dataclass(frozen=True)
class Engine:
    texts: list[str]

    def check(self, sampling, gpus_per_worker):
        pass

    def open(self, policy, device, sleeps):
        return Speaker(policy, self.texts)


class Speaker(SharedSampler):
    def __init__(self, policy, texts):
        super().__init__(policy)
        self.texts = texts

    def sample_prepared(self, prepared, sampling, seeds):
        return [[self.said(text, sampling.max_tokens) for text in self.texts] for _ in seeds]

    def said(self, text, most):
        tokens = self.policy.processor.answer_tokens(text)
        return Response(tokens[:most], np.zeros(min(most, len(tokens)), np.float32), "stop" if len(tokens) <= most else
        "length")
"""
"""An engine that says the same texts to every question, each cut at the limit on tokens."""
OUTLINE = Codec().encode([[np.array([[4.0, 4.0], [28.0, 4.0], [28.0, 28.0], [4.0, 28.0]])]], 32, 32)
TEXTS = [
    f"<think> big red apple </think> {OUTLINE}",
    f"<think> apple </think> <answer> {OUTLINE} </answer>",
    OUTLINE,
    f"<think> apple </think> <think> apple </think> {OUTLINE}",
    f"<think> {'apple ' * 100}",
    "<think> big apple </think> none",
]
REWARDS = {"mask_iou": {}, "thinking_format": {}, "thinking_length": {"least": 2, "most": 3}}


def answered(folder: Path, mode: str) -> list[Group]:
    """A group of TEXTS to one example."""
    sizes = TinySizes(
        image_size=32, text_width=32, text_layers=2, text_heads=2, vision_width=16, vision_layers=2, vision_heads=2
    )
    marks = ["<think>", "</think>", "<answer>", "</answer>"]
    write_untrained(folder / "model", [*Codec().words, *marks, "big", "red", "apple"], sizes, seed=0)
    (folder / "speaker.py").write_text(ENGINE)
    policy = {"checkpoint": folder / "model", "codec": Codec(), "thinking": mode}
    settings = WorkerSettings(
        run="a-run",
        seed=1,
        env=Plugin("envs.datasets", "Env", "cutout_scenes", {"image_size": 32, "num_scenes": 20}),
        policy=Plugin("policies.families", "Policy", "vision_language", policy),
        engine=Plugin("", "Engine", "speaker", {"texts": TEXTS}, str(folder / "speaker.py")),
        rewards=reward_parts(REWARDS, {}).recipes,
    )
    worker = RolloutWorker(settings, "one")
    worker.set_weights(0, [])
    return worker.answer(Unit("train", 0, (0,), (7,), len(TEXTS), Sampling(1.0, 60)), 0)


@pytest.mark.parametrize(
    ("mode", "statuses"),
    [
        ("none", "unparsable unparsable ok unparsable truncated unparsable"),
        ("optional", "ok ok ok unparsable truncated empty"),
        ("required", "ok ok unparsable unparsable truncated empty"),
    ],
)
def test_a_worker_reads_the_same_texts_by_the_mode(tmp_path: Path, mode: str, statuses: str) -> None:
    [group] = answered(tmp_path, mode)
    assert " ".join(rollout.answer.status for rollout in group.rollouts) == statuses
    kept = ["big red apple", "apple", None, None, None, "big apple"]
    assert [rollout.answer.thinking for rollout in group.rollouts] == ([None] * 6 if mode == "none" else kept)
    assert all(rollout.answer.bare for rollout in group.rollouts)
    formats = [rollout.terms["thinking_format"] for rollout in group.rollouts]
    lengths = [rollout.terms["thinking_length"] for rollout in group.rollouts]
    assert formats == {"none": [0, 0, None, 0, 0, 0], "optional": [1, 1, None, 0, 0, 1]}.get(mode, [1, 1, 0, 0, 0, 1])
    if mode == "required":
        assert lengths == [1.0, 0.5, 0.0, 0.0, 0.0, 1.0]


def test_the_archive_keeps_the_reasoning_and_rescoring_repeats_to_the_last_bit(tmp_path: Path) -> None:
    parts, groups = reward_parts(REWARDS, {}), answered(tmp_path, "optional")
    archive = RolloutArchive(tmp_path / "run" / "archive")
    archive.append(0, with_totals(groups, parts.shaper().totals(0, group_terms(groups))))
    rows = [row for batch in archive.rollouts(["thinking", "text"]) for row in batch.to_pylist()]
    assert [row["thinking"] for row in rows] == ["big red apple", "apple", None, None, None, "big apple"]
    assert rows[0]["text"] == TEXTS[0]
    [step] = rescore(tmp_path / "run", Scorer(parts.recipes), parts.shaper())
    assert list(step.terms) == list(REWARDS)
    for name, values in step.terms.items():
        assert np.array_equal(values, step.archived_terms[name], equal_nan=True), name
    assert np.array_equal(step.totals, step.archived_totals)
