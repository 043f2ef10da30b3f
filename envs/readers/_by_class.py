"""Questions for annotations that have a class and no sentence: the class name, and what of the photo it means."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from envs.readers.base import Findings, Reference, Shape

ASK = ("all", "single")
"""What a class name may ask for: all its objects of a photo together, or the only one, where there is but one."""
NO_CLASS = "objects without a class, which nothing asks for"
GROUP_ALONE = "classes of which a photo shows a crowd alone, not asked for"


@dataclass(frozen=True)
class ClassedObject:
    """One object that an annotation draws."""

    id: str
    """Its id in the data set."""
    name: str
    """Name of its class, as it is asked; "" where it has none."""
    shape: Shape
    """What it covers."""
    crowd: bool = False
    """Whether it is a group, which counts neither way."""


def class_references(photo_id: str, objects: Iterable[ClassedObject], ask: str, findings: Findings) -> list[Reference]:
    """A question for each class of a photo, in the order in which the classes come first.

    ask: one of ASK. A crowd of the class counts neither way; with "single" it stands for more than one object. Ids are
    those of the photo and of the objects that are meant, so that an object that is added makes another question.
    """
    of_class: dict[str, list[ClassedObject]] = {}
    for each in objects:
        if each.name:
            of_class.setdefault(each.name, []).append(each)
        else:
            findings.leave_out(NO_CLASS, each.id)
    return [
        reference for name, found in of_class.items() for reference in _of_class(photo_id, name, found, ask, findings)
    ]


def _of_class(
    photo_id: str, name: str, found: list[ClassedObject], ask: str, findings: Findings
) -> Iterator[Reference]:
    meant = [each for each in found if not each.crowd]
    crowds = tuple(each.shape for each in found if each.crowd)
    if not meant:
        findings.note(GROUP_ALONE, f"{photo_id} ({name})")
        return
    if ask == "single" and len(found) > 1:
        return
    ids = "+".join(each.id for each in meant)
    yield Reference(f"{photo_id}/{ids}", (name,), tuple(each.shape for each in meant), crowds)
