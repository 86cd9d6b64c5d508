"""From what a caller names to what is measured: models, references, labels, feature networks."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pidistill.data import Dataset
from pidistill.denoiser import Denoiser
from pidistill.errors import PidistillError
from pidistill.evaluation.features import FeatureNetwork, features_for, load_features
from pidistill.evaluation.reference import Progress, Reference, read_reference
from pidistill.evaluation.sampling import (
    TEACHER_STEPS,
    GivenSamples,
    ProportionalLabels,
    Sampler,
    Subject,
    open_model,
    teacher_samples,
)
from pidistill.model_folder import is_model_folder
from pidistill.paths import user_path
from pidistill.sample_files import read_pixels
from pidistill.students.base import Student, labels_for
from pidistill.teachers import load_teacher
from pidistill.training.run_folder import teacher_of_run, what_is_measured

ModelOrSamples = str | Path | Student | Denoiser | Tensor
Averages = float | str | Sequence[float | str] | None
Say = Callable[[str], None]
"""Called with one-line notes."""


class Opened(NamedTuple):
    """What a caller named, opened."""

    subjects: dict[str | None, Subject]
    """Averages of the weights, by the names of their files; or one subject, under None."""
    teacher: Denoiser | None
    facts: dict[str, Any]
    """What is measured: `target`, a name, unless it is a student; `weights` and `step` of a run."""

    @property
    def first(self) -> Subject:
        """The first of the averages."""
        return next(iter(self.subjects.values()))


def open_subjects(
    given: ModelOrSamples,
    teacher: str | Denoiser | None,
    ema: Averages,
    steps: int | None,
    solver: str | None,
    batch_size: int,
    device: str | torch.device | None,
    say: Say,
) -> Opened:
    """Open what `evaluate` measures, beside its teacher; arguments and errors are its."""
    if isinstance(given, Tensor) or (not isinstance(given, nn.Module) and _is_npz(given)):
        name = "samples" if isinstance(given, Tensor) else str(given)
        for option, value in (("ema", ema), ("steps", steps), ("solver", solver)):
            if value is not None:
                raise PidistillError(f"{option} is {value}, but {name} holds samples, not a model")
        x = given if isinstance(given, Tensor) else read_pixels(given)
        samples = GivenSamples(x, name, torch.device(device or "cpu"))
        return Opened({None: samples}, None, {"target": name})
    models: dict[str | None, Student | Denoiser]
    facts: dict[str, Any] = {}
    folder = None
    if isinstance(given, nn.Module):
        name, models = given.source, {None: given}
    else:
        name = str(given)
        folder = user_path(name) if is_model_folder(user_path(name)) else None
        rates = _rates(ema, folder, name)
        models = {None: open_model(name)}
        if folder is not None:
            facts = what_is_measured(folder, rates[0])
            models = {what_is_measured(folder, r)["weights"]: open_model(name, r) for r in rates}
    first = next(iter(models.values()))
    if isinstance(first, Student) and solver is not None:
        raise PidistillError(f"solver is {solver!r}, but {name!r} is a student, not a teacher")
    if isinstance(first, Denoiser):
        facts = {"target": name, **facts}
    if isinstance(teacher, str):
        teacher = load_teacher(teacher)
    elif teacher is None and folder is not None and isinstance(first, Student):
        teacher = teacher_of_run(folder, say)
    if device is not None:
        teacher = None if teacher is None else teacher.to(device)
        models = {key: model.to(device) for key, model in models.items()}
    owner = first if isinstance(first, Denoiser) else teacher
    default = first.num_steps if isinstance(first, Student) else TEACHER_STEPS
    subjects: dict[str | None, Subject] = {
        key: Sampler(
            model,
            steps=steps or default,
            solver=solver or "heun",
            batch_size=batch_size,
            decoder=None if owner is None else owner.decoder,
        )
        for key, model in models.items()
    }
    return Opened(subjects, teacher, facts)


def _is_npz(given: str | Path) -> bool:
    return str(given).endswith(".npz")


def _rates(ema: Averages, folder: Path | None, name: str) -> list[float | None]:
    """The averaging rates that `ema` asks for: the default, one, several, or all in the folder."""
    if ema is None:
        return [None]
    if folder is None:
        raise PidistillError(f"ema is {ema!r}, but {name!r} is not a run folder")
    asked = [ema] if isinstance(ema, str | float | int) else list(ema)
    if asked == ["all"]:
        names = (re.fullmatch(r"ema-(.+)\.safetensors", f.name) for f in folder.iterdir())
        return [*sorted(float(match[1]) for match in names if match)]
    try:
        return [float(rate) for rate in asked]
    except ValueError as error:
        raise PidistillError(
            f"ema is {ema!r}; expected averaging rates such as 0.999, 0 for the raw weights, or all"
        ) from error


def open_reference(
    given: str | Path | Dataset | Tensor | None,
    opened: Opened,
    num: int,
    seed: int,
    progress: Progress,
) -> Reference | None:
    """Read the reference, or draw `num` samples of the teacher that `teacher[:SPEC]` names.

    Raises `PidistillError` when it is missing, or of another shape than the samples.
    """
    if given is None:
        return None
    subject = opened.first
    if isinstance(given, str) and given.partition(":")[0] == "teacher":
        locator = given.partition(":")[2]
        teacher = load_teacher(locator).to(subject.device) if locator else opened.teacher
        if teacher is None or subject.decoder is not None:
            raise PidistillError(
                f"the reference is {given!r}, but there is no teacher of images here; name one as "
                "teacher:SPEC, or a file that pidistill sample drew"
            )
        with progress("drawing the reference", num, "samples") as advance:
            x = teacher_samples(teacher, num, seed=seed, on_batch=advance).x
        reference = Reference(given, x.cpu(), labels_for(teacher, num), are_drawn=True)
    else:
        reference = read_reference(given)
    if reference.images is not None and reference.images.shape[1:] != subject.image_shape:
        raise PidistillError(
            f"the reference {reference.name} holds samples of shape "
            f"{tuple(reference.images.shape[1:])}; those measured have {subject.image_shape}"
        )
    return reference


def _labels_of_reference(subject: Subject, reference: Reference | None) -> ProportionalLabels:
    num_classes = subject.num_classes
    if reference is None or reference.labels is None or num_classes == 0:
        raise PidistillError(
            "labels is 'reference'; expected a reference with labels, and a model that is "
            f"class-conditional (got {'no reference' if reference is None else reference.name}, "
            f"and {num_classes} classes)"
        )
    if int(reference.labels.max()) >= num_classes:
        raise PidistillError(
            f"labels is 'reference', but {reference.name} has the label "
            f"{int(reference.labels.max())}; the model knows 0 .. {num_classes - 1}"
        )
    counts = torch.bincount(reference.labels, minlength=num_classes)
    return ProportionalLabels(tuple(counts.tolist()))


LABELS: dict[str, Callable[[Subject, Reference | None], ProportionalLabels | None]] = {
    "even": lambda subject, reference: None,
    "reference": _labels_of_reference,
}
"""How labels are chosen."""


def with_labels(opened: Opened, labels: str, reference: Reference | None) -> Opened:
    """The subjects, drawing labels as the key `labels` of `LABELS` says."""
    if labels not in LABELS:
        raise PidistillError(f"labels is {labels!r}; expected one of {', '.join(LABELS)}")
    rule = LABELS[labels](opened.first, reference)
    subjects = {key: subject.with_labels(rule) for key, subject in opened.subjects.items()}
    return opened._replace(subjects=subjects)


def choose_network(
    features: str | FeatureNetwork,
    weights: str | Path | None,
    allow_download: bool,
    subject: Subject,
    reference: Reference | None,
    say: Say,
) -> FeatureNetwork | None:
    """The feature network, on the subject's device; None, with a note, where no bundled one suits.

    Raises `PidistillError` when the one that was asked for does not take the samples.
    """
    shape = subject.image_shape
    network: FeatureNetwork | None
    if isinstance(features, FeatureNetwork):
        network = features
    elif features == "auto":
        if weights is not None:
            raise PidistillError(f"weights is {weights}; name their features, such as inception")
        network = features_for(shape, None if reference is None else reference.name)
        if network is None and reference is not None:
            say(
                f"no bundled feature network suits samples of shape {shape} compared with "
                f"{reference.name}; for other images there are the features inception and dinov2"
            )
    else:
        network = load_features(features, weights=weights, allow_download=allow_download)
    if network is not None and not network.takes(shape):
        raise PidistillError(
            f"the features {network.name!r} take "
            f"{network.sample_shape or 'images of 1 or 3 channels'}; the samples have shape {shape}"
        )
    return None if network is None else network.to(subject.device)
