"""vLLM as the engine, for GPUs: thin, and imported only where a config chooses it. Written for vLLM 0.27.

What is otherwise than with our own engine: the draws are vLLM's, seeded a group at a time, and its kernels sum in an
order that depends on what else is in the batch, so that a repeated unit need not repeat to the bit; a grammar cannot
be asked for; and the weights are proved as far as vLLM lets one see them (`WeightReceiver`).
"""

import hashlib
import importlib.util
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from PIL import Image

from envs.example import Question
from envs.plugin import Plugin
from envs.ranges import at_least, between, check_ranges
from policies.families.base import Response
from policies.weights import Bucket, bucket_names, checksum, make_bucket
from rollout.settings import Sampling

log = logging.getLogger(__name__)

_NEVER = -100.0
"""Added to the logits of tokens that cannot be sampled; the most that vLLM takes."""
_COLDEST = 0.01
"""vLLM raises temperatures between 0 and this one to it."""


@dataclass(frozen=True)
class Engine:
    """vLLM on the GPU of each worker."""

    gpu_memory_utilization: Annotated[float, between(0, 1, open=True)] = 0.85
    """Share of the GPU's memory for weights and cache, 0 to 1; lower where a learner's rank lives there too."""
    max_model_len: Annotated[int | None, at_least(1, ", or to null for the model's own.")] = None
    """Longest prompt and answer together, tokens; null: the model's own limit."""
    enforce_eager: bool = False
    """Whether to go without CUDA graphs: starts sooner, samples slower."""

    def __post_init__(self) -> None:
        check_ranges(self, "pool.engine")
        if importlib.util.find_spec("vllm") is None:
            raise ValueError(
                "pool.engine is vllm, but the package vllm is not installed here; install it by "
                "`pip install 'polytrace[vllm]'` on a machine with a GPU, or set pool.engine.name to shared."
            )

    def check(self, sampling: Sampling, gpus_per_worker: float) -> None:
        """Raises ValueError for what vLLM cannot do."""
        if sampling.grammar:
            raise ValueError(
                "sampling.grammar is true, which pool.engine vllm cannot do; set it to false, or pool.engine.name to "
                "shared."
            )
        if 0 < sampling.temperature < _COLDEST:
            raise ValueError(
                f"sampling.temperature is {sampling.temperature}, which vLLM would raise to {_COLDEST}; set it to 0 or "
                f"to {_COLDEST} or more."
            )
        if gpus_per_worker <= 0:
            raise ValueError(
                f"pool.gpus_per_worker is {gpus_per_worker}, but pool.engine vllm needs a GPU; set it to 1."
            )

    def open(self, policy: Plugin) -> "VllmSampler":
        """vLLM with the policy's checkpoint, on the GPU that this process sees."""
        return VllmSampler(self, policy)


