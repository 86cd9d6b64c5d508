r"""Knowledge distillation (Luhman & Luhman 2021, arXiv 2101.02388).

The teacher solves its ODE from many $z$ in advance; the student, a denoiser that takes one Euler
step, regresses on the samples:

$$\mathrm{distance}\left(x(z, \sigma_{min}),\; x_{teacher}(z)\right)$$

Training needs only the pairs, no data. All teacher evaluations happen before the first step, and
several runs may share the pairs.
"""

from collections.abc import Iterator
from typing import Literal

import pydantic
from torch import Tensor, nn

from pidistill.denoiser import Denoiser
from pidistill.devices import kept_on, sent_to
from pidistill.distance import Distance, DistanceName, distance_for
from pidistill.methods.base import (
    Batch,
    Distillation,
    Losses,
    Preparation,
    Run,
)
from pidistill.methods.pairs import PairFolder, Pairs
from pidistill.methods.settings import MethodSettings
from pidistill.noise import device_of
from pidistill.paths import user_path
from pidistill.schedule import constant_sigma
from pidistill.students.euler import EulerStudent


class KnowledgeSettings(MethodSettings):
    """Settings of knowledge distillation."""

    name: Literal["knowledge"] = "knowledge"
    num_pairs: int = pydantic.Field(default=20_000, ge=1, le=2**40)
    """Number of pairs to train on; all are kept in memory."""
    pairs: str | None = pydantic.Field(default=None, pattern=r"^[^\x00]+$")
    """Folder of pairs, for sharing them among runs; if unset, `pairs` in the run folder."""
    pairs_seed: int | None = pydantic.Field(default=None, ge=0, lt=2**63)
    """Seed of the pairs; if unset, the run's seed, or 0 for a shared folder."""
    pairs_batch_size: int = pydantic.Field(default=256, ge=1, le=2**20)
    """Number of pairs that the teacher solves for at once."""
    steps: int = pydantic.Field(default=40, ge=2, le=10**6)
    """Number of nodes of the teacher's solver (`pidistill.solve`)."""
    solver: Literal["heun", "euler"] = "heun"
    """The teacher's solver."""
    distance: DistanceName = "l2"
    """Distance between student and teacher (`pidistill.distance`); published: l2."""

    def for_share(self, share: float) -> "KnowledgeSettings":
        """A share of the pairs."""
        return self.model_copy(update={"num_pairs": max(1, round(share * self.num_pairs))})


def knowledge_loss(
    student: EulerStudent, z: Tensor, x: Tensor, label: Tensor | None, *, distance: Distance
) -> Tensor:
    """The distance between the student's samples and the teacher's, shape (b,).

    Args:
        student: A one-step student.
        z: Starting noise, shape (b, *sample_shape).
        x: The teacher's samples from `z`, shaped like `z`.
        label: Class labels (b,), or None.
        distance: The distance.
    """
    return distance(student.sample(z, label=label).x, x)


class Knowledge(Distillation):
    """Knowledge distillation as a training method; it holds the pairs once they are made."""

    Settings = KnowledgeSettings
    needs = "pairs"
    teacher_evaluations = 0
    student: EulerStudent
    pairs: Pairs

    def __init__(
        self, settings: KnowledgeSettings, student: EulerStudent, teacher: Denoiser
    ) -> None:
        """Train `student` on samples of `teacher`."""
        super().__init__(settings, student, teacher)
        self.distance = distance_for(settings.distance, teacher.sample_shape)
        calls = 2 * settings.steps - 1 if settings.solver == "heun" else settings.steps
        self.teacher_evaluations_before = settings.num_pairs * calls * teacher.evaluations_per_call

    @classmethod
    def make_student(
        cls, settings: KnowledgeSettings, teacher: Denoiser, network: nn.Module | None
    ) -> EulerStudent:
        """See `Distillation.make_student`."""
        return EulerStudent.from_teacher(teacher, network=network)

    def _pair_folder(self, run: Run) -> PairFolder:
        """The folder of pairs; by default, the pairs in a shared one do not use the run's seed."""
        settings = self.settings
        own = settings.pairs is None
        return PairFolder(
            run.folder / "pairs" if own else user_path(settings.pairs),
            self.teacher,
            run.teacher,
            num=settings.num_pairs,
            solver=settings.solver,
            steps=settings.steps,
            seed=settings.pairs_seed if settings.pairs_seed is not None else run.seed * own,
            batch_size=settings.pairs_batch_size,
            processes=run.processes,
        )

    def prepare(self, run: Run) -> Iterator[Preparation]:
        """Make the missing pairs, then load all of them."""
        pairs = self._pair_folder(run)
        for done in pairs.make():
            yield Preparation("solving for pairs", done, pairs.share, "pairs")
        device = device_of(self.student)
        z, x, label = kept_on(device, *pairs.load())
        assert z is not None
        assert x is not None
        self.pairs = Pairs(z, x, label)

    def rehearse(self, run: Run, num: int) -> int:
        """Make at most `num` pairs, in one batch, and keep them in memory."""
        settings = self.settings
        count = min(num, settings.num_pairs, settings.pairs_batch_size)
        pairs = self._pair_folder(run).solve(0, count)
        self.pairs = Pairs(pairs["z"], pairs["x"], pairs.get("label"))
        return count * self.teacher_evaluations_before // settings.num_pairs

    def loss(self, batch: Batch) -> Losses:
        """The losses of randomly drawn pairs, with the pairs' own labels."""
        pairs, device = self.pairs, device_of(self.student)
        index = batch.draws.on(pairs.x.device).integers("train pair", len(pairs.x))
        loss = knowledge_loss(
            self.student,
            sent_to(device, pairs.z[index]),
            sent_to(device, pairs.x[index]),
            None if pairs.label is None else sent_to(device, pairs.label[index]),
            distance=self.distance,
        )
        sigma = constant_sigma(self.student.sigma_max, loss)
        return Losses(loss, sigma, {})
