"""A student as a folder that `DiffusionPipeline.from_pretrained` opens.

The folder brings its code along: the pipeline, and beside the weights the architecture. It needs
torch, numpy and diffusers to be opened, and this package neither there nor ever.

    model_index.json                 names the classes
    pipeline_CHECKSUM.py             the pipeline
    student/config.json              constructor arguments
    student/NETWORK_CHECKSUM.py      the architecture
    student/diffusion_pytorch_model.safetensors
    vae/                             where the samples are latents: their decoder
"""

import dataclasses
import importlib.metadata
from pathlib import Path
from typing import Any

from torch import nn

import pidistill
from pidistill.export.bundle import bundle, with_checksum
from pidistill.export.card import without_folders
from pidistill.export.one_step import scales_of
from pidistill.files import write_json, write_text
from pidistill.networks import class_path, network_name
from pidistill.networks.diffusers_unet import plain_config
from pidistill.storage import write_tensors
from pidistill.students.base import Student

WEIGHTS = "diffusion_pytorch_model.safetensors"

CREDIT = f"Written by pidistill {pidistill.__version__} from its own sources (Apache-2.0)."


def write_pipeline(folder: Path, student: Student, *, decoder: Any = None) -> None:
    """Write the pipeline of a student into `folder`, which is there and empty.

    Args:
        folder: Where to write.
        student: The student.
        decoder: The diffusers autoencoder of its latents, where its samples are latents.

    Raises:
        PidistillError: The student is of a kind that cannot be exported.
    """
    scales = scales_of(student)
    stem, source = student_source(student.network)
    pipeline = bundle(
        "pidistill.export.diffusers_pipeline:OneStepPipeline",
        docstring=f"The pipeline of a student that samples in one evaluation.\n\n{CREDIT}\n",
    )
    pipeline_stem = with_checksum("pipeline", pipeline)
    write_text(folder / f"{pipeline_stem}.py", pipeline)
    index = {
        "_class_name": [pipeline_stem, "OneStepPipeline"],
        **_library_version(),
        "student": [stem, "DistilledStudent"],
        "vae": [None, None] if decoder is None else ["diffusers", type(decoder).__name__],
    }
    config = {
        "_class_name": "DistilledStudent",
        **_library_version(),
        "network_config": student.network.config,
        "scales": dataclasses.asdict(scales),
        "sigma_max": student.sigma_max,
        "sample_shape": list(student.sample_shape),
        "num_classes": student.num_classes,
        "source": without_folders(student.source),
    }
    (folder / "student").mkdir()
    write_text(folder / "student" / f"{stem}.py", source)
    write_json(folder / "student" / "config.json", config)
    weights = {f"network.{name}": value for name, value in student.network.state_dict().items()}
    write_tensors(folder / "student" / WEIGHTS, weights)
    if decoder is not None:
        (folder / "vae").mkdir()
        decoder_config = {"_class_name": type(decoder).__name__, **plain_config(decoder.config)}
        write_json(folder / "vae" / "config.json", decoder_config)
        write_tensors(folder / "vae" / WEIGHTS, decoder.state_dict())
    write_json(folder / "model_index.json", index)


def student_source(network: nn.Module) -> tuple[str, str]:
    """The name and the source of the module with a student's architecture."""
    name = network_name(network)
    architecture = class_path(type(network))
    source = bundle(
        architecture,
        "pidistill.export.diffusers_model:OneStepModel",
        docstring=f"A student that samples in one evaluation.\n\n{CREDIT}\n",
    )
    source += (
        "\n\nclass DistilledStudent(OneStepModel):\n"
        '    """The student with its architecture."""\n\n'
        f"    network_class = {architecture.split(':')[1]}\n"
    )
    return with_checksum(name, source), source


def _library_version() -> dict[str, str]:
    """The version of diffusers, where it is installed: exporting does not need it."""
    try:
        return {"_diffusers_version": importlib.metadata.version("diffusers")}
    except importlib.metadata.PackageNotFoundError:
        return {}
