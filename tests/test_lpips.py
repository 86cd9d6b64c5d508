"""LPIPS against a second computation, its properties, and the files that its weights come from."""

import collections
import copy
import itertools
import pickle
import re
import sys
from typing import get_args

import pytest
import torch
import torch.nn.functional as functional
from safetensors.torch import save_file

from pidistill import PidistillError, lpips
from pidistill.cli import main
from pidistill.distance import DISTANCES, DistanceName, distance_for

NARROW = (4, 6, 8, 10, 12)
FORMS = ("lpips", "lpips-standard")
CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
POOLINGS = (4, 9, 16, 23)
TAPS = (3, 8, 15, 22, 29)

every_form = pytest.mark.parametrize("form", FORMS)


def random_vgg(widths=NARROW, bias=0.1, seed=0):
    """A state dict with torchvision's names, classifier included."""
    generator = torch.Generator().manual_seed(seed)
    weights, channels, stage = collections.OrderedDict(), 3, 0
    for layer in range(30):
        if layer in POOLINGS:
            stage += 1
        if layer in CONVOLUTIONS:
            shape, size = (widths[stage], channels, 3, 3), (2 / (9 * channels)) ** 0.5
            weights[f"features.{layer}.weight"] = size * torch.randn(shape, generator=generator)
            weights[f"features.{layer}.bias"] = bias * torch.randn(shape[:1], generator=generator)
            channels = widths[stage]
    weights["classifier.0.weight"] = torch.zeros(5, 7 * 7 * channels)
    weights["classifier.0.bias"] = torch.zeros(5)
    return weights


def random_heads(widths=NARROW, seed=1):
    """A state dict with the lpips package's names; the weights are positive, as theirs are."""
    generator = torch.Generator().manual_seed(seed)
    return collections.OrderedDict(
        (f"lin{i}.model.1.weight", torch.rand(1, width, 1, 1, generator=generator))
        for i, width in enumerate(widths)
    )


VGG, HEADS = random_vgg(), random_heads()


