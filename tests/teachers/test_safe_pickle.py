"""Hostile pickles: no code runs, memory is bounded, and each fails with one clear line."""

import io
import os
import pickle
import random
import re
import struct
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from pidistill.errors import PidistillError
from pidistill.networks.song_unet import SongUNet
from pidistill.teachers import edm
from pidistill.teachers.formats.edm_pickle import PickledModule, PickledTensor, read_pickle
from pidistill.teachers.formats.safe_pickle import MAX_OPCODES

from edm_files import checkpoint, dumps, randomized

TINY = {
    "img_resolution": 8,
    "in_channels": 3,
    "out_channels": 3,
    "model_channels": 8,
    "channel_mult": [1],
    "channel_mult_emb": 1,
    "num_blocks": 1,
    "attn_resolutions": [8],
}
FIXTURE = Path(__file__).parents[1] / "reference" / "data" / "edm_ddpmpp_uncond.pkl"
PROTO = b"\x80\x04"


@pytest.fixture(scope="module")
def genuine():
    """A small pickle with genuine structure."""
    return dumps(checkpoint(randomized(SongUNet(**TINY))))


@pytest.fixture
def read(tmp_path):
    """Reads bytes as a pickle; nothing they name may leave a trace in the folder."""

    def reader(data):
        (tmp_path / "file.pkl").write_bytes(data)
        return read_pickle(tmp_path / "file.pkl")

    return reader


@pytest.fixture
def refuses(read, tmp_path):
    """Checks that bytes are refused with a one-line reason, without being executed."""

    def check(data, match="executed"):
        with pytest.raises(PidistillError, match=match) as caught:
            read(data)
        message = str(caught.value)
        assert message.isprintable()
        assert message.startswith(str(tmp_path))
        assert len(message) < 600
        assert os.listdir(tmp_path) == ["file.pkl"]

    return check


def text(string):
    """Opcodes that push a string."""
    return b"\x8c" + bytes([len(string)]) + string.encode()


def call(module, name, *arguments):
    """Opcodes that call a global with strings, by STACK_GLOBAL and REDUCE."""
    pushed = b"(" + b"".join(map(text, arguments)) + b"t"
    return text(module) + text(name) + b"\x93" + pushed + b"R"


def load_from_bytes(data):
    """Opcodes that read a nested file of `torch.save`."""
    pushed = b"B" + struct.pack("<I", len(data)) + data
    return text("torch.storage") + text("_load_from_bytes") + b"\x93" + pushed + b"\x85R"


def saved(value, **options):
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


class Evil:
    """Leaves a trace when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_genuine_file_is_records_and_plain_values(genuine, read):
    content = read(genuine)
    ema = content["ema"]
    assert isinstance(ema, PickledModule)
    assert ema.class_name == "EDMPrecond"
    model = ema.state["_modules"]["model"]
    weight = model.state["_modules"]["map_layer0"].state["_parameters"]["weight"]
    assert isinstance(weight, PickledTensor)
    assert weight.tensor().shape == (8, 8)
    assert content["dataset_kwargs"] == {"path": "x.zip", "use_labels": False}


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_every_protocol_of_python_is_refused(protocol, refuses, tmp_path):
    evil = pickle.dumps({"ema": [Evil(tmp_path / "trace")]}, protocol)
    by_name = r"refers to (posix|nt)\.mkdir" if protocol >= 1 else "uses the opcode"
    refuses(evil, f"{by_name}.*nothing in it was executed")


@pytest.mark.parametrize("place", ["top", "settings", "module", "weight", "beside"])
def test_it_is_refused_wherever_it_hides(place, refuses, tmp_path):
    content = checkpoint(randomized(SongUNet(**TINY)))
    evil = Evil(tmp_path / "trace")
    state = content["ema"].state["_modules"]["model"].state
    match place:
        case "top":
            content = evil
        case "settings":
            content["ema"].state["sigma_data"] = evil
        case "module":
            state["_modules"]["enc"]._modules["8x8_block0"].state["_modules"]["norm0"] = evil
        case "weight":
            state["_modules"]["map_layer0"].state["_parameters"]["weight"] = evil
        case "beside":
            content["dataset_kwargs"]["more"] = [[[{"a": (evil,)}]]]
    refuses(dumps(content), r"refers to (posix|nt)\.mkdir")


OTHER_GLOBALS = """
    os:system builtins:eval builtins:getattr builtins:set functools:partial torch:load
    torch.hub:load torch.serialization:load torch._utils:_rebuild_tensor_v3
    torch._utils:_rebuild_parameter.__globals__ torch.storage:torch.load torch.storage:pickle.loads
    torch.storage:io.os.system numpy.core.multiarray:_reconstruct
    numpy.core.multiarray:scalar.__class__ torch_utils:persistence._reconstruct_persistent_obj
    torch_utils.persistence:_src_to_module collections:OrderedDict.fromkeys
    dnnlib:util.EasyDict dnnlib.util:call_func_by_name :
