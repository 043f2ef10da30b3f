"""What a stage of a labelling pipeline must be: settings, and one method over some images."""

from collections.abc import Sequence
from typing import ClassVar, Protocol, runtime_checkable

from rollout.label.record import LabelImage, Shown


@runtime_checkable
class Labeller(Protocol):
    """A dataclass of settings; built once in each of its workers, so that a model is loaded once there.

    Deterministic: equal images give equal labels, whatever they come beside, since what was stopped goes on as if it
    had not been. What a stage does not let pass it refuses with its own name, a reason and numbers; nothing vanishes.
    """

    HAS_MODEL: ClassVar[bool]
    """Whether it holds something that takes long to load: then it runs in workers of its own."""

    def label(self, images: Sequence[Shown]) -> list[LabelImage]:
        """The same images in their order, with what this stage adds and refuses; those that are not open as they are.

        What is wrong with an image is a refusal, never an exception.
        """
        ...


@runtime_checkable
class ChecksEarly(Protocol):
    """A stage that can tell what is wrong with its settings before anything starts."""

    def check(self) -> None:
        """Raise ValueError or FileNotFoundError, in a line, for a folder that is not what it should be."""
        ...


@runtime_checkable
class TellsWeights(Protocol):
    """A stage that holds a model, whose files are kept with the labels by their checksums."""

    @property
    def model_folders(self) -> tuple[str, ...]:
        """Folders of its models."""
        ...
