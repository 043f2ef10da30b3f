"""MaskGroups: groups of masks, masks to choose from, and regions between the words that are never guessed."""

import numpy as np
import pytest
from made_field_sets import HEIGHT, WIDTH, block, mask_groups, parquet, photo, run_lengths, saved

from envs.readers.base import Findings
from envs.readers.maskgroups import (
    BAD_CANDIDATE,
    BAD_GROUP,
    BAD_REGION,
    NO_GROUP,
    NO_PHOTO,
    NO_QUERY,
    UNPAIRED,
    Reader,
)


def made(tmp_path, entries=None, form="parquet"):
    entries = mask_groups() if entries is None else entries
    photo(tmp_path / "images_resized" / "one.jpg")
    if form == "parquet":
        parquet(tmp_path / "data" / "validation-00000-of-00001.parquet", entries)
    else:
        saved(tmp_path / "validation.json", entries)
    return str(tmp_path)


def references(reader, findings=None):
    return [one for each in reader.photos("validation", findings or Findings()) for one in each.references]


def pixels(shapes):
    return [shape.mask(HEIGHT, WIDTH) for shape in shapes]


@pytest.mark.parametrize("form", ["parquet", "json"])
def test_a_group_is_its_masks_and_proposals_are_what_to_choose_from(tmp_path, form):
    reader = Reader(made(tmp_path, form=form))
    assert reader.splits() == ("validation",)
    (one,) = reader.photos("validation", Findings())
    words, regions = one.references
    assert (words.id, words.parts) == ("1", ("all cups",))
    np.testing.assert_array_equal(pixels(words.masks), [block(2, 3, 9, 30), block(0, 50, 9, 60)])
    np.testing.assert_array_equal(pixels(words.candidates), [block(2, 3, 9, 29), block(20, 20, 31, 50)])
    assert (one.photo.height, one.photo.width, one.photo.path.name) == (HEIGHT, WIDTH, "one.jpg")
    assert regions.id == "2"


def test_a_region_stands_between_the_words_where_its_token_was(tmp_path):
    one = references(Reader(made(tmp_path)))[1]
    before, region, after = one.parts
    assert (before, after) == ("cups right of", "on the table")
    np.testing.assert_array_equal(region.mask(HEIGHT, WIDTH), block(20, 20, 30, 50))


def test_which_masks_the_numbers_count_is_a_setting(tmp_path):
    one = references(Reader(made(tmp_path), regions_of="mask_pool"))[1]
    np.testing.assert_array_equal(one.parts[1].mask(HEIGHT, WIDTH), block(20, 20, 31, 50))


def test_words_may_begin_and_end_with_regions_given_as_run_lengths(tmp_path):
    entry = mask_groups()[1]
    entry["conversations"][0]["value"] = "<image><mask_pool>\n<mask_ref> and <mask-ref>"
    entry["mask_ref"] = [run_lengths(block(0, 0, 5, 5)), run_lengths(block(5, 5, 9, 9))]
    (one,) = references(Reader(made(tmp_path, [entry], "json")))
    first, words, last = one.parts
    assert words == "and"
    np.testing.assert_array_equal(pixels([first, last]), [block(0, 0, 5, 5), block(5, 5, 9, 9)])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"mask_ref": []}, UNPAIRED),
        ({"mask_ref": [0, 1]}, UNPAIRED),
        ({"mask_ref": None}, UNPAIRED),
        ({"mask_ref": [[0, 1]]}, BAD_REGION),
        ({"mask_ref": [7]}, BAD_REGION),
        ({"mask_ref": [-1]}, BAD_REGION),
        ({"gt_mask_group": []}, NO_GROUP),
        ({"gt_mask_group": [[]]}, NO_GROUP),
        ({"gt_mask_group": [[0, 9]]}, BAD_GROUP),
        ({"gt_mask_group": [[True]]}, BAD_GROUP),
        ({"conversations": []}, NO_QUERY),
        ({"conversations": [{"from": "human", "value": "<image><mask_pool>\n<mask-ref>"}]}, NO_QUERY),
        ({"image": ""}, NO_PHOTO),
    ],
)
def test_what_does_not_fit_is_lost_by_its_reason_and_nothing_is_guessed(tmp_path, change, reason):
    first, second = mask_groups()
    findings = Findings()
    found = references(Reader(made(tmp_path, [first, second | change], "json")), findings)
    assert [one.id for one in found] == ["1"]
    assert list(findings.lost) == [reason] and findings.lost[reason].which[0].startswith("2")


def test_regions_in_another_column_are_read_from_there_and_told_where_it_is_missing(tmp_path):
    entries = mask_groups()
    for entry in entries:
        entry["refs"] = entry.pop("mask_ref")
    folder = made(tmp_path, entries)
    findings = Findings()
    assert [one.id for one in references(Reader(folder), findings)] == ["1"]
    assert findings.lost[UNPAIRED].which == ["2 (1 in the words, no column `mask_ref`)"]
    assert [one.id for one in references(Reader(folder, regions="refs"))] == ["1", "2"]


def test_a_proposal_that_cannot_be_read_is_left_out_and_told(tmp_path):
    entry = mask_groups()[0]
    entry["mask_pool"] = [*entry["mask_pool"], {"size": [1, 1], "counts": "1"}, None]
    findings = Findings()
    (one,) = references(Reader(made(tmp_path, [entry], "json")), findings)
    assert len(one.candidates) == 2
    assert findings.left_out[BAD_CANDIDATE].which == ["1 (mask_pool[2])", "1 (mask_pool[3])"]


def test_ids_that_are_missing_or_repeated_are_told_apart(tmp_path):
    entry = mask_groups()[0]
    bare = {key: value for key, value in entry.items() if key != "id"}
    found = references(Reader(made(tmp_path, [entry, entry, bare], "json")))
    assert [one.id for one in found] == ["1", "1 at 1", "entry 2"]


def test_files_are_recognised_by_their_fields(tmp_path):
    made(tmp_path / "set")
    assert Reader.recognise(tmp_path / "set").certainty == 3
    made(tmp_path / "json", form="json")
    assert "validation" in Reader.recognise(tmp_path / "json").what
    saved(tmp_path / "chat" / "a.json", [{"conversations": [], "image": "x"}])
    assert Reader.recognise(tmp_path / "chat") is None
    with pytest.raises(FileNotFoundError, match=r"mask_pool, gt_mask_pool, gt_mask_group.*has it"):
        Reader(str(tmp_path)).splits()
