"""What a source of unlabelled images must be."""

from typing import Protocol, runtime_checkable

from rollout.label.record import Shown


@runtime_checkable
class Images(Protocol):
    """A dataclass of settings; a deterministic, picklable sequence of images, each read when it is asked for."""

    @property
    def fingerprint(self) -> str:
        """SHA-256, 64 hex digits, of which images there are; labels go on only over the same ones."""
        ...

    def __len__(self) -> int:
        """Number of images; raises ValueError or FileNotFoundError, in a line, where there is none."""
        ...

    def read(self, index: int) -> Shown:
        """The image at `index`; one that cannot be opened is refused in its record, and no exception."""
        ...
