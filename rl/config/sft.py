"""Settings of supervised fine-tuning; apart from the training, so that a config is checked without loading a model."""

from dataclasses import dataclass, field
from typing import Annotated, Any

from envs.ranges import at_least, check_ranges, one_of
from policies.settings import TinySizes


@dataclass
class SftStage:
    """One stretch of training."""

    name: str
    """Name of the stage in logs."""
    steps: Annotated[int, at_least(0)]
    """Steps of the stage."""
    answer: Annotated[str, one_of("box", "outline")] = "outline"
    """What of an answer is learned: "box" scores the first four words of an answer, "outline" all of it."""
    lr: float = 3e-3
    """Muon's rate at the start, falling to last_lr along a cosine; AdamW takes a third of it."""
    last_lr: float = 3e-4
    number_spread: float = 0.0
    """Width of a number's target over its neighbours; 0 is the usual cross-entropy."""
    with_absent: bool = False
    """Whether questions about absent things are asked.

    From the start, "nothing" would become the answer to everything.
    """
    outline_margin: float | None = None
    """Outline margin of this stage; null takes that of all stages."""


@dataclass
class SftSettings:
    """How the supervised outlines are made and learned."""

    stages: list[SftStage] = field(default_factory=list)
    scenes_per_step: Annotated[int, at_least(1)] = 32
    """Scenes per step, each with all its questions."""
    max_vertices: int = 12
    """Vertices of an annotated outline."""
    max_rings: Annotated[int, at_least(1)] = 3
    """Rings of an annotated outline."""
    outline_margin: float = 0.0
    """How far annotators draw outside the object, as a share of the square root of its area; 0 is an exact outline."""
    warmup_steps: int = 50
    weight_decay: float = 0.01
    evaluate_every: Annotated[int, at_least(1)] = 250
    """Steps between evaluations on the split `validation`."""
    evaluate_scenes: Annotated[int, at_least(1)] = 256
    """Scenes of each of these evaluations."""

    def __post_init__(self) -> None:
        check_ranges(self, "sft")
        if self.max_vertices < 3 * self.max_rings:
            raise ValueError(
                f"sft.max_vertices is {self.max_vertices}, but max_rings is {self.max_rings} and a ring needs 3 "
                f"vertices; set max_vertices to {3 * self.max_rings} or more."
            )


@dataclass
class SftConfig:
    """A supervised run. Without policy.checkpoint a new tiny model is made and trained."""

    run: str
    """Folder of the run."""
    seed: Annotated[int, at_least(0)] = 0
    """Key of every random number of the run."""
    threads: Annotated[int, at_least(1)] = 2
    """Torch threads."""
    max_tokens: Annotated[int, at_least(1)] = 64
    """Longest answer in evaluations, tokens."""
    env: dict[str, Any] = field(default_factory=dict)
    codec: dict[str, Any] = field(default_factory=dict)
    policy: dict[str, Any] = field(default_factory=dict)
    tiny: TinySizes = field(default_factory=TinySizes)
    """Sizes of the new model."""
    sft: SftSettings = field(default_factory=SftSettings)
    """Stages of the training, and the outlines that it learns."""

    def __post_init__(self) -> None:
        check_ranges(self)
