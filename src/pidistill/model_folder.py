"""Model folders: `network.json`, which describes how to build a model, and its weights.

Every run folder is one, and so is every native teacher. Nothing in a folder is executed.
"""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pidistill.denoiser import PreconditionedDenoiser
from pidistill.errors import PidistillError, one_line
from pidistill.files import json_text, read_json, write_text
from pidistill.networks import build_described, describe_network, require_shape
from pidistill.paths import user_path
from pidistill.precondition import PRECONDITIONS, build_precondition
from pidistill.storage import load_weights, read_tensors
from pidistill.students.base import Student
from pidistill.students.consistency import ConsistencyStudent
from pidistill.students.edm_trajectory import EDMTrajectoryStudent
from pidistill.students.euler import EulerStudent
from pidistill.students.flow_map import FlowMapStudent
from pidistill.students.soft_boundary import SoftBoundaryStudent
from pidistill.students.trajectory import TrajectoryStudent

MODEL_FILE = "network.json"
FORMAT = 1

Model = Student | PreconditionedDenoiser

KINDS: dict[str, Any] = {
    "denoiser": PreconditionedDenoiser,
    "trajectory": TrajectoryStudent,
    "trajectory-edm": EDMTrajectoryStudent,
    "trajectory-soft": SoftBoundaryStudent,
    "flow-map": FlowMapStudent,
    "consistency": ConsistencyStudent,
    "euler": EulerStudent,
}
"""Classes by their names in `network.json`."""

REMOVED_KINDS = {"trajectory-log-odds": "0.1"}
"""Removed kinds and the last version that reads them."""


def describe(model: Model) -> dict[str, Any]:
    """Everything needed to rebuild `model` except its weights, as JSON values.

    Raises `PidistillError` if its class or preconditioning is not part of this package.
    """
    kind = next((name for name, known in KINDS.items() if type(model) is known), None)
    precondition = model.precondition
    table = next((n for n, known in PRECONDITIONS.items() if type(precondition) is known), None)
    if kind is None or table is None:
        raise PidistillError(
            f"a {type(model).__name__} with {type(precondition).__name__} cannot be saved; "
            f"expected one of the kinds {', '.join(KINDS)} with one of pidistill's preconditionings"
        )
    return {
        "format": FORMAT,
        "kind": kind,
        "options": model.options(),
        "network": describe_network(model.network),
        "precondition": {
            "name": table,
            "config": dataclasses.asdict(precondition),  # type: ignore[call-overload]
        },
        "sample_shape": list(model.sample_shape),
        "num_classes": model.num_classes,
        "source": model.source,
        **({"class_names": list(model.class_names)} if model.class_names else {}),
    }


def build_model(description: dict[str, Any], name: str, network: nn.Module | None = None) -> Model:
    """Build a model with fresh weights from its description, the inverse of `describe`.

    `name` says where the description comes from. `network` replaces the described network and is
    required if the network's class is not registered.

    Raises `PidistillError` if the description is incomplete or names something unknown.
    """
    if network is not None and not isinstance(network, nn.Module):
        raise PidistillError(f"network is {network!r}; expected an instance of nn.Module")
    if description.get("format") != FORMAT:
        raise PidistillError(
            f"{name} has format {description.get('format')!r}; this version of pidistill reads "
            f"format {FORMAT}"
        )
    try:
        kind, precondition = description["kind"], description["precondition"]
        if kind in REMOVED_KINDS:
            raise PidistillError(
                f"{name}: kind {kind!r} was removed; pidistill {REMOVED_KINDS[kind]} reads it"
            )
        if kind not in KINDS:
            raise PidistillError(f"{name}: unknown kind {kind!r}; expected {', '.join(KINDS)}")
        shape, num_classes = _shape(description, name), description["num_classes"]
        if network is None:
            network = build_described(description["network"])
            require_shape(network, shape, name)
        model: Model = KINDS[kind](
            network,
            build_precondition(precondition["name"], precondition["config"]),
            sample_shape=shape,
            num_classes=num_classes,
            source=description["source"],
            **description["options"],
        )
        model.class_names = _class_names(description, name)
    except PidistillError:
        raise
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise PidistillError(f"{name} does not describe a model: {one_line(error)}") from error
    return model


