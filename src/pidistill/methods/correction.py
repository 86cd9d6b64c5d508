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
import dataclasses
import functools
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import pydantic
import torch
from torch import Tensor, nn

from pidistill.data import Dataset
from pidistill.denoiser import Denoiser, PreconditionedDenoiser, over_sample
from pidistill.distance import l2
from pidistill.errors import PidistillError
from pidistill.methods.base import Batch, Distillation, Losses, Part, Update
from pidistill.methods.noise_levels import draw_log_normal
from pidistill.methods.pid import PID, PIDSettings
from pidistill.methods.pid_map import PIDMap, PIDMapSettings
from pidistill.methods.settings import MethodSettings, OptimizerSettings, rate_by_size
from pidistill.model_folder import load_student
from pidistill.noise import SEEDS, Draws
from pidistill.paths import user_path
from pidistill.precondition import EDMPrecondition, Precondition
from pidistill.students.base import Student
from pidistill.students.flow_map import FlowMapStudent
from pidistill.students.trajectory import TrajectoryStudent

ANCHOR_EVERY = 4
"""Every so many samples of a batch, one is an anchor."""
SMALLEST_WEIGHT = 1e-3
"""Least mean of |x0 - D| that the loss is divided by."""
STUDENT_RATES = (2e-3, 1e-5)
"""Learning rates of the student for a small and a large network (`rate_by_size`); the latter is
that of the publication."""
AUXILIARY_RATES = (1e-3, 1e-5)
"""Those of the auxiliary denoiser."""


