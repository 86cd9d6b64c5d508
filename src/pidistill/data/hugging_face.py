"""Data sets of the Hugging Face hub, and local ones in its formats, by the library `datasets`."""

import io
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pidistill.data.dataset import Dataset
from pidistill.data.folder import one_size
from pidistill.data.pixels import Origin, gather
from pidistill.errors import PidistillError, one_line
from pidistill.paths import user_path
from pidistill.progress import Show, no_progress

SAVED = ("state.json", "dataset_dict.json")
"""Files of `save_to_disk`."""
DEFAULT_SPLIT = "train"


def load_hf(
    name: str, locator: str, options: dict[str, Any], progress: Show = no_progress
) -> Dataset:
    """Load a data set of images, with its labels if it has any.

    Args:
        name: The data set's name.
        locator: A name on the hub; or a folder of parquet files, of images with their metadata, or
            written by `save_to_disk`.
        options: `config` and `split` as in `datasets.load_dataset`, by default the only one or
            `train`; `image` and `label` name columns, by default the only ones of images and of
            class labels; `labels` says whether there shall be any; the rest as for a folder.
        progress: Shows how many images are read.

    Raises:
        PidistillError: `datasets` is not installed or cannot load it, there are several splits or
            columns to choose from, or an image cannot be read.
    """
    table = _table(locator, options)
    image = _column(table, "image", "Image", options.get("image"), name)
    if image is None:
        raise PidistillError(f"{name!r} has no column of images, only {_names(table)}")
    labels: torch.Tensor | None = None
    names: tuple[str, ...] = ()
    if options.get("labels", True):
        label = _column(table, "label", "ClassLabel", options.get("label"), name)
        if label is not None:
            labels, names = _labels(table, label, name)
    if not len(table):
        raise PidistillError(f"{name!r} holds no images")
    flip = options.get("flip", False)
    pixels, release = gather(
        one_size(_encoded(table, image, name), options),
        len(table),
        _origin(locator, table, image, options),
        progress,
        channels=options.get("channels"),
        flip=flip,
    )
    labels = labels.repeat(2) if flip and labels is not None else labels
    return Dataset(pixels, labels, len(names), name, names, flip, release)


def _table(locator: str, options: dict[str, Any]) -> Any:
    """The split of the data set, which is read from its files on demand."""
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise PidistillError(
            "hf: data need the library datasets; install it with pip install 'pidistill[hf]'"
        ) from error
    path, split, config = user_path(locator), options.get("split"), options.get("config")
    try:
        if any((path / file).is_file() for file in SAVED):
            found = datasets.load_from_disk(str(path))
            if not isinstance(found, dict):
                return found
            return found[_split(list(found), split, locator)]
        place = str(path) if path.exists() else locator
        if split is None:
            names = datasets.get_dataset_split_names(place, config)
            split = _split(names, split, locator)
        return datasets.load_dataset(place, config, split=split)
    except (OSError, ValueError, DatasetsError) as error:
        if isinstance(error, PidistillError):
            raise
        raise PidistillError(
            f"datasets cannot load {locator!r}: {one_line(error)}; expected a name on the hub or a "
            "folder of parquet files, with ?config= and ?split= where there are several"
        ) from error


def _split(names: list[str], wanted: str | None, locator: str) -> str:
    """The split that is wanted, or by default the only one or `train`."""
    if wanted is None and (DEFAULT_SPLIT in names or len(names) == 1):
        return DEFAULT_SPLIT if DEFAULT_SPLIT in names else names[0]
    if wanted not in names:
        raise PidistillError(
            f"split is {wanted!r} for {locator!r}; choose one of {', '.join(names)}, as in "
            f"hf:{locator}?split={names[0]}"
        )
    return wanted


def _names(table: Any) -> str:
    return ", ".join(f"{name} ({type(kind).__name__})" for name, kind in table.features.items())


def _column(table: Any, option: str, kind: str, wanted: str | None, name: str) -> str | None:
    """The column that is wanted, or by default the only one of this kind; None if there is none."""
    found = [key for key, feature in table.features.items() if type(feature).__name__ == kind]
    if wanted is None and len(found) < 2:
        return found[0] if found else None
    if wanted is None or wanted not in table.features or (kind == "Image" and wanted not in found):
        raise PidistillError(
            f"{option} is {wanted!r} for {name!r}, whose columns are {_names(table)}; choose one "
            f"with ?{option}={(found or ['NAME'])[0]}"
        )
    return wanted


def _labels(table: Any, column: str, name: str) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Labels and names of the classes: those of class labels, else the distinct values."""
    values = np.asarray(table[column][:])
    names = getattr(table.features[column], "names", None)
    if values.ndim != 1 or values.dtype.kind not in "iuU" or (names and values.min(initial=0) < 0):
        raise PidistillError(
            f"the labels {column!r} of {name!r} are not an integer or a text for every image; "
            "choose another column with ?label=, or ignore them: ?labels=false"
        )
    if names:
        return torch.from_numpy(values).long(), tuple(names)
    distinct, index = np.unique(values, return_inverse=True)
    return torch.from_numpy(index).long(), tuple(map(str, distinct))


def _encoded(table: Any, column: str, name: str) -> Iterator[tuple[str, Path | io.BytesIO]]:
    """The files of the images, in memory or on disk, each with what errors call it."""
    import datasets

    files = table.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    for i, row in enumerate(files):
        held = row[column]
        if held is None:
            raise PidistillError(f"{name!r} has no image in row {i}; remove the row first")
        source = Path(held["path"]) if held["bytes"] is None else io.BytesIO(held["bytes"])
        yield f"image {i} of {name}", source


def _origin(locator: str, table: Any, column: str, options: dict[str, Any]) -> Origin:
    """What identifies the images: the library's own files of the data set, and what is done."""
    files = [file["filename"] for file in table.cache_files]
    stats = [[file, os.stat(file).st_size, os.stat(file).st_mtime_ns] for file in files]
    what = [column, len(table), str(table.split), options.get("background")]
    place = user_path(locator)
    where = str(place.resolve()) if place.exists() else locator
    chosen = [options.get(key) for key in ("config", "split", "size")]
    return Origin(f"hf {where} {chosen}", [stats or str(uuid.uuid4()), what])
