"""Checkpoints: folders `state/step-N` of safetensors and JSON, complete or absent.

A checkpoint is written under a temporary name, flushed to the disk and renamed; its checksums are
verified when it is read, and a damaged one is passed over for the one before.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pidistill.errors import PidistillError
from pidistill.storage import read_json, read_tensors, write_json, write_tensors, write_text

MANIFEST = "manifest.json"


def write_checkpoint(
    state: Path, step: int, tensors: dict[str, dict[str, Tensor]], values: dict[str, Any], keep: int
) -> Path:
    """Write the checkpoint of `step` and drop all but the newest `keep`.

    Args:
        state: The folder of the checkpoints.
        step: Optimizer steps done.
        tensors: Named tensors of each file, by file name.
        values: JSON values, kept in the manifest.
        keep: How many checkpoints stay.

    Returns:
        The checkpoint's folder.
    """
    state.mkdir(parents=True, exist_ok=True)
    temporary = state / f".step-{step:09d}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    for name, content in tensors.items():
        write_tensors(temporary / name, content)
    checksums = {name: _checksum(temporary / name) for name in tensors}
    write_json(temporary / MANIFEST, {"step": step, "sha256": checksums, "values": values})
    folder = state / f"step-{step:09d}"
    shutil.rmtree(folder, ignore_errors=True)
    temporary.replace(folder)
    sync_folder(state)
    for old in _checkpoints(state)[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, so that a rename in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def newest_checkpoint(
    state: Path, warn: Callable[[str], None]
) -> tuple[Path, dict[str, Any]] | None:
    """The newest undamaged checkpoint and its manifest, or None where there is none at all.

    `warn` is called with a line for every damaged checkpoint that is passed over. Raises
    `PidistillError` when there are checkpoints, but all are damaged.
    """
    folders = _checkpoints(state)
    for folder in folders:
        try:
            manifest = read_json(folder / MANIFEST)
            for name, checksum in manifest["sha256"].items():
                if _checksum(folder / Path(name).name) != checksum:
                    raise PidistillError(f"{folder / name} does not match its checksum")
        except (PidistillError, OSError, KeyError) as error:
            warn(f"checkpoint {folder} is damaged and passed over: {error}")
        else:
            return folder, manifest
    if folders:
        raise PidistillError(f"all checkpoints in {state} are damaged; start anew without --resume")
    return None


def _checkpoints(state: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    return sorted(state.glob("step-*"), reverse=True)


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The per-parameter state of an optimizer as named tensors."""
    return {
        f"{index}.{key}": value
        for index, entries in optimizer.state_dict()["state"].items()
        for key, value in entries.items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Restore what `optimizer_tensors` saved; the settings stay those of `optimizer`."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in read_tensors(folder / "optimizer.safetensors").items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def truncate_log(path: Path, step: int) -> None:
    """Drop the lines of a `metrics.jsonl` after `step`, and a last line that is not whole."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            break
    text = "".join(f"{line}\n" for line in kept)
    write_text(path, text)
