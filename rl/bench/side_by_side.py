"""Two contenders on the same work: timed in turn, their operations counted, shown as a table and as JSON.

Rounds alternate, and the ratio of each round is taken by itself, so that a machine whose speed drifts slows both alike;
what is reported is the median ratio, and the lowest and highest.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

THREADS = 2
"""Torch threads of both contenders."""
ROUNDS = 7
NUM_SCALED = 6
"""Workloads that `scaled` gives."""


@dataclass(frozen=True)
class Workload:
    """What both contenders do."""

    groups: int
    """B, prompts."""
    answers: int
    """G, to each prompt."""
    image_tokens: int
    """Image tokens of a prompt, a square number; the question adds a handful."""
    tokens: int
    """T of every answer, exactly."""

    @classmethod
    def read(cls, text: str) -> "Workload":
        """From "GROUPSxANSWERSxIMAGE_TOKENSxTOKENS", such as "4x8x256x64"; raises ValueError for anything else."""
        parts = text.split("x")
        if len(parts) != 4 or not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
            raise ValueError(
                f"the workload is {text!r}; give groups, answers, image tokens and answer tokens, such as 4x8x256x64."
            )
        found = cls(*map(int, parts))
        if found.side**2 != found.image_tokens:
            raise ValueError(
                f"the workload {text!r} has {found.image_tokens} image tokens; images are square, so give a square "
                f"number, such as {found.side**2}."
            )
        return found

    @property
    def side(self) -> int:
        """Image tokens in a row of the image."""
        return round(self.image_tokens**0.5)

    @property
    def title(self) -> str:
        """Text that `read` takes."""
        return f"{self.groups}x{self.answers}x{self.image_tokens}x{self.tokens}"


@dataclass(frozen=True)
class Work:
    """What one contender does in a round."""

    flops: int
    """Floating-point operations of its matrix products, convolutions and attention, counted as they run; attention in
    full, also where the mask forbids. A multiplication and an addition are two."""
    tokens: int
    """That its language model computes on: in all forward passes together, those of sampling included."""


@dataclass(frozen=True)
class SideBySide:
    """Ours, and what one would take instead."""

    workload: Workload
    prompt_tokens: int
    """P, of the longest prompt."""
    ours: Work
    other: Work | None
    """None where the other is not there."""
    seconds: tuple[float, ...]
    """Ours, by round."""
    other_seconds: tuple[float, ...]
    """The other's, by round; none where it is not there."""

    @property
    def ratios(self) -> list[float]:
        """How many times as long the other takes, by round."""
        return [other / own for own, other in zip(self.seconds, self.other_seconds, strict=False)]

    @property
    def ratio(self) -> float | None:
        """Their median; None without the other."""
        return float(np.median(self.ratios)) if self.other_seconds else None


def count(run: Callable[[], object]) -> int:
    """Floating-point operations of a call (see Work)."""
    with flop_counter() as counter:
        run()
    return counter.get_total_flops()


def flop_counter() -> FlopCounterMode:
    """Torch's counter, taught the attention that it does not know: that of the CPU."""
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    return FlopCounterMode(display=False, custom_mapping={flash: _attention, backward: _attention_backward})


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    # The scores once more, and four products of their size: the gradients of value, scores, query and key.
    return sdpa_flop_count(query, key, value) * 5 // 2


def alternate(ours: Callable[[], object], other: Callable[[], object], rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of each call in turn, by round; both are to have been called before."""
    own_seconds: list[float] = []
    other_seconds: list[float] = []
    for k in range(rounds):
        # Who begins changes too: a clock that follows the load favours whoever comes second.
        for run, seconds in ((ours, own_seconds), (other, other_seconds))[:: 1 if k % 2 == 0 else -1]:
            seconds.append(seconds_of(run))
    return own_seconds, other_seconds


def seconds_of(run: Callable[[], object]) -> float:
    """Seconds of one call; on a GPU the call itself must wait for its result."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def table(title: str, other: str, found: Sequence[SideBySide]) -> Table:
    """A row a workload, ours / the other's in each cell; 80 characters wide."""
    made = Table(title=title, box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    made.caption = f"B groups of G answers of T tokens to prompts of P; ours / {other}; ratios: median, lowest, highest"
    for column in ("B", "G", "P", "T", "seconds", "GFLOP", "tokens", "ratio", "low", "high"):
        made.add_column(column, justify="right", no_wrap=True)
    for one in found:
        work = one.workload
        cells = [
            (f"{np.median(one.seconds):.3g}", f"{np.median(one.other_seconds):.3g}" if one.other else ""),
            (f"{one.ours.flops / 1e9:.3g}", f"{one.other.flops / 1e9:.3g}" if one.other else ""),
            (f"{one.ours.tokens}", f"{one.other.tokens}" if one.other else ""),
        ]
        ratios = [one.ratio, min(one.ratios), max(one.ratios)] if one.ratio is not None else []
        made.add_row(
            *map(str, (work.groups, work.answers, one.prompt_tokens, work.tokens)),
            *(f"{own} / {others}" if others else own for own, others in cells),
            *(f"{ratio:.2f}" for ratio in ratios),
        )
    return made


def as_json(other: str, found: Sequence[SideBySide]) -> dict[str, Any]:
    """What --json prints: `ratio`.`other` of the first workload (null without the other), its spread, all `cases`."""
    first = found[0]
    spread = [min(first.ratios), max(first.ratios)] if first.ratios else None
    return {
        "ratio": {other: first.ratio},
        "ratio_spread": {other: spread},
        "cases": [_case(other, one) for one in found],
    }


def _case(other: str, one: SideBySide) -> dict[str, Any]:
    case = {**asdict(one.workload), "prompt_tokens": one.prompt_tokens, "ratio": one.ratio}
    case["ours"] = {"seconds": float(np.median(one.seconds)), **asdict(one.ours)}
    seconds = float(np.median(one.other_seconds)) if one.other_seconds else None
    case[other] = None if one.other is None else {"seconds": seconds, **asdict(one.other)}
    return case


def scaled(base: Workload) -> list[Workload]:
    """`base` with half and twice its answers, a quarter of and 2.25 times its image tokens, half and twice T."""
    more = [Workload(base.groups, answers, base.image_tokens, base.tokens) for answers in _around(base.answers)]
    sides = (base.side // 2, base.side * 3 // 2)
    more += [Workload(base.groups, base.answers, side**2, base.tokens) for side in sides]
    return more + [Workload(base.groups, base.answers, base.image_tokens, tokens) for tokens in _around(base.tokens)]


def _around(value: int) -> tuple[int, int]:
    return max(1, value // 2), 2 * value
