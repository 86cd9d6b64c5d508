"""A folder of images; subfolders, if any, are the classes."""

import io
import itertools
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pidistill.data.dataset import Dataset
from pidistill.data.pixels import Origin, gather
from pidistill.errors import PidistillError
from pidistill.images import image_suffixes, read_image
from pidistill.paths import user_path
from pidistill.progress import Show, no_progress

log = logging.getLogger("pidistill")

OF_SYSTEMS = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found", "Thumbs.db", "desktop.ini")
"""Names that systems leave in folders; like hidden ones, they are left out without a word."""


def load_folder(
    name: str, locator: str, options: dict[str, Any], progress: Show = no_progress
) -> Dataset:
    """Load all images below the folder `locator`, in natural order of their paths.

    Args:
        name: The data set's name.
        locator: The folder.
        options: `size` resizes and crops to squares; `channels` (1 or 3) converts, by default
            images are grey if all are; `background` is the colour behind transparent pixels;
            `labels` says whether folders are classes; `flip` adds the mirror image of each.
        progress: Shows how many files are read.

    Raises:
        PidistillError: There are no images, one cannot be read, their sizes differ, or some are in
            class folders and some are not.
    """
    folder = user_path(locator)
    if not folder.is_dir():
        raise PidistillError(f"data {str(folder)!r} is not a folder; expected a folder of images")
    files = _image_files(folder)
    labels, names = _classes(folder, files) if options.get("labels", True) else (None, ())
    flip = options.get("flip", False)
    pixels, release = gather(
        one_size(((str(folder / file), folder / file) for file in files), options),
        len(files),
        _origin(folder, files, options),
        progress,
        channels=options.get("channels"),
        flip=flip,
    )
    labels = labels.repeat(2) if flip and labels is not None else labels
    return Dataset(pixels, labels, len(names), name, names, flip, release)


def _origin(folder: Path, files: list[Path], options: dict[str, Any]) -> Origin:
    """What identifies the images: names, sizes and times of change, and what is done to them."""
    stats = ((file, os.stat(folder / file)) for file in files)
    found = [[str(file), stat.st_size, stat.st_mtime_ns] for file, stat in stats]
    return Origin(f"{folder.resolve()} {options.get('size')}", [found, options.get("background")])


def _image_files(folder: Path) -> list[Path]:
    """The images below `folder`, as paths in it; says how many other files are left out."""
    suffixes = image_suffixes()
    every = sorted(_files(folder), key=natural)
    images = [file for file in every if file.suffix.lower() in suffixes]
    others = Counter(file.suffix.lower() or "no suffix" for file in every) - Counter(
        file.suffix.lower() for file in images
    )
    if not images:
        raise PidistillError(
            f"data folder {str(folder)!r} holds no images; expected files such as .png and .jpg"
        )
    if others:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(5))
        log.info("%s: ignored %d other file(s) (%s)", folder, others.total(), kinds)
    return images


def holds_images(folder: Path) -> bool:
    """Whether there is an image among the first files below `folder`."""
    suffixes, files = image_suffixes(), itertools.islice(_files(folder), 1000)
    return any(file.suffix.lower() in suffixes for file in files)


def _files(folder: Path) -> Iterator[Path]:
    """Every file below `folder`, as a path in it, without hidden ones.

    Links are followed, but not in circles.
    """
    seen: set[Path] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = Path(place).resolve()
        folders[:] = [] if real in seen else [name for name in folders if not _is_hidden(name)]
        if real not in seen:
            inside, shown = Path(place).relative_to(folder), (n for n in names if not _is_hidden(n))
            # a link may lead nowhere
            yield from (inside / name for name in shown if os.path.exists(f"{place}/{name}"))
        seen.add(real)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in OF_SYSTEMS


def natural(path: Path) -> list[tuple[list[Any], str]]:
    """A sort key by which 2 comes before 10, part by part."""
    return [
        ([(int(p), "") if p.isdecimal() else (-1, p) for p in re.split(r"(\d+)", part)], part)
        for part in path.parts
    ]


def _classes(folder: Path, files: list[Path]) -> tuple[torch.Tensor | None, tuple[str, ...]]:
    """Labels and names of the classes, which are the folders in `folder`."""
    parts = [file.parts for file in files]
    at_root = sum(len(part) == 1 for part in parts)
    if at_root == len(files):
        return None, ()
    if at_root:
        first = next(file.name for file, part in zip(files, parts, strict=True) if len(part) == 1)
        raise PidistillError(
            f"{folder} holds {at_root} image(s) beside class folders, such as {first}; move them "
            f"into class folders, or ignore the classes: folder:{folder}?labels=false"
        )
    names = list(dict.fromkeys(part[0] for part in parts))  # in natural order already
    empty = [p.name for p in folder.iterdir() if p.is_dir() and p.name not in names]
    empty = [name for name in empty if not _is_hidden(name)]
    if empty:
        log.info("%s: no class without images: %s", folder, ", ".join(sorted(empty)))
    number = {name: label for label, name in enumerate(names)}
    return torch.tensor([number[part[0]] for part in parts]), tuple(names)


def one_size(
    named: Iterable[tuple[str, Path | io.BytesIO]], options: dict[str, Any]
) -> Iterator[np.ndarray]:
    """Decode image files one by one: 8-bit pixels (height, width, 1 or 3).

    Args:
        named: The files, each with what errors call it.
        options: `size` and `background`, as in `read_image`.

    Raises:
        PidistillError: One cannot be read, or their sizes differ.
    """
    shape: tuple[int, ...] = ()
    first = ""
    for name, file in named:
        image = read_image(
            file, background=options.get("background"), size=options.get("size"), name=name
        )
        if not shape:
            shape, first = image.shape, Path(name).name
        if image.shape[:2] != shape[:2]:
            raise PidistillError(
                f"{name} is {image.shape[1]}x{image.shape[0]} pixels, but {first} is "
                f"{shape[1]}x{shape[0]}; resize and crop them with the option "
                f"?size={min(shape[:2])}"
            )
        yield image
