"""Bundle a trained teacher with the package, in half precision, with its scores.

    pidistill train-teacher digits --out runs/digits-teacher
    python benchmarks/bundle_teacher.py digits runs/digits-teacher

    pidistill train-teacher glyphs --mixed-precision bf16 --out runs/glyphs-teacher
    python benchmarks/bundle_teacher.py glyphs runs/glyphs-teacher --num 2000 --seeds 1

Without a run, the bundled teacher is scored again. Training takes about 100 seconds (digits) or 48
minutes (glyphs, on one CPU core), bundling one or five minutes.
"""

import argparse
import shutil
from pathlib import Path

import torch

from pidistill import load_teacher
from pidistill.data import load_data
from pidistill.evaluation import evaluate
from pidistill.evaluation.sampling import TEACHER_STEPS, teacher_samples
from pidistill.files import read_json, write_json
from pidistill.model_folder import MODEL_FILE
from pidistill.storage import read_tensors, write_tensors

ASSETS = Path(__file__).parent.parent / "src" / "pidistill" / "assets"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=["digits", "glyphs"])
    parser.add_argument("run", type=Path, nargs="?", help="run folder of train-teacher")
    parser.add_argument("--num", type=int, default=5000)
    parser.add_argument("--seeds", type=int, default=3, help="number of scores")
    arguments = parser.parse_args()

    asset = ASSETS / f"{arguments.name}-teacher"
    if arguments.run is not None:
        bundle(arguments.run, asset)

    teacher = load_teacher(arguments.name)
    scores = {"num_samples": arguments.num, "solver": "heun", "steps": TEACHER_STEPS}
    for mode, label in (("conditional", None), ("unconditional", torch.tensor(-1))):
        distances = []
        for seed in range(arguments.seeds):
            x = teacher_samples(teacher, arguments.num, seed=seed, label=label).x
            metrics = evaluate(x, load_data(arguments.name), metrics=["fid"])
            distances.append(metrics["frechet_distance"])
        name = "reference_split_frechet_distance"
        scores |= {name: metrics[name], f"{mode}_frechet_distance": distances}
    write_json(asset / "metrics.json", scores)
    print((asset / "metrics.json").read_text())


def bundle(run: Path, asset: Path) -> None:
    """Copy the teacher in `run` to `asset`."""
    asset.mkdir(parents=True, exist_ok=True)
    weights_file = read_json(run / MODEL_FILE)["weights"]
    weights = read_tensors(run / weights_file)
    write_tensors(asset / weights_file, {key: value.half() for key, value in weights.items()})
    for file in (MODEL_FILE, "config.toml"):
        shutil.copyfile(run / file, asset / file)


if __name__ == "__main__":
    main()
