"""Policy over transformers' image-text models: Qwen3-VL and Qwen2.5-VL, from a toy of 1 M parameters to the released
sizes.

One row per group (policies/sharing/packing.py): the prompt once, then its G responses, each seeing the prompt and
itself, at positions that restart after the prompt. Exact, and P + G*T tokens of work in place of G*(P + T).

Special tokens other than the end token cannot be sampled (a sampled image token would break the next forward pass);
the learner takes its log-probabilities under the same restriction, so that both speak of one distribution.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoTokenizer,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from envs.codecs.base import AnswerCodec
from envs.polygons import Answer
from policies.families.base import PromptRows, Response, VisionFeatures
from policies.grammar import TokenGrammar, token_pieces
from policies.lora import add_adapters
from policies.question import Questions
from policies.settings import LoraSettings
from policies.sharing import attention as shared_attention
from policies.sharing.chunks import in_chunks, num_chunks
from policies.sharing.packing import pack_rows, pad_left, pad_responses
from policies.sharing.prompt_cache import EncodedPrompts, PromptCache, next_states
from policies.vision_features import tower_features
from policies.weights import held_checksum

_FAMILIES: dict[str, Any] = {
    "qwen3_vl": Qwen3VLForConditionalGeneration,
    "qwen2_5_vl": Qwen2_5_VLForConditionalGeneration,
}
_MOST_RATIO = 200
"""Largest ratio of an image's sides, longer over shorter: the image processor raises for more."""


def _known_config(checkpoint: Path) -> Any:
    """The transformers config of a folder with a model of these families."""
    if not (checkpoint / "config.json").is_file():
        raise FileNotFoundError(
            f"policy.checkpoint is {checkpoint}, which has no config.json; give a Hugging Face model folder."
        )
    config = AutoConfig.from_pretrained(checkpoint)
    if config.model_type not in _FAMILIES:
        raise ValueError(
            f"{checkpoint} is a {config.model_type} model, and this file knows {' and '.join(_FAMILIES)}; "
            "another family is one more file in policies/."
        )
    return config


def _resizing_processor(checkpoint: Path) -> Qwen2VLImageProcessorPil:
    """The image processor of a folder; ValueError for one that takes only images whose sides are whole patches."""
    processor = Qwen2VLImageProcessorPil.from_pretrained(checkpoint)
    if not processor.do_resize:
        raise ValueError(
            f"the image processor of {checkpoint} has do_resize false, so that most images would stop a run; set it to "
            "true in preprocessor_config.json: images that fit its limits are not changed by it."
        )
    return processor


