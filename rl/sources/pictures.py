"""Images that candidate masks are made for, each once, in its own pixels, with the questions about it where there are
any: a folder of images, the files of a data set, prepared examples, or the env of a config.

An image goes by the end of its path below the folder that was given, else by its folder and name; one that an env
composes by its key.
"""

import hashlib
import os
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from envs.datasets.base import Env, FromFiles
from envs.example import Example, ImageRef
from envs.geometry.pools import oracle
from envs.images import ShownFile, View, image_header, read_image
from envs.plugin import Plugin
from envs.readers._glimpse import IMAGE_SUFFIXES
from envs.readers.base import Findings
from envs.shards.from_photos import Shown, shown_photo
from rl.config.load import read_mapping
from rl.config.plugins import env_plugin
from rl.pages.progress import bar
from rl.sources.pool_file import ImagePool
from rl.sources.prepare import chosen_splits, first_reasons
from rl.sources.source import Source, recognised, source_of


@dataclass(frozen=True)
class Picture:
    """One image, and what is asked about it."""

    name: str
    """The name that pools know it by."""
    image: NDArray[np.uint8]
    """[H, W, 3] its own pixels, not resized or padded."""
    file_bytes: int | None
    """Length of its file; None where it has none."""
    view: View
    """How its questions show it."""
    examples: tuple[Example, ...]
    """The questions, their masks in pixels of the view."""
    upright: bool | None = None
    """Whether its pixels are turned upright by EXIF; None where nothing is turned."""

    def oracle(self, masks: NDArray[np.bool_]) -> list[float]:
        """IoU of the best choice from masks [N, H, W] for each question that shows something true, as it is shown."""
        return best_ious(masks, self.view, [one.truth.union for one in self.examples if one.prompt.asked == "mask"])


def best_ious(masks: NDArray[np.bool_], view: View, unions: Sequence[NDArray[np.bool_]]) -> list[float]:
    """IoU of the best choice from masks [N, H, W], as a view shows them, for each union [h, w] that has a pixel."""
    asked = [union for union in unions if union.any()]
    if not asked:
        return []
    pool = np.zeros((len(masks), *asked[0].shape), np.bool_)
    for shown, mask in zip(pool, masks, strict=True):
        shown[:] = view.mask(mask)
    return [oracle(pool, union) for union in asked]


@dataclass(frozen=True)
class Given:
    """Where images are, as somebody says it."""

    path: Path
    settings: Sequence[str] = ()
    """Settings of the reader or the config, as key=value."""
    splits: Sequence[str] = ()
    """Names of splits; none: all."""
    format: str | None = None
    """Name of the reader; None finds it."""
    images: str | None = None
    """Folder of the photos; None leaves it to the reader."""


@dataclass(frozen=True)
class EnvSplits:
    """An env by its entry in a config, and the splits of it that are meant."""

    entry: Mapping[str, Any]
    """The entry `env`."""
    splits: tuple[str, ...]
    """Names of the splits."""

    @property
    def plugin(self) -> Plugin:
        """The recipe of the env."""
        return env_plugin(self.entry)

    def envs(self) -> Iterator[Env]:
        """The env of each split."""
        for split in self.splits:
            yield self.plugin.build(split=split)

    @property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprint of each split."""
        return {split: env.fingerprint for split, env in zip(self.splits, self.envs(), strict=True)}


def is_prepared_or_config(path: Path) -> bool:
    """Whether a path is prepared examples, a config or a run, and neither images nor files of a data set."""
    is_config = path.suffix in (".yaml", ".yml") or (path / "config.yaml").is_file() or not path.exists()
    return is_config or (path.is_dir() and any(path.glob("*/split.json")))


def image_files(folder: Path) -> list[Path]:
    """Image files of a folder and the folders in it, in the order of their paths; hidden ones left out."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def folder_pictures(folder: Path, files: Sequence[Path], done: Container[str]) -> Iterator[Picture | ImagePool]:
    """Images of a folder as a viewer shows them, those that are not done; of one that cannot be read, why."""
    for path in files:
        name = path.relative_to(folder).as_posix()
        told = name.encode("utf-8", "backslashreplace").decode()
        if told in done:
            continue
        if told != name:
            yield ImagePool.unusable(told, "its name is no UTF-8, which files of pools are written in; rename it")
            continue
        try:
            pixels = np.array(read_image(path), np.uint8)
            upright = ShownFile(path, True, View()).turned
        except (ValueError, OSError) as error:
            yield ImagePool.unusable(name, f"{error}")
            continue
        yield Picture(name, pixels, path.stat().st_size, View(), (), upright)


