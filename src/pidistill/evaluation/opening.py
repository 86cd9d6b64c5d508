"""Opens the inputs of `evaluate`: run folders, teacher specs, files and objects."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pidistill.data import Dataset
from pidistill.denoiser import Denoiser
from pidistill.errors import PidistillError
from pidistill.evaluation.features import FeatureNetwork, features_for, load_features
from pidistill.evaluation.reference import Reference, read_reference
from pidistill.evaluation.sampling import (
    TEACHER_STEPS,
    GivenSamples,
    Sampler,
    Subject,
    open_model,
    teacher_samples,
)
from pidistill.model_folder import is_model_folder
from pidistill.paths import user_path
from pidistill.progress import Show
from pidistill.sample_files import read_pixels
from pidistill.students.base import Student, require_refine
from pidistill.teachers import load_teacher
from pidistill.training.run_folder import (
    is_own_teacher,
    teacher_of_run,
    what_is_measured,
)

NUM = 50_000
"""The number of samples of published FIDs."""

ModelOrSamples = str | Path | Student | Denoiser | Tensor
Averages = float | str | Sequence[float | str] | None
Say = Callable[[str], None]
"""Receives one-line notes."""


class Opened(NamedTuple):
    """The opened inputs."""

    subjects: Mapping[str | None, Subject]
    """Weight averages by file name, or a single subject under None."""
    num: int
    """Number of samples to measure."""
    teacher: Denoiser | None
    facts: dict[str, Any]
    """`target`, a name, except for students; `weights` and `step` of a run; `refine`, if any."""

    @property
    def first(self) -> Subject:
        """The first subject."""
        return next(iter(self.subjects.values()))


def open_subjects(
    given: ModelOrSamples,
    *,
    num: int | None,
    teacher: str | Denoiser | None,
    ema: Averages,
    steps: int | None,
    refine: int,
    solver: str | None,
    batch_size: int,
    device: str | torch.device | None,
    store: str | Path | None,
    say: Say,
) -> Opened:
    """Open the subjects and their teacher; arguments and errors as in `evaluate`."""
    if num is not None and num < 1:
        raise PidistillError(f"num is {num}; expected at least 1")
    if isinstance(given, Tensor) or (isinstance(given, str | Path) and str(given).endswith(".npz")):
        options = {"ema": ema, "steps": steps, "refine": refine or None, "solver": solver}
        return _open_samples(given, num, torch.device(device or "cpu"), options)
    models, facts, folder = _open_models(given, ema)
    first = next(iter(models.values()))
    if isinstance(first, Student) and solver is not None:
        raise PidistillError(f"solver is {solver!r}; expected None for a student")
    require_refine(first, refine)
    if refine:
        facts["refine"] = refine
    if isinstance(teacher, str):
        spec, teacher = teacher, load_teacher(teacher)
        if folder is not None and not is_own_teacher(folder, teacher):
            say(f"{spec} is not the teacher that this run was trained with")
    elif teacher is None and folder is not None and isinstance(first, Student):
        teacher = teacher_of_run(folder, say)
    if device is not None:
        teacher = None if teacher is None else teacher.to(device)
        models = {name: model.to(device) for name, model in models.items()}
    owner = first if isinstance(first, Denoiser) else teacher
    sampler = Sampler(
        first,
        steps=steps or (first.num_steps if isinstance(first, Student) else TEACHER_STEPS),
        refine=refine,
        solver=solver or "heun",
        batch_size=batch_size,
        decoder=None if owner is None else owner.decoder,
        store=None if store is None else Path(store),
    )
    samplers = {name: dataclasses.replace(sampler, model=model) for name, model in models.items()}
    return Opened(samplers, num or NUM, teacher, facts)


def _open_samples(
    given: str | Path | Tensor, num: int | None, device: torch.device, options: dict[str, Any]
) -> Opened:
    name = "samples" if isinstance(given, Tensor) else str(given)
    for option, value in options.items():
        if value is not None:
            raise PidistillError(f"{option} is {value}, but {name} holds samples, not a model")
    x = given if isinstance(given, Tensor) else read_pixels(given)
    if num is not None and num > len(x):
        raise PidistillError(f"num is {num}, but {name} holds {len(x)} samples")
    return Opened({None: GivenSamples(x, device)}, num or len(x), None, {"target": name})


def _open_models(
    given: str | Path | Student | Denoiser, ema: Averages
) -> tuple[dict[str | None, Student | Denoiser], dict[str, Any], Path | None]:
    """The models by the name of their weights, facts about them, and their run folder."""
    name = given.source if isinstance(given, nn.Module) else str(given)
    folder = None
    models: dict[str | None, Student | Denoiser] = {}
    facts: dict[str, Any] = {}
    if isinstance(given, str | Path) and is_model_folder(user_path(given)):
        folder = user_path(given)
        for rate in _rates(ema, folder):
            about = what_is_measured(folder, rate)
            models[about["weights"]] = open_model(folder, rate)
            facts = facts or about
    elif ema is not None:
        raise PidistillError(f"ema is {ema!r}, but {name!r} is not a run folder")
    else:
        models[None] = given if isinstance(given, nn.Module) else open_model(name)
    if isinstance(next(iter(models.values())), Denoiser):
        facts["target"] = name
    return models, facts, folder


def _rates(ema: Averages, folder: Path) -> list[float | None]:
    """The requested averaging rates; None is the folder's default."""
    if ema is None:
        return [None]
    asked = [ema] if isinstance(ema, str | float | int) else list(ema)
    if asked == ["all"]:
        names = (re.fullmatch(r"ema-(.+)\.safetensors", file.name) for file in folder.iterdir())
        return [*sorted(float(match[1]) for match in names if match)]
    try:
        return [float(rate) for rate in asked]
    except ValueError as error:
        raise PidistillError(
            f"ema is {ema!r}; expected averaging rates such as 0.999, 0 for the raw weights, or "
            "'all'"
        ) from error


