"""Masks of boxes and points against transformers' own models and processors, on tiny random SAMs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_sam import tiny_sam, tiny_sam2, tiny_sam3
from numpy.typing import NDArray
from PIL import Image
from transformers import Sam2Model, Sam2VideoModel, Sam3TrackerModel, SamModel, SamProcessor
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil
from transformers.models.sam2.processing_sam2 import Sam2Processor

from policies.labellers.model_folder import loaded_model
from policies.labellers.prompted_masks import PromptedMasks, PromptRule, _Stretched, refuse_no_prompted_sam

WIDE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
HIGH = np.random.default_rng(1).integers(0, 256, (90, 50, 3), np.uint8)
BOXES = np.array([[0, 0, 20, 20], [30.5, 10, 50, 35], [10, 5, 50, 39.5]])
SAMS: dict[str, tuple[Callable[[Path], Path], Any]] = {
    "sam": (tiny_sam, SamModel),
    "sam2": (tiny_sam2, Sam2Model),
    "sam3": (tiny_sam3, Sam3TrackerModel),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: make(tmp_path_factory.mktemp(name)) for name, (make, _) in SAMS.items()}


def shown(kind: str, folder: Path, image: NDArray[np.uint8], prompts: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The model's input: prompts scaled by transformers' processor, the pixels of SAM 2 and 3 as PromptedMasks does."""
    if kind == "sam":
        given = SamProcessor(SamImageProcessorPil.from_pretrained(folder))(image, **prompts, return_tensors="pt")
        return {key: given[key].float() for key in ("pixel_values", *prompts)}
    side = json.loads((folder / "preprocessor_config.json").read_text())["size"]["height"]
    scaling = Sam2Processor(SamImageProcessorPil(), target_size=side)
    given = scaling(original_sizes=[image.shape[:2]], **prompts, return_tensors="pt")
    return {"pixel_values": _Stretched(folder)(image).pixels} | {key: given[key] for key in prompts}


