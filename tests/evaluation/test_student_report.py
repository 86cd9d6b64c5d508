"""The page about a student, for both kinds of paths."""

import pytest

from pidistill.evaluation import student_report
from pidistill.evaluation.student_report import write_report
from pidistill.students.flow_map import FlowMapStudent
from pidistill.students.trajectory import TrajectoryStudent


@pytest.mark.parametrize("kind", [TrajectoryStudent, FlowMapStudent])
def test_a_report_shows_the_paths_of_any_student_that_has_them(kind, digits, tmp_path, monkeypatch):
    teacher, _ = digits
    page = written(tmp_path, monkeypatch, kind.from_teacher(teacher), teacher)
    assert page.count("data:image/png") == 2 + 2 * 5 + 1


def test_a_report_in_the_plane(gaussian, gaussian_student, tmp_path, monkeypatch):
    page = written(tmp_path, monkeypatch, gaussian_student, gaussian)
    assert page.count("data:image/png") == 2 + 2 * 5


def written(folder, monkeypatch, student, teacher):
    """The text of a report."""
    monkeypatch.setattr(student_report, "ERROR_SAMPLES", 60)
    write_report(
        folder / "report.html",
        student,
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
    page = (folder / "report.html").read_text()
    assert "A student" in page
    assert page.count("<svg") == 3
    return page
