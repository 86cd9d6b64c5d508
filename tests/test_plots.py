"""The common style of plots."""

from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from pidistill.report.plots import log_axis


@given(st.floats(-12, 9), st.floats(0.001, 15))
def test_a_logarithmic_axis_has_a_few_plain_ticks(low, decades):
    axes = Figure().add_subplot()
    axes.plot([1, 2], [10**low, 10 ** (low + decades)])
    log_axis(axes.yaxis)
    ticks = [t for t in axes.get_yticks() if axes.get_ylim()[0] <= t <= axes.get_ylim()[1]]
    assert 2 <= len(ticks) <= 8
    texts = axes.yaxis.get_major_formatter().format_ticks(ticks)
    assert [float(text.replace(",", "")) for text in texts] == [float(f"{t:.10g}") for t in ticks]
