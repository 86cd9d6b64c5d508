"""ScoreSDE checkpoints, against a compact independent implementation of their module list."""

import math
import warnings

import pytest
import torch
from torch import nn

from pidistill import load_teacher
from pidistill.errors import PidistillError
from pidistill.files import write_json

from score_sde_files import CASES, CONFIG, NCSNPP, NIN, SAID, checkpoint, network, said


def expected_denoised(net, x, sigma):
    """D from Tweedie's formula, in the coordinates the network was trained in."""
    net, x, sigma = net.double(), x.double(), sigma.double()[:, None, None, None]
    if net.fourier:  # variance exploding, images in [0, 1]
        y, s = (x + 1) / 2, sigma / 2
        score = net(2 * y - 1, s.flatten()) / s
        return 2 * (y + s**2 * score) - 1
    alpha = 1 / (1 + sigma**2).sqrt()
    std = sigma * alpha
    t = ((0.1**2 + 2 * 19.9 * (-2 * alpha.log())).sqrt() - 0.1) / 19.9
    y = alpha * x
    score = -net(y, 999 * t.flatten()) / std
    return (y + std**2 * score) / alpha


@pytest.mark.parametrize("described", [True, False])
@pytest.mark.parametrize("config", CASES.values(), ids=CASES.keys())
def test_agrees_with_a_second_implementation(config, described, tmp_path):
    net = network(config)
    path = tmp_path / "checkpoint_8.pth"
    torch.save(checkpoint(net), path)
    if described or not config["fourier"]:
        write_json(tmp_path / "checkpoint_8.json", said(config))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", message=".*continuous time was assumed")
            teacher = load_teacher(str(path))
    else:
        with pytest.warns(UserWarning, match="images of 32x32, the VE SDE was assumed"):
            teacher = load_teacher(f"score-sde:{path}")
    assert teacher.sample_shape == (3, config["size"], config["size"])
    assert teacher.num_classes == 0
    sigma = torch.tensor([30.0, 2.0, 0.3, 0.03])
    x = torch.randn(4, *teacher.sample_shape) * (0.5 + sigma[:, None, None, None])
    with torch.no_grad():
        answer = teacher(x, sigma)
        expected = expected_denoised(net, x, sigma)
    for one, other in zip(answer.double(), expected, strict=True):
        assert (one - other).norm() < 1e-5 * other.norm()


ALPHAS = (1 - torch.linspace(0.1, 20, 100).double() / 100).cumprod(0)


def discrete_ve(net, y, sigma):
    """Ten levels from 50 to 0.01, told by their index; D at the levels and between them."""
    levels = torch.logspace(math.log10(50), -2, 10).double()
    index = (levels[None].log() - (sigma[:, None] / 2).log()).abs().argmin(1)
    level, s = (v[:, None, None, None] for v in (levels[index], sigma / 2))
    return 2 * ((y + 1) / 2 + s**2 * net(y, index.double()) / level) - 1


def discrete_vp(net, x, sigma):
    index = ((1 - ALPHAS[None]).sqrt() / ALPHAS.sqrt() - sigma[:, None]).abs().argmin(1)
    alpha = ALPHAS[index].sqrt()[:, None, None, None]
    return x - (1 - alpha**2).sqrt() / alpha * net(alpha * x, index.double())


def sub_vp(net, x, sigma):
    """The marginal at a time, found by bisection of sigma(t)."""
    low, high = torch.zeros_like(sigma), torch.ones_like(sigma)
    for _ in range(60):
        t = (low + high) / 2
        alpha = (-t * t * 19.9 / 4 - t * 0.1 / 2).exp()
        below = (1 - alpha**2) / alpha < sigma
        low, high = torch.where(below, t, low), torch.where(below, high, t)
    alpha = alpha[:, None, None, None]
    return x - (1 - alpha**2) / alpha * net(alpha * x, 999 * t)


@pytest.mark.parametrize(
    ("options", "expected", "levels"),
    [
        ("sde=vesde", discrete_ve, [100.0, 0.02, 15.1, 3.0, 0.5]),
        (
            "sde=vpsde&continuous=false&num_scales=100",
            discrete_vp,
            ((1 - ALPHAS) / ALPHAS).sqrt()[[0, 7, 50, 99]].tolist(),
        ),
        ("sde=subvpsde", sub_vp, [150.0, 20.0, 2.0, 0.3, 0.01]),
    ],
)
def test_what_positional_embeddings_hide_is_asked_for_and_read_when_told(
    options, expected, levels, tmp_path
):
    net = network({**NCSNPP, "fourier": False})
    net.sigmas = torch.logspace(math.log10(50), -2, 10).double()
    path = tmp_path / "a.pth"
    torch.save(checkpoint(net), path)
    with pytest.raises(PidistillError, match=r"does not state its SDE.*sde=subvpsde") as caught:
        load_teacher(str(path))
    assert "\n" not in str(caught.value)
    teacher = load_teacher(f"score-sde:{path}?{options}&image_size=32")
    sigma = torch.tensor(levels)
    x = torch.randn(len(sigma), 3, 32, 32) * (0.5 + sigma[:, None, None, None])
    with torch.no_grad():
        answer = teacher(x, sigma).double()
        right = expected(net.double(), x.double(), sigma.double())
    for one, other in zip(answer, right, strict=True):
        assert (one - other).norm() < 1e-5 * other.norm()


