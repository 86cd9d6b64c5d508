"""Models shared by the evaluation tests."""

import pytest

from pidistill import load_teacher
from pidistill.students.trajectory import TrajectoryStudent


@pytest.fixture(scope="session")
def digits():
    """The digits teacher and a student that starts as its copy."""
    teacher = load_teacher("digits")
    return teacher, TrajectoryStudent.from_teacher(teacher, anchored=True)
