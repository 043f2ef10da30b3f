"""Answers drawn over their images: the ones that were asked for, and said where the image is another one now."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_archive import rollout
from PIL import Image, ImageDraw, ImageFont

from envs.datasets.cutout_scenes import Env
from envs.example import Example, Prompt
from envs.polygons import Answer, AnswerStatus, answer_from_rings
from rl.browse.page import is_spelled, latin, render, sheet, write_shown
from rl.browse.show import Wanted, choose
from rollout.archive.archive import RolloutArchive
from rollout.records import Group

SQUARE = np.array([[8.0, 8.0], [40.0, 8.0], [40.0, 40.0], [8.0, 40.0]])


def archived(run: Path, examples: list[Example], config: str = "env: {name: cutout_scenes}\n") -> Path:
    """Two steps of two groups of three answers, with IoU 0, 0.1, 0.2, ... in order, the first of each step empty."""
    archive = RolloutArchive(run / "archive")
    for step in range(2):
        groups = []
        for position in range(2):
            rollouts = []
            for index in range(3):
                empty = position == index == 0
                answer = Answer(AnswerStatus.EMPTY) if empty else answer_from_rings([SQUARE])
                place = 6 * step + 3 * position + index
                rollouts.append(replace(rollout(index, answer), iou=place / 10 % 1, text="<b>&"))
            asked = examples[(2 * step + position) % len(examples)]
            groups.append(
                Group("run", step, position, asked, np.arange(4), "cd" * 32, 1.0, tuple(rollouts), (0.5, 0.25, 0.125))
            )
        archive.append(step, groups)
    archive.close()
    (run / "config.yaml").write_text(config)
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    env = Env("train")
    return archived(tmp_path_factory.mktemp("run"), [env[0], env[1], env[2]])


def places(run: Path, **wanted: object) -> list[tuple[int, int, int]]:
    shown = choose(run, Wanted(**wanted))
    return [(one.row["step"], one.row["position"], one.row["index"]) for one in shown.answers]


def test_the_answers_are_those_that_were_asked_for(run: Path) -> None:
    last = [(1, position, index) for position in range(2) for index in range(3)]
    assert places(run) == places(run, step=1) == last
    assert places(run, position=1, step=0) == [(0, 1, 0), (0, 1, 1), (0, 1, 2)]
    assert places(run, limit=4, step=1) == last[:4]
    assert places(run, status="empty") == [(0, 0, 0), (1, 0, 0)]
    assert places(run, example=Env("train")[1].id) == [(0, 1, 0), (0, 1, 1), (0, 1, 2)]
    # IoU is 0, 0.1 .. 0.9, 0, 0.1 in order of place: ties go to the earlier answer.
    assert places(run, worst=3) == [(0, 0, 0), (1, 1, 1), (0, 0, 1)]
    assert places(run, best=2) == [(1, 1, 0), (1, 0, 2)]
    assert places(run, worst=1, status="ok", step=0) == [(0, 0, 1)]


def test_what_cannot_be_shown_is_said(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fits step 7; its archive reaches step 1"):
        choose(run, Wanted(step=7))
    with pytest.raises(ValueError, match="both worst and best"):
        Wanted(worst=1, best=1)
    with pytest.raises(ValueError, match="worst is 0"):
        Wanted(worst=0)
    with pytest.raises(FileNotFoundError, match="No archive in"):
        choose(tmp_path, Wanted())
    with pytest.raises(ValueError, match=r"neither \.html nor \.png"):
        write_shown(choose(run, Wanted()), tmp_path / "page.pdf")


def test_the_page_has_a_picture_an_answer_with_its_numbers_and_is_complete_in_itself(run: Path, tmp_path: Path) -> None:
    shown = choose(run, Wanted(step=0))
    write_shown(shown, tmp_path / "deep" / "page.html")
    page = (tmp_path / "deep" / "page.html").read_text()
    assert page.count("<figure") == page.count("data:image/png;base64") == 6
    assert [float(text) for text in re.findall(r"<b>(\d\.\d+)</b><span", page)] == [0, 0.1, 0.2, 0.3, 0.4, 0.5]
    assert page.count("does not apply") == 6 and page.count("vertices") == 5 and "IoU, empty" in page
    assert "&lt;b&gt;&amp;" in page and "<b>&" not in page
    assert "grey" not in page and not re.search(r'(src|href)="(?!data:)', page)


def test_the_picture_has_the_answer_filled_over_its_image_at_its_place(run: Path) -> None:
    shown = choose(run, Wanted(step=0, limit=2))
    picture = sheet(shown)
    empty, filled = (np.asarray(picture[-340:-84, left : left + 256], np.int64) for left in (12, 280))
    image = Env("train").image(Env("train")[0].image).repeat(4, axis=0).repeat(4, axis=1)
    untouched = np.abs(empty - image).max(axis=-1) == 0
    assert untouched.mean() > 0.8  # all but the line of the truth
    inside, outside = filled[64:128, 64:128], filled[200:, 200:]
    blue = np.rint(0.65 * image[64:128, 64:128] + 0.35 * np.array([0x3B, 0x9E, 0xFF]))
    assert (np.abs(inside - blue).max(axis=-1) <= 1).mean() > 0.8
    assert (outside == image[200:, 200:]).mean() > 0.9


def test_a_page_shows_the_reasoning_apart_where_there_is_some(run: Path, tmp_path: Path) -> None:
    assert "reasoning" not in render(choose(run, Wanted()))
    archive, answer = RolloutArchive(tmp_path / "archive"), Answer(AnswerStatus.EMPTY, thinking="<i>the left</i> one")
    rollouts = (replace(rollout(0, answer), text="<think>the left</think>[]"),)
    archive.append(0, [Group("run", 0, 0, Env("train")[0], np.arange(4), "cd" * 32, 1.0, rollouts, (0.5,))])
    (tmp_path / "config.yaml").write_text("env: {name: cutout_scenes}\n")
    page = render(choose(tmp_path, Wanted()))
    assert "<pre>&lt;i&gt;the left&lt;/i&gt; one</pre>" in page
    assert "<pre>&lt;think&gt;the left&lt;/think&gt;[]</pre>" in page


@pytest.mark.parametrize(
    ("sha256", "config", "says"),
    [
        ("ab" * 32, "env: {name: cutout_scenes}\n", "no longer has the pixels"),
        (None, "env: {name: coco, folder: no/such/folder}\n", "data set cannot be opened"),
        (None, "seed: 0\n", "cannot be opened: .*names no env"),
    ],
)
def test_a_changed_image_or_a_missing_data_set_is_said_and_the_outlines_are_shown_over_grey(
    tmp_path: Path, sha256: str | None, config: str, says: str
) -> None:
    example = Env("train")[0]
    if sha256:
        example = replace(example, image=replace(example.image, sha256=sha256))
    shown = choose(archived(tmp_path, [example], config), Wanted(step=0))
    (problem,) = shown.problems
    assert re.search(says, problem)
    page = render(shown)
    assert page.count("over grey") == 1 and page.count("image not to be had") == page.count("<figure") == 6
    assert (shown.answers[0].asked.image == 128).all()


def test_the_picture_is_written_whole(run: Path, tmp_path: Path) -> None:
    write_shown(choose(run, Wanted()), tmp_path / "answers.png")
    with Image.open(tmp_path / "answers.png") as picture:
        assert picture.size == (12 + 3 * 268, 32 + 2 * (256 + 60 + 24) + 12)
    assert [path.name for path in tmp_path.iterdir()] == ["answers.png"]


PHRASES = {
    "赤いりんご": "Chiiringo",
    "한국어": "HanGugEo",
    "القط الأسود": "lqt l'swd",
    "Привет, Ελλάδα": "Privet, Ellada",
    "😀 cup": ":grinning: cup",
    "Café, die größte “Tüte” … ½": 'Cafe, die grosste "Tute" ... 1/2',
    "a\nb\tc\x07": "a b c",
    "\ue000 left": "? left",
    "\U00030000": "?",
}
FONT = ImageFont.load_default(15)
BOX = bytes(FONT.getmask("\U0010ffff"))


def boxes(picture: np.ndarray) -> int:
    """How often the sign for a letter that the font lacks stands in a picture, in the colour of a phrase."""
    drawn = Image.new("RGB", (8, 11), (246, 247, 249))
    ImageDraw.Draw(drawn).text((0, 0), "\U0010ffff", fill=(22, 25, 31), font=FONT, anchor="lt")
    places = np.lib.stride_tricks.sliding_window_view(picture, (11, 8, 3))
    return int((places == np.asarray(drawn)).all(axis=(-3, -2, -1)).sum())


@pytest.mark.parametrize("phrases", [list(PHRASES)[:4], list(PHRASES)[4:8]], ids=["scripts", "signs"])
def test_no_letter_of_a_caption_is_drawn_as_a_box_and_the_picture_says_that_letters_are_spelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phrases: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # the picture names the run's folder, whose length is then no matter of the machine
    lacking = Image.new("RGB", (100, 30), (246, 247, 249))
    ImageDraw.Draw(lacking).text((3, 5), "é 中", fill=(22, 25, 31), font=FONT)
    assert boxes(np.asarray(lacking)) == 2
    env = Env("train")
    pictures = []
    for name, words in (("a", phrases), ("b", [PHRASES[phrase] for phrase in phrases])):
        asked = [replace(env[k], prompt=Prompt.of_text(phrase)) for k, phrase in enumerate(words)]
        shown = choose(archived(Path(name), asked), Wanted(best=12))
        assert {one.asked.phrase for one in shown.answers} == set(words)
        assert is_spelled(shown) == (name == "a")
        pictures.append(sheet(shown))
    assert [boxes(picture) for picture in pictures] == [0, 0]
    assert np.array_equal(*(picture[-1020:] for picture in pictures))  # all tiles and captions
    ink = [(picture[:-1020] != picture[0, 0]).sum() for picture in pictures]
    assert ink[0] > 1.5 * ink[1]  # the note


def test_every_letter_of_a_spelled_caption_is_in_the_font() -> None:
    printable = [chr(code) for code in range(33, 127)]
    assert all(bytes(FONT.getmask(letter)) != BOX for letter in printable)
    for phrase, spelled in PHRASES.items():
        assert latin(phrase) == spelled and set(spelled) <= {" ", *printable}
