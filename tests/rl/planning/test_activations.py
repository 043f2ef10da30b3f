"""What layers keep, measured on layers of the true widths, beside the formulas of a plan."""

from pathlib import Path

import pytest
from released_sizes import RELEASED, write_config_only
from saved_tensors import Shape, measured, peak_bytes

from envs.codecs.path_tokens import Codec
from policies.families._sizes import ModelSizes, model_sizes
from policies.families.vision_language import Policy
from rl.planning.activations import Pass, activations, text_layer_bytes, vision_block_bytes

SMALLEST = "qwen2_5_vl_3b"
NAMES = [
    pytest.param(name, marks=pytest.mark.slow if name == SMALLEST else pytest.mark.long, id=name) for name in RELEASED
]


def sizes_of(folder: Path, name: str, **fewer: int) -> ModelSizes:
    return model_sizes(Policy.make_processor(write_config_only(folder, name, **fewer), Codec()))


@pytest.mark.parametrize("name", NAMES)
def test_what_a_layer_and_a_block_keep_is_within_5_percent_of_the_formula(name: str, tmp_path: Path) -> None:
    shape, sizes = Shape(), sizes_of(tmp_path, name)
    found, least = measured(name, shape), measured(name, shape, checkpointing=True)
    assert found.text_token == pytest.approx(text_layer_bytes(sizes.text, 2), rel=0.05)
    assert found.vision_patch == pytest.approx(vision_block_bytes(sizes.vision, 2), rel=0.05)
    # A layer that is computed again keeps what goes into it.
    assert least.text_token == 2 * sizes.text.width and least.vision_patch == 2 * sizes.vision.width


@pytest.mark.slow
@pytest.mark.parametrize(("checkpointing", "frozen"), [(False, False), (True, True)])
def test_the_peak_of_a_whole_pass_is_within_15_percent_of_the_formula(
    checkpointing: bool, frozen: bool, tmp_path: Path
) -> None:
    shape, sizes = Shape(), sizes_of(tmp_path, SMALLEST, layers=2, blocks=2)
    peak, rows = peak_bytes(SMALLEST, checkpointing, frozen, shape)
    prompt = rows.prompt_tokens.shape[1]
    one = Pass(prompt + shape.answers * shape.tokens, len(rows.pixel_values))
    kept = activations(sizes, one, 2, checkpointing, frozen)
    assert peak == pytest.approx(kept.text + kept.vision + kept.working, rel=0.15)


def test_seven_billion_keep_a_quarter_of_a_megabyte_a_token_and_layer_by_hand(tmp_path: Path) -> None:
    sizes = sizes_of(tmp_path, "qwen2_5_vl_7b")
    # Recomputed, 28 layers keep 7,168 bytes a token, and the one in hand the rest.
    one = Pass(tokens=1000, patches=0)
    # 4 x 18,944 + 4 x 3,584 + 5 x 3,584 + 2 x 512 numbers of two bytes, 2 x 3,584 of four.
    assert text_layer_bytes(sizes.text, 2) == 2 * (75_776 + 14_336 + 17_920 + 1_024) + 28_672 == 246_784
    kept, recomputed = (activations(sizes, one, 2, again, frozen_vision=True) for again in (False, True))
    assert kept.text - recomputed.text == pytest.approx(28 * 1000 * (text_layer_bytes(sizes.text, 2) - 7168))
    assert recomputed.working - kept.working == pytest.approx(1000 * text_layer_bytes(sizes.text, 2))
    assert recomputed.vision == 0 and recomputed.vision_alone == 0