def _shape(description: dict[str, Any], name: str) -> tuple[int, ...]:
    """The shape of a sample, after checking that it is one."""
    shape = description["sample_shape"]
    if not (isinstance(shape, list) and shape and all(type(n) is int and n > 0 for n in shape)):
        raise PidistillError(
            f"{name}: sample_shape is {shape!r}; expected a list of positive integers"
        )
    return tuple(shape)


def _class_names(description: dict[str, Any], name: str) -> tuple[str, ...]:
    """The names of the classes, after checking that there is one for each or none."""
    names = description.get("class_names", [])
    is_list = isinstance(names, list) and all(isinstance(n, str) for n in names)
    if not is_list or len(names) not in (0, description["num_classes"]):
        raise PidistillError(
            f"{name}: class_names is {names!r}; expected {description['num_classes']} names"
        )
    return tuple(names)


def weights_name(ema: float) -> str:
    """File name of the weights averaged at rate `ema`; 0 means the raw weights."""
    return f"ema-{ema:g}.safetensors" if ema else "student.safetensors"


def description_text(model: Model, default_ema: float) -> str:
    """The text of `network.json`; `default_ema` is the averaging rate loaded by default."""
    return json_text({**describe(model), "weights": weights_name(default_ema)})


def write_description(folder: str | Path, model: Model, default_ema: float) -> None:
    """Write `network.json` into `folder`; arguments as in `description_text`."""
    write_text(Path(folder) / MODEL_FILE, description_text(model, default_ema))


def is_model_folder(path: str | Path) -> bool:
    """Whether `path` is a model folder."""
    return (Path(path) / MODEL_FILE).is_file()


def read_description(folder: str | Path) -> dict[str, Any]:
    """Read `network.json`; raises `PidistillError` if `folder` is not a model folder."""
    folder = Path(folder)
    if not folder.is_dir():
        raise PidistillError(
            f"{folder} is not a folder; expected the folder of a run or a native teacher"
        )
    if not is_model_folder(folder):
        raise PidistillError(
            f"{folder} has no {MODEL_FILE}; expected the folder of a run or a native teacher"
        )
    return read_json(folder / MODEL_FILE)


def load_model(
    folder: str | Path, ema: float | None = None, network: nn.Module | None = None
) -> Model:
    """Build the model of a folder and load its weights; arguments as in `load_student`."""
    folder = Path(folder)
    description = read_description(folder)
    model = build_model(description, str(folder / MODEL_FILE), network)
    name = str(description.get("weights", "")) if ema is None else weights_name(ema)
    if not name:
        raise PidistillError(f"{folder / MODEL_FILE} does not name its weights")
    path = folder / Path(name).name
    if not path.is_file():
        there = sorted(file.name for file in folder.glob("*.safetensors"))
        raise PidistillError(
            f"{path} does not exist; the folder has {', '.join(there) or 'no weights yet'}"
        )
    load_weights(model, read_tensors(path), str(path))
    return model


@torch.random.fork_rng(devices=[])  # building a network draws weights that are then replaced
def load_student(
    folder: str | Path,
    ema: float | None = None,
    device: str | torch.device | None = None,
    network: nn.Module | None = None,
) -> Student:
    """Load the student of a run folder, ready to sample; its teacher is not needed.

    Args:
        folder: The run folder.
        ema: Averaging rate of the weights; 0 for the raw weights, None for the run's default rate.
        device: The student's device; None keeps it on the CPU.
        network: A network of the trained class, to receive the weights. Required if that class is
            not part of this package, because nothing in a folder is executed.

    Raises:
        PidistillError: The description or the weights are missing, damaged or do not match.
    """
    model = load_model(user_path(folder), ema, network)
    if not isinstance(model, Student):
        raise PidistillError(
            f"{folder} contains a denoiser, not a student; load it as the teacher 'native:{folder}'"
        )
    return model.to(device).eval().requires_grad_(False)
