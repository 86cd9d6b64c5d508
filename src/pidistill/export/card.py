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
from pidistill.settings import read_toml
from pidistill.students.base import Student
from pidistill.training.log import read_log

LICENCES_OF_TEACHERS = {"digits": "apache-2.0", "glyphs": "apache-2.0"}
"""Licences of the teachers that come with this package, by their spec."""

HUB_LICENCES = frozenset(
    {
        "afl-3.0",
        "agpl-3.0",
        "apache-2.0",
        "bsd-2-clause",
        "bsd-3-clause",
        "cc-by-4.0",
        "cc-by-nc-4.0",
        "cc-by-nc-nd-4.0",
        "cc-by-nc-sa-4.0",
        "cc-by-nd-4.0",
        "cc-by-sa-4.0",
        "cc0-1.0",
        "creativeml-openrail-m",
        "gpl-2.0",
        "gpl-3.0",
        "isc",
        "lgpl-3.0",
        "mit",
        "mpl-2.0",
        "openrail",
        "openrail++",
        "unknown",
        "unlicense",
    }
)
"""Licences that the hub knows by these names; any other is `other` with a name of its own."""

LIBRARIES = {"diffusers": "diffusers", "onnx": "onnx", "run": "pidistill"}

CITATION = """\
@article{tee2024physics,
  title   = {Physics Informed Distillation for Diffusion Models},
  author  = {Tee, Joshua Tian Jin and Zhang, Kang and Yoon, Hee Suk and
             Gowda, Dhananjaya Nagaraja and Kim, Chanwoo and Yoo, Chang D.},
  journal = {Transactions on Machine Learning Research},
  year    = {2024},
  url     = {https://arxiv.org/abs/2411.08378}
}"""

_LOCAL_FOLDERS = re.compile(r"(?<![^\s:='\"(])(?:[A-Za-z]:|~)?[\\/](?:[^:?&=\\/\n]+[\\/])*")


@dataclasses.dataclass(frozen=True)
class Provenance:
    """What a run folder says of its student."""

    weights: str
    """File name of the weights."""
    measured_weights: str
    """File name of those that the metrics are of."""
    config: dict[str, Any]
    """The run's config; empty where the folder has none."""
    last_step: dict[str, Any]
    """The last line of its log; empty where there is none."""
    metrics: dict[str, Any]
    """Its metrics; empty where it was not evaluated."""

    @property
    def teacher(self) -> str | None:
        """The teacher's spec, without local folders; None where the config names none."""
        return self.config.get("teacher")


def provenance_of(folder: Path, ema: float | None) -> Provenance:
    """Read what a run folder says; what it lacks is left out.

    Raises `PidistillError` when it is no run folder, or a file in it is damaged.
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
    """`text` with local paths cut to their last part: where they lay is nobody's business."""
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
    method = str(provenance.config.get("method", {}).get("name", "distillation"))
    num = student.num_steps
    evaluations = "one network evaluation" if num == 1 else f"{num} network evaluations"
    sections = [
        f"---\n{front_matter(student, provenance, to, licence).to_yaml()}\n---",
        f"# {name.rpartition('/')[2]}",
        f"A diffusion model that samples in **{evaluations}**: distilled from `{teacher}` by "
        f"pidistill, method `{method}`.",
        _table(["", ""], _facts(student, provenance, teacher, method)),
        "## How to sample",
        _how_to_sample(student, to, name, file),
        *([f"## Not included\n\n{_list(notes)}"] if notes else []),
        "## Metrics",
        _metrics(provenance),
        *(
            [f"## Settings\n\n```toml\n{tomli_w.dumps(provenance.config).strip()}\n```"]
            if provenance.config
            else []
        ),
        "## Licence",
        "The licence of the teacher is unknown: check the teacher's licence before you use or pass "
        "on this student. A student is derived from its teacher."
        if licence == "unknown"
        else f"That of the teacher, from which the student is derived: {licence}.",
        "## Citation",
        f"```bibtex\n{CITATION}\n```",
    ]
    return "\n\n".join(sections) + "\n"


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
    """The repository of a teacher on the Hugging Face hub, or None where it is from elsewhere."""
    kind, _, locator = (teacher or "").partition(":")
    name = locator.partition("?")[0]
    is_repository = re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).exists()
    return name if kind == "diffusers" and is_repository else None