def write_weights(folder, vgg=VGG, heads=HEADS):
    """Write both files as they were published: by `torch.save` of old, before it zipped."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, weights in ((lpips.VGG_FILE, vgg), (lpips.HEADS_FILE, heads)):
        torch.save(weights, folder / name, _use_new_zipfile_serialization=False)


@pytest.fixture(autouse=True)
def _nothing_installed(tmp_path, monkeypatch):
    """Search only where a test says, and forget networks that were read."""
    monkeypatch.setattr(lpips, "WIDTHS", NARROW)
    monkeypatch.delenv("PIDISTILL_LPIPS_WEIGHTS", raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(lpips.importlib.util, "find_spec", lambda name: None)
    cached = lpips.network_on
    cached.cache_clear()
    yield
    cached.cache_clear()


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """Narrow random weights in files, where they are found."""
    write_weights(tmp_path / "named")
    monkeypatch.setenv("PIDISTILL_LPIPS_WEIGHTS", str(tmp_path / "named"))
    return tmp_path / "named"


def pair(shape=(3, 32, 32), num=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, num, *shape, generator=generator) * 2 - 1


def enlarging(size, target):
    """The matrix of bilinear interpolation from `size` to `target` pixels, (target, size)."""
    matrix = torch.zeros(target, size, dtype=torch.float64)
    for row in range(target):
        place = max(0.0, (row + 0.5) * size / target - 0.5)  # pixels are areas; the edge is kept
        below = int(place)
        matrix[row, below] += 1 - (place - below)
        matrix[row, min(below + 1, size - 1)] += place - below
    return matrix


def expected(x, y, vgg, heads, form):
    """The distance by the book: one torchvision layer after the other, in double precision."""
    pool = functional.avg_pool2d if form == "lpips" else functional.max_pool2d

    def features(images):
        h = (images.double() + 1) / 2
        if form == "lpips" and h.shape[-1] < 256:
            rows, columns = (enlarging(size, 224) for size in h.shape[2:])
            h = rows @ h @ columns.T
        mean, std = torch.tensor(
            [[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], dtype=torch.float64
        )
        h = (h - mean[:, None, None]) / std[:, None, None]
        for layer in range(30):
            if layer in CONVOLUTIONS:
                weight, bias = (vgg[f"features.{layer}.{k}"].double() for k in ("weight", "bias"))
                h = functional.conv2d(h, weight, bias, padding=1)
            elif layer in POOLINGS:
                h = pool(h, kernel_size=2, stride=2)
            else:
                h = h.clamp(min=0)
            if layer in TAPS:
                yield h

    total = 0.0
    for i, (a, b) in enumerate(zip(features(x), features(y), strict=True)):
        a, b = (h / ((h**2).sum(1, keepdim=True) ** 0.5 + 1e-10) for h in (a, b))
        weight = heads[f"lin{i}.model.1.weight"].double().flatten()
        total += torch.einsum("bchw,c->bhw", (a - b) ** 2, weight).mean((1, 2))
    return total


def assert_as_by_the_book(form, x, y):
    actual = DISTANCES[form](x, y)
    assert (actual.shape, actual.dtype) == ((len(x),), torch.float32)
    reference = expected(*(v.expand(-1, 3, -1, -1) for v in (x, y)), VGG, HEADS, form)
    torch.testing.assert_close(actual.double(), reference, rtol=2e-5, atol=0)


@pytest.mark.parametrize(
    ("form", "shape"),
    [
        *itertools.product(FORMS, [(3, 32, 32), (3, 20, 36), (3, 16, 256), (1, 16, 16)]),
        ("lpips", (1, 8, 8)),
    ],
)
def test_it_agrees_with_a_second_computation(weights, form, shape):
    assert_as_by_the_book(form, *pair(shape, num=2))


def test_images_of_256_pixels_are_not_resized(weights):
    x, y = pair((3, 256, 256), num=1)
    assert_as_by_the_book("lpips", x, y)
    below, above = (DISTANCES["lpips"](x[..., :w], y[..., :w]) for w in (255, 256))
    assert (below / above - 1).abs().item() > 1e-2


@every_form
def test_it_is_a_symmetric_distance_of_each_sample(weights, form):
    x, y = pair()
    distance = DISTANCES[form]
    together = distance(x, y)
    assert (together > 0).all()
    assert (distance(x, x) == 0).all()
    torch.testing.assert_close(together, distance(y, x))
    alone = torch.cat([distance(x[i : i + 1], y[i : i + 1]) for i in range(len(x))])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=0)


@every_form
def test_the_gradient_is_that_of_differences(weights, form):
    x, y = pair(num=2)
    network = copy.deepcopy(lpips.network_on(torch.device("cpu"))).double()
    x, y = x.double().requires_grad_(), y.double()
    pool = functional.avg_pool2d if form == "lpips" else functional.max_pool2d
    (gradient,) = torch.autograd.grad(network(x, y, pool).sum(), [x])
    direction = torch.randn(x.shape, dtype=torch.float64)
    with torch.no_grad():
        along = [network(x + step * direction, y, pool).sum().item() for step in (1e-7, -1e-7)]
    difference = (along[0] - along[1]) / 2e-7
    assert (gradient * direction).sum().item() == pytest.approx(difference, rel=1e-4)

    leaves = [v.detach().float().requires_grad_() for v in (x, y)]
    DISTANCES[form](*leaves).sum().backward()
    for leaf in leaves:  # the target may have a gradient; the weights have none
        assert leaf.grad.isfinite().all()
        assert leaf.grad.abs().max() > 0
    frozen = lpips.network_on(torch.device("cpu"))
    assert not frozen.training
    assert all(not p.requires_grad and p.grad is None for p in frozen.parameters())


@every_form
def test_the_gradient_is_finite_where_all_features_vanish(weights, form):
    """A pixel whose features are all 0 has no direction."""
    dark = random_vgg()
    dark["features.28.bias"] -= 100
    write_weights(weights, vgg=dark)
    x, y = pair()
    x[0] = y[0]
    DISTANCES[form](x.requires_grad_(), y).sum().backward()
    assert x.grad.isfinite().all()
    assert (x.grad[0] == 0).all()


@every_form
def test_it_is_computed_in_single_precision(weights, form):
    x, y = pair()
    expected_value = DISTANCES[form](x, y)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(DISTANCES[form](x, y), expected_value, rtol=0, atol=0)
    half = DISTANCES[form](x.bfloat16(), y.bfloat16())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, DISTANCES[form](x.bfloat16().float(), y.bfloat16().float()))


def test_the_names_and_shapes_of_the_weights_are_torchvisions(monkeypatch):
    """Facts: the first 26 entries of torchvision's vgg16().state_dict()."""
    monkeypatch.undo()
    widths = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
    facts = {}
    for layer, out, channels in zip(CONVOLUTIONS, widths, (3, *widths), strict=False):
        facts[f"features.{layer}.weight"] = (out, channels, 3, 3)
        facts[f"features.{layer}.bias"] = (out,)
    with torch.device("meta"):
        network = lpips.LPIPS(lpips.WIDTHS)
    assert {k: tuple(w.shape) for k, w in network.vgg.state_dict().items()} == facts
    assert sum(p.numel() for p in network.vgg.parameters()) == 14_714_688
    assert {k: tuple(w.shape) for k, w in network.heads.state_dict().items()} == {
        f"lin{i}.model.1.weight": (1, width, 1, 1)
        for i, width in enumerate((64, 128, 256, 512, 512))
    }


# --- where weights come from, in which formats


