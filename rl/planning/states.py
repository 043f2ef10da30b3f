"""Weights, gradients and optimizer states of a learner rank, by ZeRO stage (arXiv 1910.02054, section 3)."""

from dataclasses import dataclass

from rl.config.learner import TrainingSettings

NUMBER_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of a number by its format."""


@dataclass(frozen=True)
class States:
    """Bytes that one rank holds between passes."""

    weights: float
    """The weights themselves, or the rank's share of them from stage 3 on."""
    gradients: float
    """Gradients of what is trained, or its share of them from stage 2 on."""
    optimizer: float
    """AdamW's two moments in float32 and, beside bfloat16 weights, the weights in float32; a share from stage 1 on."""
    on_host: float = 0.0
    """The part of the optimizer's that lies in the host's memory, float32 gradients included."""

    @property
    def on_card(self) -> float:
        """Bytes of the card."""
        return self.weights + self.gradients + self.optimizer


def shares(learner: TrainingSettings) -> tuple[float, float, float]:
    """The part of weights, gradients and optimizer states that a rank holds."""
    of_stage = {stage: 1 / learner.ranks if learner.zero_stage >= stage else 1.0 for stage in (1, 2, 3)}
    return of_stage[3], of_stage[2], of_stage[1]


def optimizer_bytes(number: int) -> int:
    """Bytes of optimizer state of a weight of so many bytes."""
    return 12 if number == 2 else 8


def rank_states(held: int, trained: int, number: int, learner: TrainingSettings) -> States:
    """What a rank holds of a model of `held` parameters, `trained` of which learn.

    number: bytes of a weight.
    """
    weights, gradients, states = shares(learner)
    optimizer = trained * optimizer_bytes(number) * states
    found = States(held * number * weights, trained * number * gradients, optimizer)
    if not learner.offload_optimizer:
        return found
    return States(found.weights, found.gradients, 0.0, optimizer + 4 * trained * states)
