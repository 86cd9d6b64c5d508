"""Folders that the diffusers library saves pipelines in, on the disk or on the Hugging Face hub.

A class that a folder names is only ever looked up in a list that the caller gives; weights are read
from safetensors. Pickles are read only where a person has allowed it, and then by torch's
weights-only reader.
"""

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

from pidistill.errors import PidistillError
from pidistill.files import read_json
from pidistill.networks.diffusers_unet import require
from pidistill.paths import user_path

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
    allow_pickle: bool = False

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

        Raises `PidistillError` when it is missing, damaged or of a class outside of `choices`.
        """
        name = self.class_of(component, choices=choices)
        cls = getattr(require(library), name)
        return self._from_pretrained(component, cls), name

    def load_network(
        self,
        component: str,
        *,
        choices: tuple[str, ...],
        library: str = "diffusers",
        **options: Any,
    ) -> tuple[Any, str]:
        """Load a component with all its weights, and say its class.

        Args:
            component: Its name in the pipeline.
            choices: The classes that will do.
            library: Where the class is from.
            options: Passed on to `from_pretrained`.

        Raises:
            PidistillError: It is missing, damaged, of another class, lacks weights, or would need
                pickles.
        """
        name = self.class_of(component, choices=choices)
        cls = getattr(require(library), name)
        safe = self._has_safetensors(component, name)
        network, report = self._from_pretrained(
            component, cls, use_safetensors=safe, output_loading_info=True, **options
        )
        for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            keys = sorted(str(key) for key in report[problem])
            if keys:
                raise PidistillError(
                    f"{self.name}: the weights of the {component} do not fit its config.json: "
                    f"{len(keys)} {problem.replace('_', ' ')}, the first is {keys[0]}"
                )
        # Weights mapped from the file lie where its header left them, and the last bits of a sum
        # depend on how its terms are aligned: in memory of their own they do not.
        for tensor in (*network.parameters(), *network.buffers()):
            tensor.data = tensor.data.clone()
        return network, name

    def _from_pretrained(self, component: str, cls: Any, **options: Any) -> Any:
        try:
            return cls.from_pretrained(self.folder_of(component), local_files_only=True, **options)
        except Exception as error:  # anything can come out of a damaged folder
            reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
            raise PidistillError(
                f"{self.name}: the {component} cannot be loaded: {reason[0]}"
            ) from error

    def _has_safetensors(self, component: str, class_name: str) -> bool:
        """Whether there are safetensors; if not, pickles have to be there and allowed."""
        folder = self.folder_of(component)
        if any(folder.glob("*.safetensors")):
            return True
        pickles = sorted(file.name for pattern in PICKLES for file in folder.glob(pattern))
        if not pickles:
            raise PidistillError(f"{self.name}: the {component} has no weights in {folder}")
        if not (self.allow_pickle or os.environ.get(ALLOW_PICKLE) == "1"):
            raise PidistillError(
                f"{self.name}: the weights of the {component} are a pickle, {pickles[0]}; convert "
                f"it once with {class_name}.from_pretrained({str(folder)!r}, use_safetensors=False)"
                f".save_pretrained({str(folder)!r}), or set {ALLOW_PICKLE}=1 to let torch's "
                "weights-only reader read it"
            )
        return False


def is_pipeline_folder(path: Path) -> bool:
    """Whether `path` is the folder of a pipeline."""
    return (path / INDEX).is_file()


def open_pipeline(
    locator: str, *, revision: str | None = None, allow_pickle: bool = False
) -> PipelineFolder:
    """Find a pipeline: a folder, or else the name of a repository on the hub, which is fetched.

    Raises `PidistillError` when it is neither.
    """
    path = user_path(locator)
    if is_pipeline_folder(path):
        return PipelineFolder(path, locator, allow_pickle)
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
    pickles = PICKLES if allow_pickle or os.environ.get(ALLOW_PICKLE) == "1" else ()
    return PipelineFolder(_fetch(locator, revision, FILES + pickles), locator, allow_pickle)


def _fetch(repository: str, revision: str | None, files: tuple[str, ...]) -> Path:
    """Fetch the components of a pipeline that a teacher can be made of, without variants."""
    from huggingface_hub import snapshot_download

    root = (INDEX, "config.json", "scheduler_config.json", "diffusion_pytorch_model.*")
    wanted = [*root, *(f"{component}/{pattern}" for component in COMPONENTS for pattern in files)]
    if files == FILES:
        wanted.remove("diffusion_pytorch_model.*")
        wanted.append("diffusion_pytorch_model.safetensors")
    try:
        path = snapshot_download(
            repository,
            revision=revision,
            allow_patterns=wanted,
            ignore_patterns=["*.fp16.*", "*.non_ema.*"],
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise PidistillError(
            f"{repository} is not a folder here, and cannot be fetched from the Hugging Face hub: "
            f"{reason[0]}"
        ) from error
    if not is_pipeline_folder(Path(path)):
        raise PidistillError(f"{repository} on the Hugging Face hub is not a diffusers pipeline")
    return Path(path)
