"""The files that hold the weights of a pipeline's component: variants, shards, pickles."""

import os
import re
from pathlib import Path

from pidistill.teachers.formats import RefusedError

ALLOW_PICKLE = "PIDISTILL_ALLOW_PICKLE"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
LFS_POINTER = b"version https://git-lfs"
WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)(?:\.(?P<a>[\w-]+?))?(?:-\d{5}-of-\d{5})?"
    r"(?:\.(?P<b>[\w-]+))?\.(?P<suffix>safetensors|bin)"
)
"""Names of files of weights: with a variant, as in `model.fp16.safetensors`, and of shards."""


def variant_in(
    folder: Path, suffix: str, wanted: str | None, *, name: str, required: bool
) -> str | None:
    """The variant of the weights in `folder` to read: None for `diffusion_pytorch_model.SUFFIX`.

    A variant that is alone is read; `wanted` decides among several. It has to exist if
    `required`. Raises `RefusedError` if there is a choice, or nothing to choose.
    """
    matches = (WEIGHTS.fullmatch(file.name) for file in folder.iterdir())
    found = {m["a"] or m["b"] for m in matches if m and m["suffix"] == suffix} or {None}
    if wanted in found:
        return wanted
    listed = ", ".join(sorted(variant or "(none)" for variant in found))
    if wanted is not None and required:
        raise RefusedError(f"has no variant {wanted!r} of the {name}; expected one of {listed}")
    if None in found:
        return None
    if len(found) == 1:
        return found.pop()
    raise RefusedError(
        f"has the weights of the {name} in several variants, {listed}; choose one by the option "
        "variant, as in diffusers:DIR?variant=fp16"
    )


def has_safetensors(folder: Path, name: str) -> bool:
    """Whether the weights in `folder` are safetensors; raises if they are disallowed pickles."""
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as stream:
            if stream.read(len(LFS_POINTER)) == LFS_POINTER:
                raise RefusedError(
                    f"has a Git LFS pointer as {name}/{file.name}; run: git lfs pull"
                )
    if any(folder.glob("*.safetensors")):
        return True
    pickles = sorted(file.name for pattern in PICKLES for file in folder.glob(pattern))
    if not pickles:
        raise RefusedError(
            f"has no weights of the {name} in {folder}; if they exist only as a variant, name it, "
            "as in diffusers:OWNER/NAME?variant=fp16"
        )
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
