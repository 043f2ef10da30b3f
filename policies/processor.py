"""What stands between questions and answers and the tokens of a model; it holds no weights.

A question becomes token ids and image patches, a response becomes text and polygons. Learner, our own sampler, vLLM and
the checks before a run all ask the same Processor, so that all of them mean the same prompt by a question.
"""

import json
import reprlib
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.codecs.base import AnswerCodec, PlaceCodec, SeenCodec
from envs.example import BoxPart, Example, MaskPart, Part, PointPart, Question, TextPart
from envs.geometry.contours import outline
from envs.polygons import Answer
from policies import choices
from policies.checkpoint import Checkpoint
from policies.choices import Head
from policies.families.base import PromptRows, Response, TaughtAnswer
from policies.family import Family, TiledFamily
from policies.folder import (
    chat_template,
    codec_tokens,
    end_tokens,
    mark_ids,
    number_tokens,
    read,
    refuse_other_layers,
    unsampled_tokens,
)
from policies.grammar import TokenGrammar, token_pieces
from policies.question import QuestionTemplate, refuse_candidates
from policies.settings import Asking
from policies.sharing.packing import pad_left, pad_responses
from policies.thinking import Thinking, asking_for_thinking, block_marks, mark_tokens

_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "tiktoken.model",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "generation_config.json",
)
"""All that a folder says beside its weights and config.json."""


