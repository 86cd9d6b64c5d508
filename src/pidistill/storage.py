"""Files that are either whole or absent: text, JSON, and tensors in safetensors."""

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from pidistill.errors import PidistillError
from pidistill.temporary import temporary_name


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; what is written there takes its place at the end.

    When the block fails, `path` stays as it was. The data are on the disk before the rename, and
    the rename is before anything else is done. An `OSError` names a file.
    """
    temporary = temporary_name(path)
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        if error.filename is None:  # writing and flushing do not say
            error.filename = str(path)
        raise
    finally:
        with contextlib.suppress(OSError):  # the failure itself is the news
            temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file to the disk, or the entries of a folder, so that they survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        unsupported = (errno.EINVAL, errno.ENOTSUP)  # folders, on some network drives
        if error.errno not in unsupported or not path.is_dir():
            error.filename = str(path)
            raise
    finally:
        os.close(descriptor)


def require_no_way_out(folder: Path) -> None:
    """Raise `PidistillError` when an entry of `folder` is a link to somewhere outside.

    Asked of a run folder before it is written to: it may come from a stranger.
    """
    home = folder.resolve()
    for entry in folder.iterdir():
        if entry.is_symlink() and not entry.resolve().is_relative_to(home):
            raise PidistillError(
                f"{entry} is a link to {os.readlink(entry)}, outside of {folder}; nothing is "
                "written through it: replace it by what it stands for"
            )


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` at once or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write `content` to `path` as indented JSON, at once or not at all."""
    write_text(path, json_text(content))


def json_text(content: Any) -> str:
    """`content` as indented JSON."""
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises `PidistillError` when the file is missing or is not a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PidistillError(f"{path} does not exist") from None
    except (OSError, ValueError, RecursionError) as error:
        raise PidistillError(f"{path} is not readable as JSON: {error}") from error
    if not isinstance(content, dict):
        raise PidistillError(f"{path} holds a {type(content).__name__}; expected a JSON object")
    return content


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write named tensors to a safetensors file, at once or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(tensor_bytes(tensors))


def tensor_bytes(tensors: dict[str, Tensor]) -> bytes:
    """Named tensors as the content of a safetensors file."""
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file onto the CPU.

    Raises `PidistillError` when it is missing or damaged.
    """
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except FileNotFoundError:
        raise PidistillError(f"{path} does not exist") from None
    except (OSError, SafetensorError) as error:
        raise PidistillError(f"{path} is not a readable safetensors file: {error}") from error
    return tensors


def load_weights(module: nn.Module, weights: dict[str, Tensor], name: str) -> None:
    """Load weights strictly into `module`, converted to its dtype.

    Raises `PidistillError` naming the first weight that is missing, unexpected or misshapen;
    `name` says where the weights come from.
    """
    own = module.state_dict()
    for problem, keys in (
        ("lacks the weight", own.keys() - weights.keys()),
        ("holds the unexpected weight", weights.keys() - own.keys()),
    ):
        if keys:
            rest = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise PidistillError(f"{name} {problem} {min(keys)!r}{rest}; is it of another network?")
    for key, value in weights.items():
        if value.shape != own[key].shape:
            raise PidistillError(
                f"{name}: weight {key!r} has shape {tuple(value.shape)}; "
                f"expected {tuple(own[key].shape)}"
            )
    with torch.no_grad():
        module.load_state_dict(weights)


def weights_sha256(module: nn.Module) -> str:
    """Content hash of a module's weights and buffers: their names and bytes."""
    return tensors_sha256(module.state_dict())


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Content hash of named tensors: their names and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def sha256_of(facts: Any) -> str:
    """Hash of JSON values, the order of keys left aside."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
