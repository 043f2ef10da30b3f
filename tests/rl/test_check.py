"""`polytrace check`: a folder is told from its files, and what would ruin a run is an exit status of 1."""

import json
import shutil
from pathlib import Path

import pytest
from moondream_toy import write_toy
from typer.testing import CliRunner

from envs.codecs import path_tokens, point_text
from policies.families.vision_language import Policy
from policies.settings import Asking
from rl.check import check, notes_of
from rl.cli.main import app
from rl.config.load import read_mapping

RUN = CliRunner()


def test_the_embedded_model_under_the_demo_is_told_by_numbers() -> None:
    report = check("tiny", Path("tiny"))
    assert report.problems == [] and report.family == "Qwen3-VL"
    assert (
        report.parameters["all"] == 1_221_152 == report.parameters["vision tower"] + report.parameters["language model"]
    )
    assert report.prompt.replace(" ", "") == "<|vision_start|><|image_pad|><|vision_end|>theleftapple<|answer|>"
    assert report.image_tokens == {"480x640": 54, "2000x3000": 54}
    assert report.end_tokens == ["<|end|>"] and report.engine_class == "Qwen3VLForConditionalGeneration"
    assert report.memory_gib["learner rank"] == pytest.approx(1_221_152 * 16 / 2**30)


def test_a_codec_that_the_model_cannot_write_and_missing_shards_are_problems(tmp_path: Path) -> None:
    result = RUN.invoke(app, ["check", "tiny", "--json"])
    found = json.loads(result.stdout)
    assert result.exit_code == 1 and found["coordinates"] == {"codec": "thousandths", "family": "thousandths"}
    assert [problem[:20] for problem in found["problems"]] == ["codec is point_text,"]
    folder = Path(shutil.copytree("policies/tiny", tmp_path / "model"))
    (folder / "model.safetensors").unlink()
    report = check(str(folder), Path("tiny"))
    assert report.parameters == {} and len(report.problems) == 1 and "holds no weights" in report.problems[0]
    (folder / "config.json").write_text('{"model_type": "florence2"}')
    result = RUN.invoke(app, ["check", str(folder)])
    assert result.exit_code == 1 and "florence2 model" in " ".join(result.output.split())


def test_memory_is_shared_out_as_zero_does(tmp_path: Path) -> None:
    config = tmp_path / "a.yaml"
    # Two bytes of weight, two of gradient, twelve of the optimizer: a half of each from its stage on.
    for stage, bytes_each in ((0, 16), (1, 2 + 2 + 6), (2, 2 + 1 + 6), (3, 1 + 1 + 6)):
        config.write_text(
            f"policy: {{dtype: bfloat16}}\ncodec: {{name: path_tokens}}\n"
            f"learner: {{ranks: 2, zero_stage: {stage}, dtype: {'bfloat16' if stage else 'float32'}}}\n"
        )
        report = check("tiny", config)
        per_weight = report.memory_gib["learner rank"] * 2**30 / report.parameters["all"]
        assert per_weight == pytest.approx(bytes_each), stage
        assert report.memory_gib["worker"] * 2**30 / report.parameters["all"] == pytest.approx(2)


def test_what_deserves_a_look_is_noted_and_nothing_else(tiny_untrained: Path) -> None:
    processor = Policy.make_processor(tiny_untrained, path_tokens.Codec())
    assert notes_of(processor, "float32", "float32") == notes_of(processor, "bfloat16", "bfloat16") == []
    (dtype,) = notes_of(processor, "bfloat16", "float32")
    assert "stored in bfloat16 and policy.dtype is float32" in dtype
    written = Policy.make_processor(tiny_untrained, point_text.Codec(coordinates="unit"))
    (places,) = notes_of(written, None, "float32")
    assert places.startswith("the codec writes places as unit, released models of this family as thousandths")
    large = Policy.make_processor(tiny_untrained, path_tokens.Codec(), Asking(max_pixels=10**7))
    (tokens,) = notes_of(large, None, "float32")
    assert tokens.startswith(f"a photo of 3000x2000 takes {large.image_tokens(2000, 3000)} tokens")


def test_weights_elsewhere_and_a_limit_as_sft_has_it_are_reported(tmp_path: Path) -> None:
    folder = Path(shutil.copytree("policies/tiny", tmp_path / "model"))
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../b.safetensors"}}')
    report = check(str(folder), Path("sft_tiny"))
    assert report.parameters == {} and len(report.problems) == 1 and "names ../b.safetensors" in report.problems[0]
    most = int(read_mapping(Path("sft_tiny"))["max_tokens"] / report.tokens_per_vertex)
    assert report.longest_outline == min(most, 16)  # codec.max_vertices
    assert check(str(folder), Path("sft_tiny"), ["max_tokens=500"]).longest_outline == 16


def test_overrides_change_the_config_and_need_one() -> None:
    alone = check("tiny", Path("tiny")).memory_gib["learner rank"]
    shared = check("tiny", Path("tiny"), ["learner.zero_stage=3", "learner.ranks=4", "learner.average=0"])
    assert shared.memory_gib["learner rank"] == pytest.approx(alone / 4)
    adapted = check("tiny", Path("tiny"), ["learner.lora.rank=2", "learner.average=0"]).memory_gib
    assert adapted["learner rank"] == adapted["worker"] == pytest.approx(alone / 4)  # weights alone
    with pytest.raises(ValueError, match=r"^learner.ranks=4 changes a setting of no config; give the config by --conf"):
        check("tiny", None, ["learner.ranks=4"])


def test_moondream_is_told_by_its_own_words_and_a_grammar_that_it_cannot_follow_is_a_problem(tmp_path: Path) -> None:
    write_toy(tmp_path)
    overrides = ["codec.box_bins=63"]
    report = check(str(tmp_path), Path("gspo_moondream_tiny"), overrides)
    assert report.problems == [] and report.prompt.split()[:2] == ["<|vision_start|>", "<image>"]
    # 16 points of two words, three places of a box, M, Z and the end: 38 over 16.
    assert report.tokens_per_vertex == pytest.approx(2.3, abs=0.15) and report.longest_outline == 16
    (problem,) = check(str(tmp_path), Path("gspo_moondream_tiny"), [*overrides, "sampling.grammar=true"]).problems
    assert problem.startswith("sampling.grammar is true, and Moondream 3 says boxes by heads of their own")
    (problem,) = check(str(tmp_path), None).problems
    assert "set policy.name to moondream, in a config such as gspo_moondream_tiny (--config)" in problem
