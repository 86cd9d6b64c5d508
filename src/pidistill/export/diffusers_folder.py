"""Exports a student as a folder for `DiffusionPipeline.from_pretrained`.

The folder includes the code of the pipeline and the architecture. Opening it needs torch, numpy and
diffusers, but not this package.

    model_index.json                 names the classes
    pipeline_CHECKSUM.py             the pipeline
    student/config.json              constructor arguments
    student/NETWORK_CHECKSUM.py      the architecture
    student/diffusion_pytorch_model.safetensors
    vae/                             the decoder, if the samples are latents
"""

import dataclasses
from pathlib import Path
from typing import Any

from torch import Tensor, nn

import pidistill
from pidistill.errors import PidistillError
from pidistill.export.bundle import bundle, is_internal, with_checksum
from pidistill.export.card import without_folders
from pidistill.export.flow_map import MOST_STEPS, flow_scales
from pidistill.export.one_step import scales_of
from pidistill.files import write_json, write_text
from pidistill.networks.diffusers_unet import plain_config
from pidistill.storage import write_tensors
from pidistill.students.base import Student
from pidistill.students.flow_map import FlowMapStudent

WEIGHTS = "diffusion_pytorch_model.safetensors"

PIPELINE = "pidistill.export.diffusers_pipeline:OneStepPipeline"
MODELS = "pidistill.export.diffusers_models"

CREDIT = f"Written by pidistill {pidistill.__version__} from its own sources (Apache-2.0)."


def write_pipeline(folder: Path, student: Student, decoder: Any) -> None:
    """Write the pipeline of a student to `folder`, which must not exist.

    `decoder` is the diffusers autoencoder that decodes its samples, or None.

    Raises `PidistillError` if the student cannot be exported.
    """
    base = "FlowMapModel" if isinstance(student, FlowMapStudent) else "OneStepModel"
    stem, source = student_source(student.network, base)
    pipeline = bundle(
        PIPELINE,
        docstring=f"The pipeline of a student of a diffusion model.\n\n{CREDIT}\n",
    )
    pipeline_stem = with_checksum("pipeline", pipeline)
    network_config: Any = student.network.config
    config = {
        "network_config": network_config,
        **_constants(student),
        "sigma_max": student.sigma_max,
        "sample_shape": list(student.sample_shape),
        "num_classes": student.num_classes,
        "class_names": list(student.class_names) or network_config.get("prompts", []),
        "source": without_folders(student.source),
    }
    folder.mkdir()
    _write_model(folder / "student", "DistilledStudent", config, dict(student.state_dict()))
    write_text(folder / "student" / f"{stem}.py", source)
    write_text(folder / f"{pipeline_stem}.py", pipeline)
    index: dict[str, list[str | None]] = {
        "_class_name": [pipeline_stem, "OneStepPipeline"],
        "student": [stem, "DistilledStudent"],
        "vae": [None, None],
    }
    if decoder is not None:
        name = type(decoder).__name__
        _write_model(folder / "vae", name, plain_config(decoder.config), decoder.state_dict())
        index["vae"] = ["diffusers", name]
    write_json(folder / "model_index.json", index)


def _constants(student: Student) -> dict[str, Any]:
    """The constructor arguments of the student's model that say how it samples."""
    if not isinstance(student, FlowMapStudent):
        return {"scales": dataclasses.asdict(scales_of(student))}
    layer, width = student.options()["second_time"]
    steps = range(1, MOST_STEPS + 1)
    scales = [dataclasses.asdict(flow_scales(student, k)) for k in steps]
    return {"layer": layer, "width": width, "scales": scales}


def student_source(network: nn.Module, base: str = "OneStepModel") -> tuple[str, str]:
    """Name and source of a module with a student's network, and its model derived from `base`.

    Raises `PidistillError` if the class is not from this package.
    """
    module, name = type(network).__module__, type(network).__name__
    if not is_internal(module):
        raise PidistillError(
            f"the network is a {name} from {module}, whose source cannot be included in a "
            "diffusers pipeline; expected a network of pidistill, or export to onnx"
        )
    source = bundle(
        f"{module}:{name}",
        f"{MODELS}:{base}",
        docstring=f"A student of a diffusion model.\n\n{CREDIT}\n",
    )
    source += (
        f"\n\nclass DistilledStudent({base}):\n"
        '    """The student with its architecture."""\n\n'
        f"    network_class = {name}\n"
    )
    return with_checksum(module.rpartition(".")[2], source), source


def _write_model(
    folder: Path, class_name: str, config: dict[str, Any], weights: dict[str, Tensor]
) -> None:
    folder.mkdir()
    write_json(folder / "config.json", {"_class_name": class_name, **config})
    write_tensors(folder / WEIGHTS, weights)
