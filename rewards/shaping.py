"""From terms to totals, on the driver: a whole group at a time.

Dimension letter: G answers of a group.
"""

from collections.abc import Mapping, Sequence
from math import isfinite

import numpy as np
from numpy.typing import NDArray


def totals(terms: Sequence[Mapping[str, float | None]], weights: Mapping[str, float]) -> NDArray[np.float64]:
    """Weighted mean of the terms that apply (are not None) to each of G answers, [G] float64; 0 where none applies.

    A term without a weight counts for nothing, so that archived terms can be totalled under fewer rewards. Raises
    ValueError for a weight that names no term, for one that is negative or not finite, and where none is above 0.
    """
    _check_weights(weights)
    return np.array([_total(answer_terms, weights) for answer_terms in terms], np.float64)


def _total(terms: Mapping[str, float | None], weights: Mapping[str, float]) -> float:
    weighted = applied = 0.0
    for name, weight in weights.items():
        if name not in terms:
            raise ValueError(
                f"There is a weight for {name}, but an answer has only the terms {', '.join(terms) or '(none)'}; "
                "drop the weight or score the answers under that reward first."
            )
        value = terms[name]
        if value is not None:
            weighted += weight * value
            applied += weight
    return weighted / applied if applied else 0.0


def _check_weights(weights: Mapping[str, float]) -> None:
    for name, weight in weights.items():
        if not isfinite(weight) or weight < 0:
            raise ValueError(f"The weight of {name} is {weight}; set it to a finite number of 0 or more.")
    if not any(weights.values()):
        raise ValueError(f"The weights are {dict(weights)}; set at least one above 0, or every answer earns the same.")
