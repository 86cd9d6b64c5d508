"""Compare parametrisations of PID for a noise-predicting teacher with a high sigma_max.

Trains a small noise-prediction network for the digits on the variance-preserving SDE, whose
sigma_max is 152, then a PID student in each parametrisation, anchored or not, with the `fast`
recipe except for its length.

    python benchmarks/noise_teacher.py --out benchmarks/results/noise_teacher.json
"""

import argparse
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch

from pidistill import initial_noise, load_student, load_teacher, solve
from pidistill.data import load_data
from pidistill.denoiser import PreconditionedDenoiser, over_sample
from pidistill.files import write_json
from pidistill.machine import machine
from pidistill.model_folder import write_description
from pidistill.networks import new_network
from pidistill.noise import Draws
from pidistill.precondition import VPPrecondition
from pidistill.schedule import vp_sigma
from pidistill.storage import write_tensors
from pidistill.training.assemble import build_trainer
from pidistill.training.config import parse_config

STUDENTS: dict[str, dict[str, Any]] = {
    "linear, anchored": {"parametrisation": "linear", "anchored": True},
    "linear": {"parametrisation": "linear", "anchored": False},
    "edm, anchored": {"parametrisation": "edm", "anchored": True},
    "edm": {"parametrisation": "edm", "anchored": False},
    "soft": {"parametrisation": "soft", "anchored": False},
}


def write_teacher(folder: Path, num_steps: int) -> None:
    """Train a network to predict the noise in digits at uniform times, and write its folder."""
    torch.manual_seed(0)
    data = load_data("digits")
    assert data.labels is not None
    shape = tuple(data.images.shape[1:])
    network = new_network("mlp", shape, data.num_classes, {"width": 192, "num_blocks": 3})
    # The MLP embeds numbers of order 1, not timesteps up to 999.
    precondition = VPPrecondition(num_times=5)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, betas=(0.9, 0.99))
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.02, num_steps)
    for step in range(num_steps):
        draws = Draws(0, 256 * step, 256)
        index = draws.integers("image", len(data.images))
        times = 1e-5 + (1 - 1e-5) * draws.uniform("time")
        sigma = torch.tensor([vp_sigma(t, 19.9, 0.1) for t in times.tolist()])
        eps = draws.normal("eps", shape).float()
        x = data.images[index] + over_sample(sigma, eps) * eps
        scales = precondition.scales(sigma)
        raw = network(over_sample(scales.c_in, x) * x, scales.c_noise, data.labels[index])
        optimizer.zero_grad()
        (raw - eps).square().mean().backward()
        optimizer.step()
        decay.step()
    teacher = PreconditionedDenoiser(
        network,
        precondition,
        sample_shape=shape,
        num_classes=data.num_classes,
        source="a noise-predicting network of digits",
    )
    folder.mkdir()
    write_description(folder, teacher, 0)
    write_tensors(folder / "student.safetensors", dict(teacher.state_dict()))


def main() -> None:
    """Train, measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher-steps", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    errors: dict[str, list[float]] = {name: [] for name in STUDENTS}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_teacher(folder / "teacher", args.teacher_steps)
        teacher = load_teacher(f"native:{folder / 'teacher'}")
        z, label = initial_noise(teacher, 256, seed=7), torch.arange(256) % 10
        exact = solve(teacher, z, steps=40, label=label).x
        for name, settings in STUDENTS.items():
            for seed in range(args.seeds):
                run = folder / f"{name}, seed {seed}"
                config = {
                    "teacher": f"native:{folder / 'teacher'}",
                    "seed": seed,
                    "max_train_steps": args.steps,
                    "batch_size": args.batch,
                    "preview_steps": 0,
                    "method": {"name": "pid", **settings},
                }
                for _ in build_trainer(parse_config([config]), run).run():
                    pass
                x = load_student(run).sample(z, label=label).x
                errors[name].append((x - exact).square().mean().sqrt().item())
            print(name, errors[name], flush=True)
    commit = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], text=True).strip()
    settings = {key: value for key, value in vars(args).items() if key != "out"}
    results = {
        "settings": settings,
        "sigma_max": teacher.sigma_max,
        "rms_of_the_teachers_samples": exact.square().mean().sqrt().item(),
        "rms_error": errors,
        "machine": machine(),
        "commit": commit,
    }
    write_json(args.out, results)


if __name__ == "__main__":
    main()
