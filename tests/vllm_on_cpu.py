"""vLLM's CPU build as an engine plugin: the sampler of GPU workers, run where there is no GPU.

`pool.engine: {name: vllm_on_cpu, module: tests/vllm_on_cpu.py}`, in the environment that `make test-vllm` makes.
"""

import os
from dataclasses import dataclass
from typing import Any

from torch.nn import functional

from envs.plugin import Plugin
from rollout.engines import vllm
from rollout.settings import Sampling


@dataclass(frozen=True)
class Engine(vllm.Engine):
    """vLLM without a GPU, and so without its graphs."""

    enforce_eager: bool = True

    def check(self, sampling: Sampling, gpus_per_worker: float) -> None:
        """As on a GPU, but that none is asked for."""
        super().check(sampling, 1.0)

    def open(self, policy: Plugin, device: str, sleeps: bool = False) -> vllm.VllmSampler:
        """vLLM with the policy's checkpoint and 1 GiB for keys and values; it cannot sleep here."""
        os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        os.environ |= {"VLLM_LOGGING_LEVEL": "ERROR"}
        keep_weights_as_they_are()
        return super().open(policy, device)


def keep_weights_as_they_are() -> None:
    """On a CPU vLLM packs the weights of linear layers in another order and forgets them; on a GPU it keeps them."""
    from vllm.model_executor.layers import utils

    def plain(layer: Any, remove_weight: bool) -> None:
        layer.cpu_linear = functional.linear

    utils.dispatch_cpu_unquantized_gemm = plain
