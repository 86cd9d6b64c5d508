r"""The two-time student: the flow map of the ODE, from any noise level to any lower one.

With $\theta = \arctan\frac{\sigma}{\sigma_{data}}$ and $y = \frac{x}{\sqrt{\sigma^2 +
\sigma_{data}^2}}$, the probability-flow ODE has bounded terms only (Lu and Song 2024):

$$\frac{dy}{d\theta} = -N(y, \theta), \quad N = \frac{D(x, \sigma) - c_{skip} x}{c_{out}}$$

where $c_{skip}$ and $c_{out}$ are EDM's. The student is

$$y(\theta) = y_s + (\theta_s - \theta) \bar N(y_s, \theta_s, \theta)$$

so that it maps every point to itself for $\theta = \theta_s$, where $\bar N$, the mean of N along
the path, tends to the N of the teacher. PID's student is the case $\theta_s = \theta_{max}$.
"""

import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pidistill.denoiser import over_sample
from pidistill.errors import PidistillError
from pidistill.noise import Draws
from pidistill.ode import Solution
from pidistill.precondition import EDMPrecondition, Precondition, Scales
from pidistill.schedule import constant_sigma, finest_dtype
from pidistill.students.path import PathStudent
from pidistill.students.second_time import SecondTime, call_with_shift, noise_embedding

REFINEMENT = (2.0, 0.4)
"""First and last noise level of a refinement, in units of `sigma_data`; between them, the levels
form a geometric sequence."""


def angle(sigma: Tensor, sigma_data: float) -> Tensor:
    r"""$\theta = \arctan(\sigma / \sigma_{data})$, in `finest_dtype`."""
    return torch.atan(sigma.to(finest_dtype(sigma.device)) / sigma_data)


