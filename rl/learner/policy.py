"""A policy in training: built on each rank, in a DeepSpeed engine, and made whole again for workers and for a folder.

Only rank 0 reads the checkpoint; the other ranks build the policy without weights and receive them (one_copy.py).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from envs.plugin import Plugin
from policies.lora import Pushed, plain_name, pushed
from policies.weights import BUCKET_BYTES, BucketShape, shape_of
from rl.config.learner import ALL, ALL_BUT_ENCODERS, RankPlace, TrainingSettings
from rl.learner.engine import TrainingEngine, Watchdog, adamw, join, trained_of
from rl.learner.muon import SlowPart, rate_groups
from rl.learner.one_copy import fill_empty, share_weights
from rl.learner.tuning import refuse_wrong_tuning

Weights = list[tuple[str, Tensor]]
MakeOptimizer = Callable[[nn.Module, SlowPart], torch.optim.Optimizer | None]


class TrainedPolicy:
    """A policy in its engine, and the weights of it that are handed out."""

    def __init__(
        self,
        recipe: Plugin,
        settings: TrainingSettings,
        place: RankPlace,
        watchdog: Watchdog,
        make_optimizer: MakeOptimizer = lambda _network, _slower: None,
        trains: str = ALL,
    ) -> None:
        """Build the policy, frozen where the settings say so, and join the other ranks.

        make_optimizer: the optimizer of a network and of what of it has another rate; None for AdamW. trains: which
        part of it learns, of what the settings let learn (SftStage.trains). Raises ValueError where nothing is trained.
        """
        self._settings, self._place, self._watchdog, self._recipe = settings, place, watchdog, recipe
        refuse_wrong_tuning(settings)
        policy = to_train(recipe if place.rank == 0 else _without_weights(recipe), settings)
        keep_to(policy, trains)
        with watchdog.phase("joining the other ranks"):
            join(place)
        with watchdog.phase("receiving the weights of rank 0"):
            share_weights(policy, settings)
        # The average goes by the names of the model alone, by which weights travel to the workers.
        share = settings.vision_lr_share
        slower = SlowPart([] if share == 1.0 else encoder_of(policy), share)
        optimizer = make_optimizer(policy, slower) or adamw(rate_groups(trained_of(policy), slower), settings)
        self.engine = TrainingEngine(policy, policy.model, settings, place, watchdog, optimizer)
        """DeepSpeed around the policy."""

    def __call__(self, *inputs: Any, **settings: Any) -> Tensor:
        """PolicyContract.forward, which the engine's `backward` goes back through."""
        scored: Tensor = self.engine(*inputs, **settings)
        return scored

    @property
    def network(self) -> Any:
        """The policy itself, for all but forward passes while it learns."""
        return self.engine.network

    def parts(self, merged: bool, average: bool = False, bucket_bytes: int = BUCKET_BYTES) -> Iterator[Weights]:
        """The weights, or their running average where there is one, a bucket's worth at a time.

        merged: whether adapters are put into the weights, else they alone are given. bucket_bytes: size of a part.
        What a part brings is whole until the next one is asked for; who keeps it copies it. All ranks must walk through
        all parts, by this or by `walk`: under ZeRO-3 each is a collective.
        """
        return self._gathered(pushed(self.network.model, merged, bucket_bytes), average)

    def shapes(self, merged: bool) -> tuple[BucketShape, ...]:
        """What each of `parts` brings."""
        every = pushed(self.network.model, merged)
        return tuple(shape_of([(each.name, each.parameter) for each in part]) for part in every)

    def walk(self, merged: bool) -> None:
        """Take part in `parts` of another rank."""
        for part in pushed(self.network.model, merged):
            with self._whole(part):
                pass

    def _gathered(self, parts: Iterable[list[Pushed]], average: bool) -> Iterator[Weights]:
        for part in parts:
            with self._whole(part):
                yield [(each.name, self._sent(each, average)) for each in part]

    @contextmanager
    def _whole(self, part: Sequence[Pushed]) -> Iterator[None]:
        with (
            self._watchdog.phase(f"gathering weights from {part[0].name} on"),
            self.engine.whole(chain.from_iterable(each.parameters for each in part)),
        ):
            yield

    def _sent(self, weight: Pushed, average: bool) -> Tensor:
        if average and self.engine.average:
            return self.engine.average[weight.name].to(weight.parameter.dtype)
        return weight.value()

    def save(self, folder: Path) -> None:
        """Write the policy (its running average, where there is one; its adapters merged) as a Hugging Face folder.

        Rank 0 writes, all ranks call. Rank 0 needs the host's memory for one copy, no GPU for more than a bucket.
        """
        if self._place.rank > 0:
            self.walk(merged=True)
            return
        parts = self._gathered(pushed(self.network.model, merged=True), average=True)
        self.network.save(folder, dict(chain.from_iterable(_on_host(part) for part in parts)))

    def whole(self) -> Any:
        """The policy as it would be handed out, whole on every rank, for answers; it is not trained further.

        It is the trained one where that is whole; else (ZeRO-3, a running average) a second one of the same weights,
        adapters merged. A collective under ZeRO-3.
        """
        if self._settings.zero_stage < 3 and not self.engine.average:
            return self.network
        copy: Any = _without_weights(self._recipe).build()
        fill_empty(copy, self.engine.device)
        _copy_buffers(self.network, copy)
        parameters = dict(copy.model.named_parameters())
        for weights in self._gathered(pushed(self.network.model, merged=True), average=True):
            _copy(weights, parameters)
        return copy.to(self.engine.device).requires_grad_(False).eval()


