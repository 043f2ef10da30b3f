"""The states of the generators that a process draws from, as tensors: torch (CPU and GPUs), Python and numpy.

Polytrace's own random numbers are keyed by what they are for and need no state; these are for what draws without a
key, such as dropout in adapters, or a reward or data set of a user's own.
"""

import random
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


def random_states() -> dict[str, Tensor]:
    """All states by name: `torch` and `torch_gpu.N` uint8 of any length, `python` int64 [625 + 1], `numpy` int64."""
    version, words, gauss = random.getstate()
    # A pending second Gaussian number travels as the bits of the float, its absence as no bits at all.
    pending = [] if gauss is None else np.array([gauss], np.float64).view(np.int64).tolist()
    name, keys, place, has_gauss, cached = np.random.get_state()
    assert (version, name) == (3, "MT19937")
    cached_bits = np.array([cached], np.float64).view(np.int64)
    numpy_state = np.concatenate([np.asarray(keys, np.int64), [place, has_gauss], cached_bits]).astype(np.int64)
    states = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor([*words, *pending], dtype=torch.int64),
        "numpy": torch.from_numpy(numpy_state),
    }
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return states | {f"torch_gpu.{k}": state for k, state in enumerate(gpus)}


def set_random_states(states: Mapping[str, Tensor]) -> None:
    """Go on drawing where `random_states` was taken; states of GPUs that this process does not see are left out."""
    torch.set_rng_state(states["torch"])
    words = states["python"].tolist()
    pending = None if len(words) == 625 else float(np.array([words[625]], np.int64).view(np.float64)[0])
    random.setstate((3, tuple(words[:625]), pending))
    numbers = states["numpy"].numpy()
    cached = float(numbers[626:].copy().view(np.float64)[0])
    keys = numbers[:624].astype(np.uint32)
    np.random.set_state(("MT19937", keys, int(numbers[624]), int(numbers[625]), cached))
    for k in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        if f"torch_gpu.{k}" in states:
            torch.cuda.set_rng_state(states[f"torch_gpu.{k}"], k)
