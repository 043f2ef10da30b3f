"""`polytrace predict`: one answer about one image, refined where there is a refiner, in the image's own pixels.

In order: what answers (a run's or another checkpoint, and how images are shown to it), the answer, and the files, JSON
and table made of it. The policy is shown a view of the image, as its run's env showed images; answer and refined mask
are in pixels of the view. The path that is handed out, and the mask filled from it, are in pixels of the image.
"""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.table import Table

from envs.codecs.base import ChoosingCodec
from envs.example import Example, ImageRef, Question, Truth
from envs.geometry.contours import mask_from_rings, rings_from_mask
from envs.geometry.masks import iou, tight_box_px
from envs.geometry.vector import path_svg, rounded_rings, simplified_rings
from envs.images import View
from envs.plugin import Plugin
from envs.polygons import Answer, AnswerStatus, Ring
from envs.shown import NOTHING, Shown
from policies.families.base import Response
from policies.question import check_phrase
from policies.refiner.mask_refiner import MaskRefiner
from policies.refiner.refining import RefinedMask, refine_masks
from rl.config.load import read_mapping, settings_from
from rl.config.plugins import EMBEDDED, NAMED, codec_plugin, env_plugin, policy_plugin
from rl.pages.json_text import json_text
from rl.pages.pictures import COLOURS, png, svg_overlay
from rl.run.folder import RunFolder
from rl.run.writable import refuse_unwritable_codec
from rollout.disk import refuse_unwritable, whole_file
from rollout.engines import direct
from rollout.engines.shared import Engine, SharedSampler
from rollout.settings import Sampling

_UNKNOWN = Truth(np.zeros((0, 1, 1), np.bool_))
"""Nobody knows what is true."""


@dataclass
class Recipe:
    """The part of a run's config that an answer depends on."""

    env: dict[str, Any] = field(default_factory=dict)
    codec: dict[str, Any] = field(default_factory=dict)
    policy: dict[str, Any] = field(default_factory=dict)
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True)
class Source:
    """What answers: a checkpoint, and how to ask it."""

    recipe: Recipe
    checkpoint: str
    """A Hugging Face folder, or the name of the embedded one."""
    refiner: Path | None
    """Folder of the refiner; None for the outline as the policy draws it."""
    view: View


@dataclass(frozen=True)
class Prediction:
    """An answer about an image of H x W pixels."""

    phrase: str
    view: tuple[int, int]
    """Height and width of what the policy was shown, padding included."""
    status: AnswerStatus
    text: str
    """Text that the policy wrote."""
    rings_px: list[Ring]
    """Outline, each ring [N, 2] px of the image; [] where the answer is empty or not valid."""
    mask: NDArray[np.bool_]
    """Mask [H, W]: the rings filled."""
    refined: RefinedMask | None
    """Answer of the refiner, in the view; None where it was not asked."""
    path_iou: float | None
    """Overlap, in the view, of the simplified outline with the refined mask; None where none was simplified."""
    chosen: list[int] | None = None
    """Numbers of the candidates that were chosen, from 0; None of a policy that draws."""

    @property
    def num_vertices(self) -> int:
        """Vertices of all rings."""
        return sum(map(len, self.rings_px))


def find_source(
    checkpoint: Path, config: Path | None, refiner: Path | None, raw: bool = False, side: int | None = None
) -> Source:
    """What `checkpoint` means: the folder of a run, a Hugging Face folder of a policy, or the embedded one by its name.

    config: the YAML with the codec, where it is no run; None for the demo's. refiner: folder of a refiner; None for
    RUN/refiner, where there is one. raw: without a refiner. side: pixels of the view's longer side, in place of what
    the env says. Raises FileNotFoundError or ValueError for what does not fit.
    """
    if raw and refiner is not None:
        raise ValueError(f"--raw leaves the refiner out, but --refiner is {refiner}; give one of them.")
    is_run = (checkpoint / "config.yaml").is_file()
    if is_run and config is not None:
        raise ValueError(f"{checkpoint} is a run and has its own config.yaml; leave --config {config} out.")
    recipe = _read_recipe(checkpoint / "config.yaml" if is_run else config or Path("demo"))
    view = view_of(recipe.env) if side is None else replace(view_of(recipe.env), side=side)
    if view.side is not None and view.side < 1:
        raise ValueError(f"--side is {view.side}; set it to 1 pixel or more, best to what the policy was trained on.")
    run = RunFolder(checkpoint)
    advice = (
        "let it train until its first evaluation, or write its last checkpoint by polytrace export checkpoint "
        f"{run.path} --out FOLDER and ask FOLDER with --config {run.path / 'config.yaml'}"
    )
    policy = str(run.best_policy(advice).folder) if is_run else _policy_folder(checkpoint)
    if refiner is None and is_run and (run.refiner / "refiner.json").is_file():
        refiner = run.refiner
    return Source(recipe, policy, None if raw else refiner, view)


