r"""Students that are denoisers: they sample in a fixed number of Euler steps, in the end in one.

Progressive and knowledge distillation train such students. One step from $\sigma_{max}$ to
$\sigma_{min}$ is $x = \frac{\sigma_{min}}{\sigma_{max}} z
+ (1 - \frac{\sigma_{min}}{\sigma_{max}}) D(z, \sigma_{max})$.
"""

import itertools
from typing import Any

from torch import Tensor, nn

from pidistill.denoiser import PreconditionedDenoiser, over_sample
from pidistill.errors import PidistillError
from pidistill.noise import Draws
from pidistill.ode import Solution
from pidistill.precondition import Precondition
from pidistill.schedule import karras_sigmas
from pidistill.students.base import Student


def euler_step(x: Tensor, denoised: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    r"""One Euler step, $\frac{\sigma'}{\sigma} x + (1 - \frac{\sigma'}{\sigma}) D$.

    This is `ode.euler` in a form that subtracts nothing of size `sigma_max` from its like.

    Args:
        x: Noisy samples, shape (b, ...).
        denoised: D(x, sigma), of the shape of `x`.
        sigma: Noise levels of `x`, shape (b,) or a scalar.
        sigma_next: Noise levels to step to, of the shape of `sigma`.
    """
    share = over_sample(sigma_next / sigma, x)
    return share * x + (1 - share) * denoised


class EulerStudent(Student):
    """A denoiser D(x, sigma) that is trained to sample in `num_steps` Euler steps."""

    def __init__(
        self,
        network: nn.Module,
        precondition: Precondition,
        *,
        sample_shape: tuple[int, ...],
        num_classes: int = 0,
        source: str,
        num_steps: int = 1,
    ) -> None:
        """Arguments as in `Student`, and `num_steps`.

        `num_steps` is the number of Euler steps that a sample takes, on `num_steps + 1` nodes of
        the rho-7 grid.
        """
        super().__init__(
            network,
            precondition,
            sample_shape=sample_shape,
            num_classes=num_classes,
            source=source,
        )
        self.num_steps = num_steps

    def as_denoiser(self) -> PreconditionedDenoiser:
        """The student as a teacher; they share their weights."""
        return PreconditionedDenoiser(
            self.network,
            self.precondition,
            sample_shape=self.sample_shape,
            num_classes=self.num_classes,
            source=self.source,
        )

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """D(x, sigma).

        Args:
            x: Noisy samples, shape (b, *sample_shape).
            sigma: Noise levels, shape (b,); it is trained at the nodes from which a step starts.
            label: Class labels (b,), int64, or None.

        Returns:
            Where a step from `x` aims: samples of the shape and dtype of `x`.
        """
        denoised: Tensor = self.as_denoiser()(x, sigma.to(x), label)
        return denoised

    def sample(
        self,
        z: Tensor,
        *,
        steps: int = 1,
        label: Tensor | None = None,
        draws: Draws | None = None,
    ) -> Solution:
        """`num_steps` Euler steps from `z` at `sigma_max` to `sigma_min`."""
        if not self.takes(steps):
            raise PidistillError(
                f"steps is {steps}, but this student was trained for {self.num_steps}; sample it "
                f"with steps={self.num_steps}"
            )
        x = z
        sigmas = karras_sigmas(steps + 1, self.sigma_min, self.sigma_max)
        for sigma, sigma_next in itertools.pairwise(sigmas):
            denoised = self(x, sigma.expand(len(x)), label)
            x = euler_step(x, denoised, sigma, sigma_next)
        return Solution(x, steps)

    def options(self) -> dict[str, Any]:
        """Constructor arguments beyond those of every student, as JSON values."""
        return {"num_steps": self.num_steps}
