from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from rl.bench import refiner as bench
from rl.bench.refiner import ROLLOUTS, SFT, SINGLE, SYNTHETIC, VARIANTS, RefinerBench

FOUND = {
    "outlines": {0: {"giou": 0.7, "boundary_iou": 0.4, "worse": 0.0, "passes": 0.0}},
    ROLLOUTS: {
        k: {"giou": giou, "boundary_iou": 0.7, "worse": 0.04, "passes": 2.5}
        for k, giou in enumerate((0.85, 0.86, 0.84))
    },
    SYNTHETIC: {
        k: {"giou": giou, "boundary_iou": 0.6, "worse": 0.02, "passes": 2.0}
        for k, giou in enumerate((0.84, 0.84, 0.83))
    },
}


@pytest.fixture
def wanted(tmp_path: Path) -> RefinerBench:
    best = tmp_path / "run" / "checkpoints" / "best-000003"
    (best / "policy").mkdir(parents=True)
    (best / "state.json").write_text('{"format": 1, "step": 3, "giou": 0.5}')
    return RefinerBench(tmp_path / "run", tmp_path / "sft", tmp_path / "out", pairs=70, steps=9, seeds=3, scenes=5)


def test_differences_are_paired_by_seed_and_have_t_intervals_by_hand() -> None:
    # Differences -0.01, -0.02, -0.01: mean -0.04/3, s = 0.01/sqrt(3), half width t(2) s / sqrt(3) = 4.30265 * 0.01/3.
    row = bench.summary(FOUND)[SYNTHETIC]["giou_less_rollouts"]
    assert row.value == pytest.approx(-0.04 / 3)
    assert row.high - row.value == pytest.approx(4.30265 * 0.01 / 3, rel=1e-4)
    assert "giou_less_rollouts" not in bench.summary(FOUND)["outlines"]
    assert bench.differences(FOUND) == [
        "synthetic damage less RL rollouts, paired by seed: gIoU -0.0133 ± 0.0143, boundary IoU -0.1000 ± 0.0000"
    ]


def test_variants_have_one_budget_and_differ_in_what_their_names_say(wanted: RefinerBench) -> None:
    made = {name: wanted.config(name, seed=2) for name in VARIANTS}
    first = made[ROLLOUTS]
    assert len({one.out for one in made.values()}) == len(VARIANTS)
    for one in made.values():
        assert (one.rule, one.training, one.features, one.checkpoint) == (
            first.rule,
            first.training,
            first.features,
            first.checkpoint,
        )
        assert (one.rule.limit, one.training.steps, one.rule.seed, one.training.seed) == (70, 9, 2, 2)
    assert made[SYNTHETIC] == replace(first, out=made[SYNTHETIC].out, damage=made[SYNTHETIC].damage)
    assert (made[SYNTHETIC].damage.share, first.damage.share) == (1.0, 0.0)
    assert made[SFT] == replace(first, out=made[SFT].out, runs=[str(wanted.sft_run)])
    assert made[SINGLE] == replace(first, out=made[SINGLE].out, network=replace(first.network, passes=1))


def test_numbers_of_other_settings_are_refused(wanted: RefinerBench) -> None:
    wanted.out.mkdir()
    (wanted.out / "measured.json").write_text('{"settings": {"steps": "8"}, "scores": {}}')
    with pytest.raises(ValueError, match="give another folder for other settings"):
        bench.bench(wanted, Console(quiet=True))


def test_the_table_fits_80_characters(wanted: RefinerBench, capsys: pytest.CaptureFixture[str]) -> None:
    Console(width=80).print(bench.table(FOUND, wanted))
    shown = capsys.readouterr().out
    assert "0.850 ± 0.025" in shown and "0.700" in shown and "…" not in shown
    assert np.isnan(bench.summary(FOUND)["outlines"]["giou"].low)
