r"""Guidance, as a wrapper around a denoiser: classifier-free, and by a weaker denoiser.

Classifier-free guidance (Ho and Salimans 2022) is

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


class _Guided(Denoiser):
    """A denoiser guided at scale w, at two network evaluations per call."""

    evaluations_per_call = 2

    def __init__(self, denoiser: Denoiser, scale: float, source: str) -> None:
        super().__init__(
            sigma_min=denoiser.sigma_min,
            sigma_max=denoiser.sigma_max,
            sigma_data=denoiser.sigma_data,
            sample_shape=denoiser.sample_shape,
            num_classes=denoiser.num_classes,
            source=source,
        )
        self.denoiser, self.scale = denoiser, scale
        self.decoder, self.class_names = denoiser.decoder, denoiser.class_names

    def network_to_copy(self) -> tuple[nn.Module, Precondition] | None:
        """The network and preconditioning of the denoiser without guidance."""
        return self.denoiser.network_to_copy()


class GuidedDenoiser(_Guided):
    """`D_w` at a fixed scale, as a denoiser that costs two network evaluations per call."""

    def __init__(self, denoiser: Denoiser, scale: float) -> None:
        """Wrap `denoiser`, trained both with and without labels, at guidance scale w.

        Raises `PidistillError` if the denoiser has no labels.
        """
        super().__init__(denoiser, scale, f"{denoiser.source} with guidance {scale}")
        if denoiser.num_classes == 0:
            raise PidistillError(
                f"guidance is {scale}, but {denoiser.source} has no labels; guidance needs a "
                "teacher trained both with and without labels"
            )

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


class AutoguidedDenoiser(_Guided):
    r"""Autoguidance (Karras et al. 2024a): a denoiser led away from a weaker version of itself.

    $$D_w(x, \sigma, c) = D(x, \sigma, c) + (w - 1) (D(x, \sigma, c) - D_{guide}(x, \sigma, c))$$

    A guide without labels gives classifier-free guidance with a second network.
    """

    def __init__(self, denoiser: Denoiser, guide: Denoiser, scale: float) -> None:
        """Lead `denoiser` away from `guide` at scale w.

        Raises `PidistillError` if the guide is for samples of another shape, for other labels, or
        for fewer noise levels.
        """
        source = f"{denoiser.source} with guidance {scale} by {guide.source}"
        super().__init__(denoiser, scale, source)
        if guide.sample_shape != denoiser.sample_shape:
            raise PidistillError(
                f"the guide {guide.source} is for samples of shape {guide.sample_shape}; expected "
                f"{denoiser.sample_shape}, as {denoiser.source}"
            )
        if guide.num_classes not in (0, denoiser.num_classes):
            raise PidistillError(
                f"the guide {guide.source} has {guide.num_classes} classes; expected none, or "
                f"{denoiser.num_classes}, as {denoiser.source}"
            )
        if guide.sigma_min > denoiser.sigma_min or guide.sigma_max < denoiser.sigma_max:
            raise PidistillError(
                f"the guide {guide.source} is for sigma from {guide.sigma_min:g} to "
                f"{guide.sigma_max:g}; expected all levels of {denoiser.source}, "
                f"{denoiser.sigma_min:g} to {denoiser.sigma_max:g}"
            )
        self.guide = guide

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """D_w(x, sigma, label); arguments as in `Denoiser.forward`."""
        main: Tensor = self.denoiser(x, sigma, label)
        weak: Tensor = self.guide(x, sigma, label if self.guide.num_classes else None)
        return main + (self.scale - 1) * (main - weak)
