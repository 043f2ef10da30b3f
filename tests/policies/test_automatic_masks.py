"""SAM's automatic masks against transformers' own functions, on a tiny random SAM."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from made_sam import tiny_sam
from transformers import SamModel
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

from policies.labellers.automatic_masks import (
    AutomaticMasks,
    AutomaticRule,
    grid_points,
    refuse_no_sam,
    stability,
)

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)


@pytest.fixture(scope="module")
def sam(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sam(tmp_path_factory.mktemp("sam"))


def by_transformers(folder: Path, rule: AutomaticRule) -> set[tuple[bytes, float]]:
    """Masks and scores that its own filter keeps, all points asked at once, before boxes are compared."""
    processor, model = SamImageProcessorPil.from_pretrained(folder), SamModel.from_pretrained(folder).eval()
    shown = processor(images=IMAGE, return_tensors="pt")
    points = grid_points(rule.points, *shown["reshaped_input_sizes"][0].tolist())
    with torch.no_grad():
        said = model(pixel_values=shown["pixel_values"], input_points=points[None, :, None])
    sizes = [list(IMAGE.shape[:2])]
    [large] = processor.post_process_masks(
        said.pred_masks, sizes, shown["reshaped_input_sizes"].tolist(), binarize=False
    )
    limits = (rule.least_quality, rule.least_stability)
    coded, scores, _ = processor.filter_masks(large, said.iou_scores[0], IMAGE.shape[:2], [0, 0, 60, 40], *limits)
    masks = []
    for each in coded:
        runs = np.repeat(np.arange(len(each["counts"])) % 2 == 1, each["counts"])
        masks.append(np.packbits(runs.reshape(60, 40).T).tobytes())
    return {(mask, round(float(score), 4)) for mask, score in zip(masks, scores, strict=True)}


@pytest.mark.parametrize(("points", "quality", "stable"), [(9, 1.0, 0.8), (5, 4.0, 0.5)])
def test_the_masks_are_those_that_transformers_keeps_the_surest_first(
    sam: Path, points: int, quality: float, stable: float
) -> None:
    rule = AutomaticRule(points, quality, stable, box_iou=1.0)
    masks, scores = AutomaticMasks(sam, rule).of(IMAGE)
    expected = by_transformers(sam, rule)
    assert len(masks) == len(expected) > 5 and (np.diff(scores) <= 0).all()
    found = {(np.packbits(mask).tobytes(), round(float(one), 4)) for mask, one in zip(masks, scores, strict=True)}
    assert {mask for mask, _ in found} == {mask for mask, _ in expected}
    assert sorted(score for _, score in found) == pytest.approx(sorted(score for _, score in expected), abs=2e-4)
    fewer, _ = AutomaticMasks(sam, AutomaticRule(points, quality, stable, box_iou=0.5)).of(IMAGE)
    assert 0 < len(fewer) < len(masks)
    none, empty = AutomaticMasks(sam, AutomaticRule(3, 1e6)).of(IMAGE)
    assert none.shape == (0, 40, 60) and empty.shape == (0,)


def test_points_are_the_centres_of_cells_and_stability_is_the_iou_of_two_cuts() -> None:
    assert grid_points(2, 40, 60).tolist() == [[15, 10], [45, 10], [15, 30], [45, 30]]
    logits = torch.tensor([[[2.0, 0.5, -0.5, -2.0]], [[3.0, 3.0, -3.0, -3.0]], [[-3.0, -3.0, -3.0, -3.0]]])
    assert stability(logits).tolist() == pytest.approx([1 / 3, 1.0, 0.0])


def test_what_is_no_sam_is_refused_in_a_line_before_anything_is_loaded(sam: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^--sam is .*nowhere, which is no folder; give the folder of a SAM"):
        refuse_no_sam(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"which has no config\.json; give the folder"):
        refuse_no_sam(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (tmp_path / "preprocessor_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"a model of type bert; give a SAM in transformers' form"):
        refuse_no_sam(tmp_path)
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((sam / name).read_bytes())
    with pytest.raises(FileNotFoundError, match=r"which has no weights"):
        refuse_no_sam(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"the weights cannot be loaded"):
        AutomaticMasks(tmp_path, AutomaticRule())
    with pytest.raises(ValueError, match=r"^SAM is asked at 0 points along a side"):
        AutomaticRule(points=0)
