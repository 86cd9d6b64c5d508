r"""The score-identity correction: a student whose samples are distributed as its teacher's.

PID brings every sample near the end of its own path, and the average over what is uncertain makes
it smooth. The correction looks at the distribution instead. An auxiliary denoiser $D_\psi$ follows
the student: it learns to denoise what the student draws. Where it agrees with the teacher's
$D_\phi$ at every noise level, both distributions are the same. With $x_t = x_0 + \sigma \epsilon$
and $\Delta = D_\phi(x_t, \sigma) - D_\psi(x_t, \sigma)$ the student minimises

$$\frac{\langle \Delta, (D_\phi - x_0) - \alpha \Delta \rangle}
{\mathrm{sg}[\mathrm{mean} |x_0 - D_\phi|]} + \lambda \cdot \text{residual}$$

The first term is that of SiD (score identity distillation; Zhou et al. 2024, arXiv 2404.04057); its
gradient flows through both denoisers into the student, which costs a backward pass through the
teacher. The second, the loss of the method that trained the student first, keeps it on the
teacher's paths. No data are needed.
"""

import copy

import torch
from torch import Tensor, nn

from pidistill.denoiser import Denoiser, PreconditionedDenoiser, over_sample
from pidistill.errors import PidistillError
from pidistill.noise import device_of
from pidistill.precondition import EDMPrecondition, Precondition

SMALLEST_WEIGHT = 1e-3
"""Least mean of |x0 - D| that the loss is divided by."""


def correction_loss(
    teacher: Denoiser,
    auxiliary: Denoiser,
    x0: Tensor,
    eps: Tensor,
    sigma: Tensor,
    label: Tensor | None,
    *,
    alpha: float,
) -> tuple[Tensor, Tensor]:
    """The score-identity loss per sample.

    Its gradient reaches what `x0` was computed from, but not the weights of the denoisers.

    Args:
        teacher: The teacher, differentiable in its samples (`require_differentiable`).
        auxiliary: The denoiser of what the student draws.
        x0: Samples of the student, shape (b, *sample_shape).
        eps: Standard normal noise, shaped like `x0`.
        sigma: Noise levels, shape (b,), float64.
        label: Class labels (b,), or None.
        alpha: The coefficient alpha.

    Returns:
        The losses, and the mean squares of Delta without gradient, both of shape (b,).
    """
    with torch.enable_grad():
        leaf = x0.detach().requires_grad_()
        noisy = leaf + over_sample(sigma, x0) * eps
        of_teacher = teacher(noisy, sigma.to(noisy), label).to(x0)
        delta = of_teacher - auxiliary(noisy, sigma.to(noisy), label).to(x0)
        weight = (x0 - of_teacher).detach().abs().flatten(1).mean(1).clamp(min=SMALLEST_WEIGHT)
        loss = (delta * (of_teacher - leaf - alpha * delta)).flatten(1).mean(1) / weight
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    loss = loss.detach()
    linear = (gradient * x0).flatten(1).sum(1)  # has the gradient of the loss
    return linear + (loss - linear).detach(), delta.detach().square().flatten(1).mean(1)


@torch.enable_grad()
def require_differentiable(teacher: Denoiser) -> None:
    """Raise `PidistillError` unless a gradient passes through the teacher to its samples."""
    x = torch.zeros(1, *teacher.sample_shape, device=device_of(teacher), requires_grad=True)
    sigma = torch.full((1,), teacher.sigma_data, device=x.device)
    label = torch.zeros(1, dtype=torch.int64, device=x.device) if teacher.num_classes else None
    if not teacher(x, sigma, label).requires_grad:
        raise PidistillError(
            f"{teacher.source} lets no gradient through to its samples, which the method "
            "correction needs; make it differentiable, or choose the method pid or pid-map"
        )


def auxiliary_denoiser(teacher: Denoiser, network: nn.Module | None) -> Denoiser:
    """A denoiser with a copy of the teacher's network, or of `network` if it has none."""
    parts: tuple[nn.Module, Precondition] | None = teacher.network_to_copy()
    if parts is None and network is not None:
        parts = network, EDMPrecondition(teacher.sigma_min, teacher.sigma_max, teacher.sigma_data)
    if parts is None:
        raise PidistillError(
            f"teacher {teacher.source} has no network for the auxiliary denoiser to copy; pass one"
        )
    return PreconditionedDenoiser(
        copy.deepcopy(parts[0]).requires_grad_(True).eval(),
        parts[1],
        sample_shape=teacher.sample_shape,
        num_classes=teacher.num_classes,
        source=f"denoiser of a student of {teacher.source}",
    )
