import copy
from pathlib import Path

import torch

from envs.codecs.path_tokens import Codec
from policies.families.vision_language import Policy
from rl.learner.muon import LR_SHARE, MuonAdamW, is_hidden_matrix


def test_muon_takes_the_hidden_matrices_and_adamw_all_else_each_once(tiny_untrained: Path) -> None:
    policy = Policy(tiny_untrained, Codec())
    matrices, others = (group["params"] for group in MuonAdamW(policy.named_parameters(), 0.01).param_groups)
    assert {id(p) for p in matrices} | {id(p) for p in others} == {id(p) for p in policy.parameters()}
    assert len(matrices) + len(others) == len(list(policy.parameters()))
    assert all(p.ndim == 2 for p in matrices)
    embeddings = policy.model.get_input_embeddings().weight, policy.model.model.visual.pos_embed.weight
    assert all(any(p is embedding for p in others) for embedding in embeddings)
    assert not is_hidden_matrix("model.lm_head.weight", embeddings[0])


def test_a_step_is_that_of_both_optimizers_and_a_loaded_state_goes_on_bit_for_bit() -> None:
    def network() -> torch.nn.Module:
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2, bias=False))

    def steps(net: torch.nn.Module, optimizers: list[torch.optim.Optimizer], num: int) -> None:
        for k in range(num):
            net.zero_grad()
            net(torch.arange(4.0) + k).square().sum().backward()
            for optimizer in optimizers:
                optimizer.step()

    one, other, resumed = network(), network(), network()
    both = MuonAdamW(one.named_parameters(), weight_decay=0.1)
    for group in both.param_groups:
        group["lr"] = 0.3 * group[LR_SHARE]
    apart = [
        torch.optim.Muon([other[0].weight, other[1].weight], lr=0.3, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([other[0].bias], lr=0.1, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    steps(one, [both], 2)
    steps(other, apart, 2)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    resumed.load_state_dict(one.state_dict())
    again = MuonAdamW(resumed.named_parameters(), weight_decay=0.1)
    again.load_state_dict(copy.deepcopy(both.state_dict()))
    steps(one, [both], 2)
    steps(resumed, [again], 2)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), resumed.parameters(), strict=True))