def _facts(student: Student, provenance: Provenance, teacher: str, method: str) -> list[list[str]]:
    parameters = sum(math.prod(p.shape) for p in student.parameters())
    labels = f"{student.num_classes} classes" if student.num_classes else "unconditional"
    facts = [
        ["Teacher", f"`{teacher}`"],
        ["Method", f"`{method}`"],
        ["Network evaluations a sample (NFE)", str(student.num_steps)],
        ["Samples", f"{' x '.join(map(str, student.sample_shape))}, {labels}"],
        ["Network", f"{type(student.network).__name__}, {parameters:,} parameters"],
        ["Weights", f"`{provenance.weights}`"],
        ["Noise levels", f"{student.sigma_min:g} to {student.sigma_max:g} (EDM coordinates)"],
    ]
    logged = [
        f"{provenance.last_step[key]:,} {title}"
        for key, title in (
            ("step", "steps"),
            ("images", "samples"),
            ("teacher_evals", "teacher evaluations"),
        )
        if key in provenance.last_step
    ]
    if logged:
        facts.append(["Training, as last logged", ", ".join(logged)])
    return facts


def _how_to_sample(student: Student, to: str, name: str, file: str) -> str:
    labelled = student.num_classes > 0
    if to == "diffusers":
        image = len(student.sample_shape) == 3
        label = ", class_labels=0" if labelled else ""
        output = "" if image else ', output_type="raw"'
        return f"""\
```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("{name}", trust_remote_code=True)
sample = pipeline(seed=0{label}{output}).images[0]
```

The folder brings its own code, `pipeline_*.py` and `student/*.py`, and needs nothing beyond
diffusers, torch and numpy; `trust_remote_code=True` says that you have read it. The noise comes
from `seed` (the same samples as `pidistill sample --seed`), from a `generator`, from standard
normal `latents` or from `z`, which is {student.sigma_max:.9g} times that."""
    if to == "onnx":
        label = ', "label": np.arange(16) % ' + str(student.num_classes) if labelled else ""
        shape = ", ".join(map(str, student.sample_shape))
        return f"""\
```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("{file}")
noise = np.random.default_rng(0).standard_normal((16, {shape}), dtype=np.float32)
samples = session.run(["samples"], {{"z": {student.sigma_max:.9g} * noise{label}}})[0]
```

Samples are float32, images in about [-1, 1]{"; label -1 is no label" if labelled else ""}."""
    download = f"hf download {name} --local-dir student\n" if "/" in name else ""
    folder = "student" if download else name
    steps = f" --steps {student.num_steps}" if student.num_steps > 1 else ""
    return f"""\
```bash
pip install pidistill
{download}pidistill sample {folder} -n 64{steps} --out samples.png
```"""


def _metrics(provenance: Provenance) -> str:
    rows = [
        [f"`{name}`", f"{value:.4g}" if isinstance(value, float) else str(value)]
        for name, value in provenance.metrics.items()
        if isinstance(value, int | float)
    ]
    if not rows:
        return "Not evaluated; `pidistill evaluate` does."
    table = _table(["metric", "value"], rows)
    if provenance.weights != provenance.measured_weights:
        return f"{table}\n\nOf `{provenance.measured_weights}`, not of the weights here."
    measured, last = provenance.metrics.get("step"), provenance.last_step.get("step")
    if measured is not None and measured != last:
        return f"{table}\n\nOf step {measured}, not of step {last}, which the weights here are of."
    return table


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _list(sentences: list[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)
