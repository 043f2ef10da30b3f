"""Policy over transformers' image-text models (policies/families/_loading.py lists the families), from a toy of 1 M
parameters to the released sizes.

One row per group (policies/sharing/packing.py): the prompt once, then its G responses, each seeing the prompt and
itself, at positions that restart after the prompt. Exact, and P + G*T tokens of work in place of G*(P + T).

Special tokens other than the end token cannot be sampled (a sampled image token would break the next forward pass);
the learner takes its log-probabilities under the same restriction, so that both speak of one distribution.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from transformers import DynamicCache

from envs.codecs.base import AnswerCodec
from envs.example import Question
from policies.checkpoint import Checkpoint
from policies.families._loading import family_of, loaded
from policies.families.base import PromptRows, VisionFeatures
from policies.lora import add_adapters
from policies.processor import Processor
from policies.settings import AS_IT_IS, THINKING_QUESTION, Asking, LoraSettings
from policies.sharing import attention as shared_attention
from policies.sharing.capped import capped
from policies.sharing.norm import replace_norms
from policies.sharing.packing import PackedRows, pack_rows
from policies.sharing.prompt_cache import EncodedPrompts, PromptCache, joined_prompts, of_like_length
from policies.sharing.routes import replace_routers
from policies.sharing.scoring_head import Allowed, Neighbours, Scoring, ScoringHead, scores
from policies.vision.image_memory import ImageMemory
from policies.weights import held_sha256


class Policy(nn.Module):
    """A vision-language model and its Processor."""

    parts: ClassVar[tuple[str, ...]] = ("projector",)
    """Names of its parts that can be trained alone (sft.stages[].trains)."""

    def __init__(
        self,
        checkpoint: Path,
        codec: AnswerCodec,
        question: str = "{phrase}",
        dtype: str = "float32",
        logit_bytes: int = 2**28,
        weights: bool = True,
        lora: LoraSettings | None = None,
        questions: list[str] | None = None,
        system: str | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        template_arguments: dict[str, Any] | None = None,
        box_question: str | None = None,
        point_question: str | None = None,
        part_vertices: int = 12,
        thinking: str = "none",
        thinking_marks: list[str] | None = None,
        thinking_question: str | None = THINKING_QUESTION,
    ) -> None:
        """Load a Hugging Face folder.

        question to max_pixels, template_arguments to thinking_question: see `Asking`. dtype: name of a torch dtype.
        logit_bytes: what the float32 logits that learning holds at once may take; it needs a few times that for a
        moment. weights: False leaves them out: parameters have names, shapes and dtypes, no values. lora: adapters to
        put into the model, which then alone require a gradient. Raises as `make_processor` does, FileNotFoundError for
        a folder that lacks weights, and ValueError where they do not fill the model.
        """
        super().__init__()
        asking = Asking(
            question=question,
            questions=questions,
            box_question=box_question,
            point_question=point_question,
            part_vertices=part_vertices,
            system=system,
            template_arguments=template_arguments,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
            thinking=thinking,
            thinking_marks=thinking_marks,
            thinking_question=thinking_question,
        )
        self.processor = self.make_processor(checkpoint, codec, asking)
        self.model: Any = loaded(Checkpoint(checkpoint), self.processor.family, dtype, weights)
        self.processor.family.prepare(self.model)
        replace_norms(self.model)
        self._routers = replace_routers(self.model)
        self.model.set_output_embeddings(ScoringHead.in_place_of(self.model.lm_head))
        self._logit_bytes = logit_bytes
        self.register_buffer("_unsampled", torch.tensor(self.processor.unsampled_tokens), persistent=False)
        if lora is not None:
            add_adapters(self.model, self.vision_tower, lora)

    @classmethod
    def make_processor(cls, checkpoint: Path, codec: AnswerCodec, asking: Asking = AS_IT_IS) -> Processor:
        """The Processor of a Hugging Face folder, without its weights.

        Raises FileNotFoundError or ValueError where the folder is none that can be loaded (policies/checkpoint.py), is
        a model of another family, or cannot be asked so.
        """
        return Processor(Checkpoint(checkpoint), family_of(Checkpoint(checkpoint)), codec, asking)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.model.device

    @property
    def vision_tower(self) -> nn.Module:
        """The part that turns patches into image tokens, its mergers included: what a refiner reads its features from
        is all of it."""
        return self.processor.family.tower(self.model)

    @property
    def vision_projector(self) -> Sequence[nn.Module]:
        """The modules of the tower that join it to the language model."""
        return self.processor.family.projector(self.model)

    def part(self, name: str) -> Sequence[nn.Module]:
        """The modules of one of `parts`: of the projector those that join tower and language model."""
        assert name in self.parts, name
        return self.vision_projector

    def rows(self, questions: Sequence[Question], responses: Sequence[Sequence[NDArray[np.int64]]]) -> PromptRows:
        """Rows of B questions with the token ids of up to G responses each, where the parameters are."""
        return self.processor.rows(questions, responses).to(self.device)

    # Learning.

    def checkpoint_gradients(self) -> None:
        """From now on keep only the inputs of layers, text and vision, and compute them again in the backward pass.

        While training; a frozen vision tower has no backward pass.
        """
        self.model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})

    def remember_images(self, memory: ImageMemory) -> None:
        """From now on ask a memory for image tokens first; the vision tower must be frozen, projector included."""
        memory.remember(self.model.model)

    @property
    def _heads(self) -> shared_attention.Heads:
        return self.processor.family.heads(self.model)

    def _packed(self, rows: PromptRows) -> tuple[PackedRows, Tensor]:
        """The rows as a language model runs on them, and the positions [B, L] or [3, B, L] of their tokens."""
        packed = replace(pack_rows(rows), together=self._together(rows))
        self._routers.give(packed.routes)
        prompt_positions, following = self.processor.family.positions(self.model, rows)
        response_positions = (following[:, None] + packed.steps).expand(*prompt_positions.shape[:-1], -1)
        return packed, torch.cat([prompt_positions, response_positions], dim=-1)

    def _last_states(self, rows: PromptRows, packed: PackedRows, positions: Tensor) -> Tensor:
        """[B, L, width] what the language model makes of packed rows; positions: [B, L] or [3, B, L]."""
        with self._shown(rows) as images:
            states: Tensor = self.processor.family.outputs(
                self.model,
                input_ids=packed.tokens,
                **shared_attention.inputs(packed, self._heads),
                position_ids=positions,
                **images,
                use_cache=False,
            ).last_hidden_state
        return states

    @contextmanager
    def _shown(self, rows: PromptRows) -> Iterator[dict[str, Any]]:
        """What the model is called with, while this lasts, so that it sees the images of rows."""
        yield self.processor.family.image_inputs(rows)

    def _together(self, rows: PromptRows) -> Tensor | None:
        """[B, P] bool: the tokens of each prompt that all see each other; None where each sees those before it."""
        return self.processor.family.together(self.model, rows)

    def _scores(self, states: Tensor, packed: PackedRows, scoring: Scoring, number_spread: float) -> Tensor:
        """[S] log-probabilities of what was chosen at the scored places, by their states [S, width]."""
        return scores(self.model.lm_head, states, scoring)

    def _token_logprobs(self, states: Tensor, temperature: float, allowed: Tensor | None = None) -> Tensor:
        """[S, V] float32 log-probabilities over what can be sampled; allowed: bool [S or 1, V], None for all."""
        logits, cap = self.model.lm_head(states), self.processor.family.logit_cap(self.model)
        logits = logits if cap is None else capped(logits, cap)
        logits = logits.float().index_fill(-1, cast(Tensor, self._unsampled), -torch.inf)
        if allowed is not None:
            logits = logits.masked_fill(~allowed.to(logits.device), -torch.inf)
        return torch.log_softmax(logits / temperature, dim=-1)

    def forward(
        self,
        rows: PromptRows,
        temperature: float = 1.0,
        grammar_tokens: int | None = None,
        number_spread: float = 0.0,
    ) -> Tensor:
        """[B, G, T] float32 log-probabilities of the response tokens at a temperature; 0 outside scored_mask.

        grammar_tokens: the limit on tokens under which they were sampled with the grammar; None: without.
        number_spread: where above 0, the log-probability of a number is the mean over its neighbours too, weighed by a
        Gaussian of that many numbers' width. Raises ValueError for tokens that the grammar refuses.
        """
        packed, positions = self._packed(rows)
        states = self._last_states(rows, packed, positions)
        return self._scored(rows, packed, states, temperature, grammar_tokens, number_spread)

    def _scored(
        self,
        rows: PromptRows,
        packed: PackedRows,
        states: Tensor,
        temperature: float,
        grammar_tokens: int | None,
        number_spread: float,
    ) -> Tensor:
        """[B, G, T] log-probabilities by the last states [B, L, width] of packed rows; 0 outside scored_mask."""
        scoring = Scoring(
            packed.targets,
            cast(Tensor, self._unsampled),
            temperature,
            self._logit_bytes,
            self._allowed(rows, packed.places, grammar_tokens),
            self._neighbours(packed.targets, number_spread) if number_spread > 0 else None,
            self.processor.family.logit_cap(self.model),
        )
        flat = torch.zeros(rows.scored_mask.numel(), device=self.device)
        # One state predicts the first token of all answers of its row. By an index, threads would add up the gradients
        # in whatever order they come, and no run would repeat another to the bit; an embedding adds them in order.
        predicting = functional.embedding(packed.predictors, states.flatten(0, 1))
        scored = self._scores(predicting, packed, scoring, number_spread)
        return flat.index_put((packed.places,), scored).view(rows.scored_mask.shape)

    def _neighbours(self, targets: Tensor, width: float) -> Neighbours:
        """All numbers, weighed for targets [S] that are numbers by a Gaussian around the target."""
        numbers = torch.tensor(self.processor.number_tokens, device=targets.device)
        steps = torch.arange(len(numbers), device=targets.device)
        value = (targets[:, None] == numbers).float() @ steps.float()
        weights = torch.softmax(-0.5 * ((steps - value[:, None]) / width) ** 2, dim=1)
        return Neighbours(numbers, weights * torch.isin(targets, numbers)[:, None])

    def _allowed(self, rows: PromptRows, places: Tensor, grammar_tokens: int | None) -> Allowed | None:
        """The grammar's masks at `places` [S] of [B * G * T]; None without a grammar."""
        if grammar_tokens is None:
            return None
        masks = self.processor.token_grammar().masks_of_rows(
            rows.response_tokens.flatten(0, 1).cpu().numpy(),
            rows.response_mask.flatten(0, 1).cpu().numpy(),
            grammar_tokens,
        )
        return Allowed(self.processor.token_grammar(), masks.ravel()[places.cpu().numpy()])

    # Sampling.

    def prepare_sampling(self) -> None:
        """Lay out the weights as sampling wants them; neither values nor names change. Once more after a move."""
        self.processor.family.lay_out(self.model)

    @torch.no_grad()
    def encode(self, rows: PromptRows) -> EncodedPrompts:
        """Keys and values of B prompts, all tokens but the last; rows' own responses are not looked at.

        Prompts of very different lengths are encoded apart, so that little is padding.
        """
        parts = of_like_length(rows.prompt_mask.sum(1).tolist())
        if len(parts) == 1:
            return self._encoded(rows)
        return joined_prompts([self._encoded(rows.chosen(part)) for part in parts], parts)

    def _encoded(self, rows: PromptRows) -> EncodedPrompts:
        positions, following = self.processor.family.positions(self.model, rows)
        mask, last = rows.prompt_mask[:, :-1], rows.prompt_tokens.shape[1] - 1
        self._routers.watch()
        layers = self._prompt_layers(rows, positions)
        states = self.processor.family.states(layers)
        keys, values = self.processor.family.cached(layers)
        routes = self._routers.taken()
        return EncodedPrompts(
            keys=keys[..., :last],
            values=values[..., :last, :],
            mask=mask.clone(),
            last_tokens=rows.prompt_tokens[:, -1].clone(),
            last_positions=following - 1,
            routes=None if routes is None else routes.unflatten(0, mask.shape),
            states=states,
        )

    def _prompt_layers(self, rows: PromptRows, positions: Tensor) -> Sequence[Any]:
        """What a pass over prompts leaves in the cache of each layer: of all tokens but the last, and of that one too
        where those before it see it; positions: [B, P] or [3, B, P]."""
        together, heads = self._together(rows), self._heads
        # The last token is decoded as an answer's first: it sees what it would see here.
        num = rows.prompt_tokens.shape[1] - (0 if self.processor.family.whole_prompts else 1)
        together = None if together is None else together[:, :num]
        with self._shown(rows) as images:
            layers: Sequence[Any] = self.processor.family.outputs(
                self.model,
                input_ids=rows.prompt_tokens[:, :num],
                **shared_attention.prompt_inputs(rows.prompt_mask[:, :num], heads, together),
                position_ids=positions[..., :num],
                **images,
                # Of a config with windows transformers would make layers that forget what is outside them.
                past_key_values=None if heads.window is None else DynamicCache(),
                use_cache=True,
            ).past_key_values.layers
        return layers

    @torch.no_grad()
    def decode(
        self,
        cache: PromptCache,
        tokens: Tensor,
        temperature: float,
        allowed: Tensor | None = None,
        bins: Tensor | None = None,
    ) -> Tensor:
        """Log-probabilities [R*C, V] of the token after `tokens` [R, C], among `allowed` [R*C, V]; the cache grows."""
        assert bins is None, "every choice of these families is a token"
        if cache.decoder is None:
            cache.decoder = self.processor.family.decoder(self.model)
        decoder: Any = cache.decoder
        self._routers.watch()
        return self._token_logprobs(decoder.next_states(cache, tokens), temperature, allowed)

    def routes(self) -> Tensor | None:
        """[R*C, M, k] int16 experts of the tokens that `decode` was just asked about; None without experts."""
        return self._routers.taken()

    def bin_logprobs(self, cache: PromptCache, temperature: float) -> Sequence[Tensor]:
        """None: every choice is a token."""
        return ()

    # For the refiner.

    def vision_features(self, images: Sequence[NDArray[np.uint8]], early_block: int = 0) -> VisionFeatures:
        """Features of B images [H, W, 3] of one size, float32, without gradient, on one grid: the tower's output, and
        early ones.

        early_block: 0 the patch embedding, before positions and blocks; k the output of block k, counted from 1, or
        ValueError where there is none. The grid spans the image, also where the image processor had to resample it: one
        whose sides are not multiples of patch times merge size, or whose area is outside its limits.
        """
        pixel_values, grid = self.processor.patches(images)
        held = next(self.vision_tower.parameters())
        pixel_values, grid = pixel_values.to(held.device, held.dtype), grid.to(held.device)
        return self.processor.family.features(self.model, pixel_values, grid, images[0].shape[:2], early_block)

    def vision_checksum(self) -> str:
        """Checksum of the vision tower alone: what a refiner was trained on."""
        return held_sha256(self.vision_tower)

    def save(self, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write an ordinary Hugging Face folder (safetensors, tokenizer, image processor).

        weights: all of them by the plain model's names, where `model` itself is sharded or has adapters.
        """
        self.processor.family.save_weights(self.model, folder, weights)
        dtype = str(next(iter((weights or dict(self.model.named_parameters())).values())).dtype)
        tied = self.model.lm_head.weight is self.model.get_input_embeddings().weight
        self.processor.save_config(folder, dtype.removeprefix("torch."), tied)
        self.processor.save(folder)