def _read_recipe(path: Path) -> Recipe:
    values = read_mapping(path)
    known = {part.name: values[part.name] for part in fields(Recipe) if part.name in values}
    if "max_tokens" in values:  # as the config of a supervised training says it
        known.setdefault("sampling", {"max_tokens": values["max_tokens"]})
    try:
        return settings_from(Recipe, known, "")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _policy_folder(checkpoint: Path) -> str:
    if str(checkpoint) not in EMBEDDED and not (checkpoint / "config.json").is_file():
        what = "holds neither config.yaml nor config.json" if checkpoint.is_dir() else "is not a folder"
        raise FileNotFoundError(
            f"{checkpoint} {what}; give the folder of a run, a Hugging Face folder of a policy, or {NAMED} for an "
            "embedded one."
        )
    return str(checkpoint)


def view_of(env: Mapping[str, Any]) -> View:
    """How the env of a config shows images to its policy; the env is not made, so its data need not be there.

    An env with a setting `image_size` shows squares of that side, one with `image_side` (and `square`) what these say;
    of any other it is not known, and images are shown as they are.
    """
    plugin = env_plugin(env)
    settings = _defaults(plugin) | plugin.settings
    if "image_size" in settings:
        return View(settings["image_size"], square=True)
    return View(settings.get("image_side"), bool(settings.get("square", False)))


def _defaults(plugin: Plugin) -> dict[str, Any]:
    return {part.name: part.default for part in fields(plugin.load()) if part.default is not MISSING}


class Predictor:
    """A policy and perhaps a refiner, loaded; answers any number of images."""

    def __init__(self, source: Source) -> None:
        """Raises FileNotFoundError or ValueError where a folder is not what it should be.

        Also where the policy cannot write the codec's answers, or the refiner was trained over another vision tower.
        """
        codec = codec_plugin(source.recipe.codec)
        plugin = policy_plugin(source.recipe.policy | {"checkpoint": source.checkpoint}, codec)
        self._chooses = isinstance(codec.build(), ChoosingCodec)
        engine = direct.Engine() if self._chooses else Engine()
        self._sampler: SharedSampler = engine.open(plugin, "cuda" if torch.cuda.is_available() else "cpu")
        self._policy = self._sampler.policy
        refuse_unwritable_codec(self._policy.processor, plugin, codec)
        self._sampling = replace(source.recipe.sampling, temperature=0.0, routing_replay=False)
        self._view = source.view
        self._refiner: MaskRefiner | None = None
        if source.refiner is not None:
            self._refiner = MaskRefiner.load(source.refiner, self._policy.vision_checksum()).to(self._policy.device)

    def predict(self, image: Image.Image, phrase: str, min_iou: float = 0.995, shown: Shown = NOTHING) -> Prediction:
        """The likeliest answer about an RGB image; what the policy writes is never an exception.

        min_iou: least overlap, in the view, of a simplified outline with the refined mask. An outline that comes from
        the policy itself is not simplified. shown: what goes with the phrase, and candidates for a policy that chooses;
        the path is then that of the candidates themselves. Raises ValueError for a phrase that is empty or no text, and
        for what this policy cannot be shown.
        """
        check_phrase(phrase)
        pixels = self._view.pixels(image)
        question = self._question(pixels, image, phrase, shown)
        [[response]] = self._sampler.sample([question], self._sampling, [[0]])
        answer, chosen = self._read(response, question)
        refined = self._refine(pixels, answer)
        rings, path_iou = answer.rings_px, None
        # Where no pass is better than the outline itself, the outline says more than its pixels.
        if refined is not None and refined.taken > 0:
            height, width = self._view.size(image.height, image.width)
            fine = refined.mask[:height, :width]  # the policy may have drawn into the padding
            rings = simplified_rings(fine, min_iou)
            path_iou = iou(mask_from_rings(rings, height, width), fine)
        rings = self._view.rings_px(rings, image.height, image.width)
        if chosen is not None and shown.candidates is not None and (refined is None or refined.taken == 0):
            rings = [ring for mask in shown.candidates[chosen] for ring in rings_from_mask(mask)]
        rings = rounded_rings(rings)
        return Prediction(
            phrase=phrase.strip(),
            view=(pixels.shape[0], pixels.shape[1]),
            status=answer.status,
            text=self._policy.processor.text(response),
            rings_px=rings,
            mask=mask_from_rings(rings, image.height, image.width),
            refined=refined,
            path_iou=path_iou,
            chosen=chosen,
        )

    def _question(self, pixels: NDArray[np.uint8], image: Image.Image, phrase: str, shown: Shown) -> Question:
        if self._chooses and shown.candidates is None:
            raise ValueError(
                "the policy chooses among candidate masks, and none are given; give a file by --candidates."
            )
        if not self._chooses and shown.candidates is not None:
            raise ValueError("--candidates gives masks to choose from, and the policy draws outlines; leave it out.")
        prompt = shown.prompt(phrase.strip(), self._view, image.height, image.width)
        return Question(pixels, prompt, shown.pool(self._view))

    def _read(self, response: Response, question: Question) -> tuple[Answer, list[int] | None]:
        """The answer in pixels of the view, and of a policy that chooses the numbers of its choice."""
        height, width = question.image.shape[:2]
        about = Example(
            "image",
            ImageRef("image", "", height, width),
            question.prompt,
            _UNKNOWN,
            "none",
            "",
            "",
            question.candidates,
        )
        chosen = np.flatnonzero(response.tokens == 1).tolist() if self._chooses else None
        return self._policy.processor.read_answer(response, about), chosen

    def _refine(self, pixels: NDArray[np.uint8], answer: Answer) -> RefinedMask | None:
        if self._refiner is None or answer.status is not AnswerStatus.OK:
            return None
        coarse = mask_from_rings(answer.rings_px, *pixels.shape[:2])
        [[refined]] = refine_masks(self._refiner, self._policy, [pixels], [[coarse]])
        return refined


