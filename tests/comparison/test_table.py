import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pidistill.comparison.costs import Cost
from pidistill.comparison.plan import Entry, PlannedRun
from pidistill.comparison.plots import dot_plot
from pidistill.comparison.table import Row, Spread, as_json, figures, markdown, quality, spending

from method_runs import small

TEACHER = {"nfe": 79, "frechet_distance": 0.25}


def row(name="PID", metrics=None, failures=None, seeds=(0, 1)):
    runs = [PlannedRun(small("pid", seed=seed), Path(f"run-{seed}"), "abc") for seed in seeds]
    entry = Entry(name, runs, "noise", 2)
    return Row(entry, metrics or {}, Spread([2.0, 4.0]), 80, failures or {})


MEASURED = {1: {"rms_error": Spread([0.1, 0.3]), "frechet_distance": Spread([1.0, 2.0])}}


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=9))
def test_a_spread_holds_its_mean(values):
    spread = Spread(values)
    assert spread.low <= spread.mean + 1e-6
    assert spread.mean <= spread.high + 1e-6


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.00"),
        (0.17, "0.170"),
        (0.0123456, "0.0123"),
        (4.0, "4.00"),
        (242.3, "242"),
        (999.6, "1,000"),
        (11834.0, "11,800"),
        (1e-6, "1.00e-06"),
        (float("inf"), "inf"),
        (float("nan"), "nan"),
    ],
)
def test_numbers_have_three_figures(value, text):
    assert figures(value) == text


def test_a_spread_shows_its_range_where_there_are_several():
    assert str(Spread([0.1, 0.3])) == "0.200 (0.100-0.300)"
    assert str(Spread([0.5])) == "0.500"


def test_what_nobody_knows_is_absent():
    failed = row(failures={0: "it diverged"})
    failed = dataclasses.replace(failed, teacher_evaluations=None, train_seconds=None)
    assert "teacher_evals" not in as_json(failed, None)
    assert spending([failed], {}).lines[0][3] == "-"


def test_plots_tell_more_than_one_evaluation():
    several = row(metrics={4: MEASURED[1]})
    figure = dot_plot([row(metrics=MEASURED), several], {})
    names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert names == ["PID", "PID (4 evaluations)"]


def test_the_first_line_is_the_teacher():
    cells = quality([row(metrics=MEASURED)], TEACHER)
    assert cells.columns == ["", "NFE", "error", "FD", "data needed"]
    assert cells.lines == [
        ["teacher", "79", "0 by definition", "0.250", ""],
        ["PID", "1", "0.200 (0.100-0.300)", "1.50 (1.00-2.00)", "none"],
    ]


def test_there_is_no_column_for_a_distance_that_was_not_taken():
    metrics = {1: {"rms_error": Spread([0.1])}, 2: {"rms_error": Spread([0.2])}}
    cells = quality([row(metrics=metrics)], {"nfe": 79})
    assert cells.columns == ["", "NFE", "error", "data needed"]
    assert [line[1] for line in cells.lines] == ["79", "1", "2"]
    assert {len(line) for line in cells.lines} == {4}


def test_a_failure_is_shown():
    cells = quality([row(failures={0: "not finite", 1: "not finite"})], TEACHER)
    assert cells.lines[1] == ["PID [2 of 2 failed]", "-", "-", "-", "none"]


def test_spending_counts_samples_times_what_each_costs():
    cost = Cost(ms_per_step=12.3, ms_quartiles=(12.0, 13.0), memory=5_000_000)
    cells = spending([row(metrics=MEASURED)], {"abc": cost})
    assert dict(zip(cells.columns, cells.lines[0], strict=True)) == {
        "": "PID",
        "steps": "10",
        "images": "80",
        "teacher evals": "80",
        "student evals": "160",
        "train s": "3",
        "ms/step": "12.3",
        "peak MB": "5",
    }


def test_json_holds_every_seed_and_nothing_that_was_not_measured():
    content = as_json(row(metrics=MEASURED), None)
    assert content["metrics"]["1"]["rms_error"] == {
        "mean": pytest.approx(0.2),
        "min": 0.1,
        "max": 0.3,
        "values": [0.1, 0.3],
    }
    assert "cost" not in content
    assert "failures" not in content
    json.dumps(content, allow_nan=False)


def test_markdown_has_a_cell_a_column():
    lines = markdown(quality([row(metrics=MEASURED)], TEACHER)).splitlines()
    assert {line.count("|") for line in lines} == {6}
    assert set(lines[1]) == set("|-: ")
