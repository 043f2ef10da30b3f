"""Policy that never ends an answer by itself, so that every answer of a bench has exactly as many tokens as allowed."""

from pathlib import Path

import torch

from envs.polygons import AnswerCodec
from policies import vision_language


class Policy(vision_language.Policy):
    """As in policies/vision_language.py, but the end token, too, cannot be sampled; the learner sees it so as well."""

    _unsampled: torch.Tensor

    def __init__(
        self, checkpoint: Path, codec: AnswerCodec, question: str = "{phrase}", dtype: str = "float32"
    ) -> None:
        super().__init__(checkpoint, codec, question, dtype)
        self.unsampled_tokens = sorted([*self.unsampled_tokens, self.end_token])
        self._unsampled = torch.tensor(self.unsampled_tokens)
