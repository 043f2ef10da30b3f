"""What the first steps of a run tell of whether it will help: six signs, each with what to change.

They are read off numbers that are logged anyway. A run that shows none may still not help, and one that shows one may:
they say where to look first.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

LOOKED_AT = 50
"""Steps that are looked at."""
_FIRST = 5
"""Steps by which samples are compared with greedy answers, and groups are looked at."""
_COSINES = 20
"""Steps over which the cosine of gradients is averaged: one says little."""
_BELOW_GREEDY = 0.1
"""IoU by which samples may lie below the greedy answers: runs with 0.05 were seen to gain, with 0.19 hardly."""
_GROUP_SPREAD = 0.02
"""Standard deviation of rewards within groups below which there is little to learn from."""
_SILENT_SHARE = 0.5
"""Share of groups without signal from which on more than half of the work is for nothing."""
_NOISE_BATCHES = 20.0
"""Noise scale, in mini-batches, above which a step is nearly all noise; runs with 46 were seen to gain."""
_OVERSHOT = -0.1
"""Mean cosine of the gradients before and after an update, below which it takes back what it was to give."""
_CLIPPED = 0.4
"""Share of the ratios after an update that are clipped, above which little of what those mini-batches say is left; half
of them is what widths of nothing at all clip where ratios move by chance."""
_WIDTH = 1.1
"""clip_low over the mean size of log ratios, clip_high being a third above: of normal ones that do not care for the
sign of the advantage, 0.15 are then clipped, the share that GSPO's authors report."""
_REWARD_ROSE = 0.01
_GREEDY_FELL = 0.01


