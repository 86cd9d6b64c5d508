"""Pixels in a mapped file: the same as in memory, read once, and not in this process's memory."""

import logging

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from pidistill import PidistillError
from pidistill.data import Dataset, arrays, fingerprint, load_data, pixels
from pidistill.progress import no_progress
from pidistill.storage import tensors_sha256


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PIDISTILL_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for i, shape in enumerate([(6, 5), (6, 5), (6, 5, 3), (6, 5), (6, 5, 3)]):
        path = tmp_path / "images" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, shape, np.uint8)).save(path)
    return tmp_path / "images"


def files(folder):
    return sorted((folder.parent / "cache").glob("images/*/*.npy"))


@pytest.mark.parametrize("query", ["", "?flip=true", "?channels=1", "?size=4&flip=true"])
def test_they_are_those_in_memory(folder, monkeypatch, query):
    few = load_data(f"folder:{folder}{query}")
    assert not files(folder)
    monkeypatch.setattr(pixels, "IN_MEMORY", 0)
    many = load_data(f"folder:{folder}{query}")
    assert len(files(folder)) == 1
    x = few.images
    assert torch.equal(many.images, x)
    assert torch.equal(many.batch(torch.tensor([3, 0])), x[[3, 0]])
    assert torch.equal(torch.cat(list(many.chunks())), x)
    assert torch.equal(many.labels, few.labels)
    as_before = tensors_sha256({"images": x, "labels": few.labels})
    assert fingerprint(many) == fingerprint(few) == as_before
    expected = (x.double().mean().item(), x.double().std().item())
    assert many.moments == few.moments == pytest.approx(expected, rel=1e-12)


def test_they_are_read_once_until_a_file_changes(folder, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(pixels, "IN_MEMORY", 0)
    before = load_data(f"folder:{folder}")
    first = before.images
    (kept,) = files(folder)
    (kept.parent / ".x.npy.1.tmp").mkdir()  # of a process that was killed
    monkeypatch.setattr(pixels, "_read", None)
    assert torch.equal(load_data(f"folder:{folder}").images, first)
    assert {f.name for f in kept.parent.iterdir()} == {kept.name, ".lock"}
    monkeypatch.undo()
    monkeypatch.setenv("PIDISTILL_CACHE", str(folder.parent / "cache"))
    monkeypatch.setattr(pixels, "IN_MEMORY", 0)
    Image.new("RGB", (5, 6), "red").save(folder / "a" / "0.png")
    after = load_data(f"folder:{folder}").images
    assert torch.equal(after[1:], first[1:])
    assert not torch.equal(after[0], first[0])
    assert len(files(folder)) == 1
    assert torch.equal(before.images, first)  # what a run has open stays what it was
    (kept,) = files(folder)
    kept.write_bytes(kept.read_bytes()[:-1])
    with pytest.raises(PidistillError, match="damaged; delete it"):
        load_data(f"folder:{folder}")


@pytest.mark.parametrize("shape", [(7, 5, 4), (7, 5, 4, 3), (7, 3, 5, 4)])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_large_arrays_are_read_in_parts(tmp_path, monkeypatch, shape, save):
    monkeypatch.setenv("PIDISTILL_CACHE", str(tmp_path / "cache"))
    rng, file = np.random.default_rng(0), tmp_path / "x.npz"
    save(file, images=rng.integers(0, 255, shape, np.uint8), labels=rng.integers(0, 3, 7))
    few = load_data(f"npz:{file}")
    monkeypatch.setattr(pixels, "IN_MEMORY", 0)
    monkeypatch.setattr(arrays, "pixels_of", None)
    many = load_data(f"npz:{file}")
    assert torch.equal(many.images, few.images)
    assert torch.equal(many.labels, few.labels)
    assert len(files(tmp_path / "images")) == 1
    save(file, images=rng.integers(0, 2, shape, np.uint8))
    with pytest.raises(PidistillError, match="255"):
        load_data(f"npz:{file}")
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(PidistillError, match=r"x\.npz is not a readable"):
        load_data(f"npz:{file}")


def test_a_full_disk_is_said_and_nothing_is_left(folder, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pixels, "IN_MEMORY", 0)
    monkeypatch.setattr(pixels.os, "posix_fallocate", full)
    with pytest.raises(PidistillError, match=r"No space left on device.*PIDISTILL_CACHE"):
        load_data(f"folder:{folder}")
    assert not files(folder)


def test_memory_does_not_grow_with_the_images(tmp_path, monkeypatch):
    monkeypatch.setenv("PIDISTILL_CACHE", str(tmp_path))
    images = (np.full((128, 128, 3), i % 251, np.uint8) for i in range(4000))  # 197 MB
    memory = psutil.Process().memory_info
    before = memory().rss
    values, release = pixels.gather(images, 4000, pixels.Origin("", ""), no_progress)
    data = Dataset(values, None, 0, "many", release=release)
    assert data.moments[0] == pytest.approx(np.mean([i % 251 for i in range(4000)]) / 127.5 - 1)
    for first in range(0, 4000, 50):
        data.batch(torch.arange(first, first + 50))
    assert memory().rss - before < 100e6
