"""Which Ray cluster a run uses, and how its actors lie there.

Apart from the cluster itself, so that a config is checked without loading Ray.
"""

from dataclasses import dataclass

PLACEMENTS = ("shared", "apart")


@dataclass
class RaySettings:
    """Settings of rollout/cluster.py."""

    address: str | None = None
    """Address of a running Ray cluster; null starts Ray on this machine."""
    placement: str = "shared"
    """Where rollout workers lie: `shared`, wherever there is room; `apart`, on no node that has a learner rank."""
    object_store_gb: float | None = None
    """GiB of each node's memory for weights and answers on their way; null takes what the run needs.

    Of use only where Ray is started here: on a cluster, `ray start --object-store-memory` has the say.
    """

    def __post_init__(self) -> None:
        if self.placement not in PLACEMENTS:
            raise ValueError(f"ray.placement is {self.placement!r}; set it to {' or '.join(PLACEMENTS)}.")
        if self.placement == "apart" and self.address is None:
            raise ValueError(
                "ray.placement is 'apart', which needs two nodes or more, but without ray.address Ray runs on this "
                "machine alone; give the address of a cluster, or set ray.placement to shared."
            )
        if self.object_store_gb is not None and self.object_store_gb < LEAST_OBJECT_STORE_GB:
            raise ValueError(
                f"ray.object_store_gb is {self.object_store_gb}; Ray takes no less than {LEAST_OBJECT_STORE_GB}, and "
                "null is what the run needs."
            )


LEAST_OBJECT_STORE_GB = 0.08
"""Ray refuses fewer than 75 MiB."""
