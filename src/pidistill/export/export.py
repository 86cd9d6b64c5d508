"""From a run folder to a form for use elsewhere."""

import dataclasses
import shutil
from pathlib import Path

import tomli_w
from torch import nn

from pidistill.errors import PidistillError
from pidistill.export.card import CARD, Provenance, model_card, provenance_of, without_folders
from pidistill.export.diffusers_folder import write_pipeline
from pidistill.export.one_step import scales_of
from pidistill.export.onnx_file import write_onnx
from pidistill.files import replacing, require_no_way_out, write_json, write_text
from pidistill.images import is_image
from pidistill.model_folder import MODEL_FILE, load_student, read_description
from pidistill.students.base import Student
from pidistill.students.consistency import ConsistencyStudent
from pidistill.training.run_folder import decoder_of_run

FORMS = ("diffusers", "onnx", "run")


@dataclasses.dataclass(frozen=True)
class Export:
    """What was written."""

    student: Student
    card: str
    """The text of the model card."""
    not_included: list[str]
    """What an export of this kind leaves out, a sentence each."""
    max_difference: float | None = None
    """ONNX: the largest difference from torch's samples; None if it was not measured."""


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
    """Export the student of a run folder, at once or not at all.

    Args:
        folder: The run folder. Nothing in it is executed.
        path: Where to write: a folder that is absent or empty; for ONNX, a file that is absent.
        to: `diffusers`, `onnx` or `run`.
        ema: Averaging rate of the weights, 0 for the raw ones, None for the run's default rate.
        licence: The licence of the student's teacher, for the model card.
        name: The name that the card gives for loading the export; None: the last part of `path`.
        network: As in `load_student`: needed if the network's class is not registered.

    Raises:
        PidistillError: The student cannot be exported, a library is missing, or `path` is taken.
    """
    folder, path = Path(folder), Path(path)
    if to not in FORMS:
        raise PidistillError(f"to is {to!r}; expected one of {', '.join(FORMS)}")
    require_free(path, is_file=to == "onnx")
    student = load_student(folder, ema, network=network)
    provenance = provenance_of(folder, ema)
    scales = None if to == "run" else scales_of(student)
    notes: list[str] = []
    decoder, difference = None, None
    if to == "diffusers":
        decoder = decoder_of_run(folder, lambda line: notes.append(without_folders(line)))
    if to != "run":
        notes += _left_out(student, decoded=decoder is not None)
    card = model_card(
        student,
        provenance,
        to=to,
        name=name or path.name,
        file=path.name,
        licence=licence,
        notes=notes,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        if scales is None:
            copy_run(temporary, folder, provenance)
        elif to == "onnx":
            difference = write_onnx(temporary, student, scales)
        else:
            write_pipeline(temporary, student, scales, decoder and decoder.autoencoder.float())
        if temporary.is_dir():
            write_text(temporary / CARD, card)
    return Export(student, card, notes, difference)


def require_free(path: Path, *, is_file: bool) -> None:
    """Raise `PidistillError` if something is at `path`, except an empty folder for a folder."""
    if is_file and path.suffix != ".onnx":
        raise PidistillError(f"{path} ends in {path.suffix or 'nothing'!r}; expected .onnx")
    if path.exists() and (is_file or not path.is_dir() or any(path.iterdir())):
        expected = "a new file" if is_file else "a new or an empty folder"
        raise PidistillError(f"{path} exists already; expected {expected}")


def _left_out(student: Student, *, decoded: bool) -> list[str]:
    notes = []
    if isinstance(student, ConsistencyStudent):
        notes.append("More than one evaluation a sample, which this student can take in pidistill.")
    if not decoded and not is_image(student.sample_shape):
        notes.append(
            f"A decoder: samples have the shape {student.sample_shape}. If they are latents, "
            "decode them as the teacher's pipeline does."
        )
    return notes


def copy_run(folder: Path, run: Path, provenance: Provenance) -> None:
    """Write to `folder` what `pidistill sample` needs of the run folder `run`, and its records.

    The state for resuming and the previews stay behind, and local paths are cut from all texts.
    The weights that `provenance` names are the only ones. Raises `PidistillError` when the run has
    links that lead out of it: what they point to might be published.
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
