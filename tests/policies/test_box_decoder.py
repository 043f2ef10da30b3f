"""A policy with a mask decoder behind boxes: what it sees of an image and of its own answer, what supervision adds, and
what is drawn for answers that were sampled."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import Qwen3VLConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from envs.codecs import box_masks, json_masks, path_tokens
from envs.datasets.cutout_scenes import Env
from envs.example import Example, Question
from envs.geometry.contours import mask_from_rings, rings_from_mask
from envs.polygons import Answer, AnswerStatus, Instance, flatten_rings
from policies.decoders.box_guided import Asked, BoxGuidedDecoder, DecoderSizes, Seen
from policies.decoders.losses import MaskLosses
from policies.decoders.processor import drawn_answer
from policies.decoders.slots import DrawnMasks
from policies.families.base import Response, TaughtAnswer
from policies.families.box_decoder import Policy, image_of
from policies.lora import pushed
from policies.settings import LoraSettings, TinySizes
from policies.tiny_model import write_untrained
from rollout.engines.shared import SharedSampler
from rollout.settings import Sampling

ENV = Env(split="train", image_size=32, several_share=0.6, max_scale=0.45)
CODEC = box_masks.Codec(box_bins=32, max_masks=4)
SMALL = DecoderSizes(width=16, heads=2, mlp=32, blocks=1, frequencies=4, places=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("boxes")
    words = sorted({word for name in ENV.phrase_words() for word in name.split()})
    sizes = TinySizes(
        image_size=32, text_width=32, text_layers=2, text_heads=2, vision_width=16, vision_layers=2, vision_heads=2
    )
    write_untrained(path, [*CODEC.words, *words], sizes, seed=0)
    return path


@pytest.fixture(scope="module")
def policy(folder: Path) -> Policy:
    return Policy(folder, CODEC, decoder=SMALL, mask_cells=32).eval()


def examples(num: int) -> list[Example]:
    return [example for example in (ENV[k] for k in range(4 * num)) if len(example.truth.masks)][:num]


def asked(each: list[Example]) -> list[Question]:
    return [example.question(ENV.image(example.image)) for example in each]


def answered(policy: Policy, text: str) -> Response:
    tokens = policy.processor.answer_tokens(text)
    return Response(tokens, np.zeros(len(tokens), np.float32), "stop")


def taught(policy: Policy, example: Example) -> TaughtAnswer:
    outlines = [rings_from_mask(mask) for mask in example.truth.masks]
    text = CODEC.encode(outlines, example.image.height, example.image.width)
    return TaughtAnswer(*asked([example]), policy.processor.answer_tokens(text), example.truth.masks)


@pytest.mark.parametrize(("patch", "merge", "frames"), [(8, 1, 1), (4, 2, 2), (16, 2, 2)])
def test_the_decoder_sees_the_pixels_that_the_image_processor_made(patch: int, merge: int, frames: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    size = {"shortest_edge": 64 * 96, "longest_edge": 64 * 96}
    made = Qwen2VLImageProcessorPil(patch_size=patch, merge_size=merge, temporal_patch_size=frames, size=size)
    inputs = made(images=[image], return_tensors="pt", input_data_format="channels_last")
    found = image_of(inputs["pixel_values"], inputs["image_grid_thw"][0].tolist(), patch, merge)
    mean, std = (torch.tensor(values)[:, None, None] for values in (made.image_mean, made.image_std))
    expected = (torch.from_numpy(image).permute(2, 0, 1) / 255 - mean) / std
    assert found.shape == (3, 64, 96) and (found - expected).abs().max() < 1e-5


def test_answers_of_a_row_are_drawn_as_each_alone(policy: Policy) -> None:
    questions = asked(examples(3))
    texts = ["1 2 9 12 <|mask|>", "none", "4 4 30 20 <|mask|> ; 0 0 3 3 <|mask|>"]
    rows = policy.processor.rows(questions, [[np.array([0])]] * 3)
    groups = [[answered(policy, text) for text in texts] for _ in questions]
    together = policy.drawn(rows, groups)
    for b, question in enumerate(questions):
        alone = policy.processor.rows([question], [[np.array([0])]])
        assert together[b][1].masks is None
        for g in (0, 2):
            [[one]] = policy.drawn(alone, [[groups[b][g]]])
            assert one.masks is not None and together[b][g].masks is not None
            assert one.masks.logits.shape == ((1, 16, 16) if g == 0 else (2, 16, 16))
            assert np.abs(one.masks.logits - together[b][g].masks.logits).max() < 2e-3  # half precision
            assert np.abs(one.masks.scores - together[b][g].masks.scores).max() < 1e-4
    first, third = together[0][0].masks, together[1][0].masks
    assert first is not None and third is not None
    assert np.abs(first.logits - third.logits).max() > 0.01, "another image gives another mask"


def test_a_mask_depends_on_its_box_and_on_the_words_before_it(policy: Policy) -> None:
    [question] = asked(examples(1))
    other = replace(question, prompt=asked(examples(6))[5].prompt)
    drawn = []
    for one, text in ((question, "1 2 9 12 <|mask|>"), (question, "20 2 29 12 <|mask|>"), (other, "1 2 9 12 <|mask|>")):
        [[response]] = policy.drawn(policy.processor.rows([one], [[np.array([0])]]), [[answered(policy, text)]])
        assert response.masks is not None
        drawn.append(response.masks.logits)
    assert np.abs(drawn[0] - drawn[1]).max() > 0.01 and np.abs(drawn[0] - drawn[2]).max() > 1e-3


def test_supervision_takes_the_decoder_s_loss_off_at_the_tokens_that_ask_for_masks(policy: Policy) -> None:
    each = [taught(policy, example) for example in examples(4)]
    rows = policy.processor.supervised_rows([[one] for one in each])
    with torch.no_grad():
        found = policy(rows) - policy(replace(rows, slots=None))
    asking = (rows.response_tokens == policy.processor.mask_token) & rows.scored_mask
    assert rows.slots is not None and rows.slots.truths is not None
    assert (found[~asking] == 0).all() and (found[asking] < -0.1).all() and asking.sum() > 4
    # By hand of the first answer: decode it as a sampled one, and compare on the grid of the true masks.
    one, drawing = each[0], policy.processor.rows([each[0].question], [[np.array([0])]])
    [[response]] = policy.drawn(drawing, [[Response(one.tokens, np.zeros(len(one.tokens), np.float32), "stop")]])
    assert response.masks is not None and response.masks.passes is not None and one.masks is not None
    losses = MaskLosses()
    for k, place in enumerate(asking[0, 0].nonzero()[:, 0].tolist()):
        total, truth = 0.0, torch.from_numpy(one.masks[k]).float()
        for logits in (response.masks.passes[0, k], response.masks.logits[k]):
            full = functional.interpolate(
                torch.from_numpy(logits.astype(np.float32))[None, None], (32, 32), mode="bilinear"
            )
            p = full[0, 0].sigmoid()
            bce = -(truth * p.log() + (1 - truth) * (1 - p).log()).mean()
            dice = 1 - (2 * (p * truth).sum() + 1) / (p.sum() + truth.sum() + 1)
            total += float(losses.bce * bce + losses.dice * dice) / 2
        drawn, true = full[0, 0] > 0, truth > 0.5
        iou = float((drawn & true).sum() / (drawn | true).sum())
        [[raw]] = [[policy.processor.supervised_rows([[one]])]]
        assert raw.slots is not None
        part = next(iter(policy._parts(raw, raw.slots, policy._told(raw), raw.slots.exists)))
        foretold = float(policy.model.mask_decoder([part.asked])[0][1][0, k])
        total += losses.iou * (foretold - iou) ** 2
        assert float(found[0, 0, place]) == pytest.approx(-total, rel=2e-3)


def test_a_batch_without_masks_still_goes_through_the_decoder(policy: Policy) -> None:
    [question] = asked(examples(1))
    empty = TaughtAnswer(question, policy.processor.answer_tokens("none"), np.zeros((0, 32, 32), np.bool_))
    rows = policy.processor.supervised_rows([[empty]])
    policy.zero_grad()
    (-policy(rows).sum()).backward()
    gradients = [parameter.grad for parameter in policy.model.mask_decoder.parameters()]
    assert all(gradient is not None and (gradient == 0).all() for gradient in gradients)
    policy.zero_grad()


def test_the_decoder_has_the_published_seventeen_million_parameters_at_the_size_of_qwen3_vl_4b() -> None:
    config = Qwen3VLConfig(text_config={"hidden_size": 2560}, vision_config={"out_hidden_size": 2560, "patch_size": 16})
    vision = config.vision_config
    with torch.device("meta"):
        decoder = BoxGuidedDecoder(
            1 + len(vision.deepstack_visual_indexes),
            vision.out_hidden_size,
            config.text_config.hidden_size,
            vision.patch_size * vision.spatial_merge_size,
            DecoderSizes(),
        )
    parts = {name: sum(each.numel() for each in part.parameters()) for name, part in decoder.named_children()}
    assert sum(parts.values()) == pytest.approx(17e6, rel=0.05)
    # Four levels of 1 x 1 convolutions from 2560 channels to 256, each with a norm, a depthwise 3 x 3 and a scale.
    assert parts["injections"] == 4 * (2560 * 256 + 256 + 2 * 256 + 9 * 256 + 256 + 1)
    assert parts["from_language"] == parts["from_token"] == 2560 * 256 + 256
    assert parts["upsample"] == 2 * (256 * 1024 * 9 + 1024 + 512) and parts["places"] == 64 * 64 * 256
    assert parts["blocks"] == 2 * (2 * 4 * (256 * 256 + 256) + 2 * 256 * 1024 + 1024 + 256 + 3 * 512)
    maps = [torch.empty(1, 2560, 20, 30, device="meta")] * 4
    seen = Seen(
        maps, maps[0], torch.empty(1, 3, 640, 960, device="meta"), torch.zeros(1, dtype=torch.int64, device="meta")
    )
    boxes, exists = torch.empty(1, 2, 4, device="meta"), torch.empty(1, 2, dtype=torch.bool, device="meta")
    [(logits, scores)] = decoder([Asked(seen, boxes, torch.empty(1, 2, 2560, device="meta"), exists)])
    assert logits.shape == (2, 1, 2, 80, 120) and scores.shape == (1, 2)


def test_a_token_that_shows_no_power_of_two_of_pixels_is_refused() -> None:
    with pytest.raises(ValueError, match="shows 28 x 28 pixels, which is no power of two"):
        BoxGuidedDecoder(2, 8, 8, 28, SMALL)


def test_boxes_that_do_not_exist_change_nothing() -> None:
    torch.manual_seed(0)
    decoder = BoxGuidedDecoder(2, 8, 12, 8, SMALL)
    seen = Seen(
        [torch.randn(2, 8, 4, 4)] * 2, torch.randn(2, 12, 4, 4), torch.randn(2, 3, 32, 32), torch.tensor([1, 0])
    )
    boxes, tokens = torch.rand(2, 3, 4).sort(-1)[0], torch.randn(2, 3, 12)
    exists = torch.tensor([[True, False, False], [True, True, False]])
    [(one, score)] = decoder([Asked(seen, boxes, tokens, exists)])
    elsewhere = torch.where(exists[..., None], boxes, 0.3)
    [(other, same)] = decoder([Asked(seen, elsewhere, tokens * exists[..., None], exists)])
    assert (one - other)[:, exists].abs().max() < 1e-6 and (score - same)[exists].abs().max() < 1e-6
    # An answer that says one box more has another window, and its first box another mask.
    both = torch.tensor([[True, True, False], [True, True, False]])
    [(more, _)] = decoder([Asked(seen, boxes, tokens, both)])
    assert (one - more)[:, 0, 0].abs().max() > 1e-4


def test_drawn_masks_take_the_place_of_boxes_with_their_exact_outline() -> None:
    text = "2 2 6 6 <|mask|> ; 8 8 16 16 <|mask|>"
    answer = CODEC.read(text, 32, 32)
    logits = np.full((2, 32, 32), -5, np.float16)
    logits[0, 2:5, 2:6] = 5
    drawn = DrawnMasks(logits, np.array([0.75, 0.5], np.float32))
    found = drawn_answer(answer, drawn, 32, 32)
    assert found.status is AnswerStatus.OK and len(found.instances) == 1  # the second mask has no pixel
    assert found.instances[0].box_px == (2.0, 2.0, 6.0, 6.0) and found.instances[0].score == pytest.approx(0.75)
    assert mask_from_rings(found.rings_px, 32, 32).sum() == 12
    nothing = drawn_answer(answer, DrawnMasks(np.full_like(logits, -5), drawn.scores), 32, 32)
    assert nothing == Answer(AnswerStatus.DEGENERATE)
    # Twice the size: bilinear, cut at 0, so about four times the pixels.
    twice = drawn.masks(64, 64)
    assert twice[0].sum() == pytest.approx(48, abs=8) and not twice[1].any()
    box = Instance(*flatten_rings([np.array([(0.0, 0), (1, 0), (1, 1)])]), (0, 0, 1, 1))
    unlike = Answer(AnswerStatus.OK, (box,))
    assert drawn_answer(unlike, drawn, 32, 32) is unlike


def test_a_sampler_draws_what_it_sampled_and_reads_it_so(folder: Path, policy: Policy, tmp_path: Path) -> None:
    policy.save(tmp_path)
    from envs.plugin import Plugin

    plugin = Plugin("policies.families", "Policy", "box_decoder", {"checkpoint": tmp_path, "codec": CODEC})
    sampler = SharedSampler(plugin)
    each = examples(4)
    responses = sampler.sample(asked(each), Sampling(1.0, 12), [[10 * b + g for g in range(3)] for b in range(4)])
    again = policy.drawn(policy.processor.rows(asked(each), [[np.array([0])]] * 4), responses)
    for row, same in zip(responses, again, strict=True):
        for one, other in zip(row, same, strict=True):
            assert (one.masks is None) == (other.masks is None)
            if one.masks is not None and other.masks is not None:
                assert np.array_equal(one.masks.logits, other.masks.logits)


def test_a_folder_gives_back_decoder_and_sizes_and_refuses_others(policy: Policy, tmp_path: Path) -> None:
    policy.save(tmp_path)
    back = Policy(tmp_path, CODEC)
    for (name, one), other in zip(policy.model.named_parameters(), back.model.parameters(), strict=True):
        assert torch.equal(one, other), name
    with pytest.raises(ValueError, match=r"policy\.decoder is DecoderSizes\(width=8.*leave policy\.decoder out"):
        Policy(tmp_path, CODEC, decoder=replace(SMALL, width=8))
    (tmp_path / "mask_decoder.json").write_text('{"width": 16, "depth": 2}')
    with pytest.raises(ValueError, match=r"mask_decoder\.json does not say the sizes of a decoder"):
        Policy(tmp_path, CODEC)


def test_codecs_and_tokenizers_without_masks_are_refused(folder: Path, tiny_untrained: Path) -> None:
    with pytest.raises(ValueError, match=r"set codec to .name: json_masks"):
        Policy.make_processor(folder, path_tokens.Codec())
    with pytest.raises(
        ValueError, match=r"lacks '<\|mask\|>', which the codec's answers are written with.*0 unused rows"
    ):
        Policy.make_processor(tiny_untrained, box_masks.Codec(box_bins=8))


def test_an_answer_with_other_masks_than_boxes_is_refused_by_name(policy: Policy) -> None:
    [example] = examples(1)
    wrong = replace_masks(taught(policy, example), np.ones((5, 32, 32), np.bool_))
    with pytest.raises(ValueError, match=r"has \d boxes, and 5 masks are true"):
        policy.processor.supervised_rows([[wrong]])


def replace_masks(one: TaughtAnswer, masks: np.ndarray) -> TaughtAnswer:
    return TaughtAnswer(one.question, one.tokens, masks)


def test_json_answers_ask_for_a_mask_with_three_tokens() -> None:
    codec = json_masks.Codec(coordinates="thousandths")
    square = np.array([(10.0, 20), (30, 20), (30, 60), (10, 60)])
    text = codec.encode([[square]], 100, 100)
    assert text == (
        '[{"bbox_2d": [100, 200, 300, 600], "label": "object", "mask": "<|mask_start|><|mask|><|mask_end|>"}]'
    )
    assert codec.read(text, 100, 100).instances[0].box_px == (10.0, 20.0, 30.0, 60.0)


def test_adapters_leave_the_decoder_to_be_trained_and_are_merged_into_what_is_saved(
    folder: Path, policy: Policy, tmp_path: Path
) -> None:
    adapted = Policy(folder, CODEC, decoder=SMALL, mask_cells=32, lora=LoraSettings(rank=2)).train()
    trained = {name for name, parameter in adapted.model.named_parameters() if parameter.requires_grad}
    decoder = {name for name, _ in adapted.model.named_parameters() if name.startswith("mask_decoder.")}
    assert decoder <= trained and all("lora_" in name for name in trained - decoder - {"token_rows.embedding.weight"})
    # Adapters alone would leave the token that asks for masks as it began.
    tokens = adapted.model.token_rows.tokens.tolist()
    assert adapted.processor.tokenizer.convert_ids_to_tokens(tokens) == ["<|mask|>"]
    parts = [each for part in pushed(adapted.model, merged=True) for each in part]
    adapted.save(tmp_path, {each.name: each.value() for each in parts})
    back = Policy(tmp_path, CODEC)
    for (name, one), other in zip(policy.model.named_parameters(), back.model.parameters(), strict=True):
        assert torch.equal(one, other), name  # adapters begin at nothing, and new decoders alike
