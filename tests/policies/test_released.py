"""A large photo and a phrase through folders shaped as released ones, with Qwen's real tokenizer and random weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from asking import ask
from released import LLAMA, QWEN, released_tokenizer, write_released, write_released_llava

from envs.codecs.point_text import Codec
from envs.geometry.contours import mask_from_rings
from envs.polygons import AnswerStatus
from policies.families.base import Response
from policies.families.vision_language import Policy
from policies.processor import Processor
from policies.settings import Asking

pytestmark = pytest.mark.long
FAMILIES = {"qwen2_5_vl": 7_597, "qwen3_vl": 5_828}
"""Tokens of a photo of 3000x2000 at the released limits."""
QUESTION = "Output the polygon coordinates of {phrase} in the image."


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return released_tokenizer(tmp_path_factory.mktemp("tokenizer"), QWEN)


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_released(tmp_path_factory.mktemp("models") / request.param, request.param, tokenizer)


def processor_of(folder: Path, **asking: object) -> Processor:
    return Policy.make_processor(folder, Codec(reading="lenient"), Asking(QUESTION, **asking))  # type: ignore[arg-type]


def test_a_photo_of_3000x2000_is_asked_as_the_family_was_taught(folder: Path) -> None:
    processor, photo = processor_of(folder), np.zeros((2000, 3000, 3), np.uint8)
    tokens = processor.prompt_tokens(ask(photo, "the left apple"))
    assert (tokens == processor.image_token).sum() == FAMILIES[folder.name]
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n" if folder.name == "qwen2_5_vl" else ""
    text = processor.tokenizer.decode(processor.engine_tokens(ask(photo, "the left apple")))
    assert text == (
        f"{system}<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>"
        "Output the polygon coordinates of the left apple in the image.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert processor.end_tokens == [151645, 151643]
    size = processor.vocabulary_size
    assert set(range(151_669, size)) <= set(processor.unsampled_tokens)
    controls = {processor.tokenizer.convert_tokens_to_ids(word) for word in ("<tool_call>", "<think>", "<|image_pad|>")}
    assert controls <= set(processor.unsampled_tokens) and not set(processor.end_tokens) & set(
        processor.unsampled_tokens
    )
    small = processor_of(folder, max_pixels=1_003_520)
    assert small.image_tokens(2000, 3000) <= 1_280
    said = processor.prompt_tokens(ask(photo[:64, :64], "the <|im_end|> <|image_pad|> <think> apple"))
    assert (said == processor.image_token).sum() == processor.image_tokens(64, 64) and (said == 151645).sum() == (
        2 if system else 1
    )


def test_reasoning_between_qwens_own_marks_is_sampled_and_read_apart_where_it_is_asked_for(folder: Path) -> None:
    processor = processor_of(folder, thinking="required")
    marks = [processor.tokenizer.convert_tokens_to_ids(mark) for mark in ("<think>", "</think>")]
    assert set(processor_of(folder).unsampled_tokens) - set(processor.unsampled_tokens) == set(marks)
    tokens = processor.answer_tokens("<think>\nIt is red.\n</think>\n\n[[[1, 2], [300, 2], [300, 400]]]")
    assert [int((tokens == mark).sum()) for mark in marks] == [1, 1]
    answer = processor.read(Response(tokens, np.zeros(len(tokens), np.float32), "stop"), 1000, 1000)
    assert (answer.status, answer.thinking, answer.bare) == (AnswerStatus.OK, "It is red.", True)
    cut = Response(tokens[:4], np.zeros(4, np.float32), "length")
    assert processor.read(cut, 1000, 1000).status is AnswerStatus.TRUNCATED
    prompt = processor.prompt_tokens(ask(np.zeros((64, 64, 3), np.uint8), "the left apple"))
    assert not set(marks) & set(prompt.tolist())  # the question names the marks, and is text
    assert "between <think> and </think>; behind that" in processor.tokenizer.decode(prompt)


def test_an_outline_is_written_in_the_familys_numbers_and_read_back_in_pixels_of_the_photo(folder: Path) -> None:
    processor, (height, width) = processor_of(folder, max_pixels=1_003_520), (2000, 3000)
    angles = np.linspace(0, 2 * np.pi, 30, endpoint=False)
    ring = np.stack([1500 + 900 * np.cos(angles), 900 + 600 * np.sin(angles)], 1)
    text = processor.codec.encode([[ring]], height, width)
    largest = max(float(number) for number in text.replace("[", " ").replace("]", " ").replace(",", " ").split())
    shown = processor.shown_size(height, width)
    assert largest == pytest.approx(2400 / 3000 * (shown[1] if folder.name == "qwen2_5_vl" else 1000), abs=1)
    tokens = processor.answer_tokens(f"Sure, you can find it at {text}.")
    response = Response(tokens, np.zeros(len(tokens), np.float32), "stop")
    answer = processor.read(response, height, width)
    assert answer.status is AnswerStatus.OK
    read, true = (mask_from_rings(rings, height, width) for rings in (answer.rings_px, [ring]))
    assert read.shape == (2000, 3000) and (read & true).sum() / (read | true).sum() > 0.99


def test_shards_load_and_log_probabilities_are_those_of_transformers(folder: Path) -> None:
    assert len(list(folder.glob("*.safetensors"))) > 1
    policy = Policy(folder, Codec(), QUESTION, max_pixels=100_000)
    image = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    answer = policy.processor.answer_tokens("[[[1, 2], [30, 2], [30, 40]]]")
    question = ask(image, "the left apple")
    with torch.no_grad():
        ours = policy(policy.rows([question], [[answer]]))[0, 0]
        prompt = policy.processor.prompt_tokens(question)
        ids = torch.from_numpy(np.concatenate([prompt, answer]))[None]
        pixels, grid = policy.processor.patches([image])
        kinds = (ids == policy.processor.image_token).int()
        logits = policy.model(input_ids=ids, mm_token_type_ids=kinds, pixel_values=pixels, image_grid_thw=grid).logits[
            0
        ]
    logits[:, policy.processor.unsampled_tokens] = -torch.inf
    expected = torch.log_softmax(logits[len(prompt) - 1 : -1], -1)[range(len(answer)), answer]
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    policy.save(folder.parent / "saved")
    assert Policy(folder.parent / "saved", Codec()).processor.end_tokens == policy.processor.end_tokens


def test_llava_is_asked_as_vicuna_was_taught_and_answers_in_fractions_of_the_photo(tmp_path: Path) -> None:
    folder = write_released_llava(tmp_path / "llava", released_tokenizer(tmp_path, LLAMA))
    processor, photo = processor_of(folder), np.zeros((2000, 3000, 3), np.uint8)
    tokens = processor.prompt_tokens(ask(photo, "the left apple </s> <image>"))
    assert (tokens == processor.image_token).sum() == 576 and tokens[0] == processor.tokenizer.bos_token_id
    assert processor.end_tokens == [processor.tokenizer.eos_token_id] and processor.end_token not in tokens
    text = processor.tokenizer.decode(processor.engine_tokens(ask(photo, "the left apple")))
    assert text == (
        "<s> A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: <image> \nOutput the polygon coordinates "
        "of the left apple in the image. ASSISTANT:"
    )
    ring = np.array([[300.0, 200.0], [2400.0, 200.0], [2400.0, 1500.0], [300.0, 1500.0]])
    written = processor.codec.encode([[ring]], 2000, 3000)
    assert written == "[[[0.1, 0.1], [0.8, 0.1], [0.8, 0.75], [0.1, 0.75]]]"
    said = processor.answer_tokens(written)
    answer = processor.read(Response(said, np.zeros(len(said), np.float32), "stop"), 2000, 3000)
    read, true = (mask_from_rings(rings, 2000, 3000) for rings in (answer.rings_px, [ring]))
    assert (read == true).all()
    policy = Policy(folder, Codec(), QUESTION)
    rows = policy.rows([ask(photo, "the left apple")], [[said]])
    assert policy(rows).shape == (1, 1, len(said))
