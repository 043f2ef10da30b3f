"""What a mask decoder learns from sampled answers: which truth each box is about, and its loss beside the tokens."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_box_decoder import CODEC, ENV, SMALL, asked, examples

from envs.example import Example
from envs.geometry.masks import tight_box_px
from policies.decoders.matching import LEAST_IOU, partners
from policies.families.base import PromptRows, TaughtAnswer
from policies.families.box_decoder import Policy
from policies.settings import TinySizes
from policies.tiny_model import write_untrained


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    path: Path = tmp_path_factory.mktemp("sampled")
    words = sorted({word for name in ENV.phrase_words() for word in name.split()})
    sizes = TinySizes(
        image_size=32, text_width=32, text_layers=2, text_heads=2, vision_width=16, vision_layers=2, vision_heads=2
    )
    write_untrained(path, [*CODEC.words, *words], sizes, seed=0)
    return Policy(path, CODEC, decoder=SMALL, mask_cells=32)


def square(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((20, 40), np.bool_)
    mask[y0:y1, x0:x1] = True
    return mask


def unit(x0: float, y0: float, x1: float, y1: float) -> tuple[float, float, float, float]:
    return x0 / 40, y0 / 20, x1 / 40, y1 / 20


def test_boxes_are_about_the_masks_that_they_share_most_with_one_each() -> None:
    masks = np.stack([square(0, 0, 10, 10), np.zeros((20, 40), np.bool_), square(20, 0, 40, 20)])
    assert partners([unit(20, 0, 40, 20), unit(0, 0, 10, 10)], masks) == [2, 0]
    # The second box about the same mask is one too many, also where it comes first.
    assert partners([unit(0, 0, 9, 10), unit(0, 0, 10, 10)], masks) == [-1, 0]
    # Apart each would take the first mask; together they share most when the first box takes the other one.
    near = np.stack([square(0, 0, 20, 10), square(0, 0, 10, 10)])
    assert partners([unit(0, 0, 14, 10), unit(0, 0, 20, 10)], near) == [1, 0]
    assert partners([], masks) == [] and partners([unit(0, 0, 5, 5)], masks[1:2]) == [-1]
    assert partners([unit(0, 0, 5, 5)], np.zeros((0, 20, 40), np.bool_)) == [-1]


def test_a_box_that_shares_less_than_a_quarter_is_about_nothing() -> None:
    mask = square(0, 0, 10, 10)[None]
    assert LEAST_IOU == 0.25
    assert partners([unit(0, 0, 20, 20)], mask) == [0]  # 100 of 400 px
    assert partners([unit(0, 0, 21, 20)], mask) == [-1]  # 100 of 420
    assert partners([unit(30, 10, 40, 20)], mask) == [-1]


def box_text(policy: Policy, example: Example) -> str:
    """What supervision teaches: the tight box of each true mask."""
    bins, words = CODEC.box_bins, []
    for mask in example.truth.masks:
        box = tight_box_px(mask)
        assert box is not None
        words.append(" ".join(str(round(corner * bins / 32)) for corner in box) + " <|mask|>")
    return " ; ".join(words)


def sampled(policy: Policy, each: list[Example], texts: list[list[str]]) -> PromptRows:
    tokens = [[policy.processor.answer_tokens(text) for text in row] for row in texts]
    rows = policy.processor.rows(asked(each), tokens)
    return policy.processor.sampled_rows(rows, tokens, [example.truth.masks for example in each])


def gradients(policy: Policy, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    policy.zero_grad()
    loss.backward()
    found = {name: p.grad.clone() for name, p in policy.model.named_parameters() if p.grad is not None}
    policy.zero_grad()
    return found


def test_rows_say_where_sampled_answers_ask_and_which_masks_their_boxes_are_about(policy: Policy) -> None:
    example = ENV[16]  # with two true masks
    first, second = box_text(policy, example).split(" ; ")
    wrong = "0 0 1 1 <|mask|>"
    texts = [f"{second} ; {wrong} ; {first}", "none", "nothing of the kind", f"{first} ; {first}"]
    rows = sampled(policy, [example], [texts])
    assert rows.slots is not None and rows.slots.truths is not None and rows.slots.partners is not None
    assert rows.slots.places[0].tolist() == [[4, 10, 16], [-1] * 3, [-1] * 3, [4, 10, -1]]
    assert rows.slots.partners[0, 0].tolist() == [1, -1, 0]
    assert sorted(rows.slots.partners[0, 3].tolist()) == [-1, -1, 0]
    assert rows.slots.taught[0].sum(1).tolist() == [2, 0, 0, 1]
    assert torch.equal(rows.slots.truths[0].bool(), torch.from_numpy(example.truth.masks))
    cut = policy.processor.answer_tokens(texts[0])[:-1]  # met the limit before its end token
    rows = policy.processor.rows(asked([example]), [[cut]])
    assert not policy.processor.sampled_rows(rows, [[cut]], [example.truth.masks]).slots.exists.any()


def test_the_loss_in_an_answer_s_own_boxes_is_that_of_supervision_where_it_says_the_same(policy: Policy) -> None:
    each = examples(4)
    texts = [box_text(policy, example) for example in each]
    taught = [
        TaughtAnswer(question, policy.processor.answer_tokens(text), example.truth.masks)
        for question, text, example in zip(asked(each), texts, each, strict=True)
    ]
    supervised = policy.processor.supervised_rows([[one] for one in taught])
    rows = sampled(policy, each, [[text] for text in texts])
    plain = policy(rows_without := policy.processor.rows(asked(each), [[one.tokens] for one in taught]))
    scored, losses = policy(rows, losses_apart=True)
    assert rows_without.slots is None and (scored - plain).abs().max() < 1e-6
    expected = policy(supervised)
    # Supervised rows have the question within the answer, so that places differ, and sums do not.
    assert ((scored - losses).sum((1, 2)) - expected.sum((1, 2))).abs().max() < 1e-4 and losses.sum() > 1
    # Of the losses nothing flows beyond the decoder, and within it what supervision gives it.
    own = gradients(policy, losses.sum())
    decoder = {name for name, _ in policy.model.named_parameters() if name.startswith("mask_decoder.")}
    assert decoder <= own.keys() and not any(own[name].any() for name in own.keys() - decoder)
    of_supervision = gradients(policy, -expected.sum())
    assert all((own[name] - of_supervision[name]).abs().max() < 2e-5 * (1 + own[name].abs().max()) for name in decoder)
    assert max(float(gradient.abs().max()) for gradient in own.values()) > 0.1
    # Of the tokens nothing flows into the decoder, and the rest learns as if there were no decoder.
    scored, losses = policy(rows, losses_apart=True)
    both, alone = gradients(policy, losses.sum() - scored.sum()), gradients(policy, -policy(rows_without).sum())
    assert all((both[name] - alone[name]).abs().max() < 1e-5 for name in alone) and not decoder & alone.keys()


def test_a_box_about_nothing_shares_the_window_and_is_taught_nothing(policy: Policy) -> None:
    [example] = examples(1)
    right, wrong = box_text(policy, example).split(" ; ")[0], "0 0 1 1 <|mask|>"
    with torch.no_grad():
        _, losses = policy(sampled(policy, [example], [[f"{right} ; {wrong}", wrong, "none"]]), losses_apart=True)
    assert (losses[0, 0] != 0).nonzero().flatten().tolist() == [4] and not losses[0, 1:].any()


def test_a_group_at_a_time_is_drawn_with_the_losses_of_all_at_once_and_as_often_as_there_are_groups(
    policy: Policy,
) -> None:
    each = examples(3)
    texts = [[box_text(policy, example), "none", box_text(policy, example)] for example in each]
    texts[1] = ["none"] * 3
    rows, drawn = sampled(policy, each, texts), []
    # Before the call: drawing again ends as soon as the last saved tensor is there.
    hook = policy.decoder.foretell.register_forward_pre_hook(lambda _, inputs: drawn.append(len(inputs[0])))
    _, losses = policy(rows, losses_apart=True)
    assert drawn == [2, 1, 2], "one answer of the group that asks for nothing, to be as many"
    own = gradients(policy, losses.sum())
    assert sorted(drawn) == sorted([2, 1, 2] * 2), "each once more in the backward pass"
    hook.remove()
    together = policy(rows)  # less the losses, all of them in one part
    plain = policy(replace(rows, slots=None))
    assert (plain - together - losses).abs().max() < 1e-5 and not losses[1].any()
    others = gradients(policy, (plain - together).sum())
    names = [name for name in own if name.startswith("mask_decoder.")]
    assert all((own[name] - others[name]).abs().max() < 2e-5 * (1 + own[name].abs().max()) for name in names)
