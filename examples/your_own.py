"""A custom teacher, network and method in one script.

    python examples/your_own.py

The teacher is a function, the network a plain module, and the method trains two networks: the
student with PID, and an auxiliary network that learns to denoise the student's samples, with its
own optimizer. Takes about 20 seconds on two CPU cores.
"""

import tempfile
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

import pidistill
from pidistill import Batch, Losses, Part, Update, methods
from pidistill.denoiser import over_sample
from pidistill.distance import l2
from pidistill.methods.pid import PID, PIDSettings
from pidistill.methods.settings import OptimizerSettings


def two_points(x: Tensor, sigma: Tensor, label: Tensor | None) -> Tensor:
    """The exact D(x, sigma) for data at (1, 1) and (-1, -1) with equal probability."""
    return torch.tanh(x.sum(1, keepdim=True) / sigma[:, None] ** 2).expand(-1, 2)


class Perceptron(nn.Module):
    """A raw network F(u, c_noise, label) for points in the plane."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(3, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2)
        )

    def forward(self, u: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        return self.layers(torch.cat([u, c_noise[:, None]], dim=1))


class FollowedSettings(PIDSettings):
    """Settings of `Followed`: those of PID, with its own name."""

    name: Literal["followed"] = "followed"


@methods.register
class Followed(PID):
    """PID with an auxiliary network that learns to denoise the student's samples."""

    Settings = FollowedSettings

    def __init__(self, settings: Any, student: Any, teacher: Any) -> None:
        super().__init__(settings, student, teacher)
        self.auxiliary = Perceptron()

    def parts(self) -> list[Part]:
        optimizer = OptimizerSettings(learning_rate=3e-3, lr_warmup_steps=0)
        return [*super().parts(), Part("auxiliary", self.auxiliary, optimizer=optimizer)]

    def updates(self, step: int) -> Any:
        yield Update("auxiliary", self.auxiliary_loss)
        yield from super().updates(step)

    def auxiliary_loss(self, batch: Batch) -> Losses:
        x0 = self.student.sample(self.noise(batch), label=batch.label).x.detach()
        sigma = (batch.draws.normal("auxiliary sigma", ()) - 1).exp().to(x0)
        eps = batch.draws.normal("auxiliary eps", self.student.sample_shape).to(x0)
        denoised = self.auxiliary(x0 + over_sample(sigma, x0) * eps, sigma.log() / 4)
        return Losses(l2(denoised, x0), sigma, {})


teacher = pidistill.as_denoiser(
    two_points, sigma_min=0.01, sigma_max=20, sigma_data=1.0, sample_shape=(2,)
)
folder = Path(tempfile.mkdtemp()) / "run"
student = pidistill.distill(
    teacher, method="followed", network=Perceptron(), out=folder, max_train_steps=1500
)

x, nfe = student.generate(1000, seed=0)
solution, teacher_nfe = pidistill.solve(
    teacher, pidistill.initial_noise(teacher, 1000, seed=0), steps=40
)
error = (x - solution).square().mean().sqrt()
print(f"{nfe} evaluation instead of {teacher_nfe}; distance to the teacher {error:.3f}")
print(f"on the right side: {(x.sign() == solution.sign()).float().mean():.1%}")

# The network class is not registered, so loading needs an instance to fill.
again = pidistill.load_student(folder, network=Perceptron())
assert torch.equal(again.generate(4, seed=1).x, student.generate(4, seed=1).x)
