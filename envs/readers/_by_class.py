"""Questions for annotations that have a class and no sentence: the class name, and what of the photo it means."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from envs.readers.base import Findings, Reference, Shape

ASK = ("all", "single")
"""What a class name may ask for: all its objects of a photo together, or the only one, where there is but one."""
NO_CLASS = "objects without a class, which nothing asks for"
NO_OUTLINE = "questions about a class of which an object has no outline"
GROUP_ALONE = "classes of which a photo shows a crowd alone, not asked for"


@dataclass(frozen=True)
class ClassedObject:
    """One object that an annotation draws."""

    id: str
    """Id of the object in the data set."""
    name: str
    """Name of its class, as it is asked; "" where it has none."""
    shape: Shape | None
    """What it covers; None where it is there and nothing usable outlines it, as a box alone."""
    crowd: bool = False
    """Whether it is a group, which counts neither way."""
    speck: bool = False
    """Whether it is too small for a pixel: it is one more of its class, and no mask misses it."""


def class_references(
    photo_id: str, objects: Iterable[ClassedObject], ask: str, findings: Findings, void: tuple[Shape, ...] = ()
) -> list[Reference]:
    """A question for each class of a photo, in the order in which the classes come first.

    ask: one of ASK. A crowd of the class counts neither way; with "single" it stands for more than one object. Where an
    object of the class has no outline, what is true is not known, and the question is lost. Ids are those of the photo
    and of the objects that are meant, so that an object that is added makes another question. void: what counts neither
    way for any class.
    """
    of_class: dict[str, list[ClassedObject]] = {}
    for each in objects:
        if each.name:
            of_class.setdefault(each.name, []).append(each)
        else:
            findings.leave_out(NO_CLASS, each.id)
    asked = {name: found for name, found in of_class.items() if ask == "all" or len(found) == 1}
    return [
        Reference(one.id, one.parts, one.masks, (*one.ignore, *void))
        for name, found in asked.items()
        for one in _of_class(photo_id, name, found, findings)
    ]


def _of_class(photo_id: str, name: str, found: list[ClassedObject], findings: Findings) -> Iterator[Reference]:
    meant = [each for each in found if not each.crowd and not each.speck]
    shapes = tuple(each.shape for each in meant if each.shape is not None)
    crowds = tuple(each.shape for each in found if each.crowd and each.shape is not None)
    if any(each.shape is None and not each.speck for each in found):
        findings.lose(NO_OUTLINE, f"{photo_id} ({name})")
    elif meant:
        yield Reference(f"{photo_id}/{'+'.join(each.id for each in meant)}", (name,), shapes, crowds)
    elif crowds:
        findings.note(GROUP_ALONE, f"{photo_id} ({name})")
