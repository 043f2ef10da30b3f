"""Whether a policy that chooses among candidates, its engine and its data fit together."""

import numpy as np

from envs.datasets.base import Env
from envs.datasets.shards import Env as Shards
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
    if parts.env.name == "shards":
        for split in dict.fromkeys(("train", "validation", config.evaluation.final_split)):
            _refuse_prepared_pools(parts.env.build(split=split), config.sampling.max_tokens, processor)
    _refuse_other_pools(parts.env.build(split="train"), config.sampling.max_tokens, processor)


def _refuse_prepared_pools(env: Shards, limit: int, processor: SelectionProcessor | NumbersProcessor) -> None:
    """Raise ValueError where any question of a prepared split has no candidates, or more than an answer has places."""
    if env.pool_sizes is None:
        return
    fewest, most = env.pool_sizes
    if most and not fewest:
        raise ValueError(
            f"{env.folder}: some questions of the split {env.split} have no candidates to choose from; prepare it with "
            "--pools of candidates for all images (polytrace data candidates), by which others are left out."
        )
    if most and (needed := processor.most_places(most)) > limit:
        raise ValueError(
            f"{env.folder}: a question of the split {env.split} has {most} candidates, and an answer about them "
            f"{needed} places, of which sampling.max_tokens allows {limit}; set that to {needed} or more."
        )


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
