"""Policies whose answers are masks, small enough for runs of seconds: one that chooses, and one that draws in boxes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from ranks import CHOOSES, DRAWS, Kind

from policies.families.base import TaughtAnswer

POOLS = ["env.image_size=32", "env.candidates=8", "env.several_share=0.3", "env.max_scale=0.45"]
CHOOSING = [*POOLS, "codec={name: mask_group}", "policy.name=mask_selection", "pool.engine={name: direct}"]
"""Settings of a run over `chooser`."""
_BOXES = ["env.image_size=32", "codec={name: box_masks, box_bins: 64, mask_token: M}", "policy.name=box_decoder"]
DRAWING = [*_BOXES, "policy.mask_cells=16", "policy.freeze_decoder=true"]
"""Settings of a run over `drawer`."""


def chooser(tiny_untrained: Path, folder: Path, kind: Kind = CHOOSES) -> Path:
    """A checkpoint in `folder` whose classifier is not 0, below which nothing would have a gradient."""
    policy = kind.plugin(tiny_untrained).build()
    with torch.no_grad():
        policy.model.selection.classifier.weight.normal_(std=0.5, generator=torch.Generator().manual_seed(5))
    return _saved(policy, folder)


def drawer(tiny_untrained: Path, folder: Path, kind: Kind = DRAWS) -> Path:
    """A checkpoint in `folder` that mostly writes boxes that can be read, any boxes, and draws about what lies inside
    of them."""
    learning = replace(kind, own={**kind.own, "freeze_decoder": False})
    policy, env, rng = learning.plugin(tiny_untrained).build(), kind.env.build(split="train"), np.random.default_rng(0)
    questions = [one.question(env.image(one.image)) for one in (env[index] for index in range(8))]
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-2)
    for _ in range(60):
        taught = []
        for question in questions:
            x0, y0, x1, y1 = (*rng.choice([0, 8, 16], 2), *rng.choice([40, 48, 56], 2))
            inside = np.zeros((1, 32, 32), np.bool_)
            inside[:, y0 // 2 : y1 // 2, x0 // 2 : x1 // 2] = True
            tokens = policy.processor.answer_tokens(f"{x0} {y0} {x1} {y1} M")
            taught.append([TaughtAnswer(question, tokens, inside)])
        rows = policy.processor.supervised_rows(taught)
        optimizer.zero_grad()
        (-policy(rows).sum() / rows.scored_mask.sum()).backward()
        optimizer.step()
    return _saved(policy, folder)


def run_settings(name: str, tiny_untrained: Path, folder: Path) -> list[str]:
    """Settings of a run whose policy `writes` outlines as configs/tiny does, or `chooses` or `draws` masks, by a
    checkpoint that is made in `folder`."""
    if name == "writes":
        return []
    how, make = {"chooses": (CHOOSING, chooser), "draws": (DRAWING, drawer)}[name]
    return [*how, f"policy.checkpoint={make(tiny_untrained, folder)}"]


def _saved(policy: torch.nn.Module, folder: Path) -> Path:
    policy.save(folder)
    policy.processor.save(folder)
    policy.processor.save_config(folder, "float32", tied=True)
    return folder
