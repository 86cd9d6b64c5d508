"""References of every kind, and the cache of their features."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image

from pidistill import PidistillError
from pidistill.data import load_data
from pidistill.evaluation.features import features_for
from pidistill.evaluation.frechet import frechet_distance, statistics
from pidistill.evaluation.reference import (
    Reference,
    ReferenceData,
    collect_reference,
    read_reference,
)
from pidistill.images import to_uint8

NEEDS = ("statistics", "split_half", "features")


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PIDISTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def network():
    """The digits' features, with a list of how many images it has seen at once."""
    network = features_for((1, 8, 8))
    network.seen = []
    network.register_forward_hook(lambda _, arguments, __: network.seen.append(len(arguments[0])))
    return network


@pytest.fixture
def data():
    return ReferenceData("some digits", load_data("digits").images[:90], None, None)


def same(first, second):
    return (
        all(
            torch.equal(a, b)
            for a, b in zip(first["statistics"], second["statistics"], strict=True)
        )
        and first["split_half"] == second["split_half"]
        and torch.equal(first["features"], second["features"])
    )


def test_the_second_time_comes_from_the_cache_with_the_same_bits(network, data):
    computed = collect_reference(data, network, NEEDS, batch_size=40)
    assert network.seen == [40, 40, 10]
    recalled = collect_reference(data, network, NEEDS, batch_size=40)
    assert network.seen == [40, 40, 10]
    assert same(computed, recalled)
    assert computed["num"] == recalled["num"] == 90


def test_only_what_is_not_there_is_computed(network, data, cache_folder):
    collect_reference(data, network, ["statistics"])
    names = {file.name.split("-")[0] for file in cache_folder.iterdir()}
    assert names == {"statistics"}
    collect_reference(data, network, NEEDS)
    collect_reference(data, network, ["split_half", "features"])
    assert network.seen == [90, 90]


def test_other_images_and_other_weights_are_not_mixed_up(network, data):
    collect_reference(data, network, ["statistics"])
    collect_reference(data._replace(images=data.images[:-1]), network, ["statistics"])
    changed = data.images.clone()
    changed[3, 0, 4, 4] += 2 / 255 if changed[3, 0, 4, 4] < 0 else -2 / 255
    collect_reference(data._replace(images=changed), network, ["statistics"])
    assert network.seen == [90, 89, 90]
    network.classifier.hidden.bias.data[0] += 1e-3
    collect_reference(data, network, ["statistics"])
    network.version += 1
    collect_reference(data, network, ["statistics"])
    assert network.seen == [90, 89, 90, 90, 90]


def test_a_damaged_entry_is_computed_anew_with_a_warning(network, data, cache_folder, caplog):
    computed = collect_reference(data, network, NEEDS)
    for file in cache_folder.iterdir():
        content = bytearray(file.read_bytes())
        content[-3] ^= 255
        file.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        again = collect_reference(data, network, NEEDS)
    assert caplog.text.count("is damaged and computed anew") == 3
    assert network.seen == [90, 90]
    assert same(computed, again)
    collect_reference(data, network, NEEDS)
    assert network.seen == [90, 90]


def test_progress_counts_the_images_that_are_computed(network, data):
    seen = []
    collect_reference(data, network, NEEDS, batch_size=50, on_batch=seen.append)
    collect_reference(data, network, NEEDS, batch_size=50, on_batch=seen.append)
    assert seen == [50, 40]


def test_images_are_measured_with_8_bits(network, data):
    """Floats in an .npz and the files that were made of them are the same reference."""
    rounded = to_uint8(data.images).float() / 127.5 - 1
    assert not torch.equal(rounded, data.images)
    collect_reference(data, network, ["statistics"])
    collect_reference(data._replace(images=rounded), network, ["statistics"])
    assert network.seen == [90]


def test_distance_and_split_half_of_a_reference(network, data):
    reference = Reference("digits", network, collect_reference(data, network, NEEDS))
    assert reference.distance(data.images, batch_size=7) == pytest.approx(0, abs=1e-6)
    others = load_data("digits").images[90:200]
    expected = frechet_distance(
        statistics(network(others).features), statistics(network(data.images).features)
    )
    assert reference.distance(others) == pytest.approx(expected)
    assert reference.split_half > 0


def test_data_sets_folders_and_samples_are_read(tmp_path):
    digits = read_reference("digits")
    assert digits.images.shape == (1797, 1, 8, 8)
    assert digits.labels.shape == (1797,)
    assert {"features", "statistics"} <= digits.can_be_collected
    for i in range(4):
        folder = tmp_path / "images" / f"class{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (5, 6), (i, 2 * i, 255)).save(folder / f"{i}.png")
    for spec in (str(tmp_path / "images"), f"folder:{tmp_path / 'images'}"):
        folder = read_reference(spec)
        assert folder.name == spec
        assert folder.images.shape == (4, 3, 6, 5)
        assert folder.labels.tolist() == [0, 0, 1, 1]
    samples = np.random.default_rng(0).uniform(-1, 1, (6, 3, 4, 4)).astype(np.float32)
    np.savez(tmp_path / "samples.npz", samples=samples)
    read = read_reference(str(tmp_path / "samples.npz"))
    assert torch.equal(read.images, torch.from_numpy(samples))
    assert read.statistics is None


def test_statistics_of_edm_are_read_and_used(tmp_path, network, data):
    fitted = statistics(network(data.images).features)
    file = tmp_path / "edm.npz"
    np.savez(file, mu=fitted.mean.numpy(), sigma=fitted.covariance.numpy())
    reference = read_reference(str(file))
    assert reference.images is None
    assert reference.can_be_collected == {"statistics"}
    summary = collect_reference(reference, network, ["statistics"])
    assert summary.keys() == {"statistics"}
    assert Reference("edm", network, summary).distance(data.images) == pytest.approx(0, abs=1e-6)


def test_statistics_of_another_network_are_refused(tmp_path, network):
    np.savez(tmp_path / "edm.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    reference = read_reference(str(tmp_path / "edm.npz"))
    with pytest.raises(PidistillError, match=r"2048 features; the network 'digits' has 64"):
        collect_reference(reference, network, ["statistics"])


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, r"shape \(3,\) and sigma .* \(4, 4\)"),
        ({"mu": np.zeros((3, 1)), "sigma": np.eye(3)}, "expected floating point"),
        ({"mu": np.zeros(3, int), "sigma": np.eye(3)}, "expected floating point"),
        ({"mu": np.zeros(3), "sigma": np.eye(3, dtype=int)}, "expected floating point"),
        ({"mu": np.full(3, np.nan), "sigma": np.eye(3)}, "not finite"),
        ({"mu": np.zeros(2), "sigma": np.array([[1.0, 0.1], [0.0, 1.0]])}, "not symmetric"),
        ({"mu": np.array([None] * 3), "sigma": np.eye(3)}, "not a readable"),
        ({"mu": np.zeros(3)}, "expected an array 'samples'"),
    ],
)
def test_files_without_a_reference_are_refused(tmp_path, arrays, words):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(PidistillError, match=words):
        read_reference(str(tmp_path / "bad.npz"))


def test_what_is_not_there_or_no_reference_at_all_is_refused(tmp_path):
    with pytest.raises(PidistillError, match="does not exist"):
        read_reference(str(tmp_path / "none.npz"))
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(PidistillError, match=r"text\.npz is not a readable"):
        read_reference(str(tmp_path / "text.npz"))
    with pytest.raises(PidistillError, match="unknown data 'digit'"):
        read_reference("digit")
