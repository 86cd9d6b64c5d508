"""Random numbers by seed and index: the same for any split, normal, and independent."""

import types

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pidistill.noise import Draws, device_of, initial_noise
from pidistill.philox import philox_words, philox_words_in_torch

WORDS = [13436065951398147953, 4968403903621381711, 8617965030547868993, 8699845153769204460]
NORMAL = [1.4003324621931814, 0.7462919352752975, 0.6779793542416985]

KINDS = {
    "normal": lambda draws: draws.normal("a stream", (3, 2)),
    "odd normal": lambda draws: draws.normal("a stream", (5,)),
    "scalar normal": lambda draws: draws.normal("a stream", ()),
    "uniform": lambda draws: draws.uniform("a stream"),
    "integers": lambda draws: draws.integers("a stream", 10),
}
every_kind = pytest.mark.parametrize("draw", KINDS.values(), ids=KINDS)
seeds = st.integers(0, 2**63 - 1)


@every_kind
@given(seed=seeds, first=st.integers(0, 2**40), sizes=st.lists(st.integers(1, 5), min_size=1))
def test_any_split_gives_the_same_numbers(draw, seed, first, sizes):
    whole = draw(Draws(seed, first, sum(sizes)))
    parts, at = [], first
    for size in sizes:
        parts.append(draw(Draws(seed, at, size)))
        at += size
    assert torch.equal(torch.cat(parts), whole)


@every_kind
@given(seed=seeds, other=seeds)
def test_seeds_and_streams_have_different_numbers(draw, seed, other):
    numbers = draw(Draws(seed, 0, 50))
    assert torch.equal(numbers, draw(Draws(seed, 0, 50)))
    if seed != other:
        assert not torch.equal(numbers, draw(Draws(other, 0, 50)))


def correlation(a, b):
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].abs().item()


def test_streams_seeds_and_samples_are_uncorrelated():
    """Each correlation of n = 40,000 numbers is within five of its standard errors of zero."""
    num, bound = 10_000, 5 / 200
    a = Draws(0, 0, num).normal("a", (4,))
    assert correlation(a, Draws(0, 0, num).normal("b", (4,))) < bound
    assert correlation(a, Draws(1, 0, num).normal("a", (4,))) < bound
    assert correlation(a[:-1], a[1:]) < bound
    assert correlation(a[:, 0], a[:, 2]) < bound * 2  # the cosine and the sine of one pair
    assert correlation(a[:, 0].square(), a[:, 2].square()) < bound * 2


def test_normal_numbers_have_the_moments_of_the_normal_distribution():
    """Within five standard errors: of mean, variance, skewness and kurtosis, in that order."""
    x = Draws(3, 0, 100_000).normal("z", (4,)).flatten()
    n = len(x)
    assert x.mean().abs() < 5 / n**0.5
    assert (x.var() - 1).abs() < 5 * (2 / n) ** 0.5
    assert x.pow(3).mean().abs() < 5 * (15 / n) ** 0.5
    assert (x.pow(4).mean() - 3).abs() < 5 * (96 / n) ** 0.5


def test_normal_numbers_have_the_distribution_function_of_the_normal_distribution():
    """The Kolmogorov-Smirnov distance is exceeded with a probability of 1e-6."""
    x = Draws(7, 0, 20_000).normal("z", (5,)).flatten().sort().values
    n = len(x)
    distance = (torch.special.ndtr(x) - (torch.arange(n) + 0.5) / n).abs().max()
    assert distance < 2.7 / n**0.5


def test_uniform_numbers_are_uniform_and_below_one():
    x = Draws(11, 0, 100_000).uniform("sigma").sort().values
    assert x[0] >= 0
    assert x[-1] < 1
    assert (x - (torch.arange(len(x)) + 0.5) / len(x)).abs().max() < 2.7 / len(x) ** 0.5


@given(st.integers(1, 20))
def test_integers_are_in_range_and_equally_likely(high):
    num = 20_000
    counts = Draws(0, 0, num).integers("label", high).bincount(minlength=high)
    assert len(counts) == high
    assert ((counts - num / high).abs() < 5 * (num / high) ** 0.5).all()


@given(st.integers(0, 1000), st.floats(0.1, 1e4))
def test_initial_noise_is_float32_of_the_deviation_sigma_max(seed, sigma_max):
    student = types.SimpleNamespace(sigma_max=sigma_max, sample_shape=(1, 8, 8))
    z = initial_noise(student, 100, seed=seed)
    assert z.shape == (100, 1, 8, 8)
    assert z.dtype == torch.float32
    assert z.std().item() == pytest.approx(sigma_max, rel=5 / (2 * 6400) ** 0.5)


@given(st.integers(0, 1000), st.integers(1, 30), st.integers(0, 30))
def test_initial_noise_of_a_sample_depends_on_its_index_only(seed, num, first):
    student = types.SimpleNamespace(sigma_max=80.0, sample_shape=(3,))
    z = initial_noise(student, first + num, seed=seed)
    assert torch.equal(z[first:], initial_noise(student, num, seed=seed, first=first))


def test_the_device_is_that_of_the_first_tensor():
    assert device_of(torch.nn.Linear(2, 2, device="meta")) == torch.device("meta")
    assert device_of(torch.nn.Identity()) == torch.device("cpu")


@given(
    st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)),
    st.integers(0, 2**63 - 100),
    st.integers(1, 50),
)
def test_torch_gives_the_words_of_numpys_philox(key, first, num):
    """Accelerators draw the numbers of the CPU: the same integers, bit for bit."""
    cpu = torch.device("cpu")
    expected = philox_words(key, first, num, cpu)
    assert torch.equal(philox_words_in_torch(key, first, num, cpu), expected)


def test_words_and_noise_stay_what_they_are():
    """Numbers that checkpoints and published samples depend on."""
    words = philox_words_in_torch((7, 11), 5, 1, torch.device("cpu")).numpy().view(np.uint64)
    generator = np.random.Philox(key=np.array([7, 11], np.uint64), counter=np.array([5, 0, 0, 0]))
    assert words.tolist() == generator.random_raw(4).tolist() == WORDS
    normal = Draws(7, 5, 1).normal("z", (3,))
    torch.testing.assert_close(
        normal[0], torch.tensor(NORMAL, dtype=torch.float64), rtol=0, atol=1e-14
    )
