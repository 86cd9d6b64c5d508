"""What is cached comes back, and damage is noticed."""

import logging

import pytest
import torch

from pidistill.evaluation import cache

TENSORS = {"mean": torch.arange(5.0), "covariance": torch.eye(5, dtype=torch.float64)}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PIDISTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_is_kept_is_recalled_and_nothing_else():
    assert cache.recall("key") is None
    cache.keep("key", TENSORS)
    kept = cache.recall("key")
    assert kept.keys() == TENSORS.keys()
    assert all(torch.equal(kept[name], value) for name, value in TENSORS.items())
    assert kept["covariance"].dtype == torch.float64
    assert cache.recall("other") is None


@pytest.mark.parametrize("place", [0, 40, -1, -60])
def test_any_changed_byte_is_noticed(folder, place, caplog):
    cache.keep("key", TENSORS)
    (file,) = folder.iterdir()
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert cache.recall("key") is None
    assert "damaged" in caplog.text
    assert str(file) in caplog.text


def test_a_file_that_was_cut_or_is_of_another_kind_is_noticed(folder, caplog):
    cache.keep("key", TENSORS)
    (file,) = folder.iterdir()
    whole = file.read_bytes()
    for content in (b"", whole[:-1], whole[:100], b"\xff" * 50):
        file.write_bytes(content)
        assert cache.recall("key") is None
    from pidistill.storage import write_tensors

    write_tensors(file, TENSORS)  # without a checksum
    assert cache.recall("key") is None
    assert len(caplog.records) == 5


def test_no_half_written_file_is_left(folder, monkeypatch):
    cache.keep("key", TENSORS)
    monkeypatch.setattr("os.fsync", lambda descriptor: (_ for _ in ()).throw(OSError("full")))
    cache.keep("key", {"mean": torch.zeros(3)})
    assert [file.name for file in folder.iterdir()] == ["key.safetensors"]
    assert torch.equal(cache.recall("key")["mean"], TENSORS["mean"])


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("PIDISTILL_CACHE", str(tmp_path / "file"))
    cache.keep("key", TENSORS)
    assert "nothing is cached" in caplog.text
    assert cache.recall("key") is None


def test_where_it_lies(monkeypatch, tmp_path):
    monkeypatch.setenv("PIDISTILL_CACHE", "~/there")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / "there"
    monkeypatch.delenv("PIDISTILL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_folder() == tmp_path / "xdg" / "pidistill"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_folder() == tmp_path / ".cache" / "pidistill"
