"""Stages of supervised training that would train nothing, told before any step is taken."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from envs.plugin import Plugin
from policies.families.base import PartedPolicy
from rl.config.learner import ALL, ALL_BUT_ENCODERS
from rl.config.sft import SftConfig, SftLearner, SftStage
from rl.learner.policy import trains_something


def refuse_idle_stages(config: SftConfig, policy: Plugin) -> None:
    """Raise ValueError for a stage that trains what the policy has not, or none of its parameters."""
    for stage in config.sft.stages:
        _refuse_missing_part(stage, policy)
    learner = config.learner
    for stage in config.sft.stages:
        if not stage.steps or trains_something(policy, learner, stage.trains):
            continue
        held = [said for said, freed in _freed(policy, learner) if trains_something(*freed, stage.trains)]
        why = " or ".join(held or [said for said, _ in _freed(policy, learner)])
        raise ValueError(
            f"stage {stage.name} trains {stage.trains!r}, of which no parameter would learn"
            f"{f' under {why}; change that' if why else '; change trains'}, or leave that stage out."
        )


def _freed(policy: Plugin, learner: SftLearner) -> Iterator[tuple[str, tuple[Plugin, SftLearner]]]:
    """Each setting that freezes something, and what it would be without."""
    if learner.lora is not None:
        yield "learner.lora", (policy, replace(learner, lora=None))
    if learner.freeze_vision:
        yield "learner.freeze_vision true", (policy, replace(learner, freeze_vision=False))
    if learner.freeze_projector:
        yield "learner.freeze_projector true", (policy, replace(learner, freeze_projector=None))
    if policy.settings.get("freeze_decoder"):
        yield "policy.freeze_decoder true", (policy.with_settings(freeze_decoder=False), learner)


def _refuse_missing_part(stage: SftStage, policy: Plugin) -> None:
    if stage.trains in (ALL, ALL_BUT_ENCODERS):
        return
    family: Any = policy.load()
    own = family.parts if isinstance(family, PartedPolicy) else ()
    if stage.trains not in own:
        known = ", ".join((ALL, ALL_BUT_ENCODERS, *own))
        raise ValueError(
            f"stage {stage.name} trains {stage.trains!r}, and policy {policy.name} has no such part"
            f"{'' if own else ' (its class names none: it has no `parts`)'}; set trains to one of {known}."
        )
