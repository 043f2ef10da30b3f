"""Images through the stages, on Ray Data: read by blocks, each stage over a whole block, in the order of the images.

Blocks bound the memory: Ray Data holds back what the next stage has no room for. A stage is given the same images
together however often the work was stopped, so that what goes on is what would have been. Stages without a model run as
tasks, those with one in workers of their own.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Protocol

import pyarrow as pa
import ray
import ray.data
import torch
from ray.data import ActorPoolStrategy, DataContext
from ray.exceptions import RayError

from envs.plugin import Plugin
from envs.ranges import at_least
from envs.shards.rows import png_of
from rollout.label.images._opened import NO_PIXELS
from rollout.label.images.base import Images
from rollout.label.judged import judged
from rollout.label.looks import NEAR_DUPLICATE, NEAR_DUPLICATES, Look, look_of
from rollout.label.record import DECODED, LabelImage, Shown, from_block, records_of, to_block
from rollout.label.stages.base import Labeller
from rollout.label.timings import Spent, spent_of, timed

HELD_OUT = "held_out"
"""What stands for the stage that refuses photos which a model will be judged by."""


class KnownPhotos(Protocol):
    """Photos that are known wherever they lie."""

    def where(self, photo: Path) -> str | None:
        """Where else a photo is, and by what it was known; None for one that is unknown."""
        ...


@dataclass
class StagePlace:
    """Where a stage that holds a model runs; settings beside those of the stage itself."""

    workers: Annotated[int, at_least(1)] = 1
    """Workers that each hold the model."""
    gpus: Annotated[float, at_least(0)] = 0.0
    """GPUs of a worker, such as 0.5 where two stages share one."""
    cpus: Annotated[float, at_least(0)] = 1.0
    """Cores that Ray counts for a worker, and threads that its model has, one at least."""


@dataclass(frozen=True)
class Stage:
    """One stage, and where it runs."""

    name: str
    """Name of the plugin, or what the config calls it."""
    plugin: Plugin
    place: StagePlace


@dataclass(frozen=True)
class Pipeline:
    """What is labelled, and how."""

    images: Plugin
    stages: tuple[Stage, ...]
    block_images: int = 64
    """Images of a block: what a stage is given at once, and what is done again after a stop."""
    readers: int = 1
    """Workers that open images."""
    held_out: KnownPhotos | None = None
    """Photos that are not labelled."""
    copies: Mapping[int, str] = field(default_factory=dict)
    """Of images that are not labelled since an earlier one is like them, by number: the key of that."""

    @property
    def steps(self) -> list[str]:
        """Names of all that happens to an image: it is opened, goes through the stages, and is made ready to write."""
        return [DECODED, *(stage.name for stage in self.stages), "encode"]

    @property
    def places(self) -> float:
        """Cores that its readers and the workers of its models are counted for."""
        return self.readers + sum(one.place.workers * one.place.cpus for one in self.stages if _has_model(one))

    @property
    def gpus(self) -> float:
        """GPUs of all its workers."""
        return sum(one.place.workers * one.place.gpus for one in self.stages if _has_model(one))


@dataclass(frozen=True)
class Labelled:
    """An image at the end."""

    image: LabelImage
    png: bytes | None
    """Its pixels, where it has no file and has some."""


@dataclass(frozen=True)
class LabelledBlock:
    """The images of a block at the end, in their order."""

    images: list[Labelled]
    spent: dict[str, Spent]
    """What each stage took for them; the opening of images is a stage before, their writing one behind."""


def labelled(pipeline: Pipeline, first: int, last: int) -> Iterator[LabelledBlock]:
    """The images from number `first`, which begins a block, up to `last`, by blocks and in order; Ray must run.

    Raises ValueError, in a line, where a stage fails.
    """
    size = pipeline.block_images
    numbers = range(first, last, size)
    _be_quiet()
    data = ray.data.range(len(numbers), override_num_blocks=len(numbers))
    data = _mapped(data, _Read, {"pipeline": pipeline, "first": first, "last": last}, StagePlace(pipeline.readers))
    for stage in pipeline.stages:
        data = _mapped(data, _Labelled, {"stage": stage}, stage.place if _has_model(stage) else None)
    data = _mapped(data, _Ended, {})
    try:
        for block in data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1):
            yield _ended(pipeline, block)
    except RayError as error:
        raise ValueError(f"a stage failed: {_cause(error)}") from error


def labelled_here(pipeline: Pipeline, first: int, last: int) -> Iterator[LabelledBlock]:
    """The same images and blocks, one after the other in this process, without Ray."""
    read = _Read(pipeline, first, last)
    steps: list[Callable[[pa.Table], pa.Table]] = [*(_Labelled(stage) for stage in pipeline.stages), _Ended()]
    for number in range(len(range(first, last, pipeline.block_images))):
        block = read(pa.table({"id": [number]}))
        for step in steps:
            block = step(block)
        yield _ended(pipeline, block)


def looked(pipeline: Pipeline, first: int, last: int) -> Iterator[list[Look]]:
    """Key and hash of the images from number `first` up to `last`, by blocks and in order; Ray must run.

    Raises ValueError, in a line, where an image source fails.
    """
    numbers = range(first, last, pipeline.block_images)
    _be_quiet()
    data = ray.data.range(len(numbers), override_num_blocks=len(numbers))
    data = _mapped(data, _Look, {"pipeline": pipeline, "first": first, "last": last}, StagePlace(pipeline.readers))
    try:
        for block in data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1):
            yield _looks(block)
    except RayError as error:
        raise ValueError(f"the images cannot be read: {_cause(error)}") from error


def looked_here(pipeline: Pipeline, first: int, last: int) -> Iterator[list[Look]]:
    """The same in this process, without Ray."""
    look = _Look(pipeline, first, last)
    for number in range(len(range(first, last, pipeline.block_images))):
        yield _looks(look(pa.table({"id": [number]})))


def _looks(block: pa.Table) -> list[Look]:
    return list(zip(block.column("key").to_pylist(), block.column("look").to_pylist(), strict=True))


def _ended(pipeline: Pipeline, block: pa.Table) -> LabelledBlock:
    pngs = [cell.as_py() or None for cell in block.column("pixels")]
    images = [Labelled(image, png) for image, png in zip(records_of(block), pngs, strict=True)]
    spent: dict[str, Spent] = {}
    for name, one in zip(pipeline.steps, spent_of(block), strict=bool(images)):  # a block of nothing took nothing
        spent[name] = spent.get(name, Spent()) + one
    return LabelledBlock(images, spent)


def _be_quiet() -> None:
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    context.target_max_block_size = None  # else blocks are cut by their bytes, and stages see others together
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what fails is told by the error itself


def _has_model(stage: Stage) -> bool:
    kind: Any = stage.plugin.load()
    return bool(kind.HAS_MODEL)


def _mapped(data: Any, function: type, settings: dict[str, Any], place: StagePlace | None = None) -> Any:
    """The data set behind a function over whole blocks: tasks of a core each, or workers where `place` is given."""
    if place is None:
        return data.map_batches(function(**settings), batch_size=None, batch_format="pyarrow")
    return data.map_batches(
        function,
        fn_constructor_kwargs=settings,
        batch_size=None,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=place.workers),
        num_cpus=place.cpus,
        num_gpus=place.gpus,
    )


class _Numbered:
    """Numbers of blocks become those of their images."""

    def __init__(self, pipeline: Pipeline, first: int, last: int) -> None:
        self._pipeline, self._first, self._last = pipeline, first, last
        self._images: Images = pipeline.images.build()

    def _indices(self, numbers: pa.Table) -> Iterator[int]:
        size = self._pipeline.block_images
        for number in numbers.column("id").to_pylist():
            begin = self._first + number * size
            yield from range(begin, min(begin + size, self._last))


class _Look(_Numbered):
    """Images become their hashes."""

    def __call__(self, numbers: pa.Table) -> pa.Table:
        looks = [look_of(self._images.read(index)) for index in self._indices(numbers)]
        return pa.table({"key": [key for key, _ in looks], "look": [look for _, look in looks]})


class _Read(_Numbered):
    """Images are opened; those that are not to be labelled are refused."""

    def __call__(self, numbers: pa.Table) -> pa.Table:
        return timed(self._read, numbers)

    def _read(self, numbers: pa.Table) -> pa.Table:
        return to_block([self._opened(index) for index in self._indices(numbers)])

    def _opened(self, index: int) -> Shown:
        shown, held_out = self._images.read(index), self._pipeline.held_out
        file = shown.image.origin.file
        if (like := self._pipeline.copies.get(index)) is not None:
            return replace(shown, image=shown.image.refuse(NEAR_DUPLICATES, NEAR_DUPLICATE, like), pixels=NO_PIXELS)
        if held_out is None or file is None or (where := held_out.where(Path(file))) is None:
            return shown
        image = shown.image.refuse(HELD_OUT, "a photo that is held out elsewhere", where)
        return replace(shown, image=image, pixels=NO_PIXELS)


@contextmanager
def _threads(num: int) -> Iterator[None]:
    """Torch has `num` threads in here, whatever the machine has: their number decides the last bits of what a model
    says."""
    before = torch.get_num_threads()
    torch.set_num_threads(num)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Labelled:
    """Images go through a stage."""

    def __init__(self, stage: Stage) -> None:
        self._stage: Labeller = stage.plugin.build()
        self._threads = max(1, int(stage.place.cpus))

    def __call__(self, images: pa.Table) -> pa.Table:
        return timed(self._labelled, images)

    def _labelled(self, images: pa.Table) -> pa.Table:
        shown = from_block(images)
        with _threads(self._threads):
            labelled = self._stage.label(shown)
        return to_block([replace(one, image=image) for one, image in zip(shown, labelled, strict=True)])


class _Ended:
    """Images are judged by what is hidden of them, and their pixels become what the shards hold."""

    def __call__(self, images: pa.Table) -> pa.Table:
        return timed(self._ended, images)

    @staticmethod
    def _ended(images: pa.Table) -> pa.Table:
        shown = from_block(images)
        block = to_block([replace(one, image=judged(one.image)) for one in shown], with_pixels=False)
        held = [png_of(one.pixels) if one.image.is_open and one.image.origin.file is None else b"" for one in shown]
        return block.set_column(1, "pixels", pa.array(held, pa.large_binary()))


def _cause(error: RayError) -> str:
    """What the stage itself said, as one line."""
    reason: BaseException = error
    while isinstance(reason, RayError) and (inner := reason.__cause__ or _held(reason)) is not None:
        reason = inner
    said = " ".join(str(reason).split())
    return said[-600:] if isinstance(reason, RayError) else said[:600]


def _held(error: RayError) -> BaseException | None:
    return error.cause if isinstance(error, ray.exceptions.RayTaskError) else None
