"""The model card: what a student is, where it comes from, how good it is, how to sample."""

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import tomli_w
from huggingface_hub import ModelCardData

from pidistill.files import read_json
from pidistill.model_folder import read_description, weights_name
from pidistill.report.page import render
from pidistill.settings import read_toml
from pidistill.students.base import Student
from pidistill.training.log import read_log

LICENCES_OF_TEACHERS = {"digits": "apache-2.0", "glyphs": "apache-2.0"}
"""Licences of the teachers that come with this package, by their spec."""

HUB_LICENCES = frozenset(
    """
    afl-3.0 agpl-3.0 apache-2.0 bsd-2-clause bsd-3-clause cc-by-4.0 cc-by-nc-4.0 cc-by-nc-nd-4.0
    cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-4.0 cc0-1.0 creativeml-openrail-m gpl-2.0 gpl-3.0 isc
    lgpl-3.0 mit mpl-2.0 openrail openrail++ unknown unlicense
    """.split()  # noqa: SIM905
)
"""Licences that the hub knows by these names; any other is `other` with a `license_name`."""

LIBRARIES = {"diffusers": "diffusers", "onnx": "onnx", "run": "pidistill"}

_LOCAL_FOLDERS = re.compile(r"(?<![^\s:='\"(])(?:[A-Za-z]:|~)?[\\/](?:[^:?&=\\/\n]+[\\/])*")


@dataclasses.dataclass(frozen=True)
class Provenance:
    """What a run folder says about its student; paths in it are without local folders."""

    weights: str
    """File name of the weights."""
    measured_weights: str
    """File name of those that the metrics belong to."""
    config: dict[str, Any]
    """The run's config; empty if the folder has none."""
    last_step: dict[str, Any]
    """The last line of its log; empty if there is none."""
    metrics: dict[str, Any]
    """Its metrics; empty if it was not evaluated."""

    @property
    def teacher(self) -> str | None:
        """The teacher's spec; None if the config names none."""
        return self.config.get("teacher")

    @property
    def numbers(self) -> dict[str, float]:
        """The metrics that are single numbers."""
        return {k: v for k, v in self.metrics.items() if isinstance(v, int | float)}


def provenance_of(folder: Path, ema: float | None) -> Provenance:
    """Read what a run folder says; what it lacks is left out.

    Raises `PidistillError` when it is not a run folder, or a file in it is damaged.
    """
    default = Path(str(read_description(folder).get("weights", ""))).name
    config = read_toml(folder / "config.toml") if (folder / "config.toml").is_file() else {}
    metrics = read_json(folder / "metrics.json") if (folder / "metrics.json").is_file() else {}
    return Provenance(
        weights=default if ema is None else weights_name(ema),
        measured_weights=str(metrics.get("weights", default)),
        config=without_folders_in(config),
        last_step=(read_log(folder) or [{}])[-1],
        metrics=metrics,
    )


def without_folders(text: str) -> str:
    """`text` with local paths cut to their last part, because an export is for others."""
    return _LOCAL_FOLDERS.sub("", text)


def without_folders_in(value: Any) -> Any:
    """The same for every string in a config."""
    match value:
        case str():
            return without_folders(value)
        case dict():
            return {key: without_folders_in(item) for key, item in value.items()}
        case list():
            return [without_folders_in(item) for item in value]
    return value


def model_card(
    student: Student,
    provenance: Provenance,
    *,
    to: str,
    name: str,
    file: str = "FILE.onnx",
    licence: str | None = None,
    notes: list[str] | None = None,
) -> str:
    """The text of a README.md, with the front matter that the Hugging Face hub reads.

    Args:
        student: The student.
        provenance: Where it comes from.
        to: What it was exported to: `diffusers`, `onnx` or `run`.
        name: Name of the repository, or of the folder or file.
        file: Name of the file, for `onnx`.
        licence: The licence of its teacher; None: that of a bundled teacher, or else unknown.
        notes: What was not exported, a sentence each.
    """
    teacher = provenance.teacher or student.source
    licence = licence or LICENCES_OF_TEACHERS.get(teacher, "unknown")
    metadata = front_matter(student, provenance, to, licence)
    text = render(
        "card.md",
        front_matter=metadata.to_yaml(),
        student=student,
        num_parameters=sum(math.prod(p.shape) for p in student.parameters()),
        run=provenance,
        settings=tomli_w.dumps(provenance.config).strip(),
        teacher=teacher,
        method=provenance.config.get("method", {}).get("name", "distillation"),
        licence=licence,
        to=to,
        name=name,
        file=file,
        notes=notes or [],
    )
    return text + "\n"


def front_matter(student: Student, provenance: Provenance, to: str, licence: str) -> ModelCardData:
    """The metadata at the top of the card."""
    known = licence.lower() in HUB_LICENCES
    licence_name = None if known else re.sub(r"[^a-z0-9._-]+", "-", licence.lower()).strip("-")
    return ModelCardData(
        library_name=LIBRARIES[to],
        license=licence.lower() if known else "other",
        license_name=licence_name,
        pipeline_tag="unconditional-image-generation" if len(student.sample_shape) == 3 else None,
        tags=["diffusion", "distillation", "one-step", "pidistill"],
        base_model=hub_name(provenance.teacher),
    )


def hub_name(teacher: str | None) -> str | None:
    """The repository of a teacher on the Hugging Face hub; None if it is from elsewhere."""
    kind, _, locator = (teacher or "").partition(":")
    name = locator.partition("?")[0]
    is_repository = re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).exists()
    return name if kind == "diffusers" and is_repository else None