class Processor:
    """Tokenizer, chat template and image processor of a checkpoint, and the codec of its answers."""

    def __init__(self, checkpoint: Checkpoint, family: Family, codec: AnswerCodec, asking: Asking) -> None:
        """Read a Hugging Face folder of a family.

        Raises ValueError for a question that leaves the phrase out, limits of an image's area that none can meet, and a
        tokenizer without a token that ends an answer.
        """
        self._checkpoint, self._limited = checkpoint, asking.min_pixels is not None or asking.max_pixels is not None
        self.family = family
        """What is special about the family of the checkpoint."""
        self.config: Any = read(checkpoint, "config.json", family.config)
        """Config of the model, as transformers reads it."""
        refuse_other_layers(checkpoint, family, self.config)
        self.codec: AnswerCodec = codec
        """Codec that writes and reads the text of answers, in coordinates of the family where it leaves them open."""
        self.tokenizer: Any = self._own_tokenizer()
        """Tokenizer of the checkpoint, from transformers."""
        self.image_processor = family.image_processor(checkpoint, asking.min_pixels, asking.max_pixels)
        """Image processor of the checkpoint, from transformers."""
        self.codec = self.seen(codec)
        self.end_tokens = self._own_ends()
        """Tokens that end an answer; the first is the one that an answer is taught to end with."""
        self.end_token = self.end_tokens[0]
        """Token that an answer is taught to end with."""
        marks = block_marks(asking, family.thinking_marks)
        self.heads = self._own_heads()
        """What chooses beside the vocabulary, in the order of the columns of bins; () where nothing does."""
        known = self.tokenizer.get_vocab()
        called = [*[head.token for head in self.heads], *codec_tokens(self.codec, known)]
        written = [*self.end_tokens, *called, *mark_tokens(asking, marks, known)]
        self.unsampled_tokens = unsampled_tokens(self.tokenizer, self.vocabulary_size, written)
        """Tokens that have no probability, in sampling or in learning: special ones, ids that no text has, and control
        tokens such as <tool_call>; less those that end an answer, mark its reasoning, or are words of the codec."""
        self._part_vertices = asking.part_vertices
        self._template_added: str | None = None
        ending = self._learn_to_ask(asking_for_thinking(asking, marks))
        self.thinking = Thinking.behind(ending, asking, marks)
        """Whether reasoning stands before an answer, and how it is marked."""
        self._grammar: TokenGrammar | None = None
        self._token_texts: dict[int, str] = {}

    def _own_tokenizer(self) -> Any:
        return read(self._checkpoint, "tokenizer_config.json or tokenizer.json", self.family.tokenizer)

    def _own_heads(self) -> tuple[Head, ...]:
        return ()

    def _own_ends(self) -> list[int]:
        return end_tokens(self._checkpoint, self.tokenizer, self.family, self.vocabulary_size)

    # Questions in.

    def _learn_to_ask(self, asking: Asking) -> str:
        """Get ready for questions; returns the text that stands behind the user's, which an answer follows."""
        self._image_marks = mark_ids(self._checkpoint, self.family, self.tokenizer)
        added = self._template_added = chat_template(self._checkpoint, self.tokenizer, self.family, self.image_token)
        marks = added, self.family.begins, self.family.image_text
        self._template = QuestionTemplate(self.tokenizer, asking, self.image_token, *marks)
        # A question is asked for again: by the sampler, for its group, by the checks before a run.
        self._known_tokens = lru_cache(maxsize=4096)(self._template.tokens)
        return self._template.ending

    def prompt_tokens(self, question: Question) -> NDArray[np.int64]:
        """[P] token ids of a question, a placeholder for each token of its image included.

        Words are data: whatever is written in them, no token of it is one that controls. Raises ValueError for a prompt
        that is no text, for parts other than text, and for candidates to choose from.
        """
        return choices.apart(self._prompt(question))[0]

    def _prompt(self, question: Question) -> NDArray[np.int64]:
        """[P] or [P, 1 + C] choices of a question."""
        return np.concatenate(self._question_tokens(question, self.image_tokens(*question.image.shape[:2])))

    def engine_tokens(self, question: Question) -> NDArray[np.int64]:
        """Token ids of a question with one placeholder for the image, for an engine that fits in its tokens itself.

        Raises as `prompt_tokens` does.
        """
        return choices.apart(np.concatenate(self._question_tokens(question, 1)))[0]

    def prompt_text(self, question: Question) -> str:
        """The prompt as text, one image token in it, special tokens shown; for people."""
        return str(self.tokenizer.decode(self.engine_tokens(question)))

    def question_lengths(self, question: Question) -> tuple[int, int]:
        """Tokens of a question: those that all questions about its image share, and the rest.

        Raises as `prompt_tokens` does.
        """
        shared, rest = self._question_tokens(question, self.image_tokens(*question.image.shape[:2]))
        return len(shared), len(rest)

    def image_tokens(self, height: int, width: int) -> int:
        """How many tokens of the prompt stand for a height x width image."""
        return self.family.image_tokens(self.image_processor, height, width)

    def image_patches(self, height: int, width: int) -> int:
        """How many patches of a height x width image the vision tower sees."""
        return self.image_tokens(height, width) * self.family.patches_each(self.image_processor)

    def shown_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of what the model sees of a height x width image, pixels after resizing."""
        return self.family.shown_size(self.image_processor, height, width)

    def shown_image(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The image [H, W, 3] as the image processor can take it, for an engine that processes it itself; another one
        only where it could not."""
        return self.family.handed_over(self.image_processor, image)

    @property
    def engine_limits(self) -> dict[str, int]:
        """Limits of an image's area, as vLLM takes them for the family's image processor."""
        return self.family.engine_limits(self.image_processor)

    def patches(self, images: Sequence[NDArray[np.uint8]]) -> tuple[Tensor, Tensor]:
        """(pixel_values, image_grid) of B images [H, W, 3]: float32 and int64, as PromptRows holds them."""
        return self.family.patches(self.image_processor, images)

    def rows(self, questions: Sequence[Question], responses: Sequence[Sequence[NDArray[np.int64]]]) -> PromptRows:
        """Rows of B questions with the choices of up to G responses each, all of them scored; on the CPU.

        Raises as `prompt_tokens` does.
        """
        rows = self._padded([self._prompt(each) for each in questions], responses)
        return self._with_images(rows, [question.image for question in questions])

    def _padded(
        self, prompts: Sequence[NDArray[np.int64]], responses: Sequence[Sequence[NDArray[np.int64]]]
    ) -> PromptRows:
        """Rows of choices without their images."""
        prompt_tokens, prompt_mask = pad_left([choices.apart(each)[0] for each in prompts], self.end_token)
        split = [[choices.apart(each) for each in row] for row in responses]
        tokens, mask = pad_responses([[own for own, _ in row] for row in split], self.end_token)
        none = torch.zeros(0)
        rows = PromptRows(prompt_tokens, prompt_mask, none, none, tokens, mask, mask)
        if not self.heads:
            return rows
        none_chosen = np.full((1, len(self.heads)), choices.NO_BIN)
        bins = [[none_chosen.repeat(len(own), 0) if found is None else found for own, found in row] for row in split]
        return replace(
            rows,
            prompt_bins=pad_left([each[:, 1:] for each in prompts], choices.NO_BIN)[0],
            response_bins=pad_responses(bins, choices.NO_BIN)[0],
        )

    def _with_images(self, rows: PromptRows, images: Sequence[NDArray[np.uint8]]) -> PromptRows:
        pixel_values, grid = self.patches(images)
        return replace(rows, pixel_values=pixel_values, image_grid=grid)

    @property
    def shares_images(self) -> bool:
        """Whether questions about one image share its tokens in supervised rows; else each has a row of its own."""
        return not self.family.whole_prompts

    def supervised_rows(self, taught: Sequence[Sequence[TaughtAnswer]]) -> PromptRows:
        """Rows of B images with several questions and their answers each, on the CPU: only the image is shared,
        only answers are scored. Where a family shares nothing, a row for each question.

        Raises as `prompt_tokens` does, and ValueError where questions of one row show different images.
        """
        if any(each.question.image is not row[0].question.image for row in taught for each in row):
            raise ValueError("questions of one row show different images; give each image a row of its own.")
        if not self.shares_images:
            alone = [each for row in taught for each in row]
            return self.rows([each.question for each in alone], [[each.tokens] for each in alone])
        first = [row[0].question for row in taught]
        shared = [self._question_tokens(each, self.image_tokens(*each.image.shape[:2]))[0] for each in first]
        asked = [[self._question_tokens(each.question, 1)[1] for each in row] for row in taught]
        whole = [
            [np.concatenate([words, each.tokens]) for words, each in zip(own, row, strict=True)]
            for own, row in zip(asked, taught, strict=True)
        ]
        rows = self._padded(shared, whole)
        _, of_question = pad_responses(asked, self.end_token)
        scored = rows.response_mask.clone()
        scored[:, :, : of_question.shape[2]] &= ~of_question
        return self._with_images(replace(rows, scored_mask=scored), [question.image for question in first])

    def _question_tokens(self, question: Question, image_tokens: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Choices of a prompt, cut behind the image: what all questions about one image share, and the rest."""
        refuse_candidates(question)
        ids = self._known_tokens(self._words(question), question.prompt.asked)
        image, closing = ids.index(self.image_token), self.family.image_end(self.config)
        shown = self._image_ids(question.image.shape[0], question.image.shape[1], image_tokens)
        ids = [*ids[:image], *shown, *ids[image + 1 :]]
        end = image + len(shown) if closing is None else ids.index(closing) + 1
        most = self.config.get_text_config().max_position_embeddings
        if len(ids) > most:
            raise ValueError(
                f"the question {reprlib.repr(question.prompt.told)} takes {len(ids)} tokens, {image_tokens} of them of "
                f"its image, and the model goes as far as {most}; ask in fewer words, or lower policy.max_pixels."
            )
        return np.array(ids[:end], np.int64), np.array(ids[end:], np.int64)

    def _image_ids(self, height: int, width: int, image_tokens: int) -> list[int]:
        """All that stands for a height x width image of so many tokens; one alone stands for all of them."""
        if image_tokens > 1 and isinstance(self.family, TiledFamily):
            return self.family.image_ids(self.tokenizer, self.image_processor, self.image_token, (height, width))
        before, behind = self._image_marks
        return [*before, *[self.image_token] * image_tokens, *behind]

    def _words(self, question: Question) -> str:
        """The prompt's parts as text, points, boxes and regions in the codec's words."""
        height, width = question.image.shape[:2]
        return " ".join(self._part_text(part, height, width) for part in question.prompt.parts)

    def _part_text(self, part: Part, height: int, width: int) -> str:
        match part:
            case TextPart(text):
                return text
            case MaskPart(mask):
                return self.codec.encode([outline(mask, self._part_vertices, 1)], height, width)
            case PointPart(place) | BoxPart(place):
                corners = np.array(place, np.float64).reshape(-1, 2)
                return self._places("point or a box in a question").encode_places([corners], height, width)

    def _places(self, what: object) -> PlaceCodec:
        if isinstance(self.codec, PlaceCodec):
            return self.codec
        raise ValueError(
            f"the data has a {what}, which the codec cannot write; choose codec path_tokens, point_text or "
            "json_objects."
        )

    @property
    def image_token(self) -> int:
        """Token that stands for a place of an image in the prompt."""
        return self.family.placeholder(self.config)

    # Answers out.

    def seen(self, codec: AnswerCodec) -> AnswerCodec:
        """A codec as the family of this checkpoint uses it, whose coordinates may be its own."""
        if not isinstance(codec, SeenCodec):
            return codec
        return codec.seen_by(self.family.coordinates, self.shown_size)

    def answer_tokens(self, text: str) -> NDArray[np.int64]:
        """[T] or [T, 1 + C] choices that make an answer's text, end token included."""
        return np.array([*self.tokenizer(text, add_special_tokens=False)["input_ids"], self.end_token], np.int64)

    def text(self, response: Response) -> str:
        """The response's text without its end token."""
        tokens = response.tokens[:-1] if response.finish == "stop" else response.tokens
        return str(self.tokenizer.decode(tokens, clean_up_tokenization_spaces=False))

    def token_texts(self, response: Response) -> list[str]:
        """[T] text of each token alone, "" of the end token."""
        stopped = response.finish == "stop"
        return [*map(self._token_text, response.tokens[: len(response.tokens) - stopped].tolist()), *[""] * stopped]

    def _token_text(self, token: int) -> str:
        if token not in self._token_texts:
            self._token_texts[token] = str(self.tokenizer.decode([token], clean_up_tokenization_spaces=False))
        return self._token_texts[token]

    def read(self, response: Response, height: int, width: int) -> Answer:
        """The response as polygons in pixels of a height x width image; never raises on model output."""
        text, cut = self.text(response), response.finish == "length"
        return self.thinking.read(lambda rest: self.codec.read(rest, height, width, truncated=cut), text, cut)

    def read_answer(self, response: Response, example: Example) -> Answer:
        """The response to an example, read as what was asked for; never raises on model output."""
        if example.prompt.asked == "mask":
            return self.read(response, example.image.height, example.image.width)
        return self.read_text(self.text(response), example, response.finish == "length")

    def read_text(self, text: str, example: Example, truncated: bool = False) -> Answer:
        """A text as the answer to an example; truncated: the limit on tokens cut it. Never raises on the text."""
        size, asked = (example.image.height, example.image.width), example.prompt.asked
        if asked == "mask":
            return self.thinking.read(lambda rest: self.codec.read(rest, *size, truncated), text, truncated)
        codec = self._places(f"question about a {asked}")
        return self.thinking.read(lambda rest: codec.read_places(rest, asked, *size, truncated), text, truncated)

    @property
    def vocabulary_size(self) -> int:
        """V, tokens that the model gives logits to; the tokenizer may know fewer."""
        return int(self.config.get_text_config().vocab_size)

    @property
    def number_tokens(self) -> list[int]:
        """Ids of the numbers that answers are written in: "0", "1", ... as far as each is one token of the vocabulary,
        or the codec's own tokens of places."""
        return number_tokens(self.codec, self.tokenizer.get_vocab())

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
        """Write tokenizer, chat template and image processor into a Hugging Face folder.

        Files are copied as the checkpoint has them, so that whatever read those reads these: written anew by this
        release of transformers, an older one and vLLM on it would refuse them. Limits of an image's area that the
        settings changed, and a template that the checkpoint lacked, are written into the copies.
        """
        code = [path.name for path in self._checkpoint.folder.glob("*.py")] if self.family.takes_code else []
        for name in (*_FILES, *code):
            source = self._checkpoint.folder / name
            if source.is_file() and source.resolve() != (folder / name).resolve():
                shutil.copyfile(source, folder / name)
        if self._limited:
            for name in ("preprocessor_config.json", "processor_config.json"):
                self._write_limits(folder / name)
        if self._template_added is not None:
            (folder / "chat_template.jinja").write_text(self._template_added, encoding="utf-8")

    def save_config(self, folder: Path, dtype: str, tied: bool) -> None:
        """Write config.json into a folder as the checkpoint has it, but for the number format of the weights.

        tied: whether the head is the embedding; said where transformers would take it for that and it is not.
        """
        values = dict(self._checkpoint.config)
        if self.config.tie_word_embeddings and not tied:
            values["tie_word_embeddings"] = False
        values["torch_dtype" if "torch_dtype" in values else "dtype"] = dtype
        (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")

    def _write_limits(self, path: Path) -> None:
        if not path.is_file():
            return
        values = json.loads(path.read_text(encoding="utf-8"))
        held = values.get("image_processor", values)  # nested in a processor_config.json
        held |= self.family.stored_limits(self.image_processor)
        path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
