"""Boxes of names against transformers' own forward and processors, on tiny random detectors."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from made_detectors import tiny_grounding_dino, tiny_owl
from numpy.typing import NDArray
from transformers import (
    AutoModelForZeroShotObjectDetection,
    AutoTokenizer,
    GroundingDinoProcessor,
    Owlv2ForObjectDetection,
    Owlv2Processor,
)
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil
from transformers.models.owlv2.image_processing_pil_owlv2 import Owlv2ImageProcessorPil

from policies.labellers.boxes import boxes_apart
from policies.labellers.zero_shot_boxes import NamedBox, ZeroShotBoxes, ZeroShotRule, refuse_no_detector

_DRAWN = np.random.default_rng(0)
WIDE, HIGH, SMALL = (_DRAWN.integers(0, 256, (*size, 3), np.uint8) for size in ((40, 60), (60, 30), (17, 20)))
NAMES = ["car", "red car", "carpet"]
EVERY = ZeroShotRule(threshold=0.5, text_threshold=0.5, box_iou=1.0, prompt="the {}")


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_grounding_dino(tmp_path_factory.mktemp("dino"))


@pytest.fixture(scope="module")
def owl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_owl(tmp_path_factory.mktemp("owl"))


def agree(found: list[NamedBox], expected: list[tuple[str, list[float], float]], least: int) -> None:
    """Claim that boxes are those expected, the surest first."""
    expected = sorted(expected, key=lambda one: -one[2])
    assert [box.name for box in found] == [name for name, _, _ in expected] and len(found) >= least
    np.testing.assert_allclose([box.box_px for box in found], [box for _, box, _ in expected], atol=2e-3)
    np.testing.assert_allclose([box.score for box in found], [score for _, _, score in expected], atol=1e-5)


def dino_by_hand(folder: Path, image: NDArray[np.uint8], names: list[str]) -> list[tuple[str, list[float], float]]:
    """The boxes of transformers' processor and model; names by where their letters stand in its text."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    processor = GroundingDinoProcessor(GroundingDinoImageProcessorPil.from_pretrained(folder), tokenizer)
    shown = processor(images=image, text=[names], return_tensors="pt")
    text = ". ".join(names) + "."
    places = tokenizer(text, return_offsets_mapping=True)
    assert shown["input_ids"][0].tolist() == places["input_ids"]
    with torch.no_grad():
        said = AutoModelForZeroShotObjectDetection.from_pretrained(folder).eval()(**shown)
    found, (height, width) = [], image.shape[:2]
    for (x, y, across, down), logits in zip(said.pred_boxes[0].tolist(), said.logits[0], strict=True):
        sure, best = logits.sigmoid().tolist(), (0.0, "", 0.0)
        start = 0
        for name in names:
            ends = start, start + len(name)
            own = [sure[t] for t, (a, b) in enumerate(places["offset_mapping"]) if ends[0] <= a < b <= ends[1]]
            covered = sum(one for one in own if one > 0.5) / len(own)
            best = max(best, (covered, name, max(own)), key=lambda one: one[0])
            start = ends[1] + 2
        box = [(x - across / 2) * width, (y - down / 2) * height, (x + across / 2) * width, (y + down / 2) * height]
        if best[0]:
            found.append((best[1], np.clip(box, 0, [width, height] * 2).tolist(), best[2]))
    return found


def owl_by_hand(folder: Path, image: NDArray[np.uint8], names: list[str]) -> list[tuple[str, list[float], float]]:
    """What transformers' processor makes of OWLv2's output, cut to the image."""
    processor = Owlv2Processor(Owlv2ImageProcessorPil.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))
    shown = processor(images=image, text=[[f"the {name}" for name in names]], return_tensors="pt")
    with torch.no_grad():
        said = Owlv2ForObjectDetection.from_pretrained(folder).eval()(**shown)
    sizes = torch.tensor([image.shape[:2]])
    [seen] = processor.post_process_grounded_object_detection(said, 0.5, sizes, [names])
    boxes = np.clip(seen["boxes"], 0, [image.shape[1], image.shape[0]] * 2).tolist()
    found = zip(seen["text_labels"], boxes, seen["scores"].tolist(), strict=True)
    return [(name, box, score) for name, box, score in found if box[0] < box[2] and box[1] < box[3]]


