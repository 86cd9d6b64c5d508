"""Data sets, selected by a spec such as `digits` or `folder:PATH?size=32`.

| spec | images |
|---|---|
| `digits`, `glyphs` | the bundled ones |
| `folder:PATH` | a folder of images; subfolders are classes |
| `hf:NAME_OR_DIR` | a data set of the Hugging Face hub, or a local one in its formats |
| `npz:FILE` | an `.npz` with images, and labels if there are any |
| `idx:FOLDER` | the files of MNIST and its relatives |
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from pidistill import images
from pidistill.data.arrays import load_idx, load_npz
from pidistill.data.dataset import Dataset, fingerprint
from pidistill.data.digits import load_digits_images
from pidistill.data.folder import holds_images, load_folder
from pidistill.data.glyphs import load_glyphs
from pidistill.data.hugging_face import load_hf
from pidistill.errors import PidistillError
from pidistill.paths import user_path
from pidistill.progress import Show, no_progress
from pidistill.teachers.options import Options, parse_options

__all__ = ["Dataset", "did_you_mean", "fingerprint", "is_data_spec", "load_data"]

BUNDLED = {"digits": load_digits_images, "glyphs": load_glyphs}


class _Kind(NamedTuple):
    load: Callable[[str, str, dict[str, Any], Show], Dataset]
    options: Options


KINDS = {
    "folder": _Kind(
        load_folder,
        {"size": int, "channels": int, "background": str, "labels": bool, "flip": bool},
    ),
    "hf": _Kind(
        load_hf,
        {
            "config": str,
            "split": str,
            "image": str,
            "label": str,
            "labels": bool,
            "size": int,
            "channels": int,
            "background": str,
            "flip": bool,
        },
    ),
    "npz": _Kind(load_npz, {}),
    "idx": _Kind(load_idx, {"split": str}),
}
"""The kinds of data specs, with the options that follow a question mark."""


def load_data(spec: str, progress: Show = no_progress) -> Dataset:
    """Load the data set named by `spec`; `progress` shows how many files of a folder are read.

    Raises `PidistillError` if the spec is unknown, or what it names cannot be read.
    """
    kind, _, locator = spec.partition(":")
    if spec in BUNDLED:
        return BUNDLED[spec]()
    if kind not in KINDS or not locator:
        raise PidistillError(
            f"unknown data {spec!r}; expected {', '.join(BUNDLED)}, "
            f"{', '.join(f'{kind}:PATH' for kind in KINDS)}{did_you_mean(spec)}"
        )
    path, options = parse_options(kind, locator, KINDS[kind].options)
    _require_in_range(spec, options)
    data = KINDS[kind].load(spec, path, options, progress)
    if not len(data):
        raise PidistillError(f"{spec!r} holds no images")
    return data


def did_you_mean(spec: str) -> str:
    """A hint for the end of an error if `spec` is a path of data without its kind, or empty."""
    path = user_path(spec.partition("?")[0])
    if path.suffix == ".npz" and path.is_file():
        return f"; did you mean npz:{spec}?"
    if not spec or not path.is_dir():
        return ""
    if any(path.glob("*idx?-ubyte*")):
        return f"; did you mean idx:{spec}?"
    return f"; did you mean folder:{spec}?" if holds_images(path) else ""


def is_data_spec(text: str) -> bool:
    """Whether `text` names data by its kind, as in `folder:PATH`."""
    return text.partition(":")[0] in KINDS


def _require_in_range(spec: str, options: dict[str, Any]) -> None:
    if options.get("channels", 1) not in (1, 3):
        raise PidistillError(f"channels is {options['channels']} in {spec!r}; expected 1 or 3")
    if options.get("size", 1) < 1:
        raise PidistillError(f"size is {options['size']} in {spec!r}; expected a positive integer")
    if "background" in options:
        images.opaque_colour(options["background"])
