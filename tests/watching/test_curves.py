"""Curves: which there are, and that smoothing keeps what is true of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pidistill.watching.curves import POINTS, panels, smoothed
from pidistill.watching.status import RunStatus

values = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200)


def run_of(log, tmp_path):
    return RunStatus(tmp_path, "training", "", {}, log, None, None)


@given(values)
def test_smoothed_values_stay_between_the_extremes(values):
    means = smoothed(values)
    assert len(means) == len(values)
    margin = 1e-9 * (1 + max(map(abs, values))) * len(values)
    assert all(min(values) - margin <= mean <= max(values) + margin for mean in means)
    assert means[0] == pytest.approx(values[0], abs=margin)


@given(st.integers(1, 300), st.floats(-10, 10), st.floats(-10, 10))
def test_a_straight_line_is_smooth_already(num, slope, start):
    line = [start + slope * i for i in range(num)]
    assert smoothed(line) == pytest.approx(line, abs=1e-6)


def test_noise_is_smaller_once_smoothed():
    noise = [(-1.0) ** i for i in range(400)]
    assert max(map(abs, smoothed(noise)[50:-50])) < 0.1


def test_every_quantity_has_a_panel_the_loss_first(tmp_path):
    log = [
        {"step": i, "images": i, "residual": 1.0 + i, "loss": 2.0, "note": "x", "learning_rate": i}
        for i in range(10)
    ]
    found = panels([run_of(log, tmp_path)])
    assert [panel.name for panel in found] == ["loss", "residual", "learning_rate"]
    assert [panel.log for panel in found] == [False, True, False]
    assert found[1].x_range() == (0, 9)
    assert found[1].y_range() == (1, 10)
    assert found[2].curves[0].smooth == found[2].curves[0].values


def test_runs_share_panels(tmp_path):
    first = run_of([{"step": i, "loss": 1.0, "residual": 2.0} for i in range(5)], tmp_path)
    second = run_of([{"step": i, "loss": 3.0} for i in range(9)], tmp_path)
    third = run_of([{"step": 0, "loss": 3.0}], tmp_path)
    found = {panel.name: panel for panel in panels([first, second, third])}
    assert [curve.run for curve in found["loss"].curves] == [0, 1]
    assert [curve.run for curve in found["residual"].curves] == [0]
    assert found["loss"].x_range() == (0, 8)


def test_what_is_no_finite_number_is_left_out(tmp_path):
    odd = [1.0, float("nan"), None, "x", True, float("inf"), 2.0]
    log = [{"step": i, "loss": value} for i, value in enumerate(odd)]
    (panel,) = panels([run_of(log, tmp_path)])
    assert panel.curves[0].values == [1.0, 2.0]
    assert panel.curves[0].steps == [0, 6]


def test_long_curves_are_thinned(tmp_path):
    log = [{"step": i, "loss": 1.0 + i} for i in range(12345)]
    (panel,) = panels([run_of(log, tmp_path)])
    curve = panel.curves[0]
    assert POINTS // 2 <= len(curve.steps) == len(curve.values) == len(curve.smooth) <= POINTS


def test_a_logarithmic_curve_is_smoothed_in_the_logarithm(tmp_path):
    log = [{"step": i, "loss": 10.0 ** (-i / 20)} for i in range(200)]
    (panel,) = panels([run_of(log, tmp_path)])
    assert panel.log
    assert panel.curves[0].smooth == pytest.approx(panel.curves[0].values, rel=1e-9)


def test_nothing_logged_is_nothing_to_draw(tmp_path):
    assert panels([run_of([], tmp_path)]) == []
