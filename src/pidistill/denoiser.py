"""The denoiser contract that every teacher implements.

A denoiser is `D(x, sigma)`, the expected clean sample given the noisy `x = x0 + sigma * eps`.
Adapters hide a teacher's own conventions: VP scaling, discrete time, noise or velocity prediction.
"""

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from pidistill.errors import PidistillError
from pidistill.precondition import Precondition
from pidistill.schedule import require_sigma_range


class Denoiser(nn.Module):
    """Base class of all teachers: `D(x, sigma, label)`, the expected clean sample.

    Subclasses implement `forward`. The attributes describe what solvers and students need to know.
    """

    def __init__(
        self,
        *,
        sigma_min: float,
        sigma_max: float,
        sigma_data: float,
        sample_shape: tuple[int, ...],
        num_classes: int = 0,
        source: str,
    ) -> None:
        """Declare noise levels, shape and labels.

        Args:
            sigma_min: Lowest supported noise level; samples are drawn there.
            sigma_max: Highest noise level; sampling starts there, from N(0, sigma_max^2 I).
            sigma_data: Standard deviation of the data.
            sample_shape: Shape of one sample, without the batch axis, such as (3, 32, 32).
            num_classes: Number of labels; 0 means unconditional.
            source: Where the denoiser comes from, for display.

        Raises:
            PidistillError: The noise levels are out of order.
        """
        super().__init__()
        require_sigma_range(sigma_min, sigma_max)
        self.sigma_min = float(sigma_min)
        self.sigma_max = float(sigma_max)
        self.sigma_data = float(sigma_data)
        self.sample_shape = tuple(sample_shape)
        self.num_classes = int(num_classes)
        self.source = source
        self.decoder: nn.Module | None = None
        """Decodes samples into images if they are latents."""

    evaluations_per_call = 1
    """Network evaluations per sample in one call."""
    class_names: tuple[str, ...] = ()
    """What the labels mean, in their order; empty if that is not known."""

    def network_to_copy(self) -> "tuple[nn.Module, Precondition] | None":
        """The raw network for a student to copy and its preconditioning, or None."""
        return None

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """Return D(x, sigma).

        Args:
            x: Noisy samples, shape (b, *sample_shape), floating point.
            sigma: Noise levels, shape (b,), positive.
            label: Class labels, shape (b,), int64, where -1 means no label; or None for no labels.

        Returns:
            The expected clean samples, with the shape and dtype of `x`.
        """
        raise NotImplementedError


def over_sample(values: Tensor, x: Tensor) -> Tensor:
    """Reshape `values` (b,) to broadcast over samples `x` (b, ...), with its device and dtype."""
    return values.to(x).reshape(-1, *([1] * (x.ndim - 1)))


def call_network(network: nn.Module, u: Tensor, c_noise: Tensor, label: Tensor | None) -> Tensor:
    """Call a raw network in the dtype of its weights; returns the dtype of `u`.

    Drops surplus output channels, which are a predicted variance.
    """
    dtype = next((parameter.dtype for parameter in network.parameters()), u.dtype)
    raw: Tensor = network(u.to(dtype), c_noise.to(dtype), label)
    if raw.shape[2:] != u.shape[2:] or raw.ndim < 2 or raw.shape[1] < u.shape[1]:
        raise PidistillError(
            f"network {type(network).__name__} returned shape {tuple(raw.shape)} for an input of "
            f"shape {tuple(u.shape)}; expected the shape of its input"
        )
    return raw[:, : u.shape[1]].to(u.dtype)


class PreconditionedDenoiser(Denoiser):
    """A denoiser built from a raw network F and a preconditioning."""

    def __init__(
        self,
        network: nn.Module,
        precondition: Precondition,
        *,
        sample_shape: tuple[int, ...],
        num_classes: int = 0,
        source: str,
    ) -> None:
        """Wrap `network`, called as `network(u, c_noise, label)` (see `pidistill.networks`)."""
        super().__init__(
            sigma_min=precondition.sigma_min,
            sigma_max=precondition.sigma_max,
            sigma_data=precondition.sigma_data,
            sample_shape=sample_shape,
            num_classes=num_classes,
            source=source,
        )
        self.network = network
        self.precondition = precondition

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """`D = c_skip x + c_out F(c_in x, c_noise)`; drops a predicted variance."""
        c_skip, c_out, c_in, c_noise = self.precondition.scales(sigma)
        raw = call_network(self.network, over_sample(c_in, x) * x, c_noise, label)
        return over_sample(c_skip, x) * x + over_sample(c_out, x) * raw

    def network_to_copy(self) -> tuple[nn.Module, Precondition]:
        """The network and its preconditioning."""
        return self.network, self.precondition

    def options(self) -> dict[str, Any]:
        """Constructor arguments beyond those of every model, as JSON values: none."""
        return {}


Function = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""A denoiser as a plain function `(x, sigma, label) -> D`; see `Denoiser.forward`."""


class FunctionDenoiser(Denoiser):
    """A denoiser built from a callable; see `as_denoiser`."""

    def __init__(self, function: Function, **declared: Any) -> None:
        super().__init__(**declared)
        self.function = function  # registers a module, which then moves with this one

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """Call the function; see `Denoiser.forward`.

        Raises `PidistillError` if the result does not have the shape of `x`.
        """
        denoised = self.function(x, sigma, label)
        if not isinstance(denoised, Tensor) or denoised.shape != x.shape:
            what = tuple(denoised.shape) if isinstance(denoised, Tensor) else type(denoised)
            raise PidistillError(
                f"{self.source} returned {what} for samples of shape {tuple(x.shape)}; a denoiser "
                "must return the expected clean samples in the shape of its input"
            )
        return denoised


def as_denoiser(
    function: Function,
    *,
    sigma_min: float,
    sigma_max: float,
    sigma_data: float,
    sample_shape: tuple[int, ...],
    num_classes: int = 0,
) -> Denoiser:
    """Make a teacher from any callable `(x, sigma, label) -> D`.

    Args:
        function: Called with x (b, *sample_shape), sigma (b,) and label (b,) int64 or None (-1
            means no label); returns D(x, sigma), shaped like x. An `nn.Module` becomes a submodule
            and moves with the teacher; its mode and `requires_grad` are left unchanged.
        sigma_min: Lowest noise level, where samples are drawn.
        sigma_max: Highest noise level, where sampling starts.
        sigma_data: Standard deviation of the data.
        sample_shape: Shape of one sample, without the batch axis.
        num_classes: Number of labels; 0 means unconditional.

    Raises:
        PidistillError: An argument is invalid.
    """
    if not callable(function):
        raise PidistillError(
            f"function is {function!r}; expected a callable (x, sigma, label) -> D"
        )
    if not (0 < sigma_data < math.inf):
        raise PidistillError(f"sigma_data is {sigma_data}; expected a positive finite number")
    shape = tuple(sample_shape) if isinstance(sample_shape, tuple | list) else ()
    if not shape or any(not isinstance(size, int) or size < 1 for size in shape):
        raise PidistillError(
            f"sample_shape is {sample_shape!r}; expected positive integers, such as (3, 32, 32)"
        )
    if not isinstance(num_classes, int) or num_classes < 0:
        raise PidistillError(f"num_classes is {num_classes!r}; expected an integer, 0 or more")
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return FunctionDenoiser(
        function,
        sigma_min=sigma_min,
        sigma_max=sigma_max,
        sigma_data=sigma_data,
        sample_shape=shape,
        num_classes=num_classes,
        source=f"the callable {name}",
    )
