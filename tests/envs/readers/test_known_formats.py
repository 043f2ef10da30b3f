"""What users have is known for what it is: of all readers just one is surest, whatever the layout has in common."""

import json

import pytest
from made_label_studio import write_label_studio
from made_user_files import (
    drawn_box,
    two_photos,
    write_coco,
    write_cvat_coco,
    write_cvat_xml,
    write_folder,
    write_labelme,
    write_panoptic,
    write_roboflow,
    write_voc,
    write_yolo,
)

from envs.plugin import Plugin, plugin_names

A, B = two_photos()


def write_voc_set(folder, photos):
    write_voc(folder, photos, {"cup": 5, "dog": 12})


def write_both_of_coco(folder, photos):
    write_coco(folder, photos)
    write_panoptic(folder, photos)


def write_plain(folder, photos):
    write_coco(folder, photos)
    (folder / "annotations/instances_train2017.json").rename(folder / "labels.json")


def known(path):
    """(certainty, name) of the readers that know a path, the surest first."""
    readers = {name: Plugin("envs.readers", "Reader", name, {}).load() for name in plugin_names("envs.readers")}
    seen = {name: reader.recognise(path) for name, reader in readers.items()}
    return sorted(((found.certainty, name) for name, found in seen.items() if found), reverse=True)


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (write_coco, "coco"),
        (write_plain, "coco"),
        (write_both_of_coco, "coco"),
        (write_panoptic, "panoptic"),
        (write_labelme, "labelme"),
        (write_cvat_coco, "cvat"),
        (write_cvat_xml, "cvat"),
        (write_label_studio, "label_studio"),
        (write_yolo, "yolo_seg"),
        (write_roboflow, "roboflow"),
        (write_voc_set, "voc_masks"),
        (write_folder, "folder"),
    ],
)
def test_one_reader_is_surest_of_a_folder(tmp_path, write, name):
    write(tmp_path, (A, B))
    (certainty, surest), *others = known(tmp_path)
    assert surest == name and all(other < certainty for other, _ in others)


def test_nothing_is_known_in_photos_alone_or_in_json_of_another_kind(tmp_path):
    A.save(tmp_path)
    (tmp_path / "notes.json").write_text(json.dumps({"images": 3, "text": drawn_box("cup", 0, 0, 1, 1).label}))
    (tmp_path / "list.json").write_text("[1, 2, 3]")
    assert [name for certainty, name in known(tmp_path) if certainty > 2] == []
    assert known(tmp_path / "list.json") == known(tmp_path / "a.png") == known(tmp_path / "nowhere") == []
