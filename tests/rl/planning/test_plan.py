"""`polytrace plan`: memory and seconds by hand, what a card too small is told, and shipped configs that fit."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from released_sizes import (
    LLAVA_PARAMETERS,
    RELEASED,
    write_config_only,
    write_kimi_vl_config_only,
    write_llava_config_only,
)
from transformers import Dinov2Config, Dinov2Model, LlavaConfig, LlavaForConditionalGeneration
from typer.testing import CliRunner

from policies.decoders import box_guided
from policies.decoders.box_guided import BoxGuidedDecoder, DecoderSizes, Seen
from policies.selection.head import SelectionHead, mask_features
from policies.settings import LoraSettings
from rl.cli.main import app
from rl.cli.options import run_settings
from rl.config.load import shipped_configs
from rl.config.run import num_gpus
from rl.plan import Look, Plan, machines_for, plan, small_cards_note
from rl.planning.cards import CARDS, Machines, card_named
from rl.planning.job import Asked, Job
from rl.planning.memory import cache_bytes, rank_memory, worker_memory
from rl.planning.outlook import total
from rl.planning.seconds import (
    drawing_operations,
    learning_seconds,
    text_operations,
    traffic_bytes,
    vision_operations,
)

RUN = CliRunner()
MODEL_OF = {
    "gspo_polygons": "qwen2_5_vl_7b",
    "presets/qwen2_5_vl": "qwen2_5_vl_7b",
    "presets/simpleseg_qwen2_5_vl": "qwen2_5_vl_7b",
    "presets/qwen3_vl": "qwen3_vl_4b",
    "presets/simpleseg_kimi_vl": "kimi_vl_a3b",
    "presets/ras_llava_1_5_7b": "llava_1_5_7b",
    "presets/qwen3_vl_seg_4b": "qwen3_vl_4b",
} | {
    f"presets/{name}_{cards}gpu": name
    for name in ("qwen2_5_vl_3b", "qwen2_5_vl_7b", "qwen3_vl_8b")
    for cards in (1, 8, 64)
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name in RELEASED:
        write_config_only(folder / name, name)
    write_kimi_vl_config_only(folder / "kimi_vl_a3b")
    write_llava_config_only(folder / "llava_1_5_7b")
    return folder


def planned(models: Path, config: str, *overrides: str, model: str = "qwen2_5_vl_7b", look: Look | None = None) -> Plan:
    settings = run_settings(Path(config), [f"policy.checkpoint={models / model}", *overrides])
    return plan(settings, machines_for(settings, CARDS["h100"], None, 8, 400.0, 0.35), look or Look())


BARE = ("learner.gradient_checkpointing=false", "learner.freeze_vision=false", "learner.zero_stage=3")
BARE += ("learner.ranks=4", "pool.workers=4", "learner.token_budget=null", "learner.patch_budget=null")
BARE += ("learner.micro_groups=1", "pool.staleness=0", "groups_per_unit=4", "sampling.max_tokens=300")


@pytest.fixture(scope="module")
def job(models: Path) -> Job:
    """7B on eight cards: 64 groups of 8 answers of 300 tokens, images of 1,360 tokens, nothing computed again."""
    found = planned(models, "gspo_polygons", *BARE).job
    return replace(found, asked=Asked(prompt=1400, image=1360, patches=5440, answer=300.0))


@pytest.mark.parametrize("name", RELEASED)
def test_parameters_counted_without_weights_are_those_of_the_released_files(name: str, models: Path) -> None:
    counts = planned(models, "gspo_polygons", model=name).job.sizes.parameters
    assert counts.all == RELEASED[name].parameters
    assert counts.tower + counts.layers + counts.embedding + counts.head == counts.all
    assert (counts.head == 0) == RELEASED[name].tied


def test_what_learns_leaves_out_what_is_frozen(job: Job, models: Path) -> None:
    counts, learner = job.sizes.parameters, job.config.learner
    assert counts.trained(learner) == 8_292_166_656
    assert counts.trained(replace(learner, freeze_vision=True)) == 8_292_166_656 - 676_550_144
    assert counts.trained(replace(learner, freeze_vision=True, freeze_projector=False)) == counts.all - 631_975_680
    lora = replace(learner, lora=LoraSettings(rank=64), freeze_vision=False)
    assert counts.trained(lora) == 0  # no adapters were asked for when the model was measured
    adapted = planned(models, "gspo_polygons", *BARE, "learner.lora={rank: 64}").job
    # 28 layers; q and o 3584 + 3584, k and v 3584 + 512, gate and up 3584 + 18944, down 18944 + 3584.
    assert adapted.trained == 64 * 28 * (2 * 7168 + 2 * 4096 + 3 * 22528)


def test_a_rank_without_recomputation_is_out_of_memory_by_hand(job: Job) -> None:
    memory = rank_memory(job)
    parts = {part.name: part.amount for part in memory.parts}
    assert parts["weights"] == parts["gradients"] == pytest.approx(8.292166656e9 * 2 / 4)
    assert parts["optimizer states"] == pytest.approx(8.292166656e9 * 12 / 4)
    kept = parts["activations, text"] + parts["activations, vision"]
    # 28 layers x 3,800 tokens x some 245 KB, 32 blocks x 5,440 patches x some 66 KB, and what is beside them.
    assert 37.5e9 <= kept <= 40e9
    assert memory.total > memory.room and memory.moment == "a backward pass"
    again = rank_memory(
        replace(job, config=replace(job.config, learner=replace(job.config.learner, gradient_checkpointing=True)))
    )
    assert again.fits and memory.total - again.total > 32e9


def test_zero_shares_out_states_and_offloading_takes_them_off_the_card(job: Job) -> None:
    def states(**learner: object) -> float:
        config = replace(job.config, learner=replace(job.config.learner, **learner))  # type: ignore[arg-type]
        parts = {part.name: part.amount for part in rank_memory(replace(job, config=config)).parts}
        return (parts["weights"] + parts["gradients"] + parts["optimizer states"]) / 8.292166656e9

    for stage, bytes_each in ((0, 16), (1, 2 + 2 + 3), (2, 2 + 0.5 + 3), (3, 0.5 + 0.5 + 3)):
        assert states(zero_stage=stage) == pytest.approx(bytes_each), stage
    assert states(offload_optimizer=True) == pytest.approx(1.0)


def test_a_worker_holds_weights_and_keys_and_values_by_hand(job: Job) -> None:
    assert cache_bytes(job) == 2 * 28 * 4 * 128 * 2 == 57_344
    decoding = worker_memory(replace(job, asked=replace(job.asked, patches=64)))
    parts = {part.name: part.amount for part in decoding.parts}
    assert decoding.moment.startswith("decoding") and parts["weights"] == 8_292_166_656 * 2
    assert parts["keys and values"] == pytest.approx(1.75 * 57_344 * (4 * 1400 + 32 * 300))
    encoding = worker_memory(job)  # one block of the tower over four images of 5,440 patches outweighs the answers
    assert encoding.moment == "encoding prompts" and encoding.total > decoding.total
    vllm = replace(job, config=replace(job.config, pool=replace(job.config.pool, engine={"name": "vllm"})))
    assert worker_memory(vllm).total == pytest.approx(0.85 * 80e9)


def test_operations_and_traffic_of_a_step_by_hand(job: Job) -> None:
    counts = job.sizes.parameters
    tokens, scored = 3800, 2400
    pairs = 1400**2 / 2 + 2400 * (1400 + 150)
    group = 2 * counts.layers * tokens + 2 * counts.head * scored + 4 * 28 * 3584 * pairs
    assert text_operations(job) == pytest.approx(64 * group)
    # Four blocks see 5,440 patches, the others windows of 64.
    assert vision_operations(job) == pytest.approx(64 * 5440 * (2 * counts.tower + 4 * 1280 * (4 * 5440 + 28 * 64)))
    # 16 groups a rank, one in each pass: 16 passes of two gathers and a gradient each, 12 of old log-probabilities.
    assert traffic_bytes(job) == pytest.approx(16.584333312e9 * (16 * 3 + 12) * 3 / 4)
    learning = {part.name: part.amount for part in learning_seconds(job)}
    reached = 0.35 * 989e12 * 4
    assert learning["learning: language model"] == pytest.approx(64 * group * 3.75 / reached)
    assert learning["learning: traffic not hidden"] == 0.0


@pytest.mark.parametrize("config", MODEL_OF)
def test_a_shipped_config_fits_the_cards_that_it_names(config: str, models: Path) -> None:
    found = planned(models, config, model=MODEL_OF[config])
    assert found.problems == [] and found.now.fits and found.to_fit is None
    cards = 8 if "gpu" not in config else int(config.rsplit("_", 1)[1].removesuffix("gpu"))
    assert num_gpus(found.job.config) == cards == found.job.cards_used


def test_every_preset_that_runs_on_cards_is_among_them() -> None:
    presets = {f"presets/{name}" for name in shipped_configs("presets") if not name.startswith("sft_")}
    assert presets - set(MODEL_OF) == set()


def test_a_card_too_small_is_exit_status_1_with_the_arithmetic_and_settings_that_fit(models: Path) -> None:
    where = f"policy.checkpoint={models / 'qwen2_5_vl_7b'}"
    result = RUN.invoke(app, ["plan", "gspo_polygons", where, "--gpu-gb", "40"])
    assert result.exit_code == 1
    told = " ".join(result.output.split())
    assert "PROBLEM: a learner rank does not fit H100 SXM 40 GB" in told and "of 38.0 GB" in told
    (line,) = [line for line in result.output.splitlines() if line.startswith("fits with: ")]
    overrides = line.removeprefix("fits with: ").partition(" (")[0].split()
    result = RUN.invoke(app, ["plan", "gspo_polygons", where, *overrides, "--gpu-gb", "40", "--json"])
    assert result.exit_code == 0 and json.loads(result.stdout)["fits"] is True


def test_what_makes_a_step_faster_is_reckoned_and_its_settings_are_accepted(models: Path) -> None:
    found = planned(models, "presets/qwen2_5_vl")
    assert found.to_save_time and found.to_save_time[0].after.seconds < 0.95 * found.now.seconds
    for change in found.to_save_time:
        if "pool.engine" in change.settings:
            continue  # vLLM's own settings are no override of one word
        again = planned(models, "presets/qwen2_5_vl", *change.overrides.split())
        assert again.now.seconds == pytest.approx(change.after.seconds), change.overrides


def test_too_few_cards_and_wrong_options_are_refused_with_what_to_do(models: Path) -> None:
    where = f"policy.checkpoint={models / 'qwen2_5_vl_7b'}"
    result = RUN.invoke(app, ["plan", "gspo_polygons", where, "--gpus", "4"])
    told = " ".join(result.output.split())
    assert result.exit_code == 1 and "learner.ranks 4 x 1 + pool.workers 4 x 1 = 8 cards, and --gpus is 4" in told
    assert "lower learner.ranks and pool.workers" in told
    assert "faster:" not in told and "fits with:" not in told  # of cards that are not there
    for options, message in (
        (["--image", "1x200000"], "--image is 1x200000, and one side is more than 200 times the other"),
        (["--gpu", "h1000"], "did you mean h100? Known: h100, h200, a100, l40s, rtx4090"),
        (["--gpu-gb", "-1"], "--gpu-gb is -1"),
        (["--mfu", "35"], "--mfu is 35"),
        (["--image", "480"], "--image is '480'"),
        (["--answer-tokens", "4000"], "--answer-tokens is 4000 and sampling.max_tokens 512"),
        (["learner.gpus_per_rnk=1"], "did you mean learner.gpus_per_rank?"),
    ):
        result = RUN.invoke(app, ["plan", "gspo_polygons", where, *options])
        assert isinstance(result.exception, ValueError) and message in str(result.exception), options
    result = RUN.invoke(app, ["plan", "gspo_polygons"])
    assert isinstance(result.exception, FileNotFoundError) and "holds no config.json" in str(result.exception)
    result = RUN.invoke(app, ["plan", "tiny"])
    assert isinstance(result.exception, ValueError) and "learner.gpus_per_rank is 0" in str(result.exception)


def test_the_arithmetic_that_is_shown_comes_to_the_number_beside_it(models: Path) -> None:
    shown = {part.name: part for part in planned(models, "gspo_polygons").now.worker.parts}
    cache, logits = shown["keys and values"], shown["logits"]
    found = re.fullmatch(r"([\d.]+) x ([\d,]+) B x \((\d+) prompts of ([\d,]+), (\d+) answers of ([\d,]+)\)", cache.how)
    assert found is not None, cache.how
    factor, size, prompts, prompt, answers, answer = (float(text.replace(",", "")) for text in found.groups())
    assert factor * size * (prompts * prompt + answers * answer) == pytest.approx(cache.amount)
    found = re.fullmatch(r"(\d+) answers x ([\d,]+) x (\d+) B", logits.how)
    assert found is not None, logits.how
    assert np.prod([float(text.replace(",", "")) for text in found.groups()]) == pytest.approx(logits.amount)


def test_several_machines_talk_at_the_speed_of_their_network() -> None:
    machines = Machines(card_named("H100"), 64, node_cards=8, network_gbit=400)
    assert machines.link(8) == 450e9 and machines.link(9) == 50e9
    assert card_named("RTX 4090").memory == 24e9 and card_named("h100", 94).memory == 94e9


def test_answers_asked_for_ahead_hide_the_shorter_phase(models: Path) -> None:
    serial = planned(models, "presets/qwen2_5_vl").now
    ahead = planned(models, "presets/qwen2_5_vl", "pool.staleness=1").now
    shorter = min(total(serial.learning), total(serial.sampling))
    assert serial.seconds - ahead.seconds == pytest.approx(shorter)


def test_a_run_on_cards_too_small_is_told_so_before_it_starts(models: Path) -> None:
    settings = run_settings(Path("gspo_polygons"), [f"policy.checkpoint={models / 'qwen2_5_vl_7b'}"])
    assert small_cards_note(settings, 85_000_000_000) is None
    assert small_cards_note(settings, None) is None
    note = small_cards_note(settings, 40_000_000_000)
    assert note is not None and "a learner rank does not fit a card of 40.0 GB" in note and "of 38.0 GB" in note
    assert small_cards_note(run_settings(Path("tiny"), []), 40_000_000_000) is None


def test_a_token_meets_the_experts_that_it_goes_to_and_leaves_one_latent_a_layer(models: Path) -> None:
    found = planned(models, "presets/simpleseg_kimi_vl", model="kimi_vl_a3b").job
    # Per layer: queries, latents, keys and values of them, output; one dense layer, and 26 of 6 experts and 2 shared.
    attention = 2048 * 16 * 192 + 2048 * 576 + 512 * 16 * 256 + 16 * 128 * 2048
    met = 27 * attention + 3 * 2048 * 11264 + 26 * 3 * 2048 * 1408 * (6 + 2)
    counts = found.sizes.parameters
    assert counts.layers - counts.idle == pytest.approx(met, rel=2e-3) and counts.layers > 6 * met
    assert cache_bytes(found) == 27 * (2 * 512 + 64) * 2
    without = replace(found, sizes=replace(found.sizes, parameters=replace(counts, idle=0)))
    assert text_operations(without) > 5 * text_operations(found)


@pytest.mark.parametrize(("config", "listed"), [("gspo_groups", 1 + 12), ("gspo_groups_written", 1 + 12 * 2)])
def test_a_plan_of_choosing_counts_candidates_and_what_makes_their_tokens(
    models: Path, config: str, listed: int
) -> None:
    more = ("learner.ranks=1", "learner.gpus_per_rank=1", "pool.workers=1", "pool.gpus_per_worker=1")
    found = planned(models, config, *more, model="qwen3_vl_4b", look=Look(image=(480, 640)))
    plain = planned(models, "gspo_polygons", *more, model="qwen3_vl_4b", look=Look(image=(480, 640)))
    held = found.job.sizes.parameters
    # Norm, two layers, prefix and, where it judges, another for references and a classifier; the tower gives 2560
    # channels, as wide as the model.
    wide = 2560 + 32 + 1
    judging = 2560 + 2561 if listed == 13 else 0
    assert held.selection == 2 * wide + (wide + 1) * 2560 + (2560 + 1) * 2560 + 2560 + judging
    adapted = planned(models, config, *more, "learner.lora={rank: 8}", "learner.average=0", model="qwen3_vl_4b").job
    counts = adapted.sizes.parameters
    # What makes mask tokens learns whole beside adapters of rank 8 on the seven maps of each of 36 layers.
    assert adapted.trained == held.selection + counts.adapters
    assert counts.adapters == 8 * 36 * (2 * (2560 + 4096) + 2 * (2560 + 1024) + 3 * (2560 + 9728))
    assert held.all - held.selection == plain.job.sizes.parameters.all
    assert plain.job.sizes.parameters.selection == 0
    assert found.job.asked.image == plain.job.asked.image
    assert 0 < found.job.asked.prompt - found.job.asked.image - listed < 40


def test_choosing_over_llava_1_5_at_its_released_size_is_counted_part_by_part(models: Path) -> None:
    job = planned(models, "presets/ras_llava_1_5_7b", model="llava_1_5_7b").job
    counts, wide = job.sizes.parameters, 1024 + 32 + 1  # a patch's state, the code of its place and its size
    assert counts.all - counts.selection == LLAVA_PARAMETERS
    assert counts.projector == 1024 * 4096 + 4096 + 4096 * 4096 + 4096
    assert counts.selection == 2 * wide + (wide + 1) * 4096 + (4096 + 1) * 4096 + 2 * 4096 + 4097
    assert counts.trained(job.config.learner) == counts.all - (counts.tower - counts.projector)
    config = LlavaConfig.from_pretrained(models / "llava_1_5_7b")
    with torch.device("meta"):
        model, head = LlavaForConditionalGeneration(config), SelectionHead(mask_features(config), 4096)
    assert sum(each.numel() for part in (model, head) for each in part.parameters()) == counts.all


def test_a_decoder_of_masks_and_frozen_encoders_have_rows_of_their_own(models: Path, tmp_path: Path) -> None:
    found = planned(models, "presets/qwen3_vl_seg_4b", model="qwen3_vl_4b")
    counts = found.job.sizes.parameters
    with torch.device("meta"):
        made = BoxGuidedDecoder(4, 2560, 2560, 32, DecoderSizes())
    assert counts.decoder == sum(each.numel() for each in made.parameters()) == pytest.approx(16.2e6, rel=5e-3)
    assert counts.all == RELEASED["qwen3_vl_4b"].parameters + counts.decoder
    # Frozen, as RL wants it: weights on ranks and workers, no gradient and no state of it.
    for one in (found.now.rank, found.now.worker):
        parts = {part.name: part for part in one.parts}
        assert parts["mask decoder"].amount == 2 * counts.decoder and parts["mask decoder"].how.endswith("frozen")
        assert parts["weights"].amount == 2 * RELEASED["qwen3_vl_4b"].parameters
    assert found.job.trained == RELEASED["qwen3_vl_4b"].parameters - counts.tower
    assert any(part.name == "sampling: a pass for masks" and part.amount > 0 for part in found.now.sampling)
    learning = replace(counts, learning_decoder=True)
    assert learning.trained(found.job.config.learner) == found.job.trained + counts.decoder
    # Beside adapters the three tokens' rows learn, once for embedding and head, which are one matrix here; with
    # train_vision the tower as well.
    adapted = planned(models, "presets/qwen3_vl_seg_4b", "learner.lora={rank: 32}", model="qwen3_vl_4b").job
    of_layers = 32 * 36 * (2 * (2560 + 4096) + 2 * (2560 + 1024) + 3 * (2560 + 9728))
    assert adapted.trained == of_layers + 3 * 2560 and adapted.frozen_vision
    first = replace(adapted.config.learner, freeze_vision=False, lora=LoraSettings(rank=32, train_vision=True))
    whole = replace(adapted, config=replace(adapted.config, learner=first))
    assert whole.trained == adapted.trained + counts.tower and not whole.frozen_vision
    encoder = write_dinov2(tmp_path)
    chosen = planned(models, "presets/ras_llava_1_5_7b", f"policy.encoders=[{encoder}]", model="llava_1_5_7b")
    number = sum(each.numel() for each in Dinov2Model.from_pretrained(encoder).parameters())
    for one in (chosen.now.rank, chosen.now.worker):
        assert {part.name: part.amount for part in one.parts}["frozen encoders"] == 2 * number
    without = planned(models, "presets/ras_llava_1_5_7b", model="llava_1_5_7b")
    assert "frozen encoders" not in {part.name for part in without.now.rank.parts}
    assert chosen.job.sizes.parameters.selection > without.job.sizes.parameters.selection


def test_a_decoder_that_learns_along_is_counted_by_hand(models: Path) -> None:
    along = ["policy.freeze_decoder=false", "learner.decoder_weight=0.1"]
    frozen, found = (
        planned(models, "presets/qwen3_vl_seg_4b", *more, model="qwen3_vl_4b").now.learning for more in ([], along)
    )
    assert "learning: mask decoder" not in {part.name for part in frozen}
    job = planned(models, "presets/qwen3_vl_seg_4b", *along, model="qwen3_vl_4b").job
    # Of an image token: four injections, the fused map, the language model's states; two doublings; pixels in three
    # halvings, 64, 128 and 256 channels at 256, 64 and 16 cells. Of an answer: the cells' features at 16 cells, two
    # masks over them, keys and values of two blocks.
    image = 4 * (2560 * 256 + 9 * 256) + 9 * 1024 * 256 + 2560 * 256 + 9 * 256 * 1024 * (1 + 4)
    image += 27 * 64 * 256 + 9 * 64 * 128 * 64 + 9 * 128 * 256 * 16
    answer = 16 * (9 * 512 * 256 + 2 * 256) + 2 * (2 * 256 * 256 + 2 * 256)
    assert (2 * image, 2 * answer) == (54_642_688, 38_291_456)
    drawing = job.sizes.drawing
    assert (drawing.image, drawing.answer) == (2 * image, 2 * answer)
    config = job.config
    once = config.groups_per_step * job.asked.image * (2 * image + config.group_size * 2 * answer)
    assert drawing_operations(job) == pytest.approx(once)
    learner = config.learner
    old = (learner.minibatches - 1) / learner.minibatches if learner.zero_stage == 3 else 0
    passes = (4 if job.groups_of_pass > 1 else 3) + old
    (part,) = [one for one in found if one.name == "learning: mask decoder"]
    assert part.amount == pytest.approx(once * passes / (0.35 * 989e12 * learner.ranks))


def test_what_a_decoder_takes_is_what_torch_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    sizes = DecoderSizes(width=32, heads=4, mlp=32, blocks=2, frequencies=2, places=4)
    for cell_px in (4, 16):
        decoder, h, w = BoxGuidedDecoder(3, 24, 48, cell_px, sizes), 9, 7
        levels, states = [torch.zeros(1, 24, h, w) for _ in range(3)], torch.zeros(1, 48, h, w)
        pixels = torch.zeros(1, 3, cell_px * h, cell_px * w)
        counted = []
        for answers in (1, 3):
            seen = Seen(levels, states, pixels, torch.zeros(answers, dtype=torch.int64))
            boxes, exists = torch.rand(answers, 1, 4), torch.ones(answers, 1, dtype=torch.bool)
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                decoder([box_guided.Asked(seen, boxes, torch.zeros(answers, 1, 48), exists)])
            counted.append(counter.get_total_flops())
        found = decoder.operations()
        answer = (counted[1] - counted[0]) / 2 / (h * w)
        assert found.answer == pytest.approx(answer, rel=0.03)  # of small queries, which are left out
        assert found.image == pytest.approx(counted[0] / (h * w) - answer, rel=0.01)


def write_dinov2(folder: Path) -> Path:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28}
    Dinov2Model(Dinov2Config(**sizes)).save_pretrained(folder)
    looks = {"size": {"height": 28, "width": 28}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(looks))
    return folder
