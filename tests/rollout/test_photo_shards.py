"""Shards of a reader's photos: the same bytes for any number of processes, gone on with where they were stopped, and
every photo that cannot be used told by its reason."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from envs.datasets.shards import Env
from envs.example import MaskPart, Prompt, TextPart
from envs.images import View, read_image
from envs.readers.base import AnnotatedPhoto, Findings, PhotoFile, Reference
from envs.shapes import PolygonShape
from envs.shards.files import Card, read_card
from envs.shards.from_photos import NO_PIXEL, NOT_DRAWN, OTHER_SIZE, UNKNOWN_TURN, UNREADABLE, Shown
from rollout import shard_writer
from rollout.photo_shards import PhotoWriter


class Stopped(Exception):
    pass


@dataclass(frozen=True)
class Bitmap:
    """A shape that is a mask already."""

    pixels: NDArray[np.bool_]

    def mask(self, height: int, width: int) -> NDArray[np.bool_]:
        assert self.pixels.shape == (height, width)
        return self.pixels


@dataclass(frozen=True)
class Damaged:
    """A shape whose file cannot be read."""

    def mask(self, height: int, width: int) -> NDArray[np.bool_]:
        raise ValueError(f"cut off, {height} x {width}")


def box(x0: int, y0: int, x1: int, y1: int) -> PolygonShape:
    ring = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], np.float64)
    return PolygonShape(ring, np.array([0, 4]))


def saved(path: Path, height: int = 6, width: int = 8, **settings: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = sum(path.name.encode())
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path, **settings)
    return path


def photo(path: Path, *references: Reference, size: tuple[int, int] = (6, 8)) -> AnnotatedPhoto:
    return AnnotatedPhoto(PhotoFile(path.stem, path, *size, source="here", licence="CC0-1.0"), references)


def asked(name: str, *masks: object, words: str = "the cup", **more: object) -> Reference:
    return Reference(name, (words,), masks, **more)  # type: ignore[arg-type]


def photos(folder: Path, count: int = 40) -> list[AnnotatedPhoto]:
    """Photos of two questions each; every tenth file is damaged."""
    made = []
    for k in range(count):
        path = saved(folder / f"{k:03d}.png")
        if k % 10 == 9:
            path.write_bytes(path.read_bytes()[:60])
        first, second = asked(f"{k}/0", box(0, 0, 1 + k % 7, 3)), asked(f"{k}/1", words=f"whale {k}")
        made.append(photo(path, first, second))
    return made


def write(
    out: Path, given: Sequence[AnnotatedPhoto] | Iterator[AnnotatedPhoto], view: View | None = None, **how: int
) -> tuple[Card, Findings]:
    """The card of the split train, and what was found; how: embed, processes."""
    findings = Findings()
    writer = PhotoWriter(
        out / "train", Shown(view or View(), "set", "train"), {"reader": "mine"}, bool(how.get("embed"))
    )
    list(writer.write(iter(given), findings, how.get("processes", 1)))
    return read_card(out, "train"), findings


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "train").iterdir())}


def counts(findings: Findings) -> tuple[dict[str, int], dict[str, int]]:
    """By reason, questions that are lost and photos that are left out."""
    return tuple({reason: one.count for reason, one in kind.items()} for kind in (findings.lost, findings.left_out))  # type: ignore[return-value]


@pytest.mark.parametrize("embed", [False, True])
def test_the_files_are_the_same_bytes_for_one_process_and_for_two(tmp_path: Path, embed: bool) -> None:
    given = photos(tmp_path / "photos")
    alone, found = write(tmp_path / "one", given, embed=embed)
    both, found_by_two = write(tmp_path / "two", given, embed=embed, processes=2)
    assert files(tmp_path / "one") == files(tmp_path / "two") and alone == both
    assert (alone.num_examples, alone.num_lost) == (72, 8)
    assert found.as_json() == found_by_two.as_json() and counts(found)[1] == {UNREADABLE: 4}


def stopped_at(given: Sequence[AnnotatedPhoto], place: int) -> Iterator[AnnotatedPhoto]:
    yield from given[:place]
    raise Stopped


@pytest.mark.parametrize("place", [3, 18, 31])
def test_a_preparation_that_was_stopped_goes_on_and_writes_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    monkeypatch.setattr(shard_writer, "SHARD_ROWS", 16)
    monkeypatch.setattr("rollout.photo_shards._PHOTOS_A_TASK", 2)
    given = photos(tmp_path / "photos")
    whole, found = write(tmp_path / "whole", given)
    assert len(whole.shards) == 5
    with pytest.raises(Stopped):
        write(tmp_path / "stopped", stopped_at(given, place))
    with pytest.raises(ValueError, match="not finished"):
        read_card(tmp_path / "stopped", "train")
    again, found_again = write(tmp_path / "stopped", given)
    assert again == whole and files(tmp_path / "stopped") == files(tmp_path / "whole")
    assert found.as_json() == found_again.as_json()


@pytest.mark.parametrize("count", [12, 0])
def test_a_preparation_that_was_stopped_before_its_card_goes_on_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    given = photos(tmp_path / "photos", count)
    write(tmp_path / "whole", given)
    with monkeypatch.context() as patch:
        patch.setattr(shard_writer.ShardWriter, "finish", lambda *_: (_ for _ in ()).throw(Stopped))
        with pytest.raises(Stopped):
            write(tmp_path / "stopped", given)
    assert (tmp_path / "stopped/train/examples-00000.parquet").is_file()
    assert write(tmp_path / "stopped", given)[0].num_examples == 2 * count - 2 * (count // 10)
    assert files(tmp_path / "stopped") == files(tmp_path / "whole")


Change = Callable[[list[AnnotatedPhoto]], list[AnnotatedPhoto]]


@pytest.mark.parametrize(
    "change",
    [
        lambda given: given[1:],
        lambda given: [replace(given[0], references=given[0].references[:1]), *given[1:]],
        lambda given: [replace(given[0], references=(asked("0/0", words="a mug"), asked("0/1"))), *given[1:]],
    ],
)
def test_other_annotations_since_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Change) -> None:
    monkeypatch.setattr(shard_writer, "SHARD_ROWS", 8)
    given = photos(tmp_path / "photos", 30)
    with pytest.raises(Stopped):
        write(tmp_path / "out", stopped_at(given, 20))
    with pytest.raises(ValueError, match=r"train was begun with other annotations: the first \d+ photos asked"):
        write(tmp_path / "out", change(given))


def test_other_settings_are_refused_and_a_photo_that_comes_twice(tmp_path: Path) -> None:
    given = photos(tmp_path / "photos", 3)
    write(tmp_path / "out", given)
    with pytest.raises(ValueError, match="side there is None, here 4; give another folder"):
        write(tmp_path / "out", given, View(4))
    with pytest.raises(ValueError, match=r"000\.png comes a second time"):
        write(tmp_path / "twice", [*given, given[0]])


def test_photos_that_cannot_be_used_are_told_with_the_questions_that_are_lost(tmp_path: Path) -> None:
    cut = saved(tmp_path / "cut.png")
    cut.write_bytes(cut.read_bytes()[:70])
    given = [
        photo(saved(tmp_path / "other.png"), asked("other/0", box(0, 0, 2, 2)), asked("other/1"), size=(8, 6)),
        photo(cut, asked("cut/0", box(0, 0, 2, 2))),
        photo(tmp_path / "gone.png", asked("gone/0", box(0, 0, 2, 2))),
        photo(
            saved(tmp_path / "good.png"),
            asked("bad", Damaged()),
            asked("outside", box(20, 20, 30, 30)),
            asked("good", box(0, 0, 2, 3)),
        ),
    ]
    card, findings = write(tmp_path / "out", given)
    lost, left_out = counts(findings)
    assert left_out == {OTHER_SIZE: 1, UNREADABLE: 2}
    assert lost == {f"questions about {OTHER_SIZE}": 2, f"questions about {UNREADABLE}": 2, NOT_DRAWN: 1, NO_PIXEL: 1}
    assert (card.num_examples, card.num_lost) == (1, 6)
    assert findings.left_out[OTHER_SIZE].which == [f"{tmp_path / 'other.png'} (8 x 6, annotated at 6 x 8)"]
    assert findings.lost[NOT_DRAWN].which == ["bad (cut off, 6 x 8)"] and findings.lost[NO_PIXEL].which == ["outside"]
    env = Env("train", str(tmp_path / "out"))
    assert env[0].id == "set/good" and env.num_lost == 6 and env.notes[NO_PIXEL] == ["outside"]


def turned(path: Path) -> Path:
    """A photo of 6 rows and 8 columns as it is stored, EXIF 6: upright it has 8 rows and 6 columns."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(path, exif=exif)


