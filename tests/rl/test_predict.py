"""`polytrace predict`: the answer of a run, refined, in the pixels of any image; and every mistake in one line."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_vector import rings_of_svg

from envs.codecs.mask_group import Codec as ChoiceCodec
from envs.codecs.path_tokens import Codec
from envs.datasets.cutout_scenes import Env
from envs.example import Prompt, Question
from envs.geometry.contours import mask_from_rings
from envs.geometry.masks import iou
from envs.images import View
from envs.plugin import Plugin
from policies.families.mask_selection import Policy as Chooser
from policies.refiner.calibration import Calibration, Curve
from policies.refiner.mask_refiner import MaskRefiner
from policies.settings import RefinerSettings
from rl.cli.main import main
from rl.config.load import find_config
from rl.predict import Predictor, find_source, view_of
from rollout.engines import direct

TINY = Path(__file__).parents[2] / "policies" / "tiny"
SCENE = Env("test", image_size=64)
PHRASE = SCENE[0].prompt.text


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose best policy is the embedded one, with a refiner that changes nothing and thinks well of it."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    best = folder / "checkpoints" / "best-000003"
    shutil.copytree(TINY, best / "policy")
    (best / "state.json").write_text(json.dumps({"format": 1, "step": 3, "giou": 0.5, "files": {}}))
    (folder / "config.yaml").write_text(find_config(Path("demo")).read_text())
    policy = Predictor(find_source(TINY, None, None))._policy
    features = policy.vision_features([scene()])
    head = Plugin("policies.heads", "Head", "pixel_head", {"channels": 4, "halvings": 2})
    channels = features.final.shape[1], features.early.shape[1]
    refiner = MaskRefiner(RefinerSettings(passes=2), head, *channels, policy.vision_checksum())
    refiner.calibration = Calibration(tuple(Curve((0.0, 1.0), (value, value)) for value in (0.4, 0.75, 0.6)))
    refiner.save(folder / "refiner")
    return folder


def scene() -> np.ndarray:
    return SCENE.image(SCENE[0].image)


def saved(path: Path, pixels: np.ndarray) -> str:
    Image.fromarray(pixels).save(path)
    return str(path)


def enlarged(pixels: np.ndarray, times: int) -> np.ndarray:
    return pixels.repeat(times, axis=0).repeat(times, axis=1)


Predict = Callable[..., tuple[int, str, str]]


@pytest.fixture
def predict(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Predict:
    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["polytrace", "predict", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        shown, errors = capsys.readouterr()
        # The command switches the bar off before transformers loads; here it has loaded already.
        errors = "\n".join(line for line in errors.splitlines() if line and not line.startswith("Loading weights"))
        return int(end.value.code or 0), shown, errors

    return call


def test_path_and_mask_of_a_refined_answer_are_one_shape_in_the_image_s_pixels(predict, run, tmp_path):
    image = saved(tmp_path / "scene.png", enlarged(scene(), 5))
    svg, png, numbers = (tmp_path / f"out.{kind}" for kind in ("svg", "png", "json"))
    status, shown, errors = predict(run, image, PHRASE, "--svg", svg, "--png", png, "--json", numbers)
    assert (status, errors) == (0, "") and "passes of the refiner" in shown
    mask = Image.open(png)
    assert (mask.mode, mask.size) == ("L", (320, 320)) and set(np.unique(mask)) == {0, 255}
    filled = np.asarray(mask) > 0
    np.testing.assert_array_equal(mask_from_rings(rings_of_svg(svg.read_text()), 320, 320), filled)
    said = json.loads(numbers.read_text())
    assert [said[key] for key in ("status", "passes", "taken")] == ["ok", 2, 1]
    np.testing.assert_allclose([said["predicted_iou"], said["coarse_iou"]], [0.75, 0.4], rtol=1e-6)
    assert said["path_iou"] >= 0.995 and said["area"] == filled.sum() and said["view"] == {"height": 64, "width": 64}
    assert iou(filled, enlarged(SCENE[0].truth.union, 5)) > 0.6


def test_raw_is_the_outline_as_the_policy_drew_it(run):
    refined, raw = (Predictor(find_source(run, None, None, raw)) for raw in (False, True))
    image = Image.fromarray(scene())
    fine, drawn = refined.predict(image, PHRASE), raw.predict(image, PHRASE)
    assert drawn.refined is None and drawn.path_iou is None and fine.text == drawn.text
    expected = Codec(box_bins=64, path_bins=32, max_rings=4, max_vertices=16).read(drawn.text, 64, 64).rings_px
    assert len(expected) > 0
    for ring, wanted in zip(drawn.rings_px, expected, strict=True):
        np.testing.assert_allclose(ring, wanted, atol=5e-4)
    # The refiner of this run gives the coarse mask back, as its crop shows it.
    assert iou(fine.mask, drawn.mask) > 0.9


def test_a_portrait_is_shown_padded_and_its_answer_comes_back_at_any_size(run):
    predictor = Predictor(find_source(run, None, None, raw=True))
    tall = scene()[:, 8:48]
    [small, large] = [predictor.predict(Image.fromarray(enlarged(tall, times)), PHRASE) for times in (1, 4)]
    assert small.view == large.view == (64, 64)
    assert (small.mask.shape, large.mask.shape) == ((64, 40), (256, 160))
    assert iou(enlarged(small.mask, 4), large.mask) > 0.8


def test_an_answer_that_is_not_valid_gives_empty_files_and_its_status(predict, tiny_untrained, tmp_path):
    image = saved(tmp_path / "scene.png", scene()[:, :40])
    svg, png, numbers = (tmp_path / f"out.{kind}" for kind in ("svg", "png", "json"))
    status, shown, _ = predict(tiny_untrained, image, PHRASE, "--svg", svg, "--png", png, "--json", numbers)
    said = json.loads(numbers.read_text())
    assert status == 0 and said["status"] in shown and said["status"] not in ("ok", "empty")
    assert said["box"] is None and said["rings"] == [] and said["area"] == 0 and said["predicted_iou"] is None
    assert rings_of_svg(svg.read_text()) == [] and np.asarray(Image.open(png)).max() == 0
    assert Image.open(png).size == (40, 64)


def test_over_lays_the_image_under_the_path(predict, tmp_path):
    image = saved(tmp_path / "scene.png", scene())
    status, _, _ = predict("tiny", image, PHRASE, "--svg", tmp_path / "deep" / "over.svg", "--over")
    text = (tmp_path / "deep" / "over.svg").read_text()
    assert status == 0 and 'viewBox="0 0 64 64"' in text and "data:image/png;base64," in text


def test_the_same_question_gives_the_same_bytes(predict, run, tmp_path):
    image = saved(tmp_path / "scene.png", scene())
    for name in ("one.svg", "two.svg"):
        predict(run, image, PHRASE, "--svg", tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_the_view_is_that_of_the_run_s_env():
    scenes = view_of({"name": "cutout_scenes"})
    assert (scenes.side, scenes.square) == (64, True)
    photos = view_of({"name": "coco", "annotations": "a.json", "images": "i", "image_side": 96, "square": True})
    assert (photos.side, photos.square) == (96, True)
    whole = view_of({"name": "coco", "annotations": "a.json", "images": "i"})
    assert (whole.side, whole.square) == (None, False)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["no/such", "IMAGE", "cup"], "no/such is not a folder; give the folder of a run, a Hugging Face folder"),
        (["tests", "IMAGE", "cup"], "tests holds neither config.yaml nor config.json"),
        (["tiny", "no.png", "cup"], "no.png is not there; give an image file"),
        (["tiny", "BROKEN", "cup"], "is cut off, damaged or no image"),
        (["tiny", "IMAGE", " "], "the phrase is empty"),
        (["tiny", "IMAGE", "the cup \udcff"], r"the phrase is 'the cup \udcff', which is no text in UTF-8"),
        (["tiny", "IMAGE", "cup", "--config", "gspo_polygons"], "codec is point_text, policy.checkpoint"),
        (["tiny", "IMAGE", "cup", "--svg", "x.png"], "--svg is x.png, which does not end in .svg"),
        (["tiny", "IMAGE", "cup", "--png", "IMAGE"], "the image itself; give another name"),
        (["tiny", "IMAGE", "cup", "--png", "FOLDER"], "made.png is a folder; give the name of a new file"),
        (["tiny", "IMAGE", "cup", "--svg", "README.md/x.svg"], "README.md is a file, and no folder"),
        (["tiny", "IMAGE", "cup", "--json", "/proc/x.json"], "/proc/x.json cannot be written: No such file"),
        (["tiny", "IMAGE", "cup", "--min-iou", "2"], "the least IoU of the path is 2.0; set it above 0"),
        (["tiny", "IMAGE", "cup", "--side", "0"], "--side is 0; set it to 1 pixel or more"),
        (["tiny", "IMAGE", "cup", "--config", "demmo"], "there is no file demmo; did you mean 'demo'?"),
        (["tiny", "IMAGE", "cup", "--refiner", "x", "--raw"], "--raw leaves the refiner out, but --refiner is x"),
        (["tiny", "IMAGE", "cup", "--refiner", "tests"], "tests holds no refiner.json"),
        (["RUN", "IMAGE", "cup", "--config", "demo"], "is a run and has its own config.yaml; leave --config demo out"),
        (["NO_BEST", "IMAGE", "cup"], "holds no best policy"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(predict, run, tmp_path, arguments, says):
    paths = {"RUN": run, "IMAGE": saved(tmp_path / "scene.png", scene()), "BROKEN": tmp_path / "broken.png"}
    paths["BROKEN"].write_bytes((tmp_path / "scene.png").read_bytes()[:100])
    paths |= {"NO_BEST": tmp_path / "young", "FOLDER": tmp_path / "made.png"}
    paths["NO_BEST"].mkdir()
    paths["FOLDER"].mkdir()
    shutil.copy(run / "config.yaml", paths["NO_BEST"])
    status, shown, errors = predict(*(paths.get(argument, argument) for argument in arguments))
    assert status == 2 and not shown.strip() and len(errors.strip().splitlines()) == 1
    assert says in errors and "Traceback" not in errors
    assert np.array_equal(np.asarray(Image.open(paths["IMAGE"])), scene())


def test_a_refiner_of_another_vision_tower_is_refused(predict, run, tiny_untrained, tmp_path):
    image = saved(tmp_path / "scene.png", scene())
    status, _, errors = predict(tiny_untrained, image, "cup", "--refiner", run / "refiner")
    assert status == 2 and "was trained on features of the vision tower" in errors


POOL = Env("test", image_size=32, candidates=9)


def of_pool() -> Question:
    example = POOL[3]
    return Question(POOL.image(example.image), Prompt.of_text("the left dog"), example.candidates)


@pytest.fixture(scope="module")
def chooser(tiny_untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that chooses, with a classifier that takes about half of the candidates of POOL's example."""
    folder = tmp_path_factory.mktemp("chooser")
    policy = Chooser(tiny_untrained, ChoiceCodec()).eval()
    with torch.no_grad():
        policy.model.selection.classifier.weight.normal_(std=0.5, generator=torch.Generator().manual_seed(5))
        both, _ = policy.place_logprobs(policy.unanswered([of_pool()]), 1.0)
        policy.model.selection.classifier.bias -= (both[..., 1] - both[..., 0]).median()
    policy.save(folder)
    policy.processor.save(folder)
    policy.processor.save_config(folder, "float32", tied=True)
    return folder


