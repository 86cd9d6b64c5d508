r"""Other parametrisations of the trajectory than the published one, and how each meets `z`.

Each is a `TrajectoryStudent` whose F has other scales, $F = c_{skip} z + c_{out} \cdot
\text{network}(c_{in} z, c_{noise})$, so that the residual and its derivatives are the same for all.
docs/mathematics.md derives them.
"""

import math

import torch
from torch import Tensor, nn

from pidistill.denoiser import Denoiser
from pidistill.derivative import LAST_TAU
from pidistill.errors import PidistillError
from pidistill.precondition import Precondition, Scales
from pidistill.schedule import from_log_odds
from pidistill.students.trajectory import TrajectoryStudent, should_anchor

LAST_TOLD = LAST_TAU + 1
"""Log-odds time that a network is told at `sigma_max`; a difference around `LAST_TAU` stays below
it up to the widest step."""


class EDMTrajectoryStudent(TrajectoryStudent):
    r"""The skip connection of EDM's kind: the exact trajectory of Gaussian data.

    $x = \sqrt{\frac{\sigma^2 + \sigma_{data}^2}{\sigma_{max}^2 + \sigma_{data}^2}} z
    + (1 - \frac{\sigma}{\sigma_{max}}) \sigma_{data} \cdot \text{network}$

    As EDM's `c_skip x` is the denoiser of Gaussian data of standard deviation `sigma_data`, the
    first term is their trajectory, and the network is left with what is not Gaussian, at unit
    scale. Anchored, the second term is what the teacher adds to that denoiser at `sigma_max`; for
    a teacher with EDM's preconditioning it is the same up to $\sigma_{data}^2 / \sigma_{max}^2$.
    """

    def scales(self, sigma: Tensor) -> Scales:
        """See `TrajectoryStudent.scales`; the skip is the first term's, solved for F."""
        start = torch.full_like(sigma, self.sigma_max)
        c_skip = self._gaussian_skip(sigma)
        linear = super().scales(sigma)
        if not self.anchored:
            return linear._replace(c_skip=c_skip, c_out=torch.full_like(sigma, self.sigma_data))
        return linear._replace(c_skip=linear.c_skip + (c_skip - self._gaussian_skip(start)))

    def _gaussian_skip(self, sigma: Tensor) -> Tensor:
        r"""$(g - s) / (1 - s)$ for the growth g of Gaussian trajectories, s = sigma/sigma_max.

        In the form without a difference; at `sigma_max` it is EDM's `c_skip`.
        """
        total = self.sigma_max**2 + self.sigma_data**2
        share = sigma / self.sigma_max
        growth = ((sigma**2 + self.sigma_data**2) / total).sqrt()
        return self.sigma_data**2 / total * (1 + share) / (growth + share)


class LogOddsTrajectoryStudent(TrajectoryStudent):
    r"""The network is told log-odds time, $c_{noise}(\frac{\sigma}{1 - \sigma / \sigma_{max}})$.

    For EDM that is $\frac{1}{4} \ln \frac{\sigma}{1 - \sigma/\sigma_{max}}$. Far below `sigma_max`
    it is the published conditioning; near it, where F changes in log-odds time, it goes on to
    `LAST_TOLD`. A copied network is told times there that it was never trained on.
    """

    def __init__(
        self,
        network: nn.Module,
        precondition: Precondition,
        *,
        sample_shape: tuple[int, ...],
        num_classes: int = 0,
        source: str,
        anchored: bool = False,
    ) -> None:
        """Arguments as in `TrajectoryStudent`.

        Raises:
            PidistillError: The network cannot be told noise levels beyond `sigma_max`.
        """
        super().__init__(
            network,
            precondition,
            sample_shape=sample_shape,
            num_classes=num_classes,
            source=source,
            anchored=anchored,
        )
        ends = torch.tensor([LAST_TOLD - 1, LAST_TOLD], dtype=torch.float64)
        told = self._c_noise(from_log_odds(ends, self.sigma_max))
        if told[0] == told[1]:
            raise PidistillError(
                "parametrisation is 'log-odds', but the network of the student is told timesteps "
                "of a table that ends; choose linear, edm or soft"
            )

    def scales(self, sigma: Tensor) -> Scales:
        """See `TrajectoryStudent.scales`."""
        return super().scales(sigma)._replace(c_noise=self._c_noise(sigma))

    def _c_noise(self, sigma: Tensor) -> Tensor:
        share = (sigma / self.sigma_max).clamp(max=1 / (1 + math.exp(-LAST_TOLD)))
        return self.precondition.smooth_c_noise(self.sigma_max * share / (1 - share))


class SoftTrajectoryStudent(TrajectoryStudent):
    r"""Nothing is pinned: $x = \sqrt{\sigma^2 + \sigma_{data}^2} \cdot \text{network}$.

    That x(z, sigma_max) = z is left to a penalty, the soft boundary condition of physics informed
    networks. `z` does not cancel from the residual. `anchored` has no meaning here, since F is x,
    and changes nothing.
    """

    @property
    def pinned_at(self) -> float:
        """Nowhere."""
        return float("inf")

    def scales(self, sigma: Tensor) -> Scales:
        """See `TrajectoryStudent.scales`."""
        total = sigma**2 + self.sigma_data**2
        return super().scales(sigma)._replace(c_skip=torch.zeros_like(sigma), c_out=total.sqrt())


PARAMETRISATIONS: dict[str, type[TrajectoryStudent]] = {
    "linear": TrajectoryStudent,
    "edm": EDMTrajectoryStudent,
    "log-odds": LogOddsTrajectoryStudent,
    "soft": SoftTrajectoryStudent,
}
"""Students of PID by name; `linear` is the published one."""


def trajectory_student(
    parametrisation: str, teacher: Denoiser, network: nn.Module | None, anchored: bool | None
) -> TrajectoryStudent:
    """A trajectory student of `teacher`.

    Args:
        parametrisation: A key of `PARAMETRISATIONS`.
        teacher: The teacher.
        network: A network to use instead of a copy of the teacher's.
        anchored: Whether it is anchored; None leaves that to the teacher (`should_anchor`).

    Raises:
        PidistillError: The student cannot be built of the teacher (see `Student.from_teacher`).
    """
    anchored = should_anchor(anchored, teacher, network)
    kind = PARAMETRISATIONS[parametrisation]
    return kind.from_teacher(teacher, network=network, anchored=anchored)
