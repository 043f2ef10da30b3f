"""vLLM as the engine, against its interface as recorded from vLLM 0.27.1: vLLM itself needs a GPU.

Signatures are those of vllm/entrypoints/llm.py, vllm/sampling_params.py, vllm/outputs.py and, of what reaches
EngineArgs, vllm/engine/arg_utils.py. Behind them answers our own sampler, so that what comes back can be checked.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from asking import ask, ask_all
from torch import nn

from envs.codecs.path_tokens import Codec
from envs.plugin import Plugin
from policies.families.vision_language import Policy
from policies.tiny_model import TinySizes, write_untrained
from policies.weights import bucket_names, checksum, held_checksum, make_bucket
from rollout.engines import shared as engine_shared
from rollout.engines.vllm import Engine, VllmSampler, WeightReceiver
from rollout.settings import Sampling
from rollout.worker import RolloutWorker, Unit, WorkerSettings

ENGINE_ARGS = {"max_model_len", "limit_mm_per_prompt", "mm_processor_kwargs", "logprobs_mode", "generation_config"}
ENGINE_ARGS |= {"worker_extension_cls"}
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
    """A model that loads weights by name, as vLLM's do."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = model

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
        self.calls: list[str] = []
        self.params: list[SamplingParams] = []
        self.images: list[np.ndarray] = []
        self.policy = Policy(Path(model), Codec(), dtype=dtype)
        self.receiver = WeightReceiver()
        self.receiver.model_runner = SimpleNamespace(model=NamedModel(self.policy.model))
        self.llm_engine = SimpleNamespace(reset_encoder_cache=lambda: self.calls.append("reset_encoder_cache"))
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
        assert method == "take_bucket"
        self.calls.append(method)
        return [self.receiver.take_bucket(*args, **(kwargs or {}))]

    def reset_prefix_cache(self, reset_running_requests: bool = False, reset_connector: bool = False) -> bool:
        self.calls.append("reset_prefix_cache")
        return True


@pytest.fixture(autouse=True)
def recorded_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("vllm")
    module.__spec__ = ModuleSpec("vllm", None)
    vars(module).update(LLM=LLM, SamplingParams=SamplingParams)
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    LLM.made.clear()


def plugin(checkpoint: Path) -> Plugin:
    return Plugin("policies.families", "Policy", "vision_language", {"checkpoint": checkpoint, "codec": Codec()})


def opened(checkpoint: Path) -> tuple[VllmSampler, LLM]:
    sampler = Engine(max_model_len=512).open(plugin(checkpoint))
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
        "mm_processor_kwargs": {"min_pixels": 32 * 32, "max_pixels": 32 * 32},
        "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm",
        "worker_extension_cls": "rollout.engines.vllm.WeightReceiver",
    }
    assert {parameter.device.type for parameter in sampler.policy.model.parameters()} == {"meta"}


def test_a_group_is_one_request_with_the_policys_own_restrictions(tiny_untrained: Path) -> None:
    sampler, llm = opened(tiny_untrained)
    sampler.sample(ask_all(pictures(2), ["dog", "cat"]), Sampling(0.7, 9), [[2**63 + 8, 5, 6], [4, 2, 3]])
    special = set(sampler.policy.processor.tokenizer.all_special_ids) - {sampler.policy.processor.end_token}
    assert llm.params[0] == SamplingParams(
        n=3,
        temperature=0.7,
        seed=2**61 + 2,
        stop_token_ids=[sampler.policy.processor.end_token],
        ignore_eos=True,
        max_tokens=9,
        logprobs=0,
        detokenize=False,
        logit_bias=dict.fromkeys(special, -100.0),
    )
    assert llm.params[1].seed == 1 and len(special) == 7


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
    # The first answer of a group has the group's first draws, though outputs arrived last one first.
    draws = np.random.default_rng(2).random((1, 4, 12))
    rows = policy.rows(ask_all(pictures(1), ["dog"]), [[np.array([policy.processor.end_token])]])
    first = engine_shared.sample(policy, rows, Sampling(1.0, 12), draws)[0]
    assert answers[0][0].tokens.tolist() == first.tokens.tolist()


def test_an_image_too_thin_for_the_image_processor_is_handed_over_as_the_learner_stretches_it(
    tiny_untrained: Path,
) -> None:
    sampler, llm = opened(tiny_untrained)
    thin, square = np.arange(2 * 450 * 3, dtype=np.uint8).reshape(2, 450, 3), pictures(1)[0]
    sampler.sample(ask_all([thin, square], ["dog", "cat"]), Sampling(1.0, 4), [[8, 9], [4, 5]])
    assert llm.images[0].shape == (3, 450, 3)
    np.testing.assert_array_equal(llm.images[0], sampler.policy.processor.shown_image(thin))
    np.testing.assert_array_equal(llm.images[1], square)


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
    assert worker.set_weights(3, buckets) == checksum(bucket.sha256 for bucket in buckets)
    (group,) = worker.answer(Unit("train", 3, (4,), (7,), 4, Sampling(1.0, 8)), 3)
    llm = LLM.made[-1]
    assert llm.calls == ["take_bucket"] * len(buckets) + ["reset_prefix_cache", "reset_encoder_cache", "generate"]
    assert held_checksum(llm.policy.model) == held_checksum(sender.model)
    assert group.policy_checksum == checksum(bucket.sha256 for bucket in buckets)
    assert [rollout.policy_version for rollout in group.rollouts] == [3] * 4
    worker.answer(Unit("train", 3, (5,), (7,), 4, Sampling(1.0, 8)), 3)
    assert llm.calls[-2:] == ["generate", "generate"]  # caches are emptied once a delivery


