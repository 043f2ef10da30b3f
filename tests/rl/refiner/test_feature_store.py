from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from policies.families.base import VisionFeatures
from rl.refiner.data import FeatureStore

IMAGE, TOWER = "0f" * 32, "ab" * 32
BOX = (1.0, 2.5, 11.0, 12.0)


def features(dtype: torch.dtype = torch.float32) -> VisionFeatures:
    generator = torch.Generator().manual_seed(0)
    parts = (torch.randn(1, channels, 3, 5, generator=generator) for channels in (4, 2))
    return VisionFeatures(*(part.to(dtype).float() for part in parts))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_features_come_back_as_float32_with_every_bit_of_the_towers_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    store, given = FeatureStore(tmp_path, TOWER, 0), features(dtype)
    path = store.path(IMAGE)
    store.write(path, given, dtype)
    found = store.read(path)
    for name in ("final", "early"):
        assert vars(found)[name].dtype == torch.float32
        assert torch.equal(vars(found)[name], vars(given)[name])
        assert load_file(path)[name].dtype == dtype


def test_another_image_box_size_tower_or_early_block_is_another_file() -> None:
    store = FeatureStore(Path("features"), TOWER, 0)
    moved = (*BOX[:3], BOX[3] + 1e-9)
    paths = [
        store.path(IMAGE),
        store.path("1e" * 32),
        store.path(IMAGE, BOX, 24),
        store.path(IMAGE, moved, 24),
        store.path(IMAGE, BOX, 48),
        store.path("1e" * 32, BOX, 24),
        FeatureStore(Path("features"), "cd" * 32, 0).path(IMAGE),
        FeatureStore(Path("features"), TOWER, 1).path(IMAGE),
    ]
    assert len(set(paths)) == len(paths)
    assert all(path.is_relative_to("features") for path in paths)
    assert store.path(IMAGE, BOX, 24) == FeatureStore(Path("features"), TOWER, 0).path(IMAGE, BOX, 24)


def test_a_write_that_fails_leaves_what_was_there_and_nothing_half_written_under_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FeatureStore(tmp_path, TOWER, 0)
    path = store.path(IMAGE)

    def torn(tensors: object, partial: Path) -> None:
        partial.write_bytes(b"half")
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("rl.refiner.data.save_file", torn)
        with pytest.raises(OSError, match="No space"):
            store.write(path, features(), torch.float32)
    assert not path.exists()
    store.write(path, features(), torch.float32)
    assert torch.equal(store.read(path).final, features().final)


def test_two_trainings_that_write_the_same_file_at_once_never_share_its_beginnings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Path] = []
    monkeypatch.setattr("rl.refiner.data.save_file", lambda tensors, partial: (begun.append(partial), partial.touch()))
    for process in (11, 12):
        monkeypatch.setattr("os.getpid", lambda process=process: process)
        FeatureStore(tmp_path, TOWER, 0).write(tmp_path / "one.safetensors", features(), torch.float32)
    assert begun[0] != begun[1]
