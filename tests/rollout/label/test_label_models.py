"""Stages with models of transformers, tiny and random: each run through its stage, and told where a folder is wrong."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_detectors import tiny_grounding_dino, tiny_owl
from made_labels import QUIET, config
from made_sam import tiny_sam, tiny_sam2, tiny_sam3
from numpy.typing import NDArray

from policies.labellers.captions import CaptionRule, Captions
from policies.labellers.prompted_masks import PromptedMasks, PromptRule
from policies.labellers.zero_shot_boxes import ZeroShotBoxes, ZeroShotRule
from policies.tiny_model import TinySizes, write_untrained
from rl import label as verb
from rl.config.label import LabelConfig, images_plugin, stage_entry
from rl.config.load import load_settings, shipped_configs
from rollout.label.record import LabelImage, LabelObject, Origin, Shown
from rollout.label.stages import image_text, sam, zero_shot

_DRAWN = np.random.default_rng(0)
PIXELS = _DRAWN.integers(0, 256, (40, 60, 3), np.uint8)
CLOSED = Shown(LabelImage(1, Origin("b")).refuse("decode", "cannot be opened"), np.zeros((0, 0, 3), np.uint8))


def shown(*objects: LabelObject, tags: tuple[str, ...] = (), pixels: NDArray[np.uint8] = PIXELS) -> Shown:
    size = pixels.shape[:2]
    return Shown(LabelImage(0, Origin("a", tags=tags), *size, "0", objects=objects, next_number=len(objects)), pixels)


@pytest.mark.parametrize("make", [tiny_grounding_dino, tiny_owl])
def test_boxes_are_those_of_the_detector_for_the_tags_of_each_image(
    make: Callable[[Path], Path], tmp_path: Path
) -> None:
    folder, names = make(tmp_path), ("car", "red car")
    stage = zero_shot.Labeller(str(folder), threshold=0.05, text_threshold=0.05)
    stage.check()
    labelled = stage.label([CLOSED, shown(tags=names), shown()])
    detector = ZeroShotBoxes(folder, ZeroShotRule(0.05, 0.05))
    unreadable = detector.unreadable(names)  # the tiny OWL has no room for two words
    [expected] = detector.boxes([PIXELS], [[name for name in names if name not in unreadable]])
    assert labelled[0] == CLOSED.image and expected
    refused = [(one.found.name, one.reason) for one in labelled[1].refused if one.found]
    assert refused == [(name, zero_shot.UNREADABLE) for name in unreadable]
    found = [(one.name, one.box_px, one.numbers["zero_shot.score"]) for one in labelled[1].objects]
    assert found == [(box.name, box.box_px, box.score) for box in expected]
    assert labelled[2].objects == () and labelled[1].next_number == len(expected) + len(unreadable)


@pytest.mark.parametrize("make", [tiny_sam, tiny_sam2, tiny_sam3])
def test_masks_are_those_of_the_segmenter_for_the_boxes(make: Callable[[Path], Path], tmp_path: Path) -> None:
    folder = make(tmp_path)
    boxes = [(0.0, 0.0, 20.0, 20.0), (30.5, 10.0, 50.0, 35.0)]
    one = shown(*(LabelObject(k, "thing", box) for k, box in enumerate(boxes)))
    stage = sam.Labeller(str(folder))
    stage.check()
    closed, image = stage.label([CLOSED, one])
    masks, qualities = PromptedMasks(folder, PromptRule()).masks(PIXELS, np.array(boxes))
    fates = {found.number: found for found in (*image.objects, *(each.found for each in image.refused if each.found))}
    assert closed == CLOSED.image and sorted(fates) == [0, 1]
    for k, found in fates.items():
        assert found.numbers["sam.predicted_iou"] == pytest.approx(qualities[k])
        assert found.mask is None if not masks[k].any() else np.array_equal(image.mask(found), masks[k])
    low, high = 0.0, 1.0  # what random weights foretell lies anywhere, and within it where it can
    if low <= min(qualities) < max(qualities) <= high:
        strict = replace(stage, least_quality=float(np.mean(qualities))).label([one])[0]
        assert [each.reason for each in strict.refused if each.found and each.found.mask] == [sam.UNSURE]


def test_phrases_are_those_of_the_captioner_for_the_crops(tmp_path: Path) -> None:
    sizes = TinySizes(
        image_size=32, text_width=32, text_layers=2, text_heads=2, vision_width=16, vision_layers=2, vision_heads=2
    )
    write_untrained(tmp_path, [f"w{i}" for i in range(60)] + ["the", "dog"], sizes, seed=0)
    stage = image_text.Labeller(str(tmp_path), prompt="the dog", max_tokens=6, max_words=4, around=0.5)
    stage.check()
    closed, image = stage.label([CLOSED, shown(LabelObject(0, "x", (10.0, 10.0, 30.0, 30.0)))])
    rule = CaptionRule(prompt="the dog", max_tokens=6, max_words=4)
    [expected] = Captions(tmp_path, rule).captions([np.ascontiguousarray(PIXELS[0:40, 0:40])])
    said = [found.phrase for found in image.objects]
    assert closed == CLOSED.image and said == ([expected] if expected else [])
    assert expected or image.refused[0].reason == image_text.NO_WORDS


@pytest.mark.parametrize(
    "stage",
    [
        {"name": "zero_shot", "folder": "FOLDER"},
        {"name": "sam", "folder": "FOLDER"},
        {"name": "image_text", "folder": "FOLDER"},
    ],
)
def test_a_folder_of_another_model_is_told_before_anything_starts(stage: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises((ValueError, FileNotFoundError), match="model"):
        verb.label(config(tmp_path / "out", stages=[{**stage, "folder": str(folder)}]), QUIET)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", shipped_configs("label"))
def test_shipped_pipelines_have_settings_that_their_stages_know(name: str) -> None:
    settings = load_settings(LabelConfig, Path("label") / name)
    entries = [stage_entry(entry, place) for place, entry in enumerate(settings.stages)]
    assert images_plugin(settings.images) and len(entries) == len(settings.stages) >= 5