def open_reference(
    given: str | Path | Dataset | Tensor | Reference | None, opened: Opened, say: Say
) -> Reference | None:
    """Read the reference, or open the teacher named by `teacher[:SPEC]`, which `drawn` draws from.

    Raises `PidistillError` if it is missing, or its shape differs from that of the samples.
    """
    if given is None:
        return None
    subject = opened.first
    shape: Sequence[int] | None = None
    if isinstance(given, Reference):
        reference = given
    elif isinstance(given, str) and given.partition(":")[0] == "teacher":
        spec = given.partition(":")[2]
        teacher = load_teacher(spec).to(subject.device) if spec else opened.teacher
        if teacher is None or subject.decoder is not None:
            raise PidistillError(
                f"the reference is {given!r}, but there is no teacher of images; name one as "
                "teacher:SPEC, or a file written by pidistill sample"
            )
        reference, shape = Reference(given, None, teacher=teacher), teacher.sample_shape
    else:
        reference = read_reference(given)
    if reference.images is not None:
        shape = reference.images.shape[1:]
    if shape is None or tuple(shape) == tuple(subject.image_shape):
        return reference
    grey = (1, *subject.image_shape[1:])
    if reference.images is not None and subject.image_shape[0] == 3 and tuple(shape) == grey:
        say(f"the reference {reference.name} is grey; its channel is repeated for RGB samples")
        return reference._replace(images=reference.images.expand(-1, 3, -1, -1))
    hint = "; read a folder as folder:PATH?channels=1" if tuple(shape[1:]) == grey[1:] else ""
    raise PidistillError(
        f"the reference {reference.name} holds samples of shape {tuple(shape)}; those to measure "
        f"have {tuple(subject.image_shape)}{hint}"
    )


def drawn(reference: Reference | None, num: int, seed: int, progress: Show) -> Reference | None:
    """The reference with `num` images of its teacher, if it has one."""
    if reference is None or reference.teacher is None:
        return reference
    with progress("drawing the reference", num, "samples") as advance:
        x = teacher_samples(reference.teacher, num, seed=seed, on_batch=advance).x
    return reference._replace(images=x.cpu())


def choose_network(
    features: str | FeatureNetwork,
    weights: str | Path | None,
    allow_download: bool,
    subject: Subject,
    reference: Reference | None,
    say: Say,
) -> FeatureNetwork | None:
    """The feature network, on the subject's device; None, with a note, if no bundled one fits.

    Raises `PidistillError` if the requested one does not accept the samples.
    """
    shape = subject.image_shape
    network: FeatureNetwork | None
    if isinstance(features, FeatureNetwork):
        network = features
    elif features == "auto":
        if weights is not None:
            raise PidistillError(f"weights is {weights}, but features is 'auto'; name the features")
        network = features_for(shape, None if reference is None else reference.name)
        if network is None and reference is not None:
            say(
                f"no bundled feature network fits samples of shape {shape} with the reference "
                f"{reference.name}; for other images, use the features inception or dinov2"
            )
    else:
        network = load_features(features, weights=weights, allow_download=allow_download)
    if network is not None and not network.takes(shape):
        raise PidistillError(
            f"the features {network.name!r} accept "
            f"{network.sample_shape or 'images of 1 or 3 channels'}; the samples have shape {shape}"
        )
    return None if network is None else network.to(subject.device)
