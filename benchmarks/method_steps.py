"""Times one training step of every distillation method on the bundled digits teacher.

The methods take their steps in turn on one CPU thread, and processor time is taken, so that a busy
machine slows all alike and other work does not count. Beside the times stands what a step evaluates
a sample.

    python benchmarks/method_steps.py --out benchmarks/results/method_steps.json
"""

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from pidistill.data import load_data
from pidistill.machine import machine
from pidistill.methods import NAMES, method_class
from pidistill.teachers import load_teacher
from pidistill.training.config import RunConfig, parse_config
from pidistill.training.trainer import Trainer

SETTINGS: dict[str, dict[str, Any]] = {"knowledge": {"num_pairs": 1024, "steps": 4}}
"""What differs from the defaults: pairs enough for the step's time."""


def config_of(name: str, args: argparse.Namespace) -> RunConfig:
    """The run of a method, with its default settings."""
    return parse_config(
        [
            {
                "teacher": "digits",
                "batch_size": args.batch,
                "seed": args.seed,
                "preview_steps": 0,
                "checkpointing_steps": 10**6,
                "max_train_steps": args.repeats + args.warmup,
                "method": {"name": name, **SETTINGS.get(name, {})},
            }
        ]
    )


def trainer_of(name: str, args: argparse.Namespace, folder: Path) -> Trainer:
    """The trainer of a method in a folder of its own."""
    config = config_of(name, args)
    teacher = load_teacher("digits")
    kind = method_class(name)
    data = load_data("digits") if kind.needs == "images" else None
    method = kind.build(config.method, teacher=teacher, data=data, network=None)
    return Trainer(config, method, folder / name, data=data)


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        trainers = {name: trainer_of(name, args, Path(folder)) for name in NAMES}
        runs = {name: trainer.run() for name, trainer in trainers.items()}
        seconds: dict[str, list[float]] = {name: [] for name in NAMES}
        for repeat in range(args.warmup + args.repeats - 1):  # the last step writes a checkpoint
            for name, run in runs.items():
                began = time.process_time()
                next(run)
                if repeat >= args.warmup:
                    seconds[name].append(time.process_time() - began)
        for run in runs.values():
            run.close()
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    results = {
        name: {
            "ms_per_step": 1000 * statistics.median(values),
            "ms_quartiles": [1000 * q for q in statistics.quantiles(values, n=4)[::2]],
            "teacher_evaluations_a_sample": trainers[name].method.teacher_evaluations,
        }
        for name, values in seconds.items()
    }
    content = {
        "machine": {**machine(), "clock": "process_time"},
        "commit": commit.stdout.strip(),
        "settings": {"batch": args.batch, "repeats": args.repeats, "seed": args.seed},
        "parameters": sum(p.numel() for p in trainers["pid"].method.student.parameters()),
        "results": results,
    }
    args.out.write_text(json.dumps(content, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
