"""Exports the student of a run folder."""

import dataclasses
import shutil
from pathlib import Path

import tomli_w
from torch import nn

from pidistill.errors import PidistillError
from pidistill.export.card import CARD, Provenance, model_card, provenance_of, without_folders
from pidistill.export.diffusers_folder import write_pipeline
from pidistill.export.flow_map import MOST_STEPS
from pidistill.export.one_step import scales_of
from pidistill.export.onnx_file import write_onnx
from pidistill.files import (
    replacing,
    require_no_way_out,
    require_writable_folder,
    write_json,
    write_text,
)
from pidistill.images import is_image
from pidistill.model_folder import MODEL_FILE, load_student, read_description
from pidistill.students.base import Student
from pidistill.students.flow_map import FlowMapStudent
from pidistill.training.run_folder import decoder_of_run

FORMS = ("diffusers", "onnx", "run")


@dataclasses.dataclass(frozen=True)
class Export:
    """A finished export."""

    student: Student
    card: str
    """The text of the model card."""
    not_included: list[str]
    """Sentences on what this form of export omits."""
    max_difference: float | None = None
    """ONNX: largest difference from torch's samples; None if not measured."""


def export_student(
    folder: str | Path,
    path: str | Path,
    *,
    to: str,
    ema: float | None = None,
    licence: str | None = None,
    name: str | None = None,
    network: nn.Module | None = None,
) -> Export:
    """Export the student of a run folder atomically.

    Args:
        folder: The run folder. No code in it is executed.
        path: Output path: a new or empty folder, or for ONNX a new file.
        to: `diffusers`, `onnx` or `run`.
        ema: Averaging rate of the weights; 0 for the raw weights, None for the run's default.
        licence: Licence of the student's teacher, for the model card.
        name: Name under which the card loads the export; None: the last part of `path`.
        network: As in `load_student`: required if the network's class is not registered.

    Raises:
        PidistillError: The student cannot be exported, a library is missing, or `path` exists.
    """
    folder, path = Path(folder), Path(path)
    if to not in FORMS:
        raise PidistillError(f"to is {to!r}; expected one of {', '.join(FORMS)}")
    require_free(path, is_file=to == "onnx")
    require_writable_folder(path.parent)
    student = load_student(folder, ema, network=network)
    provenance = provenance_of(folder, ema)
    if to != "run" and not isinstance(student, FlowMapStudent):
        scales_of(student)  # refuses what cannot be exported, before anything is opened
    notes: list[str] = []
    decoder, difference = None, None
    if to == "diffusers":
        decoder = decoder_of_run(folder, None, lambda line: notes.append(without_folders(line)))
    if to != "run":
        notes += _left_out(student, to, decoded=decoder is not None)
    card = model_card(
        student,
        provenance,
        to=to,
        name=name or path.name,
        file=path.name,
        licence=licence,
        notes=notes,
    )
    with replacing(path) as temporary:
        if to == "run":
            copy_run(temporary, folder, provenance)
        elif to == "onnx":
            difference = write_onnx(temporary, student)
        else:
            write_pipeline(temporary, student, decoder and decoder.autoencoder.float())
        if temporary.is_dir():
            write_text(temporary / CARD, card)
    return Export(student, card, notes, difference)


def require_free(path: Path, *, is_file: bool) -> None:
    """Raise `PidistillError` if `path` exists, unless it is an empty folder for a folder."""
    if is_file and path.suffix != ".onnx":
        raise PidistillError(f"{path} ends in {path.suffix or 'nothing'!r}; expected .onnx")
    if path.exists() and (is_file or not path.is_dir() or any(path.iterdir())):
        expected = "a new file" if is_file else "a new or empty folder"
        raise PidistillError(f"{path} already exists; expected {expected}")


def _left_out(student: Student, to: str, *, decoded: bool) -> list[str]:
    notes = []
    if isinstance(student, FlowMapStudent) and to == "diffusers":
        notes.append(f"Sampling in more than {MOST_STEPS} evaluations, and refinement of samples.")
    elif student.any_steps:
        notes.append("Sampling in several evaluations, which this student supports in pidistill.")
    if not decoded and not is_image(student.sample_shape):
        notes.append(
            f"A decoder: samples have shape {student.sample_shape}. If they are latents, "
            "decode them as the teacher's pipeline does."
        )
    return notes


def copy_run(folder: Path, run: Path, provenance: Provenance) -> None:
    """Copy what `pidistill sample` needs, and the records, from the run folder `run` to `folder`.

    Only the weights named by `provenance` are copied, without training state or previews, and local
    paths are removed. Raises `PidistillError` if the run has links that lead out of it, since their
    targets might be published by accident.
    """
    require_no_way_out(run)
    folder.mkdir()
    description = without_folders(read_description(run))
    write_json(folder / MODEL_FILE, {**description, "weights": provenance.weights})
    shutil.copyfile(run / provenance.weights, folder / provenance.weights)
    if provenance.config:
        write_text(folder / "config.toml", tomli_w.dumps(provenance.config))
    if (run / "metrics.jsonl").is_file():
        shutil.copyfile(run / "metrics.jsonl", folder / "metrics.jsonl")
    if provenance.metrics and provenance.weights == provenance.measured_weights:
        write_json(folder / "metrics.json", provenance.metrics)
