"""Denoisers made of a raw network and a preconditioning, and of any callable."""

import re

import pytest
import torch

from pidistill import PidistillError, initial_noise, solve
from pidistill.denoiser import PreconditionedDenoiser, as_denoiser, call_network, over_sample
from pidistill.methods.base import Batch
from pidistill.methods.pid import PID, PIDSettings
from pidistill.networks.mlp import MLP
from pidistill.noise import Draws
from pidistill.precondition import PRECONDITIONS, EDMPrecondition
from pidistill.storage import weights_sha256

SCALED = ["edm", "vp", "ve", "iddpm"]


class Recorder(torch.nn.Module):
    """A raw network that keeps what it is given and answers with a fixed function of it."""

    def __init__(self, channels, dtype=torch.float32):
        super().__init__()
        self.bias = torch.nn.Parameter(torch.ones(channels, 1, 1, dtype=dtype))

    def forward(self, u, c_noise, label=None):
        self.given = u, c_noise, label
        return u.mean(1, keepdim=True) + self.bias


def denoiser(network, precondition):
    return PreconditionedDenoiser(network, precondition, sample_shape=(2, 4, 4), source="a test")


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("channels", [2, 4])
def test_it_scales_input_and_output_and_drops_a_predicted_variance(name, channels):
    precondition = PRECONDITIONS[name]()
    network = Recorder(channels, torch.float64)
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    sigma, label = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64), torch.arange(3)
    denoised = denoiser(network, precondition)(x, sigma, label)
    scales = precondition.scales(sigma)
    c_skip, c_out, c_in, _ = (factor[:, None, None, None] for factor in scales)
    raw = (c_in * x).mean(1, keepdim=True).expand_as(x) + 1
    torch.testing.assert_close(denoised, c_skip * x + c_out * raw)
    torch.testing.assert_close(network.given[0], c_in * x)
    assert torch.equal(network.given[1], scales.c_noise)
    assert torch.equal(network.given[2], label)


@pytest.mark.parametrize("of_samples", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("of_network", [torch.float32, torch.float64])
def test_a_network_computes_in_its_own_dtype_and_answers_in_that_of_the_samples(
    of_samples, of_network
):
    network = Recorder(2, of_network)
    u = torch.randn(3, 2, 4, 4, dtype=of_samples)
    out = call_network(network, u, torch.ones(3, dtype=torch.float64), None)
    assert out.dtype == of_samples
    assert network.given[0].dtype == network.given[1].dtype == of_network


def test_values_are_spread_over_samples_of_any_shape():
    values = torch.tensor([1.0, 2.0], dtype=torch.float64)
    for shape in ((2,), (2, 3), (2, 3, 4, 4)):
        spread = over_sample(values, torch.zeros(shape))
        assert spread.shape == (2, *[1] * (len(shape) - 1))
        assert spread.dtype == torch.float32


def test_it_has_the_noise_levels_of_its_preconditioning():
    precondition = EDMPrecondition(sigma_min=0.01, sigma_max=10.0, sigma_data=0.7)
    model = denoiser(Recorder(2), precondition)
    assert (model.sigma_min, model.sigma_max, model.sigma_data) == (0.01, 10.0, 0.7)
    assert model.num_classes == 0


# --- any callable as a denoiser

DECLARED = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "sample_shape": (2,)}


def shrink(x, sigma, label):
    """The denoiser of standard normal data."""
    return x / (1 + sigma[:, None] ** 2)


def test_a_function_is_solved_like_any_teacher():
    teacher = as_denoiser(shrink, **DECLARED)
    z = initial_noise(teacher, 5, seed=0).double()
    x = solve(teacher, z, steps=200).x
    torch.testing.assert_close(x, z / (1 + 80**2) ** 0.5, rtol=1e-3, atol=0)
    assert "shrink" in teacher.source
    assert teacher.network_to_copy() is None


def test_labels_reach_the_function_and_a_student_learns_from_it():
    seen = []

    def function(x, sigma, label):
        seen.append(label)
        return shrink(x, sigma, label)

    teacher = as_denoiser(function, **DECLARED, num_classes=3)
    network = MLP((2,), num_classes=3, width=8, num_blocks=1)
    method = PID.build(PIDSettings(), teacher=teacher, data=None, network=network)
    label = torch.tensor([0, 2, -1, 1])
    method.loss(Batch(Draws(0, 0, 4), label, None)).loss.mean().backward()
    assert all(torch.equal(given, label) for given in seen)
    assert network.output.weight.grad.abs().max() > 0


def test_a_module_is_part_of_its_denoiser():
    class Network(torch.nn.Linear):
        def forward(self, x, sigma, label):
            return super().forward(x)

    network = Network(2, 2)
    teacher = as_denoiser(network, **DECLARED)
    before = weights_sha256(teacher)
    teacher.to(torch.float64)
    assert network.weight.dtype == torch.float64
    assert weights_sha256(teacher) != before
    assert network.weight.requires_grad  # left alone


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sigma_min", 0.0),
        ("sigma_max", 0.001),
        ("sigma_max", float("inf")),
        ("sigma_data", -1.0),
        ("sample_shape", ()),
        ("sample_shape", (0, 4)),
        ("sample_shape", 3),
        ("num_classes", -1),
        ("num_classes", 2.5),
    ],
)
def test_what_cannot_be_a_denoiser_is_refused_by_name(key, value):
    with pytest.raises(PidistillError, match=f"{key} is {re.escape(str(value))}"):
        as_denoiser(shrink, **{**DECLARED, key: value})


def test_what_is_not_callable_or_answers_in_another_shape_is_refused():
    with pytest.raises(PidistillError, match="function is 3"):
        as_denoiser(3, **DECLARED)
    x, sigma = torch.zeros(4, 2), torch.ones(4)
    for answer, said in ((torch.zeros(4), r"\(4,\)"), (None, "NoneType")):
        teacher = as_denoiser(lambda x, sigma, label, answer=answer: answer, **DECLARED)
        with pytest.raises(PidistillError, match=said):
            teacher(x, sigma)


def test_errors_of_the_function_pass_through():
    def typo(x, sigma, label):
        return x.sped

    with pytest.raises(AttributeError, match="sped"):
        as_denoiser(typo, **DECLARED)(torch.zeros(1, 2), torch.ones(1))
