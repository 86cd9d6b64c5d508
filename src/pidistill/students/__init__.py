"""Students: networks that sample in one or a few evaluations, one kind per file."""

from torch import nn

from pidistill.denoiser import Denoiser
from pidistill.students.base import Student
from pidistill.students.consistency import ConsistencyStudent
from pidistill.students.edm_trajectory import EDMTrajectoryStudent
from pidistill.students.euler import EulerStudent
from pidistill.students.flow_map import FlowMapStudent
from pidistill.students.path import PathStudent
from pidistill.students.soft_boundary import SoftBoundaryStudent
from pidistill.students.trajectory import TrajectoryStudent, should_anchor

__all__ = [
    "TRAJECTORIES",
    "ConsistencyStudent",
    "EDMTrajectoryStudent",
    "EulerStudent",
    "FlowMapStudent",
    "PathStudent",
    "SoftBoundaryStudent",
    "Student",
    "TrajectoryStudent",
    "should_anchor",
    "trajectory_student",
]

TRAJECTORIES: dict[str, type[TrajectoryStudent]] = {
    "linear": TrajectoryStudent,
    "edm": EDMTrajectoryStudent,
    "soft": SoftBoundaryStudent,
}
"""Parametrisations of the trajectory by name; `linear` is the published one."""


def trajectory_student(
    parametrisation: str, teacher: Denoiser, network: nn.Module | None, anchored: bool | None
) -> TrajectoryStudent:
    """A trajectory student of `teacher`.

    Args:
        parametrisation: A key of `TRAJECTORIES`.
        teacher: The teacher.
        network: A network to use instead of a copy of the teacher's.
        anchored: Whether to anchor it; None decides by the teacher (`should_anchor`).

    Raises:
        PidistillError: The student cannot be built from the teacher (see `Student.from_teacher`).
    """
    anchored = should_anchor(anchored, teacher, network)
    kind = TRAJECTORIES[parametrisation]
    return kind.from_teacher(teacher, network=network, anchored=anchored)
