"""From a run folder to a form for use elsewhere."""

import dataclasses
from pathlib import Path

from pidistill.errors import PidistillError
from pidistill.export.card import model_card, provenance_of, without_folders
from pidistill.export.diffusers_folder import write_pipeline
from pidistill.export.folders import building, require_free
from pidistill.export.one_step import scales_of
from pidistill.export.onnx_file import write_onnx
from pidistill.export.run_copy import write_run
from pidistill.files import write_text
from pidistill.images import is_image
from pidistill.model_folder import load_student
from pidistill.students.base import Student
from pidistill.students.consistency import ConsistencyStudent
from pidistill.training.run_folder import decoder_of_run

FORMS = ("diffusers", "onnx", "run")

CARD = "README.md"


@dataclasses.dataclass(frozen=True)
class Export:
    """What was written."""

    student: Student
    card: str
    """The text of the model card."""
    not_included: list[str]
    """What an export of this kind leaves out, a sentence each."""
    max_difference: float | None = None
    """ONNX: the largest difference from torch's samples; None where it was not measured."""


def export_student(
    folder: Path,
    path: Path,
    *,
    to: str,
    ema: float | None = None,
    licence: str | None = None,
    name: str | None = None,
) -> Export:
    """Export the student of a run folder, at once or not at all.

    Args:
        folder: The run folder. Nothing in it is executed.
        path: Where to write: a folder that is absent or empty; for ONNX, a file that is absent.
        to: `diffusers`, `onnx` or `run`.
        ema: Averaging rate of the weights, 0 for the raw ones, None for the run's default rate.
        licence: The licence of the student's teacher, for the model card.
        name: Where the card says that the export is to be found; None: at `path`'s last part.

    Raises:
        PidistillError: The student cannot be exported, a library is missing, or `path` is taken.
    """
    if to not in FORMS:
        raise PidistillError(f"unknown export {to!r}; expected one of {', '.join(FORMS)}")
    require_free(path, suffix=".onnx" if to == "onnx" else None)
    student = load_student(folder, ema)
    provenance = provenance_of(folder, ema)
    notes: list[str] = []
    decoder = None
    if to == "diffusers":
        scales_of(student)  # says what cannot be exported, before a decoder is looked for
        latent_decoder = decoder_of_run(folder, lambda line: notes.append(without_folders(line)))
        decoder = None if latent_decoder is None else latent_decoder.autoencoder.float()
    if to != "run" and isinstance(student, ConsistencyStudent):
        notes.append(
            "More evaluations a sample than one, which this student can take in `pidistill`."
        )
    if to != "run" and decoder is None and not is_image(student.sample_shape):
        notes.append(
            f"A decoder: samples have the shape {student.sample_shape}. If they are latents, "
            "decode them as the teacher's pipeline does."
        )
    card = model_card(
        student,
        provenance,
        to=to,
        name=name or path.name,
        file=path.name,
        licence=licence,
        notes=notes,
    )
    if to == "onnx":
        path.parent.mkdir(parents=True, exist_ok=True)
        metadata = {"source": without_folders(student.source), "sigma_min": student.sigma_min}
        difference = write_onnx(path, student, metadata)
        return Export(student, card, notes, difference)
    with building(path) as temporary:
        if to == "diffusers":
            write_pipeline(temporary, student, decoder=decoder)
        else:
            write_run(temporary, folder, provenance)
        write_text(temporary / CARD, card)
    return Export(student, card, notes)
