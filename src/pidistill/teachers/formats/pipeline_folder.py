"""Pipeline folders of the diffusers library, on disk or on the Hugging Face hub.

Only the classes in `CLASSES` are ever loaded, and weights are read from safetensors. Pickles are
read, by torch's weights-only reader, only if the environment variable PIDISTILL_ALLOW_PICKLE is 1.
"""

import os
import re
from pathlib import Path
from typing import Any

import torch

from pidistill.errors import PidistillError, one_line
from pidistill.files import read_json
from pidistill.networks.diffusers_unet import require
from pidistill.paths import user_path
from pidistill.teachers.formats import RefusedError
from pidistill.teachers.formats.schedulers import SCHEDULERS

INDEX = "model_index.json"
ALLOW_PICKLE = "PIDISTILL_ALLOW_PICKLE"
CLASSES = {
    "unet": ("UNet2DModel", "UNet2DConditionModel"),
    # Folders of DiT pipelines written before version 0.29 of the library name the second.
    "transformer": ("DiTTransformer2DModel", "Transformer2DModel", "SD3Transformer2DModel"),
    "scheduler": SCHEDULERS,
    "vae": ("AutoencoderKL", "VQModel"),
    "vqvae": ("AutoencoderKL", "VQModel"),
    "text_encoder": ("CLIPTextModel", "CLIPTextModelWithProjection"),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
    "text_encoder_3": ("T5EncoderModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "tokenizer_2": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "tokenizer_3": ("T5Tokenizer", "T5TokenizerFast"),
}
"""The components of a teacher, and the classes supported for each."""
FROM_TRANSFORMERS = tuple(name for name in CLASSES if name.startswith(("text_", "tokenizer")))
FILES = ("*.json", "*.safetensors", "*.txt")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def has_component(folder: Path, name: str) -> bool:
    """Whether the pipeline in `folder` has this component."""
    entry = read_json(folder / INDEX).get(name)
    return isinstance(entry, list) and entry != [None, None]


def load_component(folder: Path, name: str, **options: Any) -> Any:
    """Load a component, one of `CLASSES`; use `load_network` for components with weights."""
    entry = read_json(folder / INDEX).get(name)
    class_name = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
    if class_name not in CLASSES[name]:
        raise RefusedError(
            f"has {f'the {name} {class_name}' if class_name else f'no {name}'}; expected one of "
            f"{', '.join(CLASSES[name])}"
        )
    library = require("transformers" if name in FROM_TRANSFORMERS else "diffusers")
    try:
        return getattr(library, class_name).from_pretrained(
            folder_of(folder, name), local_files_only=True, **options
        )
    except Exception as error:  # a damaged folder can raise anything
        raise RefusedError(
            f"has the {name} {class_name}, which cannot be loaded: {one_line(error)}"
        ) from error


def load_network(folder: Path, name: str) -> Any:
    """Load a component with weights, in float32, and check that the weights are complete."""
    network, report = load_component(
        folder,
        name,
        output_loading_info=True,
        use_safetensors=has_safetensors(folder_of(folder, name), name),
        **{"dtype" if name in FROM_TRANSFORMERS else "torch_dtype": torch.float32},
    )
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        keys = sorted(str(key) for key in report[problem])
        if keys:
            raise RefusedError(
                f"has weights of the {name} that do not fit its config.json: {len(keys)} "
                f"{problem.replace('_', ' ')}, the first being {keys[0]}"
            )
    # The alignment of memory-mapped weights depends on the file's header, and affects the last bits
    # of sums. Copying removes that dependence.
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data = tensor.data.clone()
    return network


def folder_of(folder: Path, name: str) -> Path:
    """The folder of a component: a subfolder, or the root in old repositories."""
    return folder / name if (folder / name).is_dir() else folder


def has_safetensors(folder: Path, name: str) -> bool:
    """Whether the weights in `folder` are safetensors; raises if they are disallowed pickles."""
    if any(folder.glob("*.safetensors")):
        return True
    pickles = sorted(file.name for pattern in PICKLES for file in folder.glob(pattern))
    if not pickles:
        raise RefusedError(f"has no weights of the {name} in {folder}")
    if not pickles_allowed():
        raise RefusedError(
            f"has the weights of the {name} as a pickle, {pickles[0]}; convert it once with "
            f"from_pretrained(DIR, use_safetensors=False).save_pretrained(DIR) of its class, where "
            f"DIR is {str(folder)!r}, or set {ALLOW_PICKLE}=1 to let torch's weights-only reader "
            "read it"
        )
    return False


def pickles_allowed() -> bool:
    """Whether the user allows pickles to be read by torch's weights-only reader."""
    return os.environ.get(ALLOW_PICKLE) == "1"


def is_pipeline_folder(path: Path) -> bool:
    """Whether `path` is a pipeline folder."""
    return (path / INDEX).is_file()


def open_pipeline(name: str, revision: str | None) -> Path:
    """The folder of a pipeline: `name`, or a download of the repository of that name.

    Raises `PidistillError` when it is neither, or the library is missing.
    """
    require("diffusers")
    path = user_path(name)
    if is_pipeline_folder(path):
        return path
    if path.is_dir():
        raise PidistillError(
            f"{name} holds no {INDEX}; expected the folder of a whole diffusers pipeline, as "
            "written by its save_pretrained (a UNet without its scheduler has no noise levels)"
        )
    if path.exists():
        raise PidistillError(
            f"{name} is a single file; expected the folder of a diffusers pipeline: convert it "
            "with from_single_file(FILE).save_pretrained(DIR) of its class"
        )
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise PidistillError(
            f"{name!r} is neither an existing folder nor the OWNER/NAME of a repository on the "
            "Hugging Face hub"
        )
    return _fetch(name, revision)


def _fetch(repository: str, revision: str | None) -> Path:
    """Download the components that a teacher needs, without variants."""
    from huggingface_hub import snapshot_download

    files = FILES + PICKLES if pickles_allowed() else FILES
    in_root = "*" if pickles_allowed() else "safetensors"
    wanted = [INDEX, "config.json", "scheduler_config.json", f"diffusion_pytorch_model.{in_root}"]
    wanted += [f"{component}/{pattern}" for component in CLASSES for pattern in files]
    try:
        path = snapshot_download(
            repository,
            revision=revision,
            allow_patterns=wanted,
            ignore_patterns=["*.fp16.*", "*.non_ema.*"],
        )
    except (OSError, ValueError) as error:
        raise PidistillError(
            f"{repository} is not an existing folder, and cannot be downloaded from the Hugging "
            f"Face hub: {one_line(error)}"
        ) from error
    if not is_pipeline_folder(Path(path)):
        raise PidistillError(f"{repository} on the Hugging Face hub is not a diffusers pipeline")
    return Path(path)
