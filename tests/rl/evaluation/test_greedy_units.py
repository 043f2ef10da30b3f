from pathlib import Path

import pytest

from rl.config.load import load_settings
from rl.config.run import RunConfig
from rl.evaluation.answers import greedy_units


@pytest.mark.parametrize(("gpus", "sizes"), [(0, [64, 64, 2]), (1, [16] * 8 + [2]), (0.5, [16] * 8 + [2])])
def test_on_a_card_an_evaluation_asks_as_many_scenes_at_once_as_training_and_on_cpus_sixty_four(
    gpus: float, sizes: list[int]
) -> None:
    overrides = ["run=unused", "groups_per_unit=16", f"pool.gpus_per_worker={gpus}"]
    units = list(greedy_units(load_settings(RunConfig, Path("tiny"), overrides), "validation", 130))
    assert [len(unit.indices) for unit in units] == sizes
    assert [index for unit in units for index in unit.indices] == list(range(130))
    assert {(unit.group_size, unit.sampling.temperature) for unit in units} == {(1, 0.0)}
