"""What a run measures: means, the running average, the first loss that is not finite."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pidistill.errors import PidistillError
from pidistill.methods.base import Losses
from pidistill.processes import ALONE, Processes
from pidistill.training.log import BEST_OVER
from pidistill.training.losses import LogSigmaBins, Measured

CPU = torch.device("cpu")
batches = st.lists(
    st.lists(
        st.tuples(st.floats(-1e3, 1e3), st.integers(-9, 6).map(lambda edge: edge + 0.5)),
        min_size=2,
        max_size=2,
    ),
    min_size=1,
    max_size=9,
)


def empty(processes=ALONE):
    return Measured(LogSigmaBins(0.002, 80.0), processes, CPU)


def losses_of(pairs, **scalars):
    loss, ln_sigma = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    return Losses(loss, ln_sigma.exp(), {key: torch.tensor(v) for key, v in scalars.items()})


@given(batches)
def test_means_are_those_of_all_losses_and_survive_a_checkpoint(steps):
    measured = empty()
    for step, pairs in enumerate(steps, start=1):
        again = empty()
        again.load(json.loads(json.dumps(measured.values())))
        measured = again
        norm = torch.tensor(math.inf if step % 2 else 3.0)  # fp16 skips such a step
        halves = [losses_of([pair], twice=2 * pair[0]) for pair in pairs]
        measured.add("student", halves, norm, step)
        assert measured.loss.item() == pytest.approx(sum(a for a, _ in pairs) / 2, abs=1e-9)
    flat = [pair for pairs in steps for pair in pairs]
    means, by_sigma = measured.take()
    assert means["loss"] == pytest.approx(sum(a for a, _ in flat) / len(flat), abs=1e-9)
    assert means["twice"] == pytest.approx(2 * means["loss"], abs=1e-3)
    assert means.get("grad_norm", 3.0) == 3.0
    assert ("grad_norm" in means) == (len(steps) > 1)
    assert measured.num_overflows() == (len(steps) + 1) // 2
    bins: dict[str, list[float]] = {}
    for loss, ln_sigma in flat:
        bins.setdefault(str(min(max(math.floor(ln_sigma), -7), 4)), []).append(loss)
    expected = {key: sum(values) / len(values) for key, values in bins.items()}
    assert by_sigma == pytest.approx(expected, abs=1e-9)
    assert list(by_sigma) == sorted(by_sigma, key=int)
    assert measured.take() == ({}, {})


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=3 * BEST_OVER))
def test_the_average_is_the_mean_at_first_and_forgets_after(values):
    measured = empty()
    for step, value in enumerate(values, start=1):
        measured.add("student", [losses_of([(value, 0.0)])], torch.tensor(1.0), step)
    early, late = values[:BEST_OVER], values[BEST_OVER:]
    expected = sum(early) / len(early)
    for value in late:
        expected = (1 - 1 / BEST_OVER) * expected + value / BEST_OVER
    assert measured.best_average() == pytest.approx(expected, abs=1e-9)


def test_the_first_loss_that_is_not_finite_is_named():
    measured = empty()
    norm = torch.tensor(1.0)
    measured.add("student", [losses_of([(1.0, 0.0), (2.0, 1.0)])], norm, 1)
    measured.require_finite()
    measured.add("student", [losses_of([(math.nan, -1.0), (2.0, 1.0)])], norm, 2)
    measured.add("auxiliary", [losses_of([(math.inf, 2.0), (2.0, 1.0)])], norm, 3)
    with pytest.raises(PidistillError, match=r"nan at step 2 \(sigma 0\.3679 \.\. 0\.3679\)"):
        measured.require_finite()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_another_number_of_processes_takes_over_all_sums(count):
    """Sums of two processes, loaded by `count`, add up to the same."""
    shares = [empty(), empty()]
    for index, share in enumerate(shares):
        share.add("student", [losses_of([(3.0 + index, 0.0)])], torch.tensor(1.0), 1)
    values = shares[0].values()
    values["numbers"] = [share.values()["numbers"][0] for share in shares]
    loaded = [empty(Processes(index, count)) for index in range(count)]
    for share in loaded:
        share.load(values)
    total = sum(share._vector() for share in loaded)
    torch.testing.assert_close(total, sum(share._vector() for share in shares))
