"""Numbers of candidates as text: what each text means, and that none raises."""

import numpy as np
import pytest

from envs.codecs.mask_numbers import Codec, numbers_of, text_of
from envs.polygons import AnswerStatus

POOL = np.zeros((4, 6, 6), np.bool_)
POOL[0, :2], POOL[1, 2:4], POOL[2, 4:] = True, True, True  # and one without a pixel


@pytest.mark.parametrize(
    ("text", "status", "covered"),
    [
        ("0", "ok", 12),
        ("0 2", "ok", 24),
        ("2 0", "ok", 24),
        (" 2  0 ", "ok", 24),
        ("none", "empty", 0),
        ("3", "empty", 0),
        ("0 4", "out_of_range", 0),
        ("999999", "out_of_range", 0),
        ("0 0", "unparsable", 0),
        ("0 none", "unparsable", 0),
        ("", "unparsable", 0),
        ("0 of 4", "unparsable", 0),
        ("-1", "unparsable", 0),
        ("1.5", "unparsable", 0),
        ("0,1", "unparsable", 0),
        ("9999999", "unparsable", 0),
        ("\u0661", "unparsable", 0),
    ],
)
def test_a_text_is_read_beside_its_candidates(text: str, status: str, covered: int) -> None:
    answer = Codec().read_chosen(text, POOL)
    assert answer.status is AnswerStatus(status)
    area = sum(float(np.ptp(ring[:, 0]) * np.ptp(ring[:, 1])) for ring in answer.rings_px)
    assert area == covered


def test_what_is_taught_is_in_rising_order_and_comes_back() -> None:
    assert text_of([False, True, False, True]) == "1 3" and text_of([False]) == "none"
    assert Codec().chosen_text(POOL, POOL[[2, 0]]) == "0 2" and Codec().chosen_text(POOL, POOL[:0]) == "none"
    assert numbers_of("2 0 1") == [2, 0, 1] and numbers_of("none") == [] and numbers_of("2 2") is None
    for candidates in (None, POOL[:0]):
        with pytest.raises(ValueError, match=r"^codec mask_numbers needs candidates to choose from"):
            Codec().chosen_text(candidates, POOL[:1])
    assert Codec().read_chosen("0", None).status is AnswerStatus.UNPARSABLE
    assert Codec().read("0", 6, 6).status is AnswerStatus.UNPARSABLE
    assert Codec().read("0", 6, 6, truncated=True).status is AnswerStatus.TRUNCATED
    with pytest.raises(ValueError, match=r"writes no outlines; give data with candidates"):
        Codec().encode([], 6, 6)
    with pytest.raises(NotImplementedError, match=r"set sampling\.grammar to false"):
        Codec().grammar()
