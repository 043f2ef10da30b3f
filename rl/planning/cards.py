"""Cards: what their data sheets say, and what of it a run may count on.

GB are 10^9 bytes; a card of 80 GB shows some 85 of them, and what is above 80 is left out as a reserve.
"""

import difflib
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Card:
    """A card by its data sheet."""

    title: str
    """Name for people."""
    memory: float
    """Memory, bytes."""
    bandwidth: float
    """Bytes a second between memory and processors."""
    flops: float
    """Dense bfloat16 operations a second at most, sums in float32."""
    link: float
    """Bytes a second from one card of a node to another, one way: NVLink, else PCIe."""


CARDS = {
    "h100": Card("H100 SXM 80 GB", 80e9, 3.35e12, 989e12, 450e9),
    "h200": Card("H200 SXM 141 GB", 141e9, 4.8e12, 989e12, 450e9),
    "a100": Card("A100 SXM 80 GB", 80e9, 2.039e12, 312e12, 300e9),
    "l40s": Card("L40S 48 GB", 48e9, 0.864e12, 362e12, 32e9),
    "rtx4090": Card("GeForce RTX 4090 24 GB", 24e9, 1.008e12, 165e12, 32e9),
}
"""Cards by name. Source: NVIDIA's data sheets of H100, H200, A100 and L40S, and its Ada architecture paper for the RTX
4090. Rates "with sparsity" are halved, and links given for both ways together too."""


def card_named(name: str, memory_gb: float | None = None) -> Card:
    """A card of CARDS, with another memory where one is given.

    Raises ValueError for a name that is not there, with those that are, and for a memory that is none.
    """
    key = name.lower().replace("-", "").replace(" ", "").replace("_", "")
    if key not in CARDS:
        near = difflib.get_close_matches(key, CARDS, n=1)
        meant = f"; did you mean {near[0]}?" if near else "."
        raise ValueError(
            f"--gpu is {name!r}, which is no card known here{meant} Known: {', '.join(CARDS)}. For another, give "
            "one of like speed, and its memory by --gpu-gb."
        )
    card = CARDS[key]
    if memory_gb is None:
        return card
    if not 0 < memory_gb < float("inf"):
        raise ValueError(f"--gpu-gb is {memory_gb:g}; give the memory of one card in GB, such as 80.")
    return replace(card, title=f"{card.title.rsplit(' ', 2)[0]} {memory_gb:g} GB", memory=memory_gb * 1e9)


@dataclass(frozen=True)
class Machines:
    """The cards that a run is planned for, and what is assumed of them."""

    card: Card
    """What each is."""
    num: int
    """Cards in all."""
    node_cards: int = 8
    """Cards of one node."""
    network_gbit: float = 400.0
    """Gbit a second between nodes, of each card."""
    mfu: float = 0.35
    """Share of `Card.flops` that learning and prefill reach."""

    def __post_init__(self) -> None:
        for name, value, least in (
            ("--gpus", self.num, 1),
            ("--node-gpus", self.node_cards, 1),
            ("--network-gbit", self.network_gbit, 1e-3),
        ):
            if not least <= value < float("inf"):
                raise ValueError(f"{name} is {value:g}; give {least:g} or more.")
        if not 0 < self.mfu <= 1:
            raise ValueError(f"--mfu is {self.mfu:g}; give the share of a card's peak that learning reaches, 0 to 1.")

    def link(self, cards: int) -> float:
        """Bytes a second, one way, of each of so many cards that talk to each other."""
        return self.card.link if cards <= self.node_cards else min(self.card.link, self.network_gbit * 1e9 / 8)
