"""One copy of the weights for all ranks: rank 0 has read them, the others have a model without, and receive.

Under ZeRO-3 they come a bucket at a time, of which each rank keeps its share, so that no rank but the first ever holds
a whole model.
"""

import torch
from torch import nn

from policies.weights import in_buckets
from rl.config.learner import TrainingSettings
from rl.learner.engine import deepspeed, engine_config


def share_weights(policy: nn.Module, settings: TrainingSettings) -> None:
    """Give every rank the weights and buffers of rank 0, or under ZeRO-3 its share of them.

    policy: with weights on rank 0, on the meta device elsewhere. `join` comes first; all ranks call it.
    """
    device = torch.device(deepspeed.get_accelerator().current_device_name())
    if torch.distributed.get_world_size() == 1:
        return
    if settings.zero_stage == 3:
        for part in in_buckets(list(policy.named_parameters())):
            held = fill_empty(policy, device, {id(parameter) for _, parameter in part})
            own = [held.get(id(parameter), parameter) for _, parameter in part]
            # Broadcasts each parameter from rank 0 and keeps this rank's share.
            deepspeed.zero.Init(module=nn.ParameterList(own), config_dict_or_path=engine_config(settings))
    else:
        fill_empty(policy, device)  # the engine broadcasts them
    for module in policy.modules():
        for name, buffer in module.named_buffers(recurse=False):
            received = torch.empty_like(buffer, device=device) if buffer.is_meta else buffer.to(device)
            torch.distributed.broadcast(received, 0)
            module._buffers[name] = received


def fill_empty(network: nn.Module, device: torch.device, only: set[int] | None = None) -> dict[int, nn.Parameter]:
    """Put uninitialised parameters in the place of those on the meta device; what is shared stays shared.

    only: `id` of the parameters to replace; None for all. Returns the new ones by the `id` of the old.
    """
    held: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}  # the old ones too, since an id is free once they are gone
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if not parameter.is_meta or (only is not None and id(parameter) not in only):
                continue
            if id(parameter) not in held:
                empty = torch.empty_like(parameter, device=device)
                held[id(parameter)] = parameter, nn.Parameter(empty, parameter.requires_grad)
            module._parameters[name] = held[id(parameter)][1]
    return {key: new for key, (_, new) in held.items()}