@dataclass
class EarlySigns:
    """Gathers the numbers of the first steps; tells each sign once."""

    temperature: float
    """What answers are sampled at."""
    groups: float
    """Groups of half a mini-batch."""
    minibatches: int = 2
    """Mini-batches of a step."""
    over: bool = False
    """Whether nothing is looked at any more, as in a run that goes on after its first steps."""
    _steps: list[Mapping[str, float]] = field(default_factory=list)
    _greedy: list[float] = field(default_factory=list)
    _told: set[str] = field(default_factory=set)

    def evaluated(self, giou: float) -> list[str]:
        """Note a greedy gIoU on validation; the signs that show by now."""
        self._greedy.append(giou)
        new = self._new()
        self.over = self.over or len(self._steps) >= LOOKED_AT
        return new

    def stepped(self, numbers: Mapping[str, float]) -> list[str]:
        """Note what is logged of a step; the signs that show by now."""
        if len(self._steps) < LOOKED_AT:
            self._steps.append(numbers)
        return self._new()

    def _new(self) -> list[str]:
        if self.over:
            return []
        signs = {
            "narrow": self._samples_far_below_greedy(),
            "spread": self._groups_without_spread(),
            "noise": self._mostly_noise(),
            "overshot": self._updates_overshoot(),
            "apart": self._reward_and_greedy_part(),
            "clipped": self._mostly_clipped(),
        }
        new = [text for sign, text in signs.items() if text is not None and sign not in self._told]
        self._told |= {sign for sign, text in signs.items() if text is not None}
        return new

    def _mean(self, name: str, steps: slice) -> float:
        return float(np.mean([numbers[name] for numbers in self._steps[steps]]))

    def _samples_far_below_greedy(self) -> str | None:
        if len(self._steps) < _FIRST or not self._greedy:
            return None
        sampled = self._mean("sampled/giou", slice(_FIRST))
        if sampled >= self._greedy[0] - _BELOW_GREEDY:
            return None
        return (
            f"samples at temperature {self.temperature:g} have a mean IoU of {sampled:.3f}, the greedy answers "
            f"{self._greedy[0]:.3f}: RL will first narrow the policy, and greedy answers rise late. Lower "
            "sampling.temperature, or end SFT on hard targets (number_spread 0)."
        )

    def _groups_without_spread(self) -> str | None:
        if len(self._steps) < _FIRST:
            return None
        spread = self._mean("reward/group_std", slice(_FIRST))
        silent = self._mean("group/without_signal", slice(_FIRST))
        if spread >= _GROUP_SPREAD and silent <= _SILENT_SHARE:
            return None
        return (
            f"rewards within groups differ by {spread:.3f} (standard deviation), and {silent:.0%} of the groups teach "
            "nothing: there is little to choose from. Raise sampling.temperature or group_size, ask harder questions, "
            "or set refills."
        )

    def _mostly_noise(self) -> str | None:
        cosines = self._logged("learner/gradient_cosine")
        if len(cosines) < _COSINES:
            return None
        # Of so few steps a mean says little: what counts is the largest that is likely.
        likely = float(np.mean(cosines) + 2 * np.std(cosines) / len(cosines) ** 0.5)
        scale = noise_scale(likely, self.groups)
        if scale <= 2 * _NOISE_BATCHES * self.groups:
            return None
        fewer = ", lower learner.minibatches" if self.minibatches > 1 else ""
        said = "no agreement at all" if np.isinf(scale) else f"half noise at {scale:.0f} groups or more"
        return (
            f"gradients of half mini-batches, {self.groups:g} groups, have a mean cosine of {np.mean(cosines):.3f} "
            f"({said}). Raise groups_per_step or group_size{fewer}, or lower learner.lr and set learner.average."
        )

    def _updates_overshoot(self) -> str | None:
        cosines = self._logged("learner/update_cosine")
        if len(cosines) < _COSINES or np.mean(cosines) >= _OVERSHOT:
            return None
        return (
            f"the gradients of a step's mini-batches, between which lies an update, have a mean cosine of "
            f"{np.mean(cosines):.3f}: the second takes back what the first did. Lower learner.lr, or set "
            "learner.minibatches to 1."
        )

    def _mostly_clipped(self) -> str | None:
        changes = self._logged("learner/ratio_change")
        clipped = self._logged("learner/changed_clip_fraction")
        if len(changes) < _COSINES or np.mean(clipped) <= _CLIPPED:
            return None
        change = float(np.mean(changes))
        low = clip_width(change)
        return (
            f"of the ratios after an update {np.mean(clipped):.0%} are clipped: they move by {change:.2g} (mean |log "
            f"ratio|), more than algorithm.clip_low and clip_high allow. Set clip_low to {low:.2g} and clip_high to "
            f"{low * 4 / 3:.2g}, or learner.minibatches to 1."
        )

    def _logged(self, name: str) -> list[float]:
        return [numbers[name] for numbers in self._steps if name in numbers]

    def _reward_and_greedy_part(self) -> str | None:
        if len(self._greedy) < 2 or len(self._steps) < 4 * _FIRST:
            return None
        rose = self._mean("reward/mean", slice(-_FIRST, None)) - self._mean("reward/mean", slice(_FIRST))
        fell = self._greedy[0] - self._greedy[-1]
        if rose < _REWARD_ROSE or fell < _GREEDY_FELL:
            return None
        return (
            f"the reward of samples rose by {rose:.3f} while greedy answers fell by {fell:.3f}: it is earned by "
            "something else than the IoU, or by narrowing alone. See term/ and answer/ in the log, and `polytrace "
            "rewards test`; lower sampling.temperature or learner.lr, lengthen learner.warmup_steps."
        )


def clip_width(change: float) -> float:
    """clip_low at which about 0.15 of the ratios after an update are clipped, from the mean of their |log ratio|."""
    return _WIDTH * change


def noise_scale(cosine: float, groups: float) -> float:
    """Groups at which a gradient is half noise, from the mean cosine of gradients of so many groups each.

    rl/learner/noise.py says why; inf where there is no signal.
    """
    return groups * (1 / cosine - 1) if cosine > 0 else float("inf")
