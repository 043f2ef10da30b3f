"""Settings of supervised fine-tuning; apart from the training, so that a config is checked without loading a model."""

from dataclasses import dataclass, field
from typing import Any

from policies.tiny_model import TinySizes


@dataclass
class SftStage:
    """One stretch of training."""

    name: str
    steps: int
    answer: str = "outline"
    """"box" scores the first four words of an answer, "outline" all of it."""
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
    """As `outline_margin` of all stages, for this one; null takes that."""

    def __post_init__(self) -> None:
        if self.answer not in ("box", "outline"):
            raise ValueError(f"stage {self.name}: answer is {self.answer!r}; it must be box or outline.")


@dataclass
class SftSettings:
    """How the supervised outlines are made and learned."""

    stages: list[SftStage] = field(default_factory=list)
    scenes_per_step: int = 32
    max_vertices: int = 12
    """Vertices of an annotated outline."""
    max_rings: int = 3
    outline_margin: float = 0.0
    """How far annotators draw outside the object, as a share of the square root of its area; 0 is an exact outline."""
    warmup_steps: int = 50
    weight_decay: float = 0.01
    evaluate_every: int = 250
    evaluate_scenes: int = 256

    def __post_init__(self) -> None:
        if min(self.scenes_per_step, self.evaluate_every, self.evaluate_scenes, self.max_rings) < 1:
            raise ValueError(
                f"sft.scenes_per_step is {self.scenes_per_step}, evaluate_every {self.evaluate_every}, evaluate_scenes "
                f"{self.evaluate_scenes}, max_rings {self.max_rings}; all must be 1 or more."
            )
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
    seed: int = 0
    threads: int = 2
    """Torch threads."""
    max_tokens: int = 64
    """Longest answer in evaluations, tokens."""
    env: dict[str, Any] = field(default_factory=dict)
    codec: dict[str, Any] = field(default_factory=dict)
    policy: dict[str, Any] = field(default_factory=dict)
    tiny: TinySizes = field(default_factory=TinySizes)
    """Sizes of the new model."""
    sft: SftSettings = field(default_factory=SftSettings)
