"""What lets PID reach an error in fewer teacher evaluations: variants x learning rates x seeds.

Every variant (`pid_variants.py`) has the same budget of teacher evaluations on a data set and the
same rule. It runs with seed 0 at the best learning rate of `base`. If it is then ahead of `base` in
error or FD by more than the spread of `base` over three seeds, or has an optimizer of its own,
learning rates a factor of 2 apart follow, until the best by error is not at an end. If it is ahead,
it gets two more seeds at its best rate. Only variants that are ahead on digits run on glyphs.
Every finished run is a line of `--log`; the same command continues after an interruption.

    python benchmarks/convergence.py --log runs/convergence.jsonl \
        --out benchmarks/results/convergence.json

The variant `soap` needs the package pytorch_optimizer.
"""

import argparse
import copy
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from pid_variants import TASKS, VARIANTS, make_trainer
from torch import Tensor

from pidistill import evaluate, load_teacher
from pidistill.errors import PidistillError
from pidistill.evaluation.sampling import TEACHER_STEPS, teacher_samples
from pidistill.files import write_json
from pidistill.machine import machine
from pidistill.storage import read_tensors, write_tensors
from pidistill.students import Student
from pidistill.training.averages import Averages
from pidistill.training.trainer import Trainer

SEEDS = (0, 1, 2)
AVERAGES = {
    "wide": ([0.999], True, 0.5),
    "ramp 0.99": ([0.99], True, 1.0),
    "flat": ([0.99, 0.995, 0.999], False, 1.0),
}
"""Averages besides the run's own: rates, warm-up, and a factor that slows the warm-up down."""


