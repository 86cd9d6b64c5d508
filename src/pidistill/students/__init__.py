"""Students: one network evaluation a sample, and what each kind pins down by construction."""

from pidistill.students.base import Student
from pidistill.students.consistency import ConsistencyStudent
from pidistill.students.euler import EulerStudent
from pidistill.students.trajectory import TrajectoryStudent

__all__ = ["ConsistencyStudent", "EulerStudent", "Student", "TrajectoryStudent"]
