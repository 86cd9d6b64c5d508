"""An ablation of the trajectory: a skip connection of EDM's kind (docs/mathematics.md)."""

import torch
from torch import Tensor

from pidistill.precondition import Scales
from pidistill.students.trajectory import TrajectoryStudent


class EDMTrajectoryStudent(TrajectoryStudent):
    r"""The exact trajectory of Gaussian data, and what the network adds to it.

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
        r"""$(g - s) / (1 - s)$ for the growth g of Gaussian trajectories, without a difference.

        At `sigma_max` it is EDM's `c_skip`.
        """
        total = self.sigma_max**2 + self.sigma_data**2
        s = sigma / self.sigma_max
        growth = ((sigma**2 + self.sigma_data**2) / total).sqrt()
        return self.sigma_data**2 / total * (1 + s) / (growth + s)
