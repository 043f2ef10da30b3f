"""A phone stores its photo on its side and says so (EXIF 6); tools show it upright, and readers follow them."""

import numpy as np
import pytest
from made_label_studio import write_label_studio
from made_user_files import (
    save_phone_photo,
    write_cvat_coco,
    write_cvat_xml,
    write_folder,
    write_labelme,
    write_roboflow,
    write_yolo,
)
from PIL import Image

from envs.images import read_image
from envs.readers import cvat, folder, label_studio, labelme, roboflow, yolo_seg
from envs.readers.base import Findings


@pytest.mark.parametrize(
    ("write", "reader"),
    [
        (write_labelme, labelme.Reader),
        (write_cvat_coco, cvat.Reader),
        (write_cvat_xml, cvat.Reader),
        (write_label_studio, label_studio.Reader),
        (write_yolo, yolo_seg.Reader),
    ],
)
def test_outlines_lie_on_the_upright_photo(tmp_path, write, reader):
    photo = save_phone_photo(tmp_path / "camera")
    write(tmp_path / "set", (photo,))
    (given,) = reader(str(tmp_path / "set")).photos("train", Findings())
    shown = np.array(read_image(given.photo.path, given.photo.upright))
    assert shown.shape == (10, 8, 3) and given.photo.upright
    white = shown[..., 0] > 0
    mask = given.references[0].masks[0].mask(10, 8)
    assert white.sum() == 12 and mask[white].all()
    assert mask.sum() == (20 if reader is labelme.Reader else 12)  # labelme draws the lower and right edge too


def test_the_photo_lies_on_its_side_in_its_file(tmp_path):
    save_phone_photo(tmp_path)
    assert Image.open(tmp_path / "phone.png").size == (10, 8)


@pytest.mark.parametrize(("write", "reader"), [(write_roboflow, roboflow.Reader), (write_folder, folder.Reader)])
def test_other_formats_leave_it_to_the_recorded_size(tmp_path, write, reader):
    write(tmp_path / "set", (save_phone_photo(tmp_path / "camera"),))
    (given,) = reader(str(tmp_path / "set")).photos("train", Findings())
    assert given.photo.upright is None and (given.photo.height, given.photo.width) == (10, 8)