def to_train(recipe: Plugin, settings: TrainingSettings) -> Any:
    """The policy of a recipe with the adapters that the settings ask for, frozen where they say so."""
    policy = (recipe if settings.lora is None else recipe.with_settings(lora=settings.lora)).build()
    policy.train()
    if settings.lora is not None and settings.lora.train_vision:
        policy.vision_tower.requires_grad_(True)
    if settings.freeze_vision:
        policy.vision_tower.requires_grad_(False)
    if settings.freeze_projector is not None:
        for module in policy.vision_projector:
            module.requires_grad_(not settings.freeze_projector)
    if settings.gradient_checkpointing:
        policy.checkpoint_gradients()
    return policy


def trains_something(recipe: Plugin, settings: TrainingSettings, trains: str) -> bool:
    """Whether a stage would train any parameter of the policy of a recipe; `trains` as SftStage has it.

    True of a class that cannot be built without weights: its rank looks at that when it has them.
    """
    if not recipe.takes("weights"):
        return True
    policy = to_train(_without_weights(recipe), settings)
    keep_to(policy, trains)
    return any(parameter.requires_grad for parameter in policy.parameters())


def encoder_of(policy: Any) -> list[nn.Parameter]:
    """The parameters of a policy's vision tower but those of its projector."""
    joining = {id(each) for module in policy.vision_projector for each in module.parameters()}
    return [each for each in policy.vision_tower.parameters() if id(each) not in joining]


def keep_to(policy: Any, trains: str) -> None:
    """Freeze a policy but for what a stage trains; what is frozen already stays so.

    trains: as SftStage has it; a part is one that the policy has (`parts`).
    """
    if trains == ALL:
        return
    if trains == ALL_BUT_ENCODERS:
        frozen = encoder_of(policy)
    else:
        own = {id(each) for module in policy.part(trains) for each in module.parameters()}
        frozen = [each for each in policy.parameters() if id(each) not in own]
    for each in frozen:
        each.requires_grad_(False)


def _without_weights(recipe: Plugin) -> Plugin:
    """The recipe of a policy whose parameters have no values, where its class can be built so; else as it is."""
    return recipe.with_settings(weights=False) if recipe.takes("weights") else recipe


def _copy_buffers(source: nn.Module, target: nn.Module) -> None:
    """Found by plain names: an adapted `source` has layers that `target` has not."""
    buffers = {plain_name(name): buffer for name, buffer in source.named_buffers()}
    for prefix, module in target.named_modules():
        for name, _ in list(module.named_buffers(recurse=False)):
            module._buffers[name] = buffers[f"{prefix}.{name}" if prefix else name].clone()


@torch.no_grad()
def _copy(weights: Weights, parameters: dict[str, nn.Parameter]) -> None:
    for name, value in weights:
        parameters[name].copy_(value)


def _on_host(weights: Weights) -> Weights:
    return [(name, tensor.detach().to("cpu", copy=True)) for name, tensor in weights]
