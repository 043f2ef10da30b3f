"""The bench of one card: parts are cut, fail and are recorded apart from each other; what runs without a card is run.

At the top nothing heavy is imported: the processes of the parts below import this file.
"""

import json
import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from rl.bench.gpu.part import Measured, Outcome, Part, Site, Skipped, run_part


def hangs(site: Site) -> Measured:
    child = subprocess.Popen(["sleep", "600"])
    (site.folder / "child").write_text(str(child.pid))
    print("it has begun", flush=True)
    time.sleep(600)
    raise AssertionError("it was not cut")


def raises(site: Site) -> Measured:
    print("what was printed before")
    raise RuntimeError("no kernel image is there\nfor two lines")


def is_killed(site: Site) -> Measured:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("it lives")


def answers(site: Site) -> Measured:
    return Measured(("a", "b"), (("1", "x | <y>"),), {"value": float("nan"), "list": [1, 2]}, ("it is off",), ("note",))


def has_nothing(site: Site) -> Skipped:
    return Skipped("it is not installed")


def part(measure: object, limit: float = 60.0) -> Part:
    return Part(measure.__name__, measure.__name__, limit, measure)  # type: ignore[attr-defined, arg-type]


def runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def site(tmp_path: Path) -> Site:
    (tmp_path / "site").mkdir()
    return Site("cpu", tmp_path / "site")


def test_a_part_that_hangs_is_cut_at_its_limit_with_what_it_had_started(site: Site, tmp_path: Path) -> None:
    found = run_part(part(hangs, 6.0), site, tmp_path / "log")
    assert found.status == "cut" and found.measured is None
    assert found.reason == "not done after 6 s; last it said: it has begun"
    assert 6 <= found.seconds < 36
    child = int((site.folder / "child").read_text())
    for _ in range(100):
        if not runs(child):
            break
        time.sleep(0.1)
    assert not runs(child)


def test_a_part_that_raises_or_dies_is_recorded_and_the_rest_still_run(tmp_path: Path) -> None:
    from rich.console import Console

    from rl.bench.gpu import bench

    parts = [part(each) for each in (raises, is_killed, has_nothing, answers)]
    _, outcomes = bench.bench(parts, "cpu", tmp_path / "out", Console(stderr=True))
    assert [each.status for each in outcomes] == ["failed", "failed", "skipped", "done"]
    assert outcomes[0].reason == "RuntimeError: no kernel image is there"
    assert outcomes[1].reason == "ended by signal SIGKILL"
    assert "what was printed before" in (tmp_path / "out/logs/raises.txt").read_text()
    found = json.loads((tmp_path / "out/gpu.json").read_text())
    assert list(found["parts"]) == ["raises", "is_killed", "has_nothing", "answers"] and found["well"] is False
    assert found["parts"]["answers"]["numbers"] == {"value": None, "list": [1, 2]}
    page = (tmp_path / "out/gpu.md").read_text()
    assert "| 1 | x \\| &lt;y> |" in page and "**Finding:** it is off." in page
    assert "skipped: it is not installed" in page and "failed: RuntimeError: no kernel image is there" in page


def test_nothing_is_well_that_failed_was_cut_or_found_something_amiss() -> None:
    well = Outcome("card", "The card", 30.0, 2.0, "done", None, Measured(("a",), (("1",),), {}))
    assert well.is_well and replace(well, status="skipped", measured=None).is_well
    assert not replace(well, status="cut").is_well and not replace(well, status="failed").is_well
    assert not replace(well, measured=replace(well.measured, findings=("it differs",))).is_well  # type: ignore[type-var]


def test_all_parts_together_may_take_at_most_eight_minutes() -> None:
    from rl.bench.gpu.bench import PARTS, chosen

    assert sum(each.limit_seconds for each in PARTS) <= 480
    assert len({each.name for each in PARTS}) == len(PARTS) == 9
    assert [each.name for each in chosen("vision,card")] == ["card", "vision"]
    with pytest.raises(ValueError, match=r"--parts names 'cards'.*card,agreement"):
        chosen("card,cards")


