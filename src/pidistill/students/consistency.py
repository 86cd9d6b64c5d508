r"""Consistency students (Song et al. 2023), which map any point of a trajectory to its end.

$f(x, \sigma) = c_{skip} x + c_{out} F(c_{in} x, c_{noise})$ with

$$c_{skip} = \frac{\sigma_{data}^2}{(\sigma - \sigma_{min})^2 + \sigma_{data}^2}, \quad
c_{out} = \frac{\sigma_{data} (\sigma - \sigma_{min})}{\sqrt{\sigma^2 + \sigma_{data}^2}}, \quad
c_{in} = \frac{1}{\sqrt{\sigma^2 + \sigma_{data}^2}}$$

so that $f(x, \sigma_{min}) = x$ for any F: the boundary condition holds by construction.
"""

import torch
from torch import Tensor

from pidistill.denoiser import call_network, over_sample
from pidistill.errors import PidistillError
from pidistill.noise import Draws
from pidistill.ode import Solution
from pidistill.precondition import EDMPrecondition, Scales
from pidistill.schedule import karras_sigmas
from pidistill.students.base import Student


class ConsistencyStudent(Student):
    """A consistency function f(x, sigma); it samples with f(z, sigma_max) or in several steps.

    The published form assumes EDM's preconditioning. In terms of a denoiser D it is
    `f = c_skip x + (1 - sigma_min / sigma) (D - c_skip_edm x)`, where `c_skip_edm` is EDM's. This
    form gives a copy of any other network, such as one that predicts noise, an equally good start.
    """

    any_steps = True

    def scales(self, sigma: Tensor) -> Scales:
        """The four factors at `sigma` (b,), each of shape (b,)."""
        own = self.precondition.scales(sigma)
        edm = EDMPrecondition(self.sigma_min, self.sigma_max, self.sigma_data).scales(sigma)
        above = sigma - self.sigma_min
        c_skip = self.sigma_data**2 / (above**2 + self.sigma_data**2)
        share = above / sigma
        return Scales(
            c_skip=c_skip + share * (own.c_skip - edm.c_skip),
            c_out=share * own.c_out,
            c_in=own.c_in,
            c_noise=own.c_noise,
        )

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """f(x, sigma): the end, at `sigma_min`, of the trajectory through `x`.

        Args:
            x: Points on trajectories, shape (b, *sample_shape); at `sigma_max`, starting noise.
            sigma: Their noise levels in [sigma_min, sigma_max], shape (b,).
            label: Class labels (b,), int64, or None.

        Returns:
            Samples with the shape and dtype of `x`.
        """
        c_skip, c_out, c_in, c_noise = self.scales(sigma)
        raw = call_network(self.network, over_sample(c_in, x) * x, c_noise.to(x), label)
        return over_sample(c_skip, x) * x + over_sample(c_out, x) * raw

    def sample(
        self,
        z: Tensor,
        *,
        steps: int = 1,
        label: Tensor | None = None,
        draws: Draws | None = None,
    ) -> Solution:
        """Evaluate at `sigma_max`, then add noise and evaluate again `steps - 1` times.

        Algorithm 1 of Song et al. 2023. The noise levels are the first `steps` of `steps + 1`
        nodes of the rho-7 grid; the paper tunes them by greedy search. The noise depends only on
        `draws` and the step. Arguments as in `Student.sample`.
        """
        if not self.takes(steps):
            raise PidistillError(f"steps is {steps}; a consistency student needs at least 1")
        draws = Draws(0, 0, len(z)) if draws is None else draws
        sigmas = karras_sigmas(steps + 1, self.sigma_min, self.sigma_max)[:-1]
        x = self(z, sigmas[0].expand(len(z)), label)
        for step, sigma in enumerate(sigmas[1:], start=1):
            eps = draws.normal(f"sampling step {step}", self.sample_shape).to(z)
            added = torch.sqrt(sigma**2 - self.sigma_min**2).item()
            x = self(x + added * eps, sigma.expand(len(z)), label)
        return Solution(x, steps)
