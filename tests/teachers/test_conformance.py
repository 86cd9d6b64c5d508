"""The contract of `Denoiser`, checked on one teacher per source."""

import math

import pytest
import torch

from pidistill import load_teacher
from pidistill.denoiser import over_sample
from pidistill.teachers.mixture import MIXTURES

from every_source import SPECS


@pytest.fixture(params=SPECS)
def teacher(request, tmp_path, mlp_teacher):
    return load_teacher(SPECS[request.param](tmp_path, mlp_teacher))


def noisy(teacher, num=7, dtype=torch.float32):
    """Noisy samples over the whole range of noise levels, and labels or None."""
    generator = torch.Generator().manual_seed(0)
    ends = (math.log(teacher.sigma_min), math.log(teacher.sigma_max))
    sigma = torch.linspace(*ends, num, dtype=torch.float64).exp().to(dtype)
    sigma[0], sigma[-1] = teacher.sigma_min, teacher.sigma_max
    normal = torch.randn(num, *teacher.sample_shape, generator=generator, dtype=dtype)
    x = over_sample((sigma**2 + teacher.sigma_data**2).sqrt(), normal) * normal
    label = torch.arange(num) % teacher.num_classes if teacher.num_classes else None
    return x, sigma, label


def assert_close(actual, expected, tolerance=1e-4):
    size = expected.abs().max().item()
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * size)


def test_it_says_what_it_is_and_is_ready_to_evaluate(teacher):
    assert 0 < teacher.sigma_min < teacher.sigma_max < math.inf
    assert 0 < teacher.sigma_data < math.inf
    assert all(isinstance(size, int) and size > 0 for size in teacher.sample_shape)
    assert isinstance(teacher.num_classes, int)
    assert teacher.num_classes >= 0
    assert teacher.source
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_keeps_shape_and_dtype_and_is_finite_over_its_range(teacher, dtype):
    x, sigma, label = noisy(teacher, dtype=dtype)
    for given in (label, None):
        denoised = teacher(x, sigma, given)
        assert denoised.shape == x.shape
        assert denoised.dtype == dtype
        assert denoised.isfinite().all()


def test_precisions_agree_and_noise_levels_may_be_more_precise_than_samples(teacher):
    x, sigma, label = noisy(teacher)
    denoised = teacher(x, sigma, label)
    double = teacher(x.double(), sigma.double(), label)
    assert_close(denoised.double(), double, 1e-3)
    mixed = teacher(x, sigma.double(), label)
    assert mixed.dtype == torch.float32
    assert_close(mixed, denoised)


def test_a_sample_does_not_depend_on_the_others_in_its_batch(teacher):
    x, sigma, label = noisy(teacher)
    together = teacher(x, sigma, label)
    for i in range(len(x)):
        one = slice(i, i + 1)
        alone = teacher(x[one], sigma[one], None if label is None else label[one])
        assert_close(alone, together[one])


def test_it_is_a_function_of_its_arguments(teacher):
    x, sigma, label = noisy(teacher)
    before = x.clone(), sigma.clone()
    assert torch.equal(teacher(x, sigma, label), teacher(x, sigma, label))
    assert torch.equal(x, before[0])
    assert torch.equal(sigma, before[1])


def test_minus_one_is_no_label(teacher):
    x, sigma, label = noisy(teacher)
    without = teacher(x, sigma)
    assert_close(teacher(x, sigma, torch.full((len(x),), -1)), without)
    if label is not None:
        mixed = teacher(x, sigma, label.masked_fill(torch.arange(len(x)) % 2 == 0, -1))
        assert_close(mixed[::2], without[::2])
        assert_close(mixed[1::2], teacher(x, sigma, label)[1::2])
        other = (label + 1) % teacher.num_classes
        assert not torch.allclose(teacher(x, sigma, label), teacher(x, sigma, other), atol=1e-3)


def test_the_input_may_require_a_gradient(teacher):
    x, sigma, label = noisy(teacher)
    x.requires_grad_()
    teacher(x, sigma, label).sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("name", MIXTURES)
def test_at_sigma_max_nothing_but_the_mean_of_the_data_is_left(name):
    """Closed-form teachers only: a trained network may not have learnt it."""
    teacher = load_teacher(f"mixture:{name}")
    mean = (teacher.log_prior.exp() @ teacher.means).reshape(teacher.sample_shape)
    sigma = torch.full((2,), 1e6 * teacher.sigma_data, dtype=torch.float64)
    x = torch.ones(2, *teacher.sample_shape, dtype=torch.float64)
    far = teacher(over_sample(sigma, x) * x, sigma)
    torch.testing.assert_close(far, mean.expand_as(far), rtol=0, atol=1e-4)
