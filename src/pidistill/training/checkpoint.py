"""Checkpoints: folders `state/step-N` of safetensors and JSON, complete or absent.

A checkpoint is written under a temporary name, flushed to disk and renamed. Reading verifies its
checksums and falls back from a damaged checkpoint to the previous one.
"""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from pidistill.errors import PidistillError
from pidistill.files import json_text, read_json, sync
from pidistill.storage import tensor_bytes

MANIFEST = "manifest.json"

KEYS = {"step", "best", "sha256", "values"}
"""The keys of a manifest, besides its own checksum."""


def write_checkpoint(
    state: Path,
    step: int,
    tensors: dict[str, dict[str, Tensor]],
    values: dict[str, Any],
    *,
    keep: int,
    texts: dict[str, str] | None = None,
    best: int | None = None,
) -> Path:
    """Write the checkpoint of `step` and delete all but the newest `keep` and the `best`.

    Checkpoints of later steps are deleted too: they must be damaged, or the run would have resumed
    from them.

    Args:
        state: The folder of the checkpoints.
        step: Optimizer steps done.
        tensors: Named tensors by file name.
        values: JSON values for the manifest.
        keep: Number of checkpoints to keep.
        texts: Contents of text files by file name.
        best: The step of a checkpoint to keep as well.

    Returns:
        The checkpoint's folder.
    """
    if not state.is_dir():
        state.mkdir(parents=True)
        sync(state.parent)
    temporary = state / f".step-{step:09d}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        checksums = {}
        for name, content in tensors.items():
            checksums[name] = _write(temporary / name, tensor_bytes(content))
        for name, text in (texts or {}).items():
            checksums[name] = _write(temporary / name, text.encode())
        manifest = {"step": step, "best": best, "sha256": checksums, "values": values}
        signed = json_text({**manifest, "manifest_sha256": _own_checksum(manifest)})
        _write(temporary / MANIFEST, signed.encode())
        sync(temporary)
        folder = state / f"step-{step:09d}"
        if folder.exists():
            _drop(folder)
        temporary.replace(folder)
        sync(state)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    newest = _checkpoints(state)
    later = newest.index(folder)
    for old in (*newest[:later], *newest[later + keep :]):
        if old.name != f"step-{-1 if best is None else best:09d}":
            _drop(old)
    return folder


def _write(path: Path, content: bytes) -> str:
    """Write and flush a file; return its checksum."""
    path.write_bytes(content)
    sync(path)
    return hashlib.sha256(content).hexdigest()


def _drop(folder: Path) -> None:
    """Hide a checkpoint, then delete it, so it is never visible in part; best effort."""
    hidden = folder.with_name(f".{folder.name}.dropped")
    with contextlib.suppress(OSError):
        folder.replace(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def clear_unfinished(state: Path) -> None:
    """Remove checkpoints that a killed process was writing or deleting."""
    for leftover in state.glob(".step-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def newest_checkpoint(
    state: Path, warn: Callable[[str], None]
) -> tuple[Path, dict[str, Any]] | None:
    """The newest intact checkpoint and its manifest, or None if there are no checkpoints.

    Calls `warn` with one line per damaged checkpoint skipped. Raises `PidistillError` if all
    checkpoints are damaged.
    """
    folders = _checkpoints(state)
    for folder in folders:
        try:
            manifest = _read_manifest(folder)
            for name, digest in manifest["sha256"].items():
                if checksum(folder / Path(name).name) != digest:
                    raise PidistillError(f"{folder / name} does not match its checksum")
        except (PidistillError, OSError) as error:
            warn(f"skipping damaged checkpoint {folder}: {error}")
        else:
            return folder, manifest
    if folders:
        raise PidistillError(
            f"all checkpoints in {state} are damaged; move {state.parent} away to start over"
        )
    return None


def best_checkpoint(state: Path) -> Path | None:
    """The checkpoint that the newest readable manifest names as best, or None if it is gone."""
    for folder in _checkpoints(state):
        try:
            best = _read_manifest(folder)["best"]
        except PidistillError:
            continue
        path = state / f"step-{-1 if best is None else best:09d}"
        return path if path.is_dir() else None
    return None


def _checkpoints(state: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    return sorted(state.glob("step-*"), reverse=True)


def _read_manifest(folder: Path) -> dict[str, Any]:
    manifest = read_json(folder / MANIFEST)
    if manifest.pop("manifest_sha256", None) != _own_checksum(manifest):
        raise PidistillError(f"{folder / MANIFEST} does not match its checksum")
    if manifest.keys() != KEYS or not isinstance(manifest["sha256"], dict):
        raise PidistillError(f"{folder / MANIFEST} is from another version of pidistill")
    return manifest


def _own_checksum(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
