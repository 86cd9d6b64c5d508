"""The student of PID: the whole trajectory as one network (arXiv 2411.08378, equation 7)."""

from typing import Any

import torch
from torch import Tensor, nn

from pidistill.denoiser import Denoiser, call_network, over_sample
from pidistill.derivative import ForwardMode
from pidistill.errors import PidistillError
from pidistill.noise import Draws
from pidistill.ode import Solution
from pidistill.precondition import Precondition, Scales
from pidistill.schedule import constant_sigma
from pidistill.students.path import PathStudent


class TrajectoryStudent(PathStudent):
    r"""The whole solution of the ODE as one network.

    $x(z, \sigma) = s z + (1 - s) F(z, \sigma)$ with $s = \frac{\sigma}{\sigma_{max}}$

    The boundary condition `x(z, sigma_max) = z` holds by construction. F is the raw network's
    output or, if anchored, an affine function of it.
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
        """Arguments as in `Student`, and `anchored`.

        If False, F is the network's output: the published student. If True, F has the teacher's
        scales at `sigma_max`, `F = c_skip z + c_out network`, so a copied network starts with the
        exact `F = D(z, sigma_max)` there (identity 3 of docs/mathematics.md); for EDM this halves
        the output.
        """
        super().__init__(
            network,
            precondition,
            sample_shape=sample_shape,
            num_classes=num_classes,
            source=source,
        )
        self.anchored = anchored
        scales = precondition.scales(torch.tensor([self.sigma_max], dtype=torch.float64))
        self.c_in = scales.c_in.item()
        self.c_skip = scales.c_skip.item() if anchored else 0.0
        self.c_out = scales.c_out.item() if anchored else 1.0

    def scales(self, sigma: Tensor) -> Scales:
        """The factors of `F = c_skip z + c_out network(c_in z, c_noise)` at `sigma` (b,)."""
        one = torch.ones_like(sigma)
        return Scales(
            c_skip=self.c_skip * one,
            c_out=self.c_out * one,
            c_in=self.c_in * one,
            c_noise=self.precondition.smooth_c_noise(sigma),
        )

    def F(self, z: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:  # noqa: N802
        """F at `z` (b, ...) and `sigma` (b,), with the shape and dtype of `z`."""
        c_skip, c_out, c_in, c_noise = self.scales(sigma)
        raw = call_network(self.network, over_sample(c_in, z) * z, c_noise.to(z), label)
        return over_sample(c_skip, z) * z + over_sample(c_out, z) * raw

    def share(self, sigma: Tensor) -> Tensor:
        """The share of `z` in x, s = sigma / sigma_max, for `sigma` of any shape."""
        return sigma / self.sigma_max

    def blend(self, z: Tensor, sigma: Tensor, F: Tensor) -> Tensor:
        """Return x = s z + (1 - s) F, for F (b, ...) at `z` (b, ...) and `sigma` (b,)."""
        s = self.share(sigma)
        return over_sample(s, z) * z + over_sample(1 - s, z) * F

    def forward(self, z: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """See `PathStudent.forward`."""
        return self.blend(z, sigma, self.F(z, sigma, label))

    def intercept(self, z: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """See `PathStudent.intercept`."""
        derivative = ForwardMode()
        point = derivative(lambda nodes: self.F(z, nodes[0], label)[None], self.share, sigma)
        return point.intercept

    def sample(
        self,
        z: Tensor,
        *,
        steps: int = 1,
        label: Tensor | None = None,
        draws: Draws | None = None,
    ) -> Solution:
        """`x(z, sigma_min)` in one evaluation; raises `PidistillError` unless `steps` is 1."""
        if not self.takes(steps):
            raise PidistillError(
                f"steps is {steps}, but a trajectory student samples in exactly 1 evaluation"
            )
        sigma = constant_sigma(self.sigma_min, z)
        return Solution(self(z, sigma, label), 1)

    def options(self) -> dict[str, Any]:
        """Constructor arguments beyond those of every student, as JSON values."""
        return {"anchored": self.anchored}


def should_anchor(wanted: bool | None, teacher: Denoiser, network: nn.Module | None = None) -> bool:
    """Whether to anchor a trajectory student of `teacher`.

    Args:
        wanted: The setting; returned unless it is None. None means yes if the teacher's network
            predicts something on the scale of the data, at most twice `sigma_data` at `sigma_max`.
            Anchoring to predicted noise, or to a velocity that is mostly noise, would multiply
            every change in the network's output by a factor near `sigma_max`.
        teacher: The teacher.
        network: A network for the student instead of a copy, with EDM's preconditioning.
    """
    if wanted is not None:
        return wanted
    parts = teacher.network_to_copy()
    if network is not None or parts is None:
        return True
    start = torch.tensor([teacher.sigma_max], dtype=torch.float64)
    return abs(parts[1].scales(start).c_out.item()) <= 2 * teacher.sigma_data
