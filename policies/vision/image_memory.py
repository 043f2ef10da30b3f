"""What a frozen vision tower gave for images, kept while the same images go through the model again.

A step of the learner runs a group through the policy two or three times: for the log-probabilities before the first
update, for those of a reference policy, and to learn. Only the language model changes in between.
"""

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

MOST_BYTES = 2**30
"""Most that is kept, on the images' device; what does not fit is computed again each time."""
_NEEDED = ("pooler_output", "deepstack_features")
"""What a model takes of its tower's output: image tokens, and those that Qwen3-VL adds to early layers."""


class ImageMemory:
    """Image tokens by pass."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._held: dict[Hashable, Any] = {}
        self._now: Hashable | None = None
        self.bytes = 0
        """What is held."""

    @contextmanager
    def at(self, key: Hashable) -> Iterator[None]:
        """Within, the images of a pass are those of every other pass with this key."""
        self._now = key
        try:
            yield
        finally:
            self._now = None

    def forget(self, key: Hashable) -> None:
        """Let go of a key's images; of none that is not held."""
        found = self._held.pop(key, None)
        self.bytes -= _bytes(found)

    def clear(self) -> None:
        """Let go of everything."""
        self._held.clear()
        self.bytes = 0

    def remember(self, model: Any) -> None:
        """From now on `model`, a transformers model with a frozen tower, asks this memory first.

        Models whose towers have the same weights may share one.
        """
        plain = model.get_image_features

        def remembered(*inputs: Any, **settings: Any) -> Any:
            if self._now is None:
                return plain(*inputs, **settings)
            if self._now in self._held:
                kind, parts = self._held[self._now]
                return kind(**parts)
            given = plain(*inputs, **settings)
            parts = {name: part for name, part in given.items() if name in _NEEDED}
            self._keep(self._now, (type(given), parts))
            return given

        model.get_image_features = remembered

    def _keep(self, key: Hashable, found: tuple[type, dict[str, Any]]) -> None:
        size = _bytes(found)
        if self.bytes + size <= self._most_bytes:
            self._held[key] = found
            self.bytes += size


def _bytes(found: Any) -> int:
    """By distinct storage, since the tokens of several images are parts of one tensor."""
    tensors = [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())
