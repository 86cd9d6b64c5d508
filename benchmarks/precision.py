"""How wide a central difference must be for each precision: types x widths x seeds.

PID of the preset fast on digits (1,000 steps of 128) and glyphs (300 steps of 64), everything but
the width and `mixed_precision` as it stands. Measured are the error to the teacher's solutions and
the Frechet distance. `derivative.step_for` states the rule that follows.

    python benchmarks/precision.py --data digits --threads 1

Writes benchmarks/results/precision-DATA.json, after every run, and draws
docs/images/precision.png from what there is; a run that is in the file is not repeated. Half an
hour per data set on one CPU core. fp16 has no loss scaler here, only its rounding.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pidistill import evaluate, load_teacher
from pidistill.files import write_json
from pidistill.machine import machine
from pidistill.noise import initial_noise
from pidistill.ode import solve
from pidistill.presets import read_preset
from pidistill.students.labels import labels_for
from pidistill.training.assemble import build_method
from pidistill.training.config import parse_config
from pidistill.training.trainer import Trainer

RESULTS = Path(__file__).parent / "results"
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "precision.png"
TASKS: dict[str, dict[str, Any]] = {
    "digits": {"max_train_steps": 1000, "batch_size": 128},
    "glyphs": {"max_train_steps": 300, "batch_size": 64, "learning_rate": 4e-3},
}
MEASURED = {"digits": (5000, 5000), "glyphs": (500, 2000)}
"""Samples of the error and of the Frechet distance."""
TYPES = {"float32": None, "fp16": torch.float16, "bf16": torch.bfloat16}
WIDTHS: dict[str, dict[str, tuple[float, ...]]] = {
    "digits": {"float32": (0.1, 0.5), "fp16": (0.1,), "bf16": (0.1, 0.25, 0.5, 1.0)},
    "glyphs": {"float32": (0.1, 0.5), "bf16": (0.1, 0.5)},
}


def solutions(name: str) -> Tensor:
    """The teacher's solutions, with 80 nodes, of the first noises of seed 0."""
    teacher, num = load_teacher(name), MEASURED[name][0]
    z = initial_noise(teacher, num, seed=0).split(250)
    label = labels_for(teacher, num)
    labels = [None] * len(z) if label is None else label.split(250)
    parts = [
        solve(teacher, noise, steps=80, label=own) for noise, own in zip(z, labels, strict=True)
    ]
    return torch.cat([part.x for part in parts])


def rounded(loss: Any, dtype: torch.dtype | None) -> Any:
    """A method's loss with its networks evaluated in `dtype`."""

    def in_precision(batch: Any) -> Any:
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            return loss(batch)

    return in_precision


def train(name: str, kind: str, derivative: str, width: float | None, seed: int) -> Any:
    """A student trained in a precision, with its averaged weights."""
    method = {"derivative": derivative} | ({} if width is None else {"step": width})
    layers = [read_preset("fast"), TASKS[name], {"teacher": name, "seed": seed, "method": method}]
    config = parse_config([*layers, {"preview_steps": 0}])
    torch.manual_seed(seed)
    teacher = load_teacher(name)
    with tempfile.TemporaryDirectory() as folder:
        pid = build_method(config, teacher, None)
        pid.loss = rounded(pid.loss, TYPES[kind])  # type: ignore[method-assign]
        trainer = Trainer(config, pid, folder)
        for _ in trainer.run():
            pass
        student = trainer.method.student
        student.load_state_dict(trainer.state.parts["student"].averages.weights(0))
    return student


def measure(name: str, student: Any, solved: Tensor) -> dict[str, float]:
    """Error and Frechet distance of a student."""
    with torch.no_grad():
        x = student.generate(MEASURED[name][1], seed=0).x
    error = (x[: len(solved)] - solved).square().mean().sqrt().item()
    return {"error": error, "fd": evaluate(x, name, metrics=["fid"])["frechet_distance"]}


def cases(name: str) -> list[tuple[str, str, float | None]]:
    """Type, derivative and width of every case."""
    central = [(kind, "central", width) for kind in WIDTHS[name] for width in WIDTHS[name][kind]]
    exact = [("float32", "jvp", None), ("bf16", "jvp", None)]
    return [*central, *exact] if name == "digits" else central


def draw() -> None:
    """The Frechet distance against the width for each type, with the range over seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    axes = figure.subplots(1, 2)
    for ax, name in zip(axes, TASKS, strict=True):
        path = RESULTS / f"precision-{name}.json"
        runs = json.loads(path.read_text())["runs"] if path.is_file() else []
        for kind in WIDTHS[name]:
            points = []
            for width in WIDTHS[name][kind]:
                distances = [
                    run["fd"] for run in runs if (run["type"], run["width"]) == (kind, width)
                ]
                if distances:
                    points.append(
                        (width, statistics.mean(distances), min(distances), max(distances))
                    )
            if points:
                x, mean, low, high = zip(*points, strict=True)
                below = [m - a for m, a in zip(mean, low, strict=True)]
                above = [b - m for m, b in zip(mean, high, strict=True)]
                colour = f"C{list(TYPES).index(kind)}"
                ax.errorbar(
                    x, mean, [below, above], marker="o", capsize=3, label=kind, color=colour
                )
        ax.set(xscale="log", title=name, xlabel="width of the difference in ln(sigma)")
        ax.set_xticks([0.1, 0.25, 0.5, 1], ["0.1", "0.25", "0.5", "1"])
        ax.minorticks_off()
    axes[0].set_ylabel("Frechet distance")
    axes[0].legend()
    figure.savefig(PICTURE, dpi=110)


def main() -> None:
    """Run what is missing, then draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", choices=TASKS, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    path = RESULTS / f"precision-{args.data}.json"
    runs = json.loads(path.read_text())["runs"] if path.is_file() else []
    done = {(run["type"], run["derivative"], run["width"], run["seed"]) for run in runs}
    solved = None
    for seed in range(args.seeds):
        for kind, derivative, width in cases(args.data):
            if (kind, derivative, width, seed) in done:
                continue
            solved = solutions(args.data) if solved is None else solved
            student = train(args.data, kind, derivative, width, seed)
            found = measure(args.data, student, solved)
            case = {"type": kind, "derivative": derivative, "width": width, "seed": seed}
            runs.append({**case, **found})
            print(json.dumps(runs[-1]), flush=True)
            write_json(path, {"machine": machine(), "task": TASKS[args.data], "runs": runs})
    draw()


if __name__ == "__main__":
    main()
