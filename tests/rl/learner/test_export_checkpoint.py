"""Exports of real ranks' files against what the ranks themselves write."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ranks import LEARNER, Session, batch, run
from safetensors.torch import load_file
from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration

from policies.settings import LoraSettings
from rl.config.learner import LearnerSettings
from rl.config.load import load_settings, save_settings
from rl.config.run import RunConfig
from rl.learner.export import export_checkpoint
from rl.run.checkpoints import Checkpoints, Position

LORA = LoraSettings(rank=3, alpha=8.0)
KINDS = {
    "plain": replace(LEARNER, zero_stage=0),
    "averaged": replace(LEARNER, zero_stage=1, average=0.9),
    "adapters": replace(LEARNER, zero_stage=2, lora=LORA),
    "sharded": replace(LEARNER, zero_stage=3),
    "sharded adapters": replace(LEARNER, zero_stage=3, lora=LORA),
}
TWO_RANKS = {
    "two, plain": replace(LEARNER, zero_stage=1),
    "two, sharded": replace(LEARNER, zero_stage=3),
    "two, sharded adapters": replace(LEARNER, zero_stage=3, lora=LORA),
}


class Written:
    """Ranks that have written already."""

    def __init__(self, learner: Path, policy: Path) -> None:
        self.learner, self.policy = learner, policy

    def save(self, folder: Path, tag: str) -> None:
        self.learner.rename(folder / tag)

    def load(self, folder: Path, tag: str) -> None:
        raise AssertionError("an export loads no learner")

    def save_policy(self, folder: Path) -> None:
        self.policy.rename(folder)


def config_of(folder: Path, checkpoint: Path, learner: LearnerSettings) -> RunConfig:
    overrides = [
        f"run={folder}",
        f"policy.checkpoint={checkpoint}",
        "learner.micro_groups=2",
        "groups_per_step=4",
        f"policy.dtype={learner.dtype}",
    ]
    return replace(load_settings(RunConfig, Path("tiny"), overrides), learner=learner)


def export_equals_the_policy_of_the_ranks(checkpoint: Path, tmp_path: Path, ranks: int, kinds: dict) -> None:
    steps = [batch(checkpoint, seed=0)]
    ended = [
        Session(each, steps, save=tmp_path / name / "learner", policy=tmp_path / name / "policy")
        for name, each in kinds.items()
    ]
    run(checkpoint, ended, ranks=ranks)
    for name, learner in kinds.items():
        folder = tmp_path / name
        expected = load_file(folder / "policy/model.safetensors")
        Checkpoints(folder, 2).save(Written(folder / "learner", folder), Position(1, 4, 1, ranks, learner.zero_stage))
        assert export_checkpoint(config_of(folder, checkpoint, learner), tmp_path / name / "out") == 1
        found = load_file(folder / "out/model.safetensors")
        assert found.keys() == expected.keys() == load_file(checkpoint / "model.safetensors").keys(), name
        assert all(found[key].dtype == expected[key].dtype for key in found), name
        worst = max(float((found[key].float() - expected[key].float()).abs().max()) for key in found)
        assert worst == 0, (name, worst)
        moved = load_file(checkpoint / "model.safetensors")
        assert max(float((found[key].float() - moved[key].float()).abs().max()) for key in found) > 1e-4, name


@pytest.mark.slow
def test_an_export_holds_the_weights_that_the_ranks_hand_out_bit_for_bit(tiny_untrained: Path, tmp_path: Path) -> None:
    export_equals_the_policy_of_the_ranks(tiny_untrained, tmp_path, 1, KINDS)
    model = Qwen3VLForConditionalGeneration.from_pretrained(tmp_path / "sharded adapters/out")
    assert not [name for name, _ in model.named_parameters() if "lora" in name or "base_layer" in name]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "plain/out")
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(tiny_untrained).get_vocab()


@pytest.mark.long
def test_an_export_of_two_ranks_and_of_bfloat16_is_what_the_ranks_hand_out(
    tiny_untrained: Path, tmp_path: Path
) -> None:
    export_equals_the_policy_of_the_ranks(tiny_untrained, tmp_path, 2, TWO_RANKS)
    bfloat16 = {
        f"bfloat16, stage {stage}": replace(LEARNER, dtype="bfloat16", zero_stage=stage) for stage in (0, 1, 2, 3)
    }
    checkpoint = tmp_path / "bfloat16"
    Qwen3VLForConditionalGeneration.from_pretrained(tiny_untrained, dtype=torch.bfloat16).save_pretrained(checkpoint)
    for file in tiny_untrained.iterdir():
        if not (checkpoint / file.name).exists():
            (checkpoint / file.name).write_bytes(file.read_bytes())
    export_equals_the_policy_of_the_ranks(checkpoint, tmp_path, 1, bfloat16)


def polytrace(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [
        sys.executable,
        "-c",
        "from rl.cli.main import main; main()",
        "export",
        "checkpoint",
        *map(str, arguments),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_the_best_policy_is_exported_as_it_is_and_what_cannot_be_exported_is_refused(
    tiny_untrained: Path, tmp_path: Path
) -> None:
    folder, out = tmp_path / "run", tmp_path / "out"
    config = config_of(folder, tiny_untrained, LEARNER)
    with pytest.raises(FileNotFoundError, match="holds no checkpoint; give the folder of a run"):
        export_checkpoint(config, out)
    with pytest.raises(FileNotFoundError, match="holds no best policy"):
        export_checkpoint(config, out, best=True)
    for source in ("policy", "learner"):
        (tmp_path / source).mkdir()
        (tmp_path / source / "model.safetensors").write_bytes((tiny_untrained / "model.safetensors").read_bytes())
    checkpoints = Checkpoints(folder, 2)
    checkpoints.save_best(Written(tmp_path / "learner", tmp_path / "policy"), 3, giou=0.5)
    checkpoints.save(Written(tmp_path / "learner", tmp_path), Position(4, 16, 4, 1, 0))
    save_settings(config, folder / "config.yaml")
    done = polytrace(folder, "--out", out, "--best")
    assert done.returncode == 0 and "policy of step 3" in done.stdout, done.stderr
    assert (out / "model.safetensors").read_bytes() == (tiny_untrained / "model.safetensors").read_bytes()
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 7; there are 4\."):
        export_checkpoint(config, tmp_path / "other", step=7)
    before = json.dumps(sorted(path.name for path in out.iterdir()))
    with pytest.raises(FileExistsError, match="holds something already"):
        export_checkpoint(config, out)
    assert json.dumps(sorted(path.name for path in out.iterdir())) == before
    (folder / "checkpoints/step-000004/learner/model.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="is 3 bytes long"):
        export_checkpoint(config, tmp_path / "other")
    assert not list(tmp_path.glob("other*"))
    with pytest.raises(ValueError, match=r"model\.safetensors is a file, and no folder"):
        export_checkpoint(config, out / "model.safetensors" / "deep", best=True)
