"""Pipeline folders of the diffusers library, on disk or on the Hugging Face hub.

Only the classes in `CLASSES` are ever loaded, and weights are read from safetensors. Pickles are
read, by torch's weights-only reader, only if the environment variable PIDISTILL_ALLOW_PICKLE is 1.
"""

import inspect
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pidistill.errors import PidistillError, one_line
from pidistill.files import read_json
from pidistill.networks.diffusers_unet import require
from pidistill.paths import user_path
from pidistill.teachers.formats import RefusedError, kinds
from pidistill.teachers.formats.component_weights import (
    PICKLES,
    has_safetensors,
    pickles_allowed,
    variant_in,
)
from pidistill.teachers.formats.schedulers import SCHEDULERS

INDEX = "model_index.json"
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
BY_HAND = "distil it as a denoiser of your own, by pidistill.as_denoiser (docs/adding-a-teacher.md)"
FROM_TRANSFORMERS = tuple(name for name in CLASSES if name.startswith(("text_", "tokenizer")))
MAX_TIMESTEPS = 1_000_000
FILES = ("*.json", "*.safetensors", "*.txt")
NETWORKS = ("unet", "transformer", "prior", "decoder")
"""The components that can be a pipeline's diffusion model."""


class Pipeline(NamedTuple):
    """A pipeline's folder, and the variant of its weights that the user names."""

    folder: Path
    variant: str | None = None


def index_of(folder: Path) -> dict[str, Any]:
    """The content of a pipeline's model_index.json, or what its components' configs say.

    It is empty if `folder` holds neither that file nor a network with a scheduler.
    """
    if (folder / INDEX).is_file():
        return read_json(folder / INDEX)
    index: dict[str, Any] = {}
    network = "transformer" if (folder / "transformer").is_dir() else "unet"
    for name, file in ((network, "config.json"), ("scheduler", "scheduler_config.json")):
        path = folder_of(folder, name) / file
        index[name] = ["diffusers", read_json(path).get("_class_name") if path.is_file() else None]
    if (folder / "vae").is_dir():
        index["vae"] = ["diffusers", read_json(folder / "vae" / "config.json").get("_class_name")]
    whole = class_of(index, network) in CLASSES[network] and class_of(index, "scheduler")
    return index if whole else {}


def class_of(index: dict[str, Any], name: str) -> str | None:
    """The class of a component by a pipeline's index; None without that component."""
    entry = index.get(name)
    if not isinstance(entry, list) or len(entry) != 2 or entry[1] is None:
        return None
    return str(entry[1])


def refuse_other_kinds(pipeline: Pipeline) -> None:
    """Raise `RefusedError` if a pipeline is of a kind that cannot be a teacher."""
    index = index_of(pipeline.folder)
    networks = {name: class_of(index, name) for name in NETWORKS if class_of(index, name)}
    known = " or ".join(known for name in NETWORKS for known in CLASSES.get(name, ()))
    if not networks:
        raise RefusedError(
            f"is {kinds.pipeline_kind(index)} that has no unet or transformer; expected a {known}"
        )
    for name, class_name in networks.items():
        if class_name not in CLASSES.get(name, ()):
            raise RefusedError(
                f"is {kinds.pipeline_kind(index)} of {kinds.network_kind(str(class_name))}; "
                f"expected a {known}; {BY_HAND}"
            )
    for name in kinds.CONDITIONS if class_of(index, "unet") else ():
        # Stable Diffusion has an unused image encoder, unless its UNet says otherwise.
        unused = name == "image_encoder" and class_of(index, "text_encoder")
        if class_of(index, name) and not unused:
            raise RefusedError(
                f"is {kinds.pipeline_kind(index)}: by its {name}, its UNet sees "
                f"{kinds.CONDITIONS[name]}, but a teacher sees noise and a label or one text; "
                f"{BY_HAND}"
            )
    for folder in (pipeline.folder, *(folder_of(pipeline.folder, name) for name in NETWORKS)):
        if adapter := kinds.adapter_in(folder):
            raise RefusedError(
                f"holds the adapter {adapter}, which would be left out; {kinds.HOW_TO_FUSE}"
            )


def config_of(pipeline: Pipeline, name: str) -> dict[str, Any]:
    """The config of a network of the diffusers library, with the defaults of its class."""
    network = getattr(require("diffusers"), str(class_of(index_of(pipeline.folder), name)))
    parameters = inspect.signature(network.__init__).parameters
    defaults = {key: parameter.default for key, parameter in parameters.items()}
    return defaults | read_json(folder_of(pipeline.folder, name) / "config.json")


def has_component(pipeline: Pipeline, name: str) -> bool:
    """Whether the pipeline has this component."""
    return class_of(index_of(pipeline.folder), name) is not None


