"""A token of all answers as one CUDA graph: recorded once for buffers of a size, then repeated by one call.

A token is some forty kernels a layer, each of which a large model's GPU does in less time than Python takes to ask for
it. A graph asks for all of them at once. It repeats them on the very memory that they were recorded on, so the buffers
stay, and what a token depends on lies in them. How: docs.pytorch.org, "CUDA Graphs".
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from policies.families.base import PolicyContract, PromptRows, Response
from rollout.engines._flight import Flight
from rollout.settings import Sampling

_WARM_TOKENS = 3
"""Tokens before the recording, on a stream of their own: libraries choose their kernels, and get their workspaces."""


class GraphedFlights:
    """Flights of one shape on a GPU, one after the other, by one graph."""

    def __init__(self, policy: PolicyContract) -> None:
        self._policy = policy
        self._flight: Flight | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._of: tuple[object, ...] = ()
        self.recorded = 0
        """Graphs recorded so far."""

    @torch.inference_mode()
    def sample(
        self, rows: PromptRows, sampling: Sampling, draws: NDArray[np.float64], at_once: int, look_every: int
    ) -> list[Response]:
        """Sample as rollout/engines/shared.py does; recorded anew where the shape is another, a prompt longer than any
        before, or a parameter has moved."""
        flight = self._ready(rows, sampling, draws, at_once)
        assert self._graph is not None
        while flight.running:
            self._graph.replay()
            flight.follow()
            if flight.is_due(look_every):
                flight.settle()
        return flight.responses()

    def _ready(self, rows: PromptRows, sampling: Sampling, draws: NDArray[np.float64], at_once: int) -> Flight:
        """The flight with rows in it, and a graph of its token."""
        shape = (draws.shape, at_once, sampling, places_of(self._policy.model))
        longest = rows.prompt_tokens.shape[1] - 1
        if self._flight is not None and shape == self._of and longest <= self._flight.prompt_tokens:
            self._flight.begin(rows, draws)
            return self._flight
        self._flight = self._graph = None  # the old ones' memory first
        flight = Flight(self._policy, rows, sampling, draws, at_once, same_calls=True)
        self._graph = _recorded(flight)
        self.recorded += 1
        flight.begin(rows, draws)  # what was tried is forgotten
        self._flight, self._of = flight, shape
        return flight


def _recorded(flight: Flight) -> torch.cuda.CUDAGraph:
    """A graph of the flight's next token; its state is worth nothing afterwards."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(_WARM_TOKENS):
            flight.token()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        flight.token()
    return graph


def places_of(model: torch.nn.Module) -> Sequence[int]:
    """Where the parameters lie, which moves with `to` and with `data`."""
    return tuple(parameter.data_ptr() for parameter in model.parameters())
