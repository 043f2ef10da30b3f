"""Numbers that papers print, to stand beside measured ones: configs/benchmarks/*.yaml, each with its source."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from rl.config.load import load_settings, shipped_configs


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


def published_rows(data: str, protocol: str) -> Sequence[tuple[str, str, Mapping[str, float]]]:
    """(name, source, scores as fractions) of published models on a data set under a protocol, variants apart."""
    base = protocol.partition("/")[0]
    return [
        (model.name, model.source, {title: value / 100 for title, value in model.scores[data].items()})
        for file in published().values()
        if file.protocol.partition("/")[0] == base
        for model in file.models
        if data in model.scores
    ]
