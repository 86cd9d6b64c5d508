"""A third data set, on which no default is tuned, with a teacher and a judge of students.

Eight classes of 16x16 colour pictures: five shapes and three patterns, of random place, size,
angle, colours, softness and ripples. The judge is a small classifier of these pictures.

    python benchmarks/third_set.py make --out DIR
    python benchmarks/third_set.py judge --data DIR RUN [RUN ...] [--steps K] [--json]

`make` writes the pictures, the judge and the teacher, and scores the held-out pictures and the
teacher's samples. Afterwards, `native:DIR/teacher` is the teacher, and `folder:DIR/images/train` is
the data for methods that need images. `judge` adds a row for each run folder. The columns:

- fd: Frechet distance of 2,000 samples to all 8,000 pictures (of held-out pictures: to the others)
- agreement: share of samples that the judge puts into the class asked for
- precision, recall: with respect to the same pictures
- diversity: mean distance of the features of two samples of one class
- nearest_sample, nearest_train: median RMS distance to the nearest sample, or training picture
- error, median_error: RMS distance of 500 samples to the teacher's solution from the same noise
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from pidistill import load_student, load_teacher
from pidistill.data import load_data
from pidistill.evaluation.features.base import FeatureBatch, FeatureNetwork, features_of
from pidistill.evaluation.frechet import frechet_distance, statistics
from pidistill.evaluation.neighbours import nearest_among, precision_recall
from pidistill.evaluation.sampling import teacher_samples
from pidistill.evaluation.trajectory import per_sample_rms, rms
from pidistill.files import read_json, write_json
from pidistill.images import from_uint8, grid, save_png, to_uint8
from pidistill.machine import machine
from pidistill.storage import load_weights, read_tensors, write_tensors

SIZE = 16
NUM_TRAIN, NUM_HELD_OUT = 6000, 2000
NUM_SAMPLES, NUM_ERROR = 2000, 500
ASKED = torch.arange(NUM_SAMPLES) % 8  # the classes asked of a model, in turn
TEACHER = """
base = "glyphs-teacher"
max_train_steps = 8000
mixed_precision = "bf16"
preview_steps = 0