def test_without_a_card_the_command_ends_with_status_2_in_one_line_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    from rl.cli.main import main

    if torch.cuda.is_available():
        pytest.skip("a card is here")
    monkeypatch.setattr("sys.argv", ["polytrace", "bench", "gpu", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr()
    assert ended.value.code == 2 and told.out == "" and len(told.err.splitlines()) == 1
    assert "needs a GPU" in told.err and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_command_measures_two_parts_on_a_cpu_and_writes_both_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rl.bench.gpu import bench
    from rl.cli.main import app

    patient = tuple(replace(each, limit_seconds=300.0) for each in bench.PARTS)  # a busy machine imports slowly
    monkeypatch.setattr(bench, "PARTS", patient)
    app(
        ["bench", "gpu", "--device", "cpu", "--parts", "vision,card", "--json", "--out", str(tmp_path)],
        standalone_mode=False,
    )
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "gpu.json").read_text()) and printed["well"] is True
    card, vision = (printed["parts"][name] for name in ("card", "vision"))
    assert card["numbers"]["product_flops_per_second"] > 1e8
    assert [way["name"] for way in vision["numbers"]["ways"]] == ["as the policy does", "a call a window", "varlen"]
    assert printed["machine"]["versions"]["torch"] and printed["machine"]["date"].endswith("+00:00")
    page = (tmp_path / "gpu.md").read_text()
    assert "## The card" in page and "| a call a window |" in page


def test_the_tower_gives_the_same_numbers_by_both_ways_that_a_cpu_has(site: Site) -> None:
    from rl.bench.gpu import vision

    found = vision.measure(site)
    ours, plain, varlen = found.numbers["ways"]
    assert found.numbers["patches"] == 200 and ours["difference"] < 1e-5 and plain["difference"] == 0.0
    assert all(way[key] > 0 for way in (ours, plain) for key in ("forward_ms", "both_ms"))
    assert varlen["forward_ms"] is None and "CPU" in varlen["reason"]


def test_kernels_of_attention_are_told_apart_by_their_names() -> None:
    from rl.bench.gpu.kernels import kind_of_kernel

    names = {
        "void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<128, 128, 64, 4>>(Flash_fwd_params)": "flash",
        "void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<...>": "flash",
        "fmha_cutlassF_bf16_aligned_64x128_rf_sm80(PyTorchMemEffAttention::AttentionKernel<bf16>::Params)": "efficient",
        "fmha_cutlassB_bf16_aligned_128x64_k128_sm80(PyTorchMemEffAttention::AttentionBackwardKernel)": "efficient",
        "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x128": "cudnn",
        "ampere_bf16_s16816gemm_bf16_128x128_ldg8_f2f_stages_32x5_tn": None,
        "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<c10::BFloat16>>": None,
    }
    assert {name: kind_of_kernel(name) for name in names} == names


def test_calls_of_the_math_kernel_on_a_card_are_a_finding(site: Site) -> None:
    from rl.bench.gpu.kernels import findings

    numbers = {"attention_calls": {"flash": 30, "math": 2}}
    on_card = replace(site, device="cuda")
    assert findings({"attention_calls": {"flash": 30}}, on_card) == [] and findings(numbers, site) == []
    assert len(findings(numbers, on_card)) == 1 and findings(numbers, on_card)[0].startswith("2 calls")


def test_attention_within_stretches_of_3_and_5_tokens_takes_2176_operations_at_2_heads_of_8() -> None:
    import torch

    from rl.bench.gpu.learner import varlen_flops

    heads, bounds = torch.zeros(8, 2, 8), torch.tensor([0, 3, 8], dtype=torch.int32)
    assert varlen_flops(heads, heads, heads, bounds, None) == 4 * 2 * 8 * (9 + 25) == 2176
    other = torch.tensor([0, 7, 8], dtype=torch.int32)
    assert varlen_flops(heads, heads, heads, bounds, other, 5, 7, False, scale=None) == 4 * 2 * 8 * (3 * 7 + 5 * 1)


