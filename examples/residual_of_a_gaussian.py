"""Compute the PID residual by hand, for a teacher with closed-form trajectories.

    python examples/residual_of_a_gaussian.py

For a Gaussian, the exact solution is known. Its residual is zero with the exact derivative, and
proportional to the square of the step with a central difference.
"""

import torch

import pidistill
from pidistill.derivative import Central, ForwardMode
from pidistill.teachers.mixture import gaussian_trajectory

teacher = pidistill.load_teacher("mixture:gaussian")
z = pidistill.initial_noise(teacher, 256, seed=0).double()
sigma = torch.full((256,), 0.7, dtype=torch.float64)


def share(sigma: torch.Tensor) -> torch.Tensor:
    """s, the share of z in x."""
    return sigma / teacher.sigma_max


def F(nodes: torch.Tensor) -> torch.Tensor:
    """The exact student: x = s z + (1 - s) F, solved for F."""
    s = share(nodes)[..., None]
    x = torch.stack([gaussian_trajectory(teacher, z, level) for level in nodes])
    return (x - s * z) / (1 - s)


schemes = {f"central, step {step}": Central(teacher.sigma_max, step) for step in (0.4, 0.2, 0.1)}
schemes["exact (jvp)"] = ForwardMode()
for name, scheme in schemes.items():
    point = scheme(F, share, sigma)
    x = gaussian_trajectory(teacher, z, point.sigma)
    residual = point.intercept - teacher(x, point.sigma)
    print(f"{name:18} residual {residual.square().mean().sqrt():.1e}")
