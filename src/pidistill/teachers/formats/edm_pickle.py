"""What a genuine EDM pickle is made of, as inert records."""

import dataclasses
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from pidistill.errors import PidistillError
from pidistill.teachers.formats.safe_pickle import (
    Budget,
    Global,
    Machine,
    Record,
    RefusedError,
    Window,
    kind_of,
    shown,
)

NUMPY_SCALARS = {"f2": "e", "f4": "f", "f8": "d", "i4": "i", "i8": "q", "u1": "B", "b1": "?"}
STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ByteStorage": torch.uint8,
}
TORCH_SAVE_MAGIC = 0x1950A86A20F9469CFC6C
TORCH_SAVE_PROTOCOL = 1001


@dataclasses.dataclass(eq=False)
class PickledModule(Record):
    """A pickled `nn.Module`: the name of its class and its attributes, not yet checked."""

    class_name: str
    state: dict[str, Any]

    def set_state(self, state: Any) -> None:
        """Take the attributes."""
        if type(state) is not dict:
            raise RefusedError(f"sets the state of a module to {kind_of(state)}")
        self.state = state


class Storage(NamedTuple):
    """Elements of one type, as bytes of the file."""

    dtype: torch.dtype
    numel: int
    data: bytes | memoryview
    offset: int


class PickledTensor(NamedTuple):
    """A view into a storage, known to lie inside it and to have no more elements than it."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def tensor(self) -> Tensor:
        """The elements as float32, in memory of their own."""
        dtype, numel, data, offset = self.storage
        if math.prod(self.shape) == 0:
            return torch.empty(self.shape)
        writable = data if isinstance(data, memoryview) else bytearray(data)
        elements = torch.frombuffer(writable, dtype=dtype, count=numel, offset=offset)
        view = elements.as_strided(self.shape, self.stride, self.offset)
        return view.to(torch.float32, copy=True, memory_format=torch.contiguous_format)


@dataclasses.dataclass(frozen=True)
class _NumpyDtype(Record):
    """A NumPy scalar type, as the format character of `struct`."""

    character: str

    def set_state(self, state: Any) -> None:
        """Check the byte order."""
        match state:
            case (int(), "<" | "|" | "=", *_):
                return  # it stays little-endian, as everything else in the file
        raise RefusedError("uses a NumPy dtype that is not little-endian")


def read_pickle(path: Path) -> Any:
    """Read the pickle of an EDM checkpoint: plain values, `PickledModule` and `PickledTensor`.

    Raises `PidistillError` when the file is missing, damaged, or names anything that a genuine
    checkpoint does not need.
    """
    try:
        data = bytearray(path.stat().st_size)
        with path.open("rb") as file:
            length = file.readinto(data)
    except OSError as error:
        raise PidistillError(f"{path} cannot be read: {error.strerror}") from error
    window = Window(memoryview(data)[:length])
    budget = Budget()
    try:
        return Machine(_edm_globals(budget), budget).run(window)
    except RefusedError as error:
        reason = str(error)
    except (ValueError, OverflowError, struct.error) as error:
        reason = f"is damaged: {error}"
    raise PidistillError(
        f"{path} {shown(reason, 300)} (at byte {window.position}); it is not a genuine EDM "
        "checkpoint, and nothing in it was executed"
    )


def _edm_globals(budget: Budget) -> dict[tuple[str, str], Global]:
    """The globals of a genuine EDM checkpoint, each with the record that stands for a call."""

    def module(arguments: tuple[Any, ...]) -> PickledModule:
        match arguments:
            case ({"class_name": str(class_name), "state": dict(state)},):
                return PickledModule(class_name, state)
        raise RefusedError("reconstructs something other than a network")

    def empty_dict(arguments: tuple[Any, ...]) -> dict[str, Any]:
        if arguments:
            raise RefusedError("makes a dictionary from arguments")
        return {}

    def parameter(arguments: tuple[Any, ...]) -> PickledTensor:
        match arguments:
            case (PickledTensor() as tensor, bool(), dict()):
                return tensor
        raise RefusedError("makes a parameter of something other than a tensor")

    def storage(arguments: tuple[Any, ...]) -> Storage:
        match arguments:
            case (bytes() | memoryview() as data,):
                return _read_storage(data, budget)
        raise RefusedError("reads a storage from something other than bytes")

    def dtype(arguments: tuple[Any, ...]) -> _NumpyDtype:
        match arguments:
            case (str(code), *_):
                if code not in NUMPY_SCALARS:
                    raise RefusedError(f"uses the NumPy dtype {shown(code)}")
                return _NumpyDtype(NUMPY_SCALARS[code])
        raise RefusedError("makes a NumPy dtype of something other than a name")

    def scalar(arguments: tuple[Any, ...]) -> Any:
        match arguments:
            case (_NumpyDtype(character), bytes(data)):
                return struct.unpack(f"<{character}", data)[0]
        raise RefusedError("makes a NumPy scalar of something other than a number")

    def container(name: str) -> Callable[[tuple[Any, ...]], PickledModule]:
        return lambda arguments: PickledModule(name, empty_dict(arguments))

    builders: dict[tuple[str, str], Callable[[tuple[Any, ...]], Any]] = {
        ("torch_utils.persistence", "_reconstruct_persistent_obj"): module,
        ("torch.nn.modules.container", "ModuleDict"): container("ModuleDict"),
        ("torch.nn.modules.container", "ModuleList"): container("ModuleList"),
        ("torch._utils", "_rebuild_parameter"): parameter,
        ("torch._utils", "_rebuild_tensor_v2"): _tensor,
        ("torch.storage", "_load_from_bytes"): storage,
        ("collections", "OrderedDict"): empty_dict,
        ("dnnlib.util", "EasyDict"): empty_dict,
        ("numpy", "dtype"): dtype,
        ("numpy.core.multiarray", "scalar"): scalar,
        ("numpy._core.multiarray", "scalar"): scalar,
    }
    return {key: Global(".".join(key), build) for key, build in builders.items()}


def _tensor(arguments: tuple[Any, ...]) -> PickledTensor:
    """The record of a tensor whose elements all lie in its storage, and are no more than it has."""
    match arguments:
        case (Storage() as storage, offset, tuple(shape), tuple(stride), *_):
            if len(shape) == len(stride) <= 8 and _are_sizes(offset, *shape, *stride):
                numel = math.prod(shape)
                last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
                if numel == 0 or (numel <= storage.numel and last < storage.numel):
                    return PickledTensor(storage, offset, shape, stride)
            raise RefusedError("has a tensor that does not fit its storage")
    raise RefusedError("makes a tensor of something other than a storage")


def _are_sizes(*values: Any) -> bool:
    return all(type(value) is int and 0 <= value < 2**63 for value in values)


def _read_storage(data: bytes | memoryview, budget: Budget) -> Storage:
    """Read what `torch.save` wrote, before its zip format, for the storage of one tensor.

    That is five pickles in a row (a magic number, the version, the writer's number format, the
    storage and the list of its name), then the count of elements, then the elements.
    """

    def no_call(arguments: tuple[Any, ...]) -> NoReturn:
        raise RefusedError("calls a storage class")

    def persistent(pid: Any) -> tuple[torch.dtype, int]:
        match pid:
            case ("storage", Global(name), str(), str(), int(numel)) | (
                "storage",
                Global(name),
                str(),
                str(),
                int(numel),
                None,
            ):
                return STORAGE_DTYPES[name], numel
        raise RefusedError("holds something other than a storage inside a storage")

    known = {("torch", name): Global(name, no_call) for name in STORAGE_DTYPES}
    window = Window(memoryview(data))
    magic, protocol, system, storage, names = [
        Machine(known, budget, persistent).run(window) for _ in range(5)
    ]
    match magic, protocol, system, storage, names:
        case (
            int(magic),
            int(protocol),
            {"little_endian": True},
            (torch.dtype() as dtype, int(numel)),
            [str()],
        ) if magic == TORCH_SAVE_MAGIC and protocol == TORCH_SAVE_PROTOCOL:
            count = window.read(8)
            size = len(data) - window.position
            if struct.unpack("<q", count)[0] == numel and size == numel * dtype.itemsize:
                return Storage(dtype, numel, data, window.position)
    raise RefusedError("holds a storage that is not as torch writes it")
