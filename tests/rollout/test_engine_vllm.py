"""vLLM as the engine, against its interface as recorded from vLLM 0.27.1; test_vllm_real.py has vLLM itself.

Signatures are those of vllm/entrypoints/llm.py, vllm/sampling_params.py, vllm/outputs.py and, of what reaches
EngineArgs, vllm/engine/arg_utils.py. Behind them answers our own sampler, so that what comes back can be checked.
"""

import sys
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from math import isqrt
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from asking import ask, ask_all
from torch import nn

from envs.codecs.path_tokens import Codec
from envs.example import image_sha256
from envs.plugin import Plugin
from policies.families.vision_language import Policy
from policies.tiny_model import TinySizes, write_untrained
from policies.weights import bucket_checksum, bucket_names, held_checksum, make_bucket
from rollout.engines import shared as engine_shared
from rollout.engines._vllm_images import resized
from rollout.engines._vllm_weights import WeightReceiver
from rollout.engines.vllm import Engine, VllmSampler, refuse_untested
from rollout.settings import Sampling
from rollout.worker import RolloutWorker, Unit, WorkerSettings

ENGINE_ARGS = {"max_model_len", "limit_mm_per_prompt", "mm_processor_kwargs", "logprobs_mode", "generation_config"}
ENGINE_ARGS |= {"worker_extension_cls", "enable_sleep_mode"}
SIZES = TinySizes(
    image_size=32, text_width=32, text_layers=2, text_heads=2, vision_width=16, vision_layers=2, vision_heads=2
)


@dataclass
class SamplingParams:
    """The fields that are used, with their defaults."""

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    logprobs: int | None = None
    detokenize: bool = True
    logit_bias: dict[int, float] | None = None


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: Sequence[int]
    cumulative_logprob: float | None
    logprobs: list[dict[int, Logprob]] | None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass
class RequestOutput:
    request_id: str
    prompt: str | None
    prompt_token_ids: list[int] | None
    outputs: list[CompletionOutput]
    finished: bool = True


