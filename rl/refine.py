"""The refiner of a run: trained on pairs from its archive over the frozen vision features of its best policy."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch.utils.tensorboard import SummaryWriter

from envs.contours import mask_from_rings
from envs.example import Env, ImageRef
from envs.rle import mask_from_rle
from policies.base import VisionFeatures
from policies.mask_refiner import MaskRefiner
from policies.vision_language import Policy
from rl.checkpoints import Checkpoints
from rl.config import RunConfig, RunParts, run_parts
from rl.pairs import Pair, select_pairs
from rl.scores import SceneScore, score_mask
from rl.train_refiner import TrainingPairs, predict_masks, train_refiner
from rollout.archive import RolloutArchive
from rollout.records import Group

_IMAGES_AT_ONCE = 64


def image_features(policy: Policy, images: NDArray[np.uint8]) -> VisionFeatures:
    """Frozen features of images [M, H, W, 3], a few at a time, on the CPU."""
    parts = [
        policy.vision_features(list(images[first : first + _IMAGES_AT_ONCE]))
        for first in range(0, len(images), _IMAGES_AT_ONCE)
    ]
    return VisionFeatures(torch.cat([p.final for p in parts]).cpu(), torch.cat([p.early for p in parts]).cpu())


def training_pairs(pairs: Sequence[Pair], env: Env, policy: Policy) -> TrainingPairs:
    """Arrays of the pairs, each image and its features once. All images must have one size."""
    refs = {p.image_key: ImageRef(p.image_key, p.image_sha256, p.height, p.width) for p in pairs}
    place = {key: k for k, key in enumerate(refs)}
    images = np.stack([env.image(ref) for ref in refs.values()])
    return TrainingPairs(
        images=images,
        features=image_features(policy, images),
        coarse=np.stack([p.coarse_mask for p in pairs]),
        true=np.stack([mask_from_rle(p.true_rle, p.height, p.width) for p in pairs]),
        image_index=np.array([place[p.image_key] for p in pairs], np.int64),
    )


def refine_run(config: RunConfig, parts: RunParts, policy: Policy, console: Console) -> MaskRefiner:
    """Choose pairs from the run's archive, train the refiner, and write it to the run's refiner/ folder."""
    folder, wanted = Path(config.run), config.refiner
    env: Env = parts.env.build(split="train")
    archive = RolloutArchive(folder / "archive")
    with console.status("choosing pairs from the archive"):
        pairs = select_pairs(
            archive, wanted.min_iou, per_example=wanted.per_example, limit=wanted.max_pairs, seed=config.seed
        )
        if not pairs:
            raise ValueError(
                f"no answer in {folder}/archive has an IoU of refiner.min_iou {wanted.min_iou} or more; train "
                "longer, or lower it."
            )
        arrays = training_pairs(pairs, env, policy)
    console.print(f"refiner: {len(pairs)} pairs over {len(arrays.images)} images from the archive")
    writer = SummaryWriter(str(folder / "refiner"))
    refiner = train_refiner(arrays, wanted.network, wanted.training, policy.vision_checksum(), writer)
    writer.close()
    refiner.save(folder / "refiner")
    return refiner


def best_policy(config: RunConfig, parts: RunParts) -> Policy:
    """The best policy of a run; raises FileNotFoundError where it has none."""
    best = Checkpoints(Path(config.run), config.keep_checkpoints).best
    if best is None:
        raise FileNotFoundError(f"{config.run} holds no best checkpoint; train it first (polytrace train).")
    policy: Policy = parts.policy.with_settings(checkpoint=best.folder).build()
    policy.eval()
    return policy


def refine_best(config: RunConfig, console: Console) -> MaskRefiner:
    """Train the refiner of a run over its best policy."""
    parts = run_parts(config)
    return refine_run(config, parts, best_policy(config, parts), console)


def refined_masks(refiner: MaskRefiner, policy: Policy, env: Env, groups: Sequence[Group]) -> NDArray[np.bool_]:
    """[S, H, W] refined masks of the first answer of each group; an empty answer stays empty."""
    refs = [group.example.image for group in groups]
    images = np.stack([env.image(ref) for ref in refs])
    coarse = np.stack(
        [mask_from_rings(g.rollouts[0].answer.rings_px, r.height, r.width) for g, r in zip(groups, refs, strict=True)]
    )
    return predict_masks(refiner, images, image_features(policy, images), coarse).masks.numpy()


def score_refined(masks: NDArray[np.bool_], groups: Sequence[Group]) -> list[SceneScore]:
    """Scores of refined masks [S, H, W]; the status stays that of the answer they came from."""
    return [
        score_mask(mask, group.example.truth, group.rollouts[0].answer.status, group.example.id)
        for mask, group in zip(masks, groups, strict=True)
    ]
