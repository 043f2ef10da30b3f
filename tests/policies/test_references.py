"""Masks that a question refers to: where they stand among its words, what they change, what cannot be pointed at."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from envs.codecs import mask_group
from envs.datasets.cutout_scenes import Env
from envs.example import BoxPart, MaskPart, Part, Prompt, Question, TextPart
from policies.families._mask_tokens import FILE
from policies.families.base import PromptRows
from policies.families.mask_selection import Policy
from policies.selection.regions import covered, inside

ENV = Env(split="train", image_size=32, candidates=9, max_scale=0.45)


@pytest.fixture(scope="module", params=["free", "causal"])
def policy(request: pytest.FixtureRequest, tiny_untrained: Path) -> Iterator[Policy]:
    made = Policy(tiny_untrained, mask_group.Codec(), order=request.param).eval()
    with torch.no_grad():
        made.model.selection.classifier.weight.normal_(std=0.5, generator=torch.Generator().manual_seed(5))
    yield made


def question(index: int, *parts: str | int) -> Question:
    """About a scene; a number is the candidate of that number as a reference."""
    example = ENV[index]
    pool = example.candidates
    said: list[Part] = [TextPart(part) if isinstance(part, str) else MaskPart(pool[part]) for part in parts]
    return Question(ENV.image(example.image), Prompt(tuple(said or example.prompt.parts)), pool)


def logits(policy: Policy, *questions: Question) -> list[Tensor]:
    rows = policy.unanswered(questions)
    both, counts = policy.place_logprobs(rows, 1.0)
    return [one[: int(count), 1] - one[: int(count), 0] for one, count in zip(both, counts, strict=True)]


def test_a_reference_takes_two_places_where_it_stands_among_the_words(policy: Policy) -> None:
    processor = policy.processor
    told = question(0, "left apple", 1, "right", 0, "dog")
    ids, plain = (processor.prompt_tokens(each) for each in (told, question(0, "left apple right dog")))
    end = processor.end_token
    words = [int(processor.tokenizer.get_vocab()[word]) for word in ("apple", "right", "dog")]
    at = ids.tolist().index(words[0])
    assert len(ids) == len(plain) + 4
    assert ids[at : at + 7].tolist() == [words[0], end, end, words[1], end, end, words[2]]
    assert "left apple <mask> right <mask> dog" in processor.prompt_text(told)
    assert sum(processor.question_lengths(told)) == len(ids)
    # A sign that stands for masks is no word of the user's.
    signed = replace(told, prompt=Prompt.of_text("left apple \N{OBJECT REPLACEMENT CHARACTER} right dog"))
    assert np.array_equal(processor.prompt_tokens(signed), plain)


def test_the_language_model_is_shown_the_prefix_and_the_projected_mask_there(policy: Policy) -> None:
    questions = [question(0, "dog", 1, "right", 0), question(1), question(2, 2, "the")]
    seen: list[Tensor] = []
    hook = policy.model.model.language_model.register_forward_pre_hook(
        lambda _module, _inputs, named: seen.append(named["inputs_embeds"].detach()), with_kwargs=True
    )
    try:
        rows = policy.unanswered(questions)
        with torch.no_grad():
            policy.place_logprobs(rows, 1.0)
            features = policy.model.model.get_image_features(rows.pixel_values, rows.image_grid, return_dict=True)
    finally:
        hook.remove()
    [embeddings] = seen
    head, most = policy.model.selection, rows.prompt_tokens.shape[1]
    checked = 0
    for b, each in enumerate(questions):
        cells = features.pooler_output[b].unflatten(0, (4, 4)).permute(2, 0, 1)
        ids = policy.processor.prompt_tokens(each)
        bare = np.flatnonzero(ids == policy.processor.end_token)
        masks = [part.mask for part in each.prompt.parts if isinstance(part, MaskPart)]
        assert len(bare) == 2 * len(masks)
        for k, mask in enumerate(masks):
            place = most - len(ids) + int(bare[2 * k])
            token = head.tokens(inside(covered(mask[None]), cells))[0]
            torch.testing.assert_close(embeddings[b, place], head.reference_prefix.weight[0])
            torch.testing.assert_close(embeddings[b, place + 1], token, atol=1e-5, rtol=1e-4)
            checked += 1
    assert checked == 3
    # What stands behind the prompts begins with the candidates' own prefix.
    torch.testing.assert_close(embeddings[0, most], head.prefix.weight[0])


def test_which_mask_and_where_it_stands_change_the_answer_and_what_stands_beside_a_question_does_not(
    policy: Policy,
) -> None:
    one, other = question(0, "dog", 0, "cat", 1), question(0, "dog", 1, "cat", 0)
    plain, swapped, bare = logits(policy, one)[0], logits(policy, other)[0], logits(policy, question(0, "dog cat"))[0]
    assert (plain - swapped).abs().max() > 1e-3 and (plain - bare).abs().max() > 1e-3
    together = logits(policy, question(3), one, question(1, 2), other)
    for found, alone in zip(together, [question(3), one, question(1, 2), other], strict=True):
        torch.testing.assert_close(found, logits(policy, alone)[0], atol=1e-5, rtol=0)


def test_rows_are_cut_and_chosen_with_their_references(policy: Policy) -> None:
    questions = [question(3), question(0, "front facing baby chick", 0), question(1, 2, "dog", 1)]
    rows = policy.unanswered(questions)
    for part, wanted in ((rows.groups(1, 3), (1, 2)), (rows.chosen([2, 0]), (2, 0)), (rows.chosen([2]), (2,))):
        assert isinstance(part, PromptRows)
        both, _ = policy.place_logprobs(part, 1.0)
        for found, k in zip(both, wanted, strict=True):
            alone = policy.place_logprobs(policy.unanswered([questions[k]]), 1.0)[0][0]
            torch.testing.assert_close(found[: len(alone)], alone, atol=1e-5, rtol=0)


def test_the_second_prefix_learns_where_it_stands_and_has_a_gradient_of_zero_elsewhere(policy: Policy) -> None:
    for asked, moved in ((question(0, "dog", 1), True), (question(0), False)):
        policy.zero_grad()
        rows = policy.rows([asked], [[np.ones(len(asked.candidates), np.int64)]])
        policy(rows).sum().backward()
        gradient = policy.model.selection.reference_prefix.weight.grad
        assert bool(gradient.abs().max() > 0) == moved


def test_a_folder_of_before_has_no_second_prefix_and_begins_with_that_of_a_new_model(
    policy: Policy, tmp_path: Path
) -> None:
    policy.save(tmp_path)
    held = load_file(tmp_path / FILE)
    first = held.pop("reference_prefix.weight")
    save_file(held, tmp_path / FILE)
    again = Policy(tmp_path, mask_group.Codec()).model.selection.state_dict()
    assert torch.equal(again["reference_prefix.weight"], first)  # nothing has trained it
    assert all(torch.equal(again[name], weight) for name, weight in held.items())
    save_file({name: weight for name, weight in held.items() if name != "prefix.weight"}, tmp_path / FILE)
    with pytest.raises(ValueError, match=r"selection\.safetensors has no prefix\.weight"):
        Policy(tmp_path, mask_group.Codec())
    save_file(held | {"prefix.weight": torch.zeros(1, 7)}, tmp_path / FILE)
    with pytest.raises(ValueError, match=r"has no prefix\.weight as this model wants it"):
        Policy(tmp_path, mask_group.Codec())


def test_masks_of_another_size_and_other_parts_are_refused_in_a_line(policy: Policy) -> None:
    asked = question(0, "dog")
    small = Prompt((TextPart("same"), MaskPart(np.ones((16, 32), np.bool_))))
    wanted = r"^the prompt 'same <mask>' refers to a mask of 16 x 32 pixels, and its image has 32 x 32; give masks in"
    with pytest.raises(ValueError, match=wanted):
        policy.unanswered([replace(asked, prompt=small)])
    with pytest.raises(ValueError, match=r"comes with masks to choose from of 8 x 32 pixels, and its image has 32"):
        policy.unanswered([replace(asked, candidates=asked.candidates[:, :8])])
    with pytest.raises(ValueError, match=r"has a BoxPart"):
        policy.unanswered([replace(asked, prompt=Prompt((TextPart("dog"), BoxPart((0, 0, 4, 4)))))])
    with pytest.raises(ValueError, match=r"asks for a box"):
        policy.unanswered([replace(asked, prompt=Prompt((TextPart("dog"),), "box"))])
    # An empty one is no error: it has the means of the whole image and the least of sizes.
    empty = Prompt((TextPart("dog"), MaskPart(np.zeros((32, 32), np.bool_))))
    assert logits(policy, replace(asked, prompt=empty))[0].isfinite().all()
