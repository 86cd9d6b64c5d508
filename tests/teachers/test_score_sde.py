"""ScoreSDE checkpoints against a compact second implementation of their module list."""

import json
import warnings

import pytest
import torch
from torch import nn

from pidistill import load_teacher
from pidistill.errors import PidistillError
from pidistill.teachers import score_sde

from score_sde_files import CASES, CONFIG, NCSNPP, NIN, SAID, checkpoint, network, said


def expected_denoised(net, x, sigma):
    """D by Tweedie's formula in the coordinates that the network was trained in."""
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
    if described or len(config["attention"]) != 1:
        (tmp_path / "checkpoint_8.json").write_text(json.dumps(said(config)))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            teacher = load_teacher(str(path))
    else:
        with pytest.warns(UserWarning, match="SDE was assumed|and 32x32"):
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


def test_noise_levels_are_those_of_the_sde(tmp_path):
    path = tmp_path / "a.pth"
    torch.save(checkpoint(network(NCSNPP)), path)
    (tmp_path / "a.json").write_text(json.dumps(said(NCSNPP)))
    teacher = score_sde.load(str(path))
    assert (teacher.sigma_min, teacher.sigma_max) == pytest.approx((0.02, 100.0))
    (tmp_path / "a.json").write_text(
        json.dumps(said(NCSNPP) | {"sigma_max": 380, "sigma_min": 0.5})
    )
    teacher = score_sde.load(str(path))
    assert (teacher.sigma_min, teacher.sigma_max) == (1.0, 760.0)
    torch.save(checkpoint(network(CONFIG)), path)
    (tmp_path / "a.json").write_text(json.dumps({**SAID, "beta_max": 10.1}))
    assert score_sde.load(str(path)).precondition.beta_d == pytest.approx(10.0)


def test_the_legacy_format_and_a_buffer_free_model_are_read(tmp_path):
    content = checkpoint(network(CONFIG))
    del content["model"]["module.sigmas"]
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "a.json").write_text(json.dumps(SAID))
    assert score_sde.load(str(tmp_path / "a.pth")).sigma_max == pytest.approx(152.167, rel=1e-4)


class TestBadFiles:
    @staticmethod
    def fails(tmp_path, content, match, description=SAID):
        path = tmp_path / "a.pth"
        torch.save(content, path)
        (tmp_path / "a.json").write_text(json.dumps(description))
        with pytest.raises(PidistillError, match=match) as caught:
            score_sde.load(str(path))
        assert "\n" not in str(caught.value)

    def test_code_is_not_executed(self, tmp_path):
        self.fails(tmp_path, {"model": print}, "cannot be read with weights_only=True")

    def test_something_else_is_refused(self, tmp_path):
        self.fails(tmp_path, {"state_dict": {}}, "not a checkpoint of ScoreSDE")
        self.fails(tmp_path, [1], "not a checkpoint of ScoreSDE")
        content = checkpoint(network(CONFIG))
        content["model"]["module.extra"] = 1
        self.fails(tmp_path, content, "holds more than tensors")

    def test_averages_must_match_the_weights(self, tmp_path):
        content = checkpoint(network(CONFIG))
        content["ema"]["shadow_params"].pop()
        self.fails(tmp_path, content, "averaged weights; expected")
        content = checkpoint(network(CONFIG))
        content["ema"]["shadow_params"][0] = torch.zeros(3)
        self.fails(tmp_path, content, r"'all_modules.0.weight' has shape \(3,\)")

    def test_other_networks_are_refused(self, tmp_path):
        net = network(CONFIG)
        net.all_modules[3].NIN_0 = NIN(8)  # as in blocks of type 'ddpm'
        self.fails(tmp_path, checkpoint(net), "module 3 has the parts .*NIN_0.*not supported")
        net = network(CONFIG)
        net.extra = nn.Linear(2, 2)
        self.fails(tmp_path, checkpoint(net), "unexpected weight 'extra.weight'")
        net = network(CONFIG)
        del net.all_modules[-1]
        self.fails(tmp_path, checkpoint(net), "modules with weights; expected")
        net = network(CONFIG)
        del net.all_modules[4]
        self.fails(tmp_path, checkpoint(net), "not those of|expected")

    @pytest.mark.parametrize(
        ("description", "match"),
        [
            ({"sde": "subvpsde"}, "sde is 'subvpsde' .* only 'vpsde' is supported"),
            ({"image_size": 31}, "image_size is 31 .* expected a multiple of 2"),
            ({"image_size": "32"}, "image_size is '32'"),
            ({"fir": 1}, "fir is 1"),
            ({"beta_max": 0.01}, "beta_max is 0.01"),
            ({"sigma_min": "a"}, "sigma_min is 'a'"),
            ({"nf": 8}, "unknown entry 'nf'"),
        ],
    )
    def test_a_wrong_description_is_named(self, description, match, tmp_path):
        self.fails(tmp_path, checkpoint(network(CONFIG)), match, SAID | description)

    def test_an_image_size_that_nothing_tells_is_asked_for(self, tmp_path):
        content = checkpoint(network(CASES["one_level"]))
        self.fails(tmp_path, content, r'put {"image_size": N} into a.json', {"fir": False})

    def test_truncation_is_one_error(self, tmp_path):
        path = tmp_path / "a.pth"
        torch.save(checkpoint(network(CONFIG)), path)
        data = path.read_bytes()
        for length in range(0, len(data), len(data) // 20):
            path.write_bytes(data[:length])
            with pytest.raises(PidistillError, match="cannot be read"):
                score_sde.load(str(path))

    def test_byte_flips_are_one_error_or_load(self, tmp_path):
        path = tmp_path / "a.pth"
        torch.save(checkpoint(network(CONFIG)), path)
        (tmp_path / "a.json").write_text(json.dumps(SAID))
        data = path.read_bytes()
        generator = torch.Generator().manual_seed(0)
        for _ in range(60):
            damaged = bytearray(data)
            damaged[int(torch.randint(len(data), (), generator=generator))] ^= 0x55
            damaged[int(torch.randint(6000, (), generator=generator))] ^= 0x55
            path.write_bytes(damaged)
            try:
                score_sde.load(str(path))
            except PidistillError as error:
                message = str(error)
                assert "\n" not in message

    def test_a_missing_file_is_named(self, tmp_path):
        with pytest.raises(PidistillError, match="is not a file; expected score-sde:FILE"):
            load_teacher("score-sde:none.pth")
