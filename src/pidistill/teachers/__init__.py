"""Teachers, one source per file, selected by a spec such as `edm:FILE`.

A source is a module or other object with

- `load(locator) -> Denoiser`: load the teacher named by the text after `KIND:`;
- `recognises(path) -> bool`, optional: whether the content of a bare path is of this kind.

Other packages add kinds through entry points in the group `pidistill.teachers`. Loading a teacher
never executes code from its file. Importing this module does not import torch.
"""

from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from pidistill.errors import PidistillError
from pidistill.paths import user_path
from pidistill.teachers.options import absolute_options

if TYPE_CHECKING:
    import torch

    from pidistill.denoiser import Denoiser

GROUP = "pidistill.teachers"
SOURCES = {
    "digits": "pidistill.teachers.native:digits",
    "glyphs": "pidistill.teachers.native:glyphs",
    "mixture": "pidistill.teachers.mixture",
    "native": "pidistill.teachers.native",
    "edm": "pidistill.teachers.edm",
    "score-sde": "pidistill.teachers.score_sde",
    "lucidrains": "pidistill.teachers.lucidrains",
    "diffusers": "pidistill.teachers.diffusers",
}
"""Built-in sources by kind, written like entry points."""


def sources() -> dict[str, EntryPoint]:
    """All sources by kind: built-in ones, then those of other packages."""
    own = {kind: EntryPoint(kind, value, GROUP) for kind, value in SOURCES.items()}
    others = {point.name: point for point in entry_points(group=GROUP) if point.name not in own}
    return own | others


def load_teacher(spec: str | Path, device: "str | torch.device | None" = None) -> "Denoiser":
    """Load the teacher named by `spec`, in evaluation mode and without gradients.

    Args:
        spec: `digits`, `glyphs`, `mixture:NAME`, `native:DIR`, `edm:FILE`, `score-sde:FILE`,
            `lucidrains:FILE`, `diffusers:DIR_or_REPO`, or a bare path, whose kind is inferred from
            its content.
        device: Target device; None means the CPU.

    Raises:
        PidistillError: The spec or the file is invalid, or a weight is not finite.
    """
    import torch

    kind, locator = split_spec(spec)
    with torch.random.fork_rng(devices=[]):  # building a network draws weights, to be replaced
        teacher: Denoiser = sources()[kind].load().load(locator)
    for name, weight in teacher.state_dict().items():
        if not weight.isfinite().all():
            raise PidistillError(f"teacher {str(spec)!r}: weight {name!r} is not finite")
    return teacher.to(device).eval().requires_grad_(False)


def split_spec(spec: str | Path) -> tuple[str, str]:
    """Split a teacher spec into its kind (a key of `sources()`) and its locator.

    Raises `PidistillError` if it is neither of a known kind nor the path of a teacher.
    """
    known = sources()
    kind, _, locator = str(spec).partition(":")
    if kind in known:
        return kind, locator
    name, mark, options = str(spec).partition("?")
    path = user_path(name)
    for kind, source in known.items() if path.exists() else ():
        recognises = getattr(source.load(), "recognises", None)
        if recognises is not None and recognises(path):
            return kind, f"{path}{mark}{options}"
    problem = "is not recognised as a teacher" if path.exists() else "does not exist"
    raise PidistillError(
        f"teacher {str(spec)!r} {problem}; expected KIND:NAME with KIND one of {', '.join(known)}, "
        "or the path of a teacher"
    )


def absolute_spec(spec: str) -> str:
    """The spec with its paths made absolute, those in its options too, where they exist."""
    kind, colon, locator = spec.partition(":")
    if kind == "mixture":  # a name, even if there is a file of that name
        return spec
    prefix, name = (f"{kind}{colon}", locator) if kind in sources() else ("", spec)
    name, mark, options = name.partition("?")
    path = user_path(name)
    if name and path.exists():
        name = str(path.resolve())
    return f"{prefix}{name}{mark}{absolute_options(options)}"
