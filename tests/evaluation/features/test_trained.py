"""Features of one's own: trained, kept, loaded, and used by the verbs."""

import json

import pytest
import torch

from pidistill import PidistillError
from pidistill.cli import main
from pidistill.data import Dataset, load_data
from pidistill.evaluation import evaluate
from pidistill.evaluation.features import load_features
from pidistill.evaluation.features.base import features_of
from pidistill.evaluation.features.trained import FEATURES_FILE, Description, Encoder, save_features
from pidistill.evaluation.features.training import augmented, train_features, vicreg_loss
from pidistill.noise import Draws


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A classifier of the digits, trained on the command line."""
    folder = tmp_path_factory.mktemp("features") / "digits"
    arguments = ["train-features", "digits", "--out", str(folder), "--max-train-steps", "200"]
    assert main(arguments) == 0
    return folder


def test_a_classifier_is_right_about_images_it_has_not_seen(folder):
    facts = json.loads((folder / FEATURES_FILE).read_text())["facts"]
    assert 0.95 < facts["held_out_accuracy"] <= 1
    assert facts["num_images"] == 1797
    network = load_features(str(folder))
    data = load_data("digits")
    features, logits = features_of(data.images, network)
    assert features.shape == (1797, network.num_features)
    assert (logits.argmax(1) == data.labels).double().mean() > 0.97


def test_they_measure_the_teacher_of_their_data(folder, tmp_path, capsys):
    arguments = ["evaluate", "digits", "--reference", "digits", "--features", str(folder)]
    arguments += ["-n", "200", "--steps", "10", "--out", str(tmp_path / "m.json"), "--json"]
    capsys.readouterr()
    assert main(arguments) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert metrics["frechet_distance"] < 10
    assert metrics["label_agreement"] > 0.9
    assert metrics["features_facts"]["held_out_accuracy"] > 0.95


def test_an_encoder_without_labels_tells_images_apart():
    images = load_data("digits").images[:600]
    data = Dataset(images, None, 0, "digits without labels")
    network = train_features(data, max_train_steps=150, batch_size=64)
    assert network(images[:2]).logits is None
    assert network.description.facts["held_out_retrieval"] > 0.5  # by chance: 1 in 60
    noise = torch.rand(600, 1, 8, 8) * 2 - 1
    near = evaluate(images[300:], images[:300], features=network)["frechet_distance"]
    assert 3 * near < evaluate(noise, images, features=network)["frechet_distance"]


def test_the_same_seed_gives_the_same_features(tmp_path):
    data = load_data("digits")
    first, second = (train_features(data, max_train_steps=3, batch_size=16) for _ in range(2))
    assert first.identity == second.identity
    other = train_features(data, max_train_steps=3, batch_size=16, seed=1)
    assert other.identity != first.identity
    save_features(tmp_path, first)
    assert load_features(str(tmp_path)).identity == first.identity


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 28, 28), (3, 33, 20), (1, 64, 64)])
def test_images_of_any_size(shape):
    description = Description(
        format=1, sample_shape=list(shape), num_features=8, num_classes=3, data="x"
    )
    features, logits = Encoder(description)(torch.zeros(2, *shape))
    assert (features.shape, logits.shape) == ((2, 8), (2, 3))


def test_vicreg_is_smallest_for_equal_views_of_uncorrelated_unit_variance():
    """There only the hinge's slack remains, which is zero, and so is the loss."""
    basis = torch.linalg.qr(torch.randn(64, 4, dtype=torch.float64) - 0).Q
    basis = torch.linalg.qr(basis - basis.mean(0)).Q * 63**0.5
    assert vicreg_loss(basis, basis).item() == pytest.approx(0, abs=1e-6)
    assert vicreg_loss(basis, 1 + basis).item() == pytest.approx(25, abs=1e-6)
    assert vicreg_loss(0 * basis, 0 * basis).item() == pytest.approx(25 * 0.99, abs=1e-6)
    copied = basis[:, [0, 0, 1, 1]]
    assert vicreg_loss(copied, copied).item() == pytest.approx(2 * 4 / 4, abs=1e-6)


def test_views_keep_images_apart_from_the_batch():
    x = torch.rand(6, 1, 8, 8)
    whole = augmented(x, Draws(0, 0, 6), "view")
    halves = [augmented(x[i : i + 3], Draws(0, i, 3), "view") for i in (0, 3)]
    assert torch.allclose(whole, torch.cat(halves), atol=1e-6)
    assert not torch.equal(whole, augmented(x, Draws(0, 0, 6), "other"))


def test_what_cannot_be_is_refused(folder, tmp_path, capsys):
    few = Dataset(torch.zeros(10, 1, 8, 8), None, 0, "few")
    with pytest.raises(PidistillError, match="few has 10 images"):
        train_features(few)
    assert main(["train-features", "digits", "--out", str(folder)]) == 2
    assert "not empty" in capsys.readouterr().err
    with pytest.raises(PidistillError, match="accept none"):
        load_features(str(folder), weights="x.pth")
    (tmp_path / FEATURES_FILE).write_text('{"format": 1}')
    with pytest.raises(PidistillError, match="sample_shape"):
        load_features(str(tmp_path))
