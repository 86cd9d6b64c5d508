"""The correction as a training method: a student whose samples are distributed as its teacher's.

`score_identity` has the mathematics. A student is trained by the residual of its path first; then
the correction alternates with updates of an auxiliary denoiser, and the residual is its anchor.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pidistill.data import Dataset
from pidistill.denoiser import Denoiser
from pidistill.errors import PidistillError
from pidistill.methods.base import Batch, Distillation, Losses, Part, Update, noise_batch
from pidistill.methods.correction_settings import CorrectionSettings
from pidistill.methods.denoising import denoising_loss
from pidistill.methods.noise_levels import draw_log_normal
from pidistill.methods.pid import PID, PIDSettings
from pidistill.methods.pid_map import PIDMap, PIDMapSettings
from pidistill.methods.score_identity import (
    auxiliary_denoiser,
    correction_loss,
    require_differentiable,
)
from pidistill.methods.settings import OptimizerSettings, rate_by_size
from pidistill.model_folder import load_student
from pidistill.noise import SEEDS, Draws, device_of
from pidistill.students.base import Student
from pidistill.students.flow_map import FlowMapStudent
from pidistill.students.trajectory import TrajectoryStudent

ANCHOR_EVERY = 4
"""Every so many samples of a batch, one is an anchor."""
WEIGHT, WEIGHT_WITHOUT_START = 0.03, 0.3
"""Weight of the anchor where the auxiliary denoiser starts as a copy of the teacher's network, and
where it has to start from fresh weights."""
STUDENT_RATES = (2e-3, 1e-5)
"""Learning rates of the student for a small and a large network (`rate_by_size`); the latter is
that of the publication."""
AUXILIARY_RATES = (1e-3, 1e-5)
"""Those of the auxiliary denoiser."""


class Correction(Distillation):
    """The correction as a training method, after a first phase that trains the student."""

    Settings = CorrectionSettings
    needs = "noise"
    target_evaluations = 1

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
        self.weight = _weight(settings, teacher)
        self.is_anchored = first is not None and self.weight > 0
        self.corrected_from: int | None = None
        self._drawn: dict[int, tuple[Batch, Tensor, float]] = {}  # of the latest update
        self.teacher_evaluations = teacher.evaluations_per_call

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
        require_differentiable(teacher)
        auxiliary = auxiliary_denoiser(teacher, network)
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

    def teacher_backwards(self, done: int, max_train_steps: int) -> float:
        """One for every corrected sample; see `Method.teacher_backwards`."""
        begin = self.phase(max_train_steps)[self.corrected_from is None]
        corrected = 1 - 1 / ANCHOR_EVERY if self.is_anchored else 1
        return self.teacher.evaluations_per_call * corrected * max(0, done - begin)

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
        """The correction of most samples; one in `ANCHOR_EVERY` is an anchor instead."""
        if not self.is_anchored or self.first is None:
            return self._correct(batch, batch.draws.first)
        num = batch.draws.num
        anchors = list(range(-batch.draws.first % ANCHOR_EVERY, num, ANCHOR_EVERY))
        others = [row for row in range(num) if row not in anchors]
        before = -(-batch.draws.first // ANCHOR_EVERY)  # anchors of earlier batches
        # At least one of each, for FSDP needs every process to call its networks equally often.
        fresh = self._fresh(batch, batch.draws.first - before, max(1, len(others)))
        share = ANCHOR_EVERY / (ANCHOR_EVERY - 1)  # each part counts by its own mean
        corrected = self._correct(fresh, batch.draws.first, share * len(others) / num)
        anchor = self.first.loss(self._fresh(batch, before, max(1, len(anchors))))
        parts = [
            _weighted(corrected, len(others), share, num),
            _weighted(anchor, len(anchors), ANCHOR_EVERY, num, self.weight),
        ]
        turns = (batch.draws.first + torch.arange(num, device=corrected.loss.device)) % ANCHOR_EVERY
        order = (turns == 0).long().argsort(stable=True).argsort()
        loss, sigma = (torch.cat([getattr(p, key) for p in parts]) for key in ("loss", "sigma"))
        scalars = {name: value for part in parts for name, value in part.scalars.items()}
        return Losses(loss[order], sigma[order.to(sigma.device)], scalars)

    def _fresh(self, batch: Batch, first: int, num: int) -> Batch:
        """A batch of the samples `first ..`, with labels of their own."""
        draws = dataclasses.replace(batch.draws, first=first, num=num)
        return noise_batch(draws, self.student.num_classes, device_of(self.student))

    def _correct(self, batch: Batch, key: int, of_all: float = 1.0) -> Losses:
        """The correction of every sample of the batch.

        Its samples are kept under `key`, with their weight `of_all` in a mean over batches.
        """
        x0 = self._samples(batch)
        self._drawn[key] = batch, x0.detach(), of_all
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
        """The denoising loss of the auxiliary denoiser on samples of the student.

        They are those of the student's update, or fresh ones if `turn`, which counts further
        updates within a step, is not 0.
        """
        of_all = 1.0
        if turn == 0 and batch.draws.first in self._drawn:
            batch, x0, of_all = self._drawn.pop(batch.draws.first)
        else:
            key = hashlib.sha256(f"auxiliary {batch.draws.seed} {turn}".encode()).digest()
            seed = int.from_bytes(key[:8], "little") % SEEDS
            draws = dataclasses.replace(batch.draws, seed=seed)
            batch = dataclasses.replace(batch, draws=draws)
            with torch.no_grad():
                x0 = self._samples(batch)
        draws = batch.draws
        sigma = self._sigma(draws, "auxiliary sigma")
        eps = draws.normal("auxiliary eps", self.student.sample_shape).to(x0)
        loss = denoising_loss(self.auxiliary, x0, eps, sigma, batch.label)
        return Losses(of_all * loss, sigma, {})

    def _sigma(self, draws: Draws, stream: str) -> Tensor:
        """Noise levels (b,) of EDM's training distribution."""
        return draw_log_normal(draws.uniform(stream), self.teacher, 0)

    def _samples(self, batch: Batch) -> Tensor:
        """Samples of the student, shape (b, *sample_shape)."""
        if isinstance(self.first, PIDMap):
            return self.first.samples(batch, self.settings.share_from_noise)
        solution = self.student.sample(
            self.noise(batch),
            steps=self.student.num_steps,
            label=batch.label,
            draws=batch.draws,
        )
        return solution.x

    def state_values(self) -> dict[str, Any]:
        """The step at which the correction began, or None."""
        return {"corrected_from": self.corrected_from}

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Resume in the checkpoint's phase."""
        self.corrected_from = values["corrected_from"]


def _weighted(part: Losses, count: int, share: float, num: int, weight: float = 1.0) -> Losses:
    """The first `count` losses, those of one sample in `share` of `num`, for a mean over all."""
    scalars = {name: share * count / num * value for name, value in part.scalars.items()}
    return Losses(weight * share * part.loss[:count], part.sigma[:count], scalars)


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _weight(settings: CorrectionSettings, teacher: Denoiser) -> float:
    """The weight of the anchor, lambda."""
    if settings.weight is not None:
        return settings.weight
    return WEIGHT_WITHOUT_START if teacher.network_to_copy() is None else WEIGHT


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
    if settings.weight != 0:
        raise PidistillError(
            f"the student in {settings.start} is a {type(student).__name__}, which has no residual "
            "for an anchor; set method.weight to 0"
        )
    return None
