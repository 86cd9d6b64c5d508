"""What `evaluate` measures: a run folder, a teacher by its spec, or a file of samples."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pidistill.cli.models import open_model
from pidistill.denoiser import Denoiser
from pidistill.errors import PidistillError
from pidistill.evaluation.labels import Labels, even_labels, labels_like
from pidistill.evaluation.reference import ReferenceData
from pidistill.evaluation.sampling import TEACHER_STEPS, teacher_samples
from pidistill.evaluation.subject import Subject, samples_subject, student_subject, teacher_subject
from pidistill.model_folder import is_model_folder, read_description, weights_name
from pidistill.paths import user_path
from pidistill.sample_files import read_pixels
from pidistill.students.base import Student, labels_for
from pidistill.teachers import load_teacher
from pidistill.training.run_folder import decoder_of_run, teacher_of_run


class Target(NamedTuple):
    """What a user named, opened as far as it is the same for all averages of the weights."""

    name: str
    folder: Path | None
    """The run folder; None where it is none."""
    samples: Tensor | None
    """Given samples; None where there is a model."""
    teacher: Denoiser | None
    """The teacher of a student; None where it is not at hand."""
    decoder: nn.Module | None
    """What turns samples that are latents into images."""
    place: str
    """The device."""


def open_target(name: str, place: str, say: Callable[[str], None]) -> Target:
    """Open what `name` names; `say` is told what is missing of a run.

    Raises `PidistillError` when it is neither a run folder nor a teacher nor a file of samples.
    """
    if name.endswith(".npz"):
        return Target(name, None, read_pixels(Path(name)), None, None, place)
    path = user_path(name)
    folder = path if is_model_folder(path) else None
    teacher, decoder = None, None
    if folder is not None and read_description(folder).get("kind") != "denoiser":
        teacher = teacher_of_run(folder, say)
        decoder = decoder_of_run(folder, say)
    return Target(
        name,
        folder,
        None,
        None if teacher is None else teacher.to(place),
        None if decoder is None else decoder.to(place),
        place,
    )


def draw_reference(
    spec: str, target: Target, num: int, seed: int, on_batch: Callable[[int], None]
) -> ReferenceData:
    """Samples of a teacher, to compare others with.

    Args:
        spec: `teacher` for the run's own, `teacher:SPEC` for any.
        target: What is measured.
        num: How many samples are drawn.
        seed: Their seed, another than that of what is measured.
        on_batch: Called with the size of every batch.

    Raises:
        PidistillError: The teacher is not there, or draws latents.
    """
    if target.decoder is not None:
        raise PidistillError(
            f"--reference {spec} would be latents; draw images with pidistill sample, and name them"
        )
    locator = spec.partition(":")[2]
    teacher = load_teacher(locator).to(target.place) if locator else target.teacher
    if teacher is None:
        raise PidistillError(
            f"--reference {spec}: the teacher of {target.name} is not there; name one as "
            "teacher:SPEC"
        )
    x = teacher_samples(teacher, num, seed=seed, on_batch=on_batch).x
    return ReferenceData(spec, x.cpu(), labels_for(teacher, num), None, are_drawn=True)


def averages(target: Target, asked: tuple[str, ...]) -> Sequence[float | None]:
    """The averaging rates of the weights to measure; None is the folder's default.

    Args:
        target: What is measured.
        asked: Rates, or `all` for every average in the folder.

    Raises:
        PidistillError: One is no number, or there is no folder with averages.
    """
    if not asked:
        return [None]
    if target.folder is None:
        raise PidistillError(f"--ema {asked[0]} is for run folders; {target.name!r} is none")
    if asked == ("all",):
        names = (re.fullmatch(r"ema-(.+)\.safetensors", f.name) for f in target.folder.iterdir())
        return sorted(float(name[1]) for name in names if name)
    try:
        return [float(rate) for rate in asked]
    except ValueError:
        raise PidistillError(
            f"--ema {' '.join(asked)}: expected averaging rates such as 0.999, 0 for the raw "
            "weights, or all"
        ) from None


def weights_file(target: Target, ema: float | None) -> str | None:
    """The name of the file of weights that is measured; None where there is no run folder."""
    if target.folder is None:
        return None
    if ema is not None:
        return weights_name(ema)
    return str(read_description(target.folder).get("weights"))


def open_subject(
    target: Target,
    ema: float | None,
    *,
    steps: int | None,
    solver: str | None,
    labels: str,
    reference: ReferenceData | None,
    batch_size: int,
) -> Subject:
    """What is measured, with the weights averaged at rate `ema`.

    Args:
        target: What the user named.
        ema: The rate; None is the folder's default.
        steps: Evaluations of a student, or a teacher's nodes; None is its default.
        solver: A teacher's solver; None is Heun's.
        labels: A key of `LABELS`.
        reference: The reference, where it gives the labels.
        batch_size: Samples evaluated at once.

    Raises:
        PidistillError: The options do not suit what is measured.
    """
    if target.samples is not None:
        for option, value in (("--steps", steps), ("--solver", solver)):
            if value is not None:
                raise PidistillError(f"{option} {value} is for models; {target.name} holds samples")
        return samples_subject(target.samples, target.name)
    model = open_model(target.name, ema).to(target.place)
    of_samples = LABELS[labels](model, reference)
    if isinstance(model, Student):
        if solver is not None:
            raise PidistillError(f"--solver {solver} is for teachers; {target.name} is a student")
        return student_subject(
            model,
            target.teacher,
            steps=steps or model.num_steps,
            labels=of_samples,
            decoder=target.decoder,
            image_shape=_image_shape(target.decoder, model, target.place),
            batch_size=batch_size,
        )
    return teacher_subject(
        model,
        steps=TEACHER_STEPS if steps is None else steps,
        solver=solver or "heun",
        labels=of_samples,
        image_shape=_image_shape(model.decoder, model, target.place),
        batch_size=batch_size,
    )


def _even(model: Student | Denoiser, reference: ReferenceData | None) -> Labels:
    return even_labels


def _as_in_reference(model: Student | Denoiser, reference: ReferenceData | None) -> Labels:
    if reference is None:
        raise PidistillError("--labels reference needs a --reference with labels")
    return labels_like(reference.labels, model.num_classes, reference.name)


LABELS: dict[str, Callable[[Student | Denoiser, ReferenceData | None], Labels]] = {
    "even": _even,
    "reference": _as_in_reference,
}
"""How the labels of samples are chosen."""


@torch.no_grad()
def _image_shape(
    decoder: nn.Module | None, model: Student | Denoiser, place: str
) -> tuple[int, ...]:
    """The shape of one image that `model` makes, after its decoder where there is one."""
    if decoder is None:
        return model.sample_shape
    return tuple(decoder(torch.zeros(1, *model.sample_shape, device=place)).shape[1:])
