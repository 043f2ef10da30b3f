import csv
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from made_run import group_of, make_run, scored
from omegaconf import OmegaConf
from PIL import Image
from pycocotools import mask as coco
from typer.testing import CliRunner

from envs.datasets.coco import Env as PhotoEnv
from envs.datasets.cutout_scenes import Env
from envs.example import image_sha256
from rl.cli.main import app
from rl.config.load import load_settings
from rl.config.pairs import FORMATS, DamageSettings, PairExport, PairRule
from rl.pairs.export import export_pairs
from rl.pairs.formats import WRITERS
from rl.pairs.shortlist import LEFT_OUT
from rollout.archive.archive import RolloutArchive

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs that share four of their twenty scenes."""
    folder = tmp_path_factory.mktemp("runs")
    return [make_run(folder / "one"), make_run(folder / "two", first=8, seed=1)]


def rows_of(out: Path) -> list[dict]:
    return pq.read_table(out / "pairs.parquet").to_pylist()


def files_of(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def decoded(counts: str, row: dict) -> np.ndarray:
    return coco.decode({"size": [row["height"], row["width"]], "counts": counts}).astype(np.bool_)


def test_masks_scores_boxes_and_provenance_of_the_index_hold_for_another_reader(runs, tmp_path: Path) -> None:
    report = export_pairs(runs, tmp_path / "out", PairExport())
    rows = rows_of(tmp_path / "out")
    assert report.pairs == len(rows) > 40 and report.runs == {
        name: sum(row["run"] == name for row in rows) for name in ("one", "two")
    }
    archived = {
        (run.name, row["step"], row["position"], row["index"]): row
        for run in runs
        for batch in RolloutArchive(run / "archive").rollouts()
        for row in batch.to_pylist()
    }
    for row in rows:
        answer = archived[row["run"], row["step"], row["position"], row["index"]]
        assert (answer["example_id"], answer["iou"]) == (row["example_id"], row["iou"])
        coarse, true = decoded(row["coarse_rle"], row), decoded(row["true_rle"], row)
        assert row["iou"] == (coarse & true).sum() / (coarse | true).sum()
        x, y = np.array(answer["vertices_px"]).reshape(-1, 2).T
        assert row["box_px"] == [x.min(), y.min(), x.max(), y.max()]
    places = [(row["run"], row["step"], row["position"], row["index"]) for row in rows]
    assert len(set(places)) == len(places)
    assert max(sum(row["example_id"] == other["example_id"] for other in rows) for row in rows) == 4


def test_every_format_that_may_be_asked_for_has_a_writer():
    assert tuple(WRITERS) == FORMATS


@pytest.mark.parametrize("format_name", FORMATS)
def test_equal_exports_are_equal_files_and_another_seed_gives_others(runs, tmp_path: Path, format_name: str) -> None:
    damage = DamageSettings(share=0.3)
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        rule = PairRule(per_example=2, seed=seed)
        export_pairs(runs, tmp_path / name, PairExport(rule, damage, format_name, wrong_objects=True))
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    assert rows_of(tmp_path / "one") != rows_of(tmp_path / "three")
    assert not any(name.endswith(".partial") or ".parts" in name for name in files_of(tmp_path / "one"))


def loaders() -> list[tuple[str, str]]:
    """(format, code) of each Python block of docs/pairs.md."""
    text = (ROOT / "docs" / "pairs.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return list(zip(["parquet", "webdataset", "webdataset", "coco", "png"], blocks, strict=True))


@pytest.mark.parametrize("number", range(5))
def test_each_loader_of_the_docs_reads_pictures_and_masks_of_the_last_pair(
    runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    format_name, code = loaders()[number]
    for module in ("datasets", "webdataset"):
        if f"from {module} " in code or f"import {module}\n" in code:
            pytest.importorskip(module)
    assert len(code.strip().splitlines()) <= 12
    export_pairs(runs, tmp_path / "pairs", PairExport(PairRule(limit=9), format=format_name))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    found: dict = {}
    exec(code, found)
    row = rows_of(tmp_path / "pairs")[-1]
    assert image_sha256(np.asarray(found["image"].convert("RGB"))) == row["image_sha256"]
    for name in ("coarse", "true"):
        mask = np.asarray(found[name]) if format_name == "coco" else np.asarray(found[name].convert("L"))
        np.testing.assert_array_equal(mask > 0, decoded(row[f"{name}_rle"], row))


def names_in(shard: Path) -> list[str]:
    with tarfile.open(shard) as tar:
        return tar.getnames()


def test_tar_shards_keep_to_their_size_and_hold_each_pair_once(runs, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("rl.pairs.formats._TAR_END", (1 << 20) - 100_000)  # so that a shard of 1 MiB fills quickly
    export_pairs(runs, tmp_path / "out", PairExport(format="webdataset", shard_mb=1))
    shards = sorted((tmp_path / "out").glob("pairs-*.tar"))
    assert len(shards) > 2 and all(shard.stat().st_size <= 100_000 + 10_240 for shard in shards)
    keys = [Path(name).stem for shard in shards for name in names_in(shard) if name.endswith(".json")]
    assert keys == [f"{k:08d}" for k in range(len(rows_of(tmp_path / "out")))]


def test_a_share_of_damage_is_kept_to_marked_and_within_the_range_of_iou(runs, tmp_path: Path) -> None:
    rule = PairRule(min_iou=0.5, max_iou=0.95)
    plain, third, all_ = (tmp_path / name for name in ("plain", "third", "all"))
    for out, share in ((plain, 0.0), (third, 1 / 3), (all_, 1.0)):
        export_pairs(runs, out, PairExport(rule, DamageSettings(share)))
    assert len(rows_of(plain)) == len(rows_of(third)) == len(rows_of(all_))
    made = [row for row in rows_of(third) if row["damage"]]
    assert len(made) == round(len(rows_of(third)) / 3)
    assert len({row["damage"] for row in made}) == 5
    assert [row["example_id"] for row in rows_of(all_)] == [row["example_id"] for row in rows_of(plain)]
    for before, after in zip(rows_of(plain), rows_of(third), strict=True):
        if not after["damage"]:
            assert before == after
    for row in [*made, *rows_of(all_)]:
        coarse, true = decoded(row["coarse_rle"], row), decoded(row["true_rle"], row)
        assert row["damage"] and 0.5 <= row["iou"] <= 0.95
        assert row["iou"] == (coarse & true).sum() / (coarse | true).sum()


def test_wrong_objects_lie_apart_and_only_where_they_are_asked_for(runs, tmp_path: Path) -> None:
    rule = PairRule(min_iou=0.6, per_example=8, near_duplicate_iou=1.0)
    report = export_pairs(runs, tmp_path / "without", PairExport(rule))
    export_pairs(runs, tmp_path / "with", PairExport(rule, wrong_objects=True))
    assert not (tmp_path / "without" / "wrong_objects").exists()
    assert rows_of(tmp_path / "without") == rows_of(tmp_path / "with")
    assert min(row["iou"] for row in rows_of(tmp_path / "with")) >= 0.6
    apart = rows_of(tmp_path / "with" / "wrong_objects")
    assert max(row["iou"] for row in apart) < 0.6
    assert 0 < len(apart) <= report.left_out["wrong_object"]
    assert (tmp_path / "with" / "wrong_objects" / "data" / "train-00000.parquet").is_file()


def test_no_pair_has_the_image_of_a_held_out_scene_though_a_run_trained_on_it(tmp_path: Path) -> None:
    """The run calls scenes its own whose pixels are in validation: the archive knows no better, the data set does."""
    run, validation = make_run(tmp_path / "run", steps=1), Env("validation", image_size=32, num_scenes=40)
    archive = RolloutArchive(run / "archive")
    stolen = [validation[k] for k in range(2)]
    asked = [
        type(e)(e.id.replace("/validation/", "/train/"), e.image, e.prompt, e.truth, "train", "", "") for e in stolen
    ]
    groups = [
        group_of("run", 1, k, example, scored(example, [[np.array([[4.0, 4], [28, 4], [28, 28], [4, 28]])]] * 2))
        for k, example in enumerate(asked)
    ]
    archive.append(1, groups)
    archive.close()
    report = export_pairs([run], tmp_path / "out", PairExport(PairRule(min_iou=0)))
    assert report.left_out["image_held_out"] == 4
    assert not {row["image_sha256"] for row in rows_of(tmp_path / "out")} & {e.image.sha256 for e in stolen}
    assert [(split.split, split.examples, split.of) for split in report.held_out] == [
        ("validation", 40, 40),
        ("test", 40, 40),
    ]


def test_the_data_card_the_report_and_the_page_count_the_same(runs, tmp_path: Path) -> None:
    report = export_pairs(runs, tmp_path / "out", PairExport(damage=DamageSettings(0.2)))
    card, page = ((tmp_path / "out" / name).read_text() for name in ("README.md", "pairs.html"))
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    rows = rows_of(tmp_path / "out")
    assert written["pairs"] == sum(map(sum, written["strata"])) == len(rows)
    assert written["answers"] == written["pairs"] + sum(written["left_out"].values())
    assert f"{len(rows)} pairs from {report.examples} training examples" in card
    assert f"{round(len(rows) / 5)} of them synthetic" in card
    assert f"| CC-BY-SA-4.0 | OpenMoji 17 scenes | {len(rows)} |" in card
    assert f"| {LEFT_OUT['unparsable']} | {report.left_out['unparsable']} |" in card
    assert page.count("<article") == sum(min(6, sum(row)) for row in report.strata) > 20
    with (tmp_path / "out" / "attribution.csv").open() as lines:
        assert list(csv.reader(lines))[1] == ["CC-BY-SA-4.0", "OpenMoji 17 scenes", str(len(rows))]


def copy_of(run: Path, folder: Path, **changed: object) -> Path:
    """The run under another folder, some lines of its config changed."""
    subprocess.run(["cp", "-r", run, folder], check=True)
    config = OmegaConf.load(folder / "config.yaml")
    OmegaConf.save(OmegaConf.merge(config, changed), folder / "config.yaml")
    return folder


def test_what_cannot_be_exported_is_refused_before_anything_is_written(runs, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=r"keeps none of the 84 answers in one \(.*'wrong_object': 72.*widen the rule"):
        export_pairs(runs[:1], out, PairExport(PairRule(min_iou=1.0)))
    with pytest.raises(ValueError, match="is not empty; give a new folder"):
        export_pairs(runs, runs[0], PairExport())
    with pytest.raises(ValueError, match=r"one/config\.yaml is a file, and no folder"):
        export_pairs(runs, runs[0] / "config.yaml" / "out", PairExport())
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        export_pairs([tmp_path / "elsewhere"], out, PairExport())
    with pytest.raises(ValueError, match="are both called one"):
        export_pairs([runs[0], copy_of(runs[0], tmp_path / "again").rename(tmp_path / "one")], out, PairExport())
    with pytest.raises(ValueError, match=r"3 of 9 steps: it is still being written.*unfinished=true"):
        export_pairs([copy_of(runs[0], tmp_path / "short", steps=9)], out, PairExport())
    (tmp_path / "one" / "archive" / "rollouts" / ".step-00000003.parquet.partial").touch()
    with pytest.raises(ValueError, match="is being written, or was left"):
        export_pairs([tmp_path / "one"], out, PairExport())
    (tmp_path / "one" / "config.yaml").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no config.yaml, which says where its images come from"):
        export_pairs([tmp_path / "one"], out, PairExport())
    assert not out.exists()


def test_an_unfinished_run_is_exported_where_that_is_asked_for(runs, tmp_path: Path) -> None:
    run = copy_of(runs[0], tmp_path / "one", steps=9)
    report = export_pairs([run], tmp_path / "out", PairExport(unfinished=True))
    assert report.answers == 84


def photo_run(folder: Path) -> Path:
    """A finished run over photos: a COCO file of one red and one blue photo of 20 x 16 pixels each."""
    data, shape = folder / "data", [[4, 4, 12, 4, 12, 12, 4, 12]]
    data.mkdir(parents=True)
    for k in range(12):
        Image.fromarray(np.full((16, 20, 3), (k, 20, 200), np.uint8)).save(data / f"{k}.png")
    images = [{"id": k, "file_name": f"{k}.png", "height": 16, "width": 20} for k in range(12)]
    annotations = [
        {
            "id": k,
            "image_id": k,
            "category_id": 1,
            "iscrowd": 0,
            "area": 64,
            "bbox": [4, 4, 8, 8],
            "segmentation": shape,
        }
        for k in range(12)
    ]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "box"}]}
    (data / "instances.json").write_text(json.dumps(content))
    settings = {"annotations": str(data / "instances.json"), "images": str(data)}
    env, square = PhotoEnv("train", **settings), np.array([[4.0, 4], [14, 4], [14, 12], [4, 12]])
    groups = [group_of("run", 0, k, env[k], scored(env[k], [[square]])) for k in range(len(env))]
    RolloutArchive(folder / "run" / "archive").append(0, groups)
    config = {"run": "run", "steps": 1, "env": {"name": "coco", **settings, "decode_all": False}}
    config["evaluation"] = {"final_split": "validation"}
    OmegaConf.save(OmegaConf.create(config), folder / "run" / "config.yaml")
    return folder / "run"


def test_images_that_changed_or_are_gone_are_all_counted_and_named_before_anything_is_written(tmp_path: Path) -> None:
    run = photo_run(tmp_path)
    keys = [row["image_key"] for batch in RolloutArchive(run / "archive").examples() for row in batch.to_pylist()]
    assert export_pairs([run], tmp_path / "whole", PairExport()).pairs == len(keys) >= 4
    Image.fromarray(np.zeros((16, 20, 3), np.uint8)).save(keys[0])
    with pytest.raises(ValueError, match=r"1 images of the chosen pairs .*SHA-256 of the pixels is .*restore"):
        export_pairs([run], tmp_path / "out", PairExport())
    assert not (tmp_path / "out").exists()


def test_an_export_with_other_settings_or_a_finished_one_is_not_gone_on_with(runs, tmp_path: Path) -> None:
    export_pairs(runs, tmp_path / "out", PairExport())
    with pytest.raises(ValueError, match="it holds a finished export"):
        export_pairs(runs, tmp_path / "out", PairExport())
    with pytest.raises(ValueError, match=r"it holds another export: rule.per_example was 4 and is 3"):
        export_pairs(runs, tmp_path / "out", PairExport(PairRule(per_example=3)))
    with pytest.raises(ValueError, match="the last step of run two was 2 and is None"):
        export_pairs(runs[:1], tmp_path / "out", PairExport())


def test_the_shipped_config_says_the_defaults_and_impossible_settings_are_refused() -> None:
    assert load_settings(PairExport, Path("pairs"), ["rule.limit=null"]) == PairExport()
    for override, says in {
        "format=zip": "format is 'zip'; set it to parquet, webdataset, coco or png",
        "shard_mb=0": "shard_mb is 0",
        "damage.share=2": "damage.share is 2",
        "damage.kinds=[blur]": "damage.kinds has 'blur'",
    }.items():
        with pytest.raises(ValueError, match=re.escape(says)):
            load_settings(PairExport, Path("pairs"), [override])
    with pytest.raises(ValueError, match=r"rule.min_iou is 0"):
        load_settings(PairExport, Path("pairs"), ["rule.min_iou=0", "wrong_objects=true"])


def test_the_command_takes_runs_and_settings_and_tells_what_it_kept(runs, tmp_path: Path) -> None:
    arguments = [*map(str, runs), "rule.limit=5", "format=png", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, ["export", "pairs", *arguments])
    assert done.exit_code == 0, done.output
    assert "kept 5 of 168 answers" in " ".join(done.output.split())
    assert "left out, unparsable: 24" in done.output
    assert len(list((tmp_path / "out" / "coarse").glob("*.png"))) == 5


EXPORT = """
import sys
from pathlib import Path
from rl.config.pairs import DamageSettings, PairExport
from rl.pairs.export import export_pairs
import rl.pairs.formats
rl.pairs.formats._TAR_END = (1 << 20) - 60_000
print("ready", flush=True)
settings = PairExport(damage=DamageSettings(0.3), format=sys.argv[1], shard_mb=1, wrong_objects=True)
export_pairs([Path(sys.argv[2]), Path(sys.argv[3])], Path(sys.argv[4]), settings)
"""


def export_process(format_name: str, runs: list[Path], out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", EXPORT, format_name, *map(str, runs), str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.long
@pytest.mark.parametrize("format_name", ["webdataset", "png"])
def test_an_export_killed_at_any_point_goes_on_to_the_very_files_of_one_that_was_not(
    runs, tmp_path: Path, format_name: str
) -> None:
    assert export_process(format_name, runs, tmp_path / "whole").wait() == 0
    expected, out = files_of(tmp_path / "whole"), tmp_path / "killed"
    num_files = len(expected)
    kills, seen = 0, set()
    for wanted in (1, 2, num_files // 3, 2 * num_files // 3, num_files - 3):
        process = export_process(format_name, runs, out)
        while process.poll() is None and len(list(out.rglob("*"))) < wanted:
            time.sleep(0.002)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
        seen.add(len(files_of(out)) if out.exists() else 0)
        if (out / "export.json").exists() and json.loads((out / "export.json").read_text())["finished"]:
            break
    assert kills >= 3 and len(seen) >= 3
    last = export_process(format_name, runs, out)
    last.wait()
    assert files_of(out) == expected