@pytest.mark.parametrize("image", [WIDE, HIGH, SMALL], ids=["wide", "high", "small"])
def test_grounding_dinos_boxes_and_names_are_those_of_its_tokens_by_hand(dino: Path, image: NDArray[np.uint8]) -> None:
    [found] = ZeroShotBoxes(dino, EVERY).boxes([image], [NAMES])
    agree(found, dino_by_hand(dino, image, NAMES), least=5)
    assert {box.name for box in found} >= {"red car", "carpet"}


def test_mmdetections_grounding_dino_is_read_alike(tmp_path: Path) -> None:
    folder = tiny_grounding_dino(tmp_path, by_mmdetection=True)
    [found] = ZeroShotBoxes(folder, EVERY).boxes([WIDE], [NAMES])
    agree(found, dino_by_hand(folder, WIDE, NAMES), least=5)


@pytest.mark.parametrize("image", [WIDE, HIGH, SMALL], ids=["wide", "high", "small"])
def test_owls_boxes_are_those_of_transformers_cut_to_the_image(owl: Path, image: NDArray[np.uint8]) -> None:
    [found] = ZeroShotBoxes(owl, EVERY).boxes([image], [NAMES])
    agree(found, owl_by_hand(owl, image, NAMES), least=5)
    assert len({box.name for box in found}) > 1


@pytest.mark.parametrize("kind", ["dino", "owl"])
def test_an_image_has_the_same_boxes_alone_and_beside_others_with_other_names(
    kind: str, request: pytest.FixtureRequest
) -> None:
    detector = ZeroShotBoxes(request.getfixturevalue(kind), EVERY)
    images = [WIDE, HIGH, WIDE[::-1].copy(), SMALL, WIDE[:, ::-1].copy()]
    names = [NAMES, ["dog"], ["carpet"], [], ["blue dog", "car", "a photo", "dog"]]
    together = detector.boxes(images, names)
    assert together[3] == [] and [len(boxes) > 0 for boxes in together] == [True, True, True, False, True]
    for image, some, found in zip(images, names, together, strict=True):
        [alone] = detector.boxes([image], [some])
        agree(found, [(box.name, list(box.box_px), box.score) for box in alone], least=0)
        assert {box.name for box in found} <= set(some)
    assert detector.boxes([], []) == []


def test_of_boxes_of_one_name_that_agree_the_surest_stays(owl: Path) -> None:
    [every] = ZeroShotBoxes(owl, EVERY).boxes([WIDE], [NAMES])
    [fewer] = ZeroShotBoxes(owl, ZeroShotRule(0.5, 0.5, box_iou=0.1, prompt="the {}")).boxes([WIDE], [NAMES])
    expected = list[NamedBox]()
    for name in NAMES:
        some = [box for box in every if box.name == name]
        boxes, scores = np.array([box.box_px for box in some]).reshape(-1, 4), np.array([box.score for box in some])
        expected += [some[place] for place in boxes_apart(boxes, scores, 0.1)]
    assert fewer == sorted(expected, key=lambda box: -box.score) and 0 < len(fewer) < len(every)


def test_more_names_than_a_text_holds_are_asked_in_several_texts(tmp_path: Path) -> None:
    detector = ZeroShotBoxes(tiny_grounding_dino(tmp_path, max_text_len=8), EVERY)
    [found] = detector.boxes([WIDE], [[*NAMES, "dog"]])  # car. red car. | carpet. dog.
    parts = detector.boxes([WIDE, WIDE], [NAMES[:2], ["carpet", "dog"]])
    expected = [(box.name, list(box.box_px), box.score) for part in parts for box in part]
    agree(found, expected, least=5)
    assert all(parts)