def test_a_delivery_with_a_part_missing_has_no_checksum(tiny_untrained: Path) -> None:
    sampler, _ = opened(tiny_untrained)
    buckets = [make_bucket(part) for part in bucket_names(Policy(tiny_untrained, Codec()).model, 20_000)]
    for bucket in buckets[1:]:
        sampler.load_bucket(bucket)
    with pytest.raises(RuntimeError, match=rf"was not given {len(buckets[0].names)} of \d+ weights, such as model"):
        sampler.held_checksum()


def test_a_checkpoint_is_offered_in_the_learners_buckets_until_other_weights_come(
    tiny_untrained: Path, tmp_path: Path
) -> None:
    sampler, _ = opened(tiny_untrained)
    other = other_weights(tiny_untrained, tmp_path)
    sampler.load_checkpoint(tmp_path)
    buckets = list(sampler.buckets())
    for bucket in buckets:
        sampler.load_bucket(bucket)
    assert sampler.held_checksum() == held_checksum(other.model)
    with pytest.raises(RuntimeError, match="cannot be read back in one piece; call load_checkpoint first"):
        sampler.buckets()


class JoinedModel(nn.Module):
    """Keeps q and k as one matrix, as vLLM does, and a norm as it is; `broken` halves what it loads."""

    def __init__(self, broken: bool = False) -> None:
        super().__init__()
        self.qk = nn.Parameter(torch.zeros(4, 3), requires_grad=False)
        self.norm = nn.Parameter(torch.zeros(3), requires_grad=False)
        self.scale = 0.5 if broken else 1.0

    def load_weights(self, weights: Sequence[tuple[str, torch.Tensor]]) -> set[str]:
        loaded = set()
        for name, weight in weights:
            if name in ("q", "k"):
                self.qk[{"q": slice(0, 2), "k": slice(2, 4)}[name]] = weight
                loaded.add("qk")
            elif name == "norm":
                self.norm.copy_(weight * self.scale)
                loaded.add("norm")
        return loaded


def receive(model: nn.Module, names: tuple[str, ...]) -> tuple[str, int]:
    receiver = WeightReceiver()
    receiver.model_runner = SimpleNamespace(model=model)
    shapes = [(3,) if name == "norm" else (2, 3) for name in names]
    data = np.arange(sum(int(np.prod(shape)) for shape in shapes), dtype=np.float32).tobytes()
    return receiver.take_bucket(names, shapes, "float32", data)


def test_the_receiver_loads_joined_matrices_and_says_how_many_it_could_not_read_back() -> None:
    model = JoinedModel()
    _, unseen = receive(model, ("q", "norm", "k"))
    assert unseen == 2
    assert model.qk.flatten().tolist() == [0, 1, 2, 3, 4, 5, 9, 10, 11, 12, 13, 14]
    assert model.norm.tolist() == [6, 7, 8]


def test_the_receiver_refuses_a_weight_that_is_read_back_otherwise_or_has_no_place() -> None:
    with pytest.raises(RuntimeError, match="vLLM holds another norm than was sent"):
        receive(JoinedModel(broken=True), ("norm",))
    with pytest.raises(ValueError, match="vLLM's model has no place for gate"):
        receive(JoinedModel(), ("gate",))


@pytest.mark.parametrize(
    ("sampling", "gpus", "message"),
    [
        (Sampling(grammar=True), 1.0, "sampling.grammar is true, which pool.engine vllm cannot do"),
        (Sampling(temperature=0.001), 1.0, "sampling.temperature is 0.001, which vLLM would raise to 0.01"),
        (Sampling(), 0.0, "pool.gpus_per_worker is 0.0, but pool.engine vllm needs a GPU"),
    ],
)
def test_what_vllm_cannot_do_is_refused(sampling: Sampling, gpus: float, message: str) -> None:
    Engine().check(Sampling(temperature=0.0), 1.0)
    with pytest.raises(ValueError, match=message):
        Engine().check(sampling, gpus)


def test_without_the_package_the_engine_is_refused_by_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "vllm")
    with pytest.raises(ValueError, match=r"vllm is not installed here; install it by .* 'polytrace\[vllm\]'"):
        Engine()


def test_a_share_of_memory_outside_0_to_1_is_refused() -> None:
    with pytest.raises(ValueError, match=r"gpu_memory_utilization is 1\.5; set it to 0\.\.1"):
        Engine(gpu_memory_utilization=1.5)