def test_a_policy_that_chooses_gives_the_very_candidates_in_the_image_s_pixels(predict, chooser, tmp_path):
    question = of_pool()
    pool = np.stack([enlarged(mask, 5) for mask in question.candidates])
    image = saved(tmp_path / "scene.png", enlarged(question.image, 5))
    np.save(tmp_path / "pool.npy", pool)
    outputs = "--json", tmp_path / "out.json", "--png", tmp_path / "mask.png", "--svg", tmp_path / "out.svg"
    asked = chooser, image, "the left dog", "--config", "gspo_groups", "--side", 32
    status, shown, _ = predict(*asked, "--candidates", tmp_path / "pool.npy", *outputs)
    told = json.loads((tmp_path / "out.json").read_text())
    assert status == 0 and "candidates chosen" in shown
    # Made smaller again, the image is not quite what it was; the masks are.
    question = replace(question, image=View(32, square=True).pixels(Image.open(image)))
    expected = np.flatnonzero(direct.greedy(Chooser(chooser, ChoiceCodec()).eval(), [question])[0].tokens)
    assert told["chosen"] == expected.tolist() and 0 < len(expected) < len(pool)
    mask = np.array(Image.open(tmp_path / "mask.png")) > 0
    assert np.array_equal(mask, pool[expected].any(axis=0))
    assert told["text"] == f"{' '.join(map(str, expected))} of {len(pool)}" and told["status"] == "ok"
    # A region may stand among the words.
    saved(tmp_path / "one.png", 255 * pool[0].astype(np.uint8))
    status, _, _ = predict(
        *asked[:2],
        "the <mask> dog",
        *asked[3:],
        "--candidates",
        tmp_path / "pool.npy",
        "--mask",
        tmp_path / "one.png",
        *outputs,
    )
    assert status == 0 and json.loads((tmp_path / "out.json").read_text())["phrase"] == "the <mask> dog"