def test_every_format_gives_the_same(weights):
    def value():
        lpips.network_on.cache_clear()
        return DISTANCES["lpips-standard"](*pair()).tolist()

    published = value()
    torch.save(VGG, weights / "vgg16-397923af.pth")
    torch.save(HEADS, weights / "vgg.pth")
    assert value() == published
    for file in weights.glob("*.pth"):
        file.unlink()
    save_file(dict(VGG), weights / "vgg16-397923af.safetensors")
    save_file(dict(HEADS), weights / "vgg.safetensors")
    assert value() == published
    (weights / "vgg.safetensors").unlink()
    torch.save(list(HEADS.values()), weights / "lpips_weights.pt")
    assert value() == published


def test_the_usual_caches_are_searched(tmp_path, monkeypatch):
    package = tmp_path / "site-packages" / "lpips"
    write_weights(package / "weights" / "v0.1")
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    hub = tmp_path / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    (package / "weights" / "v0.1" / "vgg16-397923af.pth").rename(hub / "vgg16-397923af.pth")
    monkeypatch.undo()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.delenv("PIDISTILL_LPIPS_WEIGHTS", raising=False)
    monkeypatch.syspath_prepend(tmp_path / "site-packages")
    sys.modules.pop("lpips", None)
    found = (hub / "vgg16-397923af.pth", package / "weights" / "v0.1" / "vgg.pth")
    assert lpips.find_weights() == found
    assert "lpips" not in sys.modules

    torch.save(list(HEADS.values()), hub / "lpips_weights.pt")  # as piq leaves it
    assert lpips.find_weights() == found
    found[1].unlink()
    assert lpips.find_weights() == (found[0], hub / "lpips_weights.pt")

    write_weights(tmp_path / "named")
    monkeypatch.setenv("PIDISTILL_LPIPS_WEIGHTS", str(tmp_path / "named"))
    assert {path.parent for path in lpips.find_weights()} == {tmp_path / "named"}
    (tmp_path / "named" / "vgg16-397923af.pth").unlink()
    assert lpips.find_weights() == (found[0], tmp_path / "named" / "vgg.pth")


@pytest.mark.parametrize("missing", ["vgg16-397923af.pth", "vgg.pth"])
def test_what_is_missing_is_named_before_a_run_begins(weights, missing, monkeypatch):
    assert distance_for("lpips", (3, 32, 32)) is DISTANCES["lpips"]
    (weights / missing).unlink()
    with pytest.raises(PidistillError, match=rf"needs {missing} \(.*PIDISTILL_LPIPS_WEIGHTS"):
        distance_for("lpips", (3, 32, 32))
    monkeypatch.setenv("PIDISTILL_LPIPS_WEIGHTS", "nowhere")
    with pytest.raises(PidistillError, match="nowhere"):
        distance_for("lpips", (3, 32, 32))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"vgg": random_vgg((4, 6, 8, 10, 14))}, r"vgg16-397923af\.pth.*'features\.24"),
        ({"heads": random_vgg()}, r"vgg\.pth.*'lin0\.model\.1"),
        ({"heads": random_heads((4, 6, 8, 10))}, r"vgg\.pth.*'lin4\.model\.1"),
        ({"heads": {"lin0.model.1.weight": 3}}, r"vgg\.pth"),
        ({"heads": [3]}, r"vgg\.pth"),
        (b"not weights", r"vgg\.pth"),
        (pickle.dumps(print, 2), r"vgg\.pth"),
    ],
)
def test_files_that_hold_other_things_are_refused(weights, changed, named):
    if isinstance(changed, bytes):
        (weights / "vgg.pth").write_bytes(changed)
    else:
        write_weights(weights, **changed)
    with pytest.raises(PidistillError, match=named):
        DISTANCES["lpips"](*pair(num=1))


# --- by name


def test_every_name_is_a_distance():
    assert get_args(DistanceName) == tuple(DISTANCES)


@pytest.mark.parametrize(
    ("form", "shape"),
    [(form, shape) for form in FORMS for shape in ((2,), (4, 32, 32), (32, 32))]
    + [("lpips-standard", (1, 8, 8))],
)
def test_samples_that_do_not_suit_are_refused(weights, form, shape):
    for refuse in (
        lambda: distance_for(form, shape),
        lambda: DISTANCES[form](torch.zeros(1, *shape), torch.zeros(1, *shape)),
    ):
        with pytest.raises(PidistillError, match=f"{form}.*{re.escape(str(shape))}"):
            refuse()


def test_a_run_with_the_published_distance(weights, tmp_path):
    arguments = ("distill", "--teacher", "digits", "--preset", "cifar10-published")
    small = ("--batch-size", "2", "--max-train-steps", "2", "--out", str(tmp_path / "run"))
    assert main([*arguments, *small]) == 0
    assert 'distance = "lpips"' in (tmp_path / "run" / "config.toml").read_text()
