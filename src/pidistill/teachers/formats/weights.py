"""Weights of foreign networks: read without executing code, and loaded strictly."""

import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pidistill.errors import PidistillError, one_line
from pidistill.files import read_json
from pidistill.networks import build_network
from pidistill.networks.layers import resampling_kernel
from pidistill.storage import load_weights, read_tensors
from pidistill.teachers.formats import RefusedError

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
PREFIXES = ("module.", "model.", "ema.")


def network_with_weights(
    name: str, config: dict[str, Any], weights: dict[str, Tensor], source: str
) -> nn.Module:
    """Build the network `name`, a key of `pidistill.networks.NETWORKS`, from `weights`.

    It is in float32. `weights` may omit the resampling filters, which follow from `config`. Errors
    call the file `source`.

    Raises:
        RefusedError: The network cannot be built.
        PidistillError: A weight is missing, unexpected, misshapen or not finite.
    """
    network = empty_network(name, config)
    taps = config.get("resample_filter", (1, 1))
    filters = {
        key: resampling_kernel(taps) for key in network.state_dict() if key.endswith("filter")
    }
    load_weights(network, filters | weights, source)
    return network


def empty_network(name: str, config: dict[str, Any]) -> nn.Module:
    """Build a registered network with uninitialised weights."""
    try:
        with torch.device("meta"):
            network = build_network(name, config)
        return network.to_empty(device="cpu")
    except (PidistillError, RuntimeError) as error:
        raise RefusedError(f"has a network that cannot be built: {one_line(error)}") from error


def read_torch(path: Path) -> Any:
    """Read a `torch.save` file of tensors and plain values.

    The tensors may be views of the mapped file: copy what you keep.

    Raises `PidistillError` if it is missing, damaged, or holds anything else.
    """
    try:
        zipped = zipfile.is_zipfile(path)
        if zipped:
            with zipfile.ZipFile(path) as archive:
                unpacked = sum(entry.file_size for entry in archive.infolist())
            if unpacked > path.stat().st_size:
                raise RefusedError(f"claims to unpack to {unpacked} bytes")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except FileNotFoundError as error:
        raise PidistillError(f"{path} does not exist") from error
    except Exception as error:  # a foreign file can raise anything
        raise PidistillError(
            f"{path} cannot be read with weights_only=True: {one_line(error)}"
        ) from error


def torch_head(path: Path) -> bytes:
    """The first 4 MB of the pickle in a `torch.save` file, with its keys; empty for other files."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        return b""
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            with archive.open(name) as file:
                return file.read(4_000_000)
    except Exception:  # a foreign archive can raise anything
        return b""


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict from safetensors or `torch.save`, without a prefix common to all keys.

    Raises `PidistillError` if the file is not a readable state dict.
    """
    weights = read_tensors(path) if path.suffix == ".safetensors" else read_torch(path)
    if not isinstance(weights, dict) or not weights:
        raise PidistillError(f"{path} holds a {type(weights).__name__}; expected a state dict")
    for key, value in weights.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise PidistillError(
                f"{path} holds a {type(value).__name__} as {key!r}; expected a state dict of "
                "tensors only"
            )
    while prefix := next((p for p in PREFIXES if all(k.startswith(p) for k in weights)), ""):
        weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    return weights


def json_beside(path: Path) -> tuple[Path | None, dict[str, Any]]:
    """The JSON file that describes the weights in `path`, and its content; (None, {}) without one.

    It is `STEM.json`, `FILE.json` or `config.json` in the folder of `path`.
    """
    for name in (path.with_suffix(".json").name, f"{path.name}.json", "config.json"):
        if (path.parent / name).is_file():
            return path.parent / name, read_json(path.parent / name)
    return None, {}