@pytest.mark.parametrize(
    ("size", "upright", "shape"), [((8, 6), None, (8, 6)), ((6, 8), None, (6, 8)), ((0, 0), True, (8, 6))]
)
def test_a_turned_photo_is_shown_as_it_was_annotated(
    tmp_path: Path, size: tuple[int, int], upright: bool | None, shape: tuple[int, int]
) -> None:
    path = turned(tmp_path / "phone.png")
    given = photo(path, asked("0", box(0, 0, 2, 3)), size=size)
    _, findings = write(tmp_path / "out", [replace(given, photo=replace(given.photo, upright=upright))])
    env = Env("train", str(tmp_path / "out"))
    assert env[0].truth.masks.shape == (1, *shape) and env[0].truth.masks.sum() == 6
    np.testing.assert_array_equal(env.image(env[0].image), np.array(read_image(path, shape == (8, 6))))
    assert not findings.noted


def test_a_turned_photo_of_an_unknown_size_is_taken_as_stored_and_noted(tmp_path: Path) -> None:
    path = turned(tmp_path / "phone.png")
    _, findings = write(tmp_path / "out", [photo(path, asked("0", box(0, 0, 2, 3)), size=(0, 0))])
    assert Env("train", str(tmp_path / "out"))[0].image.height == 6
    assert findings.noted[UNKNOWN_TURN].which == [str(path)]


