"""Data sets in the formats of the library `datasets`, loaded by it."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from pidistill import PidistillError
from pidistill.data import load_data, pixels
from pidistill.images import to_uint8

datasets = pytest.importorskip("datasets")

RNG = np.random.default_rng(0)
GREYS = RNG.integers(0, 255, (6, 5, 4), np.uint8)
COLOURS = RNG.integers(0, 255, (6, 5, 4, 3), np.uint8)
LABELS = [2, 0, 0, 2, 2, 0]


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setenv("PIDISTILL_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()


def table(**more):
    columns = {
        "picture": (map(Image.fromarray, GREYS), datasets.Image()),
        "digit": (LABELS, datasets.ClassLabel(names=["zero", "one", "two"])),
        "weight": ([5, 7, 5, 5, 5, 7], datasets.Value("int64")),
        "note": (list("abcabc"), datasets.Value("string")),
        **more,
    }
    features = datasets.Features({key: kind for key, (_, kind) in columns.items()})
    rows = {key: list(values) for key, (values, _) in columns.items()}
    return datasets.Dataset.from_dict(rows, features=features)


@pytest.fixture
def parquet(tmp_path):
    place = tmp_path / "set"
    place.mkdir()
    table().to_parquet(place / "train-00000-of-00001.parquet")
    table().select(range(2)).to_parquet(place / "test-00000-of-00001.parquet")
    return place


def test_parquet_files(parquet):
    data = load_data(f"hf:{parquet}")
    assert np.array_equal(to_uint8(data.images)[:, 0].numpy(), GREYS)
    assert (data.labels.tolist(), data.class_names) == (LABELS, ("zero", "one", "two"))
    assert len(load_data(f"hf:{parquet}?split=test")) == 2
    assert len(load_data(f"hf:{parquet}?split=train[:3]")) == 3
    data = load_data(f"hf:{parquet}?label=weight&flip=true&channels=3&size=4")
    assert data.images.shape == (12, 3, 4, 4)
    assert (data.labels[:6].tolist(), data.class_names) == ([0, 1, 0, 0, 0, 1], ("5", "7"))
    assert torch.equal(data.images[6:], data.images[:6].flip(3))
    assert load_data(f"hf:{parquet}?label=note").class_names == ("a", "b", "c")
    assert load_data(f"hf:{parquet}?labels=false").labels is None


def test_many_images_are_read_once(parquet, monkeypatch):
    monkeypatch.setattr(pixels, "IN_MEMORY", 0)
    first = load_data(f"hf:{parquet}")
    assert np.array_equal(to_uint8(first.images)[:, 0].numpy(), GREYS)
    read = pixels._read
    monkeypatch.setattr(pixels, "_read", None)
    assert torch.equal(load_data(f"hf:{parquet}").images, first.images)
    monkeypatch.setattr(pixels, "_read", read)
    changed = table(picture=(map(Image.fromarray, 255 - GREYS), datasets.Image()))
    changed.to_parquet(parquet / "train-00000-of-00001.parquet")
    again = load_data(f"hf:{parquet}").images
    assert np.array_equal(to_uint8(again)[:, 0].numpy(), 255 - GREYS)


def test_save_to_disk_and_folders_of_images(tmp_path):
    table().save_to_disk(tmp_path / "one")
    assert load_data(f"hf:{tmp_path / 'one'}").labels.tolist() == LABELS
    datasets.DatasetDict({"a": table(), "b": table()}).save_to_disk(tmp_path / "two")
    with pytest.raises(PidistillError, match=r"split is None .* a, b.*split=a"):
        load_data(f"hf:{tmp_path / 'two'}")
    assert len(load_data(f"hf:{tmp_path / 'two'}?split=b")) == 6
    for i, image in enumerate(COLOURS):
        path = tmp_path / "folder" / "train" / "xy"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    data = load_data(f"hf:{tmp_path / 'folder'}")
    assert data.class_names == ("x", "y")
    order = [0, 2, 4, 1, 3, 5]
    assert np.array_equal(to_uint8(data.images).permute(0, 2, 3, 1).numpy(), COLOURS[order])


def test_what_is_ambiguous_is_asked(parquet, tmp_path):
    other = {"other": (map(Image.fromarray, COLOURS), datasets.Image())}
    table(**other).save_to_disk(tmp_path / "x")
    with pytest.raises(PidistillError, match=r"image is None .*\?image=picture"):
        load_data(f"hf:{tmp_path / 'x'}")
    assert load_data(f"hf:{tmp_path / 'x'}?image=other").images.shape == (6, 3, 5, 4)
    for query, words in (
        ("image=note", r"image is 'note'.*\?image=picture"),
        ("label=size", r"label is 'size'.*\?label=digit"),
        ("label=picture", "labels 'picture'"),
        ("split=dev", "dev"),
        ("config=large", "large"),
    ):
        with pytest.raises(PidistillError, match=words):
            load_data(f"hf:{parquet}?{query}")
    unknown = datasets.ClassLabel(names=["zero", "one", "two"])
    table(digit=([-1, *LABELS[1:]], unknown)).save_to_disk(tmp_path / "y")
    with pytest.raises(PidistillError, match=r"digit.*labels=false"):
        load_data(f"hf:{tmp_path / 'y'}")
    table().remove_columns("picture").save_to_disk(tmp_path / "z")
    with pytest.raises(PidistillError, match="no column of images, only digit"):
        load_data(f"hf:{tmp_path / 'z'}")
    with pytest.raises(PidistillError, match="cannot load"):
        load_data(f"hf:{tmp_path / 'nowhere'}")


def test_a_missing_image_is_named(tmp_path):
    pictures = [None, *map(Image.fromarray, GREYS[1:])]
    table(picture=(pictures, datasets.Image())).save_to_disk(tmp_path / "x")
    with pytest.raises(PidistillError, match="no image in row 0"):
        load_data(f"hf:{tmp_path / 'x'}")


def test_without_the_library(monkeypatch, parquet):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(PidistillError, match=r"pip install 'pidistill\[hf\]'"):
        load_data(f"hf:{parquet}")