def test_a_difference_beyond_the_bar_and_other_sums_or_answers_are_findings() -> None:
    import numpy as np

    from rl.bench.gpu.agreement import Agreement, findings

    fine = Agreement({"float32, x": np.array([9e-5, 0.0]), "bfloat16, y": np.array([0.2])}, {"float32": (3, 3)}, (8, 8))
    assert findings(fine) == []
    for wrong in (np.array([0.0, 2e-4]), np.array([float("nan")])):
        assert len(findings(replace(fine, differences={"float32, x": wrong}))) == 1
    assert findings(replace(fine, equal_sums={"bfloat16": (1, 3)}))[0].startswith("2 of 3 parameters in bfloat16")
    assert findings(replace(fine, equal_answers=(7, 8)))[0].startswith("1 of 8 greedy answers")


def test_shares_of_a_pass_are_its_operations_over_its_seconds_and_the_peaks() -> None:
    from rl.bench.gpu.learner import Case, rates

    numbers = {"flops": 100e12, "tokens": 4000, "sheet_flops_per_second": 400e12, "product_flops_per_second": 250e12}
    assert rates(Case(False, 2.0, None), numbers) == {"tokens_per_second": 2000, "mfu": 0.125, "share_of_products": 0.2}
    assert rates(Case(False, None, None), numbers)["mfu"] is None
    assert rates(Case(False, 2.0, None), numbers | {"sheet_flops_per_second": None})["mfu"] is None


def test_cards_of_data_sheets_are_known_by_the_names_of_drivers() -> None:
    from rl.bench.gpu.clock import sheet_peak

    assert sheet_peak("NVIDIA H200") == 989e12 and sheet_peak("NVIDIA A100-SXM4-80GB") == 312e12
    assert sheet_peak("NVIDIA H100 PCIe") is None  # slower than the SXM card of the sheet


def test_learner_kernels_and_sampling_run_on_a_cpu_on_one_model_that_is_written_once(site: Site) -> None:
    from rl.bench.gpu import kernels, learner, sampling, subject
    from rl.bench.side_by_side import count

    found = learner.measure(site).numbers
    written = (site.folder / "model/model.safetensors").stat().st_mtime_ns
    plain, again = found["cases"]
    assert (plain["recomputes"], again["recomputes"]) == (False, True) and plain["seconds"] > 0 < again["seconds"]
    assert found["patches"] == 2 * 16 and found["answer_tokens"] == 2 * 3 * 8 < found["tokens"]
    policy = subject.random_policy(site).train()
    whole = count(learner.Pass(policy, subject.random_rows(site, policy)))
    assert 0.8 < found["flops"] / whole < 1.2
    profiled = kernels.measure(site).numbers
    assert profiled["attention_calls"]["flash"] > 0 and "math" not in profiled["attention_calls"]
    assert 0 < profiled["tower_share"] < 1 and len(profiled["largest"]) == 10
    sampled = sampling.measure(site).numbers
    [case] = sampled["cases"]
    assert case["tokens_per_second"] == pytest.approx(8 / case["token_seconds"])
    assert (site.folder / "model/model.safetensors").stat().st_mtime_ns == written


def test_on_one_device_everything_agrees_to_the_bit_and_bfloat16_does_not(site: Site) -> None:
    from rl.bench.gpu import agreement

    found = agreement.measure(site)
    off = found.numbers["logprob_difference"]
    assert off["float32, card and CPU"]["max"] == 0.0 and off["float32, card and CPU"]["tokens"] > 1000
    assert 1e-3 < off["bfloat16, sampler and learner"]["mean"] < 0.1
    assert found.numbers["equal_greedy_answers"] == (8, 8) and found.findings == ()


