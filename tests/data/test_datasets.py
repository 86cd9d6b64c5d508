"""Data sets: their spec, shapes and range, and what is said about folders that will not do."""

import numpy as np
import pytest
import torch
from PIL import Image

from pidistill import PidistillError
from pidistill.data import load_data


def save(path, grey, size=(4, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), grey, dtype=np.uint8)).save(path)


def test_the_digits_are_images_in_range_with_labels():
    data = load_data("digits")
    assert data.images.shape == (1797, 1, 8, 8)
    assert data.images.dtype == torch.float32
    assert (data.images.min(), data.images.max()) == (-1, 1)
    assert data.labels.dtype == torch.int64
    assert data.labels.unique().tolist() == list(range(10)) == list(range(data.num_classes))


def test_a_flat_folder_has_no_labels(tmp_path):
    for name, grey in [("b.png", 255), ("a.PNG", 0), ("c.png", 51)]:
        save(tmp_path / name, grey)
    (tmp_path / "notes.txt").write_text("not an image")
    data = load_data(f"folder:{tmp_path}")
    assert data.images.shape == (3, 3, 4, 6)
    levels = [image.unique().item() for image in data.images]
    assert levels == pytest.approx([-1, 1, 51 / 127.5 - 1])
    assert (data.labels, data.num_classes) == (None, 0)


def test_subfolders_are_classes_in_the_order_of_their_names(tmp_path):
    for name in ("cat/1.png", "cat/2.png", "ant/deep/3.png"):
        save(tmp_path / name, 100)
    data = load_data(f"folder:{tmp_path}")
    assert data.num_classes == 2
    assert data.labels.tolist() == [0, 1, 1]
    save(tmp_path / "beside.png", 0)
    assert load_data(f"folder:{tmp_path}").labels is None


def test_what_will_not_do_is_named(tmp_path):
    with pytest.raises(PidistillError, match="is not a folder"):
        load_data(f"folder:{tmp_path / 'nowhere'}")
    with pytest.raises(PidistillError, match="holds no image"):
        load_data(f"folder:{tmp_path}")
    save(tmp_path / "1.png", 0)
    save(tmp_path / "2.png", 0, size=(5, 5))
    with pytest.raises(PidistillError, match=r"2\.png is 5x5 pixels, but 1\.png is 6x4"):
        load_data(f"folder:{tmp_path}")
    (tmp_path / "2.png").write_bytes(b"no picture")
    with pytest.raises(PidistillError, match=r"2\.png is not a readable image"):
        load_data(f"folder:{tmp_path}")


@pytest.mark.parametrize("spec", ["", "mnist", "folder:", "folder", "digits:0"])
def test_an_unknown_spec_is_refused(spec):
    with pytest.raises(PidistillError, match="unknown data"):
        load_data(spec)
