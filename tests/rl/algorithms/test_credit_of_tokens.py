"""Credit of vertices and instances as advantages of tokens."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from envs.datasets.cutout_scenes import Env
from envs.example import Example, Truth
from policies.families.base import Response
from rl.algorithms.gspo_token import Algorithm
from rl.config.load import load_settings
from rl.config.run import RunConfig
from rl.run.parts import processor_of, run_parts
from rollout.records import Group, Rollout
from rollout.token_places import token_places
from tests.made_run import group_of

HALVES = np.zeros((2, 64, 64), np.bool_)
HALVES[0, :, :16] = True
HALVES[1, :, 48:] = True


def group(texts: list[str], masks: NDArray[np.bool_]) -> Group:
    """Answers of `path_tokens` to a scene whose truth is `masks`."""
    processor = processor_of(run_parts(load_settings(RunConfig, Path("tiny"), ["run=unused"])).policy)
    example: Example = replace(Env("train")[0], truth=Truth(masks))
    rollouts = []
    for k, text in enumerate(texts):
        tokens = processor.answer_tokens(text)
        response = Response(tokens, np.zeros(len(tokens), np.float32), "stop")
        answer = processor.read(response, 64, 64)
        places = token_places(processor, response, text, answer)
        rollouts.append(Rollout(k, response, text, answer, 0, 0, 0.0, {}, 0, k, places))
    return group_of("run", 0, 0, example, tuple(rollouts))


def test_without_credit_no_token_has_an_advantage_of_its_own() -> None:
    asked = group(["0 0 16 64 0 0 32 0 32 32 0 32"], HALVES[:1])
    assert Algorithm().token_advantages([asked], np.array([[0.5]])) is None


@pytest.mark.parametrize("value", [0.8, -0.8])
def test_a_spike_is_blamed_more_and_a_corner_less_while_sign_and_mean_stay(value: float) -> None:
    # The left strip with a spike to the right, between its corners at the right.
    asked = group(["0 0 32 64 0 0 16 0 32 16 16 32 0 32", "none"], HALVES[:1])
    found = Algorithm(vertex_credit=0.5).token_advantages([asked], np.array([[value, -0.2]]))
    assert found is not None
    spiky, empty = found[0]
    assert empty.tolist() == pytest.approx([-0.2] * 2)
    assert spiky.mean() == pytest.approx(value, abs=1e-6) and (np.sign(spiky) == np.sign(value)).all()
    box, spike, end = spiky[:4], spiky[8:10], spiky[-1]
    assert spike.max() == spiky.min() == pytest.approx(value - 0.4) and end == pytest.approx(value)
    assert spiky[4:6].min() > value > spike[0] and len(set(box.tolist())) == 1


def test_of_two_instances_the_false_one_is_blamed() -> None:
    one, wrong = "0 0 16 64 0 0 32 0 32 32 0 32", "20 0 30 64 0 0 32 0 32 32 0 32"
    asked = group([f"{one} ; {wrong}", one], HALVES)
    found = Algorithm(instance_credit=0.5).token_advantages([asked], np.array([[-1.0, 1.0]]))
    assert found is not None
    both, alone = found[0]
    assert both[:12].tolist() == pytest.approx([-0.5] * 12) and both[13:25].tolist() == pytest.approx([-1.5] * 12)
    assert both[12] == both[25] == -1.0  # the sign between them, and the end
    assert alone.tolist() == [1.0] * 13


def test_more_credit_than_an_advantage_holds_is_refused() -> None:
    with pytest.raises(ValueError, match=r"vertex_credit is 0\.7 and instance_credit 0\.4"):
        Algorithm(vertex_credit=0.7, instance_credit=0.4)