"""


@pytest.mark.parametrize("path", OTHER_GLOBALS.split())
def test_any_other_global_is_refused_by_name(path, refuses):
    module, _, name = path.partition(":")
    refuses(PROTO + call(module, name, "x") + b".", re.escape(f"refers to {module}.{name}"))
    by_line = b"c" + module.encode() + b"\n" + name.encode() + b"\n)R."
    refuses(b"\x80\x02" + by_line, re.escape(f"refers to {module}.{name}"))


ORDERED_DICT = b"ccollections\nOrderedDict\n"
MODULE_DICT = b"ctorch.nn.modules.container\nModuleDict\n"
OUT_OF_PLACE = {
    "INST": [b"(S'touch \\l trace'\nios\nsystem\n."],
    "OBJ": [b"(cos\nsystem\nS'touch trace'\no.", b"(" + ORDERED_DICT + b"o."],
    "NEWOBJ_EX": [ORDERED_DICT + b")}\x92."],
    "BUILD of a dictionary or a function": [
        ORDERED_DICT + b")\x81}b.",
        ORDERED_DICT + b"}b.",
        b"}}b.",
    ],
    "BUILD with slots": [ORDERED_DICT + b"N}\x8c\x08__code__Ns\x86b."],
    "BUILD of a module with slots": [MODULE_DICT + b"N}\x86b.", MODULE_DICT + b")RN}\x86b."],
    "EXT1, EXT2, EXT4": [b"\x82\x01.", b"\x83\x01\x00.", b"\x84\x01\x00\x00\x00."],
    "PERSID, BINPERSID, NEXT_BUFFER, unknown": [b"Pname\n.", b"NQR.", b"\x97.", b"\xff."],
    "keys that are not strings": [b"}]NsN.", b"}K\x01NsN.", b"\x8f(K\x01\x90."],
    "calls of no function": [b"N)R.", ORDERED_DICT + b")R)R.", b"K\x01K\x02\x93."],
    "calls without a tuple of arguments": [ORDERED_DICT + b"NR.", ORDERED_DICT + b"N\x85R."],
    "values, marks and memos that are not there": [b"(\x90.", b"h\x05.", b"t.", b".", b"NNa."],
    "no end": [b"N", b""],
}


@pytest.mark.parametrize("programs", OUT_OF_PLACE.values(), ids=OUT_OF_PLACE.keys())
def test_opcodes_out_of_place(programs, refuses):
    for opcodes in programs:
        refuses(PROTO + opcodes)


@pytest.mark.parametrize(
    ("dtype", "data", "match"),
    [
        ("O8", b"\x80\x04N.", "uses the NumPy dtype O8"),
        ("V8", b"12345678", "uses the NumPy dtype V8"),
        ("f8", b"1234", "is damaged"),
    ],
)
def test_numpy_scalars_are_numbers(dtype, data, match, refuses):
    scalar = text("numpy.core.multiarray") + text("scalar") + b"\x93"
    arguments = call("numpy", "dtype", dtype) + b"C" + bytes([len(data)]) + data + b"\x86R"
    refuses(PROTO + scalar + arguments + b".", match)


def test_numpy_scalars_are_read(read):
    for value in (np.float64(0.7071), np.float32(0.5), np.int64(-3), np.bool_(True)):
        assert read(pickle.dumps(value)) == value
    with pytest.raises(PidistillError, match="little-endian"):
        read(pickle.dumps(np.dtype(">f8")))


def storage(numel):
    bytes_of_it = torch.zeros(numel).untyped_storage()
    return torch.storage.TypedStorage(wrap_storage=bytes_of_it, dtype=torch.float32, _internal=True)


def saved_storage(numel):
    return saved(storage(numel), _use_new_zipfile_serialization=False)


def test_storages_are_read(read):
    record = read(PROTO + load_from_bytes(saved_storage(6)) + b".")
    assert (record.dtype, record.numel) == (torch.float32, 6)


@pytest.mark.parametrize("zipped", [True, False])
def test_anything_but_a_storage_inside_is_refused(zipped, refuses, tmp_path):
    evil = Evil(tmp_path / "trace")
    for value in (evil, {"a": [evil]}, torch.zeros(2), 1):
        data = saved(value, _use_new_zipfile_serialization=zipped)
        refuses(PROTO + load_from_bytes(data) + b".")
    refuses(PROTO + load_from_bytes(b"") + b".")


def test_a_file_inside_a_file_inside_is_refused(refuses, tmp_path):
    evil = PROTO + load_from_bytes(saved(Evil(tmp_path / "trace"))) + b"."
    refuses(PROTO + load_from_bytes(evil) + b".", r"refers to torch\.storage\._load_from_bytes")


def test_a_claimed_size_is_not_believed(refuses):
    data = saved_storage(3)
    count, huge = struct.pack("<q", 3), struct.pack("<q", 2**60)
    assert data.endswith(count + bytes(12))
    for bad in (data[:-1], data + b"\0", data.replace(count, huge), data[:-20] + huge):
        refuses(PROTO + load_from_bytes(bad) + b".")


@pytest.mark.parametrize(
    "view",
    [
        (0, (10**9,), (0,)),
        (0, (4,), (0,)),
        (1, (3,), (1,)),
        (0, (2,), (3,)),
        (-1, (2,), (1,)),
        (0, (2,), (-1,)),
        (0, (2**70,), (1,)),
        (0, (1,), (2**70,)),
        (0, (2,), (1, 1)),
        (0, (1,) * 9, (1,) * 9),
        (0, (True,), (1,)),
    ],
)
def test_a_tensor_cannot_reach_beyond_its_storage(view, refuses, genuine):
    class Tensor:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (storage(3), *view, False, {})

    refuses(dumps([Tensor()]), "has a tensor that does not fit its storage")


# Bombs: each is a few megabytes at most, and may cost neither time nor memory.


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"N" * 4_000_000, id="opcodes"),
        pytest.param(b"\x8f\x94" * 2_000_000, id="sets_and_memo"),
        pytest.param(b")" + b"\x85" * 4_000_000, id="tuples"),
        pytest.param(b"]" * 3_000_000 + b"a" * 3_000_000, id="lists"),
        pytest.param(b"(" * 2_000_000, id="marks"),
        pytest.param(b"ccollections\nOrderedDict\n\x94" + b"h\x00)R" * 400_000, id="calls"),
        pytest.param(b"\x8e" + b"\xff" * 8, id="huge_bytes"),
        pytest.param(b"\x8e" + struct.pack("<Q", 2**62), id="long_bytes"),
        pytest.param(b"\x8d" + struct.pack("<Q", 2**40), id="long_text"),
        pytest.param(b"B" + struct.pack("<I", 2**32 - 1), id="bytes"),
        pytest.param(b"\x8b" + struct.pack("<i", 2**31 - 1), id="long_integer"),
        pytest.param(b"\x96" + b"\xff" * 8, id="bytearray"),
        pytest.param(b"I" + b"9" * 4_000_000 + b"\n.", id="digits"),
        pytest.param(b"c" + b"a" * 4_000_000, id="name"),
        # a tuple of 2^60 leaves, which to hash would take for ever
        pytest.param(b"})\x94" + b"h\x00h\x00\x86q\x00" * 60 + b"Ns.", id="key"),
    ],
)
def test_are_refused_at_once_in_little_memory(data, refuses):
    started = time.process_time()
    refuses(PROTO + data)
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x8f\x94" * 249_000, id="sets_and_memo"),
        pytest.param(b"\x8d" + struct.pack("<Q", 10**7 + 4) + b"a" * 10**7, id="wide_text"),
    ],
)
def test_take_little_memory(data, read):
    """One character of the text makes Python store all of it at four times the width."""
    tracemalloc.start()
    try:
        with pytest.raises(PidistillError):
            read(PROTO + data + "\N{GRINNING FACE}".encode())
        assert tracemalloc.get_traced_memory()[1] < 4 * len(data) + 200e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b")" + b"\x85" * (MAX_OPCODES - 4) + b".", id="tuples"),
        pytest.param(b"]" * 240_000 + b"a" * 239_999 + b".", id="lists"),
        pytest.param(b"]\x94" + b"h\x00a" * 9 + b".", id="holds_itself"),
        pytest.param(b"N" + b"r\xff\xff\xff\xff" * 100_000 + b".", id="memo_far_out"),
    ],
)
def test_depth_costs_nothing(data, read):
    """Nested and self-referential values are built and released without recursion."""
    read(PROTO + data)


def loads_or_refuses(path):
    """Whether a damaged file loads; fails unless the error is one clear line."""
    try:
        edm.load(str(path))
    except PidistillError as error:
        message = str(error)
        assert message.isprintable(), message
        assert message.startswith(str(path)), message
        assert len(message) < 600, message
        return False
    return True


SMALL_AND_LARGE = pytest.mark.parametrize(
    "large", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["small", "large"]
)


@SMALL_AND_LARGE
def test_truncation_at_every_kilobyte(large, genuine, tmp_path):
    data, path = FIXTURE.read_bytes() if large else genuine, tmp_path / "cut.pkl"
    for length in range(0, len(data), 1024):
        path.write_bytes(data[:length])
        assert not loads_or_refuses(path)


@SMALL_AND_LARGE
def test_byte_flips(large, genuine, tmp_path):
    random_numbers, path = random.Random(0), tmp_path / "flipped.pkl"
    for _ in range(2000 if large else 250):
        damaged = bytearray(FIXTURE.read_bytes() if large else genuine)
        for _ in range(random_numbers.choice([1, 1, 2, 5])):
            damaged[random_numbers.randrange(len(damaged))] ^= random_numbers.randrange(1, 256)
        path.write_bytes(damaged)
        loads_or_refuses(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(PidistillError, match=r"none\.pkl.* cannot be read"):
        read_pickle(tmp_path / "none.pkl")
