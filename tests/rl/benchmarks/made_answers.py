"""Answers to examples of 8 x 10 pixels, whose scores are counted by hand."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from commands import here
from made_archive import example
from made_user_files import two_photos, write_coco

from envs.codecs.path_tokens import Codec
from envs.example import Example, Truth
from envs.polygons import Answer, AnswerStatus, answer_from_rings
from policies.families.base import Response
from rl.benchmarks.answers import answer_row
from rl.refiner.errors import OutlineBudget
from rollout.records import Group, Rollout

UNREADABLE, EMPTY = Answer(AnswerStatus.UNPARSABLE), Answer(AnswerStatus.EMPTY)
BUDGET = OutlineBudget.of(Codec())


def box(x0: float, y0: float, x1: float, y1: float) -> Answer:
    return answer_from_rings([np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], np.float64)])


def block(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((8, 10), np.bool_)
    mask[y0:y1, x0:x1] = True
    return mask


def about(name: str, *masks: np.ndarray) -> Example:
    """An example whose truth is these masks."""
    true = np.stack(masks) if masks else np.zeros((0, 8, 10), np.bool_)
    made = example(name)
    return Example(name, made.image, made.prompt, Truth(true), made.split, made.source, made.licence)


def answered(asked: Example, answer: Answer, refined: np.ndarray | None = None) -> dict[str, object]:
    """The row of an answer of two tokens."""
    response = Response(np.arange(2), np.zeros(2, np.float32), "stop")
    rollout = Rollout(0, response, "words", answer, 0, 0, 0.0, {"mask_iou": 0.0}, 0, 0)
    group = Group("run", 0, 0, asked, np.arange(2), "cd" * 32, 1.0, (rollout,), (0.0,))
    return answer_row(group, refined, BUDGET, "words")


def four_rows(refined: bool = False) -> list[dict[str, object]]:
    """16 true pixels: answered in full, by half and not readably; and nothing true, as the answer says.

    refined: the half was refined to the whole.
    """
    true = block(2, 2, 6, 6)
    return [
        answered(about("full", true), box(2, 2, 6, 6), true if refined else None),
        answered(about("half", true), box(2, 2, 6, 4), true if refined else None),
        answered(about("unread", true), UNREADABLE),
        answered(about("none"), EMPTY),
    ]


def prepared(folder: Path, *arguments: object) -> Path:
    """Shards of two photos: split train, three examples with two cups, a dog, and a dog."""
    write_coco(folder / "coco", two_photos())
    done = here("data", "prepare", folder / "coco", "--out", folder / "shards", "--processes", "1", *arguments)
    assert done.status == 0, done.stderr
    return folder / "shards"


def lines_with(text: str, *words: str) -> Iterator[str]:
    """Lines of a text that have all these words."""
    return (line for line in text.splitlines() if all(word in line for word in words))
