"""Reading, writing and hashing tensors; strict loading of weights."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from pidistill.errors import PidistillError
from pidistill.files import replacing


def write_tensors(path: str | Path, tensors: dict[str, Tensor]) -> None:
    """Write named tensors to a safetensors file, atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(tensor_bytes(tensors))


def tensor_bytes(tensors: dict[str, Tensor]) -> bytes:
    """Named tensors as the content of a safetensors file."""
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read a safetensors file onto the CPU; raises `PidistillError` if it is missing or damaged."""
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except FileNotFoundError as error:
        raise PidistillError(f"{path} does not exist") from error
    except (OSError, SafetensorError) as error:
        raise PidistillError(f"{path} is not a readable safetensors file: {error}") from error
    return tensors


def load_weights(module: nn.Module, weights: dict[str, Tensor], name: str) -> None:
    """Load weights strictly into `module`, converted to its dtype.

    Raises `PidistillError` naming the first weight that is missing, unexpected, misshapen or not
    finite, and then loads nothing. `name` says where the weights come from.
    """
    own = module.state_dict()
    for problem, keys in (
        ("lacks the weight", own.keys() - weights.keys()),
        ("holds the unexpected weight", weights.keys() - own.keys()),
    ):
        if keys:
            rest = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise PidistillError(
                f"{name} {problem} {min(keys)!r}{rest}; expected the weights of this network"
            )
    for key, value in weights.items():
        if value.shape != own[key].shape:
            raise PidistillError(
                f"{name}: weight {key!r} has shape {tuple(value.shape)}; "
                f"expected {tuple(own[key].shape)}"
            )
        if not value.isfinite().all():
            raise PidistillError(f"{name}: weight {key!r} is not finite; use an older checkpoint")
    with torch.no_grad():
        module.load_state_dict(weights)


def weights_sha256(module: nn.Module) -> str:
    """Content hash of a module's weights and buffers, over names and bytes."""
    return tensors_sha256(module.state_dict())


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Content hash of named tensors, over names and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
