"""Short runs of every distillation method: settings and data that make them small.

A new method adds an entry to `METHODS`.
"""

import json

import torch

from pidistill import load_teacher
from pidistill.data import Dataset
from pidistill.methods import method_class
from pidistill.methods.base import Batch
from pidistill.networks import new_network
from pidistill.noise import Draws
from pidistill.students.labels import labels_for
from pidistill.training.assemble import build_trainer
from pidistill.training.config import parse_config

METHODS = {
    "pid": {"name": "pid"},
    "pid-map": {"name": "pid-map"},
    "correction": {"name": "correction", "first_share": 0.4, "auxiliary_warmup": 3},
    "consistency": {"name": "consistency", "mu": 0.7, "num_nodes": 8},
    "progressive": {"name": "progressive", "start_steps": 8},
    "boot": {"name": "boot", "num_nodes": 40},
    "knowledge": {"name": "knowledge", "num_pairs": 40, "pairs_batch_size": 16, "steps": 4},
}
NETWORK = {"name": "mlp", "config": {"width": 16, "num_blocks": 1, "embedding_width": 16}}
SMALL = {
    "max_train_steps": 10,
    "batch_size": 8,
    "learning_rate": 1e-2,
    "lr_warmup_steps": 3,
    "ema_rates": [0.9],
    "logging_steps": 3,
    "checkpointing_steps": 4,
    "preview_steps": 0,
}


def small(name, teacher="mixture:ring", **changes):
    """The config of a short run of the method `name`, from a mixture unless told otherwise."""
    named = {"teacher": teacher} if teacher else {}
    method = METHODS.get(name, {"name": name})
    return parse_config([SMALL, named, {"method": method}, changes])


def images_of(teacher, num=64):
    """Smooth made-up images for any teacher: of its shape, with its labels."""
    draws = Draws(5, 0, num)
    label = labels_for(teacher, num)
    images = 0.4 * draws.normal("image", teacher.sample_shape).float()
    if label is not None:
        images = images + (label.float() / teacher.num_classes).reshape(
            -1, *[1] * len(teacher.sample_shape)
        )
    return Dataset(images.clamp(-1, 1), label, teacher.num_classes, "made up")


def build(name, teacher, *, network=None, data=None, **settings):
    """The method `name` with the settings of `METHODS`, changed by `settings`."""
    kind = method_class(name)
    table = kind.Settings(**{**METHODS[name], **settings})
    return kind.build(table, teacher=teacher, data=data, network=network)


def batch_of(model, num=8, first=0, images=None):
    """Samples `first .. first + num - 1` of seed 0."""
    index = slice(first, first + num)
    label = labels_for(model, num, first=first)
    return Batch(Draws(0, first, num), label, None if images is None else images[index])


def make_trainer(config, folder, network=None, data=None):
    """`build_trainer` with a small network, and made-up images for the methods that need some."""
    teacher = load_teacher(config.teacher) if config.teacher else None
    if teacher and data is None and config.data is None:
        data = images_of(teacher) if method_class(config.method.name).needs == "images" else None
    if teacher and network is None and config.network is None and not teacher.network_to_copy():
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            network = new_network(
                NETWORK["name"], teacher.sample_shape, teacher.num_classes, NETWORK["config"]
            )
    return build_trainer(config, folder, teacher=teacher, network=network, data=data)


def train(config, folder, *, stop_at=None, abandon_at=None, **options):
    """Run a trainer to its end, to an orderly stop, or to where it is left without a word."""
    trainer = make_trainer(config, folder, **options)
    steps = trainer.run(should_stop=lambda: trainer.step == stop_at)
    for report in steps:
        if report.step == abandon_at:
            steps.close()
    return trainer


def log_lines(folder, without=()):
    """The lines of a log as flat dictionaries of numbers."""
    lines = []
    for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()):
        by_sigma = line.pop("loss_by_ln_sigma", {})
        line.update({f"ln_sigma {edge}": loss for edge, loss in by_sigma.items()})
        lines.append({key: value for key, value in line.items() if key not in without})
    return lines


def everything(folder, step=SMALL["max_train_steps"]):
    """All that a run leaves behind after `step` and that a resumed one must reproduce."""
    files = [*folder.glob("*.safetensors"), *folder.glob(f"state/step-{step:09d}/*.safetensors")]
    contents = {str(file.relative_to(folder)): file.read_bytes() for file in files}
    texts = {name: (folder / name).read_text() for name in ("config.toml", "network.json")}
    return {**contents, **texts, "metrics.jsonl": log_lines(folder, without=("seconds",))}
