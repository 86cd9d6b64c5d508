"""An ablation of the trajectory that pins nothing at `sigma_max` (docs/mathematics.md)."""

import torch
from torch import Tensor

from pidistill.precondition import Scales
from pidistill.students.trajectory import TrajectoryStudent


class SoftBoundaryStudent(TrajectoryStudent):
    r"""$x = F = \sqrt{\sigma^2 + \sigma_{data}^2} \cdot \text{network}$, with no term in `z`.

    A penalty enforces x(z, sigma_max) = z (`pidistill.methods.pid.SoftBoundaryPID`), the soft
    boundary condition of physics-informed networks. `z` does not cancel from the residual.
    `anchored` has no effect.
    """

    def share(self, sigma: Tensor) -> Tensor:
        """Zero: x = F."""
        return torch.zeros_like(sigma)

    def scales(self, sigma: Tensor) -> Scales:
        """See `TrajectoryStudent.scales`."""
        total = sigma**2 + self.sigma_data**2
        return super().scales(sigma)._replace(c_skip=torch.zeros_like(sigma), c_out=total.sqrt())
