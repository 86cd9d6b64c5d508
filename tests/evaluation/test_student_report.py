"""The page about a student, for both kinds of paths."""

import pytest

from pidistill.evaluation import student_report
from pidistill.evaluation.student_report import write_report
from pidistill.students.flow_map import FlowMapStudent
from pidistill.students.trajectory import TrajectoryStudent


@pytest.mark.parametrize("kind", [TrajectoryStudent, FlowMapStudent])
def test_a_report_shows_the_paths_of_any_student_that_has_them(kind, digits, tmp_path, monkeypatch):
    monkeypatch.setattr(student_report, "ERROR_SAMPLES", 60)
    teacher, _ = digits
    write_report(
        tmp_path / "report.html",
        kind.from_teacher(teacher),
        teacher,
        title="A student",
        subtitle="Untrained.",
        table=(["", "NFE"], [["teacher", "9"], ["student", "1"]]),
        context="Two rows.",
        error_curve={1: 0.5, 2: 0.4},
        provenance={"seed": "0"},
        seed=0,
        steps=5,
    )
    page = (tmp_path / "report.html").read_text()
    assert "A student" in page
    assert page.count("data:image/png") >= 2 + 2 * 5 + 1
    assert page.count("<svg") >= 2
