"""All kinds of references, and the cache of their features."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image

from pidistill import PidistillError
from pidistill.data import load_data
from pidistill.evaluation import reference
from pidistill.evaluation.features import base, features_for
from pidistill.evaluation.frechet import frechet_distance, statistics
from pidistill.evaluation.reference import Reference, ReferenceFeatures, read_reference
from pidistill.images import to_uint8

PARTS = ("statistics", "split_half", "features")


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PIDISTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def network():
    """The digits' features, with a record of the batch sizes it has seen."""
    network = features_for((1, 8, 8))
    network.seen = []
    network.register_forward_hook(lambda _, arguments, __: network.seen.append(len(arguments[0])))
    return network


@pytest.fixture
def data():
    return Reference("some digits", load_data("digits").images[:90])


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch):
    monkeypatch.setattr(base, "AT_ONCE", 40)


def collect(data, network, parts=PARTS):
    """The properties of `ReferenceFeatures` by name, from the cache or computed."""
    features = ReferenceFeatures(data, network)
    return {part: getattr(features, part) for part in parts}


def same(first, second):
    pairs = zip(first["statistics"], second["statistics"], strict=True)
    return (
        all(torch.equal(a, b) for a, b in pairs)
        and first["split_half"] == second["split_half"]
        and torch.equal(first["features"], second["features"])
    )


def test_the_second_time_comes_from_the_cache_with_the_same_bits(network, data):
    computed = collect(data, network)
    assert network.seen == [40, 40, 10]
    assert same(computed, collect(data, network))
    assert network.seen == [40, 40, 10]


def test_only_what_is_not_there_is_computed(network, data, cache_folder):
    collect(data, network, ["statistics"])
    assert {file.name.split("-")[0] for file in cache_folder.iterdir()} == {"fitted"}
    collect(data, network)
    collect(data, network, ["split_half", "features"])
    assert network.seen == 2 * [40, 40, 10]


def test_other_images_and_other_weights_are_not_mixed_up(network, data):
    def is_computed(data):
        before = len(network.seen)
        collect(data, network, ["statistics"])
        return len(network.seen) > before

    assert is_computed(data)
    assert is_computed(data._replace(images=data.images[:-1]))
    changed = data.images.clone()
    changed[3, 0, 4, 4] += 2 / 255 if changed[3, 0, 4, 4] < 0 else -2 / 255
    assert is_computed(data._replace(images=changed))
    rounded = to_uint8(data.images).float() / 127.5 - 1  # as files of these images hold them
    assert not torch.equal(rounded, data.images)
    assert not is_computed(data._replace(images=rounded))
    network.hidden.bias.data[0] += 1e-3
    assert is_computed(data)
    network.version += 1
    assert is_computed(data)
    assert not is_computed(data)


