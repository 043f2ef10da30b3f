"""What stands between questions and answers and the tokens of a model; it holds no weights.

A question becomes token ids and image patches, a response becomes text and polygons. Learner, our own sampler, vLLM and
the checks before a run all ask the same Processor, so that all of them mean the same prompt by a question.
"""

from collections.abc import Sequence
from itertools import chain
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from envs.codecs.base import AnswerCodec
from envs.example import Question
from envs.polygons import Answer
from policies.families.base import PromptRows, Response
from policies.grammar import TokenGrammar, token_pieces
from policies.question import QuestionTemplate
from policies.sharing.packing import pad_left, pad_responses

_MOST_RATIO = 200
"""Largest ratio of an image's sides, longer over shorter: the image processor raises for more."""


class Processor:
    """Tokenizer, chat template and image processor of a checkpoint, and the codec of its answers."""

    def __init__(self, checkpoint: Path, config: Any, codec: AnswerCodec, question: str = "{phrase}") -> None:
        """Read a Hugging Face folder.

        config: the folder's transformers config. question: the user's text, `{phrase}` standing for the words of the
        prompt; other braces are text. Raises ValueError for a question that leaves the phrase out, a chat template that
        does not show an image and a text, or an image processor that does not resize.
        """
        self.config = config
        """Config of the model, as transformers reads it."""
        self.codec = codec
        """Codec that writes and reads the text of answers."""
        self.tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint)
        """Tokenizer of the checkpoint, from transformers."""
        self.image_processor = _resizing_processor(checkpoint)
        """Image processor of the checkpoint, from transformers."""
        self.end_token: int = self.tokenizer.eos_token_id
        """Token that ends an answer."""
        self.unsampled_tokens: list[int] = sorted(set(self.tokenizer.all_special_ids) - {self.end_token})
        """Special tokens other than the end token: they have no probability, in sampling or in learning."""
        self._template = QuestionTemplate(self.tokenizer, question, config.image_token_id)
        self._grammar: TokenGrammar | None = None

    # Questions in.

    def prompt_tokens(self, question: Question) -> NDArray[np.int64]:
        """[P] token ids of a question, a placeholder for each token of its image included.

        Words are data: whatever is written in them, no token of it is one that controls. Raises ValueError for a prompt
        that is no text, for parts other than text, and for candidates to choose from.
        """
        _, _, (image_tokens,) = self.patches([question.image])
        return np.array(list(chain(*self._question_tokens(question, image_tokens))), np.int64)

    def engine_tokens(self, question: Question) -> NDArray[np.int64]:
        """Token ids of a question with one placeholder for the image, for an engine that fits in its tokens itself.

        Raises as `prompt_tokens` does.
        """
        return np.array(list(chain(*self._question_tokens(question, 1))), np.int64)

    def shown_image(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The image [H, W, 3] as the image processor can take it: its shorter side stretched where it is too thin.

        The processor resamples anyway, each side to whole patches, and answers are in pixels of the image itself. A
        longer side that the processor would shrink is shrunk here already, so that memory stays bounded.
        """
        longer = max(image.shape[:2])
        if longer <= _MOST_RATIO * min(image.shape[:2]):
            return image
        shown = min(longer, isqrt(_MOST_RATIO * int(self.image_processor.size["longest_edge"])))
        thin = -(-shown // _MOST_RATIO)
        width, height = (shown if side == longer else thin for side in (image.shape[1], image.shape[0]))
        return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))

    def patches(self, images: Sequence[NDArray[np.uint8]]) -> tuple[Tensor, Tensor, list[int]]:
        """(pixel_values [patches, channels] float32, image_grid [B, 3] int64, tokens of each image) of B images
        [H, W, 3]."""
        shown = [self.shown_image(image) for image in images]
        inputs = self.image_processor(images=shown, return_tensors="pt", input_data_format="channels_last")
        grid = inputs["image_grid_thw"]
        merge = self.config.vision_config.spatial_merge_size
        return inputs["pixel_values"], grid, (grid.prod(-1) // merge**2).tolist()

    def rows(self, questions: Sequence[Question], responses: Sequence[Sequence[NDArray[np.int64]]]) -> PromptRows:
        """Rows of B questions with the token ids of up to G responses each, all of them scored; on the CPU.

        Raises as `prompt_tokens` does.
        """
        pixel_values, grid, counts = self.patches([question.image for question in questions])
        prompts = [list(chain(*self._question_tokens(one, n))) for one, n in zip(questions, counts, strict=True)]
        prompt_tokens, prompt_mask = pad_left([np.array(p, np.int64) for p in prompts], self.end_token)
        tokens, mask = pad_responses(responses, self.end_token)
        return PromptRows(prompt_tokens, prompt_mask, pixel_values, grid, tokens, mask, mask)

    def supervised_rows(self, taught: Sequence[Sequence[tuple[Question, NDArray[np.int64]]]]) -> PromptRows:
        """Rows of B images with several (question, answer token ids) each, on the CPU: only the image is shared, only
        answers are scored.

        Raises as `prompt_tokens` does, and ValueError where questions of one row show different images.
        """
        if any(question.image is not row[0][0].image for row in taught for question, _ in row):
            raise ValueError("questions of one row show different images; give each image a row of its own.")
        pixel_values, grid, counts = self.patches([row[0][0].image for row in taught])
        shared = [self._question_tokens(row[0][0], n)[0] for row, n in zip(taught, counts, strict=True)]
        prompt_tokens, prompt_mask = pad_left([np.array(tokens, np.int64) for tokens in shared], self.end_token)
        asked = [[np.array(self._question_tokens(each, 1)[1], np.int64) for each, _ in row] for row in taught]
        whole = [
            [np.concatenate([words, answer]) for words, (_, answer) in zip(own, row, strict=True)]
            for own, row in zip(asked, taught, strict=True)
        ]
        tokens, mask = pad_responses(whole, self.end_token)
        _, of_question = pad_responses(asked, self.end_token)
        scored = mask.clone()
        scored[:, :, : of_question.shape[2]] &= ~of_question
        return PromptRows(prompt_tokens, prompt_mask, pixel_values, grid, tokens, mask, scored)

    def _question_tokens(self, question: Question, image_tokens: int) -> tuple[list[int], list[int]]:
        """Prompt token ids, cut behind the image: what all questions about one image share, and the rest."""
        if question.candidates is not None:
            raise ValueError(
                f"the question {question.prompt.text!r} comes with {len(question.candidates)} masks to choose from, "
                "and this model family draws outlines; leave the candidates out."
            )
        ids = self._template.tokens(question.prompt.text_alone)
        image = ids.index(self.config.image_token_id)
        ids = ids[:image] + [self.config.image_token_id] * image_tokens + ids[image + 1 :]
        end = ids.index(self.config.vision_end_token_id) + 1
        return ids[:end], ids[end:]

    # Answers out.

    def answer_tokens(self, text: str) -> NDArray[np.int64]:
        """[T] token ids of an answer's text, end token included."""
        return np.array([*self.tokenizer(text, add_special_tokens=False)["input_ids"], self.end_token], np.int64)

    def text(self, response: Response) -> str:
        """The response's text without its end token."""
        tokens = response.tokens[:-1] if response.finish == "stop" else response.tokens
        return str(self.tokenizer.decode(tokens, clean_up_tokenization_spaces=False))

    def read(self, response: Response, height: int, width: int) -> Answer:
        """The response as polygons in pixels of a height x width image; never raises on model output."""
        return self.codec.read(self.text(response), height, width, truncated=response.finish == "length")

    @property
    def vocabulary_size(self) -> int:
        """V, tokens that the model gives logits to; the tokenizer may know fewer."""
        return int(self.config.get_text_config().vocab_size)

    @property
    def number_tokens(self) -> list[int]:
        """Ids of "0", "1", ... as far as each is one token of the vocabulary."""
        vocabulary: dict[str, int] = self.tokenizer.get_vocab()
        ids: list[int] = []
        while str(len(ids)) in vocabulary:
            ids.append(vocabulary[str(len(ids))])
        return ids

    def token_grammar(self) -> TokenGrammar:
        """The codec's grammar in this vocabulary, made once.

        Raises ValueError where the vocabulary cannot write it, NotImplementedError where the codec has none.
        """
        if self._grammar is None:
            grammar = self.codec.grammar()
            pieces = token_pieces(self.tokenizer, grammar.alphabet)
            self._grammar = TokenGrammar(grammar, pieces, self.end_token, self.vocabulary_size)
        return self._grammar

    def save(self, folder: Path) -> None:
        """Write tokenizer, chat template and image processor into a Hugging Face folder."""
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)


def _resizing_processor(checkpoint: Path) -> Qwen2VLImageProcessorPil:
    """The image processor of a folder; ValueError for one that takes only images whose sides are whole patches."""
    processor = Qwen2VLImageProcessorPil.from_pretrained(checkpoint)
    if not processor.do_resize:
        raise ValueError(
            f"the image processor of {checkpoint} has do_resize false, so that most images would stop a run; set it to "
            "true in preprocessor_config.json: images that fit its limits are not changed by it."
        )
    return processor
