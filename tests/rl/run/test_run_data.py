"""A run goes on with the data that it began with, and says what of it was left out."""

import io
import json
from pathlib import Path

import pytest
from made_coco import annotation, rectangle, small_set
from PIL import Image
from rich.console import Console

from envs.datasets._cutouts import load_cutouts
from envs.plugin import Plugin
from rl.config.load import load_settings
from rl.config.run import RunConfig
from rl.run.data import RunData
from rl.run.folder import RunFolder


def of(folder: Path, annotations: list[dict], *splits: str, **settings: object) -> RunData:
    files = small_set(folder, annotations) | {"train_share": 1.0, **settings}
    return RunData.of(Plugin("envs.datasets", "Env", "coco", files), splits or ("train",))


def cups(*sides: int) -> list[dict]:
    return [annotation(10 + k, k, [rectangle(1, 1, side, 4)]) for k, side in enumerate(sides, 1)]


def test_a_run_does_not_go_on_where_a_mask_was_corrected(tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = load_settings(RunConfig, Path("tiny"), [f"run={run}"])
    RunFolder(run).begin(config, of(tmp_path, cups(4, 5)), resume=False)
    (run / "checkpoints" / "step-000002").mkdir(parents=True)
    RunFolder(run).begin(config, of(tmp_path, cups(4, 5)), resume=True)
    with pytest.raises(ValueError, match=r"^the data of split train is not what .*run began with: a mask, phrase"):
        RunFolder(run).begin(config, of(tmp_path, cups(4, 6)), resume=True)
    assert json.loads((run / "data.json").read_text())["fingerprints"] == of(tmp_path, cups(4, 5)).fingerprints


def test_a_sample_does_not_go_on_where_a_mask_was_corrected(tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = load_settings(RunConfig, Path("tiny"), [f"run={run}"])
    RunFolder(run).begin_sampling(config, of(tmp_path, cups(4, 5)), resume=False)
    (run / "archive").mkdir()
    with pytest.raises(ValueError, match=r"^the data of split train is not what .*run began with"):
        RunFolder(run).begin_sampling(config, of(tmp_path, cups(3, 5)), resume=True)


def test_a_run_from_before_data_was_kept_goes_on_and_keeps_it_from_then_on(tmp_path: Path) -> None:
    data = of(tmp_path, cups(4, 5))
    assert data.changed(tmp_path / "run") == []
    (tmp_path / "run").mkdir()
    data.write(tmp_path / "run")
    assert of(tmp_path, cups(4, 6)).changed(tmp_path / "run") == ["train"]


def test_cutouts_that_were_painted_over_are_other_data(tmp_path: Path) -> None:
    def fingerprint(grey: int) -> str:
        for name in ("apple", "pear", "fig"):
            Image.new("RGBA", (20, 20), (grey, grey, grey, 255)).save(tmp_path / f"{name}.png")
            (tmp_path / f"{name}.txt").write_text(name)
        plugin = Plugin("envs.datasets", "Env", "cutout_scenes", {"folder": str(tmp_path), "held_out_share": 0.0})
        load_cutouts.cache_clear()
        return RunData.of(plugin, ["train"]).fingerprints["train"]

    assert fingerprint(1) == fingerprint(1) != fingerprint(2)


def test_notes_of_several_splits_are_told_once_and_listed_whole(tmp_path: Path) -> None:
    annotations = [*cups(4, 5), *(annotation(90 + k, 1, [], 2) for k in range(9))]
    data = of(tmp_path, annotations, "train", "train")
    console = Console(file=io.StringIO(), width=80)
    data.write(tmp_path)
    data.tell(console, tmp_path)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert said.startswith(
        "data: 9 annotations without a mask (box alone), left out: 90, 91, 92, 93, 94, 95 and 3 more"
    )
    assert "are listed in" in said and said.count("\n") == 2
    [ids] = json.loads((tmp_path / "data.json").read_text())["notes"].values()
    assert ids == [f"{90 + k}" for k in range(9)]


def test_an_env_of_ones_own_that_lacks_a_fingerprint_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "class Env:\n    def __init__(self, split):\n        self.split = split\n\n"
        "    def __len__(self):\n        return 1\n"
    )
    with pytest.raises(ValueError, match=r"env mine lacks something .*all of `Env` in envs/example\.py"):
        RunData.of(Plugin("envs.datasets", "Env", "mine", {}, str(tmp_path / "mine.py")), ["train"])


def test_a_split_without_an_example_is_refused(tmp_path: Path) -> None:
    settings = {"num_scenes": 1, "held_out_share": 0.1}
    assert RunData.of(
        Plugin("envs.datasets", "Env", "cutout_scenes", settings), ["train", "test"]
    ).fingerprints.keys() == {
        "train",
        "test",
    }
    with pytest.raises(ValueError, match='split "validation" has no question'):
        of(tmp_path, cups(4, 5), "train", "validation")
