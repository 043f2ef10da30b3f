"""Which part of a policy learns, where not all does that its settings let learn."""

from typing import Any

from torch import nn

ALL, ALL_BUT_ENCODERS = "all", "all_but_encoders"
"""Values of SftStage.trains beside the names of parts."""


def encoder_of(policy: Any) -> list[nn.Parameter]:
    """The parameters of a policy's vision tower but those of its projector."""
    joining = {id(each) for module in policy.vision_projector for each in module.parameters()}
    return [each for each in policy.vision_tower.parameters() if id(each) not in joining]


def keep_to(policy: Any, trains: str) -> None:
    """Freeze a policy but for what a stage trains; what is frozen already stays so.

    trains: as SftStage has it; a part is one that the policy has (`parts`).
    """
    if trains == ALL:
        return
    if trains == ALL_BUT_ENCODERS:
        frozen = encoder_of(policy)
    else:
        own = {id(each) for module in policy.part(trains) for each in module.parameters()}
        frozen = [each for each in policy.parameters() if id(each) not in own]
    for each in frozen:
        each.requires_grad_(False)