@pytest.fixture
def load(tmp_path):
    """Writes a checkpoint with a JSON file beside it and loads it."""

    def written(content, description=SAID, **options):
        torch.save(content, tmp_path / "a.pth", **options)
        write_json(tmp_path / "a.json", description)
        return load_teacher(f"score-sde:{tmp_path / 'a.pth'}")

    return written


def test_noise_levels_are_those_of_the_sde(load):
    teacher = load(checkpoint(network(NCSNPP)), said(NCSNPP))
    assert (teacher.sigma_min, teacher.sigma_max) == pytest.approx((0.02, 100.0))
    levels = {"sigma_max": 380, "sigma_min": 0.5}
    teacher = load(checkpoint(network(NCSNPP)), said(NCSNPP) | levels)
    assert (teacher.sigma_min, teacher.sigma_max) == (1.0, 760.0)
    teacher = load(checkpoint(network(CONFIG)), SAID | {"beta_max": 10.1})
    assert teacher.precondition.beta_d == pytest.approx(10.0)


def test_the_legacy_format_and_a_buffer_free_model_are_read(load):
    content = checkpoint(network(CONFIG))
    del content["model"]["module.sigmas"]
    teacher = load(content, _use_new_zipfile_serialization=False)
    assert teacher.sigma_max == pytest.approx(152.167, rel=1e-4)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        # as in blocks of type 'ddpm'
        (lambda net: net.all_modules[3].add_module("NIN_0", NIN(8)), "module 3 has .*NIN_0"),
        (lambda net: net.add_module("extra", nn.Linear(2, 2)), "unexpected weight 'extra.weight'"),
        (lambda net: net.all_modules.pop(-1), "modules with weights; expected"),
        (lambda net: net.all_modules.pop(4), "does not have the modules|expected"),
    ],
)
def test_other_networks_are_refused(load, change, match):
    net = network(CONFIG)
    change(net)
    with pytest.raises(PidistillError, match=match):
        load(checkpoint(net))


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({"model": print}, "cannot be read with weights_only=True"),
        ({"state_dict": {}}, "not a ScoreSDE checkpoint"),
        ([1], "not a ScoreSDE checkpoint"),
        (lambda model, shadow: model.update({"module.extra": 1}), "other than tensors"),
        (lambda model, shadow: shadow.pop(), "averaged weights; expected"),
        (
            lambda model, shadow: shadow.insert(0, shadow.pop(0)[:3]),
            r"'all_modules.0.weight' with shape \(3, 8\)",
        ),
    ],
)
def test_other_content_is_refused(load, content, match):
    if callable(content):
        change, content = content, checkpoint(network(CONFIG))
        change(content["model"], content["ema"]["shadow_params"])
    with pytest.raises(PidistillError, match=match) as caught:
        load(content)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("description", "match"),
    [
        ({"sde": "subvpsde", "continuous": False}, "expected 'vpsde' with True, .*'subvpsde'"),
        ({"sde": ["vpsde"]}, "but the sde "),
        ({"skip_rescale": False}, "skip_rescale False; .* only True"),
        ({"scale_by_sigma": True}, "scale_by_sigma True"),
        ({"num_scales": 1}, "num_scales 1"),
        ({"image_size": 31}, "image_size 31 .* expected a multiple of 2"),
        ({"image_size": "32"}, "image_size '32'"),
        ({"fir": 1}, "fir 1"),
        ({"beta_max": 0.01}, "beta_max 0.01"),
        ({"sigma_min": "a"}, "sigma_min 'a'"),
        ({"nf": 8}, "unknown entry 'nf'"),
    ],
)
def test_a_wrong_description_is_named(load, description, match):
    with pytest.raises(PidistillError, match=match):
        load(checkpoint(network(CONFIG)), SAID | description)


def test_an_image_size_that_nothing_tells_is_asked_for(load):
    with pytest.raises(PidistillError, match=r"append \?image_size=N"):
        load(checkpoint(network(CASES["one_level"])), {"fir": False, "sde": "vpsde"})


def test_damage_is_one_error_or_loads(load, tmp_path):
    load(checkpoint(network(CONFIG)))
    path = tmp_path / "a.pth"
    data = path.read_bytes()
    for length in range(0, len(data), len(data) // 20):
        path.write_bytes(data[:length])
        with pytest.raises(PidistillError, match="cannot be read"):
            load_teacher(f"score-sde:{path}")
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        damaged = bytearray(data)
        damaged[int(torch.randint(len(data), (), generator=generator))] ^= 0x55
        damaged[int(torch.randint(6000, (), generator=generator))] ^= 0x55
        path.write_bytes(damaged)
        try:
            load_teacher(f"score-sde:{path}")
        except PidistillError as error:
            message = str(error)
            assert "\n" not in message


def test_a_missing_file_is_named():
    with pytest.raises(PidistillError, match=r"none\.pth' is not a file"):
        load_teacher("score-sde:none.pth")
