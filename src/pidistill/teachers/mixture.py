r"""Gaussian mixtures as teachers: closed-form denoisers, for checks against exact answers.

For data from $\sum_k \pi_k N(m_k, S_k)$, noisy samples follow $\sum_k \pi_k N(m_k, S_k +
\sigma^2 I)$, and the expected clean sample is

$$D(x, \sigma) = \sum_k w_k(x, \sigma) \left(m_k + S_k (S_k + \sigma^2 I)^{-1} (x - m_k)\right)$$

with $w_k$ the posterior probability of component $k$.
"""

import math

import torch
from torch import Tensor

from pidistill.denoiser import Denoiser
from pidistill.errors import PidistillError


class MixtureDenoiser(Denoiser):
    """The exact denoiser of a Gaussian mixture; computes in float64, returns the dtype of `x`."""

    means: Tensor
    variances: Tensor
    basis: Tensor
    log_prior: Tensor

    def __init__(
        self,
        means: Tensor,
        variances: Tensor,
        *,
        basis: Tensor | None = None,
        prior: Tensor | None = None,
        conditional: bool = False,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
    ) -> None:
        """Create a mixture of K components.

        Args:
            means: Shape (K, *sample_shape).
            variances: Variances along the principal axes, shape (K, d) with d the number of
                values per sample, or (K, 1) for isotropic components.
            basis: Principal axes as columns, shape (K, d, d); None means the coordinate axes.
            prior: Component probabilities, shape (K,); None means uniform.
            conditional: Whether labels select a component.
            sigma_min: Lowest noise level.
            sigma_max: Highest noise level.
        """
        flat = means.double().flatten(1)
        num, size = flat.shape
        variances = variances.double().expand(num, size).clone()
        prior = torch.full((num,), 1 / num) if prior is None else prior
        prior = (prior / prior.sum()).double()
        centre = prior @ flat
        total = prior @ (variances.mean(1) + (flat - centre).square().mean(1))
        super().__init__(
            sigma_min=sigma_min,
            sigma_max=sigma_max,
            sigma_data=math.sqrt(total.item()),
            sample_shape=tuple(means.shape[1:]),
            num_classes=num if conditional else 0,
            source="mixture",
        )
        basis = torch.eye(size).expand(num, size, size) if basis is None else basis
        self.register_buffer("means", flat)
        self.register_buffer("variances", variances)
        self.register_buffer("basis", basis.double())
        self.register_buffer("log_prior", prior.log())

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """Return D(x, sigma) (see `Denoiser.forward`)."""
        offset = x.double().flatten(1)[:, None] - self.means  # (b, K, d)
        offset = torch.einsum("bkd,kde->bke", offset, self.basis)  # along the principal axes
        total = self.variances + sigma.double()[:, None, None] ** 2
        log_weight = self.log_prior - (offset.square() / total + total.log()).sum(2) / 2
        if label is not None and self.num_classes > 0:
            others = torch.arange(self.num_classes, device=label.device) != label[:, None]
            log_weight = log_weight.masked_fill(others & (label >= 0)[:, None], -math.inf)
        shrunk = torch.einsum("bke,kde->bkd", offset * self.variances / total, self.basis)
        denoised = torch.einsum("bk,bkd->bd", log_weight.softmax(1), self.means + shrunk)
        return denoised.to(x.dtype).reshape(x.shape)

    def draw(self, num: int, generator: torch.Generator) -> Tensor:
        """Draw `num` clean samples, shape (num, *sample_shape), float64."""
        component = torch.multinomial(self.log_prior.exp(), num, True, generator=generator)
        normal = torch.randn(num, self.means.shape[1], generator=generator, dtype=torch.float64)
        x0 = normal * self.variances[component].sqrt()  # along the principal axes
        for k, basis in enumerate(self.basis):
            x0[component == k] = self.means[k] + x0[component == k] @ basis.T
        return x0.reshape(num, *self.sample_shape)


def gaussian_trajectory(gaussian: MixtureDenoiser, z: Tensor, sigma: Tensor) -> Tensor:
    r"""The exact solution of the ODE from `z` for a mixture with one component.

    Along each principal axis with variance $v$, $x(\sigma) - m = \sqrt{\frac{v + \sigma^2}{v +
    \sigma_{max}^2}} (z - m)$. `z` (b, *sample_shape) is the noise at `sigma_max`, and `sigma` (b,)
    holds the noise levels. Returns float64 points of the shape of `z`. Raises `ValueError` if the
    mixture has several components.
    """
    if len(gaussian.means) != 1:
        raise ValueError(f"the mixture has {len(gaussian.means)} components; expected one")
    mean, variance, basis = gaussian.means[0], gaussian.variances[0], gaussian.basis[0]
    offset = (z.double().flatten(1) - mean) @ basis
    growth = (variance + sigma.double()[:, None] ** 2) / (variance + gaussian.sigma_max**2)
    return (mean + (offset * growth.sqrt()) @ basis.T).reshape(z.shape)


def _gaussian() -> MixtureDenoiser:
    """One anisotropic Gaussian in the plane, its axes rotated by 30 degrees."""
    angle = math.pi / 6
    basis = torch.tensor(
        [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]],
        dtype=torch.float64,  # in single precision, orthogonal only to 1e-8
    )
    return MixtureDenoiser(
        torch.tensor([[0.3, -0.2]]), torch.tensor([[0.5, 0.05]]), basis=basis[None]
    )


def _ring() -> MixtureDenoiser:
    """Eight narrow isotropic components on a circle in the plane, class-conditional."""
    angle = torch.arange(8) * (math.pi / 4)
    means = torch.stack([angle.cos(), angle.sin()], dim=1)
    return MixtureDenoiser(means, torch.full((8, 1), 0.01), conditional=True)


def _grid() -> MixtureDenoiser:
    """Twenty-five narrow isotropic components on a grid in the plane."""
    axis = torch.linspace(-1, 1, 5)
    return MixtureDenoiser(torch.cartesian_prod(axis, axis), torch.full((25, 1), 0.003))


def _image() -> MixtureDenoiser:
    """Four anisotropic components with smooth 3x8x8 images as means."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(4, 3, 2, 2, generator=generator)
    means = 0.6 * torch.nn.functional.interpolate(coarse, size=(8, 8), mode="bilinear").tanh()
    basis = torch.linalg.qr(torch.randn(4, 192, 192, generator=generator, dtype=torch.float64)).Q
    return MixtureDenoiser(means, 0.2 / torch.arange(1, 193).expand(4, 192), basis=basis)


MIXTURES = {"gaussian": _gaussian, "ring": _ring, "grid": _grid, "image": _image}


def load(locator: str) -> Denoiser:
    """Build the mixture registered as `locator`.

    Raises `PidistillError` if no mixture has that name.
    """
    if locator not in MIXTURES:
        raise PidistillError(
            f"unknown mixture {locator!r}; expected one of {', '.join(MIXTURES)}, "
            "as in 'mixture:ring'"
        )
    mixture = MIXTURES[locator]()
    mixture.source = f"mixture:{locator}"
    return mixture