SUFFIXES = {"svg": ".svg", "png": ".png", "json": ".json"}


def check_outputs(outputs: Mapping[str, Path | None], image: Path) -> None:
    """Raise ValueError for a file that does not end as its kind should, is the image itself, or cannot be written."""
    for kind, path in outputs.items():
        if path is None:
            continue
        if path.suffix.lower() != SUFFIXES[kind]:
            raise ValueError(f"--{kind} is {path}, which does not end in {SUFFIXES[kind]}; give a name that does.")
        if path.exists() and image.exists() and path.samefile(image):
            raise ValueError(f"--{kind} is {path}, the image itself; give another name, so that it is kept.")
        refuse_unwritable(path)


def svg_of(prediction: Prediction, over: Image.Image | None = None) -> str:
    """The path as an SVG document in the image's pixels; `over`: the RGB image to lay under it, in colour then."""
    height, width = prediction.mask.shape
    title = "".join(c if c.isprintable() else " " for c in prediction.phrase)  # others cannot stand in XML
    if over is None:
        return path_svg(prediction.rings_px, height, width, title)
    colour = COLOURS["rl" if prediction.path_iou is None else "refined"]
    return svg_overlay(np.asarray(over), prediction.rings_px, colour, title) + "\n"


def numbers_of(prediction: Prediction) -> dict[str, Any]:
    """The answer for a program (docs/predict.md); every length in pixels of the image, None where nothing is known."""
    height, width = prediction.mask.shape
    refined = prediction.refined
    return {
        "phrase": prediction.phrase,
        "height": height,
        "width": width,
        "view": {"height": prediction.view[0], "width": prediction.view[1]},
        "status": prediction.status.value,
        "text": prediction.text,
        "box": tight_box_px(prediction.mask),
        "area": int(prediction.mask.sum()),
        "rings": [ring.tolist() for ring in prediction.rings_px],
        "predicted_iou": None if refined is None else refined.predicted_iou,
        "coarse_iou": None if refined is None else refined.coarse_iou,
        "passes": 0 if refined is None else refined.passes,
        "taken": 0 if refined is None else refined.taken,
        "path_iou": prediction.path_iou,
        "chosen": prediction.chosen,
    }


def table_of(prediction: Prediction) -> Table:
    """The answer for a person."""
    numbers, refined = numbers_of(prediction), prediction.refined
    height, width = prediction.mask.shape
    table = Table("", "answer", title=None, show_header=False)
    table.add_row("status", prediction.status.value)
    table.add_row("rings, vertices", f"{len(prediction.rings_px)}, {prediction.num_vertices}")
    table.add_row("area", f"{numbers['area']:,} px of {height * width:,}")
    table.add_row("box", "-" if numbers["box"] is None else " ".join(map(str, numbers["box"])))
    table.add_row("predicted IoU", "-" if refined is None else f"{refined.predicted_iou:.3f}")
    table.add_row("of the policy's outline", "-" if refined is None else f"{refined.coarse_iou:.3f}")
    table.add_row("passes of the refiner", "-" if refined is None else f"{refined.passes}, taken {refined.taken}")
    if prediction.chosen is not None:
        table.add_row("candidates chosen", " ".join(map(str, prediction.chosen)) or "none")
    table.add_row("image, shown as", f"{width} x {height}, {prediction.view[1]} x {prediction.view[0]}")
    return table


def write_prediction(
    prediction: Prediction, outputs: Mapping[str, Path | None], over: Image.Image | None = None
) -> list[Path]:
    """Write the files asked for by kind (svg, png, json), each whole or not at all; returns those written."""
    written = []
    for kind, path in outputs.items():
        if path is None:
            continue
        if kind == "png":
            content = png(prediction.mask)
        elif kind == "svg":
            content = svg_of(prediction, over).encode()
        else:
            content = (json_text(numbers_of(prediction)) + "\n").encode()
        with whole_file(path) as partial:
            partial.write_bytes(content)
        written.append(path)
    return written