def by_hand(
    kind: str, folder: Path, image: NDArray[np.uint8], prompts: dict[str, Any], several: bool
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """All prompts and the image in one call; the mask of the highest foretold IoU, after it is upscaled."""
    with torch.no_grad():
        said = SAMS[kind][1].from_pretrained(folder)(**shown(kind, folder, image, prompts), multimask_output=several)
    size = image.shape[:2]
    if kind == "sam":
        processor = SamImageProcessorPil.from_pretrained(folder)
        inner = processor(image, return_tensors="pt")["reshaped_input_sizes"].tolist()
        [large] = processor.post_process_masks(said.pred_masks, [size], inner, binarize=True)
    else:
        large = torch.nn.functional.interpolate(said.pred_masks[0], size, mode="bilinear") > 0
    best = said.iou_scores[0].argmax(dim=1)
    each = torch.arange(len(best))
    return large[each, best].numpy(), said.iou_scores[0][each, best].double().numpy()


@pytest.mark.parametrize("several", [True, False], ids=["best", "single"])
@pytest.mark.parametrize("image", [WIDE, HIGH], ids=["wide", "high"])
@pytest.mark.parametrize("kind", SAMS)
def test_masks_of_boxes_and_points_are_those_of_one_straight_call(
    folders: dict[str, Path], kind: str, image: NDArray[np.uint8], several: bool
) -> None:
    model = PromptedMasks(folders[kind], PromptRule(several, at_once=2))
    points = BOXES[:, :2] + 3
    asked = {"input_boxes": [BOXES.tolist()]}, {"input_points": [points[:, None].tolist()]}
    for (masks, scores), prompts in zip(
        (model.masks(image, BOXES), model.at_points(image, points)), asked, strict=True
    ):
        expected, foretold = by_hand(kind, folders[kind], image, prompts, several)
        assert masks.shape == (3, *image.shape[:2]) and masks.dtype == np.bool_ and scores.dtype == np.float64
        assert (masks == expected).mean() > 0.9999
        np.testing.assert_allclose(scores, foretold, rtol=1e-4, atol=1e-4)
        assert 0 < masks.mean() < 1 and (masks[0] != masks[1]).any()


def test_sam_2_and_3_see_pixels_that_pil_would_resize_alike(folders: dict[str, Path]) -> None:
    for kind, side in (("sam2", 64), ("sam3", 56)):
        levels = np.asarray(Image.fromarray(HIGH).resize((side, side), Image.Resampling.BILINEAR)) / 255
        expected = (levels - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
        pixels = _Stretched(folders[kind])(HIGH).pixels[0].permute(1, 2, 0).numpy()
        assert np.abs(pixels - expected).max() < 1.01 / 255 / 0.224  # a level of 256
        assert np.abs(pixels - expected).mean() < 0.25 / 255 / 0.224


def test_a_published_model_for_video_gives_the_masks_of_its_image_part(tmp_path: Path) -> None:
    for name, make in (("sam2", tiny_sam2), ("sam3", tiny_sam3)):
        (tmp_path / name).mkdir()
        folder = make(tmp_path / name, for_video=True)
        assert refuse_no_prompted_sam(folder) == f"{name}_video"
        masks, scores = PromptedMasks(folder, PromptRule()).masks(WIDE, BOXES)
        expected, foretold = by_hand(name, folder, WIDE, {"input_boxes": [BOXES.tolist()]}, True)
        assert (masks == expected).all() and scores == pytest.approx(foretold, abs=1e-4)
    held = loaded_model(Sam2VideoModel, tmp_path / "sam2", torch.float32, "it").state_dict()
    taken = Sam2Model.from_pretrained(tmp_path / "sam2").state_dict()
    assert all(torch.equal(held[name], tensor) for name, tensor in taken.items())


@pytest.mark.parametrize("kind", SAMS)
def test_masks_do_not_depend_on_how_many_are_asked_at_once_and_none_are_none(
    folders: dict[str, Path], kind: str
) -> None:
    all_at_once = PromptedMasks(folders[kind], PromptRule()).masks(WIDE, BOXES)
    each = PromptedMasks(folders[kind], PromptRule(at_once=1)).masks(WIDE, BOXES)
    assert (all_at_once[0] == each[0]).mean() > 0.9999 and all_at_once[1] == pytest.approx(each[1], abs=1e-4)
    masks, scores = PromptedMasks(folders[kind], PromptRule()).masks(WIDE, np.zeros((0, 4)))
    assert masks.shape == (0, 40, 60) and masks.dtype == np.bool_ and scores.shape == (0,)


def test_boxes_and_images_that_are_none_are_refused(folders: dict[str, Path]) -> None:
    model = PromptedMasks(folders["sam2"], PromptRule())
    with pytest.raises(ValueError, match=r"^box 1 is \[9\.0, 0\.0, 5\.0, 9\.0\], which ends before it begins"):
        model.masks(WIDE, np.array([[0, 0, 5, 5], [9, 0, 5, 9]]))
    with pytest.raises(ValueError, match=r"^boxes have shape \(4,\); give \[N, 4\] finite"):
        model.masks(WIDE, np.zeros(4))
    with pytest.raises(ValueError, match=r"finite numbers \(x0, y0, x1, y1\)"):
        model.masks(WIDE, np.array([[0, 0, np.nan, 5]]))
    with pytest.raises(ValueError, match=r"^points have shape \(1, 4\)"):
        model.at_points(WIDE, np.zeros((1, 4)))
    with pytest.raises(ValueError, match=r"^an image has shape \(40, 60\)"):
        model.masks(WIDE[..., 0], BOXES)
    with pytest.raises(ValueError, match=r"^at_once is 0"):
        PromptRule(at_once=0)


def test_a_folder_without_a_sam_is_refused_in_a_line(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere is no folder; give a SAM, SAM 2 or SAM 3"):
        refuse_no_prompted_sam(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "owlv2"}))
    with pytest.raises(ValueError, match=r"a model of type owlv2; give a SAM.*types: sam, sam2, sam2_video, sam3_"):
        refuse_no_prompted_sam(tmp_path)
    (tmp_path / "config.json").write_bytes((folders["sam2"] / "config.json").read_bytes())
    with pytest.raises(FileNotFoundError, match=r"has no processor"):
        refuse_no_prompted_sam(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 64}}))
    with pytest.raises(FileNotFoundError, match=r"has no weights"):
        refuse_no_prompted_sam(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((folders["sam3"] / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"the image processor lacks size, image_mean or image_std \('width'\)"):
        PromptedMasks(tmp_path, PromptRule())
    (tmp_path / "preprocessor_config.json").unlink()
    inner = json.loads((folders["sam2"] / "preprocessor_config.json").read_text())
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": inner}))
    with pytest.raises(ValueError, match=r"the weights lack |cannot be loaded"):
        PromptedMasks(tmp_path, PromptRule())
    (tmp_path / "model.safetensors").write_bytes((folders["sam2"] / "model.safetensors").read_bytes())
    assert PromptedMasks(tmp_path, PromptRule()).masks(WIDE, BOXES)[0].any()
