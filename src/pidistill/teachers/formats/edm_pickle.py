"""The contents of a genuine pickle of EDM or EDM2 as inert records (see `safe_pickle`)."""

import io
import math
import mmap
import struct
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pidistill.errors import PidistillError
from pidistill.teachers.formats import RefusedError, safe_pickle
from pidistill.teachers.formats.safe_pickle import shown

NUMPY_SCALARS = {"f2": "e", "f4": "f", "f8": "d", "i4": "i", "i8": "q", "u1": "B", "b1": "?"}
ARRAY = "numpy.ndarray"
"""Stands for the class."""
MAX_ARRAY = 64
STORAGES = {
    ("torch", "DoubleStorage"): torch.float64,
    ("torch", "FloatStorage"): torch.float32,
    ("torch", "HalfStorage"): torch.float16,
    ("torch", "BFloat16Storage"): torch.bfloat16,
    ("torch", "LongStorage"): torch.int64,
    ("torch", "IntStorage"): torch.int32,
    ("torch", "ByteStorage"): torch.uint8,
}
TORCH_SAVE_MAGIC = 0x1950A86A20F9469CFC6C
TORCH_SAVE_PROTOCOL = 1001


def read_pickle(path: Path) -> Any:
    """Read an EDM checkpoint as plain values, `PickledModule` and `PickledTensor`.

    Raises `PidistillError` if the file is missing, damaged, or refers to anything that a genuine
    checkpoint does not need.
    """
    try:
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            return safe_pickle.read_pickle(content, GLOBALS)
    except OSError as error:
        raise PidistillError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # a foreign file can raise anything
        reason = str(error) if isinstance(error, RefusedError) else f"is damaged: {error}"
        raise PidistillError(
            f"{path} {shown(reason, 300)}; it is not a genuine EDM checkpoint, and nothing in it "
            "was executed"
        ) from error


class PickledModule:
    """A pickled `nn.Module`: its class name and its unchecked attributes."""

    def __init__(self, class_name: str, state: dict[str, Any]) -> None:
        self.class_name, self.state = class_name, state

    def set_state(self, state: Any) -> None:
        """Set the attributes."""
        if type(state) is not dict:
            raise RefusedError(f"sets the state of a module to a {type(state).__name__}")
        self.state = state


class Storage(NamedTuple):
    """Elements of one dtype, as bytes of the file from an offset."""

    dtype: torch.dtype
    numel: int
    data: bytes
    offset: int


class PickledTensor(NamedTuple):
    """A view of a storage, checked to lie within it and to have no more elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def tensor(self) -> Tensor:
        """A float32 copy of the elements."""
        dtype, numel, data, offset = self.storage
        if math.prod(self.shape) == 0:
            return torch.empty(self.shape)
        elements = torch.frombuffer(bytearray(data), dtype=dtype, count=numel, offset=offset)
        view = elements.as_strided(self.shape, self.stride, self.offset)
        return view.to(torch.float32, copy=True, memory_format=torch.contiguous_format)


class _NumpyDtype(NamedTuple):
    """A NumPy scalar type, as a `struct` format character."""

    character: str

    def set_state(self, state: Any) -> None:
        if type(state) is not tuple or state[1] not in ("<", "|", "="):
            raise RefusedError("uses a NumPy dtype that is not little-endian")


class PickledArray:
    """A small one-dimensional NumPy array of numbers."""

    def __init__(self) -> None:
        self.values: tuple[Any, ...] = ()

    def set_state(self, state: Any) -> None:
        """Set the elements, from what NumPy stores of an array."""
        match state:
            case (int(), (int(size),), _NumpyDtype(character), bool(), bytes(data)) if (
                0 <= size <= MAX_ARRAY and len(data) == struct.calcsize(f"<{size}{character}")
            ):
                self.values = struct.unpack(f"<{size}{character}", data)
            case _:
                raise RefusedError(
                    f"holds a NumPy array that is not a list of at most {MAX_ARRAY} numbers"
                )


def _module(meta: Any) -> PickledModule:
    match meta:
        case {"class_name": str(class_name), "state": dict(state)}:
            return PickledModule(class_name, state)
    raise RefusedError("reconstructs something other than a network")


def _parameter(tensor: Any, *_: Any) -> PickledTensor:
    if type(tensor) is not PickledTensor:
        raise RefusedError("makes a parameter of something other than a tensor")
    return tensor


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> PickledTensor:
    if type(storage) is not Storage or type(shape) is not tuple or type(stride) is not tuple:
        raise RefusedError("makes a tensor of something other than a storage")
    sizes = (offset, *shape, *stride)
    if len(shape) == len(stride) <= 8 and all(type(n) is int and 0 <= n < 2**63 for n in sizes):
        numel = math.prod(shape)
        last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        if numel == 0 or (numel <= storage.numel and last < storage.numel):
            return PickledTensor(storage, offset, shape, stride)
    raise RefusedError("has a tensor that does not fit its storage")


def _storage(data: Any) -> Storage:
    """Read one tensor's storage in the format of `torch.save` before it used zip files.

    It consists of five pickles (magic number, version, number format of the writer, storage, list
    with its name), the number of elements, and the elements.
    """
    if type(data) is not bytes:
        raise RefusedError("reads a storage from something other than bytes")
    file = io.BytesIO(data)
    match [safe_pickle.read_pickle(file, STORAGES, max_opcodes=100) for _ in range(5)]:
        case [
            int(magic),
            int(protocol),
            {"little_endian": True},
            ("storage", torch.dtype() as dtype, str(), str(), int(numel), *_),
            [str()],
        ] if magic == TORCH_SAVE_MAGIC and protocol == TORCH_SAVE_PROTOCOL:
            count = struct.unpack("<q", file.read(8))[0]
            if count == numel and len(data) - file.tell() == numel * dtype.itemsize:
                return Storage(dtype, numel, data, file.tell())
    raise RefusedError("holds a storage that torch did not write")


def _dtype(code: Any, *_: Any) -> _NumpyDtype:
    if type(code) is not str or code not in NUMPY_SCALARS:
        raise RefusedError(f"uses the NumPy dtype {shown(code) if type(code) is str else '?'}")
    return _NumpyDtype(NUMPY_SCALARS[code])


def _scalar(dtype: Any, data: Any) -> Any:
    if type(dtype) is not _NumpyDtype or type(data) is not bytes:
        raise RefusedError("makes a NumPy scalar of something other than a number")
    return struct.unpack(f"<{dtype.character}", data)[0]


def _array(*arguments: Any) -> PickledArray:
    if arguments != (ARRAY, (0,), b"b"):
        raise RefusedError("refers to numpy.core.multiarray._reconstruct, but for no empty array")
    return PickledArray()


GLOBALS: dict[tuple[str, str], Any] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _module,
    ("torch.nn.modules.container", "ModuleDict"): lambda: PickledModule("container", {}),
    ("torch.nn.modules.container", "ModuleList"): lambda: PickledModule("container", {}),
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("collections", "OrderedDict"): lambda: {},
    ("dnnlib.util", "EasyDict"): lambda: {},
    ("numpy", "dtype"): _dtype,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy", "ndarray"): ARRAY,
    ("numpy.core.multiarray", "_reconstruct"): _array,
    ("numpy._core.multiarray", "_reconstruct"): _array,
}
"""Every global that a genuine checkpoint names, and its replacement."""
