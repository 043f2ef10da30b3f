"""Where Numba keeps the compiled kernels on disk.

Numba notices when the file of a kernel changes, but not when another file does whose kernels it calls. So the folder is
named by a hash of all kernel files: a change to one starts an empty cache, in every process that imports them.
"""

import hashlib
import os
from pathlib import Path

_PACKAGES = Path(__file__).resolve().parents[2]
KERNEL_FILES = tuple(
    _PACKAGES / name
    for name in (
        *(f"envs/geometry/{name}.py" for name in ("spans", "rle", "raster", "curve_fit")),
        *(
            f"rewards/kernels/{name}.py"
            for name in ("bands", "chains", "slabs", "overlap", "cores", "judging", "vertices")
        ),
        "policies/checksums.py",
    )
)


def kernel_cache_folder() -> str:
    """The folder `numba-<hash of KERNEL_FILES>` under the user's cache folder (XDG_CACHE_HOME, else ~/.cache)."""
    digest = hashlib.sha256(b"\0".join(path.read_bytes() for path in KERNEL_FILES)).hexdigest()
    user_cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(user_cache, "polytrace", f"numba-{digest[:16]}")