def test_what_a_policy_cannot_be_shown_is_one_line(predict, chooser, tmp_path):
    image = saved(tmp_path / "scene.png", enlarged(scene(), 2))
    np.save(tmp_path / "pool.npy", np.ones((2, 128, 128), np.bool_))
    np.save(tmp_path / "small.npy", np.ones((2, 64, 64), np.bool_))
    choosing, drawing = (chooser, image, "dog", "--config", "gspo_groups"), (TINY, image, "dog")
    for arguments, says in (
        (choosing, "chooses among candidate masks, and none are given; give a file by --candidates."),
        ((*choosing, "--candidates", tmp_path / "small.npy"), "has masks of 64 x 64 pixels"),
        ((*choosing, "--candidates", tmp_path / "pool.npy", "--point", "3,4"), "has a PointPart"),
        ((*choosing, "--candidates", tmp_path / "pool.npy", "--mask", tmp_path / "pool.npy"), "has 2 masks, where one"),
        ((*drawing, "--candidates", tmp_path / "pool.npy"), "the policy draws outlines; leave it out."),
        ((*drawing, "--box", "4,4,4,9"), "--box is 4,4,4,9; give its left, upper, right and lower edge"),
        ((*drawing, "--point", "200,4"), "--point is 200,4, outside the image of 128 x 128 pixels"),
    ):
        status, _, errors = predict(*arguments)
        assert (status, says in errors, len(errors.splitlines())) == (2, True, 1), errors


def test_a_place_stands_in_the_words_of_a_policy_that_reads_it(predict, tmp_path):
    image = saved(tmp_path / "scene.png", enlarged(scene(), 2))
    answers = []
    for point in ((), ("--point", "20,30")):
        status, _, _ = predict(TINY, image, PHRASE, *point, "--json", tmp_path / "out.json")
        answers.append(json.loads((tmp_path / "out.json").read_text())["text"])
        assert status == 0
    assert answers[0] != answers[1]
