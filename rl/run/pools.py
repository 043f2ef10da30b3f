"""Whether a policy that chooses among candidates, its engine and its data fit together."""

import numpy as np

from envs.datasets.base import Env
from policies.processor import Processor
from policies.selection.numbers import NumbersProcessor
from policies.selection.processor import SelectionProcessor
from rl.config.run import RunConfig
from rl.run.parts import RunParts

_MEASURED = 64
"""Training examples whose pools are counted; others may have larger ones."""


def refuse_unfit_pools(config: RunConfig, parts: RunParts, processor: Processor) -> None:
    """Raise ValueError where a policy that chooses at all places at once is to write a token after the other, or the
    other way round, and where questions have no candidates or an answer cannot be as long as they may ask for."""
    at_once, engine = isinstance(processor, SelectionProcessor), parts.engine.name
    if at_once and engine != "direct":
        raise ValueError(
            f"policy.name is {parts.policy.name}, which chooses among all candidates at once, and pool.engine {engine} "
            "samples a token after the other; set pool.engine to {name: direct}."
        )
    if not at_once and engine == "direct":
        raise ValueError(
            f"pool.engine is direct, and policy.name {parts.policy.name} writes a token after the other; set "
            "pool.engine to {name: shared}."
        )
    if not isinstance(processor, SelectionProcessor | NumbersProcessor):
        return
    if not at_once and engine != "shared":
        raise ValueError(
            f"policy.name is {parts.policy.name}, whose questions hold candidate masks, which pool.engine {engine} "
            "cannot be shown; set pool.engine to {name: shared}."
        )
    _refuse_other_pools(parts.env.build(split="train"), config.sampling.max_tokens, processor)


def _refuse_other_pools(env: Env, most: int, processor: SelectionProcessor | NumbersProcessor) -> None:
    for index in np.linspace(0, len(env) - 1, min(len(env), _MEASURED)).astype(int).tolist():
        example = env[index]
        if example.candidates is None or not len(example.candidates):
            raise ValueError(
                f"{example.id} has no candidates to choose from; set env.candidates of composed scenes, or give shards "
                "that hold some (env.candidates true)."
            )
        needed = processor.most_places(len(example.candidates))
        if needed > most:
            raise ValueError(
                f"{example.id} has {len(example.candidates)} candidates, and an answer about them {needed} places, "
                f"of which sampling.max_tokens allows {most}; set that to {needed} or more."
            )