def source_pictures(
    source: Source, splits: Sequence[str], done: Container[str], findings: Findings
) -> Iterator[Picture | ImagePool]:
    """Photos of a data set as they were annotated, with their questions, those that are not done; of one that cannot be
    used, why. What the reader finds wrong is told to `findings`.

    Raises ValueError where two photos would have one name.
    """
    told_of = set[str]()
    seen: dict[str, Path] = {}
    for split in splits:
        for photo in source.reader().photos(split, findings):
            name = name_of(photo.photo.path, source.path)
            if seen.setdefault(name, photo.photo.path) != photo.photo.path:
                raise ValueError(
                    f"{seen[name]} and {photo.photo.path} would both be {name} in the pools; make those of each folder "
                    "apart, or put the photos below the data set's own folder."
                )
            if name in done or name in told_of:
                continue
            told_of.add(name)
            told = Findings()
            shown = shown_photo(photo, Shown(View(), "pools", split), told)
            if shown is None:
                yield ImagePool.unusable(name, first_reasons(told.left_out))
                continue
            size = photo.photo.path.stat().st_size
            yield Picture(name, shown.image, size, View(), shown.examples, shown.file.turned)


def name_of(path: Path, folder: Path) -> str:
    """The name of a file in pools: its path below the folder; where it lies elsewhere, its folder and its name."""
    path, folder = path.absolute(), folder.absolute()
    below = path.is_relative_to(folder) and folder.is_dir()
    return path.relative_to(folder).as_posix() if below else "/".join(path.parts[-2:])


@dataclass(frozen=True)
class ImagePlace:
    """An image of an env, and the file behind it."""

    ref: ImageRef
    file: ShownFile | None
    """None where the env composes or holds its pixels."""
    name: str
    """The name that pools know it by."""

    @property
    def file_bytes(self) -> int | None:
        """Length of the file; None without one."""
        return None if self.file is None else self.file.path.stat().st_size

    @property
    def upright(self) -> bool | None:
        """Whether its pixels are turned upright by EXIF; None where nothing is turned. Raises as `read_image`."""
        return None if self.file is None else self.file.turned

    @property
    def view(self) -> View:
        """How it is shown."""
        return View() if self.file is None else self.file.view

    def own_pixels(self, env: Env) -> NDArray[np.uint8]:
        """[H, W, 3] the image, neither resized nor padded where there is a file."""
        if self.file is None:
            return env.image(self.ref)
        return ShownFile(self.file.path, self.file.upright, View()).pixels()

    def own_size(self) -> tuple[int, int]:
        """(H, W) of these pixels, by the head of the file alone; raises as `read_image`."""
        if self.file is None:
            return self.ref.height, self.ref.width
        header = image_header(self.file.path)
        size = (header.height, header.width)
        return size[::-1] if self.file.upright and header.lies_on_its_side else size


def image_places(images: Iterable[tuple[Env, ImageRef]]) -> dict[str, ImagePlace]:
    """Where images of envs are, by their keys; each file goes by its path below the folder that holds them all, that
    folder's name included."""
    found = {ref.key: (ref, env.image_file(ref) if isinstance(env, FromFiles) else None) for env, ref in images}
    folders = [str(file.path.absolute().parent) for _, file in found.values() if file is not None]
    above = Path(os.path.commonpath(folders)).parent if folders else Path()
    return {
        key: ImagePlace(ref, file, key if file is None else file.path.absolute().relative_to(above).as_posix())
        for key, (ref, file) in found.items()
    }


def refuse_one_file_twice(places: Mapping[str, ImagePlace]) -> None:
    """Raise ValueError where two images are of one file, as in a mixture of two parts over the same photos."""
    held: dict[str, str] = {}
    for key, place in places.items():
        if (other := held.setdefault(place.name, key)) != key:
            raise ValueError(
                f"{other} and {key} are both of the file {place.name}, so that its masks would be made twice; make the "
                "pools of one part of the mixture, or of the data set's own files."
            )


