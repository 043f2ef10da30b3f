"""The released form of boxes with masks, JSON with three added tokens, through supervised training and RL; and what
adapters make of tokens that the tokenizer lacked."""

import json
from pathlib import Path

import pytest
import torch
from in_process import apart, run_here
from ranks import free_port
from rich.console import Console
from safetensors.torch import load_file
from transformers import Qwen3VLForConditionalGeneration

from envs.codecs.json_masks import Codec
from envs.datasets.cutout_scenes import Env
from policies.families.box_decoder import Policy
from policies.settings import TinySizes
from policies.tiny_model import write_untrained
from rl.config.load import load_settings
from rl.config.sft import SftConfig
from rl.sft import run_sft
from rollout.archive.archive import RolloutArchive
from rollout.archive.schema import answer_from_row

CODEC = Codec(coordinates="thousandths")
WRITTEN = ["env.image_size=64", "env.several_share=0", "codec={name: json_masks, coordinates: thousandths}"]
DRAWS = ["policy.name=box_decoder", "policy.mask_cells=32"]
SMALL = "policy.decoder={width: 16, heads: 2, mlp: 32, blocks: 1, frequencies: 4, places: 4}"


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as released ones are: its tokenizer has no tokens for masks, and its embedding rows that nobody uses."""
    folder = tmp_path_factory.mktemp("released")
    sizes = TinySizes(64, 8, 64, 2, 2, 32, 2, 2)
    words = {word for name in Env("train", image_size=64).phrase_words() for word in name.split()}
    signs = [sign for sign in CODEC.signs if sign not in CODEC.words]
    write_untrained(folder, sorted(words), sizes, 0, signs)
    model = Qwen3VLForConditionalGeneration.from_pretrained(folder)
    model.resize_token_embeddings(model.get_input_embeddings().weight.shape[0] + 8, mean_resizing=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[-8:] = 0.01  # all alike
    model.save_pretrained(folder)
    return folder


def teach(config: SftConfig) -> int:
    run_sft(config, Console(quiet=True))
    return 0


def taught(run: Path, checkpoint: Path, *more: str) -> Path:
    few = ["sft.scenes_per_step=8", "sft.evaluate_scenes=8", "learner.threads=1", "max_tokens=48"]
    named = [f"run={run}", f"policy.checkpoint={checkpoint}", SMALL, *WRITTEN, *DRAWS, *few, *more]
    assert apart(teach, load_settings(SftConfig, Path("sft_box_decoder"), named)) == 0
    return run


@pytest.mark.slow
def test_json_with_tokens_for_masks_is_taught_sampled_drawn_scored_and_learned_from(
    released: Path, tmp_path: Path
) -> None:
    stage = "sft.stages=[{name: masks, steps: 120, lr: 5.0e-3, last_lr: 1.0e-3}]"
    run = taught(tmp_path / "taught", released, stage, "sft.evaluate_every=60")
    curve = [line.split("\t") for line in (run / "curve.tsv").read_text().splitlines()]
    losses = [float(dict(zip(curve[0], line, strict=True))["loss"]) for line in curve[1:]]
    assert losses[1] < 0.7 * losses[0]
    vocabulary = Policy(run / "policy", CODEC).processor.tokenizer.get_vocab()
    assert set(CODEC.words) <= vocabulary.keys()
    frozen = ["policy.freeze_decoder=true", f"policy.checkpoint={run / 'policy'}", "sampling.max_tokens=48"]
    warm = ["sampling.temperature=0.7", "groups_per_step=4", "group_size=4", "steps=2"]
    assert apart(run_here, tmp_path / "rl", free_port(), [*WRITTEN, *DRAWS, *frozen, *warm]) == 0
    rows = [row for batch in RolloutArchive(tmp_path / "rl/archive").rollouts() for row in batch.to_pylist()]
    read = [(row, answer_from_row(row)) for row in rows if row["status"] == "ok"]
    assert len(rows) == 2 * 4 * 4 and len(read) >= 4
    for row, answer in read:
        (first, *_) = json.loads(row["text"])
        assert first["mask"] == "".join(CODEC.words) and len(first["bbox_2d"]) == 4
        # Exact outlines of what was drawn, no rectangle of the box.
        assert all((ring == ring.round()).all() for ring in answer.rings_px)
        assert all(instance.score is not None for instance in answer.instances)
    found = [json.loads(line) for line in (tmp_path / "rl/metrics.jsonl").read_text().splitlines()]
    steps = [numbers for numbers in found if "learner/ratio_max" in numbers]
    assert len(steps) == 2
    for numbers in steps:
        assert numbers["learner/sampler_logprob_difference_max"] < 1e-4 and numbers["learner/grad_norm"] > 0


@pytest.mark.slow
def test_beside_adapters_the_rows_of_added_tokens_learn_and_no_others(released: Path, tmp_path: Path) -> None:
    stage = "sft.stages=[{name: masks, steps: 3, lr: 5.0e-3}]"
    lora = ["learner.lora={rank: 2}", "learner.optimizer=adamw", "sft.warmup_steps=1"]
    run = taught(tmp_path / "run", released, stage, *lora)
    name = "model.language_model.embed_tokens.weight"
    before, after = (load_file(each / "model.safetensors")[name] for each in (released, run / "policy"))
    vocabulary = Policy(run / "policy", CODEC).processor.tokenizer.get_vocab()
    added = [vocabulary[word] for word in CODEC.words]
    moved = (before != after).any(1).nonzero()[:, 0].tolist()
    assert moved == sorted(added)
    three = after[added]
    assert min(float((three[j] - three[k]).abs().max()) for j, k in ((0, 1), (0, 2), (1, 2))) > 1e-3
