"""The model card of a student: origin, metrics, and how to sample."""

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import tomli_w
from huggingface_hub import ModelCardData

from pidistill.export.flow_map import MOST_STEPS
from pidistill.files import read_json
from pidistill.model_folder import read_description, weights_name
from pidistill.report.page import render
from pidistill.settings import read_toml
from pidistill.students.base import Student
from pidistill.students.flow_map import FlowMapStudent
from pidistill.training.log import read_log

CARD = "README.md"

LICENCES_OF_TEACHERS = {"digits": "apache-2.0", "glyphs": "apache-2.0"}
"""Licences of the bundled teachers, by spec."""

HUB_LICENCES = frozenset(
    """
    afl-3.0 agpl-3.0 apache-2.0 bsd-2-clause bsd-3-clause cc-by-4.0 cc-by-nc-4.0 cc-by-nc-nd-4.0
    cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-4.0 cc0-1.0 creativeml-openrail-m gpl-2.0 gpl-3.0 isc
    lgpl-3.0 mit mpl-2.0 openrail openrail++ unknown unlicense
    """.split()  # noqa: SIM905
)
"""Licence identifiers of the hub; any other licence becomes `other` with a `license_name`."""

_LOCAL_FOLDERS = re.compile(r"(?<![^\s:='\"(])(?:[A-Za-z]:|~)?[\\/](?:[^:?&=\\/\n]+[\\/])*")


@dataclasses.dataclass(frozen=True)
class Provenance:
    """The origin of a student according to its run folder, without local paths; may be empty."""

    weights: str
    """File name of the weights."""
    measured_weights: str
    """File name of the weights that `metrics` belongs to."""
    config: dict[str, Any]
    last_step: dict[str, Any]
    """The last line of the log."""
    metrics: dict[str, Any]


def provenance_of(folder: Path, ema: float | None) -> Provenance:
    """Read the provenance of a run's weights, averaged at rate `ema`.

    Raises `PidistillError` if `folder` is not a run folder, or a file in it is damaged.
    """
    default = Path(str(read_description(folder).get("weights", ""))).name
    config = read_toml(folder / "config.toml") if (folder / "config.toml").is_file() else {}
    metrics = read_json(folder / "metrics.json") if (folder / "metrics.json").is_file() else {}
    return Provenance(
        weights=default if ema is None else weights_name(ema),
        measured_weights=str(metrics.get("weights", default)),
        config=without_folders(config),
        last_step=(read_log(folder) or [{}])[-1],
        metrics=metrics,
    )


def without_folders(value: Any) -> Any:
    """Text or JSON values with local paths cut to their last part, for publication."""
    match value:
        case str():
            return _LOCAL_FOLDERS.sub("", value)
        case dict():
            return {key: without_folders(item) for key, item in value.items()}
        case list():
            return [without_folders(item) for item in value]
    return value


def model_card(
    student: Student,
    run: Provenance,
    *,
    to: str,
    name: str,
    file: str,
    licence: str | None,
    notes: list[str],
) -> str:
    """The text of a README.md, with front matter for the Hugging Face hub.

    Args:
        student: The student.
        run: Its provenance.
        to: The form of the export: `diffusers`, `onnx` or `run`.
        name: Name of the repository, folder or file.
        file: Name of the file, for `onnx`.
        licence: Licence of its teacher; None: that of a bundled teacher, else unknown.
        notes: Sentences on what was not exported.
    """
    teacher = run.config.get("teacher")
    licence = licence or LICENCES_OF_TEACHERS.get(teacher or student.source, "unknown")
    identifier = licence.lower()
    is_known = identifier in HUB_LICENCES
    metadata = ModelCardData(
        library_name="pidistill" if to == "run" else to,
        license=identifier if is_known else "other",
        license_name=None if is_known else re.sub(r"[^a-z0-9._-]+", "-", identifier).strip("-"),
        pipeline_tag="unconditional-image-generation" if len(student.sample_shape) == 3 else None,
        tags=["diffusion", "distillation", "one-step", "pidistill"],
        base_model=hub_name(teacher or ""),
    )
    most = {"diffusers": MOST_STEPS if isinstance(student, FlowMapStudent) else 1, "onnx": 1}
    text = render(
        "card.md",
        front_matter=metadata.to_yaml(),
        student=student,
        several=student.any_steps and most.get(to, math.inf) > 1,
        most_steps=MOST_STEPS,
        num_parameters=sum(math.prod(p.shape) for p in student.parameters()),
        run=run,
        settings=tomli_w.dumps(run.config).strip(),
        teacher=teacher or student.source,
        method=run.config.get("method", {}).get("name", "distillation"),
        licence=licence,
        to=to,
        name=name,
        file=file,
        notes=notes,
    )
    return text + "\n"


def hub_name(teacher: str) -> str | None:
    """The teacher's repository on the Hugging Face hub, or None."""
    kind, _, locator = teacher.partition(":")
    name = locator.partition("?")[0]
    is_repository = re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).exists()
    return name if kind == "diffusers" and is_repository else None