class EnvImages:
    """The images of some splits of an env, each once, in the order in which they are asked about first."""

    def __init__(self, splits: EnvSplits, console: Console | None) -> None:
        self.envs = list(splits.envs())
        self.asked: dict[str, tuple[int, list[int]]] = {}
        """The split that asks about an image first, by its place, and the examples there, by the image's key."""
        images = []
        for place, env in enumerate(self.envs):
            for index in bar(range(len(env)), f"images of {env.split}", console, len(env)):
                ref = env[index].image
                if ref.key not in self.asked:
                    images.append((env, ref))
                of, indices = self.asked.setdefault(ref.key, (place, []))
                if of == place:
                    indices.append(index)
        self.places = image_places(images)
        refuse_one_file_twice(self.places)

    def pictures(self, done: Container[str]) -> Iterator[Picture | ImagePool]:
        """The images in their own pixels, those that are not done; of one that cannot be read, why."""
        for key, (split, indices) in self.asked.items():
            place, env = self.places[key], self.envs[split]
            if place.name in done:
                continue
            try:
                pixels, file_bytes, upright = place.own_pixels(env), place.file_bytes, place.upright
            except (ValueError, OSError) as error:
                yield ImagePool.unusable(place.name, f"{error}")
                continue
            asked = tuple(env[index] for index in indices)
            yield Picture(place.name, pixels, file_bytes, place.view, asked, upright)


def config_env(run: Path) -> dict[str, Any]:
    """The entry `env` of a run's config; raises FileNotFoundError or ValueError where there is none."""
    path = run / "config.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, and without it the run's images cannot be found; restore it.")
    values = read_mapping(path)
    if "env" not in values:
        raise ValueError(f"{path} names no env, and without it the run's images cannot be found.")
    return dict(values["env"])


class Pictures:
    """The images of a source, whatever it is."""

    def __init__(
        self,
        identity: Mapping[str, Any],
        total: int | None,
        given: Callable[[Container[str]], Iterator[Picture | ImagePool]],
        limit: int | None,
        findings: Findings,
    ) -> None:
        self.identity = identity
        """What the images are, in terms of JSON: other images, another identity."""
        self.total = total
        """How many there are; None where that is not known."""
        self._given, self._limit, self._findings = given, limit, findings

    def left(self, done: Set[str]) -> Iterator[Picture | ImagePool]:
        """Those that are not done, within the limit."""
        return islice(self._given(done), None if self._limit is None else max(0, self._limit - len(done)))

    def told(self) -> list[str]:
        """What a reader found wrong with its files, in lines."""
        found = {"lost": self._findings.lost, "left out": self._findings.left_out}
        return [f"{word} {first_reasons(kind)}" for word, kind in found.items() if kind]


def env_pictures(splits: EnvSplits, limit: int | None, console: Console) -> Pictures:
    """The images of an env."""
    images = EnvImages(splits, console)
    return Pictures(splits.fingerprints, _within(len(images.asked), limit), images.pictures, limit, Findings())


def file_pictures(source: Given, limit: int | None, console: Console) -> Pictures:
    """The images of a folder, or of a data set's files.

    Raises FileNotFoundError or ValueError where there is none, and for options that do not fit.
    """
    path, findings = source.path, Findings()
    if path.is_dir() and source.format is None and not recognised(path) and (files := image_files(path)):
        if source.splits or source.settings:
            raise ValueError(f"{path} is a folder of images, which has no splits and no settings; leave them out.")
        listed = [f"{file.relative_to(path).as_posix()}:{file.stat().st_size}" for file in files]
        identity: dict[str, Any] = {
            "folder": str(path.resolve()),
            "sha256": hashlib.sha256("\n".join(listed).encode()).hexdigest(),
        }
        return Pictures(identity, _within(len(files), limit), partial(folder_pictures, path, files), limit, findings)
    found = source_of(path, source.format, source.images, source.settings)
    console.print(f"{found.format}: {found.what}", markup=False, highlight=False, soft_wrap=True)
    chosen = chosen_splits(found, source.splits)
    identity = {"annotations_sha256": found.annotations_sha256(path / ".none"), "splits": list(chosen)}

    def given(done: Container[str]) -> Iterator[Picture | ImagePool]:
        return source_pictures(found, chosen, done, findings)

    return Pictures(identity, None, given, limit, findings)


def _within(total: int, limit: int | None) -> int:
    return total if limit is None else min(total, limit)


def refuse_no_questions(path: Path) -> None:
    """Raise ValueError for images or files that no policy can be asked about as they are."""
    if not is_prepared_or_config(path):
        raise ValueError(
            f"--policy answers the questions of prepared examples or of a config's env, and {path} is neither; prepare "
            f"it first: polytrace data prepare {path} --out FOLDER."
        )
