"""Questions and answers of a policy with a mask decoder: boxes in words or JSON, and where each asks for a mask. No
weights.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.codecs.base import AnswerCodec
from envs.example import Example
from envs.geometry.contours import rings_from_mask
from envs.polygons import Answer, AnswerStatus, Box, Instance, flatten_rings
from policies.checkpoint import Checkpoint
from policies.decoders.matching import partners
from policies.decoders.slots import DrawnMasks, slots_of, with_truths
from policies.families.base import PromptRows, Response, TaughtAnswer
from policies.family import Family
from policies.processor import Processor
from policies.selection.regions import covered
from policies.settings import Asking
from policies.sharing.packing import pad_responses

log = logging.getLogger(__name__)


@runtime_checkable
class MaskCodec(Protocol):
    """A codec whose texts say a box and, behind it, a token that asks for a mask."""

    mask_token: str
    """The token whose hidden state says what is drawn in the box."""

    @property
    def words(self) -> list[str]:
        """What the vocabulary must have, the token included."""
        ...


class BoxMaskProcessor(Processor):
    """A Processor whose answers are boxes, and masks that a decoder draws in them."""

    def __init__(self, checkpoint: Checkpoint, family: Family, codec: AnswerCodec, asking: Asking) -> None:
        """Raises ValueError as Processor does, and for a codec that asks for no masks, or a tokenizer without the token
        that does and without room for it.
        """
        if not isinstance(codec, MaskCodec):
            raise ValueError(
                "policy.name is box_decoder, whose answers are boxes with a token for a mask; set codec to {name: "
                "json_masks}, or {name: box_masks} for a tokenizer of words."
            )
        self._asks, self._added = codec, False
        super().__init__(checkpoint, family, codec, asking)
        self.mask_token: int = self.tokenizer.get_vocab()[codec.mask_token]
        """Token that asks for a mask."""
        words = [codec.mask_token, *(word for word in codec.words if _is_added(word))]
        self.mask_words: list[int] = sorted({self.tokenizer.get_vocab()[word] for word in words})
        """Tokens that released tokenizers have not: it, and what stands around it."""
        self.mask_cells = 256
        """S, cells of a side of the grid on which true masks are compared with what is drawn."""

    def _own_tokenizer(self) -> Any:
        tokenizer = super()._own_tokenizer()
        missing = [word for word in self._asks.words if word not in tokenizer.get_vocab()]
        if not missing:
            return tokenizer
        size = int(self.config.get_text_config().vocab_size)
        if not all(map(_is_added, missing)) or len(tokenizer) + len(missing) > size:
            raise ValueError(
                f"the tokenizer of {self._checkpoint.folder} lacks {missing[0]!r}, which the codec's answers are "
                f"written with, and its model has {size - len(tokenizer)} unused rows for {len(missing)} such words; "
                "give the codec the settings (box_bins among them) that the checkpoint was taught with, choose codec "
                "json_masks for a released model, or begin from one that `polytrace sft sft_box_decoder` makes."
            )
        tokenizer.add_tokens(missing, special_tokens=True)
        self._added = True
        log.info("%s stand for masks from now on, in rows of the embedding that were unused", ", ".join(missing))
        return tokenizer

    # Questions in.

    def supervised_rows(self, taught: Sequence[Sequence[TaughtAnswer]]) -> PromptRows:
        """Rows as Processor makes them, with the places of mask tokens, their boxes and the true masks.

        Raises ValueError, naming the question, where an answer has another number of masks than are true.
        """
        rows = super().supervised_rows(taught)
        each = taught if self.shares_images else [[one] for row in taught for one in row]
        boxes = [[self._taught_boxes(one) for one in row] for row in each]
        slots, truths, which = slots_of(self._asking(rows), boxes), [], []
        for row, own in zip(each, boxes, strict=True):
            shares = [self._truths(one, len(said)) for one, said in zip(row, own, strict=True)]
            first = [0, *accumulate(map(len, shares))]
            truths.append(torch.cat(shares))
            which.append([list(range(start, end)) for start, end in pairwise(first)])
        return replace(rows, slots=with_truths(slots, truths, which, self.mask_cells))

    def sampled_rows(
        self,
        rows: PromptRows,
        choices: Sequence[Sequence[NDArray[np.int64]]],
        truths: Sequence[NDArray[np.bool_]],
    ) -> PromptRows:
        """Rows of sampled answers with the places of their mask tokens, the boxes that the answers say themselves, and
        the true masks that these boxes are about (policies/decoders/matching.py).

        choices: [B][up to G] tokens of the answers, the first of those that rows hold; truths: [B] true masks
        [N, H, W]. An answer that does not read as boxes asks for nothing.
        """
        boxes = [
            [self._sampled_boxes(tokens, *size) for tokens in row]
            for row, size in zip(choices, self._shown(rows), strict=True)
        ]
        slots = slots_of(self._asking(rows), boxes)
        which = [[partners(own, masks) for own in row] for row, masks in zip(boxes, truths, strict=True)]
        shares = [covered(masks, self.mask_cells) for masks in truths]
        return replace(rows, slots=with_truths(slots, shares, which, self.mask_cells))

    def _sampled_boxes(self, tokens: NDArray[np.int64], height: int, width: int) -> list[Box]:
        finish = "stop" if len(tokens) and tokens[-1] == self.end_token else "length"
        response = Response(tokens, np.zeros(len(tokens), np.float32), finish)
        return _unit_boxes(self.read(response, height, width), height, width)

    def _shown(self, rows: PromptRows) -> list[list[int]]:
        """[B] (height, width) px of the images as the model was shown them, of which boxes are as good shares as of the
        images themselves."""
        shown: list[list[int]] = (rows.image_grid[:, 1:] * self.image_processor.patch_size).tolist()
        return shown

    def _asking(self, rows: PromptRows) -> Tensor:
        return rows.scored_mask & (rows.response_tokens == self.mask_token)

    def _taught_boxes(self, one: TaughtAnswer) -> list[Box]:
        if self.mask_token not in one.tokens or one.masks is None:
            return []  # a box alone, or nothing
        height, width = one.question.image.shape[:2]
        text = str(self.tokenizer.decode(one.tokens[:-1], clean_up_tokenization_spaces=False))
        answer = self.thinking.read(lambda rest: self.codec.read(rest, height, width), text, False)
        return _unit_boxes(answer, height, width)

    def _truths(self, one: TaughtAnswer, num_boxes: int) -> Tensor:
        if not num_boxes or one.masks is None:
            return torch.zeros(0, self.mask_cells, self.mask_cells)
        held = one.masks[one.masks.any(axis=(1, 2))]
        if len(held) != num_boxes:
            raise ValueError(
                f"the answer to {one.question.prompt.told!r} has {num_boxes} boxes, and {len(held)} masks are true; "
                "raise the codec's limits."
            )
        return covered(held, self.mask_cells)

    def answered(self, rows: PromptRows, responses: Sequence[Sequence[Response]]) -> PromptRows:
        """Rows of B prompts, on the CPU, with B x G responses in place of their own, and where these ask for masks.

        A response that does not read as boxes asks for nothing.
        """
        tokens, mask = pad_responses([[response.tokens for response in row] for row in responses], self.end_token)
        rows = replace(rows, response_tokens=tokens, response_mask=mask, scored_mask=mask)
        boxes = [
            [_unit_boxes(self.read(response, height, width), height, width) for response in row]
            for row, (height, width) in zip(responses, self._shown(rows), strict=True)
        ]
        return replace(rows, slots=slots_of(self._asking(rows), boxes))

    # Answers out.

    def read_answer(self, response: Response, example: Example) -> Answer:
        """The response to an example, read as what was asked for, masks in the place of boxes; never raises."""
        answer = super().read_answer(response, example)
        if example.prompt.asked != "mask" or response.masks is None:
            return answer
        return drawn_answer(answer, response.masks, example.image.height, example.image.width)

    def save(self, folder: Path) -> None:
        """Processor.save; the tokenizer anew where tokens for masks were added to it."""
        super().save(folder)
        if self._added:
            self.tokenizer.save_pretrained(folder)


def _is_added(word: str) -> bool:
    """Whether a word of a codec is no text, and may be added to a tokenizer."""
    return word.startswith("<|")


def _unit_boxes(answer: Answer, height: int, width: int) -> list[Box]:
    """The boxes of an answer over a height x width image, in 0..1 of its sides; none of an answer without."""
    boxes = [instance.box_px for instance in answer.instances]
    return [(x0 / width, y0 / height, x1 / width, y1 / height) for x0, y0, x1, y1 in filter(None, boxes)]


def drawn_answer(answer: Answer, drawn: DrawnMasks, height: int, width: int) -> Answer:
    """An answer of boxes over a height x width image, with the masks drawn for them in their place.

    Each instance gets its mask's exact outline and the IoU that was foretold; one whose mask has no pixel is left out,
    and an answer of which none is left is degenerate. An answer for which nothing was drawn stays as it is.
    """
    if answer.status is not AnswerStatus.OK or len(drawn.scores) != len(answer.instances):
        return answer
    each = zip(answer.instances, drawn.masks(height, width), drawn.scores.tolist(), strict=True)
    instances = tuple(
        Instance(*flatten_rings(rings_from_mask(mask)), instance.box_px, instance.label, score)
        for instance, mask, score in each
        if mask.any()
    )
    return replace(answer, status=AnswerStatus.OK if instances else AnswerStatus.DEGENERATE, instances=instances)
