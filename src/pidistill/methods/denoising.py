r"""Training a denoiser on data with the EDM loss (Karras et al. 2022, section 5).

$\lambda(\sigma) |D(x_0 + \sigma \epsilon, \sigma) - x_0|^2$ with $\ln \sigma \sim N(P_{mean},
P_{std}^2)$ and $\lambda = (\sigma^2 + \sigma_{data}^2) / (\sigma \sigma_{data})^2$.
"""

from typing import Any, Literal

import pydantic
import torch
from torch import Tensor, nn

from pidistill.data import Dataset
from pidistill.denoiser import Denoiser, PreconditionedDenoiser, over_sample
from pidistill.distance import l2
from pidistill.errors import PidistillError
from pidistill.methods.base import Batch, Losses, Method
from pidistill.methods.settings import MethodSettings
from pidistill.methods.validation import Validation
from pidistill.noise import initial_noise
from pidistill.ode import solve
from pidistill.precondition import EDMPrecondition
from pidistill.students.labels import labels_for


class DenoisingSettings(MethodSettings):
    """Settings of the EDM loss; the defaults are EDM's."""

    name: Literal["denoising"] = "denoising"
    p_mean: float = -1.2
    """Mean of ln(sigma) in training."""
    p_std: float = pydantic.Field(default=1.2, gt=0)
    """Standard deviation of ln(sigma) in training."""
    sigma_data: float | None = pydantic.Field(default=None, gt=0)
    """Standard deviation of the data for the preconditioning; unset: as measured. EDM's is 0.5."""
    label_dropout: float = pydantic.Field(default=0.1, ge=0, le=1)
    """Probability of dropping a sample's label, which trains the unconditional mode."""
    held_out: float = pydantic.Field(default=0.0, ge=0, lt=1)
    """Share of the images, 1,000 at most, that is kept for validation; none of fewer than 16."""


def denoising_loss(
    denoiser: Denoiser, x0: Tensor, eps: Tensor, sigma: Tensor, label: Tensor | None
) -> Tensor:
    """EDM's weighted denoising loss per sample, shape (b,).

    Args:
        denoiser: The denoiser; the gradient reaches its weights.
        x0: Clean samples, shape (b, *sample_shape).
        eps: Standard normal noise, shaped like `x0`.
        sigma: Noise levels, shape (b,).
        label: Class labels (b,), or None.
    """
    noisy = x0 + over_sample(sigma, x0) * eps
    denoised = denoiser(noisy, sigma.to(noisy), label).to(x0)
    weight = (sigma**2 + denoiser.sigma_data**2) / (sigma * denoiser.sigma_data) ** 2
    return weight.to(x0) * l2(denoised, x0)


def measured_sigma_data(data: Dataset) -> float:
    """The standard deviation of the pixels, to three digits."""
    sigma_data = float(f"{data.moments[1]:.3g}")
    if sigma_data == 0:
        raise PidistillError("all pixels of the data are equal; nothing can be learned from them")
    return sigma_data


class Denoising(Method):
    """The EDM loss for a preconditioned denoiser."""

    Settings = DenoisingSettings
    needs = "images"
    teacher_evaluations = 0
    student: PreconditionedDenoiser

    def __init__(
        self,
        settings: DenoisingSettings,
        student: PreconditionedDenoiser,
        validation: Validation | None = None,
    ) -> None:
        """Train `student`, a denoiser; `validation` holds out images."""
        self.settings = settings
        self.student = student
        self.validation = validation
        self.rows = None if validation is None else validation.seen

    @classmethod
    def build(
        cls,
        settings: DenoisingSettings,
        *,
        teacher: Denoiser | None,
        data: Dataset | None,
        network: nn.Module | None,
    ) -> "Denoising":
        """Wrap `network` as a denoiser of the data (see `Method.build`)."""
        if data is None or network is None:
            raise PidistillError("denoising trains a network on images; set both")
        student = PreconditionedDenoiser(
            network,
            EDMPrecondition(sigma_data=settings.sigma_data or measured_sigma_data(data)),
            sample_shape=data.sample_shape,
            num_classes=data.num_classes,
            source=f"a denoiser of {data.name}",
        )
        student.class_names = data.class_names
        return cls(settings, student, Validation(data, settings.held_out))

    def loss(self, batch: Batch) -> Losses:
        """Add noise to the images of the batch and return the weighted squared errors."""
        if batch.x0 is None:
            raise ValueError("the batch has no images; denoising trains on data")
        x0, draws = batch.x0, batch.draws
        log_sigma = self.settings.p_mean + self.settings.p_std * draws.normal("train sigma", ())
        sigma = log_sigma.exp().to(x0)
        eps = draws.normal("train eps", self.student.sample_shape).to(x0)
        label = batch.label
        if label is not None:
            dropped = draws.uniform("label dropout") < self.settings.label_dropout
            label = label.masked_fill(dropped.to(label.device), -1)
        return Losses(denoising_loss(self.student, x0, eps, sigma, label), sigma, {})

    def validate(self) -> dict[str, Any]:
        """`validation` (see `Validation.measure`), and `validation_error`, its mean."""
        if self.validation is None:
            return {}
        found = self.validation.measure(self.student)
        errors = list((found["held_out"] or found["seen"]).values())
        return {"validation_error": sum(errors) / len(errors), "validation": found}

    @torch.no_grad()
    def preview(self, num: int) -> Tensor:
        """Samples from Heun with 18 nodes, without dropout; labels cycle through the classes."""
        z = initial_noise(self.student, num, seed=0)
        label = labels_for(self.student, num)
        label = None if label is None else label.to(z.device)
        training = self.student.training
        x = solve(self.student.eval(), z, steps=18, label=label).x
        self.student.train(training)
        return x
