"""Candidates from a file of pools beside the questions of a data set's files.

A question whose image has no pool, an empty one, or one of another size is left out and told, since a policy that
chooses could not be asked it.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from envs.pool_files import Pool, Pools
from envs.readers.base import AnnotatedPhoto, Findings

NO_POOL = "photos that the pools do not have"
EMPTY = "photos without a candidate"
OTHER_SIZE = "photos of another size than their candidates"
OTHER_FILE = "photos that are another file than their candidates were made for"
UNUSABLE = "masks of pools that cannot be read or have no pixel"


def with_pools(photos: Iterator[AnnotatedPhoto], pools: Pools, findings: Findings) -> Iterator[AnnotatedPhoto]:
    """The photos with the candidates of their pools in every question; what has none is told and not given."""
    for photo in photos:
        file = photo.photo
        pool, reason, detail = pool_of(pools, str(file.path.absolute()), file.path, (file.height, file.width))
        if pool is None:
            findings.leave_out(reason, f"{file.path}{detail}")
            for one in photo.references:
                findings.lose(f"questions about {reason}", one.id)
            continue
        if pool.unusable:
            findings.leave_out(UNUSABLE, f"{file.path} ({pool.unusable})")
        sized = replace(file, height=pool.height, width=pool.width)
        asked = tuple(replace(one, candidates=pool.shapes) for one in photo.references)
        yield AnnotatedPhoto(sized, asked)


def pool_of(pools: Pools, name: str, file: Path | None, size: tuple[int, int]) -> tuple[Pool | None, str, str]:
    """(the pool of an image, "", ""), or (None, why it cannot be used, details); size: (H, W), 0 where not known."""
    try:
        pool = pools.of(name, file)
    except ValueError as error:
        return None, OTHER_FILE, f" ({error})"
    if pool is None:
        return None, NO_POOL, ""
    if all(size) and size != (pool.height, pool.width):
        return None, OTHER_SIZE, f" ({size[1]} x {size[0]}, candidates {pool.width} x {pool.height})"
    return (pool, "", "") if pool.shapes else (None, EMPTY, "")
