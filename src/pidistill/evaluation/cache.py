"""Tensors that took long to compute, kept on the disk under the hash of what they come from.

They lie in the folder that PIDISTILL_CACHE names, else in `pidistill` in the user's cache folder
(XDG_CACHE_HOME, or `~/.cache`). All of it may be deleted at any time.
"""

import logging
import os
from pathlib import Path

import torch
from torch import Tensor

from pidistill.errors import PidistillError
from pidistill.paths import user_path
from pidistill.storage import read_tensors, tensors_sha256, write_tensors

VARIABLE = "PIDISTILL_CACHE"
CHECKSUM = "sha256"

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Where what is cached lies; it need not exist."""
    named = os.environ.get(VARIABLE)
    if named:
        return user_path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pidistill"


def recall(key: str) -> dict[str, Tensor] | None:
    """The tensors kept under `key`, or None where there are none.

    A damaged entry counts as none, and is reported.
    """
    path = _path(key)
    if not path.exists():
        return None
    try:
        tensors = read_tensors(path)
        checksum = tensors.pop(CHECKSUM, torch.zeros(0, dtype=torch.uint8))
        if bytes(checksum.tolist()).decode() != tensors_sha256(tensors):
            raise PidistillError(f"{path} does not match its checksum")
    except (PidistillError, UnicodeDecodeError, ValueError) as error:
        logger.warning("cached file is damaged and computed anew: %s", error)
        return None
    return tensors


def keep(key: str, tensors: dict[str, Tensor]) -> None:
    """Keep tensors under `key`; where the disk does not let us, that is reported and no error."""
    path = _path(key)
    checksum = torch.tensor(list(tensors_sha256(tensors).encode()), dtype=torch.uint8)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, {**tensors, CHECKSUM: checksum})
    except OSError as error:
        logger.warning("%s cannot be written, so nothing is cached: %s", path, error.strerror)


def _path(key: str) -> Path:
    return cache_folder() / f"{key}.safetensors"