[network.config]
channel_mult = [1, 2, 2]
patch_size = 1
"""

Array = NDArray[np.float64]


class Place(NamedTuple):
    """Coordinates of pixels about a centre, and a size, both in pixels."""

    u: Array
    v: Array
    size: float


def cross(at: Place) -> Array:
    u, v = np.abs(at.u), np.abs(at.v)
    bars = np.minimum(np.maximum(u, 3.2 * v), np.maximum(v, 3.2 * u))
    return (bars - at.size) / 1.6


def triangle(at: Place) -> Array:
    sides = [np.sin(turn) * at.u - np.cos(turn) * at.v for turn in np.pi * np.array([1, 5, 9]) / 3]
    return np.max(sides, axis=0) - 0.6 * at.size


def wave(along: Array, size: float) -> Array:
    """A triangle wave of period `size`, in pixels: negative for half of each period."""
    return np.abs(along % size - size / 2) - size / 4


def checkers(at: Place) -> Array:
    a, b = wave(at.u, 1.5 * at.size), wave(at.v, 1.5 * at.size)
    return np.sign(a * b) * np.minimum(np.abs(a), np.abs(b))


CLASSES: dict[str, Callable[[Place], Array]] = {
    "checkers": checkers,
    "cross": cross,
    "disc": lambda at: np.hypot(at.u, at.v) - 0.85 * at.size,
    "gradient": lambda at: 0.5 * at.u / at.size,
    "ring": lambda at: np.abs(np.hypot(at.u, at.v) - 0.8 * at.size) - 0.28 * at.size,
    "square": lambda at: np.maximum(np.abs(at.u), np.abs(at.v)) - 0.8 * at.size,
    "stripes": lambda at: wave(at.u, at.size),
    "triangle": triangle,
}
"""Distance from the edge in pixels, roughly, and negative inside; sorted, as labels are."""


def draw(name: str, rng: np.random.Generator) -> NDArray[np.uint8]:
    """One picture (16, 16, 3) of a class."""
    down, across = np.mgrid[:SIZE, :SIZE] + 0.5 - SIZE / 2
    x, y = rng.uniform(-2.5, 2.5, 2)
    turn = rng.uniform(0, 2 * np.pi) if name in ("stripes", "gradient") else rng.uniform(-0.5, 0.5)
    u = np.cos(turn) * (across - x) + np.sin(turn) * (down - y)
    v = np.cos(turn) * (down - y) - np.sin(turn) * (across - x)
    edge = CLASSES[name](Place(u, v, rng.uniform(4.5, 6.5)))
    cover = 1 / (1 + np.exp(np.clip(edge / rng.uniform(0.15, 0.4), -50, 50)))
    inside, ground = rng.uniform(0, 1, (2, 3))
    while np.abs(inside - ground).sum() < 0.8:  # too alike to see the shape
        inside, ground = rng.uniform(0, 1, (2, 3))
    heading, pitch, phase = rng.uniform(0, [2 * np.pi, 1, 2 * np.pi])
    along = np.cos(heading) * across + np.sin(heading) * down
    ripples = rng.uniform(0, 0.08) * np.sin((0.5 + pitch) * along + phase)
    picture = ground + cover[..., None] * (inside - ground) + ripples[..., None]
    return np.round(255 * picture.clip(0, 1)).astype(np.uint8)


def write_pictures(folder: Path, seed: int) -> None:
    """Write the pictures as PNG files: folder/train/CLASS/*.png and folder/held-out/CLASS/*.png."""
    rng = np.random.default_rng(seed)
    for i in range(NUM_TRAIN + NUM_HELD_OUT):
        name = list(CLASSES)[i % len(CLASSES)]
        part = folder / ("train" if i < NUM_TRAIN else "held-out") / name
        part.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw(name, rng)).save(part / f"{i:04d}.png")


class Judge(FeatureNetwork):
    """A classifier of the pictures, whose last hidden layer is the features."""

    name = "third-set"
    num_features = 64
    sample_shape = (3, SIZE, SIZE)

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1) for a, b in ((3, 32), (32, 32), (32, 64))
        )
        self.hidden = nn.Linear(64 * 4 * 4, self.num_features)
        self.output = nn.Linear(self.num_features, len(CLASSES))

    def extract(self, x: Tensor) -> FeatureBatch:
        for convolution, pool in zip(self.convolutions, (1, 2, 2), strict=True):
            x = functional.max_pool2d(functional.relu(convolution(x)), pool)
        hidden = functional.relu(self.hidden(x.flatten(1)))
        return FeatureBatch(hidden, self.output(hidden))


def shifted(x: Tensor) -> Tensor:
    """Images, each shifted by up to one pixel either way."""
    windows = (
        functional.pad(x, (1, 1, 1, 1), mode="replicate").unfold(2, SIZE, 1).unfold(3, SIZE, 1)
    )
    rows = torch.arange(len(x))
    return windows[rows, :, torch.randint(3, rows.shape), torch.randint(3, rows.shape)]


def train_judge(seed: int, images: Tensor, labels: Tensor, epochs: int = 15) -> Judge:
    """Train the judge; a thumbnail that it also predicts keeps colours in its features."""
    torch.manual_seed(seed)
    judge, thumbnail = Judge(), nn.Linear(Judge.num_features, 3 * 4 * 4)
    parameters = [*judge.parameters(), *thumbnail.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=1e-2)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.02, epochs)
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(64):
            x = shifted(images[rows])
            features, logits = judge.extract(x)
            errors = thumbnail(features) - functional.avg_pool2d(x, 4).flatten(1)
            loss = functional.cross_entropy(logits, labels[rows]) + errors.square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        decay.step()
    return judge.eval().requires_grad_(False)


class Court:
    """The judge, all pictures, and their features."""

    def __init__(self, folder: Path) -> None:
        self.train = load_data(f"folder:{folder / 'images/train'}")
        self.held_out = load_data(f"folder:{folder / 'images/held-out'}")
        self.judge = Judge().eval().requires_grad_(False)
        file = folder / "judge.safetensors"
        load_weights(self.judge, read_tensors(file), str(file))
        images = torch.cat([self.train.images, self.held_out.images])
        self.features = features_of(images, self.judge).features

    def scores(self, x: Tensor, labels: Tensor, num_pictures: int | None = None) -> dict[str, Any]:
        """Score images (n, 3, 16, 16) in [-1, 1] that were asked to be of the classes `labels`.

        They are compared with the first `num_pictures` pictures, or all.
        """
        features, logits = features_of(x, self.judge)
        assert logits is not None
        pixels, known = from_uint8(to_uint8(x)), self.features[:num_pictures]
        spread = [torch.pdist(features[labels == label]).mean() for label in range(len(CLASSES))]
        return {
            "fd": frechet_distance(statistics(features), statistics(known)),
            "agreement": (logits.argmax(1) == labels).double().mean().item(),
            **precision_recall(features, known)._asdict(),
            "diversity": torch.stack(spread).mean().item(),
            "nearest_sample": nearest_among(pixels, pixels).distance.median().item(),
            "nearest_train": nearest_among(pixels, self.train.images).distance.median().item(),
        }


def make(arguments: argparse.Namespace) -> None:
    """Write images/, judge.safetensors, teacher/, teacher-samples.safetensors and known.json."""
    out: Path = arguments.out
    images, judge, teacher = out / "images", out / "judge.safetensors", out / "teacher"
    if not (images / "held-out" / max(CLASSES)).is_dir():
        write_pictures(images, arguments.seed)
    if not judge.is_file():
        data = load_data(f"folder:{images / 'train'}")
        assert data.labels is not None
        write_tensors(judge, train_judge(arguments.seed + 1, data.images, data.labels).state_dict())
    court = Court(out)
    save_png(out / "data.png", grid(court.train.images[:: NUM_TRAIN // 96][:96], columns=16))
    assert court.held_out.labels is not None
    of_data = court.scores(court.held_out.images, court.held_out.labels, NUM_TRAIN)
    if not (teacher / "student.safetensors").is_file():
        settings = out / "teacher.toml"
        settings.write_text(TEACHER, encoding="utf-8")
        command = [sys.executable, "-m", "pidistill", "train-teacher", f"folder:{images / 'train'}"]
        subprocess.run([*command, "--config", settings, "--out", teacher], check=True)
    model = load_teacher(f"native:{teacher}")
    drawn = {seed: teacher_samples(model, NUM_SAMPLES, seed=seed) for seed in (0, 1)}
    write_tensors(out / "teacher-samples.safetensors", {"x": drawn[0].x})
    save_png(out / "teacher.png", grid(drawn[0].x[:96], columns=16))
    rows = {"held-out pictures": of_data}
    for seed, (x, nfe) in drawn.items():
        rows[f"teacher, seed {seed}"] = {"nfe": nfe, **court.scores(x, ASKED)}
    write_json(out / "known.json", {"rows": rows, "machine": machine()})
    print(table(rows))


def judge_runs(arguments: argparse.Namespace) -> None:
    """Print a row for each run, below those of the data and the teacher."""
    court = Court(arguments.data)
    rows = read_json(arguments.data / "known.json")["rows"]
    solution = read_tensors(arguments.data / "teacher-samples.safetensors")["x"]
    for run in arguments.runs:
        x, nfe = load_student(run).generate(NUM_SAMPLES, seed=0, steps=arguments.steps)
        errors = per_sample_rms(x[:NUM_ERROR], solution[:NUM_ERROR])
        of_error = {"error": rms(errors), "median_error": errors.median().item()}
        rows[str(run)] = {"nfe": nfe, **court.scores(x, ASKED), **of_error}
        if arguments.pictures:
            arguments.pictures.mkdir(parents=True, exist_ok=True)
            save_png(arguments.pictures / f"{run.name}.png", grid(x[:96], columns=16))
    result = {"rows": rows, "machine": machine()}
    print(json.dumps(result, indent=2) if arguments.json else table(rows))


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The scores as columns of text."""
    columns = list(next(reversed(rows.values())))
    width = max(map(len, rows))
    lines = [" ".join([" " * width, *(f"{column:>14}" for column in columns)])]
    for name, row in rows.items():
        cells = (f"{row[key]:>14.4g}" if key in row else f"{'-':>14}" for key in columns)
        lines.append(" ".join([f"{name:<{width}}", *cells]))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(required=True)
    verb = verbs.add_parser("make", help="make the data, the judge and the teacher")
    verb.add_argument("--out", type=Path, required=True)
    verb.add_argument("--seed", type=int, default=0)
    verb.set_defaults(run=make)
    verb = verbs.add_parser("judge", help="judge run folders")
    verb.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    verb.add_argument("--data", type=Path, required=True, help="the folder that make wrote")
    verb.add_argument("--steps", type=int, default=1, help="evaluations per sample")
    verb.add_argument("--pictures", type=Path, help="folder for grids of samples")
    verb.add_argument("--json", action="store_true")
    verb.set_defaults(run=judge_runs)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    options.run(options)


if __name__ == "__main__":
    main()
