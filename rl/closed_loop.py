"""A run whose rewards are measured on refined masks: what must fit, checked before anything starts."""

from dataclasses import replace
from pathlib import Path

from envs.plugin import Plugin
from policies.base import PolicyContract
from policies.mask_refiner import MaskRefiner
from rl.rank_settings import LearnerSettings
from rl.reward_settings import RewardParts
from rollout.refined import RefinedSettings


def check_refined(
    refined: RefinedSettings | None, rewards: RewardParts, learner: LearnerSettings, engine: Plugin, policy: Plugin
) -> RefinedSettings | None:
    """`refined` as it travels to the workers, its folder absolute; None where the run has none.

    policy: with the checkpoint that the run begins with; it is built here, on the CPU, to know its vision tower. Raises
    ValueError where a reward needs what is not set, or where refiner and run do not fit; FileNotFoundError where the
    folder holds no refiner.
    """
    if refined is None:
        if rewards.on_refined:
            raise ValueError(
                f"rewards.{rewards.on_refined[0]} is measured on the refined mask, but `refined` is not set; set "
                "refined.refiner to the folder of a refiner (`polytrace refine` trains one), or leave that reward out."
            )
        return None
    if not learner.freeze_vision:
        raise ValueError(
            "refined is set and learner.freeze_vision false, but what the refiner was trained on are the features of "
            "this very vision tower, and a tower that learns drifts away from them; set learner.freeze_vision to true."
        )
    if engine.name == "vllm":
        raise ValueError(
            "refined is set and pool.engine is vllm, whose workers hold no policy that could give the refiner its "
            "features; set pool.engine.name to shared, or leave `refined` out."
        )
    folder = Path(refined.refiner).expanduser().resolve()
    if not folder.is_dir():
        raise FileNotFoundError(
            f"refined.refiner is {refined.refiner}, which is not a folder; give the folder of a refiner, such as "
            "runs/demo/refiner."
        )
    built: PolicyContract = policy.build()
    try:
        MaskRefiner.load(folder, built.vision_checksum())
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"refined.refiner is {refined.refiner}: {error}") from error
    return replace(refined, refiner=str(folder))
