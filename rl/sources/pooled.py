"""Candidates from a file of pools beside the questions of a data set's files.

A question whose image has no pool, an empty one, or one of another size is left out and told, since a policy that
chooses could not be asked it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from envs.images import image_header
from envs.pool_files import AmbiguousName, Pool, Pools
from envs.readers.base import AnnotatedPhoto, Findings
from envs.shards.from_photos import annotated_upright

NO_POOL = "photos that the pools do not have"
EMPTY = "photos without a candidate"
OTHER_SIZE = "photos of another size than their candidates"
OTHER_FILE = "photos that are another file than their candidates were made for"
AMBIGUOUS = "photos whose name several images of the pools have"
OTHER_TURN = "photos that EXIF turns, and their candidates not alike"
UNUSABLE = "masks of pools that cannot be read or have no pixel"


@dataclass(frozen=True)
class Pooled:
    """A photo or image as candidates are looked up for it."""

    name: str
    """Its path or key."""
    file: Path | None
    """Its file; None where an env composes it."""
    size: tuple[int, int]
    """(H, W) of its own pixels, as its truth lies on them."""
    upright: bool | None
    """Whether these are turned upright by EXIF; None where nothing is turned."""


def with_pools(photos: Iterator[AnnotatedPhoto], pools: Pools, findings: Findings) -> Iterator[AnnotatedPhoto]:
    """The photos with the candidates of their pools in every question; what has none is told and not given."""
    for photo in photos:
        file = photo.photo
        try:
            header = image_header(file.path)
        except (ValueError, OSError):
            yield photo  # whoever opens it tells why it cannot be used
            continue
        upright = None if header.orientation == 1 else annotated_upright(file, header, Findings())
        size = (header.height, header.width)
        if upright and header.lies_on_its_side:
            size = (header.width, header.height)
        pool, reason, detail = pool_of(pools, Pooled(str(file.path.absolute()), file.path, size, upright))
        if pool is None:
            findings.leave_out(reason, f"{file.path}{detail}")
            for one in photo.references:
                findings.lose(f"questions about {reason}", one.id)
            continue
        if pool.unusable:
            findings.leave_out(UNUSABLE, f"{file.path} ({pool.unusable})")
        yield AnnotatedPhoto(file, tuple(replace(one, candidates=pool.shapes) for one in photo.references))


def pool_of(pools: Pools, image: Pooled) -> tuple[Pool | None, str, str]:
    """(the pool of an image, "", ""), or (None, why it cannot be used, details)."""
    try:
        pool = pools.of(image.name, image.file)
    except AmbiguousName as error:
        return None, AMBIGUOUS, f" ({error})"
    except ValueError as error:
        return None, OTHER_FILE, f" ({error})"
    if pool is None:
        return None, NO_POOL, ""
    if image.size != (pool.height, pool.width):
        (height, width), found = image.size, f"{pool.width} x {pool.height}"
        return None, OTHER_SIZE, f" ({width} x {height}, candidates {found})"
    if image.upright is not None and pool.upright is not None and image.upright != pool.upright:
        return None, OTHER_TURN, f" (it was annotated {_TURN[image.upright]}, candidates {_TURN[pool.upright]})"
    return (pool, "", "") if pool.shapes else (None, EMPTY, "")


_TURN = {True: "as EXIF turns it", False: "as it is stored"}
