"""Variants of PID for `benchmarks/convergence.py`: noise levels, losses, optimizers, batches."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pidistill import load_teacher
from pidistill.denoiser import Denoiser, over_sample
from pidistill.methods.base import Batch, Losses
from pidistill.methods.noise_levels import draw_log
from pidistill.methods.pid import PID
from pidistill.presets import read_preset
from pidistill.training.assemble import build_method
from pidistill.training.config import parse_config
from pidistill.training.parts import TrainedPart
from pidistill.training.trainer import StepReport, Trainer


@dataclasses.dataclass(frozen=True)
class Task:
    """A data set: the budget and batches of a run, and what is measured."""

    steps: int
    batch: int
    num_fd: int
    num_error: int
    rate: float
    """Middle of the first grid of learning rates of `base`."""
    late_batch: int
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)


TASKS = {
    "digits": Task(1000, 128, 5000, 5000, 2e-3, 256),
    "glyphs": Task(300, 64, 2000, 500, 4e-3, 128, {"max_grad_norm": 1.0}),
}

Draw = Callable[[Tensor, Denoiser, float], Tensor]
"""Maps uniform numbers (b,), the teacher and the progress of the run, 0 to 1, to noise levels."""


def draw_theta(uniform: Tensor, teacher: Denoiser, progress: float) -> Tensor:
    """Uniform in atan(sigma / sigma_data)."""
    d = teacher.sigma_data
    low, high = math.atan(teacher.sigma_min / d), math.atan(teacher.sigma_max / d)
    sigma = d * (high + (low - high) * uniform).tan()
    return sigma.clamp(teacher.sigma_min, teacher.sigma_max)


def draw_log_then_theta(uniform: Tensor, teacher: Denoiser, progress: float) -> Tensor:
    """Uniform in ln(sigma) in the first half of the run, in theta in the second."""
    if progress < 0.5:
        return draw_log(uniform, teacher, 0)
    return draw_theta(uniform, teacher, progress)


def draw_downwards(uniform: Tensor, teacher: Denoiser, progress: float) -> Tensor:
    """Uniform in ln(sigma) above a cut that falls from sigma_max / 10 in the first 40%."""
    first, last = math.log(teacher.sigma_max / 10), math.log(teacher.sigma_min)
    cut = math.exp(first + (last - first) * min(1.0, progress / 0.4))
    return teacher.sigma_max * (cut / teacher.sigma_max) ** uniform


class VariantPID(PID):
    """PID whose draw of noise levels may depend on the progress of the run, from 0 to 1."""

    rows = 1
    """Teacher evaluations per row of a batch."""
    progress = 0.0
    own_draw: Draw | None = None

    def loss(self, batch: Batch) -> Losses:
        if (own := self.own_draw) is not None:
            self.draw = lambda uniform, teacher, _: own(uniform, teacher, self.progress)
        return super().loss(batch)


class IntegralPID(VariantPID):
    r"""The integral form: the student's nodes against a trapezoidal sum that starts at z.

    With theta = atan(sigma / d) and y = x / sqrt(sigma^2 + d^2), the ODE is dy/dtheta = -N, where N
    is EDM's raw network. The sum goes down from sigma_max over K jittered nodes. The teacher is
    evaluated at the student's node, corrected by the defect of the sum at the node before.
    """

    rows = K = 4

    def __init__(self, settings: Any, student: Any, teacher: Denoiser) -> None:
        super().__init__(settings, student, teacher)
        self.teacher_evaluations, self.student_evaluations = self.K, self.K + 1
        d = teacher.sigma_data
        self.ends = math.atan(teacher.sigma_min / d), math.atan(teacher.sigma_max / d)

    def loss(self, batch: Batch) -> Losses:
        teacher, num, (low, high) = self.teacher, self.K + 1, self.ends
        jitter = batch.draws.uniform("train sigma")[:, None]
        nodes = low + (high - low) * (torch.arange(self.K) + jitter) / self.K
        theta = torch.cat([torch.full_like(jitter, low), nodes], 1)
        sigma = teacher.sigma_data * theta.tan()
        sigma = sigma.clamp(teacher.sigma_min, teacher.sigma_max * (1 - 1e-6))
        z = self.noise(batch)
        label = None if batch.label is None else batch.label.repeat_interleave(num)
        F = self.student.F(z.repeat_interleave(num, 0), sigma.flatten(), label)
        F = F.unflatten(0, (len(z), num))
        with torch.no_grad():
            target = self._targets(z.double(), theta, sigma, F.detach().double(), batch.label)
        loss = (F - target.to(F)).square().flatten(2).mean(2)
        normal = loss / (loss.detach() + self.settings.normalise).sqrt()
        return Losses(normal.mean(1), sigma[:, 0], {"residual": loss.detach().mean()})

    def _targets(
        self, z: Tensor, theta: Tensor, sigma: Tensor, F: Tensor, label: Tensor | None
    ) -> Tensor:
        """F of the trapezoidal sum at every node, shape (b, K + 1, ...), float64."""
        d, targets = self.teacher.sigma_data, []
        y, defect = z / math.hypot(self.teacher.sigma_max, d), torch.zeros_like(z)
        above = torch.full_like(theta[:, 0], self.ends[1])
        slope: Tensor | None = None
        for i in range(self.K, -1, -1):
            s, radius = sigma[:, i], over_sample((sigma[:, i] ** 2 + d**2).sqrt(), z)
            own = self.student.blend(z, s, F[:, i]) / radius
            new = slope  # constant below the last node
            if i or new is None:
                x = (own + defect) * radius
                D = self.teacher(x.float(), s.float(), label).double()
                new = (D - (d / radius) ** 2 * x) * radius / over_sample(s * d, z)
            mean = new if slope is None else (new + slope) / 2
            y = y + over_sample(above - theta[:, i], z) * mean
            defect, slope, above = y - own, new, theta[:, i]
            share = over_sample(self.student.share(s), z)
            targets.append((y * radius - share * z) / (1 - share))
        return torch.stack(targets[::-1], 1)


class MuonAdamW:
    """Muon for hidden matrices and flattened convolutions, AdamW for the rest, at one rate."""

    def __init__(self, module: nn.Module, rate: float) -> None:
        self.module = module
        outer = ("label", "input", "output", "_conv.")  # labels, first and last layer
        named = dict(module.named_parameters())
        inner = {n for n, p in named.items() if p.ndim > 1 and not any(o in n for o in outer)}
        self.flat = [(named[n], nn.Parameter(named[n].detach().flatten(1))) for n in sorted(inner)]
        rest = [p for n, p in named.items() if n not in inner]
        flat = [shared for _, shared in self.flat]  # the same memory
        self.muon = torch.optim.Muon(
            flat, lr=rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"
        )
        self.adamw = torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.99), weight_decay=0.0)
        self.param_groups = self.muon.param_groups + self.adamw.param_groups

    def step(self) -> None:
        for p, flat in self.flat:
            flat.grad = None if p.grad is None else p.grad.flatten(1)
        self.muon.step()
        self.adamw.step()

    def zero_grad(self) -> None:
        self.module.zero_grad()


def soap(module: nn.Module, rate: float) -> Any:
    """SOAP with the settings of its authors, but for the weight decay."""
    from pytorch_optimizer import SOAP

    return SOAP(module.parameters(), lr=rate, betas=(0.95, 0.95), weight_decay=0.0)


class LateBatch(Trainer):
    """Batches of 64 up to half of the teacher evaluations, then larger ones; rates as in `base`."""

    task: Task

    def train_step(self) -> StepReport:
        if 2 * self.teacher_evaluations >= self.task.steps * self.task.batch:
            self.config = self.config.model_copy(update={"batch_size": self.task.late_batch})
            self.micro_batch = self.task.late_batch
        return super().train_step()

    def _learning_rate(self, part: TrainedPart, step: int) -> float:
        return part.learning_rate(self.teacher_evaluations // self.task.batch, self.task.steps)


@dataclasses.dataclass(frozen=True)
class Variant:
    """How a run differs from `base`."""

    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    draw: Draw | None = None
    optimizer: Callable[[nn.Module, float], Any] | None = None
    method: type[VariantPID] = VariantPID
    trainer: type[Trainer] = Trainer
    length: float = 1.0
    """Teacher evaluations, in units of those of `base`."""


VARIANTS = {
    "base": Variant(),
    "draw theta": Variant(draw=draw_theta),
    "draw log-normal": Variant({"method": {"draw": "log-normal"}}),
    "draw log, then theta": Variant(draw=draw_log_then_theta),
    "step 0.5": Variant({"method": {"step": 0.5}}),
    "late batch": Variant(trainer=LateBatch),
    "muon": Variant(optimizer=MuonAdamW),
    "muon, draw log, then theta": Variant(draw=draw_log_then_theta, optimizer=MuonAdamW),
    "soap": Variant(optimizer=soap),
    "beta2 0.95": Variant({"adam_beta2": 0.95}),
    "beta2 0.999": Variant({"adam_beta2": 0.999}),
    "weight decay 0.01": Variant({"adam_weight_decay": 0.01}),
    "downwards": Variant(draw=draw_downwards),
    "integral": Variant(method=IntegralPID),
    "short warm-up": Variant({"lr_warmup_steps": 30}),
    "cosine": Variant({"lr_scheduler": "cosine"}),
    "twice as long": Variant(length=2),
}


def make_trainer(name: str, variant: Variant, rate: float, seed: int) -> Trainer:
    """The trainer of a run, built by the library, with what the variant changes."""
    task, steps, batch = TASKS[name], TASKS[name].steps, TASKS[name].batch
    if variant.trainer is LateBatch:
        half, batch = task.steps * task.batch // 2, 64
        steps = half // batch + half // task.late_batch
    own = {
        "seed": seed,
        "learning_rate": rate,
        "max_train_steps": int(steps * variant.length),
        "batch_size": batch // variant.method.rows,
    }
    config = parse_config([read_preset("fast"), task.settings, own, variant.settings])
    teacher = load_teacher(name)
    plain = build_method(config, teacher, None)
    method = variant.method(config.method, plain.student, teacher)
    method.own_draw = variant.draw
    trainer = variant.trainer(config, method, Path("unused"))
    if isinstance(trainer, LateBatch):
        trainer.task = task
    if variant.optimizer is not None:
        part = trainer.state.parts["student"]
        part.optimizer = variant.optimizer(part.module, rate)
    return trainer
