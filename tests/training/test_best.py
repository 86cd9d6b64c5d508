"""The best checkpoint: by an average that can be told from its definition."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pidistill.training.best import STEPS, Best

losses = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=3 * STEPS)


@given(losses)
def test_the_average_is_the_mean_at_first_and_forgets_after(values):
    best = Best()
    for value in values:
        best.update(value)
    early, late = values[:STEPS], values[STEPS:]
    expected = sum(early) / len(early)
    for value in late:
        expected = (1 - 1 / STEPS) * expected + value / STEPS
    assert best.average == pytest.approx(expected, abs=1e-9)


@given(losses, st.integers(1, 20))
def test_the_best_is_where_the_average_was_lowest(values, every):
    best, averages = Best(), {}
    for step, value in enumerate(values, start=1):
        best.update(value)
        if step % every == 0:
            best.judge(step)
            averages[step] = best.average
    if averages:
        assert best.lowest == min(averages.values()) == averages[best.step]
    else:
        assert best.step is None
