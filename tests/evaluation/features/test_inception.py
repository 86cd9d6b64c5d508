"""Inception-v3 from random weights in the published file's format, against the library itself.

The whole network runs here, so these tests want torch-fidelity and a torchvision that loads.
"""

import io
import json
import pickle

import numpy as np
import pytest
import torch

from pidistill import PidistillError
from pidistill.cli import main
from pidistill.evaluation.features import load_features
from pidistill.evaluation.features.inception import FILE, load_inception
from pidistill.evaluation.frechet import statistics

pytestmark = pytest.mark.metrics

LAYERS = ["2048", "logits_unbiased"]


@pytest.fixture(scope="module")
def library():
    """torch-fidelity's module."""
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"torchvision cannot be imported: {error}")
    return pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")


@pytest.fixture(scope="module")
def folder(library, tmp_path_factory):
    """A folder with a file in the published format, with random weights that keep the scale."""

    class Untrained(library.FeatureExtractorInceptionV3):
        def load_state_dict(self, weights):
            assert weights == {}

    torch.manual_seed(0)
    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    network = Untrained("untrained", LAYERS, feature_extractor_weights_path=nothing)
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.bias, std=0.1)
            torch.nn.init.normal_(module.running_mean, std=0.1)
    path = tmp_path_factory.mktemp("inception")
    torch.save(network.state_dict(), path / FILE)
    return path


@pytest.fixture(scope="module")
def network(folder):
    return load_features("inception", weights=folder)


def pixels(channels, size=32):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (4, channels, size, size), generator=generator).byte()


@pytest.mark.parametrize("channels", [1, 3])
def test_features_and_logits_are_the_librarys(library, folder, network, channels):
    theirs = library.FeatureExtractorInceptionV3(
        "inception-v3-compat", LAYERS, feature_extractor_weights_path=folder / FILE
    )
    x = pixels(channels)
    expected = theirs(x.expand(-1, 3, -1, -1))
    features, logits = network(x.float() / 127.5 - 1)
    assert features.shape == (4, network.num_features) == (4, 2048)
    assert logits.shape == (4, 1008)
    assert features.std(0).mean() > 1e-3
    assert torch.equal(features, expected[0])
    assert torch.equal(logits, expected[1])


def test_the_resizing_is_that_of_edms_detector(network):
    """It resizes on a grid that starts at the corner, as TensorFlow 1 does."""
    seen = []
    hook = network.extractor.Conv2d_1a_3x3.register_forward_pre_hook(
        lambda _, arguments: seen.append(arguments[0])
    )
    x = pixels(3)
    network(x.float() / 127.5 - 1)
    hook.remove()
    height, width = x.shape[2:]
    place = [(torch.arange(299) * size / 299 * 2 + 1) / size - 1 for size in (height, width)]
    rows, columns = torch.meshgrid(*place, indexing="ij")
    points = torch.stack([columns, rows], -1).expand(len(x), -1, -1, -1)
    expected = torch.nn.functional.grid_sample(
        x.float(), points, mode="bilinear", padding_mode="border", align_corners=False
    )
    torch.testing.assert_close(seen[0], (expected - 128) / 128, rtol=0, atol=2e-5)


def test_it_is_frozen_and_found_in_torch_hub(network, folder, tmp_path, monkeypatch):
    assert not network.extractor.training
    assert not any(p.requires_grad for p in network.parameters())
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(PidistillError, match=rf"{FILE} from https.*{tmp_path}"):
        load_inception(None, allow_download=False)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / FILE).symlink_to(folder / FILE)
    assert load_inception(None, allow_download=False).identity == network.identity


def test_a_file_of_samples_against_edms_statistics(network, folder, capsys, tmp_path):
    x = pixels(3).repeat(2, 1, 1, 1).roll(1, 3)
    np.savez(tmp_path / "samples.npz", samples=(x.float() / 127.5 - 1).numpy())
    mean, covariance = statistics(network(x.float() / 127.5 - 1).features)
    np.savez(tmp_path / "edm.npz", mu=mean.numpy() + 0.5, sigma=covariance.numpy())
    arguments = [str(tmp_path / "samples.npz"), "--reference", str(tmp_path / "edm.npz")]
    arguments += ["--features", "inception", "--weights", str(folder), "--metrics", "fid,is"]
    assert main(["evaluate", *arguments, "--device", "cpu", "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert metrics["frechet_distance"] == pytest.approx(2048 * 0.25, rel=1e-4)
    assert metrics["inception_score"] >= 1


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("the file was executed",))


def test_files_that_are_no_weights_are_refused_and_not_executed(library, folder, tmp_path):
    path = tmp_path / FILE
    torch.save({"Conv2d_1a_3x3.conv.weight": Trap()}, path)
    with pytest.raises(PidistillError, match="weights_only"):
        load_inception(path, allow_download=False)
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(PidistillError, match="weights_only"):
        load_inception(path, allow_download=False)
    weights = torch.load(folder / FILE, weights_only=True)
    del weights["fc.bias"]
    torch.save(weights, path)
    with pytest.raises(PidistillError, match=r"not hold the weights of Inception-v3.*fc\.bias"):
        load_inception(path, allow_download=False)