class FlowMapStudent(PathStudent):
    """The flow map of the ODE; see the module docstring."""

    any_steps = True
    refines = True

    def __init__(
        self,
        network: nn.Module,
        precondition: Precondition,
        *,
        sample_shape: tuple[int, ...],
        num_classes: int = 0,
        source: str,
        second_time: tuple[str, int] | list[Any] | None = None,
    ) -> None:
        """Arguments as in `Student`, and where the network learns of its second time.

        `second_time` is the name of the layer that the embedding of the second time is added to,
        and the width of its output; None finds it (`second_time.noise_embedding`).
        """
        super().__init__(
            network,
            precondition,
            sample_shape=sample_shape,
            num_classes=num_classes,
            source=source,
        )
        found = second_time or noise_embedding(network, self.sample_shape, num_classes)
        self.layer, width = str(found[0]), int(found[1])
        self.second_time = SecondTime(width).to(next(network.parameters(), torch.empty(0)).device)
        self.theta_min = math.atan(self.sigma_min / self.sigma_data)
        self.theta_max = math.atan(self.sigma_max / self.sigma_data)

    def to_y(self, x: Tensor, theta: Tensor) -> Tensor:
        """The coordinate y of points x (b, ...) at `theta` (b,)."""
        return over_sample(theta.cos() / self.sigma_data, x) * x

    def to_x(self, y: Tensor, theta: Tensor) -> Tensor:
        """The points x of coordinates y (b, ...) at `theta` (b,)."""
        return over_sample(self.sigma_data / theta.cos(), y) * y

    def mean_N(  # noqa: N802
        self, y: Tensor, theta_s: Tensor, theta: Tensor, label: Tensor | None = None
    ) -> Tensor:
        r"""The student's $\bar N(y_s, \theta_s, \theta)$.

        A copied network starts as the teacher's $N(y_s, \theta_s)$, whatever the teacher's
        preconditioning. Where the teacher's network would have to be multiplied by more than 2 for
        that, as one that predicts noise at high noise levels, the start is a fraction of it.

        Args:
            y: Starting points, shape (b, *sample_shape).
            theta_s: Their angles, shape (b,), float64.
            theta: Angles to go to, shape (b,), float64.
            label: Class labels (b,), int64, or None.

        Returns:
            The shape and dtype of `y`.
        """
        c_skip, c_out, c_in, c_noise = self.scales(theta_s)
        shift = self.second_time(self.time(theta).to(y))
        u = over_sample(c_in, y) * y
        raw = call_with_shift(self.network, self.layer, shift, u, c_noise.to(y), label)
        return over_sample(c_skip, y) * y + over_sample(c_out, y) * raw

    def scales(self, theta_s: Tensor) -> Scales:
        """The factors of `mean_N = c_skip y + c_out network(c_in y, c_noise)` at `theta_s` (b,)."""
        sigma_s = self.sigma_data * theta_s.tan()
        own = self.precondition.scales(sigma_s)
        edm = EDMPrecondition(self.sigma_min, self.sigma_max, self.sigma_data).scales(sigma_s)
        known = (2 * edm.c_out / own.c_out.abs()).clamp(max=1)
        norm = edm.c_in.reciprocal()  # x = norm y
        return Scales(
            c_skip=known * (own.c_skip - edm.c_skip) * norm / edm.c_out,
            c_out=known * own.c_out / edm.c_out,
            c_in=own.c_in * norm,
            c_noise=self.precondition.smooth_c_noise(sigma_s),
        )

    def time(self, theta: Tensor) -> Tensor:
        """What `second_time` sees of angles `theta`."""
        return (self.sigma_data * theta.tan()).log() / 4

    def flow(
        self, y: Tensor, theta_s: Tensor, theta: Tensor, label: Tensor | None = None
    ) -> Tensor:
        """The map in the coordinates y and theta; arguments as in `mean_N`."""
        return y + over_sample(theta_s - theta, y) * self.mean_N(y, theta_s, theta, label)

    def map(self, x: Tensor, sigma_s: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """Follow the ODE from `x` at noise levels `sigma_s` to noise levels `sigma`.

        Args:
            x: Points on trajectories, shape (b, *sample_shape).
            sigma_s: Their noise levels, shape (b,).
            sigma: Lower noise levels, shape (b,).
            label: Class labels (b,), int64, or None.

        Returns:
            The points at `sigma`, with the shape and dtype of `x`.
        """
        theta_s, theta = (angle(s, self.sigma_data) for s in (sigma_s, sigma))
        return self.to_x(self.flow(self.to_y(x, theta_s), theta_s, theta, label), theta)

    def forward(self, z: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """See `PathStudent.forward`."""
        return self.map(z, torch.full_like(sigma, self.sigma_max), sigma, label)

    def intercept(self, z: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        r"""See `PathStudent.intercept`: $c_{skip} x + c_{out} N$ with the student's own N.

        $N = -\frac{dy}{d\theta} = \bar N - (\theta_s - \theta) \frac{d \bar N}{d \theta}$
        """
        theta = angle(sigma, self.sigma_data)
        theta_s = torch.full_like(theta, self.theta_max)
        y = self.to_y(z, theta_s)
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no forward mode
            mean, change = torch.func.jvp(  # type: ignore[misc]
                lambda t: self.mean_N(y, theta_s, t, label), (theta,), (theta_s - theta,)
            )
        x = self.to_x(y + over_sample(theta_s - theta, y) * mean, theta)
        edm = EDMPrecondition(self.sigma_min, self.sigma_max, self.sigma_data).scales(sigma)
        return over_sample(edm.c_skip, x) * x + over_sample(edm.c_out, x) * (mean - change)

    def nodes(self, steps: int) -> Tensor:
        """The angles (steps + 1,) between the maps of `sample`, from theta_max to theta_min."""
        return torch.linspace(self.theta_max, self.theta_min, steps + 1, dtype=torch.float64)

    def sample(
        self,
        z: Tensor,
        *,
        steps: int = 1,
        label: Tensor | None = None,
        draws: Draws | None = None,
    ) -> Solution:
        """Follow the ODE from `z` in `steps` maps, at equal distances in theta.

        Arguments as in `Student.sample`.
        """
        if not self.takes(steps):
            raise PidistillError(f"steps is {steps}; a flow map needs at least 1")
        nodes = self.nodes(steps)
        y = self.to_y(z, nodes[:1].expand(len(z)))
        for theta_s, theta in itertools.pairwise(nodes):
            y = self.flow(y, theta_s.expand(len(z)), theta.expand(len(z)), label)
        return Solution(self.to_x(y, nodes[-1:].expand(len(z))), steps)

    def refine(
        self, x: Tensor, times: int, *, label: Tensor | None = None, draws: Draws | None = None
    ) -> Solution:
        """Add noise to samples and map them back, `times` times at falling noise levels.

        This leaves the path of the ODE, and usually comes nearer to the data. The levels go from
        2 to 0.4 `sigma_data` (`REFINEMENT`), as far as the student's range has them.

        Args:
            x: Samples at `sigma_min`, shape (b, *sample_shape).
            times: Evaluations to spend.
            label: Class labels (b,), int64, or None.
            draws: The random numbers of these samples; None means those of seed 0, starting at
                sample 0.
        """
        draws = Draws(0, 0, len(x)) if draws is None else draws
        first, last = (self.sigma_data * level for level in REFINEMENT)
        for time in range(times):
            share = time / (times - 1) if times > 1 else 0.0
            level = first * (last / first) ** share
            level = min(max(level, self.sigma_min), self.sigma_max)
            eps = draws.normal(f"refinement {time}", self.sample_shape).to(x)
            x = x + math.sqrt(level**2 - self.sigma_min**2) * eps
            sigma_s = constant_sigma(level, x)
            x = self.map(x, sigma_s, torch.full_like(sigma_s, self.sigma_min), label)
        return Solution(x, times)

    def options(self) -> dict[str, Any]:
        """Constructor arguments beyond those of every student, as JSON values."""
        return {"second_time": [self.layer, self.second_time.linear1.out_features]}
