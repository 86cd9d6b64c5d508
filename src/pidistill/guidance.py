r"""Classifier-free guidance (Ho and Salimans 2022) as a wrapper around a conditional denoiser.

$$D_w(x, \sigma, c) = D(x, \sigma) + w (D(x, \sigma, c) - D(x, \sigma))$$

At every noise level its score $(D_w - x) / \sigma^2$ is that of
$p_\sigma(x)^{1-w} p_\sigma(x | c)^w$: $w = 1$ is the conditional denoiser, $w = 0$ the
unconditional one. Guidance of predicted noise or velocity is the same, since both are affine in D.
"""

import torch
from torch import Tensor, nn

from pidistill.denoiser import Denoiser, over_sample
from pidistill.errors import PidistillError
from pidistill.noise import Draws
from pidistill.precondition import Precondition


class GuidedDenoiser(Denoiser):
    """`D_w`: a teacher with guidance folded in, as one batched call of twice the size.

    With a fixed scale it is a denoiser like any other, and what a student learns from it is guided
    sampling at that scale. With a range, every call has to say each sample's scale, and a student
    has to be told it too: through an input of its network beside `c_noise` and the label (Meng et
    al. 2023; `time_cond_proj_dim` of UNet2DConditionModel is such an input). No network of this
    package has one yet, so the methods distill fixed scales.
    """

    evaluations_per_call = 2

    def __init__(self, denoiser: Denoiser, scale: float | tuple[float, float]) -> None:
        """Wrap `denoiser`.

        Args:
            denoiser: A denoiser that was trained with labels and without.
            scale: The guidance scale w, or a range (low, high) of scales to be chosen per call.

        Raises:
            PidistillError: The denoiser has no labels, or the range is out of order.
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
                "teacher that was trained with labels and without"
            )
        if isinstance(scale, tuple) and not scale[0] <= scale[1]:
            raise PidistillError(f"guidance is {scale}; expected a range (low, high), low <= high")
        self.denoiser = denoiser
        self.decoder = denoiser.decoder
        self.scale = scale

    def forward(
        self, x: Tensor, sigma: Tensor, label: Tensor | None = None, scale: Tensor | None = None
    ) -> Tensor:
        """Return D_w(x, sigma, label).

        Args:
            x: Noisy samples, shape (b, *sample_shape).
            sigma: Noise levels, shape (b,).
            label: Class labels (b,), int64; -1, and None for all, is the unconditional denoiser.
            scale: Each sample's w, shape (b,); None is the fixed scale.

        Raises:
            PidistillError: There is neither a fixed scale nor one in this call.
        """
        if label is None or (scale is None and self.scale == 1):
            return self._D(x, sigma, label)
        if scale is not None:
            w = over_sample(scale, x)
        elif isinstance(self.scale, tuple):
            raise PidistillError(
                f"guidance is the range {self.scale}, so a call needs each sample's `scale`; "
                "see GuidedDenoiser.draw_scale"
            )
        else:
            w = torch.as_tensor(self.scale, dtype=x.dtype)
        unlabelled = torch.full_like(label, -1)
        both = self._D(torch.cat([x, x]), torch.cat([sigma, sigma]), torch.cat([label, unlabelled]))
        conditional, unconditional = both.chunk(2)
        return unconditional + w * (conditional - unconditional)

    def draw_scale(self, draws: Draws) -> Tensor:
        """One scale a sample, uniform over the range, shape (num,), float64."""
        low, high = self.scale if isinstance(self.scale, tuple) else (self.scale, self.scale)
        return low + (high - low) * draws.uniform("guidance")

    def _D(self, x: Tensor, sigma: Tensor, label: Tensor | None) -> Tensor:  # noqa: N802
        out: Tensor = self.denoiser(x, sigma, label)
        return out

    def network_to_copy(self) -> tuple[nn.Module, Precondition] | None:
        """Those of the wrapped denoiser."""
        return self.denoiser.network_to_copy()