class Judge:
    """Measures students on a data set; the teacher is solved once and kept beside the log."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.task = name, TASKS[name]
        file = folder / f"{name}-solved.safetensors"
        if not file.exists():
            x, _ = teacher_samples(
                load_teacher(name), self.task.num_error, seed=0, steps=TEACHER_STEPS, solver="heun"
            )
            write_tensors(file, {"x": x})
        self.solved = read_tensors(file)["x"]

    def __call__(self, student: Student, weights: dict[str, Tensor]) -> dict[str, float]:
        student = copy.deepcopy(student)
        student.load_state_dict(weights)
        x = student.generate(self.task.num_fd, seed=0).x
        error = (x[: self.task.num_error] - self.solved).square().mean().sqrt().item()
        return {"error": error, "fd": evaluate(x, self.name, metrics=["fid"])["frechet_distance"]}


def train(trainer: Trainer, judge: Judge, wanted: bool) -> dict[str, Any]:
    """Train and measure, with all averages if `wanted`; no error if the loss was not finite."""
    student, steps = trainer.method.student, trainer.config.max_train_steps
    kinds = AVERAGES if wanted else {}
    others = {k: (Averages(student, r, warmup=w), f) for k, (r, w, f) in kinds.items()}
    own, cpu_seconds = trainer.state.parts["student"].averages, 0.0
    try:
        while trainer.step < steps:
            trainer.method.progress = trainer.step / steps  # type: ignore[attr-defined]
            began = time.process_time()
            trainer.train_step()
            cpu_seconds += time.process_time() - began
            for averages, factor in others.values():
                averages.update(factor * (trainer.step - 1))  # type: ignore[arg-type]
    except PidistillError as error:
        return {"error": None, "fd": None, "failed": str(error)}
    found: dict[str, Any] = judge(student, own.weights(0))
    found["averages"] = {}
    if wanted:
        found["averages"]["none"] = judge(student, student.state_dict())
    for name, (averages, _) in others.items():
        for index, rate in enumerate(averages.rates):
            key = f"flat {rate}" if name == "flat" else name
            found["averages"][key] = judge(student, averages.weights(index))
    return {
        "teacher_evaluations": trainer.teacher_evaluations,
        "seconds": round(trainer.seconds, 2),
        "cpu_seconds": round(cpu_seconds, 2),
        **found,
    }


Key = tuple[str, str, float, int]


class Log:
    """Finished runs, a JSON line each, by data set, variant, learning rate and seed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text().splitlines() if path.exists() else []
        self.runs: dict[Key, dict[str, Any]] = {}
        for run in map(json.loads, lines):
            self.runs[run["data"], run["variant"], run["rate"], run["seed"]] = run

    def run(self, judge: Judge, variant: str, rate: float, seed: int) -> float:
        """The error of a run, which is done if the log lacks it; infinite if it failed."""
        key = judge.name, variant, rate, seed
        if key not in self.runs:
            trainer = make_trainer(judge.name, VARIANTS[variant], rate, seed)
            found = train(trainer, judge, wanted=(variant, rate) == ("base", judge.task.rate))
            names = ("data", "variant", "rate", "seed")
            self.runs[key] = {**dict(zip(names, key, strict=True)), **found}
            with self.path.open("a") as file:
                file.write(json.dumps(self.runs[key]) + "\n")
            print({k: v for k, v in self.runs[key].items() if k != "averages"}, flush=True)
        error: float | None = self.runs[key]["error"]
        return math.inf if error is None else error

    def of(self, data: str, variant: str) -> list[dict[str, Any]]:
        """The runs of a variant at its best rate, by the error with seed 0."""
        runs = [run for key, run in self.runs.items() if key[:2] == (data, variant)]
        first = [run for run in runs if run["seed"] == 0 and run["error"] is not None]
        best = min(first, key=lambda run: run["error"])["rate"]
        return sorted((run for run in runs if run["rate"] == best), key=lambda run: run["seed"])

    def gain(self, data: str, variant: str) -> float:
        """How far seed 0 is ahead of `base`, in spreads of `base`; the most over FD and error.

        Runs at the same rate are compared, and the best run of each.
        """
        base = self.of(data, "base")
        gains = []
        for key in ("error", "fd"):
            values = [run[key] for run in base]
            spread = max(values) - min(values)
            found, usual = (
                {
                    k[2]: math.inf if run[key] is None else run[key]
                    for k, run in self.runs.items()
                    if k == (data, name, k[2], 0)
                }
                for name in (variant, "base")
            )
            pairs = [(found[rate], usual[rate]) for rate in found if rate in usual]
            pairs.append((min(found.values()), min(usual.values())))
            gains += [(theirs - own) / max(spread, 1e-9) for own, theirs in pairs]
        return max(gains)


def sweep(log: Log, judge: Judge, variant: str) -> None:
    """Find the best rate of a variant with seed 0, then run the other seeds at it."""
    data, middle = judge.name, TASKS[judge.name].rate
    if variant != "base":
        middle = log.of(data, "base")[0]["rate"]
    errors = {middle: log.run(judge, variant, middle, 0)}
    if variant == "base" or VARIANTS[variant].optimizer or log.gain(data, variant) > 1:
        errors[2 * middle] = log.run(judge, variant, 2 * middle, 0)
        while (best := min(errors, key=errors.__getitem__)) in (min(errors), max(errors)):
            following = best / 2 if best == min(errors) else best * 2
            errors[following] = log.run(judge, variant, following, 0)
    if variant == "base" or log.gain(data, variant) > 1:
        for seed in SEEDS[1:]:
            log.run(judge, variant, best, seed)


def main() -> None:
    """Run what the log lacks, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    log = Log(args.log)
    judges = {name: Judge(name, args.log.parent) for name in args.data}
    for variant in args.variants:
        for name, judge in judges.items():
            if name == "glyphs" and variant != "base" and log.gain("digits", variant) <= 1:
                continue
            sweep(log, judge, variant)
            facts = {"machine": machine(), "threads": torch.get_num_threads()}
            write_json(args.out, {**facts, "runs": list(log.runs.values())})


if __name__ == "__main__":
    main()
