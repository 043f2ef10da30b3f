"""The benches of learner, sampler and step compare like with like: the same tokens, model, and updates a step."""

import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch

from rl.bench import learner, rollout
from rl.bench.random_qwen import SHAPES, ModelChoice, Shape, released_config
from rl.bench.side_by_side import SideBySide, Work, Workload, alternate, as_json, count, scaled, table
from rl.bench.trl_step import installed

SMALL = Workload(groups=2, answers=3, image_tokens=16, tokens=8)


def test_a_workload_reads_as_it_is_written_and_one_that_cannot_be_is_refused_with_its_value() -> None:
    assert Workload.read("2x3x16x8") == SMALL and SMALL.title == "2x3x16x8"
    for wrong, message in (
        ("2x3x16", "the workload is '2x3x16'"),
        ("2x3x-16x8", "the workload is"),
        ("2x3x15x8", "such as 16"),
    ):
        with pytest.raises(ValueError, match=message):
            Workload.read(wrong)


def test_the_workloads_that_show_how_cost_grows_change_one_size_each() -> None:
    base = Workload(4, 8, 256, 64)
    changed = [[name for name in vars(base) if vars(base)[name] != vars(one)[name]] for one in scaled(base)]
    assert changed == [["answers"]] * 2 + [["image_tokens"]] * 2 + [["tokens"]] * 2
    assert [one.image_tokens for one in scaled(base)[2:4]] == [64, 576]


def test_operations_are_those_of_the_products_by_hand_attention_forward_and_backward_included() -> None:
    a, b = torch.zeros(3, 5), torch.zeros(5, 7)
    assert count(lambda: a @ b) == 2 * 3 * 5 * 7
    # 1 x 2 heads of 4 queries and keys, 8 wide: scores and their product with the values.
    query, key, value = (torch.randn(1, 2, 4, 8, requires_grad=True) for _ in range(3))
    product = 2 * 2 * 4 * 4 * 8

    def attend() -> None:
        torch.nn.functional.scaled_dot_product_attention(query, key, value).sum().backward()

    assert count(attend) == 2 * product + 5 * product


def test_rounds_alternate_who_begins() -> None:
    order: list[str] = []
    own, other = alternate(lambda: order.append("ours"), lambda: order.append("other"), 3)
    assert order == ["ours", "other", "other", "ours", "ours", "other"]
    assert len(own) == len(other) == 3


def test_the_ratio_reported_is_the_median_of_the_rounds_and_null_without_the_other() -> None:
    one = SideBySide(SMALL, 21, Work(10, 20), Work(30, 40), (1.0, 2.0, 4.0), (3.0, 4.0, 20.0))
    found = json.loads(json.dumps(as_json("trl", [one])))
    assert found["ratio"] == {"trl": 3.0} and found["ratio_spread"] == {"trl": [2.0, 5.0]}
    assert found["cases"][0]["ours"] == {"seconds": 2.0, "flops": 10, "tokens": 20}
    assert found["cases"][0]["trl"] == {"seconds": 4.0, "flops": 30, "tokens": 40}
    alone = SideBySide(SMALL, 21, Work(10, 20), None, (1.0, 2.0), ())
    assert as_json("trl", [alone])["ratio"] == {"trl": None} and as_json("trl", [alone])["cases"][0]["trl"] is None
    assert table("", "TRL", [one, alone]).row_count == 2


def test_a_row_a_group_and_a_row_an_answer_give_the_same_log_probabilities_for_fewer_operations() -> None:
    found = learner.measure(SMALL, ModelChoice(), rounds=2)
    report = json.loads(json.dumps(learner.report([found], peak_tflops=0.1)))
    assert report["max_logprob_difference"] < 1e-5
    assert report["ratio"]["row_per_answer"] > 0
    ours, other = report["cases"][0]["ours"], report["cases"][0]["row_per_answer"]
    prompts = (other["tokens"] - ours["tokens"]) / 2  # two of three answers share
    assert ours["tokens"] == prompts + 2 * 3 * 8
    assert 1.2 < other["flops"] / ours["flops"] < 3
    assert report["model_flops_utilisation"] == pytest.approx(ours["flops"] / ours["seconds"] / 1e11)


