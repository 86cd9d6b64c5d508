r"""Students that are denoisers and sample in a fixed number of Euler steps.

Progressive and knowledge distillation train them, ultimately for a single step from $\sigma_{max}$
to $\sigma_{min}$: $x = \frac{\sigma_{min}}{\sigma_{max}} z
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

    This is `ode.euler` without the cancellation between terms of size `sigma_max`.

    Args:
        x: Noisy samples, shape (b, ...).
        denoised: D(x, sigma), shaped like `x`.
        sigma: Noise levels of `x`, shape (b,) or a scalar.
        sigma_next: Noise levels to step to, shaped like `sigma`.
    """
    share = over_sample(sigma_next / sigma, x)
    return share * x + (1 - share) * denoised


class EulerStudent(Student):
    """A denoiser D(x, sigma) trained to sample in `num_steps` Euler steps."""

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
        """Arguments as in `Student`, and the number of Euler steps per sample.

        The steps use `num_steps + 1` nodes of the rho-7 grid.
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
        """The student as a teacher, sharing its weights."""
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
            sigma: Noise levels, shape (b,); the student is trained at the starting nodes of steps.
            label: Class labels (b,), int64, or None.

        Returns:
            The target of a step from `x`: clean samples with the shape and dtype of `x`.
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
                f"steps is {steps}, but this student was trained for {self.num_steps}; use "
                f"steps={self.num_steps}"
            )
        x = z
        sigmas = karras_sigmas(steps + 1, self.sigma_min, self.sigma_max, device=z.device)
        for sigma, sigma_next in itertools.pairwise(sigmas):
            denoised = self(x, sigma.expand(len(x)), label)
            x = euler_step(x, denoised, sigma, sigma_next)
        return Solution(x, steps)

    def options(self) -> dict[str, Any]:
        """Constructor arguments beyond those of every student, as JSON values."""
        return {"num_steps": self.num_steps}