class Policy(nn.Module):
    """A vision-language model with its tokenizer, its image processor, and the codec of its answers."""

    def __init__(
        self,
        checkpoint: Path,
        codec: AnswerCodec,
        question: str = "{phrase}",
        dtype: str = "float32",
        logit_bytes: int = 2**28,
        weights: bool = True,
        lora: LoraSettings | None = None,
    ) -> None:
        """Load a Hugging Face folder.

        question: the user's text, `{phrase}` standing for the example's phrase; other braces are text. dtype: name of
        a torch dtype. logit_bytes: what the float32 logits that learning holds at once may take; it needs a few times
        that for a moment. weights: False leaves them out, for who only asks and reads while another engine answers.
        lora: adapters to put into the model, which then alone require a gradient. Raises FileNotFoundError without
        such a folder, ValueError for a model of another family, a question that leaves the phrase out, a chat template
        that does not show an image and a text, or an image processor that does not resize.
        """
        super().__init__()
        config = _known_config(checkpoint)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint)
        self._image_token: int = config.image_token_id
        self._questions = Questions(self.tokenizer, question, self._image_token)
        self.image_processor = _resizing_processor(checkpoint)
        attention = {"": "sdpa", "text_config": shared_attention.NAME}
        where = {} if weights else {"device_map": "meta"}
        self.model: Any = _FAMILIES[config.model_type].from_pretrained(
            checkpoint, dtype=dtype, attn_implementation=attention, **where
        )
        self.codec = codec
        self._grammar: TokenGrammar | None = None
        self._logit_bytes = logit_bytes
        self.end_token: int = self.tokenizer.eos_token_id
        self._vision_end: int = config.vision_end_token_id
        self._merge: int = config.vision_config.spatial_merge_size
        self.unsampled_tokens: list[int] = sorted(set(self.tokenizer.all_special_ids) - {self.end_token})
        self.register_buffer("_unsampled", torch.tensor(self.unsampled_tokens), persistent=False)
        if lora is not None:
            add_adapters(self.model, self.vision_tower, lora)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.model.device

    @property
    def vision_tower(self) -> nn.Module:
        """The part that turns patches into image tokens, its mergers (Qwen3-VL's deepstack ones too) included: what a
        refiner reads its features from is all of it."""
        return self.model.model.visual

    # Text and images in.

    def _question_tokens(self, phrase: str, image_tokens: int) -> tuple[list[int], list[int]]:
        """Prompt token ids, cut behind the image: what all questions about one image share, and the rest."""
        ids = self._questions.tokens(phrase)
        image = ids.index(self._image_token)
        ids = ids[:image] + [self._image_token] * image_tokens + ids[image + 1 :]
        end = ids.index(self._vision_end) + 1
        return ids[:end], ids[end:]

    def _image_inputs(self, images: Sequence[NDArray[np.uint8]]) -> tuple[Tensor, Tensor, list[int]]:
        """(pixel_values, image_grid [B, 3], tokens per image) of B images [H, W, 3]."""
        shown = [self.question_image(image) for image in images]
        inputs = self.image_processor(images=shown, return_tensors="pt", input_data_format="channels_last")
        grid = inputs["image_grid_thw"]
        return inputs["pixel_values"], grid, (grid.prod(-1) // self._merge**2).tolist()

    def question_image(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
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

    def prompt_tokens(self, image: NDArray[np.uint8], phrase: str) -> NDArray[np.int64]:
        """[P] token ids of the question about an image [H, W, 3]."""
        _, _, (image_tokens,) = self._image_inputs([image])
        shared, rest = self._question_tokens(phrase, image_tokens)
        return np.array(shared + rest, np.int64)

    def question_tokens(self, phrase: str) -> NDArray[np.int64]:
        """Token ids of a question with one placeholder for the image, for an engine that fits in its tokens itself."""
        return np.array(list(chain(*self._question_tokens(phrase, 1))), np.int64)

    def answer_tokens(self, text: str) -> NDArray[np.int64]:
        """[T] token ids of an answer's text, end token included."""
        return np.array([*self.tokenizer(text, add_special_tokens=False)["input_ids"], self.end_token], np.int64)

    def rows(
        self,
        images: Sequence[NDArray[np.uint8]],
        phrases: Sequence[str],
        responses: Sequence[Sequence[NDArray[np.int64]]],
    ) -> PromptRows:
        """Rows for B questions (image [H, W, 3], phrase) with the token ids of up to G responses each, all of them
        scored."""
        pixel_values, grid, counts = self._image_inputs(images)
        prompts = [list(chain(*self._question_tokens(phrase, n))) for phrase, n in zip(phrases, counts, strict=True)]
        prompt_tokens, prompt_mask = pad_left([np.array(p, np.int64) for p in prompts], self.end_token)
        tokens, mask = pad_responses(responses, self.end_token)
        return self._on_device(PromptRows(prompt_tokens, prompt_mask, pixel_values, grid, tokens, mask, mask))

    def supervised_rows(
        self, images: Sequence[NDArray[np.uint8]], pairs: Sequence[Sequence[tuple[str, NDArray[np.int64]]]]
    ) -> PromptRows:
        """Rows of B images with several (phrase, answer token ids) each: only the image is shared, only answers are
        scored."""
        pixel_values, grid, counts = self._image_inputs(images)
        prompt_tokens, prompt_mask = pad_left(
            [np.array(self._question_tokens("", n)[0], np.int64) for n in counts], self.end_token
        )
        questions = [[np.array(self._question_tokens(phrase, 1)[1], np.int64) for phrase, _ in row] for row in pairs]
        whole = [
            [np.concatenate([q, answer]) for q, (_, answer) in zip(qs, row, strict=True)]
            for qs, row in zip(questions, pairs, strict=True)
        ]
        tokens, mask = pad_responses(whole, self.end_token)
        _, asked = pad_responses(questions, self.end_token)
        scored = mask.clone()
        scored[:, :, : asked.shape[2]] &= ~asked
        return self._on_device(PromptRows(prompt_tokens, prompt_mask, pixel_values, grid, tokens, mask, scored))

    def _on_device(self, rows: PromptRows) -> PromptRows:
        return PromptRows(*(part.to(self.device) for part in vars(rows).values()))

    # Learning.

    def checkpoint_gradients(self) -> None:
        """From now on keep only the inputs of layers, text and vision, and compute them again in the backward pass.

        While training; a frozen vision tower has no backward pass.
        """
        self.model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})

    def _prompt_positions(self, rows: PromptRows) -> tuple[Tensor, Tensor]:
        """Three-axis positions [3, B, P] of the prompts, and the position [B] at which text goes on."""
        positions, _ = self.model.model.get_rope_index(
            rows.prompt_tokens,
            mm_token_type_ids=(rows.prompt_tokens == self._image_token).int(),
            image_grid_thw=rows.image_grid,
            attention_mask=rows.prompt_mask,
        )
        last = positions.masked_fill(~rows.prompt_mask, 0).amax(dim=(0, 2))
        return positions, last + 1

    def _scored_states(self, rows: PromptRows) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden states [S, width] that predict the scored tokens, those tokens [S], and their places in [B*G*T]."""
        packed = pack_rows(rows)
        prompt_positions, following = self._prompt_positions(rows)
        response_positions = (following[:, None] + packed.steps).expand(3, -1, -1)
        states = self.model.model(
            input_ids=packed.tokens,
            **shared_attention.inputs(packed),
            position_ids=torch.cat([prompt_positions, response_positions], dim=2),
            pixel_values=rows.pixel_values,
            image_grid_thw=rows.image_grid,
            use_cache=False,
        ).last_hidden_state
        # One state predicts the first token of all answers of its row. By an index, threads would add up the gradients
        # in whatever order they come, and no run would repeat another to the bit; an embedding adds them in order.
        return functional.embedding(packed.predictors, states.flatten(0, 1)), packed.targets, packed.places

    def _token_logprobs(self, states: Tensor, temperature: float, allowed: Tensor | None = None) -> Tensor:
        """[S, V] float32 log-probabilities over what can be sampled; allowed: bool [S or 1, V], None for all."""
        logits = self.model.lm_head(states).float().index_fill(-1, self._unsampled, -torch.inf)
        if allowed is not None:
            logits = logits.masked_fill(~allowed.to(logits.device), -torch.inf)
        return torch.log_softmax(logits / temperature, dim=-1)

    def _scored(self, score: Callable[[Tensor, slice], Tensor], states: Tensor, most_scored: int = 0) -> Tensor:
        """[S] score(states of some tokens, which tokens) of states [S, width], in chunks of logit_bytes of logits."""
        vocabulary = self.model.config.get_text_config().vocab_size
        return in_chunks(score, states, num_chunks(max(len(states), most_scored), vocabulary, self._logit_bytes))

    def forward(
        self, rows: PromptRows, temperature: float = 1.0, grammar_tokens: int | None = None, most_scored: int = 0
    ) -> Tensor:
        """[B, G, T] float32 log-probabilities of the response tokens at a temperature; 0 outside scored_mask.

        grammar_tokens: the limit on tokens under which they were sampled with the grammar; None: without. most_scored:
        where ranks share out weights (ZeRO-3) and must call every module equally often, the most tokens that any of
        them scores. Raises ValueError for tokens that the grammar refuses.
        """
        states, targets, places = self._scored_states(rows)
        masks = self._masks(rows, places, grammar_tokens)

        def chosen(states: Tensor, part: slice) -> Tensor:
            allowed = None if masks is None else self.token_grammar().allowed(masks[part])
            return self._token_logprobs(states, temperature, allowed).gather(1, targets[part, None])[:, 0]

        flat = torch.zeros(rows.scored_mask.numel(), device=self.device)
        return flat.index_put((places,), self._scored(chosen, states, most_scored)).view(rows.scored_mask.shape)

    def _masks(self, rows: PromptRows, places: Tensor, grammar_tokens: int | None) -> NDArray[np.int64] | None:
        """[S] numbers of the grammar's masks at `places` [S] of [B * G * T]; None without a grammar."""
        if grammar_tokens is None:
            return None
        masks = self.token_grammar().masks_of_rows(
            rows.response_tokens.flatten(0, 1).cpu().numpy(),
            rows.response_mask.flatten(0, 1).cpu().numpy(),
            grammar_tokens,
        )
        return masks.ravel()[places.cpu().numpy()]

    def token_grammar(self) -> TokenGrammar:
        """The codec's grammar in this vocabulary, made once; ValueError where the vocabulary cannot write it."""
        if self._grammar is None:
            grammar = self.codec.grammar()
            pieces = token_pieces(self.tokenizer, grammar.alphabet)
            size = self.model.config.get_text_config().vocab_size
            self._grammar = TokenGrammar(grammar, pieces, self.end_token, size)
        return self._grammar

    def sft_loss(self, rows: PromptRows, number_spread: float = 0.0) -> Tensor:
        """Mean cross-entropy (nats a scored token), a scalar.

        number_spread: where above 0, a number's target is a Gaussian of that many numbers' width over its neighbours.
        """
        states, targets, _ = self._scored_states(rows)
        numbers = torch.tensor(list(self._number_tokens() if number_spread > 0 else ()), device=self.device)

        def loss(states: Tensor, part: slice) -> Tensor:
            logprobs, target = self._token_logprobs(states, 1.0), targets[part, None]
            exact = -logprobs.gather(1, target)[:, 0]
            if number_spread <= 0:
                return exact
            value = (target == numbers).float() @ torch.arange(len(numbers), device=self.device).float()
            distance = torch.arange(len(numbers), device=self.device) - value[:, None]
            weights = torch.softmax(-0.5 * (distance / number_spread) ** 2, dim=1)
            spread = -(weights * logprobs[:, numbers]).sum(1)
            return torch.where(torch.isin(target[:, 0], numbers), spread, exact)

        return self._scored(loss, states).mean()

    def _number_tokens(self) -> Iterator[int]:
        """Ids of "0", "1", ... as far as each is one token."""
        vocabulary = self.tokenizer.get_vocab()
        value = 0
        while str(value) in vocabulary:
            yield vocabulary[str(value)]
            value += 1

    # Sampling.

    @torch.no_grad()
    def encode(self, rows: PromptRows) -> EncodedPrompts:
        """Keys and values of B prompts, all tokens but the last; rows' own responses are not looked at."""
        positions, following = self._prompt_positions(rows)
        mask = rows.prompt_mask[:, :-1]
        length = mask.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=self.device).tril()
        diagonal = torch.eye(length, dtype=torch.bool, device=self.device)
        layers = self.model.model(
            input_ids=rows.prompt_tokens[:, :-1],
            attention_mask=((causal & mask[:, None, :]) | diagonal)[:, None],
            position_ids=positions[:, :, :-1],
            pixel_values=rows.pixel_values,
            image_grid_thw=rows.image_grid,
            use_cache=True,
        ).past_key_values.layers
        return EncodedPrompts(
            keys=torch.stack([layer.keys for layer in layers]),
            values=torch.stack([layer.values for layer in layers]),
            mask=mask.clone(),
            last_tokens=rows.prompt_tokens[:, -1].clone(),
            last_positions=following - 1,
        )

    @torch.no_grad()
    def decode(self, cache: PromptCache, tokens: Tensor, temperature: float, allowed: Tensor | None = None) -> Tensor:
        """Log-probabilities [R*C, V] of the token after `tokens` [R, C], among `allowed` [R*C, V]; the cache grows."""
        return self._token_logprobs(next_states(self.model.model.language_model, cache, tokens), temperature, allowed)

    def text(self, response: Response) -> str:
        """The response's text without its end token."""
        tokens = response.tokens[:-1] if response.finish == "stop" else response.tokens
        return str(self.tokenizer.decode(tokens, clean_up_tokenization_spaces=False))

    def read(self, response: Response, height: int, width: int) -> Answer:
        """The response as polygons in pixels of a height x width image; never raises on model output."""
        return self.codec.read(self.text(response), height, width, truncated=response.finish == "length")

    # For the refiner.

    def vision_features(self, images: Sequence[NDArray[np.uint8]], early_block: int = 0) -> VisionFeatures:
        """Features of B images [H, W, 3] of one size, float32, without gradient, on one grid: the tower's output, and
        early ones.

        early_block: 0 the patch embedding, before positions and blocks; k the output of block k, counted from 1, or
        ValueError where there is none. The grid spans the image, also where the image processor had to resample it: one
        whose sides are not multiples of patch times merge size, or whose area is outside its limits.
        """
        pixel_values, grid, _ = self._image_inputs(images)
        pixel_values, grid = pixel_values.to(self.device, self.model.dtype), grid.to(self.device)
        return tower_features(self.vision_tower, pixel_values, grid, early_block)

    def vision_checksum(self) -> str:
        """Checksum of the vision tower alone: what a refiner was trained on."""
        return held_checksum(self.vision_tower)

    def save(self, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write an ordinary Hugging Face folder (safetensors, tokenizer, image processor).

        weights: all of them by the plain model's names, where `model` itself is sharded or has adapters.
        """
        self.model.save_pretrained(folder, state_dict=None if weights is None else dict(weights))
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)