def load_component(pipeline: Pipeline, name: str, **options: Any) -> Any:
    """Load a component, one of `CLASSES`; use `load_network` for components with weights."""
    class_name = class_of(index_of(pipeline.folder), name)
    if class_name not in CLASSES[name]:
        found = f"the {name} {class_name}" if class_name else f"no {name}"
        why = kinds.first_match(kinds.SCHEDULERS, str(class_name), "")
        raise RefusedError(
            f"has {found}{f' ({why})' if why else ''}; expected one of {', '.join(CLASSES[name])}"
        )
    library = require("transformers" if name in FROM_TRANSFORMERS else "diffusers")
    component, folder = getattr(library, class_name), folder_of(pipeline.folder, name)
    if name == "scheduler":
        check_timesteps(folder)
    try:
        return component.from_pretrained(folder, local_files_only=True, **options)
    except Exception as error:  # a damaged folder can raise anything
        raise RefusedError(
            f"has the {name} {class_name}, which cannot be loaded: "
            f"{odd_setting(folder, component)}{one_line(error)}"
        ) from error


def check_timesteps(folder: Path) -> None:
    """Raise `RefusedError` if a scheduler's config has no plausible number of timesteps."""
    file = folder / "scheduler_config.json"
    config = read_json(file) if file.is_file() else {}
    number = config.get("num_train_timesteps", 1000)
    if number is None or (isinstance(number, int | float) and number > MAX_TIMESTEPS):
        raise RefusedError(
            f"has a scheduler whose num_train_timesteps is {json.dumps(number)}; expected at most "
            f"{MAX_TIMESTEPS:,}"
        )
    betas = config.get("trained_betas")
    if not (betas is None or isinstance(betas, list)):
        raise RefusedError(
            f"has a scheduler whose trained_betas is {json.dumps(betas)}; expected numbers"
        )


def odd_setting(folder: Path, component: Any) -> str:
    """The first setting in a component's config of another type than its default, as a remark."""
    for file in ("config.json", "scheduler_config.json"):
        config = read_json(folder / file) if (folder / file).is_file() else {}
        for key, parameter in inspect.signature(component.__init__).parameters.items():
            usual, value = parameter.default, config.get(key)
            types = (int, float) if type(usual) is float else (type(usual),)
            if isinstance(usual, int | float | str) and not (value is None or type(value) in types):
                return f"its {key} is {json.dumps(value)}, by default {json.dumps(usual)}; "
    return ""


def load_network(pipeline: Pipeline, name: str, **config: Any) -> Any:
    """Load a component with weights, in float32, and check that the weights are complete.

    The values `config` replace those of its config.json.
    """
    folder = folder_of(pipeline.folder, name)
    safe = has_safetensors(folder, name)
    network, report = load_component(
        pipeline,
        name,
        output_loading_info=True,
        use_safetensors=safe,
        variant=variant_in(
            folder,
            "safetensors" if safe else "bin",
            pipeline.variant,
            name=name,
            required=name in NETWORKS,
        ),
        **{"dtype" if name in FROM_TRANSFORMERS else "torch_dtype": torch.float32},
        **config,
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
    for key, tensor in (*network.named_parameters(), *network.named_buffers()):
        if not tensor.isfinite().all():
            raise RefusedError(f"has the weight {key!r} of the {name} that is not finite")
        tensor.data = tensor.data.clone()
    return network


def folder_of(folder: Path, name: str) -> Path:
    """The folder of a component: a subfolder, or the root in old repositories."""
    return folder / name if (folder / name).is_dir() else folder


def is_pipeline_folder(path: Path) -> bool:
    """Whether `path` is a pipeline folder, or one of a network and its scheduler."""
    return (path / INDEX).is_file() or bool(index_of(path))


def open_pipeline(name: str, revision: str | None, variant: str | None = None) -> Pipeline:
    """The pipeline in the folder `name`, or in a download of the repository of that name.

    Raises `PidistillError` when it is neither, or the library is missing.
    """
    require("diffusers")
    path = user_path(name)
    if is_pipeline_folder(path):
        return Pipeline(path, variant)
    if path.is_dir():
        kind = kinds.folder_kind(path)
        above = path.resolve().parent
        raise PidistillError(
            f"{name} holds no {INDEX}{f': it is {kind}' if kind else ''}; expected the folder of a "
            "whole diffusers pipeline, as written by its save_pretrained"
            f"{f', perhaps {above}' if is_pipeline_folder(above) else ''}"
        )
    if path.exists():
        raise PidistillError(
            f"{name} is {kinds.file_kind(path)}; expected the folder of a diffusers pipeline: "
            "convert a checkpoint with from_single_file(FILE).save_pretrained(DIR) of its class"
        )
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise PidistillError(
            f"{name!r} is neither an existing folder nor the OWNER/NAME of a repository on the "
            "Hugging Face hub"
        )
    return Pipeline(_fetch(name, revision, variant), variant)


def _fetch(repository: str, revision: str | None, variant: str | None) -> Path:
    """Download the components that a teacher needs, without variants other than `variant`."""
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
            ignore_patterns=[] if variant else ["*.fp16[.-]*", "*.non_ema[.-]*"],
        )
    except (OSError, ValueError) as error:
        raise PidistillError(
            f"{repository} is not an existing folder, and cannot be downloaded from the Hugging "
            f"Face hub: {one_line(error)}"
        ) from error
    if not is_pipeline_folder(Path(path)):
        raise PidistillError(f"{repository} on the Hugging Face hub is not a diffusers pipeline")
    return Path(path)