@pytest.mark.slow
def test_pushed_weights_arrive_and_every_stage_takes_time(site: Site) -> None:
    from rl.bench.gpu import push

    found = push.measure(site)
    seconds = found.numbers["seconds"]
    assert found.numbers["arrived"] is True and found.findings == () and found.numbers["bytes"] > 2**20
    assert all(value > 0 for stage, value in seconds.items() if stage != "to pinned host memory")
    beside = seconds["SHA-256"] + seconds["to pinned host memory"]
    assert found.numbers["push_seconds"] == pytest.approx(sum(seconds.values()) - beside)


@pytest.mark.long
def test_two_steps_by_turns_on_one_device_run_and_sampler_and_learner_agree(site: Site) -> None:
    from rl.bench.gpu import run

    found = run.measure(site)
    assert found.numbers["steps"] == 2 and found.findings == ()
    assert 0 < max(found.numbers["sampler_logprob_difference"]) < 1e-5


@pytest.mark.vllm
def test_the_part_of_vllm_finds_nothing_amiss_in_its_cpu_build(site: Site) -> None:
    pytest.importorskip("vllm")
    from vllm_on_cpu import Engine

    from rl.bench.gpu import subject, vllm

    sampler = Engine(max_model_len=256).open(subject.embedded_plugin(), "cpu")
    found = vllm.compared(sampler, site, {"release": "any"})
    assert found.findings == () and found.numbers["equal_greedy_answers"] == [6, 6]
    assert found.numbers["logprob_difference_after_push"]["max"] < 1e-4


# On a card: the same checks, with the bars of the parts.


@pytest.fixture
def card(tmp_path: Path) -> Site:
    return Site("cuda", tmp_path)


@pytest.mark.gpu
def test_a_card_agrees_with_the_cpu(card: Site) -> None:
    from rl.bench.gpu import agreement

    found = agreement.compare(card)
    off = found.differences
    assert off["float32, card without TF32 and CPU"].max() < agreement.BAR
    assert off["bfloat16, sampler and learner"].mean() < 0.05
    assert all(equal == num for equal, num in found.equal_sums.values()) and found.equal_answers == (8, 8)


@pytest.mark.gpu
def test_no_attention_of_a_pass_takes_the_math_kernel_on_a_card(card: Site) -> None:
    from rl.bench.gpu import kernels

    found = kernels.measure(card)
    assert found.findings == () and found.numbers["attention_seconds"]


@pytest.mark.gpu
def test_the_tower_gives_the_same_by_all_ways_on_a_card(card: Site) -> None:
    from rl.bench.gpu import vision

    found = vision.measure(card)
    assert found.findings == () and all(way["forward_ms"] is not None for way in found.numbers["ways"])


@pytest.mark.gpu
def test_a_push_arrives_on_a_card(card: Site) -> None:
    from rl.bench.gpu import push

    assert push.measure(card).numbers["arrived"] is True


@pytest.mark.gpu
def test_a_rank_and_a_worker_share_a_card_for_two_steps(card: Site) -> None:
    from rl.bench.gpu import run

    found = run.measure(card)
    assert found.numbers["steps"] == 2 and found.findings == ()


@pytest.mark.gpu
def test_a_cuda_graph_changes_no_answer(card: Site) -> None:
    from rl.bench.gpu import subject
    from rollout.engines.shared import Engine
    from rollout.settings import Sampling

    questions, seeds = subject.embedded_questions(4), subject.answer_seeds(4, 8)
    plain, graphed = (
        Engine(cuda_graph=graph).open(subject.embedded_plugin(), "cuda").sample(questions, Sampling(1.0, 48), seeds)
        for graph in (False, True)
    )
    assert subject.tokens_of(plain) == subject.tokens_of(graphed)
