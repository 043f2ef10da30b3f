"""Batches of dropped steps come back as they were, and a run of them ends."""

from pathlib import Path

import numpy as np
import pytest

from envs.example import ImageRef, Prompt
from rl.learner.batches.batch import Batch
from rl.learner.dropped import DroppedSteps, read_batch, write_batch


def batch(by_token: bool) -> Batch:
    """Two groups of two answers of uneven length, an advantage of NaN among them; by_token: with what further heads
    chose, and all that a batch need not have."""
    images = (ImageRef("a photo", "0" * 64, 4, 5), ImageRef("b", "1" * 64, 6, 7))
    tokens = ((np.arange(3), np.arange(1)), (np.arange(2), np.arange(4)))
    floats = tuple(tuple(np.float32(0.5) * values.astype(np.float32) for values in row) for row in tokens)
    advantages = np.array([[0.5, -0.5], [np.nan, np.inf]], np.float32)
    counts = np.array([True, False])
    return Batch(
        images,
        (Prompt.of_text("the dog"), Prompt.of_text("der Stuhl (groß)")),
        tuple(tuple(np.stack([values, -values], axis=1) for values in row) for row in tokens) if by_token else tokens,
        floats,
        advantages,
        counts,
        floats if by_token else None,
        (5, 7) if by_token else None,
        (np.arange(6), np.arange(2)) if by_token else None,
        0.7 if by_token else None,
    )


@pytest.mark.parametrize("by_token", [False, True])
def test_a_batch_is_read_as_it_was_written_and_nothing_is_pickled(tmp_path: Path, by_token: bool) -> None:
    whole, path = batch(by_token), tmp_path / "step-000003.npz"
    write_batch(whole, path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    found = read_batch(path)
    assert (found.images, found.prompts) == (whole.images, whole.prompts)
    for one, other in zip(found.choices + found.sampler_logprobs, whole.choices + whole.sampler_logprobs, strict=True):
        assert [(values.tolist(), values.dtype) for values in one] == [
            (values.tolist(), values.dtype) for values in other
        ]
    np.testing.assert_array_equal(found.advantages, whole.advantages)
    assert found.temperature == whole.temperature
    np.testing.assert_array_equal(found.counts, whole.counts)
    np.testing.assert_array_equal(found.padded_advantages(4), whole.padded_advantages(4))
    assert (found.token_advantages is None) is not by_token
    assert found.prompt_lengths == whole.prompt_lengths
    taught = [None if each.taught is None else [tokens.tolist() for tokens in each.taught] for each in (found, whole)]
    assert taught[0] == taught[1]


def test_only_dropped_steps_leave_a_file_and_the_third_in_a_row_stops_the_run(tmp_path: Path) -> None:
    dropped = DroppedSteps(tmp_path)
    for step, num in enumerate([0.0, 1.0, 2.0, 0.0, 1.0, 1.0]):
        dropped.record(step, batch(False), num)
    with pytest.raises(FloatingPointError, match=rf"3 steps in a row, the last of them 6.* lie in {tmp_path}/dropped"):
        dropped.record(6, batch(False), 1.0)
    names = sorted(path.name for path in (tmp_path / "dropped").iterdir())
    assert names == [f"step-{step:06d}.npz" for step in (1, 2, 4, 5, 6)]


def test_what_is_no_such_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file .*nothing\.npz"):
        read_batch(tmp_path / "nothing.npz")
    np.savez(tmp_path / "other.npz", lengths=np.zeros(3))
    with pytest.raises(
        ValueError, match=r"other\.npz holds no advantages, choices, counts, image_keys, prompts, sampler_logprobs"
    ):
        read_batch(tmp_path / "other.npz")


def test_a_resumed_run_forgets_later_batches_and_counts_on_from_those_that_lead_up_to_it(tmp_path: Path) -> None:
    whole, first = batch(by_token=False), DroppedSteps(tmp_path)
    first.record(4, whole, updates_dropped=1.0)
    first.record(5, whole, updates_dropped=1.0)
    (tmp_path / "dropped/step-000006.partial").write_bytes(b"torn")
    resumed = DroppedSteps(tmp_path)
    resumed.forget_from(5)
    assert [path.name for path in (tmp_path / "dropped").iterdir()] == ["step-000004.npz"]
    resumed.record(5, whole, updates_dropped=1.0)
    with pytest.raises(FloatingPointError, match="in 3 steps in a row, the last of them 6"):
        resumed.record(6, whole, updates_dropped=1.0)
    earlier = DroppedSteps(tmp_path)
    earlier.forget_from(3)
    assert list((tmp_path / "dropped").iterdir()) == []
    earlier.record(3, whole, updates_dropped=1.0)
