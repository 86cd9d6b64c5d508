"""Puts a trained digits teacher into the package, in half precision, with its scores.

    pidistill train-teacher digits --out runs/digits-teacher --seed 0
    python benchmarks/bundle_digits_teacher.py runs/digits-teacher

The training takes about 100 seconds on two CPU cores, the bundling about one minute.
"""

import argparse
import shutil
from pathlib import Path

import torch

from pidistill import load_teacher
from pidistill.data import load_data
from pidistill.evaluation.evaluate import reference_statistics
from pidistill.evaluation.sampling import TEACHER_STEPS, teacher_samples
from pidistill.model_folder import MODEL_FILE
from pidistill.storage import read_json, read_tensors, write_json, write_tensors

ASSET = Path(__file__).parent.parent / "src" / "pidistill" / "assets" / "digits-teacher"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder that train-teacher wrote")
    parser.add_argument("--num", type=int, default=5000)
    arguments = parser.parse_args()

    ASSET.mkdir(parents=True, exist_ok=True)
    name = read_json(arguments.run / MODEL_FILE)["weights"]
    weights = read_tensors(arguments.run / name)
    write_tensors(ASSET / name, {key: value.half() for key, value in weights.items()})
    for file in (MODEL_FILE, "config.toml"):
        shutil.copyfile(arguments.run / file, ASSET / file)

    teacher = load_teacher("digits")
    reference = reference_statistics(load_data("digits").images)
    scores = {
        "num_samples": arguments.num,
        "solver": "heun",
        "steps": TEACHER_STEPS,
        "reference_split_frechet_distance": reference.split_half,
    }
    for mode, label in (("conditional", None), ("unconditional", torch.tensor(-1))):
        scores[f"{mode}_frechet_distance"] = [
            reference.distance(teacher_samples(teacher, arguments.num, seed=seed, label=label).x)
            for seed in range(3)
        ]
    write_json(ASSET / "metrics.json", scores)
    print((ASSET / "metrics.json").read_text())


if __name__ == "__main__":
    main()