def test_our_sampler_and_generate_write_the_same_greedy_answers_of_exactly_the_tokens_asked_for(tmp_path: Path) -> None:
    policy = ModelChoice().policy(tmp_path, SMALL).eval()
    rows = rollout.questions(policy, ModelChoice(), SMALL)
    ours, theirs = (side(policy, rows, SMALL, temperature=0.0) for side in (rollout.sampled, rollout.generated))
    assert ours.shape == (6, 8) and np.array_equal(ours, theirs)
    for side in (rollout.sampled, rollout.generated):
        drawn = side(policy, rows, SMALL, temperature=1.0)
        assert drawn.shape == (6, 8) and not np.isin(drawn, policy.processor.unsampled_tokens).any()


def test_generate_encodes_each_prompt_once_an_answer_and_our_sampler_once() -> None:
    found = rollout.measure(SMALL, ModelChoice(), rounds=2)
    assert found.other is not None and found.ratio is not None and found.ratio > 0
    assert found.other.tokens - found.ours.tokens == 2 * (found.ours.tokens - 2 * 3 * 7)
    assert found.other.flops > 1.5 * found.ours.flops


@pytest.mark.parametrize(("model", "billions"), [("2b", 2.13), ("4b", 4.44), ("8b", 8.77)])
def test_the_large_shapes_have_as_many_parameters_as_the_released_models(model: str, billions: float) -> None:
    from transformers import Qwen3VLForConditionalGeneration

    with torch.device("meta"):
        network = Qwen3VLForConditionalGeneration(released_config(SHAPES[model]))
    assert sum(parameter.numel() for parameter in network.parameters()) / 1e9 == pytest.approx(billions, abs=0.005)


def test_a_model_in_a_released_shape_is_written_and_measured_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    # The released sizes take gigabytes; their layers differ from this one's in number and width alone.
    monkeypatch.setitem(SHAPES, "2b", Shape(32, 64, 2, 8, False, 64, 128, 2, (0, 1)))
    found = learner.measure(SMALL, ModelChoice("2b", "bfloat16"), rounds=1)
    assert found.timed.prompt_tokens == learner.measure(SMALL, ModelChoice(), rounds=1).timed.prompt_tokens
    assert found.max_logprob_difference < 0.1 and found.tokens_per_second > 0


def step_report(workload: Workload) -> SideBySide:
    from rl.bench.step import measure

    return measure(workload, rounds=1)


@pytest.mark.long
def test_a_step_of_ours_and_of_trl_are_measured_in_one_process_and_without_trl_ours_alone() -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        found = process.submit(step_report, SMALL).result(timeout=500)
    assert len(found.seconds) == 1 and found.seconds[0] > 0 and found.ours.flops > 0
    if installed():
        assert found.other is not None and found.ratio is not None and found.ratio > 0
        assert found.other.flops > found.ours.flops and found.other.tokens > found.ours.tokens
    else:
        assert found.other is None and found.ratio is None


@pytest.mark.long
def test_the_parts_of_a_demo_step_add_up_to_it() -> None:
    from rl.bench import demo_step

    found = demo_step.measure(["groups_per_step=4", "groups_per_unit=2", "learner.micro_groups=2"], steps=1)
    report = json.loads(json.dumps(demo_step.as_json(found)))["demo_step"]
    assert set(demo_step.SMALL) < set(report["seconds"]) and all(value > 0 for value in report["seconds"].values())
    assert sum(report["shares"].values()) == pytest.approx(1.0)
    assert 0 < report["small"]["share"] < 1
    assert demo_step.table(found).row_count == len(report["seconds"])
