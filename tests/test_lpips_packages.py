"""LPIPS against the packages themselves, where they can be imported."""

import pytest
import torch
import torch.nn.functional as functional

from pidistill import lpips
from pidistill.distance import DISTANCES
from test_lpips import pair, random_heads

pytestmark = pytest.mark.metrics


@pytest.fixture(scope="module")
def genuine():
    """torchvision's VGG-16 with random weights, and the lpips and piq packages."""
    try:
        import torchvision
    except (ImportError, RuntimeError) as error:  # a build that does not match that of torch
        pytest.skip(f"torchvision cannot be imported: {error}")
    packages = [pytest.importorskip(name) for name in ("lpips", "piq")]
    torch.manual_seed(0)
    network = torchvision.models.vgg16(weights=None).eval()
    for convolution in network.features:
        if isinstance(convolution, torch.nn.Conv2d):
            torch.nn.init.normal_(convolution.bias, std=0.1)
    return network, *packages


@pytest.fixture
def full_size(genuine):
    """Our network with torchvision's weights and random heads, and the state dict of these."""
    network = lpips.LPIPS((64, 128, 256, 512, 512))
    full_heads = random_heads((64, 128, 256, 512, 512))
    convolutions = {k: v for k, v in genuine[0].state_dict().items() if k.startswith("features.")}
    network.vgg.load_state_dict(convolutions)
    network.heads.load_state_dict(full_heads)
    return network, full_heads


def check(actual, reference, x):
    torch.testing.assert_close(actual, reference, rtol=1e-5, atol=0)
    ours, theirs = (torch.autograd.grad(d.sum(), [x])[0] for d in (actual, reference))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * theirs.abs().max().item())


def test_the_published_form_is_piqs(genuine, full_size, monkeypatch):
    vgg16, _, piq = genuine
    monkeypatch.setattr("piq.perceptual.vgg16", lambda **_: vgg16)
    monkeypatch.setattr(
        torch.hub, "load_state_dict_from_url", lambda *_, **__: list(full_size[1].values())
    )
    monkeypatch.setattr(lpips, "network_on", lambda device: full_size[0])
    x, y = pair(num=2)
    x.requires_grad_()
    large = [functional.interpolate(v, size=224, mode="bilinear") for v in (x, y)]
    layers = list(vgg16.features._modules.items())
    reference = piq.LPIPS(replace_pooling=True, reduction="none")(*((v + 1) / 2 for v in large))
    for name, layer in layers:  # it puts its pooling into the network it is given
        vgg16.features._modules[name] = layer
    check(DISTANCES["lpips"](x, y), reference, x)


def test_the_standard_form_is_the_lpips_packages(genuine, full_size, monkeypatch):
    vgg16, package, _ = genuine
    reference = package.LPIPS(net="vgg", pretrained=False, pnet_rand=True, verbose=False)
    own = {k: v for k, v in vgg16.state_dict().items() if k.startswith("features.")}
    stages = [(0, 4), (4, 9), (9, 16), (16, 23), (23, 30)]
    theirs = {
        f"net.slice{next(i for i, (a, b) in enumerate(stages, 1) if a <= layer < b)}."
        + key.removeprefix("features."): value
        for key, value in own.items()
        for layer in [int(key.split(".")[1])]
    }
    result = reference.load_state_dict({**theirs, **full_size[1]}, strict=False)
    assert not result.unexpected_keys
    assert all("scaling" in key or key.startswith("lins.") for key in result.missing_keys)
    monkeypatch.setattr(lpips, "network_on", lambda device: full_size[0])
    x, y = pair((3, 64, 64), num=2)
    x.requires_grad_()
    check(DISTANCES["lpips-standard"](x, y), reference(x, y).flatten(), x)


def test_the_packages_heads_are_found_and_read(genuine, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "vgg16-397923af.pth").touch()
    _, found = lpips.find_weights()
    assert found.parts[-4:] == ("lpips", "weights", "v0.1", "vgg.pth")
    shapes = {key: tuple(w.shape) for key, w in lpips.read(found).items()}
    assert shapes == {k: tuple(w.shape) for k, w in random_heads(lpips.WIDTHS).items()}
