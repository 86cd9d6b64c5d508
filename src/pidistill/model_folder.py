"""Model folders: `network.json`, which says how to build a model, beside its weights.

Every run folder is one, and so is a native teacher. Nothing in a folder is executed.
"""

import dataclasses
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pidistill.errors import PidistillError
from pidistill.files import json_text, read_json, write_text
from pidistill.networks import build_network, network_name
from pidistill.paths import user_path
from pidistill.precondition import PRECONDITIONS, build_precondition
from pidistill.storage import load_weights, read_tensors
from pidistill.students.base import Student

if TYPE_CHECKING:
    from pidistill.denoiser import PreconditionedDenoiser

MODEL_FILE = "network.json"
FORMAT = 1

KINDS = {
    "denoiser": "pidistill.denoiser:PreconditionedDenoiser",
    "trajectory": "pidistill.students.trajectory:TrajectoryStudent",
    "trajectory-edm": "pidistill.students.edm_trajectory:EDMTrajectoryStudent",
    "trajectory-soft": "pidistill.students.soft_boundary:SoftBoundaryStudent",
    "consistency": "pidistill.students.consistency:ConsistencyStudent",
    "euler": "pidistill.students.euler:EulerStudent",
}
REMOVED_KINDS = {"trajectory-log-odds": "0.1"}
"""Kinds that went, and the version that reads them."""


def describe(model: "Student | PreconditionedDenoiser") -> dict[str, Any]:
    """All that is needed to build `model` again but its weights, as JSON values.

    Raises `PidistillError` when its class, its network or its preconditioning is not registered.
    """
    precondition = model.precondition
    path = f"{type(model).__module__}:{type(model).__qualname__}"
    kind = next((kind for kind, registered in KINDS.items() if registered == path), None)
    table = next((n for n, c in PRECONDITIONS.items() if type(precondition) is c), None)
    if kind is None or table is None:
        raise PidistillError(
            f"{path} with {type(precondition).__name__} is not registered in pidistill, so it "
            "cannot be saved"
        )
    return {
        "format": FORMAT,
        "kind": kind,
        "options": model.options(),
        "network": {"name": network_name(model.network), "config": model.network.config},
        "precondition": {
            "name": table,
            "config": dataclasses.asdict(precondition),  # type: ignore[call-overload]
        },
        "sample_shape": list(model.sample_shape),
        "num_classes": model.num_classes,
        "source": model.source,
    }


def build_model(description: dict[str, Any], name: str) -> "Student | PreconditionedDenoiser":
    """Build a model with fresh weights from its description, the inverse of `describe`.

    Raises `PidistillError` when the description, which `name` names, is not complete or not known.
    """
    if description.get("format") != FORMAT:
        raise PidistillError(
            f"{name} has format {description.get('format')!r}; this version of pidistill reads "
            f"format {FORMAT}"
        )
    try:
        kind = description["kind"]
        if kind in REMOVED_KINDS:
            raise PidistillError(
                f"{name}: kind {kind!r} was removed; pidistill {REMOVED_KINDS[kind]} reads it"
            )
        if kind not in KINDS:
            raise PidistillError(f"{name}: unknown kind {kind!r}; expected {', '.join(KINDS)}")
        module_name, class_name = KINDS[kind].split(":")
        model_class = getattr(importlib.import_module(module_name), class_name)
        network = description["network"]
        precondition = description["precondition"]
        model: Student | PreconditionedDenoiser = model_class(
            build_network(network["name"], network["config"]),
            build_precondition(precondition["name"], precondition["config"]),
            sample_shape=tuple(description["sample_shape"]),
            num_classes=description["num_classes"],
            source=description["source"],
            **description["options"],
        )
    except PidistillError:
        raise
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        line = str(error).partition("\n")[0]
        raise PidistillError(f"{name} does not describe a model: {line}") from error
    return model


def weights_name(ema: float) -> str:
    """File name of the weights averaged at rate `ema`; 0 means the raw ones."""
    return f"ema-{ema:g}.safetensors" if ema else "student.safetensors"


def write_description(
    folder: Path, model: "Student | PreconditionedDenoiser", default_ema: float
) -> None:
    """Write `network.json`; `default_ema` is the averaging rate to load when none is asked for."""
    write_text(folder / MODEL_FILE, description_text(model, default_ema))


def description_text(model: "Student | PreconditionedDenoiser", default_ema: float) -> str:
    """The text of `network.json`."""
    return json_text({**describe(model), "weights": weights_name(default_ema)})


def is_model_folder(path: Path) -> bool:
    """Whether `path` is a folder with a model in it."""
    return (path / MODEL_FILE).is_file()


def read_description(folder: Path) -> dict[str, Any]:
    """Read `network.json`.

    Raises `PidistillError` when `folder` is not a model folder.
    """
    if not folder.is_dir():
        raise PidistillError(f"{folder} is not a folder; expected a run or a native teacher")
    if not is_model_folder(folder):
        raise PidistillError(
            f"{folder} holds no {MODEL_FILE}; expected the folder of a run or a native teacher"
        )
    return read_json(folder / MODEL_FILE)


def load_model(folder: Path, ema: float | None = None) -> "Student | PreconditionedDenoiser":
    """Build the model of a folder and load its weights.

    Args:
        folder: The model folder.
        ema: Averaging rate of the weights, 0 for the raw ones, None for the folder's default.

    Raises:
        PidistillError: The description or the weights are missing, damaged or do not match.
    """
    description = read_description(folder)
    model = build_model(description, str(folder / MODEL_FILE))
    name = str(description.get("weights", "")) if ema is None else weights_name(ema)
    if not name:
        raise PidistillError(f"{folder / MODEL_FILE} does not name its weights")
    path = folder / Path(name).name
    if not path.is_file():
        there = sorted(file.name for file in folder.glob("*.safetensors"))
        raise PidistillError(
            f"{path} does not exist; the folder holds {', '.join(there) or 'no weights yet'}"
        )
    load_weights(model, read_tensors(path), str(path))
    return model


def load_student(
    folder: str | Path, ema: float | None = None, device: str | torch.device | None = None
) -> Student:
    """Load the student of a run folder, ready to sample; its teacher is not needed.

    Args:
        folder: The run folder.
        ema: Averaging rate of the weights, 0 for the raw ones, None for the run's default rate.
        device: Where to put it; None keeps it on the CPU.

    Raises:
        PidistillError: The folder, its description or its weights are not what they should be.
    """
    model = load_model(user_path(folder), ema)
    if not isinstance(model, Student):
        raise PidistillError(
            f"{folder} holds a denoiser, not a student; load it as the teacher 'native:{folder}'"
        )
    return model.to(device).eval().requires_grad_(False)