class CorrectionSettings(MethodSettings):
    """Settings of the correction."""

    name: Literal["correction"] = "correction"
    start: str | None = None
    """Folder of the run whose student is corrected; if unset, a student is trained first."""
    first: Annotated[PIDMapSettings | PIDSettings, pydantic.Field(discriminator="name")] = (
        PIDMapSettings()
    )
    """The method that trains the student first, and whose loss is the anchor."""
    first_share: float = pydantic.Field(default=0.2, gt=0, lt=1)
    """Share of the training steps that it takes; none with `start`."""
    weight: float = pydantic.Field(default=0.03, ge=0)
    """Weight of the anchor, lambda: more keeps nearer to the teacher's paths, less comes nearer to
    its distribution. 0 leaves the anchor out."""
    alpha: float = pydantic.Field(default=1.0, ge=0)
    """The coefficient alpha; published: 1.0 and 1.2."""
    share_from_noise: float = pydantic.Field(default=0.7, gt=0, le=1)
    """Share of the corrected samples of a flow map that start at sigma_max; the others start on
    its paths."""
    auxiliary_warmup: int = pydantic.Field(default=50, ge=0)
    """Updates of the auxiliary denoiser before the first correction."""
    student_learning_rate: float | None = pydantic.Field(default=None, gt=0)
    """Learning rate of the student in the correction; if unset, by its number of parameters."""
    auxiliary_learning_rate: float | None = pydantic.Field(default=None, gt=0)
    """Learning rate of the auxiliary denoiser; if unset, by its number of parameters."""

    @pydantic.field_validator("start")
    @classmethod
    def _absolute(cls, start: str | None) -> str | None:
        return None if start is None else str(user_path(start).resolve())


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
        teacher: The teacher, differentiable in its samples.
        auxiliary: The denoiser of what the student draws.
        x0: Samples of the student, shape (b, *sample_shape).
        eps: Standard normal noise, shaped like `x0`.
        sigma: Noise levels, shape (b,), float64 on the CPU.
        label: Class labels (b,), or None.
        alpha: The coefficient alpha.

    Returns:
        The losses, and the mean squares of Delta without gradient, both of shape (b,).

    Raises:
        PidistillError: The teacher lets no gradient through.
    """
    leaf = x0.detach().requires_grad_()
    noisy = leaf + over_sample(sigma, x0) * eps
    of_teacher = teacher(noisy, sigma.to(noisy), label).to(x0)
    if not of_teacher.requires_grad:
        raise PidistillError(
            f"{teacher.source} lets no gradient through to its samples, which the method "
            "correction needs; make it differentiable, or use the method pid or pid-map"
        )
    delta = of_teacher - auxiliary(noisy, sigma.to(noisy), label).to(x0)
    weight = (x0 - of_teacher).detach().abs().flatten(1).mean(1).clamp(min=SMALLEST_WEIGHT)
    loss = (delta * (of_teacher - leaf - alpha * delta)).flatten(1).mean(1) / weight
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    linear = (gradient * x0).flatten(1).sum(1)  # has the gradient of the loss
    return linear + (loss - linear).detach(), delta.detach().square().flatten(1).mean(1)


class Correction(Distillation):
    """The correction as a training method, after a first phase that trains the student."""

    Settings = CorrectionSettings
    needs = "noise"

    def __init__(
        self,
        settings: CorrectionSettings,
        student: Student,
        teacher: Denoiser,
        auxiliary: Denoiser,
        first: PID | PIDMap | None,
    ) -> None:
        """Correct `student` by `auxiliary`; `first` trains it and is the anchor."""
        super().__init__(settings, student, teacher)
        self.auxiliary = auxiliary
        self.first = first
        self.corrected_from: int | None = None
        self.teacher_evaluations = teacher.evaluations_per_call
        self.student_evaluations = 1
        self.target_evaluations = 1

    @classmethod
    def make_student(
        cls, settings: CorrectionSettings, teacher: Denoiser, network: nn.Module | None
    ) -> Student:
        """The student of the run `start`, or that of the first method."""
        if settings.start is None:
            kind: type[Distillation] = PIDMap if settings.first.name == "pid-map" else PID
            return kind.make_student(settings.first, teacher, network)
        student = load_student(settings.start, network=network)
        for key in ("sample_shape", "num_classes", "sigma_min", "sigma_max"):
            own, its = getattr(student, key), getattr(teacher, key)
            if own != its:
                raise PidistillError(
                    f"the student in {settings.start} has {key} {own}; the teacher has {its}; "
                    "correct a student of this teacher"
                )
        return student.requires_grad_(True)

    @classmethod
    def build(
        cls,
        settings: CorrectionSettings,
        *,
        teacher: Denoiser | None,
        data: Dataset | None,
        network: nn.Module | None,
    ) -> "Correction":
        """See `Method.build`."""
        if teacher is None:
            raise PidistillError("correction distils a teacher; set 'teacher'")
        auxiliary = _auxiliary(teacher, network)
        student = cls.make_student(settings, teacher, network)
        first = _first_method(settings, student, teacher)
        return cls(settings, student, teacher, auxiliary, first)

    def parts(self) -> list[Part]:
        """The student and the auxiliary denoiser, with the optimizers of the current phase."""
        student, auxiliary = (
            OptimizerSettings(
                learning_rate=wanted or rate_by_size(_size(module), rates),
                adam_beta1=0.0,
                adam_beta2=0.99,
                lr_warmup_steps=warmup,
                lr_end=end,
                max_grad_norm=1.0,
            )
            for module, wanted, rates, warmup, end in (
                (self.student, self.settings.student_learning_rate, STUDENT_RATES, 20, 0.02),
                (self.auxiliary, self.settings.auxiliary_learning_rate, AUXILIARY_RATES, 0, 0.1),
            )
        )
        in_first = self.corrected_from is None
        return [
            Part("student", self.student, None if in_first else student, averaged=True),
            Part("auxiliary", self.auxiliary, auxiliary),
        ]

    def start_phase(self, step: int, max_train_steps: int) -> bool:
        """Whether the correction begins at `step`."""
        if self.corrected_from is not None or step < self.phase(max_train_steps)[1]:
            return False
        self.corrected_from = step
        return True

    def phase(self, max_train_steps: int) -> tuple[int, int]:
        """The first method's steps, or those of the correction."""
        if self.corrected_from is not None:
            return self.corrected_from, max_train_steps
        share = 0.0 if self.settings.start else self.settings.first_share
        return 0, round(share * max_train_steps)

    def updates(self, step: int) -> Iterator[Update]:
        """An update of the student, then one of the auxiliary denoiser.

        The auxiliary denoiser catches up before the first correction. If the teacher had no network
        for it to start from, it learns in the first phase, too.
        """
        if self.corrected_from is None and self.first is not None:
            yield Update("student", self.first.loss)
            if self.teacher.network_to_copy() is None:
                yield Update("auxiliary", self.auxiliary_loss)
            return
        if step == self.corrected_from:
            for turn in range(self.settings.auxiliary_warmup):
                yield Update("auxiliary", functools.partial(self.auxiliary_loss, turn=turn + 1))
        yield Update("student", self.loss)
        yield Update("auxiliary", self.auxiliary_loss)

    def loss(self, batch: Batch) -> Losses:
        """The correction of three samples in four; every fourth is an anchor instead."""
        if self.first is None or self.settings.weight == 0:
            return self._correct(batch)
        anchors = len(range(-batch.draws.first % ANCHOR_EVERY, batch.draws.num, ANCHOR_EVERY))
        before = -(-batch.draws.first // ANCHOR_EVERY)  # anchors of earlier batches
        parts = []
        if anchors < batch.draws.num:
            rows = (batch.draws.first - before, batch.draws.num - anchors)
            corrected = self._correct(self._fresh(batch, *rows))
            share = 1 - 1 / ANCHOR_EVERY  # each part counts by its own mean
            parts.append(dataclasses.replace(corrected, loss=corrected.loss / share))
        if anchors:
            anchor = self.first.loss(self._fresh(batch, before, anchors))
            weight = self.settings.weight * ANCHOR_EVERY
            parts.append(dataclasses.replace(anchor, loss=weight * anchor.loss))
        scalars = {name: value for part in parts for name, value in part.scalars.items()}
        loss, sigma = (torch.cat([getattr(p, key) for p in parts]) for key in ("loss", "sigma"))
        return Losses(loss, sigma, scalars)

    def _fresh(self, batch: Batch, first: int, num: int) -> Batch:
        """A batch of the samples `first ..`, with labels of their own."""
        draws = Draws(batch.draws.seed, first, num)
        if batch.label is None:
            return Batch(draws, None, None)
        label = draws.integers("train label", self.student.num_classes)
        return Batch(draws, label.to(batch.label.device), None)

    def _correct(self, batch: Batch) -> Losses:
        """The correction of every sample of the batch."""
        x0 = self._samples(batch)
        sigma = self._sigma(batch.draws, "correction sigma")
        eps = batch.draws.normal("correction eps", self.student.sample_shape).to(x0)
        loss, disagreement = correction_loss(
            self.teacher,
            self.auxiliary,
            x0,
            eps,
            sigma,
            batch.label,
            alpha=self.settings.alpha,
        )
        return Losses(loss, sigma, {"disagreement": disagreement.mean()})

    def auxiliary_loss(self, batch: Batch, turn: int = 0) -> Losses:
        """EDM's denoising loss of the auxiliary denoiser on fresh samples of the student.

        `turn` counts the updates within a step; each has its own random numbers.
        """
        seed = Draws(batch.draws.seed, turn, 1).integers("auxiliary seed", SEEDS - 1)
        draws = dataclasses.replace(batch.draws, seed=int(seed))
        with torch.no_grad():
            x0 = self._samples(dataclasses.replace(batch, draws=draws))
        sigma = self._sigma(draws, "auxiliary sigma")
        eps = draws.normal("auxiliary eps", self.student.sample_shape).to(x0)
        noisy = x0 + over_sample(sigma, x0) * eps
        denoised = self.auxiliary(noisy, sigma.to(noisy), batch.label).to(x0)
        sigma_data = self.teacher.sigma_data
        weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
        return Losses(weight.to(x0) * l2(denoised, x0), sigma, {})

    def _sigma(self, draws: Draws, stream: str) -> Tensor:
        """Noise levels (b,) of EDM's training distribution."""
        return draw_log_normal(draws.uniform(stream), self.teacher, 0)

    def _samples(self, batch: Batch) -> Tensor:
        """Samples of the student, shape (b, *sample_shape)."""
        if isinstance(self.first, PIDMap):
            return self.first.samples(batch, self.settings.share_from_noise)
        z = self.teacher.sigma_max * batch.draws.normal("train z", self.student.sample_shape)
        z = z.to(next(self.student.parameters()))
        solution = self.student.sample(
            z, steps=self.student.num_steps, label=batch.label, draws=batch.draws
        )
        return solution.x

    def state_values(self) -> dict[str, Any]:
        """The step at which the correction began, or None."""
        return {"corrected_from": self.corrected_from}

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Resume in the checkpoint's phase."""
        self.corrected_from = values["corrected_from"]


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _auxiliary(teacher: Denoiser, network: nn.Module | None) -> Denoiser:
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


def _first_method(
    settings: CorrectionSettings, student: Student, teacher: Denoiser
) -> PID | PIDMap | None:
    """The method whose loss is the anchor: `settings.first`, or one that suits a given student.

    Raises `PidistillError` if there is none, but an anchor is wanted.
    """
    if isinstance(student, FlowMapStudent):
        of_map = settings.first if isinstance(settings.first, PIDMapSettings) else PIDMapSettings()
        return PIDMap(of_map, student, teacher)
    if isinstance(student, TrajectoryStudent):
        of_path = settings.first if isinstance(settings.first, PIDSettings) else PIDSettings()
        return PID(of_path, student, teacher)
    if settings.weight:
        raise PidistillError(
            f"the student in {settings.start} is a {type(student).__name__}, which has no residual "
            "for an anchor; set method.weight to 0"
        )
    return None