def test_a_mask_shown_smaller_is_what_lies_under_the_centres_of_its_pixels_and_padding_is_none(tmp_path: Path) -> None:
    # 6 x 8 at a side of 4: 3 x 4, whose centres lie on the odd rows and columns; padded to 4 x 4 below.
    pixels = np.zeros((6, 8), np.bool_)
    pixels[1, 1] = pixels[3, 7] = pixels[5, 2] = True
    thin = np.zeros((6, 8), np.bool_)
    thin[0] = thin[:, 0] = True
    given = photo(saved(tmp_path / "a.png"), asked("points", Bitmap(pixels)), asked("thin", Bitmap(thin)))
    card, findings = write(tmp_path / "out", [given], View(4, square=True))
    env = Env("train", str(tmp_path / "out"))
    assert env[0].truth.masks.astype(int).tolist() == [[[1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]]]
    assert env.image(env[0].image).shape == (4, 4, 3) and (env.image(env[0].image)[3] == 128).all()
    assert findings.lost[NO_PIXEL].which == ["thin"] and card.provenance["side"] == 4


def test_embedded_pixels_are_those_of_the_photo_and_need_it_no_more(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png")
    shown = np.array(read_image(path))
    card, _ = write(tmp_path / "out", [photo(path, asked("0", box(0, 0, 2, 2)), asked("1"))], embed=True)
    path.unlink()
    env = Env("train", str(tmp_path / "out"))
    np.testing.assert_array_equal(env.image(env[1].image), shown)
    assert card.image_folder is None and [one.id for one in env.scene(1)] == ["set/0", "set/1"]


def test_candidates_ignored_pixels_and_regions_between_words_come_back(tmp_path: Path) -> None:
    parts = ("cups right of", box(6, 0, 8, 2), "on the table")
    one = Reference(
        "0", parts, (box(0, 0, 4, 2),), ignore=(box(2, 0, 6, 2),), candidates=(box(0, 0, 1, 1), box(1, 1, 3, 3))
    )
    hidden = Reference("1", ("hidden",), (box(0, 0, 8, 6),), ignore=(box(2, 0, 6, 2),))
    write(tmp_path / "out", [photo(saved(tmp_path / "a.png"), one, hidden)])
    first, second = Env("train", str(tmp_path / "out"))
    assert first.candidates is not None and first.candidates.sum(axis=(1, 2)).tolist() == [1, 4]
    # Columns 2 to 5 are ignored, of which 2 and 3 are meant.
    assert first.truth.ignore is not None and np.argwhere(first.truth.ignore.any(axis=0)).ravel().tolist() == [4, 5]
    assert second.truth.ignore is None and second.candidates is None
    words, region, rest = first.prompt.parts
    assert (words, rest) == (TextPart("cups right of"), TextPart("on the table"))
    assert isinstance(region, MaskPart) and region.mask.sum() == 4 and region.mask[:2, 6:].all()
    assert second.prompt == Prompt.of_text("hidden")
    words_asked = {"cups", "right", "of", "on", "the", "table", "hidden"}
    assert Env("train", str(tmp_path / "out")).phrase_words() == words_asked


def test_the_fingerprint_is_of_masks_phrases_and_pixels_and_not_of_the_folder(tmp_path: Path) -> None:
    def fingerprint(folder: str, *references: Reference, name: str = "a.png") -> str:
        path = saved(tmp_path / folder / name)
        out = tmp_path / f"shards {folder} {len(list(tmp_path.iterdir()))}"
        return write(out, [photo(path, *references)])[0].fingerprint

    cup = asked("0", box(0, 0, 2, 2))
    same = fingerprint("one", cup)
    assert fingerprint("two", cup) == same
    others = [
        fingerprint("one", asked("0", box(0, 0, 3, 2))),
        fingerprint("one", asked("0", box(0, 0, 2, 2), words="the mug")),
        fingerprint("one", asked("0", box(0, 0, 2, 2), ignore=(box(4, 4, 5, 5),))),
        fingerprint("one", cup, asked("1", box(0, 0, 2, 2))),
        fingerprint("one", cup, name="b.png"),
    ]
    assert len({same, *others}) == 6
