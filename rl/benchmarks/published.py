"""Numbers that papers print, to stand beside measured ones: configs/benchmarks/*.yaml, and files of one's own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import numpy as np

from envs.geometry.rle import rle_from_mask
from envs.plugin import did_you_mean
from envs.polygons import AnswerStatus
from rl.config.load import load_settings, shipped_configs
from rl.evaluation.protocols.base import CodedTruth, protocol_named


@dataclass
class PublishedModel:
    """One row of a paper."""

    name: str
    """Name of the model, as the paper calls it."""
    source: str
    """Paper or page that prints the numbers, with its address."""
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    """By data set and split, such as refcoco_testA, then by score as the protocol titles it; percent, as printed."""


@dataclass
class Published:
    """A file of published numbers."""

    title: str
    protocol: str
    """Protocol under which the numbers are, as far as it is known."""
    models: list[PublishedModel] = field(default_factory=list)


def published() -> Mapping[str, Published]:
    """All files of published numbers, by name."""
    folder = Path("benchmarks")
    found = {}
    for name in shipped_configs("benchmarks"):
        with resources.as_file(resources.files("configs") / "benchmarks" / f"{name}.yaml") as path:
            found[str(folder / name)] = load_settings(Published, path)
    return found


def own_published(path: Path) -> Published:
    """A file of one's own in the form of those, checked as they are by tests.

    Raises FileNotFoundError where there is none; ValueError, telling the file and the entry, for what does not fit, a
    score that the protocol does not have, and a number that is no percent.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--rows is {path}, which is no file; give a YAML file (docs/benchmark.md).")
    try:
        file = load_settings(Published, path)
        titles = _titles_of(file.protocol)
        if not file.models:
            raise ValueError("models is empty; give at least one, with name, source and scores.")
        for place, model in enumerate(file.models):
            _refuse_scores(model, titles, f"models[{place}].scores")
    except ValueError as error:
        told = f"{error}"
        raise ValueError(told if told.startswith(f"{path}") else f"{path}: {told}") from error
    return file


def _refuse_scores(model: PublishedModel, titles: Sequence[str], where: str) -> None:
    """Raise ValueError for a model without a score, and for scores that no table could show."""
    if not any(model.scores.values()):
        raise ValueError(f"{where} is empty; give them by data set, as in `refcoco_val: {{cIoU: 71.2}}`.")
    for data, scores in model.scores.items():
        for title, value in scores.items():
            if titles and title not in titles:
                raise ValueError(
                    f"{where}.{data}.{title} is no score of the protocol{did_you_mean(title, titles)} There are: "
                    f"{', '.join(titles)}."
                )
            if not 0 <= value <= 100:
                raise ValueError(f"{where}.{data}.{title} is {value}; write percent, from 0 to 100.")
        if scores and max(scores.values()) <= 1:
            raise ValueError(f"{where}.{data} has no number above 1; write percent, such as 71.2 and not 0.712.")


def _titles_of(protocol: str) -> Sequence[str]:
    """Titles of a protocol's scores; () where data sets give them; raises ValueError for a protocol there is not."""
    made = protocol_named(protocol)
    if protocol.partition("/")[0] == "tasks":
        return ()
    mask = rle_from_mask(np.ones((1, 1), np.bool_))
    return list(made.scores(made.judge_masks([mask], [AnswerStatus.OK], [CodedTruth("any", 1, 1, (mask,))])))


def published_rows(
    data: str, protocol: str, own: Sequence[Published] = ()
) -> Sequence[tuple[str, str, Mapping[str, float]]]:
    """(name, source, scores as fractions) of published models on a data set under a protocol, variants apart.

    own: files of one's own, whose rows come last.
    """
    base = protocol.partition("/")[0]
    return [
        (model.name, model.source, {title: value / 100 for title, value in model.scores[data].items()})
        for file in (*published().values(), *own)
        if file.protocol.partition("/")[0] == base
        for model in file.models
        if data in model.scores
    ]