class VllmSampler:
    """vLLM in this process, and the policy without weights: its processor, and what its parameters are called."""

    def __init__(self, engine: Engine, policy: Plugin) -> None:
        # In one process with its workers a bucket is handed over as it is; else it would be pickled to another.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        import vllm

        self.policy = policy.with_settings(weights=False).build()
        self._plugin, self._sampling_params = policy, vllm.SamplingParams
        self._llm = vllm.LLM(
            model=str(policy.settings["checkpoint"]),
            dtype=policy.settings.get("dtype", "float32"),
            gpu_memory_utilization=engine.gpu_memory_utilization,
            max_model_len=engine.max_model_len,
            enforce_eager=engine.enforce_eager,
            limit_mm_per_prompt={"image": 1, "video": 0},
            mm_processor_kwargs=self.policy.processor.engine_limits,
            # Log-probabilities after temperature and biases, as the learner takes them, not of the bare logits.
            logprobs_mode="processed_logprobs",
            # The checkpoint's own generation settings (top_k, further end tokens) would change the distribution.
            generation_config="vllm",
            worker_extension_cls="rollout.engines.vllm.WeightReceiver",
        )
        self._held: dict[tuple[str, ...], str] = {}
        self._stale_caches = False
        self._offered: torch.nn.Module | None = None

    def load_bucket(self, bucket: Bucket) -> None:
        """Take over some weights. Raises KeyError or ValueError where they do not fit, RuntimeError where not taken."""
        parameters = dict(self.policy.model.named_parameters())
        shapes = [tuple(parameters[name].shape) for name in bucket.names]
        expected = sum(parameters[name].numel() * parameters[name].element_size() for name in bucket.names)
        if len(bucket.data) != expected:
            raise ValueError(
                f"a bucket brings {len(bucket.data)} bytes for parameters of {expected} bytes (from {bucket.names[0]} "
                "on): the two models differ; give all parts the same checkpoint and the same dtype."
            )
        self._held.pop(bucket.names, None)
        self._stale_caches, self._offered = True, None
        dtype = str(parameters[bucket.names[0]].dtype).removeprefix("torch.")
        replies = self._llm.collective_rpc("take_bucket", args=(bucket.names, shapes, dtype, bucket.data.tobytes()))
        (digest, unseen), *_ = replies
        log.debug("%d of %d weights arrived in a form that cannot be compared", unseen, len(bucket.names))
        self._held[bucket.names] = digest

    def held_checksum(self) -> str:
        """Checksum of the bytes that arrived at vLLM's worker; see `WeightReceiver` for what it proves.

        Raises RuntimeError where some weights were never delivered.
        """
        order = {name: place for place, (name, _) in enumerate(self.policy.model.named_parameters())}
        missing = set(order) - {name for names in self._held for name in names}
        if missing:
            raise RuntimeError(f"vLLM was not given {len(missing)} of {len(order)} weights, such as {min(missing)}.")
        return checksum(self._held[names] for names in sorted(self._held, key=lambda names: order[names[0]]))

    def load_checkpoint(self, checkpoint: Path) -> None:
        """Read a Hugging Face folder, for `buckets`; vLLM takes it over as it takes every other delivery."""
        self._offered = self._plugin.with_settings(checkpoint=checkpoint).build().model
        self._held = {}

    def buckets(self) -> Iterator[Bucket]:
        """The weights of the checkpoint read last; RuntimeError where vLLM has been given others since."""
        if self._offered is None:
            raise RuntimeError("vLLM's weights cannot be read back in one piece; call load_checkpoint first.")
        return (make_bucket(part) for part in bucket_names(self._offered))

    def sample(
        self, questions: Sequence[Question], sampling: Sampling, seeds: Sequence[Sequence[int]]
    ) -> list[list[Response]]:
        """[B][G] responses to B questions; the first seed of a group seeds all of it.

        Raises RuntimeError where vLLM made other prompts of the questions than the learner will.
        """
        if self._stale_caches:
            self._llm.reset_prefix_cache()
            # Else images seen before would keep the features of the old vision tower.
            self._llm.llm_engine.reset_encoder_cache()
            self._stale_caches = False
        processor = self.policy.processor
        prompts = [
            {
                "prompt_token_ids": processor.engine_tokens(question).tolist(),
                "multi_modal_data": {"image": Image.fromarray(processor.shown_image(question.image))},
            }
            for question in questions
        ]
        params = [self._params(sampling, own) for own in seeds]
        outputs = self._llm.generate(prompts, params, use_tqdm=False)
        for output, question in zip(outputs, questions, strict=True):
            if list(output.prompt_token_ids) != processor.prompt_tokens(question).tolist():
                raise RuntimeError(
                    f"vLLM made {len(output.prompt_token_ids)} tokens of the question {question.prompt.told!r}, the "
                    "policy other ones; look for an image processor whose settings differ from the checkpoint's."
                )
        return [[self._response(each) for each in sorted(o.outputs, key=lambda each: each.index)] for o in outputs]

    def _params(self, sampling: Sampling, seeds: Sequence[int]) -> Any:
        """How vLLM draws one group's answers."""
        return self._sampling_params(
            n=len(seeds),
            temperature=sampling.temperature,
            top_p=1.0,
            max_tokens=sampling.max_tokens,
            seed=seeds[0] >> 2,  # theirs are signed, and count up within the group
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


class WeightReceiver:
    """What vLLM's worker is given besides its own methods (`worker_extension_cls`).

    Proof of the weights: the checksum is taken here, of the bytes that arrived. vLLM keeps most matrices joined (q, k
    and v; gate and up) or padded, so that they cannot be hashed as they were sent; those that it keeps as they are are
    read back and must be equal.
    """

    model_runner: Any
    """Model runner of vLLM's worker."""

    def take_bucket(
        self, names: Sequence[str], shapes: Sequence[Sequence[int]], dtype: str, data: bytes
    ) -> tuple[str, int]:
        """Load named weights from the bytes of all of them, one after the other.

        Returns the SHA-256 of `data`, and how many weights could not be read back. Raises ValueError for a weight that
        the model has no place for, RuntimeError where another value is read back than was loaded.
        """
        model, unseen = self.model_runner.model, 0
        held = dict(model.named_parameters())
        flat = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(_DTYPES[dtype])
        sizes = [int(np.prod(shape)) for shape in shapes]
        for name, shape, part in zip(names, shapes, flat.split(sizes), strict=True):
            weight = part.view(tuple(shape))
            loaded = model.load_weights([(name, weight)])
            if not loaded:
                raise ValueError(f"vLLM's model has no place for {name}; its family must be one that both sides know.")
            same_form = [held[place] for place in loaded if held[place].shape == weight.shape]
            unseen += not same_form
            if any(not torch.equal(place.detach().cpu(), weight) for place in same_form):
                raise RuntimeError(f"vLLM holds another {name} than was sent; its answers would be another policy's.")
        return hashlib.sha256(data).hexdigest(), unseen


_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
