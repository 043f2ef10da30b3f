"""Questions and answers of Moondream 3: a skill's tokens in place of a chat template, and boxes by heads.

    prompt = begin, image, 1 17374 2, points and boxes, the name asked for, 3
    answer = (coordinate coordinate size path)+ end | "none" end

A box is three places of an answer: two coordinate tokens and a size token, at which the heads choose its centre and its
sizes. As text they are their bins, four numbers, as the codec svg_path says boxes by centre. An answer whose box is not
said so reads as no answer, whatever its text looks like.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from envs.codecs._boxed_codec import EMPTY_WORD, INSTANCE_WORD, numbers_of
from envs.codecs.svg_path import Codec
from envs.example import BoxPart, MaskPart, PointPart, Question, TextPart
from policies.choices import NO_BIN, Head
from policies.families.base import PromptRows, Response
from policies.moondream.crops import num_crops, tiling_of
from policies.moondream.region import HEADS
from policies.processor import Processor
from policies.question import PlainWords, Questions, refuse_candidates
from policies.settings import Asking

_UNSAID = "<?>"
"""Stands before the text of an answer whose box is not said by the heads: no codec reads it."""
_BOX_PLACES = 3


class MoondreamProcessor(Processor):
    """Tokenizer, crops and codec of a Moondream folder."""

    def _own_heads(self) -> tuple[Head, ...]:
        config, sizes = self.config, self.config.region.size_out_dim // 2
        self._refuse_other_codec(config.region.coord_out_dim, sizes)
        tokens = config.coord_id, config.size_id, config.size_id
        bins = config.region.coord_out_dim, sizes, sizes
        return tuple(Head(*each) for each in zip(HEADS, tokens, bins, strict=True))

    def _own_ends(self) -> list[int]:
        return [int(self.config.eos_id)]

    def _refuse_other_codec(self, coordinates: int, sizes: int) -> None:
        codec = self.codec
        last = coordinates - 1 if self.config.region.last_bin_is_one else coordinates
        if not isinstance(codec, Codec) or codec.boxes != "centre":
            raise ValueError(
                "Moondream 3 says a box by its centre and sizes, then an SVG path inside it; set codec.name to "
                f"svg_path and codec.boxes to centre, with box_bins {last}."
            )
        if codec.box_bins != last or codec.size_steps != sizes - 1:
            raise ValueError(
                f"codec.box_bins is {codec.box_bins} and its sizes have {codec.size_steps} steps, and this model says "
                f"a coordinate in {last} steps and a size in {sizes - 1}; set codec.box_bins to {last} and "
                f"codec.size_bins to {'null' if last == sizes - 1 else sizes - 1}."
            )

    # Questions in.

    def _learn_to_ask(self, asking: Asking) -> str:
        for name, value, plain in (
            ("system", asking.system, None),
            ("template_arguments", asking.template_arguments or None, None),
            ("thinking", asking.thinking, "none"),
        ):
            if value != plain:
                raise ValueError(
                    f"policy.{name} is {value!r}, and Moondream 3 has no chat template for it; leave it out."
                )
        questions, words = Questions(asking), PlainWords(self.tokenizer)
        self._known_tokens = lru_cache(maxsize=4096)(lambda phrase, asked: words.ids(questions.text(phrase, asked)))
        return ""

    def _question_tokens(self, question: Question, image_tokens: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Processor._question_tokens: what all questions about an image share is the beginning and the image."""
        refuse_candidates(question)
        asked = question.prompt.asked
        if asked != "mask":
            raise ValueError(
                f"the data asks for a {asked}, and Moondream 3 is asked for masks alone here; leave such questions out."
            )
        height, width = question.image.shape[:2]
        places = [part for part in question.prompt.parts if not isinstance(part, TextPart)]
        words = " ".join(part.text for part in question.prompt.parts if isinstance(part, TextPart))
        segment = self.config.segment
        rest = [
            self._words_alone(segment["prefix"]),
            *(self._place_choices(part, height, width) for part in places),
            self._words_alone([*self._known_tokens(words, asked), *segment["suffix"]]),
        ]
        shared = self._words_alone([self.config.bos_id, *[self.image_token] * image_tokens])
        return shared, np.concatenate(rest)

    def prompt_text(self, question: Question) -> str:
        """The prompt as text; for the image, which has no token, stands <image>."""
        tokens = self.engine_tokens(question)
        parts = [tokens[:1], tokens[2:]]  # the beginning, the image, the rest
        before, behind = (str(self.tokenizer.decode(part, clean_up_tokenization_spaces=False)) for part in parts)
        return f"{before} <image> {behind}"

    def _words_alone(self, tokens: Sequence[int]) -> NDArray[np.int64]:
        """[n, 1 + heads] choices of tokens beside which no head chooses."""
        found = np.full((len(tokens), 1 + len(HEADS)), NO_BIN, np.int64)
        found[:, 0] = tokens
        return found

    def _place_choices(self, part: Any, height: int, width: int) -> NDArray[np.int64]:
        """A point as two coordinates, a box as its centre and size."""
        if isinstance(part, MaskPart):
            raise ValueError(
                "a question shows a mask, and Moondream 3 is asked with text, points and boxes; leave it out."
            )
        assert isinstance(part, PointPart | BoxPart)
        assert isinstance(self.codec, Codec)
        place = part.point_px if isinstance(part, PointPart) else part.box_px
        corners = np.array(place, np.float64).reshape(-1, 2)
        return self._box_choices(self.codec.place_numbers(corners, height, width))

    def _box_choices(self, numbers: Sequence[int]) -> NDArray[np.int64]:
        """Two numbers as two coordinates, four as those and a size."""
        config, highest = self.config, np.array([head.bins for head in self.heads]) - 1
        found = self._words_alone([config.coord_id, config.coord_id, config.size_id][: len(numbers) // 2 + 1])
        found[0, 1], found[1, 1] = np.minimum(numbers[:2], highest[0])
        if len(numbers) == 4:
            found[2, 2:] = np.minimum(numbers[2:], highest[1:])
        return found

    def image_patches(self, height: int, width: int) -> int:
        """Patches of all crops of a height x width image."""
        return num_crops(tiling_of(height, width, self.image_processor)) * self.image_processor.grid**2

    def _with_images(self, rows: PromptRows, images: Sequence[NDArray[np.uint8]]) -> PromptRows:
        crops = [num_crops(tiling_of(image.shape[0], image.shape[1], self.image_processor)) for image in images]
        return replace(super()._with_images(rows, images), image_rows=torch.tensor(crops))

    # Answers out.

    def answer_tokens(self, text: str) -> NDArray[np.int64]:
        """[T, 1 + heads] choices that make an answer's text, end included: the first four numbers of each instance by
        the heads, all else by words."""
        parts: list[NDArray[np.int64]] = []
        for number, instance in enumerate(text.split(f" {INSTANCE_WORD} ")):
            words = instance.split()
            box = numbers_of(words[:4])
            if number:
                parts.append(self._words_alone(self._ids(INSTANCE_WORD)))
            if box is not None and len(box) == 4 and max(box) < 2**15:
                parts.append(self._box_choices(box))
                words = words[4:]
            parts.append(self._words_alone(self._ids(" ".join(words))))
        return np.concatenate([*parts, self._words_alone([self.end_token])])

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def token_texts(self, response: Response) -> list[str]:
        """[T] text of each place alone: bins of heads as numbers, "" of the end."""
        texts = super().token_texts(response)
        assert response.bins is not None
        for place, bins in enumerate(response.bins):
            if (bins != NO_BIN).any():
                texts[place] = " ".join(str(number) for number in bins if number != NO_BIN)
        return texts

    def text(self, response: Response) -> str:
        """The response as text, each box as its four numbers; behind <?> where a box is missing, in parts, or at
        another place than the beginning of an instance."""
        assert response.bins is not None
        words = self._runs(response)
        said = " ".join(word for word in words if word)
        if said == EMPTY_WORD or self._boxes_in_place(response):
            return said
        return f"{_UNSAID} {said}"

    def _runs(self, response: Response) -> list[str]:
        """Texts of boxes' places one by one, of the words between them together."""
        assert response.bins is not None
        end = len(response.tokens) - (response.finish == "stop")
        by_head = (response.bins[:end] != NO_BIN).any(axis=1)
        texts, found, begun = self.token_texts(response), list[str](), 0
        for place in [*np.flatnonzero(by_head).tolist(), end]:
            if place > begun:
                run = self.tokenizer.decode(response.tokens[begun:place], clean_up_tokenization_spaces=False)
                found.append(str(run).strip())
            if place < end:
                found.append(texts[place])
            begun = place + 1
        return found

    def _boxes_in_place(self, response: Response) -> bool:
        """Whether each instance begins with its box, and no head chose anything else."""
        config, said = self.config, 0
        separators = self._ids(INSTANCE_WORD)
        order = (config.coord_id, config.coord_id, config.size_id)
        for token in response.tokens[: len(response.tokens) - (response.finish == "stop")].tolist():
            if said < _BOX_PLACES:
                if token != order[said]:
                    return False
                said += 1
            elif token in order:
                return False
            elif separators == [token]:
                said = 0
        return said == _BOX_PLACES

    def token_grammar(self) -> Any:
        """None: ValueError."""
        raise ValueError(
            "sampling.grammar is true, and Moondream 3 says boxes by heads of their own, which the grammar of texts "
            "does not know; set it to false."
        )

    def save_config(self, folder: Path, dtype: str, tied: bool) -> None:
        """Processor.save_config, with the number of crops that the settings allow."""
        super().save_config(folder, dtype, tied)
        if self._limited:
            path = folder / "config.json"
            values = json.loads(path.read_text(encoding="utf-8"))
            vision = values.setdefault("config", {}).setdefault("vision", {})
            vision["max_crops"] = self.image_processor.max_crops
            path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
