"""Averages of weights, against their definition."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pidistill.training.averages import Averages


@given(st.lists(st.floats(0.01, 0.9999), min_size=1, max_size=3), st.booleans(), st.integers(0, 15))
def test_every_average_is_the_recursion_at_its_rate(rates, warmup, num_steps):
    generator = torch.Generator().manual_seed(0)
    module = torch.nn.Linear(2, 3, dtype=torch.float64)
    ema = Averages(module, rates, warmup=warmup)
    expected = [module.weight.detach().clone() for _ in rates]
    for step in range(num_steps):
        module.weight.data = torch.randn(3, 2, generator=generator, dtype=torch.float64)
        ema.update(step)
        for average, rate in zip(expected, rates, strict=True):
            keep = min(rate, (step + 1) / (step + 10)) if warmup else rate
            average.mul_(keep).add_(module.weight.detach(), alpha=1 - keep)
    module.weight.data.add_(1)  # an average does not follow by itself
    for index, average in enumerate(expected):
        torch.testing.assert_close(ema.weights(index)["weight"], average)


def test_buffers_are_copied_not_averaged():
    module = torch.nn.BatchNorm1d(3)
    ema = Averages(module, [0.9], warmup=False)
    module.running_mean.fill_(5)
    ema.update(0)
    weights = ema.weights(0)
    assert weights.keys() == module.state_dict().keys()
    assert torch.equal(weights["running_mean"], torch.full((3,), 5.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_averages_come_back_as_they_were(dtype):
    module = torch.nn.Linear(2, 3, dtype=dtype)
    first, second = (Averages(module, [0.9, 0.99], warmup=False) for _ in range(2))
    module.weight.data.add_(1)
    first.update(0)
    for index in range(2):
        second.load(index, first.weights(index))
        assert second.weights(index)["weight"].dtype == dtype
        assert torch.equal(second.weights(index)["weight"], first.weights(index)["weight"])