class NamedModel(nn.Module):
    """A model that loads weights by name, as vLLM's do, and joins none."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = model
        self.packed_modules_mapping: dict[str, list[str]] = {}
        self.hf_to_vllm_mapper = self

    def apply_list(self, values: list[str]) -> list[str]:
        return [f"inner.{name}" for name in values]

    def load_weights(self, weights: Sequence[tuple[str, torch.Tensor]]) -> set[str]:
        for name, weight in weights:
            self.inner.get_parameter(name).data.copy_(weight)
        return {f"inner.{name}" for name, _ in weights}


class LLM:
    """Records what it is asked; answers by our own sampler on the same checkpoint."""

    made: ClassVar[list["LLM"]] = []

    def __init__(
        self,
        model: str,
        *,
        dtype: str = "auto",
        seed: int = 0,
        gpu_memory_utilization: float = 0.9,
        enforce_eager: bool = False,
        **kwargs: Any,
    ) -> None:
        assert set(kwargs) <= ENGINE_ARGS
        self.settings = {"model": model, "dtype": dtype, "gpu": gpu_memory_utilization, **kwargs}
        self.emptied = True
        self.calls: list[str] = []
        self.params: list[SamplingParams] = []
        self.images: list[np.ndarray] = []
        self.policy = Policy(Path(model), Codec(), dtype=dtype, **kwargs["mm_processor_kwargs"])
        self.receiver = WeightReceiver()
        self.receiver.model_runner = SimpleNamespace(model=NamedModel(self.policy.model))
        self.llm_engine = SimpleNamespace(
            reset_encoder_cache=lambda: self.calls.append("reset_encoder_cache"),
            model_config=SimpleNamespace(max_model_len=kwargs["max_model_len"] or 2048),
        )
        LLM.made.append(self)

    def generate(
        self,
        prompts: Sequence[dict[str, Any]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool | Callable[..., Any] = True,
    ) -> list[RequestOutput]:
        assert isinstance(sampling_params, list) and len(sampling_params) == len(prompts)
        self.calls.append("generate")
        self.params += sampling_params
        return [self._request(*pair) for pair in zip(prompts, sampling_params, strict=True)]

    def _request(self, prompt: dict[str, Any], params: SamplingParams) -> RequestOutput:
        image = np.asarray(prompt["multi_modal_data"]["image"])
        self.images.append(image)
        phrase = str(self.policy.processor.tokenizer.decode(prompt["prompt_token_ids"][3:-1]))
        rows = self.policy.rows([ask(image, phrase)], [[np.array([self.policy.processor.end_token])]])
        assert params.n == 1 and prompt["multi_modal_uuids"] == {"image": [image_sha256(image)]}
        draws = np.random.default_rng(params.seed).random((1, params.n, params.max_tokens))
        responses = engine_shared.sample(self.policy, rows, Sampling(params.temperature, params.max_tokens), draws)
        outputs = [
            CompletionOutput(
                index=k,
                text="",
                token_ids=tuple(each.tokens.tolist()),
                cumulative_logprob=None,
                logprobs=[{t: Logprob(p)} for t, p in zip(each.tokens.tolist(), each.logprobs.tolist(), strict=True)],
                finish_reason=each.finish,
            )
            for k, each in enumerate(responses)
        ]
        return RequestOutput("0", None, rows.prompt_tokens[0].tolist(), outputs[::-1])

    def collective_rpc(
        self,
        method: str,
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> list[Any]:
        self.calls.append(method)
        methods = {"take_weights": self.receiver.take_weights, "held_weights": self.receiver.held_weights}
        return [methods[method](*args, **(kwargs or {}))]

    def sleep(self, level: int = 1, mode: str = "abort") -> None:
        self.calls.append(f"sleep {level}")

    def wake_up(self, tags: list[str] | None = None) -> None:
        self.calls.append(f"wake_up {tags}")

    def reset_prefix_cache(self, reset_running_requests: bool = False, reset_connector: bool = False) -> bool:
        self.calls.append("reset_prefix_cache")
        return self.emptied


@pytest.fixture(autouse=True)
def recorded_vllm(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    install(monkeypatch, tmp_path_factory.mktemp("site"), "0.30.0")
    module = ModuleType("vllm")
    module.__spec__ = ModuleSpec("vllm", None)
    vars(module).update(LLM=LLM, SamplingParams=SamplingParams)
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    LLM.made.clear()


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, release: str) -> None:
    """What pip would leave of a release for `importlib.metadata` to see."""
    (folder / f"vllm-{release}.dist-info").mkdir()
    (folder / f"vllm-{release}.dist-info" / "METADATA").write_text(f"Name: vllm\nVersion: {release}\n")
    monkeypatch.syspath_prepend(str(folder))


def plugin(checkpoint: Path) -> Plugin:
    return Plugin("policies.families", "Policy", "vision_language", {"checkpoint": checkpoint, "codec": Codec()})


def opened(checkpoint: Path) -> tuple[VllmSampler, LLM]:
    sampler = Engine(max_model_len=512).open(plugin(checkpoint), "cuda")
    return sampler, LLM.made[-1]


def pictures(num: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (num, 32, 32, 3), dtype=np.uint8))


def other_weights(checkpoint: Path, folder: Path) -> Policy:
    """A policy of the same sizes and words, with other weights."""
    words = sorted(Policy(checkpoint, Codec()).processor.tokenizer.get_vocab().items(), key=lambda item: item[1])
    write_untrained(folder, [word for word, _ in words], SIZES, seed=9)
    return Policy(folder, Codec())


def test_vllm_is_opened_so_that_it_speaks_of_the_learners_distribution(tiny_untrained: Path) -> None:
    sampler, llm = opened(tiny_untrained)
    assert llm.settings == {
        "model": str(tiny_untrained),
        "dtype": "float32",
        "gpu": 0.85,
        "max_model_len": 512,
        "limit_mm_per_prompt": {"image": 1, "video": 0},
        "mm_processor_kwargs": {"min_pixels": 8 * 8, "max_pixels": isqrt(200 * 8 * 8 * 32 * 32) + 8 * 8},
        "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm",
        "enable_sleep_mode": False,
        "worker_extension_cls": "rollout.engines._vllm_weights.WeightReceiver",
    }
    assert {parameter.device.type for parameter in sampler.policy.model.parameters()} == {"meta"}


def test_an_answer_is_one_request_with_its_own_seed_and_the_policys_restrictions(tiny_untrained: Path) -> None:
    sampler, llm = opened(tiny_untrained)
    sampler.sample(ask_all(pictures(2), ["dog", "cat"]), Sampling(0.7, 9), [[2**63 + 8, 5, 6], [4, 2, 2**64 - 1]])
    special = set(sampler.policy.processor.tokenizer.all_special_ids) - {sampler.policy.processor.end_token}
    assert llm.params[0] == SamplingParams(
        n=1,
        temperature=0.7,
        seed=8,
        stop_token_ids=[sampler.policy.processor.end_token],
        ignore_eos=True,
        max_tokens=9,
        logprobs=0,
        detokenize=False,
        logit_bias=dict.fromkeys(special, -100.0),
    )
    assert [params.seed for params in llm.params] == [8, 5, 6, 4, 2, 2**63 - 1]
    assert llm.calls == ["generate"] and len(special) == 7


def test_responses_come_in_order_with_the_log_probabilities_of_forward(tiny_untrained: Path) -> None:
    sampler, _ = opened(tiny_untrained)
    answers = sampler.sample(ask_all(pictures(2), ["dog", "cat"]), Sampling(1.0, 12), [[8, 9, 10, 11], [4, 5, 6, 7]])
    policy = Policy(tiny_untrained, Codec())
    rows = policy.rows(ask_all(pictures(2), ["dog", "cat"]), [[answer.tokens for answer in group] for group in answers])
    logprobs = policy(rows).detach().numpy()
    for b, group in enumerate(answers):
        for g, answer in enumerate(group):
            assert answer.logprobs.dtype == np.float32
            np.testing.assert_allclose(answer.logprobs, logprobs[b, g, : len(answer.tokens)], atol=1e-5)
            assert answer.finish == ("stop" if answer.tokens[-1] == policy.processor.end_token else "length")
    # An answer alone is drawn as it is among others: by its own seed.
    (alone,) = sampler.sample(ask_all(pictures(2)[1:], ["cat"]), Sampling(1.0, 12), [[6]])
    assert alone[0].tokens.tolist() == answers[1][2].tokens.tolist() != answers[1][3].tokens.tolist()


def test_images_are_handed_over_at_the_size_that_the_tower_sees(tiny_untrained: Path) -> None:
    sampler, llm = opened(tiny_untrained)
    thin, square = np.arange(2 * 450 * 3, dtype=np.uint8).reshape(2, 450, 3), pictures(1)[0]
    sampler.sample(ask_all([thin, square], ["dog", "cat"]), Sampling(1.0, 4), [[8, 9], [4, 5]])
    assert len(llm.images) == 4 and llm.images[0].shape[:2] == sampler.policy.processor.shown_size(2, 450)
    np.testing.assert_array_equal(llm.images[0], resized(sampler.policy.processor, thin))
    np.testing.assert_array_equal(llm.images[2], square)


def test_a_question_that_leaves_its_answer_no_room_is_refused(tiny_untrained: Path) -> None:
    sampler = Engine(max_model_len=27).open(plugin(tiny_untrained), "cuda")
    sampler.sample(ask_all(pictures(1), ["dog"]), Sampling(1.0, 7), [[1]])
    message = r"question 'dog' and its answer can take 28 tokens, and vLLM was opened for 27; set .*max_model_len to 28"
    with pytest.raises(ValueError, match=message):
        sampler.sample(ask_all(pictures(1), ["dog"]), Sampling(1.0, 8), [[1]])


def test_other_prompt_tokens_than_the_learners_are_refused(
    tiny_untrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler, llm = opened(tiny_untrained)
    answer = llm._request
    monkeypatch.setattr(llm, "_request", lambda *args: shortened(answer(*args)))
    with pytest.raises(RuntimeError, match=r"vLLM made 19 tokens of the question 'dog', the policy other ones"):
        sampler.sample(ask_all(pictures(1), ["dog"]), Sampling(1.0, 4), [[1, 2]])


def shortened(output: RequestOutput) -> RequestOutput:
    output.prompt_token_ids = output.prompt_token_ids[1:]
    return output


@pytest.mark.parametrize("reason", ["stop", "abort", None])
def test_an_answer_that_ended_otherwise_than_by_its_end_token_or_the_limit_is_refused(
    tiny_untrained: Path, reason: str | None
) -> None:
    sampler, _ = opened(tiny_untrained)
    completion = CompletionOutput(0, "", (20, 21), None, [{20: Logprob(-1.0)}, {21: Logprob(-1.0)}], reason)
    with pytest.raises(RuntimeError, match=rf"ended an answer of 2 tokens by {reason!r} without the end token"):
        sampler._response(completion)


def test_a_worker_takes_weights_bucket_by_bucket_proves_them_and_answers_with_them(
    tiny_untrained: Path, tmp_path: Path
) -> None:
    env = Plugin("envs.datasets", "Env", "cutout_scenes", {"image_size": 32, "num_scenes": 20})
    settings = WorkerSettings("a-run", 1, env, plugin(tiny_untrained), Plugin("rollout.engines", "Engine", "vllm", {}))
    worker, sender = RolloutWorker(settings, "one"), other_weights(tiny_untrained, tmp_path)
    buckets = [make_bucket(part) for part in bucket_names(sender.model, 20_000)]
    assert len(buckets) > 2
    assert worker.set_weights(3, buckets) == bucket_checksum(buckets)
    (group,) = worker.answer(Unit("train", 3, (4,), (7,), 4, Sampling(1.0, 8)), 3)
    llm = LLM.made[-1]
    taken = ["take_weights"] * len(buckets) + ["held_weights"]
    assert llm.calls == [*taken, "reset_prefix_cache", "reset_encoder_cache", "generate"]
    assert held_checksum(llm.policy.model) == held_checksum(sender.model)
    assert group.policy_checksum == bucket_checksum(buckets)
    assert [rollout.policy_version for rollout in group.rollouts] == [3] * 4
    worker.answer(Unit("train", 3, (5,), (7,), 4, Sampling(1.0, 8)), 3)
    assert llm.calls[-2:] == ["generate", "generate"]  # caches are emptied once a delivery


def test_answers_are_refused_where_the_cache_of_prefixes_was_not_emptied(tiny_untrained: Path) -> None:
    sampler, llm = opened(tiny_untrained)
    sampler.load_checkpoint(tiny_untrained)
    llm.emptied = False
    with pytest.raises(RuntimeError, match="did not empty its cache of prefixes"):
        sampler.sample(ask_all(pictures(1), ["dog"]), Sampling(1.0, 4), [[1, 2]])
    assert "generate" not in llm.calls


def test_what_is_held_is_hashed_anew_from_vllms_own_parameters(tiny_untrained: Path, tmp_path: Path) -> None:
    sampler, llm = opened(tiny_untrained)
    assert sampler.held_checksum() == held_checksum(Policy(tiny_untrained, Codec()).model)
    other = other_weights(tiny_untrained, tmp_path)
    sampler.load_checkpoint(tmp_path)
    assert sampler.held_checksum() == bucket_checksum(sampler.buckets()) == held_checksum(other.model)
    llm.policy.model.get_parameter("lm_head.weight").data[3, 5] += 1e-6
    assert sampler.held_checksum() == bucket_checksum(sampler.buckets()) != held_checksum(other.model)


def test_a_delivery_of_other_sizes_changes_nothing(tiny_untrained: Path, tmp_path: Path) -> None:
    sampler, llm = opened(tiny_untrained)
    (part, *_) = bucket_names(other_weights(tiny_untrained, tmp_path).model, 20_000)
    with pytest.raises(ValueError, match=r"a bucket brings \d+ bytes for parameters of \d+ bytes"):
        sampler.load_bucket(make_bucket([(name, parameter.half()) for name, parameter in part]))
    with pytest.raises(KeyError):
        sampler.load_bucket(make_bucket([("model.unknown", torch.zeros(2))]))
    assert llm.calls == []


def test_vllm_sleeps_once_and_wakes_each_part_once_and_its_caches_are_stale_then(tiny_untrained: Path) -> None:
    sampler = Engine().open(plugin(tiny_untrained), "cuda", sleeps=True)
    llm = LLM.made[-1]
    assert llm.settings["enable_sleep_mode"] is True
    sampler.wake_weights()
    sampler.sleep(True)
    sampler.sleep(True)
    sampler.wake_weights()
    sampler.wake_caches()
    sampler.wake_caches()
    sampler.sleep(False)
    sampler.wake_caches()
    sampler.sample(ask_all(pictures(1), ["dog"]), Sampling(1.0, 4), [[1, 2]])
    woken = ["wake_up ['weights']", "wake_up ['kv_cache']"]
    asked = ["reset_prefix_cache", "reset_encoder_cache", "generate"]
    assert llm.calls == ["sleep 2", *woken, "sleep 1", woken[1], *asked]


@pytest.mark.parametrize(
    ("sampling", "gpus", "message"),
    [
        (Sampling(grammar=True), 1.0, "sampling.grammar is true, which pool.engine vllm cannot do"),
        (Sampling(temperature=0.001), 1.0, "sampling.temperature is 0.001, which vLLM would raise to 0.01"),
        (Sampling(temperature=2.01), 1.0, "sampling.temperature is 2.01, and pool.engine vllm takes 2 at most"),
        (Sampling(temperature_schedule=[[0, 2.5], [9, 1]]), 1.0, "sampling.temperature_schedule is 2.5, and pool.eng"),
        (Sampling(), 0.0, "pool.gpus_per_worker is 0.0, but pool.engine vllm needs a GPU"),
    ],
)
def test_what_vllm_cannot_do_is_refused(sampling: Sampling, gpus: float, message: str) -> None:
    for possible in (0.0, 0.01, 2.0):
        Engine().check(Sampling(temperature=possible), 1.0)
    with pytest.raises(ValueError, match=message):
        Engine().check(sampling, gpus)


def test_without_the_package_the_engine_is_refused_by_what_to_install() -> None:
    with pytest.raises(ValueError, match=r"vllm is not installed here; install it by .* 'polytrace\[vllm\]'"):
        refuse_untested(None)


@pytest.mark.parametrize("release", ["0.26.1", "0.31.0", "0.3.0", "0.301", "1.0", "unknown"])
def test_a_release_outside_the_tested_ones_is_refused(
    release: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch, tmp_path, release)
    with pytest.raises(ValueError, match=rf"vLLM {release} is installed, .* install 0.27 to 0.30 by"):
        Engine()


def test_the_tested_releases_are_those_that_the_extra_installs() -> None:
    for release in ("0.27.1", "0.29.0", "0.30", "0.30.1rc1", "0.30.0+cpu"):
        refuse_untested(release)
    extras = tomllib.loads(Path("pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras["vllm"] == ["vllm>=0.27,<0.31"]


def test_a_share_of_memory_outside_0_to_1_is_refused() -> None:
    with pytest.raises(ValueError, match=r"gpu_memory_utilization is 1\.5; set it to 0\.\.1"):
        Engine(gpu_memory_utilization=1.5)
