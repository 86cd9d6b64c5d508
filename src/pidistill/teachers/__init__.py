"""Teachers: one source a file, and the spec that chooses among them.

A source is a module with

- `load(locator) -> Denoiser`: read the teacher that the text after `KIND:` names;
- `recognises(path) -> bool`, optional: whether a bare path is of this kind, judged by its content.

Loading never executes anything that a file says.
"""

import importlib
from types import ModuleType

import torch

from pidistill.denoiser import Denoiser
from pidistill.errors import PidistillError
from pidistill.paths import user_path

SOURCES = {
    "digits": "pidistill.teachers.digits",
    "glyphs": "pidistill.teachers.glyphs",
    "mixture": "pidistill.teachers.mixture",
    "native": "pidistill.teachers.native",
    "edm": "pidistill.teachers.edm",
    "score-sde": "pidistill.teachers.score_sde",
    "diffusers": "pidistill.teachers.diffusers",
}


def load_teacher(spec: str, device: str | torch.device | None = None) -> Denoiser:
    """Load the teacher that `spec` names, ready to evaluate and without gradients.

    Args:
        spec: `digits`, `glyphs`, `mixture:NAME`, `native:DIR`, `edm:FILE`, `score-sde:FILE`,
            `diffusers:DIR`, or a bare path whose kind is recognised by its content.
        device: Where to put it; None keeps it on the CPU.

    Raises:
        PidistillError: The spec, the file or its content is not what it should be.
    """
    kind, locator = split_spec(spec)
    teacher: Denoiser = source_module(kind).load(locator)
    return teacher.to(device).eval().requires_grad_(False)


def split_spec(spec: str) -> tuple[str, str]:
    """Split a teacher spec into its kind (a key of `SOURCES`) and its locator."""
    kind, _, locator = spec.partition(":")
    if kind in SOURCES:
        return kind, locator
    path = user_path(spec)
    if path.exists():
        for kind in SOURCES:
            recognises = getattr(source_module(kind), "recognises", None)
            if recognises is not None and recognises(path):
                return kind, str(path)
        raise PidistillError(
            f"{spec!r} is neither a run folder nor a teacher of a kind that shows; name a teacher "
            f"as KIND:PATH with KIND one of {', '.join(SOURCES)}"
        )
    raise PidistillError(
        f"teacher {spec!r} is neither an existing path nor KIND:NAME with KIND one of "
        f"{', '.join(SOURCES)}"
    )


def absolute_spec(spec: str) -> str:
    """The spec with an absolute path where it names an existing one; otherwise as it is.

    What a run folder says of its teacher then holds in every current folder.
    """
    kind, _, locator = spec.partition(":")
    prefix, name = (f"{kind}:", locator) if kind in SOURCES else ("", spec)
    name, mark, options = name.partition("?")
    path = user_path(name)
    if not name or not path.exists():
        return spec
    return f"{prefix}{path.resolve()}{mark}{options}"


def source_module(kind: str) -> ModuleType:
    """The module of the teacher source `kind`."""
    return importlib.import_module(SOURCES[kind])