def test_a_name_is_given_back_as_it_was_given_and_twins_are_asked_once(dino: Path, owl: Path) -> None:
    detector = ZeroShotBoxes(dino, EVERY)
    [plain] = detector.boxes([WIDE], [["st bernard", "car", "dog"]])
    [odd] = detector.boxes([WIDE], [["St. Bernard?", " CAR", "car", "dog"]])
    called = {"st bernard": "St. Bernard?", "car": " CAR", "dog": "dog"}
    agree(odd, [(called[box.name], list(box.box_px), box.score) for box in plain], least=5)
    [owls] = ZeroShotBoxes(owl, EVERY).boxes([WIDE], [["Car {}!", "RED  car", "red car"]])
    assert {box.name for box in owls} == {"Car {}!", "RED  car"}


def test_boxes_that_are_sure_of_no_name_are_dropped_and_counted(dino: Path) -> None:
    detector = ZeroShotBoxes(dino, ZeroShotRule(0.5, 0.999, box_iou=1.0))
    [found] = detector.boxes([WIDE], [NAMES])
    assert len(found) + detector.unnamed == 12 and detector.unnamed > 0  # all boxes are sure of some token


def test_names_that_cannot_be_read_whole_are_told_and_refused(dino: Path, owl: Path) -> None:
    long = "red " * 40
    assert ZeroShotBoxes(dino, EVERY).unreadable(["car", "", " . ", "猫", "red 猫", long]) == ["", " . ", "猫", long]
    detector = ZeroShotBoxes(owl, EVERY)
    assert detector.unreadable(["car", " ", long, "red ? car."]) == [" ", long]
    with pytest.raises(ValueError, match=r"^the detector cannot read the name ' ' whole; leave it out"):
        detector.boxes([WIDE], [["car", " "]])
    with pytest.raises(ValueError, match=r"^1 images have 2 lists of names"):
        detector.boxes([WIDE], [["car"], []])
    with pytest.raises(ValueError, match=r"^an image has shape \(40, 60\) and dtype uint8; give uint8"):
        detector.boxes([WIDE[:, :, 0]], [["car"]])
    with pytest.raises(ValueError, match=r"dtype float64"):
        detector.boxes([WIDE / 255], [["car"]])


def test_a_folder_without_such_a_detector_is_refused_in_a_line(owl: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere is no folder; give a Grounding DINO or an OWLv2"):
        refuse_no_detector(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        refuse_no_detector(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"config\.json names no model_type"):
        refuse_no_detector(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match=r"a model of type bert; give .*\(types: grounding-dino, "):
        refuse_no_detector(tmp_path)
    (tmp_path / "config.json").write_bytes((owl / "config.json").read_bytes())
    with pytest.raises(FileNotFoundError, match=r"has no processor \(any of preprocessor_config\.json"):
        refuse_no_detector(tmp_path)
    (tmp_path / "preprocessor_config.json").write_bytes((owl / "preprocessor_config.json").read_bytes())
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer \(any of tokenizer\.json"):
        refuse_no_detector(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"has no weights"):
        refuse_no_detector(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"the model cannot be loaded"):
        ZeroShotBoxes(tmp_path, EVERY)
    (tmp_path / "model.safetensors").write_bytes((owl / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"AutoTokenizer cannot load"):
        ZeroShotBoxes(tmp_path, EVERY)


def test_a_rule_out_of_its_bounds_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^threshold is 1\.0, "):
        ZeroShotRule(threshold=1.0)
    with pytest.raises(ValueError, match=r"^batch is 0 and prompt"):
        ZeroShotRule(batch=0)
    with pytest.raises(ValueError, match=r"prompt 'a photo'"):
        ZeroShotRule(prompt="a photo")
