"""The table of docs/results.md: PID on the bundled digits teacher, several recipes and seeds.

    python benchmarks/digits.py --out runs/benchmark-digits

Every run is a `pidistill distill` with its own folder; what is finished is not run again. Writes
benchmarks/results/digits.json and docs/images/digits.png. About 45 minutes on two CPU cores.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from pidistill import load_student, load_teacher
from pidistill.evaluation.sampling import TEACHER_STEPS, teacher_samples
from pidistill.images import grid, save_png
from pidistill.machine import machine
from pidistill.storage import read_json, write_json
from pidistill.training.run_folder import read_log

ROOT = Path(__file__).parent.parent
NUM = 5000
STEPS = 2500  # of 128 samples: the budget of `pidistill quickstart`

PUBLISHED = ["--preset", "published", "--batch-size", "128", "--max-train-steps", str(STEPS)]
FAST = ["--preset", "fast", "--max-train-steps", str(STEPS)]
RECIPES: dict[str, list[str]] = {
    "fast": FAST,
    "published": PUBLISHED,
    "digits-full": ["--preset", "digits-full"],
    "published, learning rate 1e-3": [*PUBLISHED, "--learning-rate", "1e-3"],
    "fast, one-sided difference (N = 250)": [
        *FAST, "--set", "method.derivative=one-sided", "--set", "method.draw=nodes",
    ],
    "fast, not anchored": [*FAST, "--set", "method.anchored=false"],
    "fast, residual not normalised": [*FAST, "--set", "method.normalise=0"],
    "fast, constant learning rate": [*FAST, "--set", "lr_scheduler=constant"],
    "fast, exact derivative (jvp)": [*FAST, "--set", "method.derivative=jvp"],
    "fast, log-odds difference": [*FAST, "--set", "method.derivative=log-odds"],
    "fast, velocity form": [*FAST, "--set", "method.residual=velocity"],
}  # fmt: skip
FEW_SEEDS = {"digits-full": 1}


def pidistill(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pidistill", *arguments], check=True)


def measure(name: str, arguments: list[str], seed: int, folder: Path) -> dict[str, float]:
    """Train and evaluate one run, or read what an earlier call left."""
    if not (folder / "metrics.json").is_file():
        pidistill(
            "distill", "--teacher", "digits", *arguments, "--seed", str(seed),
            "--out", str(folder), "--resume",
        )  # fmt: skip
        pidistill(
            "evaluate", str(folder), "--reference", "digits", "--num", str(NUM),
            "--metrics", "fid,error,speed",
        )  # fmt: skip
    last = read_log(folder)[-1]
    metrics = read_json(folder / "metrics.json")
    return {
        "seed": seed,
        "steps": last["step"],
        "teacher_evals": last["teacher_evals"],
        "train_seconds": last["seconds"],
        **{key: value for key, value in metrics.items() if key not in ("seed", "num_samples")},
    }


def draw_picture(folder: Path) -> None:
    """Teacher and student from the same noise, side by side."""
    solved = teacher_samples(load_teacher("digits"), 50, seed=3).x
    drawn = load_student(folder).generate(50, seed=3).x
    pictures = [grid(x, columns=10, zoom=4) for x in (solved, drawn)]
    gap = np.full((len(pictures[0]), 24, 3), 255, dtype=np.uint8)
    (ROOT / "docs" / "images").mkdir(exist_ok=True)
    picture = np.concatenate([pictures[0], gap, pictures[1]], axis=1)
    save_png(ROOT / "docs" / "images" / "digits.png", picture)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="names of recipes; all by default")
    arguments = parser.parse_args()
    results = ROOT / "benchmarks" / "results" / "digits.json"
    content = json.loads(results.read_text()) if results.is_file() else {"recipes": {}}
    for name, options in RECIPES.items():
        if arguments.only and name not in arguments.only:
            continue
        folder_name = "".join(c if c.isalnum() else "-" for c in name)
        runs = [
            measure(name, options, seed, arguments.out / f"{folder_name}-seed{seed}")
            for seed in range(FEW_SEEDS.get(name, arguments.seeds))
        ]
        summary = {
            key: {
                "mean": statistics.mean(run[key] for run in runs),
                "min": min(run[key] for run in runs),
                "max": max(run[key] for run in runs),
            }
            for key in ("rms_error", "frechet_distance", "train_seconds")
        }
        content["recipes"][name] = {"options": options, "summary": summary, "runs": runs}
        content.update(
            command="python benchmarks/digits.py --out DIR",
            machine=machine(),
            commit=subprocess.check_output(
                ["git", "describe", "--always", "--dirty"], cwd=ROOT, text=True
            ).strip(),
            num_samples=NUM,
            teacher_steps=TEACHER_STEPS,
        )
        results.parent.mkdir(exist_ok=True)
        write_json(results, content)
    draw_picture(arguments.out / "fast-seed0")
    for name, recipe in content["recipes"].items():
        summary = recipe["summary"]
        error, distance = summary["rms_error"], summary["frechet_distance"]
        print(
            f"| {name} | {error['mean']:.3f} ({error['min']:.3f}-{error['max']:.3f}) "
            f"| {distance['mean']:.2f} ({distance['min']:.2f}-{distance['max']:.2f}) "
            f"| {summary['train_seconds']['mean']:.0f} s |"
        )


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
