"""Our sampler: each prompt is encoded once and shared by its answers; groups enter as others leave.

Every random number is keyed by (seed, step, position of the group, index in the group, token): which worker samples
a group, and how often it is retried, changes nothing. When groups enter and leave follows from the unit's own answers
alone, so neither does that.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray

from envs.example import Question
from envs.plugin import Plugin
from envs.ranges import at_least, check_ranges
from policies.families.base import DrawingPolicy, PolicyContract, PromptRows, Response
from policies.weights import Bucket, bucket_names, held_checksum, load_bucket, make_bucket, travelling
from rollout.engines._flight import Flight
from rollout.engines._token_graph import GraphedFlights
from rollout.engines.base import uniforms
from rollout.settings import Sampling


@dataclass(frozen=True)
class Engine:
    """Our own engine on transformers: nothing to install, the same on a CPU and on a GPU."""

    max_answers: Annotated[int | None, at_least(1, ", or to null.")] = None
    """Answers of a unit that are sampled at once, rounded down to whole groups, but one group at least; the next group
    enters when one is done. null: all of the unit. It bounds the memory of large units, and is part of the result's
    identity to the last bit, as groups_per_unit is."""
    look_every: Annotated[int | None, at_least(1, ", or to null.")] = None
    """Tokens between two looks at which answers have ended, so that they may leave; null: 1 on a CPU, 8 on a GPU, which
    a look makes wait. Answers end where they ended in any case; their last bits may differ, as with max_answers."""
    cuda_graph: bool = False
    """Whether a token is recorded as a CUDA graph and repeated by one call. Answers then stay until all of the unit
    have ended, and the buffers stay on the GPU between units. Needs pool.gpus_per_worker above 0."""

    def __post_init__(self) -> None:
        check_ranges(self, "pool.engine")

    def check(self, sampling: Sampling, gpus_per_worker: float) -> None:
        """It can draw in every way there is, with and without GPUs; ValueError for a CUDA graph without one."""
        if self.cuda_graph and not gpus_per_worker:
            raise ValueError(
                f"pool.engine.cuda_graph is true and pool.gpus_per_worker {gpus_per_worker}, but only a GPU repeats "
                "CUDA graphs; set cuda_graph to false, or gpus_per_worker to 1."
            )

    def open(self, policy: Plugin, device: str, sleeps: bool = False) -> "SharedSampler":
        """A sampler that holds the policy's checkpoint on `device`; it may always sleep."""
        return SharedSampler(policy, self, device)


_AS_IT_IS = Engine()


