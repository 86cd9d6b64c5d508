r"""One-step sampling as a single formula with five constants.

$$x = s z + (1 - s) (c_{skip} z + c_{out} F(c_{in} z, c_{noise}))$$

For a trajectory student, $s = \sigma_{min} / \sigma_{max}$ (0 with a soft boundary condition), and
the others are its scales at `sigma_min`. For an Euler student, $s$ is the same, and the others are
the preconditioning at `sigma_max`. For a consistency student, $s = 0$, and the others are its
scales at `sigma_max`. An exported student thus needs no preconditioning or noise schedule.
"""

import dataclasses

import torch
from torch import Tensor, nn

from pidistill.denoiser import call_network
from pidistill.errors import PidistillError
from pidistill.students.base import Student
from pidistill.students.consistency import ConsistencyStudent
from pidistill.students.euler import EulerStudent
from pidistill.students.trajectory import TrajectoryStudent


@dataclasses.dataclass(frozen=True)
class Scales:
    """The constants of the formula; `noise_share` is s, the share of `z` in a sample."""

    c_in: float
    c_noise: float
    c_skip: float
    c_out: float
    noise_share: float


def one_step_sample(network: nn.Module, z: Tensor, label: Tensor | None, scales: Scales) -> Tensor:
    """Samples in one evaluation, with the shape and dtype of the starting noise.

    Args:
        network: The raw network, called as `network(u, c_noise, label)`.
        z: Starting noise (b, ...) from N(0, sigma_max^2 I).
        label: Class labels (b,), int64; -1 means "no label", as does None for the whole batch.
        scales: The constants of the formula.
    """
    raw = call_network(network, scales.c_in * z, z.new_full(z.shape[:1], scales.c_noise), label)
    out = scales.c_skip * z + scales.c_out * raw
    return scales.noise_share * z + (1 - scales.noise_share) * out


def scales_of(student: Student) -> Scales:
    """The constants of a student's formula.

    Raises `PidistillError` if the student does not sample by this formula.
    """
    if student.num_steps != 1:
        raise PidistillError(
            f"the student was trained for {student.num_steps} evaluations per sample; only "
            "one-step students can be exported"
        )
    match student:
        case TrajectoryStudent():
            sigma = torch.tensor([student.sigma_min], dtype=torch.float64)
            factors, share = student.scales(sigma), student.share(sigma).item()
        case EulerStudent():
            sigma = torch.tensor([student.sigma_max])  # its steps are computed in float32
            factors = student.precondition.scales(sigma)
            share = student.sigma_min / student.sigma_max
        case ConsistencyStudent():
            sigma = torch.tensor([student.sigma_max], dtype=torch.float64)
            factors, share = student.scales(sigma), 0.0
        case _:
            raise PidistillError(
                f"the student is a {type(student).__name__}; expected a trajectory, Euler or "
                "consistency student"
            )
    constants = {name: value.item() for name, value in factors._asdict().items()}
    return Scales(**constants, noise_share=share)
