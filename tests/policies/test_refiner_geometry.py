import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from policies.crops import cut, grown_boxes_px, paste, resized


def mask_of_box(x0: int, y0: int, x1: int, y1: int, size: int = 64) -> torch.Tensor:
    mask = torch.zeros(1, size, size, dtype=torch.bool)
    mask[0, y0:y1, x0:x1] = True
    return mask


def test_a_box_of_20_by_10_pixels_grows_by_5_and_2_and_a_half_on_each_side():
    assert grown_boxes_px(mask_of_box(20, 10, 40, 20), 0.25, 8.0).tolist() == [[15.0, 7.5, 45.0, 22.5]]


def test_a_box_is_clipped_to_the_image_and_a_small_one_is_widened_and_pushed_into_it():
    assert grown_boxes_px(mask_of_box(0, 30, 20, 62), 0.25, 8.0).tolist() == [[0.0, 22.0, 25.0, 64.0]]
    assert grown_boxes_px(mask_of_box(0, 0, 1, 1), 0.25, 8.0).tolist() == [[0.0, 0.0, 8.0, 8.0]]
    assert grown_boxes_px(mask_of_box(30, 63, 32, 64), 0.25, 8.0).tolist() == [[27.0, 56.0, 35.0, 64.0]]
    assert grown_boxes_px(mask_of_box(0, 0, 2, 2, size=6), 0.25, 8.0).tolist() == [[0.0, 0.0, 6.0, 6.0]]


def test_an_empty_mask_gets_the_whole_image():
    assert grown_boxes_px(torch.zeros(1, 5, 7, dtype=torch.bool), 0.25, 2.0).tolist() == [[0.0, 0.0, 7.0, 5.0]]


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 40), columns=st.integers(1, 40), size=st.integers(1, 40))
def test_cutting_the_whole_image_equals_torchs_antialiased_resize(rows, columns, size):
    maps = torch.randn(2, 3, rows, columns, generator=torch.Generator().manual_seed(rows))
    box = torch.tensor([[0.0, 0.0, columns, rows]]).repeat(2, 1)
    resized = functional.interpolate(maps, (size, size), mode="bilinear", antialias=True, align_corners=False)
    torch.testing.assert_close(cut(maps, box, rows, columns, size), resized, atol=1e-4, rtol=1e-4)


@settings(max_examples=40, deadline=None)
@given(
    x0=st.floats(0, 20),
    y0=st.floats(0, 20),
    width=st.floats(1, 12),
    height=st.floats(1, 12),
    cells=st.sampled_from([4, 8]),
)
def test_cutting_a_box_finely_equals_grid_sample_at_the_same_points(x0, y0, width, height, cells):
    maps = torch.randn(1, 2, cells, cells, generator=torch.Generator().manual_seed(cells))
    box = torch.tensor([[x0, y0, x0 + width, y0 + height]])
    theta = torch.tensor([[[width / 32, 0, (2 * x0 + width) / 32 - 1], [0, height / 32, (2 * y0 + height) / 32 - 1]]])
    grid = functional.affine_grid(theta, [1, 2, 16, 16], align_corners=False)
    sampled = functional.grid_sample(maps, grid, padding_mode="border", align_corners=False)
    torch.testing.assert_close(cut(maps, box, 32, 32, 16), sampled, atol=1e-4, rtol=1e-4)


@settings(max_examples=40, deadline=None)
@given(x0=st.integers(0, 16), y0=st.integers(0, 16), seed=st.integers(0, 99))
def test_a_mask_whose_crop_falls_on_the_pixels_is_pasted_back_exactly(x0, y0, seed):
    mask = torch.zeros(1, 64, 64, dtype=torch.bool)
    mask[:, y0 : y0 + 48, x0 : x0 + 48] = torch.rand(48, 48, generator=torch.Generator().manual_seed(seed)) < 0.5
    box = torch.tensor([[x0, y0, x0 + 48, y0 + 48]]).float()
    crop = cut(mask[:, None].float(), box, 64, 64, 48)[:, 0]
    assert torch.equal(paste(crop - 0.5, box, 64, 64), mask)


def test_paste_fills_exactly_the_pixels_whose_centre_is_in_the_box():
    pasted = paste(torch.ones(1, 48, 48), torch.tensor([[10.5, 3.6, 20.5, 9.4]]), 64, 64)
    assert torch.equal(pasted, mask_of_box(10, 4, 20, 9))


def test_a_map_keeps_its_values_at_its_own_size_and_half_of_it_is_the_triangle_mean_of_its_cells():
    maps = torch.arange(4.0).reshape(1, 1, 1, 4).repeat(1, 1, 4, 1)
    assert resized(maps, 4) is maps
    # Cells two wide, triangles four wide: (0 * 3/4 + 1 * 3/4 + 2 * 1/4) / (7/4), and its mirror.
    torch.testing.assert_close(resized(maps, 2)[0, 0, 0], torch.tensor([5 / 7, 16 / 7]))
