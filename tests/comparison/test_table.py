import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pidistill.comparison.costs import Cost
from pidistill.comparison.plan import Plan, Section
from pidistill.comparison.plots import dot_plot, line_plot, plots
from pidistill.comparison.recipe import Sweep
from pidistill.comparison.table import Comparison, Row, Spread, as_json, quality, spending

TEACHER = {"nfe": 79, "frechet_distance": 0.25}
MEASURED = {1: {"rms_error": Spread.over([0.1, 0.3]), "frechet_distance": Spread.over([1.0, 2.0])}}
COST = Cost(seconds_per_step=0.0123, preparation_seconds=0.0, memory=5_000_000)


def row(name="PID", metrics=MEASURED):
    folders = [Path("run-0"), Path("run-1")]
    results = {"failures": {0: "not finite", 1: "not finite"}}
    if metrics:
        results = {"teacher_evals": 80, "teacher_backwards": 60, "train_seconds": [2.0, 4.0]}
    return Row(name, "pid", "abc", folders, [0, 1], "noise", 10, 80, metrics, **results)


def comparison(rows, sweep=None, costs=None):
    section = Section("Runs", [], sweep)
    plan = Plan("Title", "Budget.", None, "digits", 16, 0, [1], [section])
    return Comparison(plan, TEACHER, {"Runs": rows}, costs or {}), section


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=9))
def test_a_spread_holds_its_mean(values):
    spread = Spread.over(values)
    assert spread.min - 1e-6 <= spread.mean <= spread.max + 1e-6


def test_quality_has_a_line_per_nfe_after_the_teacher():
    several = row("CD", {1: MEASURED[1], 2: MEASURED[1]})
    cells = quality([row(), several, row("bad", {})], TEACHER)
    assert cells.columns == ["", "NFE", "error", "FD", "data needed"]
    spread = ["0.200 (0.100-0.300)", "1.50 (1.00-2.00)", "none"]
    assert cells.lines == [
        ["teacher", "79", "0 by definition", "0.250", ""],
        ["PID", "1", *spread],
        ["CD", "1", *spread],
        ["CD", "2", *spread],
        ["bad [2 of 2 failed]", "-", "-", "-", "none"],
    ]


def test_there_is_no_column_for_a_distance_that_was_not_taken():
    cells = quality([row(metrics={1: {"rms_error": Spread.over([0.1])}})], {"nfe": 79})
    assert cells.columns == ["", "NFE", "error", "data needed"]
    assert cells.lines[1] == ["PID", "1", "0.100", "none"]


def test_spending_is_that_of_one_run():
    cells = spending([row(), row(metrics={})], {"abc": COST})
    columns = ["", "steps", "images", "teacher evals", "backwards", "train s", "ms/step", "peak MB"]
    assert cells.columns == columns
    assert cells.lines[0] == ["PID", "10", "80", "80", "60", "3", "12.3", "5"]
    assert spending([row(metrics={})], {}).lines[0][3:] == ["-"] * 5


def test_json_holds_every_seed_and_nothing_that_was_not_measured():
    found, _ = comparison([row(), row("bad", {})])
    content = json.loads(json.dumps(as_json(found, {}), allow_nan=False))
    good, bad = content["sections"]["Runs"]
    mean = pytest.approx(0.2)
    values = {"mean": mean, "min": 0.1, "max": 0.3, "values": [0.1, 0.3]}
    assert good["metrics"]["1"]["rms_error"] == values
    assert good["folders"] == ["run-0", "run-1"]
    assert not {"cost", "failures"} & set(good)
    assert not {"cost", "teacher_evals", "train_seconds"} & set(bad)
    assert set(bad["failures"]) == {"0", "1"}
    timed, _ = comparison([row()], costs={"abc": COST})
    cost = as_json(timed, {})["sections"]["Runs"][0]["cost"]
    assert cost == {"ms_per_step": pytest.approx(12.3), "memory": 5_000_000}


def test_plots_name_an_nfe_above_one_and_the_teacher():
    figure = dot_plot([row(), row(metrics={4: MEASURED[1]})], TEACHER)
    error, distance = figure.axes
    assert [text.get_text() for text in error.get_yticklabels()] == ["PID", "PID (4 NFE)"]
    assert error.get_legend() is None
    assert [text.get_text() for text in distance.get_legend().get_texts()] == ["teacher"]


def test_a_sweep_over_numbers_is_a_line_and_a_failure_a_gap():
    sweep = Sweep(name="N", key="method.num_nodes", values=[4, 10, 40])
    rows = [row("4"), row("10", {}), row("40")]
    assert list(plots(*comparison(rows, sweep))) == ["runs"]
    figure = line_plot([rows[0], rows[2]], "method.num_nodes", TEACHER)
    assert list(figure.axes[0].get_xticks()) == [4, 40]


@pytest.mark.parametrize(
    ("rows", "names"),
    [
        ([row(metrics={})], []),
        ([row()], ["runs"]),
        ([row(), row(metrics={1: MEASURED[1], 2: MEASURED[1]})], ["runs", "runs-evaluations"]),
    ],
)
def test_a_section_has_the_plots_that_say_something(rows, names):
    assert list(plots(*comparison(rows))) == names