class SharedSampler:
    """The policy itself, as a sampler."""

    def __init__(self, policy: Plugin, settings: Engine = _AS_IT_IS, device: str = "cpu") -> None:
        self._plugin, self._device, self._settings = policy, device, settings
        self._graphed: GraphedFlights | None = None
        self._asleep: dict[str, torch.Size] = {}
        self.policy: PolicyContract = policy.build().to(self._device).eval()

    def load_bucket(self, bucket: Bucket) -> None:
        """Take over some weights."""
        load_bucket(self.policy.model, bucket)

    def held_checksum(self) -> str:
        """Checksum computed from the parameters that are held now, whatever was sent."""
        return held_checksum(self.policy.model)

    def load_checkpoint(self, checkpoint: Path) -> None:
        """Replace the weights by those of a Hugging Face folder."""
        self.policy = self._plugin.with_settings(checkpoint=checkpoint).build().to(self._device).eval()
        self._asleep, self._graphed = {}, None

    def buckets(self) -> Iterator[Bucket]:
        """The weights that are held, cut into buckets."""
        return (make_bucket(part) for part in bucket_names(self.policy.model))

    @property
    def held_bytes(self) -> int:
        """Memory of the weights that are held now; between two calls of `sample` nothing else is, unless a CUDA graph
        is asked for."""
        return sum(parameter.nbytes for parameter in self.policy.model.parameters())

    def sleep(self, weights: bool) -> None:
        """Give back what torch keeps for the next call, and the weights that a learner sends where `weights`.

        Adapters that travel alone go alone: the weights below them are never sent.
        """
        self._graphed = None
        if weights and not self._asleep:
            for name, parameter in travelling(self.policy.model):
                self._asleep[name] = parameter.shape
                parameter.data = torch.empty(0, dtype=parameter.dtype, device=parameter.device)
        if self._device == "cuda":
            torch.cuda.empty_cache()

    def wake_weights(self) -> None:
        """Make room for the weights, which a learner is to send all of: until then they hold anything."""
        parameters = dict(self.policy.model.named_parameters())
        for name, shape in self._asleep.items():
            parameters[name].data = torch.empty(shape, dtype=parameters[name].dtype, device=parameters[name].device)
        self._asleep = {}

    def wake_caches(self) -> None:
        """Nothing: each call of `sample` makes its own."""

    def sample(
        self, questions: Sequence[Question], sampling: Sampling, seeds: Sequence[Sequence[int]]
    ) -> list[list[Response]]:
        """[B][G] responses to B questions; each answer's tokens follow from its seed."""
        return self.sample_prepared(self.prepare(questions, sampling), sampling, seeds)

    def prepare(self, questions: Sequence[Question], sampling: Sampling) -> PromptRows:
        """All of `sample` that needs no weights, on the CPU: tokens, and images cut into patches.

        Any thread may ask for the next questions while another samples. ValueError for a question that the policy
        cannot be asked.
        """
        processor = self.policy.processor
        return processor.rows(questions, [[np.array([processor.end_token])]] * len(questions))

    def sample_prepared(
        self, prepared: PromptRows, sampling: Sampling, seeds: Sequence[Sequence[int]]
    ) -> list[list[Response]]:
        """Sample answers to questions that were prepared."""
        self.policy.prepare_sampling()
        heads = len(self.policy.processor.heads)
        draws = np.array([[uniforms((seed,), sampling.max_tokens, heads) for seed in row] for row in seeds])
        flat = self._flat(prepared.to(self.policy.device), sampling, draws)
        size = draws.shape[1]
        return with_masks(self.policy, prepared, [flat[k : k + size] for k in range(0, len(flat), size)])

    def _flat(self, rows: PromptRows, sampling: Sampling, draws: NDArray[np.float64]) -> list[Response]:
        settings = self._settings
        if not settings.cuda_graph:
            return sample(self.policy, rows, sampling, draws, settings.max_answers, settings.look_every)
        if self._graphed is None:
            self._graphed = GraphedFlights(self.policy)
        every = _look_every(self.policy.device, settings.look_every)
        return self._graphed.sample(rows, sampling, draws, _at_once(draws, settings.max_answers), every)


@torch.inference_mode()
def sample(
    policy: PolicyContract,
    rows: PromptRows,
    sampling: Sampling,
    draws: NDArray[np.float64],
    max_answers: int | None = None,
    look_every: int | None = None,
) -> list[Response]:
    """B*G responses to B prompts, in order.

    Draws: [B, G, max_tokens] uniform numbers, or [B, G, max_tokens, 1 + C] for a policy with C further heads; rows' own
    responses are not looked at. max_answers, look_every: see
    `Engine`. Raises ValueError where the grammar is asked for and tokenizer or limit do not suffice for it.
    """
    flight = Flight(policy, rows, sampling, draws, _at_once(draws, max_answers))
    every = _look_every(policy.device, look_every)
    while flight.running:
        flight.token()
        flight.follow()
        if flight.is_due(every):
            flight.settle()
    return flight.responses()


def with_masks(policy: PolicyContract, rows: PromptRows, responses: list[list[Response]]) -> list[list[Response]]:
    """Responses [B][G] to prompts on the CPU, with what the policy's decoder draws for them where it has one."""
    return policy.drawn(rows, responses) if isinstance(policy, DrawingPolicy) else responses


def _at_once(draws: NDArray[np.float64], max_answers: int | None) -> int:
    """R, whole groups under way at a time."""
    b, g = draws.shape[:2]
    return b if max_answers is None else min(b, max(1, max_answers // g))


def _look_every(device: torch.device, asked: int | None) -> int:
    """Tokens between two looks: on a CPU a look costs a hundredth of a token, on a GPU it waits for all that was asked
    before."""
    if asked is not None:
        return asked
    return 1 if device.type == "cpu" else 8
