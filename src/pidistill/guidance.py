r"""Classifier-free guidance (Ho and Salimans 2022) as a wrapper around a conditional denoiser.

$$D_w(x, \sigma, c) = D(x, \sigma) + w (D(x, \sigma, c) - D(x, \sigma))$$

At every noise level its score $(D_w - x) / \sigma^2$ is that of
$p_\sigma(x)^{1-w} p_\sigma(x | c)^w$: $w = 1$ is the conditional denoiser, $w = 0$ the
unconditional one. Guiding the predicted noise or velocity is equivalent, as both are affine in D.
"""

import torch
from torch import Tensor, nn

from pidistill.denoiser import Denoiser
from pidistill.errors import PidistillError
from pidistill.precondition import Precondition


class GuidedDenoiser(Denoiser):
    """`D_w` at a fixed scale, as a denoiser that costs two network evaluations per call."""

    evaluations_per_call = 2

    def __init__(self, denoiser: Denoiser, scale: float) -> None:
        """Wrap `denoiser`, trained both with and without labels, at guidance scale w.

        Raises `PidistillError` if the denoiser has no labels.
        """
        super().__init__(
            sigma_min=denoiser.sigma_min,
            sigma_max=denoiser.sigma_max,
            sigma_data=denoiser.sigma_data,
            sample_shape=denoiser.sample_shape,
            num_classes=denoiser.num_classes,
            source=f"{denoiser.source} with guidance {scale}",
        )
        if denoiser.num_classes == 0:
            raise PidistillError(
                f"guidance is {scale}, but {denoiser.source} has no labels; guidance needs a "
                "teacher trained both with and without labels"
            )
        self.denoiser = denoiser
        self.decoder = denoiser.decoder
        self.scale = scale

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """D_w(x, sigma, label), computed in one batched call; arguments as in `Denoiser.forward`.

        A label of -1 is unconditional.
        """
        if label is None or self.scale == 1:
            denoised: Tensor = self.denoiser(x, sigma, label)
            return denoised
        labels = torch.cat([label, torch.full_like(label, -1)])
        both = self.denoiser(torch.cat([x, x]), torch.cat([sigma, sigma]), labels)
        conditional, unconditional = both.chunk(2)
        w = torch.as_tensor(self.scale, dtype=x.dtype)
        return unconditional + w * (conditional - unconditional)

    def network_to_copy(self) -> tuple[nn.Module, Precondition] | None:
        """The network and preconditioning of the wrapped denoiser."""
        return self.denoiser.network_to_copy()
