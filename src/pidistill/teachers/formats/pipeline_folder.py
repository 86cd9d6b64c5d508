"""Folders that the diffusers library saves pipelines in, on the disk or on the Hugging Face hub.

A class that a folder names is only ever looked up in a list that the caller gives; weights are read
from safetensors. Pickles are read only where the environment variable PIDISTILL_ALLOW_PICKLE is 1,
and then by torch's weights-only reader.
"""

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pidistill.errors import PidistillError
from pidistill.files import read_json
from pidistill.networks.diffusers_unet import require
from pidistill.paths import user_path
from pidistill.teachers.formats.weights import one_line

INDEX = "model_index.json"
ALLOW_PICKLE = "PIDISTILL_ALLOW_PICKLE"
COMPONENTS = ("unet", "scheduler", "vae", "vqvae", "text_encoder", "tokenizer")
FILES = ("*.json", "*.safetensors", "*.txt")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclasses.dataclass(frozen=True)
class PipelineFolder:
    """A pipeline on the disk."""

    path: Path
    name: str
    """What the user called it."""

    def class_of(self, component: str, *, choices: tuple[str, ...]) -> str:
        """The name of the class of a component, one of `choices`.

        Raises `PidistillError` when the pipeline has no such component or it is of another class.
        """
        entry = read_json(self.path / INDEX).get(component)
        name = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
        if name not in choices:
            found = f"is of class {name}" if name else "is missing"
            raise PidistillError(
                f"{self.name}: the {component} of the pipeline {found}; expected one of "
                f"{', '.join(choices)}"
            )
        return str(name)

    def has(self, component: str) -> bool:
        """Whether the pipeline has this component."""
        entry = read_json(self.path / INDEX).get(component)
        return isinstance(entry, list) and entry != [None, None]

    def folder_of(self, component: str) -> Path:
        """The folder of a component: its own, or in old repositories the root."""
        own = self.path / component
        return own if own.is_dir() else self.path

    def load(
        self, component: str, *, choices: tuple[str, ...], library: str = "diffusers"
    ) -> tuple[Any, str]:
        """Load a component that has no weights, such as a scheduler, and say its class.

        Args:
            component: Its name in the pipeline.
            choices: The classes that are accepted.
            library: Where the class is from.

        Raises:
            PidistillError: It is missing, damaged or of another class.
        """
        name = self.class_of(component, choices=choices)
        return self._from_pretrained(component, library, name), name

    def load_network(
        self,
        component: str,
        *,
        choices: tuple[str, ...],
        library: str = "diffusers",
        dtype: torch.dtype | None = None,
    ) -> tuple[nn.Module, str]:
        """Load a component with all its weights, and say its class.

        Args and errors as in `load`; the weights must all be there, and not need pickles. `dtype`
        is that of the weights, None for the library's choice.
        """
        name = self.class_of(component, choices=choices)
        options: dict[str, Any] = {"use_safetensors": self._has_safetensors(component, name)}
        if dtype is not None:
            options["dtype"] = dtype
        network, report = self._from_pretrained(
            component, library, name, output_loading_info=True, **options
        )
        for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            keys = sorted(str(key) for key in report[problem])
            if keys:
                raise PidistillError(
                    f"{self.name}: the weights of the {component} do not fit its config.json: "
                    f"{len(keys)} {problem.replace('_', ' ')}, the first is {keys[0]}"
                )
        # Weights mapped from the file are aligned as its header leaves them, and the last bits of a
        # sum depend on that; in memory of their own they do not.
        for tensor in (*network.parameters(), *network.buffers()):
            tensor.data = tensor.data.clone()
        return network, name

    def _from_pretrained(self, component: str, library: str, name: str, **options: Any) -> Any:
        cls = getattr(require(library), name)
        try:
            return cls.from_pretrained(self.folder_of(component), local_files_only=True, **options)
        except Exception as error:  # anything can come out of a damaged folder
            raise PidistillError(
                f"{self.name}: the {component} cannot be loaded: {one_line(error)}"
            ) from error

    def _has_safetensors(self, component: str, class_name: str) -> bool:
        """Whether there are safetensors; if not, pickles have to be there and allowed."""
        folder = self.folder_of(component)
        if any(folder.glob("*.safetensors")):
            return True
        pickles = sorted(file.name for pattern in PICKLES for file in folder.glob(pattern))
        if not pickles:
            raise PidistillError(f"{self.name}: the {component} has no weights in {folder}")
        if not pickles_allowed():
            raise PidistillError(
                f"{self.name}: the weights of the {component} are a pickle, {pickles[0]}; convert "
                f"it once with {class_name}.from_pretrained({str(folder)!r}, use_safetensors=False)"
                f".save_pretrained({str(folder)!r}), or set {ALLOW_PICKLE}=1 to let torch's "
                "weights-only reader read it"
            )
        return False


def pickles_allowed() -> bool:
    """Whether the user allows pickles, read by torch's weights-only reader."""
    return os.environ.get(ALLOW_PICKLE) == "1"


def is_pipeline_folder(path: Path) -> bool:
    """Whether `path` is the folder of a pipeline."""
    return (path / INDEX).is_file()


def open_pipeline(locator: str, *, revision: str | None = None) -> PipelineFolder:
    """Find a pipeline: a folder, or else the name of a repository on the hub, which is fetched.

    Raises `PidistillError` when it is neither.
    """
    path = user_path(locator)
    if is_pipeline_folder(path):
        return PipelineFolder(path, locator)
    if path.is_dir():
        raise PidistillError(
            f"{locator} holds no {INDEX}; expected the folder of a whole diffusers pipeline, as "
            "its save_pretrained writes it (a UNet without its scheduler has no noise levels)"
        )
    if path.exists():
        raise PidistillError(
            f"{locator} is a single file; expected the folder of a diffusers pipeline, which "
            "from_single_file(FILE).save_pretrained(DIR) of its class makes of it"
        )
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", locator):
        raise PidistillError(
            f"{locator!r} is neither an existing folder nor the OWNER/NAME of a repository on the "
            "Hugging Face hub"
        )
    return PipelineFolder(_fetch(locator, revision), locator)


def _fetch(repository: str, revision: str | None) -> Path:
    """Fetch the components of a pipeline that a teacher can be made of, without variants."""
    from huggingface_hub import snapshot_download

    files = FILES + PICKLES if pickles_allowed() else FILES
    in_root = "*" if pickles_allowed() else "safetensors"
    wanted = [INDEX, "config.json", "scheduler_config.json", f"diffusion_pytorch_model.{in_root}"]
    wanted += [f"{component}/{pattern}" for component in COMPONENTS for pattern in files]
    try:
        path = snapshot_download(
            repository,
            revision=revision,
            allow_patterns=wanted,
            ignore_patterns=["*.fp16.*", "*.non_ema.*"],
        )
    except (OSError, ValueError) as error:
        raise PidistillError(
            f"{repository} is not an existing folder, and cannot be fetched from the Hugging Face "
            f"hub: {one_line(error)}"
        ) from error
    if not is_pipeline_folder(Path(path)):
        raise PidistillError(f"{repository} on the Hugging Face hub is not a diffusers pipeline")
    return Path(path)
