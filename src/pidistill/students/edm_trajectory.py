"""A variant of the trajectory with an EDM-style skip connection (docs/mathematics.md)."""

import torch
from torch import Tensor

from pidistill.precondition import Scales
from pidistill.students.trajectory import TrajectoryStudent


class EDMTrajectoryStudent(TrajectoryStudent):
    r"""The exact trajectory of Gaussian data plus a learnt correction.

    $x = \sqrt{\frac{\sigma^2 + \sigma_{data}^2}{\sigma_{max}^2 + \sigma_{data}^2}} z
    + (1 - \frac{\sigma}{\sigma_{max}}) \sigma_{data} \cdot \text{network}$

    EDM's `c_skip x` is the denoiser of Gaussian data with standard deviation `sigma_data`, and the
    first term is the corresponding trajectory; the network learns the non-Gaussian remainder at
    unit scale. Anchored, the second term is what the teacher adds to that denoiser at `sigma_max`;
    for a teacher with EDM's preconditioning it is the same up to
    $\sigma_{data}^2 / \sigma_{max}^2$.
    """

    def scales(self, sigma: Tensor) -> Scales:
        """See `TrajectoryStudent.scales`; `c_skip` follows from solving the first term for F."""
        start = torch.full_like(sigma, self.sigma_max)
        c_skip = self._gaussian_skip(sigma)
        linear = super().scales(sigma)
        if not self.anchored:
            return linear._replace(c_skip=c_skip, c_out=torch.full_like(sigma, self.sigma_data))
        return linear._replace(c_skip=linear.c_skip + (c_skip - self._gaussian_skip(start)))

    def _gaussian_skip(self, sigma: Tensor) -> Tensor:
        r"""$(g - s) / (1 - s)$ for the scale g of Gaussian trajectories, without cancellation.

        At `sigma_max` it is EDM's `c_skip`.
        """
        total = self.sigma_max**2 + self.sigma_data**2
        s = sigma / self.sigma_max
        growth = ((sigma**2 + self.sigma_data**2) / total).sqrt()
        return self.sigma_data**2 / total * (1 + s) / (growth + s)
