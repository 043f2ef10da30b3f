"""References read from pickles and JSON: nothing of a pickle is run, and splits are joined as their names say."""

import datetime
import json
import os
import pickle

import pytest

from envs.readers._refer import in_split, read_references, splits_of


class Runs:
    """What a harmful pickle holds: a call that is made while it is read."""

    def __reduce__(self):
        return os.system, ("touch harmed",)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (pickle.dumps([{"ref_id": Runs()}]), "posix.system"),
        (b"cos\nsystem\n(S'touch harmed'\ntR.", "os.system"),
        (pickle.dumps([datetime.date(2020, 1, 1)]), "datetime.date"),
        (pickle.dumps([{"ref_id": os.getcwd}]), "posix.getcwd"),
        (b"cbuiltins\neval\n(S'1'\ntR.", "builtins.eval"),
    ],
)
def test_a_pickle_that_asks_for_a_function_or_class_is_refused_by_its_name(tmp_path, monkeypatch, content, named):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "refs(unc).p").write_bytes(content)
    with pytest.raises(ValueError, match=rf"refused \(it asks for {named}"):
        read_references(tmp_path / "refs(unc).p")
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize(
    "content", [b"", b"not a pickle", pickle.dumps([1])[:-3], b"\x80\x02K\x01K\x02.", b"P12\n.", b"\x80\x05\x95\xff"]
)
def test_what_is_no_whole_list_of_mappings_is_refused(tmp_path, content):
    (tmp_path / "refs(unc).p").write_bytes(content)
    with pytest.raises(ValueError, match=r"refs\(unc\)\.p"):
        read_references(tmp_path / "refs(unc).p")


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_plain_values_are_read_from_every_protocol(tmp_path, protocol):
    entries = [{"ref_id": 1, "ann_id": "8756_2", "sentences": [{"sent": "a", "tokens": ["a"]}], "split": "testAB"}]
    (tmp_path / "refs(unc).p").write_bytes(pickle.dumps(entries, protocol=protocol))
    assert read_references(tmp_path / "refs(unc).p") == entries


def test_text_of_python_2_that_is_no_ascii_is_read(tmp_path):
    (tmp_path / "refs(unc).p").write_bytes(b"(lp0\n(dp1\nS'sent'\np2\nS'caf\\xc3\\xa9'\np3\nsa.")
    assert read_references(tmp_path / "refs(unc).p") == [{"sent": "café"}]


def test_json_of_the_same_entries_is_read_with_nan_in_it_and_other_forms_are_refused(tmp_path):
    file = tmp_path / "grefs(unc).json"
    file.write_text(json.dumps([{"ref_id": 1, "area": float("inf")}]))
    assert read_references(file) == [{"ref_id": 1, "area": float("inf")}]
    for wrong in ('{"ref_id": 1}', "[1]", "[", ""):
        file.write_text(wrong)
        with pytest.raises(ValueError, match=r"grefs\(unc\)\.json"):
            read_references(file)


@pytest.mark.parametrize(
    ("split", "asked", "belongs"),
    [
        ("testAB", "testA", True),
        ("testAB", "testB", True),
        ("testAB", "testC", False),
        ("testBC", "testA", False),
        ("testA", "test", True),
        ("test", "testA", False),
        ("train", "train", True),
        ("train", "test", False),
        ("val", "train", False),
    ],
)
def test_a_split_is_joined_from_the_letters_of_its_name(split, asked, belongs):
    assert in_split(split, asked) is belongs


def test_the_names_to_ask_for_take_joined_splits_apart():
    assert splits_of(["testAB", "val", "testC", "train"]) == ("train", "val", "testA", "testB", "testC")
    assert splits_of(["test", "train"]) == ("train", "test")
    assert splits_of(["minival", "train"]) == ("train", "minival")
