"""Draw docs/images/paths.png: paths in the plane under the teacher, PID and the correction.

    python benchmarks/paths_picture.py

The teacher is the closed-form ring of Gaussians, both students are small perceptrons. Takes about a
minute on one CPU core.
"""

import tempfile
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

import pidistill
from pidistill.ode import path, sampling_sigmas

OUT = Path(__file__).parent.parent / "docs" / "images" / "paths.png"
NUM_PATHS, NUM_SAMPLES = 8, 1500
NETWORK = {"name": "mlp", "config": {"width": 32, "num_blocks": 2, "embedding_width": 32}}
COMMON = {"network": NETWORK, "batch_size": 256, "preview_steps": 0, "progress": False}


def students(folder: Path) -> dict[str, pidistill.Student]:
    """A student by PID of the flow map, and one by the preset `matched`, of equal length."""
    return {
        "PID of the flow map": pidistill.distill(
            "mixture:ring", method="pid-map", out=folder / "map", max_train_steps=1500, **COMMON
        ),
        "then the correction": pidistill.distill(
            "mixture:ring",
            method={"name": "correction", "weight": 0.03},
            out=folder / "matched",
            max_train_steps=1500,
            **COMMON,
        ),
    }


@torch.no_grad()
def main() -> None:
    """Train the students and draw the picture."""
    teacher = pidistill.load_teacher("mixture:ring")
    z = pidistill.initial_noise(teacher, NUM_PATHS, seed=1)
    label, labels = (torch.arange(num) % teacher.num_classes for num in (NUM_PATHS, NUM_SAMPLES))
    sigmas = sampling_sigmas(teacher, 40)
    solved = torch.stack([node.x for node in path(teacher, z, sigmas, label=label)][:-1])
    noise = pidistill.initial_noise(teacher, NUM_SAMPLES, seed=0)
    samples = pidistill.solve(teacher, noise, steps=40, label=labels).x
    panels: dict[str, tuple[Tensor, Tensor]] = {"teacher, 79 evaluations": (solved, samples)}
    with tempfile.TemporaryDirectory() as folder, torch.enable_grad():
        trained = students(Path(folder))
    for name, student in trained.items():
        points = torch.stack([student(z, sigma.expand(NUM_PATHS), label) for sigma in sigmas[:-1]])
        panels[name] = points, student.generate(NUM_SAMPLES, seed=0).x
    scale = (sigmas[:-1, None, None] ** 2 + teacher.sigma_data**2).rsqrt()
    figure = Figure(figsize=(10.5, 3.8), layout="constrained")
    axes = figure.subplots(1, 3, sharex=True, sharey=True)
    for axis, (name, (points, drawn)) in zip(axes, panels.items(), strict=True):
        axis.scatter(*(drawn / teacher.sigma_data).T, s=1.5, alpha=0.35, color="tab:gray")
        y = points.double() * scale
        for number in range(NUM_PATHS):
            axis.plot(*y[:, number].T, linewidth=1.2)
            axis.scatter(*y[-1, number], s=14, zorder=3)
        axis.set_title(name, fontsize=10)
        axis.set_aspect("equal")
        axis.set_xlim(-2.6, 2.6)
        axis.set_ylim(-2.6, 2.6)
    figure.savefig(OUT, dpi=110)


if __name__ == "__main__":
    main()