DAMAGES = {
    "first byte": lambda content: bytes([content[0] ^ 1]) + content[1:],
    "header": lambda content: content[:40] + bytes([content[40] ^ 1]) + content[41:],
    "last byte": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "cut": lambda content: content[:-1],
    "header only": lambda content: content[:100],
    "empty": lambda content: b"",
    "another kind": lambda content: b"\xff" * 50,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_entry_is_computed_anew_with_a_warning(
    damage, network, data, cache_folder, caplog
):
    computed = collect(data, network)
    for file in cache_folder.iterdir():
        file.write_bytes(damage(file.read_bytes()))
    with caplog.at_level(logging.WARNING):
        assert same(computed, collect(data, network))
    assert len(caplog.records) == 2
    assert len(network.seen) == 6
    collect(data, network)
    assert len(network.seen) == 6


def test_a_cache_that_cannot_be_written_is_no_error(network, data, cache_folder, caplog):
    cache_folder.touch()
    collect(data, network, ["statistics"])
    assert "is not cached" in caplog.text


def test_where_the_cache_lies(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value, expected in [
        ("PIDISTILL_CACHE", "~/there", "there"),
        ("XDG_CACHE_HOME", str(tmp_path / "xdg"), "xdg/pidistill"),
        ("XDG_CACHE_HOME", "", ".cache/pidistill"),
    ]:
        monkeypatch.delenv("PIDISTILL_CACHE", raising=False)
        monkeypatch.setenv(name, value)
        assert reference.cache_folder() == tmp_path / expected


def test_data_sets_folders_and_samples_are_read(tmp_path):
    digits = read_reference("digits")
    assert digits.images.shape == (1797, 1, 8, 8)
    for i in range(4):
        folder = tmp_path / "images" / f"class{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (5, 6), (i, 2 * i, 255)).save(folder / f"{i}.png")
    for spec in (str(tmp_path / "images"), f"folder:{tmp_path / 'images'}"):
        folder = read_reference(spec)
        assert folder.name == spec
        assert folder.images.shape == (4, 3, 6, 5)
    samples = np.random.default_rng(0).uniform(-1, 1, (6, 3, 4, 4)).astype(np.float32)
    np.savez(tmp_path / "samples.npz", samples=samples)
    read = read_reference(str(tmp_path / "samples.npz"))
    assert torch.equal(read.images, torch.from_numpy(samples))
    assert read.statistics is None
    data = load_data("digits")
    assert torch.equal(read_reference(data).images, data.images)
    assert torch.equal(read_reference(data.images).images, data.images)


def test_statistics_of_edm_are_read_and_used(tmp_path, network, data):
    fitted = statistics(network(data.images).features)
    file = tmp_path / "edm.npz"
    np.savez(file, mu=fitted.mean.numpy(), sigma=fitted.covariance.numpy())
    edm = read_reference(str(file))
    assert edm.images is None
    statistics_of_edm = ReferenceFeatures(edm, network).statistics
    assert frechet_distance(fitted, statistics_of_edm) == pytest.approx(0, abs=1e-6)


def bad(arrays, words):
    return pytest.param(lambda file: np.savez(file, **arrays), words)


@pytest.mark.parametrize(
    ("write", "words"),
    [
        bad({"mu": np.zeros(3), "sigma": np.eye(4)}, r"shape \(3,\) and sigma .* \(4, 4\)"),
        bad({"mu": np.zeros((3, 1)), "sigma": np.eye(3)}, "expected floating-point"),
        bad({"mu": np.zeros(3, int), "sigma": np.eye(3)}, "expected floating-point"),
        bad({"mu": np.full(3, np.nan), "sigma": np.eye(3)}, "not finite"),
        bad({"mu": np.zeros(2), "sigma": np.array([[1.0, 0.1], [0.0, 1.0]])}, "not symmetric"),
        bad({"mu": np.array([None] * 3), "sigma": np.eye(3)}, "not a readable"),
        bad({"mu": np.zeros(3)}, "expected an array 'samples'"),
        (lambda file: file.write_text("no archive"), r"bad\.npz is not a readable"),
        (lambda file: None, "does not exist"),
    ],
)
def test_files_without_a_reference_are_refused(tmp_path, write, words):
    write(tmp_path / "bad.npz")
    with pytest.raises(PidistillError, match=words):
        read_reference(tmp_path / "bad.npz")


def test_unknown_data_is_refused():
    with pytest.raises(PidistillError, match="unknown data 'digit'"):
        read_reference("digit")


def test_a_tensor_is_checked_as_a_file_is():
    x = torch.rand(4, 1, 8, 8) * 2 - 1
    pixels = (x * 127.5 + 127.5).round().to(torch.uint8)
    torch.testing.assert_close(read_reference(pixels).images, x, atol=0.005, rtol=0)
    for wrong in (x * 200, x * float("nan")):
        with pytest.raises(PidistillError, match="reference"):
            read_reference(wrong)


@pytest.mark.parametrize("spec", ["{}", "folder:{}", "folder:{}?channels=1"])
def test_a_run_folder_is_no_reference_though_it_holds_pictures(tmp_path, spec):
    (tmp_path / "network.json").touch()
    Image.new("L", (8, 8)).save(tmp_path / "preview.png")
    with pytest.raises(PidistillError, match="is a run folder, not images"):
        read_reference(spec.format(tmp_path))
