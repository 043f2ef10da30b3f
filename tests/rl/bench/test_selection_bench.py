"""What choosing reaches, beside rules whose scores are known."""

from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from envs.codecs.mask_group import Codec
from envs.datasets.cutout_scenes import Env
from envs.geometry.masks import iou
from policies.families.mask_selection import Policy
from rl.bench.learning.selection import as_json, measure, table
from rl.config.load import load_settings
from rl.config.plugins import env_plugin
from rl.config.run import RunConfig
from rl.evaluation.scores import SceneScore

POOLS = ["env.image_size=32", "env.candidates=8", "env.several_share=0.3", "env.max_scale=0.45", "env.absent_share=0.2"]


def config(checkpoint: Path, *more: str) -> RunConfig:
    return load_settings(RunConfig, Path("gspo_groups"), ["run=x", f"policy.checkpoint={checkpoint}", *POOLS, *more])


def ious(scores: list[SceneScore]) -> list[float]:
    return [score.iou for score in scores]


def test_rules_and_a_policy_that_takes_nothing_have_the_scores_that_a_loop_finds(tiny_untrained: Path) -> None:
    found = measure(config(tiny_untrained), [tiny_untrained, tiny_untrained], "test", 20, Console(quiet=True))
    env: Env = env_plugin(config(tiny_untrained).env).build(split="test")
    examples = [env[index] for index in range(20)]
    there = np.array([example.truth.union.any() for example in examples])
    assert 0 < there.sum() < 20
    assert (found.oracle == 1).all() and ious(found.rules["meant"]) == [1.0] * 20
    assert np.array_equal(ious(found.rules["none"]), ~there)
    sums = np.zeros(2)
    for example, score in zip(examples, found.rules["all"], strict=True):
        covered, true = example.candidates.any(axis=0), example.truth.union
        assert score.iou == pytest.approx(iou(covered, true))
        sums += [(covered & true).sum(), (covered | true).sum()]
    # A new classifier says 0.5 of everybody, and the likelier of two equals is out.
    assert np.array_equal(ious(found.choosers[str(tiny_untrained)].scores), ~there)
    told = as_json(found)
    assert told["giou"]["none"] == pytest.approx(1 - there.mean()) and not told["gains"] and not told["ratio"]
    assert told["ciou"]["all"] == pytest.approx(sums[0] / sums[1])
    assert told["giou"]["one_pass"] == told["giou"][str(tiny_untrained)] and told["giou"]["oracle"] == 1
    assert told["milliseconds"][str(tiny_untrained)] > 0 and table(found).row_count == 6


def test_a_gain_is_paired_by_question(tiny_untrained: Path, tmp_path: Path) -> None:
    settings = config(tiny_untrained)
    policy = Policy(tiny_untrained, Codec())
    policy.model.selection.classifier.bias.data.fill_(1.0)  # takes everybody
    policy.save(tmp_path / "greedy")
    found = measure(settings, [tiny_untrained, tmp_path / "greedy"], "test", 20, Console(quiet=True), at_once=8)
    gain = found.gains[str(tmp_path / "greedy")]
    everybody, nobody = ious(found.rules["all"]), ious(found.rules["none"])
    assert gain.value == pytest.approx(np.mean(everybody) - np.mean(nobody))
    assert ious(found.choosers[str(tmp_path / "greedy")].scores) == everybody
    assert [len(each.seconds) for each in found.choosers.values()] == [3, 3]


def test_who_writes_is_timed_beside_one_pass_and_scored_by_what_it_wrote(tiny_untrained: Path) -> None:
    found = measure(config(tiny_untrained), [tiny_untrained], "test", 12, Console(quiet=True), tiny_untrained)
    rival, first = found.choosers["autoregressive"], found.choosers[str(tiny_untrained)]
    assert len(rival.seconds) == len(first.seconds) == len(rival.scores) == 12
    told = as_json(found)
    assert told["ratio"]["autoregressive"] == pytest.approx(sum(rival.seconds) / sum(first.seconds))
    low, high = told["intervals"]["ratio"]["autoregressive"].values()
    # How much slower is for a bench to say, of passes too short to be timed beside other tests.
    assert 0 < low <= told["ratio"]["autoregressive"] <= high and sum(rival.places) > 12
    # Untrained, it writes no answer that can be read, which is worth 0 also where nothing is there.
    assert told["valid"]["autoregressive"] == 0 and told["giou"]["autoregressive"] == 0
    # Cut where each candidate would have been said, and the end.
    env = Env(split="test", image_size=32, candidates=8, several_share=0.3, max_scale=0.45, absent_share=0.2)
    assert all(
        places == len(env[k].candidates) + 1 or score.status != "truncated"
        for k, (places, score) in enumerate(zip(rival.places, rival.scores, strict=True))
    )
    assert "tokens an answer" in table(found).caption


def test_a_policy_that_writes_is_no_checkpoint_to_choose_at_once(tiny_untrained: Path) -> None:
    wrong = config(tiny_untrained, "policy.name=mask_numbers", "codec={name: mask_numbers}")
    with pytest.raises(
        ValueError, match=r"^policy\.name is mask_numbers, which does not choose among candidates at once"
    ):
        measure(wrong, [tiny_untrained], "test", 4, Console(quiet=True))
